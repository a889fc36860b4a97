# SPDX-License-Identifier: Apache-2.0
"""What the kernel says about a map, a program or a link that we hold.

Owns the bpf_*_info layouts and /proc/self/fdinfo; finding the objects is left to others.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

from bpfoom.handler import syscalls
from bpfoom.handler.syscalls import Fd

LINK_TYPE_STRUCT_OPS = 9


class _LinkInfo(ctypes.Structure):
    # The common head, then the union's struct_ops arm, at 16 because it holds a u64.
    _fields_ = [
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("_pad", ctypes.c_uint32),
        ("map_id", ctypes.c_uint32),
        ("_reserved", ctypes.c_uint32),
        ("cgroup_id", ctypes.c_uint64),
        ("_rest", ctypes.c_uint8 * 32),
    ]


class _MapInfo(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("name", ctypes.c_char * 16),
        ("_rest", ctypes.c_uint8 * 64),
    ]


class _ProgInfo(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", ctypes.c_uint32),
        ("xlated_prog_len", ctypes.c_uint32),
        ("jited_prog_insns", ctypes.c_uint64),
        ("xlated_prog_insns", ctypes.c_uint64),
        ("load_time", ctypes.c_uint64),
        ("created_by_uid", ctypes.c_uint32),
        ("nr_map_ids", ctypes.c_uint32),
        ("map_ids", ctypes.c_uint64),
        ("name", ctypes.c_char * 16),
    ]


@dataclass(frozen=True)
class LinkInfo:
    """A link. Once a struct_ops link is detached, ``map_id`` is 0; ``cgroup_id`` is 0 for a global
    one, ``prog_id`` always. Of other links, the first two mean nothing."""

    type: int
    id: int
    prog_id: int
    map_id: int
    cgroup_id: int


@dataclass(frozen=True)
class MapInfo:
    """A map: its numeric type, sizes in bytes and name (at most 15 characters)."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    name: str

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Type, key size, value size and number of entries: what programs rely on."""
        return self.type, self.key_size, self.value_size, self.max_entries


@dataclass(frozen=True)
class ProgInfo:
    """A program, the ids of its maps (bound ones included), when it was loaded (boot ns), and its
    size as the kernel has rewritten it, and as machine code."""

    type: int
    id: int
    name: str
    tag: str
    load_time_ns: int
    map_ids: tuple[int, ...]
    xlated_bytes: int
    jited_bytes: int


def link_info(fd: Fd) -> LinkInfo:
    """Ask about a link; the struct_ops fields mean something only if the type is that."""
    raw = _LinkInfo()
    syscalls.object_info(fd, raw)
    return LinkInfo(raw.type, raw.id, raw.prog_id, raw.map_id, raw.cgroup_id)


def map_info(fd: Fd) -> MapInfo:
    """Ask about a map."""
    raw = _MapInfo()
    syscalls.object_info(fd, raw)
    name = raw.name.decode("ascii", "replace")
    return MapInfo(raw.type, raw.id, raw.key_size, raw.value_size, raw.max_entries, name)


def prog_info(fd: Fd) -> ProgInfo:
    """Ask about a program."""
    count = 64
    while True:
        ids = (ctypes.c_uint32 * count)()
        raw = _ProgInfo(nr_map_ids=count, map_ids=ctypes.addressof(ids))
        syscalls.object_info(fd, raw)
        if raw.nr_map_ids <= count:
            break
        count = raw.nr_map_ids
    return ProgInfo(
        raw.type,
        raw.id,
        raw.name.decode("ascii", "replace"),
        bytes(raw.tag).hex(),
        raw.load_time,
        tuple(ids[: raw.nr_map_ids]),
        raw.xlated_prog_len,
        raw.jited_prog_len,
    )


def kind(fd: Fd) -> str:
    """What the descriptor is: ``link``, ``map``, ``program``; ``""`` for anything else."""
    lines = fdinfo(fd)
    for name, told in (("link", "link_type"), ("map", "map_type"), ("program", "prog_type")):
        if told in lines:
            return name
    return ""


def fdinfo(fd: Fd) -> dict[str, str]:
    """Every ``key:<tab>value`` line of the descriptor's fdinfo, whatever the kernel has there."""
    return parse_fdinfo(Path(f"/proc/self/fdinfo/{fd.fileno()}").read_text())


def parse_fdinfo(text: str) -> dict[str, str]:
    """The lines of an fdinfo file; lines of another shape are left out."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {key.strip(): value.strip() for key, colon, value in pairs if colon}
