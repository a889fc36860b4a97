# SPDX-License-Identifier: Apache-2.0
"""What a program's own BTF says: its functions, and which source line each instruction is from.

The kernel keeps it with the program, for the verifier's log and for bpftool.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bpfoom.btf.types import Kind
from bpfoom.btf.write import Writer

# struct bpf_func_info and struct bpf_line_info of uapi/linux/bpf.h.
FUNC_INFO = struct.Struct("<II")
LINE_INFO = struct.Struct("<IIII")
_STATIC = 0
_COLUMN_BITS = 10


@dataclass(frozen=True)
class ProgramInfo:
    """BTF, and the records that refer to it, as bpf(2) takes them."""

    btf: bytes
    func_info: bytes
    line_info: bytes


@dataclass(frozen=True)
class Function:
    """``int name(u64 *ctx)``, ``start`` instructions into its program.

    ``lines`` are instruction, file, line number and text; ascending, the first of instruction 0,
    all counted from the function's own.
    """

    name: str
    start: int
    lines: Sequence[tuple[int, str, int, str]]


def describe(functions: Iterable[Function]) -> ProgramInfo:
    """Information on a program of these functions; the first is where it begins.

    The kernel wants a line for each of them, or none at all.
    """
    made = Writer()
    word = made.integer("unsigned long long", 8)
    context = made.add(Kind.PTR, value=word)
    result = made.integer("int", 4, signed=True)
    parameter = struct.pack("<II", made.string("ctx"), context)
    proto = made.add(Kind.FUNC_PROTO, vlen=1, value=result, tail=parameter)
    func_info = line_info = b""
    for function in functions:
        func = made.add(Kind.FUNC, function.name, vlen=_STATIC, value=proto)
        func_info += FUNC_INFO.pack(function.start, func)
        for insn, file, line, text in function.lines:
            place = made.string(file), made.string(text), line << _COLUMN_BITS
            line_info += LINE_INFO.pack(function.start + insn, *place)
    return ProgramInfo(made.to_bytes(), func_info, line_info)


@dataclass(frozen=True)
class MapInfo:
    """BTF, and the types in it of a map's keys and values."""

    btf: bytes
    key: int
    value: int


def work_queue() -> MapInfo:
    """What an array is whose elements are a ``struct bpf_wq``: the kernel looks for its name."""
    made = Writer()
    number = made.integer("int", 4, signed=True)
    word = made.integer("unsigned long long", 8)
    pair = made.add(Kind.ARRAY, tail=struct.pack("<III", word, number, 2))
    opaque = struct.pack("<III", made.string("__opaque"), pair, 0)
    queue = made.add(Kind.STRUCT, "bpf_wq", vlen=1, value=16, tail=opaque)
    member = struct.pack("<III", made.string("work"), queue, 0)
    value = made.add(Kind.STRUCT, "bpfoom_work", vlen=1, value=16, tail=member)
    return MapInfo(made.to_bytes(), number, value)


def tiny() -> bytes:
    """BTF with nothing but ``int`` in it: the kernel wants some beside a map's value type."""
    made = Writer()
    made.integer("int", 4, signed=True)
    return made.to_bytes()
