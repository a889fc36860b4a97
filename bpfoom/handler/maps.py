# SPDX-License-Identifier: Apache-2.0
"""The maps of an attached program, found by name among the ids that the kernel tells of it.

Owns what of a handler's own state outlives an exchange of its program: nothing that settles how it
is to act, all that it has counted, and what it remembers if it is the same policy that goes on.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from bpfoom.compiler.object import HandlerObject, MapSpec
from bpfoom.handler import info, syscalls
from bpfoom.handler.syscalls import Fd
from bpfoom.policy import latency
from bpfoom.policy.functions import PARAMS, PARAMS_SET

COUNTERS = "bpfoom_counters"
# Its words, struct counters of bpf/include/base.bpf.c.j2.
COUNTER_NAMES = (
    *("calls", "handled", "passed", "acted", "failed", "in_flight", "samples"),
    *("entered", "left"),
)
# What goes on with the handler, whatever its policy.
_COUNTED = (COUNTERS, latency.MAP)

# Type, key size, value size, number of entries.
Shape = tuple[int, int, int, int]


def find(map_ids: Iterable[int], name: str) -> Fd | None:
    """The program's map of that name, or None. Raises SyscallError if it is gone meanwhile."""
    for map_id in map_ids:
        found = syscalls.map_by_id(map_id)
        if info.map_info(found).name == name:
            return found
        found.close()
    return None


def elements(map_ids: Iterable[int], name: str) -> list[bytes]:
    """The elements of the program's array of that name; none if it has no such map."""
    found = find(map_ids, name)
    if found is None:
        return []
    with found:
        about = info.map_info(found)
        return [
            syscalls.map_lookup(found, number.to_bytes(4, "little"), about.value_size)
            for number in range(about.max_entries)
        ]


def words(raw: bytes) -> tuple[int, ...]:
    """An element that is made of 64-bit numbers."""
    return struct.unpack(f"<{len(raw) // 8}Q", raw)


@contextmanager
def state(
    map_ids: Iterable[int], obj: HandlerObject, *, same_policy: bool
) -> Iterator[dict[str, Fd]]:
    """The maps that the object's program is to take over, by name, for the length of the block.

    Counters and decision times go on with the handler, whatever its policy. Other maps go on if
    they still have the same shape.
    """
    with ExitStack() as owned:
        kept = {}
        for spec in obj.maps:
            if not _is_state(spec) or not (same_policy or spec.name in _COUNTED):
                continue
            found = find(map_ids, spec.name)
            if found is None:
                continue
            owned.enter_context(found)
            if info.map_info(found).shape == shape_of(spec):
                kept[spec.name] = found
        yield kept


def _is_state(spec: MapSpec) -> bool:
    own = not spec.shared and not spec.frozen
    return own and spec.name not in (PARAMS, PARAMS_SET)


def shape_of(spec: MapSpec) -> Shape:
    """What :attr:`bpfoom.handler.info.MapInfo.shape` is of a map made as the spec says."""
    return shape(spec.type, spec.key_size, spec.value_size, spec.max_entries)


def shape(kind: str, key_size: int, value_size: int, max_entries: int) -> Shape:
    """The same of a map whose type is one of :data:`bpfoom.handler.syscalls.MAP_TYPES`."""
    return syscalls.MAP_TYPES[kind], key_size, value_size, max_entries
