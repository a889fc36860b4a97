# SPDX-License-Identifier: Apache-2.0
"""Kernels that differ in one thing: a kernel's BTF with a few bytes of it exchanged in place."""

from __future__ import annotations

import struct

from bpfoom.btf.types import Btf, Kind, Type

_RECORD = 12


class EditedBtf:
    """A copy of a BTF, to be changed and taken as :attr:`raw`."""

    def __init__(self, raw: bytes) -> None:
        self.raw = bytearray(raw)
        self._btf = Btf(raw)

    def move_member(self, name: str, member: str, bits: int) -> None:
        """Put a direct member of a struct elsewhere."""
        record = self._find(name, Kind.STRUCT)
        found = next(i for i, m in enumerate(self._btf.members(record)) if m.name == member)
        at = self._tail(record) + found * 12 + 8
        (old,) = struct.unpack_from("<I", self.raw, at)
        # With the kind flag set, the upper byte is the size of a bit field.
        struct.pack_into("<I", self.raw, at, old & 0xFF000000 | bits if record.flag else bits)

    def set_enum_value(self, name: str, value_name: str, value: int) -> None:
        """Give a name of an enum another value."""
        record = self._find(name, Kind.ENUM)
        for index, (name_off, _) in enumerate(struct.iter_unpack("<Ii", record.tail)):
            if self._btf.string(name_off) == value_name:
                struct.pack_into("<i", self.raw, self._tail(record) + index * 8 + 4, value)

    def set_parameter_type(self, function: str, index: int, type_name: str) -> None:
        """Let a function take an int type where it took another one."""
        proto = self._btf.type(self._find(function, Kind.FUNC).size_or_type)
        new = self._find(type_name, Kind.INT, Kind.TYPEDEF).id
        struct.pack_into("<I", self.raw, self._tail(proto) + index * 8 + 4, new)

    def _find(self, name: str, *kinds: Kind) -> Type:
        found = self._btf.find(name, *kinds)
        assert found is not None, f"no {name} in this BTF"
        return self._btf.type(found)

    def _tail(self, record: Type) -> int:
        """Where what follows a type's record begins in the raw bytes."""
        header, type_off = struct.unpack_from("<4xII", self.raw)
        at = header + type_off
        for type_id in range(1, record.id):
            at += _RECORD + len(self._btf.type(type_id).tail)
        return int(at) + _RECORD
