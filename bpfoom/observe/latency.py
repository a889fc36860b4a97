# SPDX-License-Identifier: Apache-2.0
"""How long the kernel takes from running out of memory to marking a victim, by its own tracing.

The same two events serve the stock killer and a handler: a probe at the entry of out_of_memory()
and the tracepoint oom:mark_victim. The report that the kernel prints in between is included.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Self

_TRACEFS = Path("/sys/kernel/tracing")
_LINE = re.compile(r"\s(?P<seconds>\d+\.\d+): (?P<event>\w+):")


class KillTrace:
    """``with KillTrace() as trace:`` ... ``trace.nanoseconds()`` of the first kill since."""

    def __init__(self) -> None:
        self._event = f"bpfoom_{os.getpid()}"
        self._instance = _TRACEFS / "instances" / self._event
        self._usable = False

    def __enter__(self) -> Self:
        try:
            self._append(f"p:bpfoom/{self._event} out_of_memory\n")
        except OSError:
            return self  # no tracefs, no kprobe events, or not permitted: no figure
        self._usable = True
        self._instance.mkdir()
        for event in (f"bpfoom/{self._event}", "oom/mark_victim"):
            (self._instance / "events" / event / "enable").write_text("1")
        return self

    def __exit__(self, *_: object) -> None:
        if self._usable:
            self._instance.rmdir()
            self._append(f"-:bpfoom/{self._event}\n")

    def nanoseconds(self) -> int | None:
        """From the last entry before the first mark to that mark; microsecond resolution."""
        if not self._usable:
            return None
        entered = None
        for line in (self._instance / "trace").read_text().splitlines():
            found = _LINE.search(line)
            if not found:
                continue
            seconds = float(found["seconds"])
            if found["event"] == "mark_victim":
                return None if entered is None else round((seconds - entered) * 1e9)
            entered = seconds
        return None

    def _append(self, definition: str) -> None:
        # Not open(..., "a"): Python seeks to the end, which this file refuses. Without O_APPEND
        # the kernel would remove everybody's probes first.
        handle = os.open(_TRACEFS / "kprobe_events", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            os.write(handle, definition.encode())
        finally:
            os.close(handle)
