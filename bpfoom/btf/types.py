# SPDX-License-Identifier: Apache-2.0
"""A kernel's types: struct layouts, enum values, function prototypes, all by name.

Owns the reading of BTF records that libbpf hands out and the C text of a type. Who needs which
type, and what it means when one is missing, is for the caller to say.
"""

from __future__ import annotations

import ctypes
import shlex
import struct
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from bpfoom import near
from bpfoom.btf import libbpf
from bpfoom.errors import BpfoomError, MissingFeatureError

RUNNING = Path("/sys/kernel/btf/vmlinux")


class Kind(IntEnum):
    """The BTF kinds, as in the kernel's ``uapi/linux/btf.h``."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


QUALIFIERS = {Kind.VOLATILE: "volatile", Kind.CONST: "const", Kind.RESTRICT: "restrict"}
# Kinds that only rename or decorate another type.
TRANSPARENT = frozenset({*QUALIFIERS, Kind.TYPEDEF, Kind.TYPE_TAG})
COMPOSITE = frozenset({Kind.STRUCT, Kind.UNION})


@dataclass(frozen=True)
class Type:
    """One BTF record: ``size_or_type`` as the kind wants it, ``flag`` the kind flag, ``tail``
    the raw records that follow (members, values, parameters, ...)."""

    id: int
    kind: Kind
    name: str
    vlen: int
    flag: bool
    size_or_type: int
    tail: bytes


@dataclass(frozen=True)
class Member:
    """A direct member of a struct or union; ``offset`` in bits, ``bits`` > 0 for a bit field."""

    name: str
    type_id: int
    offset: int
    bits: int


@dataclass(frozen=True)
class Place:
    """Where a member path ends: offset and size in bits from the start of the outer struct."""

    offset: int
    size: int
    type_id: int
    type: str
    bitfield: bool


@dataclass(frozen=True)
class Param:
    name: str
    type_id: int


def _tail_size(kind: Kind, vlen: int) -> int:
    per_entry = {
        Kind.STRUCT: 12,
        Kind.UNION: 12,
        Kind.ENUM: 8,
        Kind.ENUM64: 12,
        Kind.FUNC_PROTO: 8,
        Kind.DATASEC: 12,
    }
    fixed = {Kind.INT: 4, Kind.ARRAY: 12, Kind.VAR: 4, Kind.DECL_TAG: 4}
    return per_entry.get(kind, 0) * vlen + fixed.get(kind, 0)


class Btf:
    """Type information of one kernel. Use it as a context manager."""

    def __init__(self, raw: bytes, source: str = "BTF", file: Path = RUNNING) -> None:
        """Parse ``raw``, read from ``file``; ``source`` names it in errors. Raises BpfoomError when
        libbpf refuses."""
        self.source = source
        self._file = file
        self._lib = libbpf.load()
        self._raw = raw
        # The same few types are asked for again and again, and libbpf searches from the start.
        self._found: dict[tuple[str, Kind], int] = {}
        self._members: dict[int, tuple[Member, ...]] = {}
        self._btf = self._lib.btf__new(raw, len(raw))
        if not self._btf:
            raise BpfoomError(
                f"{source} is not type information that libbpf can read",
                hint="give the raw .BTF data of a kernel, such as /sys/kernel/btf/vmlinux",
                errno=ctypes.get_errno(),
                bytes=len(raw),
            )

    @classmethod
    def from_file(cls, path: Path | None = None) -> Btf:
        """The BTF in ``path``, by default the running kernel's. Raises MissingFeatureError."""
        return cls(read_raw(path), str(path or "the running kernel"), path or RUNNING)

    def close(self) -> None:
        """Free libbpf's copy; the object is of no use afterwards."""
        if self._btf:
            self._lib.btf__free(self._btf)
            self._btf = None

    def __enter__(self) -> Btf:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Records

    def count(self) -> int:
        """Number of types, void (id 0) included."""
        return int(self._lib.btf__type_cnt(self._btf))

    def type(self, type_id: int) -> Type:
        """The record of an id. Raises KeyError when there is none."""
        if type_id == 0:
            return Type(0, Kind.VOID, "void", 0, False, 0, b"")
        address = self._lib.btf__type_by_id(self._btf, type_id)
        if not address:
            raise KeyError(f"no type {type_id} in {self.source}")
        name_off, info, size_or_type = struct.unpack("<III", ctypes.string_at(address, 12))
        kind, vlen = Kind((info >> 24) & 0x1F), info & 0xFFFF
        name = self._lib.btf__name_by_offset(self._btf, name_off) or b""
        tail = ctypes.string_at(address + 12, _tail_size(kind, vlen))
        return Type(type_id, kind, name.decode(), vlen, bool(info >> 31), size_or_type, tail)

    def string(self, offset: int) -> str:
        """A name by its offset in the string section."""
        name: bytes | None = self._lib.btf__name_by_offset(self._btf, offset)
        return (name or b"").decode()

    def names(self, *kinds: Kind) -> set[str]:
        """The names of all types of these kinds. It reads every record, which takes a while."""
        every = (self.type(number) for number in range(1, self.count()))
        return {record.name for record in every if record.kind in kinds} - {""}

    def find(self, name: str, *kinds: Kind) -> int | None:
        """The id of the first type of that name and one of the kinds, or None."""
        for kind in kinds:
            if (name, kind) not in self._found:
                found = self._lib.btf__find_by_name_kind(self._btf, name.encode(), int(kind))
                self._found[name, kind] = int(found)
            if self._found[name, kind] > 0:
                return self._found[name, kind]
        return None

    def resolve(self, type_id: int) -> Type:
        """The type behind typedefs, qualifiers and tags."""
        found = self.type(type_id)
        while found.kind in TRANSPARENT:
            found = self.type(found.size_or_type)
        return found

    def size_of(self, type_id: int) -> int:
        """Bytes of a value of that type. Raises ValueError for one without a size."""
        size = int(self._lib.btf__resolve_size(self._btf, type_id))
        if size < 0:
            raise ValueError(f"type {type_id} of {self.source} has no size")
        return size

    def members(self, record: Type) -> tuple[Member, ...]:
        """The direct members of a struct or union, in order."""
        if record.id in self._members:
            return self._members[record.id]
        found = []
        for name_off, type_id, offset in struct.iter_unpack("<III", record.tail):
            bits = offset >> 24 if record.flag else 0
            place = offset & 0xFFFFFF if record.flag else offset
            found.append(Member(self.string(name_off), type_id, place, bits))
        self._members[record.id] = tuple(found)
        return self._members[record.id]

    def params(self, proto: Type) -> tuple[Param, ...]:
        """The parameters of a function prototype."""
        return tuple(
            Param(self.string(name_off), type_id)
            for name_off, type_id in struct.iter_unpack("<II", proto.tail)
        )

    def element(self, array: Type) -> tuple[int, int]:
        """An array's element type and length."""
        type_id, _index, length = struct.unpack("<III", array.tail)
        return int(type_id), int(length)

    # Questions by name

    def struct_id(self, name: str) -> int:
        """The id of a struct or union. Raises MissingFeatureError."""
        found = self.find(name, Kind.STRUCT, Kind.UNION)
        if found is None:
            raise MissingFeatureError(
                f"{self.source} has no struct {name}",
                hint=_hint(name),
                struct=name,
            )
        return found

    def has_struct(self, name: str) -> bool:
        return self.find(name, Kind.STRUCT, Kind.UNION) is not None

    def place(self, struct_name: str, path: str) -> Place:
        """Where ``path`` ("a", "a.b") is in a struct, looking through anonymous members.

        Raises MissingFeatureError when the struct or the member does not exist.
        """
        type_id, offset, bits = self.struct_id(struct_name), 0, 0
        for part in path.split("."):
            outer = self.resolve(type_id)
            found = self._member(outer, part)
            if found is None:
                layout = (
                    f"its layout: bpftool btf dump file {shlex.quote(str(self._file))} format c"
                )
                raise MissingFeatureError(
                    f"struct {struct_name} of {self.source} has no member {path}",
                    hint=" ".join(filter(None, [near.hint(part, self._names_in(outer)), layout])),
                    struct=struct_name,
                    member=path,
                )
            type_id, offset, bits = found.type_id, offset + found.offset, found.bits
        size = bits or self.size_of(type_id) * 8
        return Place(offset, size, type_id, self.c_type(type_id), bool(bits))

    def has_member(self, struct_name: str, path: str) -> bool:
        try:
            self.place(struct_name, path)
        except MissingFeatureError:
            return False
        return True

    def _member(self, outer: Type, name: str) -> Member | None:
        """The member of that name, with its offset from the start of ``outer``."""
        if outer.kind not in COMPOSITE:
            return None
        for member in self.members(outer):
            if member.name == name:
                return member
            if not member.name:
                inner = self._member(self.resolve(member.type_id), name)
                if inner:
                    return Member(name, inner.type_id, member.offset + inner.offset, inner.bits)
        return None

    def _names_in(self, outer: Type) -> set[str]:
        """The names of a struct's members, those inside of anonymous ones included."""
        if outer.kind not in COMPOSITE:
            return set()
        names = set()
        for member in self.members(outer):
            inner = self._names_in(self.resolve(member.type_id)) if not member.name else set()
            names |= inner | {member.name}
        return names - {""}

    def enum_values(self, name: str) -> dict[str, int]:
        """All values of an enum. Raises MissingFeatureError."""
        found = self.find(name, Kind.ENUM, Kind.ENUM64)
        if found is None:
            raise MissingFeatureError(
                f"{self.source} has no enum {name}", hint=_hint(name), enum=name
            )
        return self._values(self.type(found))

    def enum_value(self, enum: str, name: str) -> int:
        """One value. Raises MissingFeatureError when the enum or the name does not exist."""
        values = self.enum_values(enum)
        if name not in values:
            raise MissingFeatureError(
                f"enum {enum} of {self.source} has no value {name}",
                hint=near.hint(name, values) or f"it has: {', '.join(values)}",
                enum=enum,
                value=name,
            )
        return values[name]

    def _values(self, record: Type) -> dict[str, int]:
        if record.kind is Kind.ENUM:
            form = "<Ii" if record.flag else "<II"
            return {self.string(n): int(v) for n, v in struct.iter_unpack(form, record.tail)}
        found = {}
        for name_off, low, high in struct.iter_unpack("<III", record.tail):
            value = high << 32 | low
            signed = record.flag and value >> 63
            found[self.string(name_off)] = value - (1 << 64) if signed else value
        return found

    def has_function(self, name: str) -> bool:
        return self.find(name, Kind.FUNC) is not None

    def function(self, name: str) -> Type:
        """The prototype (a FUNC_PROTO record) of a function. Raises MissingFeatureError."""
        found = self.find(name, Kind.FUNC)
        if found is None:
            raise MissingFeatureError(
                f"{self.source} has no kernel function {name}", hint=_hint(name), function=name
            )
        return self.type(self.type(found).size_or_type)

    def prototype(self, name: str) -> str:
        """The C prototype of a function, one line. Raises MissingFeatureError."""
        proto = self.function(name)
        params = ", ".join(self.c_type(p.type_id, p.name) for p in self.params(proto))
        return self.c_type(proto.size_or_type, f"{name}({params or 'void'})")

    def c_type(self, type_id: int, declarator: str = "") -> str:
        """The type as C text, declaring ``declarator`` when given."""
        record = self.type(type_id)
        kind = record.kind
        if kind is Kind.PTR:
            target = self.resolve_tags(record.size_or_type)
            inner = f"*{declarator}"
            if self.type(target).kind in (Kind.ARRAY, Kind.FUNC_PROTO):
                inner = f"({inner})"
            return self.c_type(target, inner)
        if kind is Kind.ARRAY:
            element, length = self.element(record)
            return self.c_type(element, f"{declarator}[{length}]")
        if kind is Kind.FUNC_PROTO:
            params = ", ".join(self.c_type(p.type_id, p.name) for p in self.params(record))
            return self.c_type(record.size_or_type, f"{declarator}({params or 'void'})")
        if kind in QUALIFIERS:
            return self._qualified(record, declarator)
        if kind is Kind.TYPE_TAG:
            return self.c_type(record.size_or_type, declarator)
        words = {
            Kind.STRUCT: "struct ",
            Kind.UNION: "union ",
            Kind.ENUM: "enum ",
            Kind.ENUM64: "enum ",
            Kind.FWD: "union " if record.flag else "struct ",
        }
        name = words.get(kind, "") + (record.name or "{...}")
        return _joined(name, declarator)

    def _qualified(self, record: Type, declarator: str) -> str:
        word = QUALIFIERS[record.kind]
        target = self.type(self.resolve_tags(record.size_or_type))
        if target.kind is Kind.PTR:
            return self.c_type(target.id, _joined(word, declarator))
        return f"{word} {self.c_type(target.id, declarator)}"

    def resolve_tags(self, type_id: int) -> int:
        """The id behind type tags (``__rcu``, ``__user``) alone."""
        while self.type(type_id).kind is Kind.TYPE_TAG:
            type_id = self.type(type_id).size_or_type
        return type_id


def _joined(left: str, right: str) -> str:
    if not right:
        return left
    return f"{left}{'' if right.startswith('[') else ' '}{right}"


def _hint(name: str) -> str:
    if "oom" in name:
        return (
            "this needs bpfoom's kernel series: `bpfoom kernel build`, then try it in the guest "
            "with `bpfoom vm run -- ...`"
        )
    return "another kernel, or another configuration of it, may provide it"


def read_raw(path: Path | None = None) -> bytes:
    """The raw BTF in ``path``, by default the running kernel's. Raises MissingFeatureError."""
    source = path or RUNNING
    try:
        return source.read_bytes()
    except OSError as error:
        raise MissingFeatureError(
            f"cannot read type information from {source}: {error.strerror}",
            hint="the kernel must be built with CONFIG_DEBUG_INFO_BTF=y; or name another file "
            "with --btf",
            path=str(source),
            errno=error.errno,
        ) from error
