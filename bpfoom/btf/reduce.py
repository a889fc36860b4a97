# SPDX-License-Identifier: Apache-2.0
"""A small BTF out of a kernel's: the types that policies look up, and what these are made of.

Makes ``tests/data/kernel.btf``: ``python -m bpfoom.btf.reduce FULL OUT``. Structs that are only
pointed to become forward declarations, unless they were asked for by name.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from bpfoom.btf.types import COMPOSITE, TRANSPARENT, Btf, Kind, Type
from bpfoom.btf.write import Writer

STRUCTS = (
    "bpf_oom_ops",
    "bpf_struct_ops_bpf_oom_ops",
    "oom_control",
    "task_struct",
    "signal_struct",
    "mm_struct",
    "percpu_counter",
    "mem_cgroup",
    "mem_cgroup_per_node",
    "page_counter",
    "cgroup",
    "cgroup_subsys_state",
    "css_set",
    "kernfs_node",
    "psi_group",
    "bpf_wq",
    "bpf_iter_css",
    "bpf_iter_css_task",
    "bpf_iter_task",
    "bpf_iter_num",
)
ENUMS = (
    "bpf_cgroup_iter_order",
    "bpf_oom_flags",
    "bpf_oom_verdict",
    "memcg_memory_event",
    "node_stat_item",
    "oom_constraint",
    "psi_states",
    "vm_event_item",
)
PREFIXES = (
    "bpf_oom_",
    "bpf_task_",
    "bpf_cgroup_",
    "bpf_iter_css_",
    "bpf_iter_task_",
    "bpf_iter_num_",
    "bpf_mem_cgroup_",
    "bpf_wq_",
)
FUNCTIONS = (
    "bpf_rcu_read_lock",
    "bpf_rcu_read_unlock",
    "bpf_get_mem_cgroup",
    "bpf_get_root_mem_cgroup",
    "bpf_out_of_memory",
    "bpf_put_mem_cgroup",
)


class Reducer:
    """Copies chosen types of a BTF into a new one, each under a new id.

    A struct that was not asked for becomes a forward declaration behind a pointer, and an empty
    struct of its size inside another one.
    """

    def __init__(self, btf: Btf, whole: Iterable[str]) -> None:
        self._btf = btf
        self._whole = frozenset(whole)
        self._kept: dict[int, int] = {0: 0}
        self._referred: dict[int, int] = {0: 0}
        self._made = Writer()

    def keep(self, type_id: int) -> int:
        """Copy a type with everything that its layout needs; returns its new id."""
        if type_id not in self._kept:
            self._kept[type_id] = new = self._made.reserve()
            self._copy(new, self._btf.type(type_id), self.keep)
        return self._kept[type_id]

    def refer(self, type_id: int) -> int:
        """Copy a type as what a pointer leads to: a named struct by its name alone."""
        record = self._btf.type(type_id)
        named = record.kind in COMPOSITE and record.name and record.name not in self._whole
        if not named and record.kind not in TRANSPARENT:
            return self.keep(type_id)
        if type_id not in self._referred:
            self._referred[type_id] = new = self._made.reserve()
            if named:
                self._made.put(new, Kind.FWD, record.name, flag=record.kind is Kind.UNION)
            else:
                self._copy(new, record, self.refer)
        return self._referred[type_id]

    def _copy(self, new: int, record: Type, target: Callable[[int], int]) -> None:
        kind, tail, vlen, value = record.kind, record.tail, record.vlen, record.size_or_type
        if kind is Kind.PTR:
            value = self.refer(value)
        elif kind in TRANSPARENT or kind in (Kind.FUNC, Kind.FUNC_PROTO):
            value = target(value)
        if kind in COMPOSITE and record.name and record.name not in self._whole:
            tail, vlen = b"", 0
        elif kind in (Kind.STRUCT, Kind.UNION, Kind.FUNC_PROTO):
            tail = self._entries(tail, 3 if kind in COMPOSITE else 2, types=True)
        elif kind in (Kind.ENUM, Kind.ENUM64):
            tail = self._entries(tail, 2 if kind is Kind.ENUM else 3, types=False)
        elif kind is Kind.ARRAY:
            element, index, length = struct.unpack("<III", tail)
            tail = struct.pack("<III", self.keep(element), self.keep(index), length)
        flag = record.flag
        self._made.put(new, kind, record.name, vlen=vlen, flag=flag, value=value, tail=tail)

    def _entries(self, tail: bytes, words: int, *, types: bool) -> bytes:
        """Members, parameters or enum values: a name, perhaps a type, and the rest as it is."""
        form = struct.Struct(f"<{words}I")
        out = b""
        for name, second, *rest in form.iter_unpack(tail):
            second = self.keep(second) if types else second
            out += form.pack(self._made.string(self._btf.string(name)), second, *rest)
        return out

    def to_bytes(self) -> bytes:
        """The new BTF."""
        return self._made.to_bytes()


def reduce(btf: Btf) -> bytes:
    """The raw BTF with what policies may ask for, as far as ``btf`` has it."""
    reducer = Reducer(btf, STRUCTS)
    for name in STRUCTS:
        found = btf.find(name, Kind.STRUCT)
        if found:
            reducer.keep(found)
    for name in ENUMS:
        found = btf.find(name, Kind.ENUM, Kind.ENUM64)
        if found:
            reducer.keep(found)
    for type_id in range(1, btf.count()):
        record = btf.type(type_id)
        if record.kind is Kind.FUNC and (
            record.name.startswith(PREFIXES) or record.name in FUNCTIONS
        ):
            reducer.keep(type_id)
    return reducer.to_bytes()


def main(argv: list[str]) -> None:
    """``reduce FULL OUT``."""
    with Btf.from_file(Path(argv[1])) as btf:
        Path(argv[2]).write_bytes(reduce(btf))


if __name__ == "__main__":
    main(sys.argv)
