# SPDX-License-Identifier: Apache-2.0
"""The cgroups that somebody watches who follows decisions: those with handlers, and all below.

Directories and processes, as they are now; what is gone meanwhile is passed over.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from bpfoom.errors import BpfoomError
from bpfoom.handler import links
from bpfoom.observe import cgroupfs
from bpfoom.observe.result import Process

# Nobody looks at more in a result.
MAX_PROCESSES = 1000


def watched(most: int) -> dict[str, Path]:
    """The first ``most`` directories by path, upper ones first; of all if there is no handler."""
    tops = [cgroup for number in links.attached() if (cgroup := cgroupfs.by_id(number))]
    if not tops:
        tops = [cgroupfs.resolve("/")]
    tops = [top for top in tops if not any(_is_below(top.name, other.name) for other in tops)]
    waiting = deque((top.name, top.path) for top in sorted(tops, key=lambda top: top.name))
    found: dict[str, Path] = {}
    while waiting and len(found) < most:
        name, path = waiting.popleft()
        found[name] = path
        waiting += ((f"{name.rstrip('/')}/{child}", path / child) for child in _children(path))
    return found


def drawn(cgroups: Mapping[str, Path], handlers: Mapping[str, str]) -> list[str]:
    """A line each, in the order of their paths, with limits and handlers (by path)."""
    lines = []
    for name in sorted(cgroups):
        limit = _text(cgroups[name] / "memory.max").strip()
        notes = [f"memory.max={limit}"] if limit not in ("", "max") else []
        if name in handlers:
            notes.append(f"handler={handlers[name]}")
        lines.append("  ".join((name, *notes)))
    return lines


def memory_events(cgroups: Mapping[str, Path]) -> dict[str, dict[str, int]]:
    """memory.events of those that are there, and have it."""
    texts = {name: _text(path / "memory.events") for name, path in cgroups.items()}
    return {name: cgroupfs.parse_counters(text) for name, text in texts.items() if text}


def processes(names: Iterable[str]) -> list[Process]:
    """The processes inside cgroups of these names, the first :data:`MAX_PROCESSES` of them."""
    found: list[Process] = []
    for name in sorted(set(names)):
        with suppress(BpfoomError):
            found += _inside(cgroupfs.resolve(name))
    return list(dict.fromkeys(found))[:MAX_PROCESSES]


def _inside(top: cgroupfs.Cgroup) -> Iterator[Process]:
    waiting = deque([(top.name, top.path)])
    while waiting:
        name, path = waiting.popleft()
        for pid in _text(path / "cgroup.procs").split():
            comm = _text(Path("/proc", pid, "comm")).removesuffix("\n")
            if comm:
                yield Process(int(pid), comm, name)
        waiting += ((f"{name.rstrip('/')}/{child}", path / child) for child in _children(path))


def _children(path: Path) -> list[str]:
    with suppress(OSError), os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    return []


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(errors="replace")
    return ""


def _is_below(name: str, other: str) -> bool:
    return name != other and (other == "/" or name.startswith(f"{other}/"))
