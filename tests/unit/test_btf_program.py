# SPDX-License-Identifier: Apache-2.0
"""A program's own BTF, read back: its function, and the places that its line records refer to."""

from __future__ import annotations

from bpfoom.btf import program
from bpfoom.btf.program import Function
from bpfoom.btf.types import Btf, Kind

LINES = [
    (0, "bpf/include/base.bpf.c.j2", 177, "return 1;"),
    (2, "/home/you/mine.bpf.c.j2", 9, "a(\"\u00e9\", '\\\\');"),
    (5, "/home/you/mine.bpf.c.j2", 4000, "return 1;"),
]


def test_the_function_is_described() -> None:
    made = program.describe([Function("handle_out_of_memory", 0, LINES)])
    with Btf(made.btf) as btf:
        prototype = btf.prototype("handle_out_of_memory")
        ((at, type_id),) = program.FUNC_INFO.iter_unpack(made.func_info)
        assert (at, btf.type(type_id).kind) == (0, Kind.FUNC)
    assert prototype == "int handle_out_of_memory(unsigned long long *ctx)"


def test_lines_read_back_as_they_were_given() -> None:
    made = program.describe([Function("f", 0, LINES)])
    with Btf(made.btf) as btf:
        read = [
            (insn, btf.string(file), place >> 10, btf.string(text))
            for insn, file, text, place in program.LINE_INFO.iter_unpack(made.line_info)
        ]
    assert read == LINES


def test_each_string_is_there_once() -> None:
    made = program.describe([Function("f", 0, LINES)])
    assert made.btf.count(b"mine.bpf.c.j2") == made.btf.count(b"return 1;") == 1


def test_the_least_btf_is_an_int() -> None:
    with Btf(program.tiny()) as btf:
        assert btf.count() == 2 and btf.type(1).name == "int" and btf.size_of(1) == 4
