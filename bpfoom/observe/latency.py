# SPDX-License-Identifier: Apache-2.0
"""How long the kernel takes from running out of memory to marking a victim, by its own tracing.

The same two events serve the stock killer and a handler: a probe at the entry of out_of_memory()
and the tracepoint oom:mark_victim. The report that the kernel prints in between is included.
"""

from __future__ import annotations

import os
import re
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from bpfoom.observe import tracing
from bpfoom.observe.tracing import TRACEFS, Instance

_PROBE = re.compile(r"p\d*:(?P<name>bpfoom/bpfoom_(?P<pid>\d+)) ")


class KillTrace:
    """``with KillTrace() as trace:`` ... ``trace.nanoseconds()`` of the first kill since."""

    def __init__(self) -> None:
        self._event = f"bpfoom_{os.getpid()}"
        self._owned = ExitStack()
        self._trace: Instance | None = None

    def __enter__(self) -> Self:
        try:
            _sweep()
            _define(f"p:bpfoom/{self._event} out_of_memory\n")
        except OSError:
            return self  # no tracefs, no kprobe events, or not permitted: no figure
        self._owned.callback(_define, f"-:bpfoom/{self._event}\n")
        events = (f"bpfoom/{self._event}", "oom/mark_victim")
        self._trace = self._owned.enter_context(Instance(events, 1024))
        return self

    def __exit__(self, *_: object) -> None:
        self._owned.close()

    def nanoseconds(self) -> int | None:
        """From the last entry before the first mark to that mark; microsecond resolution."""
        entered = None
        for event in self._trace.read() if self._trace else ():
            if event.name == "mark_victim":
                return None if entered is None else event.time_ns - entered
            entered = event.time_ns
        return None


def _sweep() -> None:
    """Remove the probes of processes of ours that were killed and could not."""
    # None goes while it is on somewhere.
    tracing.sweep(TRACEFS / "instances")
    for line in (TRACEFS / "kprobe_events").read_text().splitlines():
        found = _PROBE.match(line)
        if found and not Path("/proc", found["pid"]).exists():
            with suppress(OSError):
                _define(f"-:{found['name']}\n")


def _define(definition: str) -> None:
    # Not open(..., "a"): Python seeks to the end, which this file refuses. Without O_APPEND
    # the kernel would remove everybody's probes first.
    handle = os.open(TRACEFS / "kprobe_events", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(handle, definition.encode())
    finally:
        os.close(handle)
