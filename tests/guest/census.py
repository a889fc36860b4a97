# SPDX-License-Identifier: Apache-2.0
"""What there is of BPF objects and memory cgroups on the machine, and what a run left behind.

Everything is freed a while after it is let go (grace periods, work queues, pages in caches), so the
second count waits for the first one's state, and what is still there in the end is a leak.
"""

from __future__ import annotations

import ctypes
import errno
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bpfoom.btf import libbpf
from bpfoom.handler import pins, syscalls
from bpfoom.observe import cgroupfs

SETTLE_S = 60.0
_CGROUPS = Path("/sys/fs/cgroup/cgroup.stat")
_KINDS = {"link": "links", "map": "maps", "prog": "programs"}


@dataclass(frozen=True)
class Census:
    """BPF objects by id; cgroups and memcgs by number, removed ones that still linger included."""

    links: frozenset[int]
    maps: frozenset[int]
    programs: frozenset[int]
    cgroups: int
    memcgs: int

    def __str__(self) -> str:
        objects = f"{len(self.links)} links, {len(self.maps)} maps, {len(self.programs)} programs"
        return f"{objects}, {self.cgroups} cgroups, {self.memcgs} memcgs"


def take() -> Census:
    """Count. What lingers only for the pages it was charged is dropped first."""
    Path("/proc/sys/vm/drop_caches").write_text("3")
    stat = cgroupfs.parse_counters(_CGROUPS.read_text())
    return Census(
        frozenset(syscalls.link_ids()),
        frozenset(_ids("bpf_map_get_next_id")),
        frozenset(_ids("bpf_prog_get_next_id")),
        stat["nr_descendants"] + stat["nr_dying_descendants"],
        stat["nr_subsys_memory"] + stat["nr_dying_subsys_memory"],
    )


def left_behind(before: Census) -> list[str]:
    """What came since ``before`` and does not go; empty once everything is as it was.

    The maps that are pinned once for the machine are taken away: they are no leak.
    """
    shutil.rmtree(pins.require().base, ignore_errors=True)
    deadline = time.monotonic() + SETTLE_S
    while (now := take()) != before and time.monotonic() < deadline:
        time.sleep(0.1)
    return _difference(before, now)


def grown(before: Census) -> bool:
    """Whether there is anything now that was not there before, be it only for a while."""
    now = take()
    new = now.links - before.links or now.maps - before.maps or now.programs - before.programs
    return bool(new) or now.cgroups > before.cgroups or now.memcgs > before.memcgs


def _difference(before: Census, now: Census) -> list[str]:
    found = []
    for kind, attribute in _KINDS.items():
        for number in sorted(getattr(now, attribute) - getattr(before, attribute)):
            found.append(_described(kind, number))
        for number in sorted(getattr(before, attribute) - getattr(now, attribute)):
            found.append(f"{kind} {number} was there before and is gone")
    if now.cgroups != before.cgroups or now.memcgs != before.memcgs:
        found += [f"{before.cgroups} cgroups before, {now.cgroups} after"]
        found += [f"{before.memcgs} memcgs before, {now.memcgs} after", *_where()]
    return found


def _where() -> list[str]:
    """The cgroups that are there, and of each how many below it are removed and linger."""
    lines = []
    for stat in sorted(_CGROUPS.parent.rglob(_CGROUPS.name)):
        dying = cgroupfs.parse_counters(stat.read_text())["nr_dying_descendants"]
        lines.append(f"{stat.parent}: {dying} removed ones linger")
    return lines


def _described(kind: str, number: int) -> str:
    """What bpftool says of an object, which may be gone by now."""
    asked = ["bpftool", kind, "show", "id", str(number)]
    done = subprocess.run(asked, capture_output=True, text=True)
    return f"{kind} {done.stdout.strip() or number}"


def _ids(call: str) -> Iterator[int]:
    number = ctypes.c_uint32(0)
    function = getattr(libbpf.load(), call)
    while (result := function(number, ctypes.byref(number))) == 0:
        yield number.value
    assert result == -errno.ENOENT, f"{call}: {result}"
