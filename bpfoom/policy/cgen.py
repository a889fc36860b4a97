# SPDX-License-Identifier: Apache-2.0
"""C declarations made from a kernel's types: struct slices, enum values, kfuncs.

bcc has no CO-RE, so rendering is where a policy meets the running kernel: a slice has only the
members that were asked for, each at the kernel's offset, and everything that was looked up is
remembered, so that loading can compare it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bpfoom.btf.types import COMPOSITE, Btf, Kind, Place, Type
from bpfoom.errors import TemplateError

# (size in bytes, signed) -> the name that bpf/stubs declares for it.
_INTS = {
    (1, False): "u8",
    (2, False): "u16",
    (4, False): "u32",
    (8, False): "u64",
    (1, True): "s8",
    (2, True): "s16",
    (4, True): "s32",
    (8, True): "s64",
}
_SIGNED, _BOOL = 1, 4
_NARROW = ("bool", "char", "u8", "s8", "u16", "s16")


@dataclass
class Slice:
    """The members asked for at one level of a struct; ``inner`` for dotted paths."""

    place: Place
    inner: dict[str, Slice] = field(default_factory=dict)


class Declarations:
    """Writes declarations for one rendering and keeps what they were made from."""

    def __init__(self, btf: Btf) -> None:
        self._btf = btf
        self._complete: set[str] = set()
        self._promised: set[str] = set()  # checked, to be sliced later
        self._named: set[str] = set()
        self._forwarded: set[str] = set()

    # Struct slices

    def slice(self, name: str, paths: tuple[str, ...]) -> tuple[str, dict[str, Place]]:
        """``struct name`` with the members at ``paths`` only, and where each of them is."""
        if name in self._complete:
            raise TemplateError(
                f"struct {name} is sliced twice", hint="ask for all members at once"
            )
        tree: dict[str, Slice] = {}
        places = {}
        for path in paths:
            places[path] = self._btf.place(name, path)
            level, done = tree, ""
            for part in path.split("."):
                done = f"{done}.{part}" if done else part
                level = level.setdefault(part, Slice(self._btf.place(name, done))).inner
        size = self._btf.size_of(self._btf.struct_id(name))
        body = self._body(name, tree, 0, size, "\t")
        forward = self._forward_new(name)
        self._complete.add(name)
        check = f'_Static_assert(sizeof(struct {name}) == {size}, "struct {name}");'
        return f"{forward}struct {name} {{\n{body}}};\n{check}\n", places

    def check(self, name: str, paths: tuple[str, ...]) -> None:
        """Raise what :meth:`slice` would raise, and change nothing."""
        trial = Declarations(self._btf)
        trial._complete = self._complete | self._promised - {name}
        trial.slice(name, paths)
        self._promised.add(name)

    def _body(self, name: str, tree: dict[str, Slice], start: int, size: int, tabs: str) -> str:
        """The members of one level. ``start`` is in bits from the outer struct, size in bytes."""
        lines, at = [], 0
        for member, part in sorted(tree.items(), key=lambda item: item[1].place.offset):
            place = part.place
            if place.bitfield:
                raise TemplateError(f"{name}.{member} is a bit field", hint="read its whole word")
            offset = (place.offset - start) // 8
            if offset < at:
                raise TemplateError(f"{name}.{member} overlaps another member of the slice")
            if offset > at:
                lines.append(f"{tabs}u8 __at_{at}[{offset - at}];")
            lines.append(f"{tabs}{self._member(name, member, part, tabs)};")
            at = offset + place.size // 8
        if at < size:
            lines.append(f"{tabs}u8 __at_{at}[{size - at}];")
        return "".join(line + "\n" for line in lines)

    def _member(self, name: str, member: str, part: Slice, tabs: str) -> str:
        if not part.inner:
            return self.declare(part.place.type_id, member)
        place = part.place
        body = self._body(name, part.inner, place.offset, place.size // 8, tabs + "\t")
        return f"struct {{\n{body}{tabs}}} {member}"

    # Types in terms of the stubs' names

    def declare(self, type_id: int, name: str) -> str:
        """A declaration of ``name`` that needs no other header; pointers to structs keep their
        target. Raises TemplateError for an embedded struct that was not sliced before."""
        record = self._btf.resolve(type_id)
        if record.kind is Kind.ARRAY:
            element, length = self._btf.element(record)
            return self.declare(element, f"{name}[{length}]")
        if record.kind is Kind.PTR:
            return self._pointer(record, name)
        if record.kind in COMPOSITE:
            if record.name not in self._complete:
                raise TemplateError(
                    f"{name} is a whole struct {record.name or '{...}'}",
                    hint=f"slice struct {record.name} before, or ask for a member: {name}.MEMBER",
                )
            return f"struct {record.name} {name}"
        return f"{self._scalar(record)} {name}".rstrip()

    def _pointer(self, record: Type, name: str) -> str:
        target = self._btf.resolve(record.size_or_type)
        if target.kind is Kind.STRUCT and target.name or target.kind is Kind.FWD:
            self._named.add(target.name)
            return f"struct {target.name} *{name}"
        if target.kind is Kind.INT and target.name == "char":
            return f"const char *{name}"
        return f"void *{name}"

    def _scalar(self, record: Type) -> str:
        if record.kind is Kind.VOID:
            return "void"
        if record.kind in (Kind.ENUM, Kind.ENUM64):
            return _INTS[record.size_or_type, record.flag]
        if record.kind is Kind.INT:
            encoding = record.tail[3]
            if encoding & _BOOL:
                return "bool"
            if record.name == "char":
                return "char"
            if (record.size_or_type, bool(encoding & _SIGNED)) in _INTS:
                return _INTS[record.size_or_type, bool(encoding & _SIGNED)]
        raise TemplateError(f"type {record.name or record.kind.name} cannot be used in a handler")

    # Kfuncs

    def kfunc(self, name: str, address: int) -> str:
        """A function pointer that the decoder finds again by ``address``.

        A kernel function that returns less than 32 bits leaves the rest of the register as it
        was, while LLVM's BPF callers rely on it: such a result is declared wide and cut here.
        """
        proto = self._btf.function(name)
        params = [self.declare(p.type_id, p.name) for p in self._btf.params(proto)]
        record = self._btf.resolve(proto.size_or_type)
        narrow = self._scalar(record) if record.kind in (Kind.INT, Kind.ENUM) else ""
        if narrow not in _NARROW:
            head = f"(*const {name})({', '.join(params) or 'void'})"
            pointer = record.kind is Kind.PTR
            declared = self._pointer(record, head) if pointer else f"{self._scalar(record)} {head}"
            return f"{self._forward_new()}static {declared} = (void *){address:#x};\n"
        declared = f"static u64 (*const {name}__wide)({', '.join(params) or 'void'})"
        cut = f"((u8){name}__wide(__VA_ARGS__) != 0)" if narrow == "bool" else ""
        return (
            f"{self._forward_new()}{declared} = (void *){address:#x};\n"
            f"#define {name}(...) {cut or f'(({narrow}){name}__wide(__VA_ARGS__))'}\n"
        )

    def _forward_new(self, but: str = "") -> str:
        """Forward declarations of the structs that are named for the first time."""
        names = sorted(self._named - self._complete - self._forwarded - {but})
        self._forwarded.update(names)
        return "".join(f"struct {name};\n" for name in names)
