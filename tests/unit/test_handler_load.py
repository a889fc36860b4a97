# SPDX-License-Identifier: Apache-2.0
"""What happens to an object before the kernel sees it: relocation and the comparison with BTF."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from tiny_btf import TinyBtf, kernel

from bpfoom.btf.types import Btf
from bpfoom.compiler.object import (
    EnumValue,
    HandlerObject,
    Kfunc,
    MemberAccess,
    Program,
    Provenance,
    Relocation,
)
from bpfoom.errors import LintError, MissingFeatureError, StaleObjectError
from bpfoom.handler import compare, load, verifier
from bpfoom.handler.relocate import relocate

PROTOTYPE = "int bpf_oom_kill_process(struct oom_control *oc, int n)"
OBJECT = HandlerObject(
    programs=(),
    maps=(),
    accesses=(MemberAccess("oom_control", "totalpages", 64, 64, "long"),),
    enums=(EnumValue("bpf_oom_verdict", "BPF_OOM_HANDLED", 1),),
    kfuncs=(Kfunc("bpf_oom_kill_process", PROTOTYPE),),
    parameters=(),
    provenance=Provenance("test", "", "", "", "", ""),
)

CALL = struct.pack("<BBhi", 0x85, 0, 0, 0x7F000001)
LDDW_R7 = struct.pack("<BBhi", 0x18, 7, 0, 2) + struct.pack("<BBhi", 0, 0, 0, 0x7F0A00F0)
EXIT = struct.pack("<BBhi", 0x95, 0, 0, 0)


def program(insns: bytes, *relocations: Relocation) -> Program:
    return Program("handler", "struct_ops", "handle_out_of_memory", True, insns, relocations)


def insn(raw: bytes, index: int) -> tuple[int, int, int, int, int]:
    """Opcode, destination, source, offset, immediate."""
    code, registers, offset, imm = struct.unpack_from("<BBhi", raw, index * 8)
    return code, registers & 15, registers >> 4, offset, imm


def test_relocates_kfunc_map_and_string() -> None:
    source = program(
        CALL + LDDW_R7 + LDDW_R7 + EXIT,
        Relocation(0, "kfunc", "bpf_oom_kill_process"),
        Relocation(1, "map", "history"),
        Relocation(3, "string", "strings", 24),
    )
    done = relocate(source, {"bpf_oom_kill_process": 4711}, {"history": 9, "strings": 10})
    assert insn(done, 0) == (0x85, 0, 2, 0, 4711)
    assert insn(done, 1) == (0x18, 7, 1, 0, 9)
    assert insn(done, 2) == (0, 0, 0, 0, 0)
    assert insn(done, 3) == (0x18, 7, 2, 0, 10)
    assert insn(done, 4) == (0, 0, 0, 0, 24)
    assert done[40:] == EXIT


@pytest.mark.parametrize(
    ("relocation", "says"),
    [
        (Relocation(1, "kfunc", "f"), "not a call"),
        (Relocation(0, "map", "m"), "not a lddw"),
        (Relocation(1, "map", "m"), "not a lddw"),
        (Relocation(99, "kfunc", "f"), "not a call"),
        (Relocation(-1, "kfunc", "f"), "not a call"),
        (Relocation(0, "table", "m"), "unknown relocation kind"),
    ],
)
def test_refuses_a_relocation_that_points_elsewhere(relocation: Relocation, says: str) -> None:
    with pytest.raises(LintError, match=says):
        relocate(program(CALL + EXIT, relocation), {"f": 1}, {"m": 1})


def test_an_object_is_true_of_the_kernel_it_was_compiled_for() -> None:
    with Btf(kernel()) as btf:
        compare.check(OBJECT, btf)


@pytest.mark.parametrize(
    ("running", "says"),
    [
        (kernel(member_at=32), "struct oom_control, member totalpages.* at bit 64.*at bit 32"),
        (kernel(verdict=2), "enum bpf_oom_verdict, value BPF_OOM_HANDLED: 1 in .*, 2 here"),
        (kernel(second_param="long"), r"kfunc bpf_oom_kill_process: .*int n\).*long n\) here"),
    ],
)
def test_the_first_difference_is_named_with_both_values(running: bytes, says: str) -> None:
    with Btf(running) as btf, pytest.raises(StaleObjectError, match=says) as raised:
        compare.check(OBJECT, btf)
    assert raised.value.data["compiled"] != raised.value.data["running"]


def test_what_is_absent_is_named() -> None:
    absent = replace(OBJECT, accesses=(MemberAccess("oom_control", "memcg", 0, 64, "int"),))
    no_value = replace(OBJECT, accesses=(), enums=(EnumValue("bpf_oom_verdict", "NEW", 3),))
    with Btf(kernel()) as btf:
        with pytest.raises(StaleObjectError, match="member memcg.*absent here"):
            compare.check(absent, btf)
        with pytest.raises(StaleObjectError, match="value NEW.*absent here"):
            compare.check(no_value, btf)


def test_a_missing_kfunc_is_a_missing_feature() -> None:
    empty = TinyBtf()
    empty.int("int", 4)
    only_kfunc = replace(OBJECT, accesses=(), enums=())
    with Btf(empty.blob()) as btf, pytest.raises(MissingFeatureError, match="bpf_oom_kill_process"):
        compare.check(only_kfunc, btf)


def test_the_ops_layout_comes_from_btf() -> None:
    btf = TinyBtf()
    pointer = btf.pointer(btf.int("int", 4))
    char = btf.int("char", 1)
    ops = btf.struct("bpf_oom_ops", 24, ("name", char, 0), ("handle_out_of_memory", pointer, 64))
    btf.struct("bpf_struct_ops_bpf_oom_ops", 192, ("data", ops, 512))
    with Btf(btf.blob()) as kernel_btf:
        layout = load.OpsLayout.read(kernel_btf)
    assert (layout.value_size, layout.callback, layout.callback_index) == (192, 64 + 8, 1)
    assert (layout.name, layout.name_size) == (64, 1)


def test_a_kernel_without_the_ops_offers_the_guest() -> None:
    with Btf(kernel()) as btf, pytest.raises(MissingFeatureError, match="bpf_oom_ops") as raised:
        load.OpsLayout.read(btf)
    assert "bpfoom vm shell" in raised.value.hint


@pytest.mark.parametrize(
    ("log", "says"),
    [
        ("0: (95) exit\nR0 !read_ok\nprocessed 1 insns (limit 1000000)\n", "R0 !read_ok"),
        (
            "\nVerification failed: Call type safety: Invalid call argument\n\nReason:\n  x\n",
            "Call type safety: Invalid call argument",
        ),
        ("", "without a word"),
    ],
)
def test_the_verifiers_reason_is_found(log: str, says: str) -> None:
    assert verifier.explanation(log) == says
