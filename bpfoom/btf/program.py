# SPDX-License-Identifier: Apache-2.0
"""What a program's own BTF says: its function, and which source line each instruction is from.

The kernel keeps it with the program, for the verifier's log and for bpftool.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
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


def describe(function: str, lines: Iterable[tuple[int, str, int, str]]) -> ProgramInfo:
    """Information on a program of one function, ``int function(u64 *ctx)``.

    ``lines`` are instruction, file, line number and text; ascending, the first of instruction 0.
    """
    made = Writer()
    word = made.integer("unsigned long long", 8)
    context = made.add(Kind.PTR, value=word)
    result = made.integer("int", 4, signed=True)
    parameter = struct.pack("<II", made.string("ctx"), context)
    proto = made.add(Kind.FUNC_PROTO, vlen=1, value=result, tail=parameter)
    func = made.add(Kind.FUNC, function, vlen=_STATIC, value=proto)
    line_info = b"".join(
        LINE_INFO.pack(insn, made.string(file), made.string(text), line << _COLUMN_BITS)
        for insn, file, line, text in lines
    )
    return ProgramInfo(made.to_bytes(), FUNC_INFO.pack(0, func), line_info)


def tiny() -> bytes:
    """BTF with nothing but ``int`` in it: the kernel wants some beside a map's value type."""
    made = Writer()
    made.integer("int", 4, signed=True)
    return made.to_bytes()
