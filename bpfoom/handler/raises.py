# SPDX-License-Identifier: Apache-2.0
"""Limits that a handler has raised, from the map in which the policy raise-limit keeps them.

Nobody lowers them again when the handler goes: whoever detaches it is told what they were.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from bpfoom.errors import SyscallError
from bpfoom.handler import info, maps, syscalls
from bpfoom.handler.syscalls import Fd

RAISES_MAP = "bpfoom_raises"
# struct raises of bpf/policies/raise-limit.bpf.c.j2.
_RAISES = struct.Struct("<QQQQQ")


@dataclass(frozen=True)
class Raised:
    """A cgroup's memory.max in bytes, before the first raise and after the last."""

    cgroup_id: int
    before: int
    after: int


@contextmanager
def held(map_ids: Iterable[int]) -> Iterator[Callable[[Collection[int]], list[Raised]]]:
    """What a handler with these maps has raised, to be asked within the block even once it is gone.

    To be asked with the ids of the maps of what is there then: nothing if that still remembers, or
    where the policy raises no limits.
    """
    found = None
    with suppress(SyscallError):  # the handler is gone already
        found = maps.find(map_ids, RAISES_MAP)
    if found is None:
        yield lambda _: []
        return
    with found:
        number = info.map_info(found).id
        yield lambda present: [] if number in present else _read(found)


def _read(raises: Fd) -> list[Raised]:
    about = info.map_info(raises)
    if about.value_size != _RAISES.size:  # a policy of somebody else's, or of another version
        return []
    slots = (
        _RAISES.unpack(syscalls.map_lookup(raises, slot.to_bytes(4, "little"), about.value_size))
        for slot in range(about.max_entries)
    )
    return [Raised(number, first, last) for number, first, last, _, _ in slots if last]
