# SPDX-License-Identifier: Apache-2.0
"""The kernel's tracing in an instance of our own: nobody else's trace is touched.

Where tracing cannot be had (not mounted, locked down, not permitted) there is simply nothing in it.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

TRACEFS = Path("/sys/kernel/tracing")
_PREFIX = "bpfoom"
_NUMBER = itertools.count(1)
# The task's name comes first, and anybody chooses that: what follows is more than fits into it.
_LINE = re.compile(
    r"-\d+\s+(?:\([^)]*\)\s+)?\[\d+\]\s+\S+\s+"
    r"(?P<seconds>\d+)\.(?P<micros>\d{6}): (?P<event>\w+): ?(?P<text>.*)"
)
_READ = 1 << 16


@dataclass(frozen=True)
class Event:
    """One line of a trace: nanoseconds since boot, exact to a microsecond; what is said of it."""

    time_ns: int
    name: str
    text: str


class Instance:
    """``with Instance(["oom/mark_victim"]) as trace:`` ... ``trace.read()``.

    ``events`` are named by their directories below events/.
    """

    def __init__(self, events: Sequence[str], buffer_kib: int = 128) -> None:
        self._events = events
        self._buffer_kib = buffer_kib
        name = f"{_PREFIX}_{os.getpid()}_{next(_NUMBER)}"
        self._directory = TRACEFS / "instances" / name
        self._pipe = -1
        self._unread = b""

    def __enter__(self) -> Self:
        try:
            sweep(self._directory.parent)
            self._directory.mkdir()
            self._write("buffer_size_kb", str(self._buffer_kib))
            self._write("trace_clock", "boot")
            for event in self._events:
                self._write(f"events/{event}/enable", "1")
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
            self._pipe = os.open(self._directory / "trace_pipe", flags)
        except OSError:
            self.__exit__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
        with suppress(OSError):
            self._directory.rmdir()

    @property
    def usable(self) -> bool:
        """Whether anything will ever come."""
        return self._pipe >= 0

    def fileno(self) -> int:
        """To wait for what comes; -1 if nothing ever will."""
        return self._pipe

    def read(self) -> list[Event]:
        """The events since the last call, oldest first."""
        while self.usable:
            try:
                some = os.read(self._pipe, _READ)
            except BlockingIOError:
                break
            if not some:
                break
            self._unread += some
        *lines, self._unread = self._unread.split(b"\n")
        return [event for line in lines if (event := parse(line.decode("utf-8", "replace")))]

    def _write(self, file: str, text: str) -> None:
        (self._directory / file).write_text(text)


def sweep(instances: Path) -> None:
    """Remove those of processes of ours that were killed and could not."""
    for name in os.listdir(instances):
        found = re.fullmatch(rf"{_PREFIX}_(\d+)_\d+", name)
        if found and not Path("/proc", found[1]).exists():
            with suppress(OSError):
                (instances / name).rmdir()


def parse(line: str) -> Event | None:
    """A line of a trace; None for one that is no event."""
    found = _LINE.search(line)
    if not found:
        return None
    time_ns = int(found["seconds"]) * 1_000_000_000 + int(found["micros"]) * 1000
    return Event(time_ns, found["event"], found["text"])
