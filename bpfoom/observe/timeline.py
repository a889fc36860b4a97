# SPDX-License-Identifier: Apache-2.0
"""Memory and pressure of cgroups over time, sampled by whoever observes them.

The files are kept open, so that a sample is a few reads and takes nothing from the cgroups: what
the kernel needs to answer is charged to the reader's own.
"""

from __future__ import annotations

import errno
import math
import os
import re
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

from bpfoom.observe.result import Sample, Usage

INTERVAL_MS = 50
# A sample may take half a kilobyte of a result for each cgroup: this is what people still look at.
MAX_CGROUPS = 64
MAX_SAMPLES = 20_000
_FILES = ("memory.current", "memory.max", "memory.swap.current", "memory.pressure")
_TOTALS = re.compile(rb"total=(\d+)")


class _Cgroup:
    """The open files of one cgroup. ``gone`` is whether it was removed, as a read has told."""

    def __init__(self, directory: Path) -> None:
        self.gone = False
        self._files: dict[str, int] = {}
        for name in _FILES:
            with suppress(OSError):  # the root has few of them; a kernel without swap, not all
                self._files[name] = os.open(directory / name, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        for fd in self._files.values():
            os.close(fd)

    def usage(self) -> Usage | None:
        """None where the kernel counts nothing, or once the cgroup is gone."""
        current = self._number("memory.current")
        if current is None:
            return None
        stalls = [int(total) for total in _TOTALS.findall(self._read("memory.pressure"))]
        some, full = stalls if len(stalls) == 2 else (0, 0)
        swap = self._number("memory.swap.current")
        return Usage(current, swap, some, full, self._number("memory.max"))

    def _number(self, name: str) -> int | None:
        text = self._read(name).strip()
        return int(text) if text.isdigit() else None

    def _read(self, name: str) -> bytes:
        if name not in self._files:
            return b""
        try:
            return os.pread(self._files[name], 256, 0)
        except OSError as error:
            if error.errno not in (errno.ENODEV, errno.EOPNOTSUPP):  # removed; pressure is off
                raise
            self.gone |= error.errno == errno.ENODEV
            return b""


class Timeline:
    """Samples of some cgroups, by the paths they are called by.

    All samples are kept, or with ``around`` only those so many seconds before and after each
    :meth:`keep`; of more than :data:`MAX_SAMPLES` the latest.
    """

    def __init__(self, cgroups: Mapping[str, Path], around: float | None = None) -> None:
        self._around = around
        self._open: dict[str, _Cgroup] = {}
        self._recent: deque[Sample] = deque()
        self._kept: deque[Sample] = deque(maxlen=MAX_SAMPLES)
        self._keep_until = -math.inf
        self.watch(cgroups)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.watch({})

    def watch(self, cgroups: Mapping[str, Path]) -> None:
        """From now on sample these, the first :data:`MAX_CGROUPS` of them.

        In the place of one that was removed may be another of its name.
        """
        wanted = dict(list(cgroups.items())[:MAX_CGROUPS])
        for path in [p for p, cgroup in self._open.items() if cgroup.gone or p not in wanted]:
            self._open.pop(path).close()
        for path, directory in wanted.items():
            if path not in self._open:
                self._open[path] = _Cgroup(directory)

    def sample(self) -> Sample:
        """Take one."""
        usages = ((path, cgroup.usage()) for path, cgroup in self._open.items())
        taken = Sample(time.time(), {path: usage for path, usage in usages if usage is not None})
        if self._around is None or taken.time <= self._keep_until:
            self._kept.append(taken)
            return taken
        self._recent.append(taken)
        while self._recent[0].time < taken.time - self._around:
            self._recent.popleft()
        return taken

    def keep(self) -> None:
        """Keep what is around now."""
        if self._around is not None:
            self._kept += self._recent
            self._recent.clear()
            self._keep_until = time.time() + self._around

    def samples(self) -> tuple[Sample, ...]:
        """Those that were kept, oldest first."""
        return tuple(self._kept)
