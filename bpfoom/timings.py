# SPDX-License-Identifier: Apache-2.0
"""Where the time of a command goes: stages, measured as they happen, told on request.

Measuring is two clock readings a stage, so it is always on. Stages may be nested; each has its own
time only, without that of the stages inside.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

IMPORTS = "Python and imports"
OTHER = "other"


@dataclass
class Stage:
    """A stage, all of its runs together: seconds of wall-clock time, and of CPU time, that of child
    processes included."""

    name: str
    seconds: float = 0.0
    cpu: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class _Reading:
    wall: float
    cpu: float

    @classmethod
    def now(cls) -> _Reading:
        used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        cpu = sum(usage.ru_utime + usage.ru_stime for usage in used)
        return cls(time.clock_gettime(time.CLOCK_BOOTTIME), cpu)


_first = _Reading.now()
_stages: dict[str, Stage] = {}
_running: list[Stage] = []
_since = _first


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Count the block as a stage of that name."""
    _switch()
    _running.append(_stages.setdefault(name, Stage(name)))
    try:
        yield
    finally:
        _switch()
        _running.pop()


def note(text: str) -> None:
    """Say something about the stage that is running."""
    if _running:
        _running[-1].note = text


def report() -> list[Stage]:
    """The stages so far in the order they began, the interpreter's start first, the rest last."""
    _switch()
    imports = Stage(IMPORTS, _first.wall - _process_start(), _first.cpu)
    stages = {IMPORTS: imports}
    for found in _stages.values():
        told = stages.setdefault(found.name, Stage(found.name, note=found.note))
        told.seconds += found.seconds
        told.cpu += found.cpu
    other = stages.pop(OTHER, None)
    return [*stages.values(), *([other] if other else [])]


def _switch() -> None:
    """What has passed since the last switch belongs to the stage that was running."""
    global _since
    now = _Reading.now()
    running = _running[-1] if _running else _stages.setdefault(OTHER, Stage(OTHER))
    running.seconds += now.wall - _since.wall
    running.cpu += now.cpu - _since.cpu
    _since = now


def _process_start() -> float:
    """When this process began, in seconds since boot, to a clock tick."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")
