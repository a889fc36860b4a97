# SPDX-License-Identifier: Apache-2.0
"""What the verifier's words mean. The logs are cut from real ones, of this kernel and older."""

from __future__ import annotations

import json

import pytest

from bpfoom.cli import main
from bpfoom.compiler.object import Line, Program
from bpfoom.errors import SyscallError, VerifierError
from bpfoom.handler import verifier
from bpfoom.handler.verifier import Statistics

LINES = (Line(0, "base.j2", 177, "a"), Line(2, "mine.j2", 9, "b"), Line(4, "base.j2", 181, "c"))
REFUSED = """0: R1=ctx() R10=fp0
; a @ base.j2:177
0: (79) r9 = *(u64 *)(r1 +8)
func 'f' arg1 has btf_id 41701 type STRUCT 'cgroup'
1: R1=ctx() R9=trusted_ptr_cgroup()
1: (55) if r7 != 0x0 goto pc+1 3: R7=trusted_ptr_mem_cgroup(id=5)
; b @ mine.j2:9
3: (79) r1 = *(u64 *)(r1 +0)
R1 invalid mem access 'scalar'
processed 3 insns (limit 1000000) max_states_per_insn 0 total_states 1 peak_states 2 mark_read 0
"""


@pytest.mark.parametrize(
    ("log", "line"),
    [
        (REFUSED, LINES[1]),
        ("unreachable insn 4\nprocessed 0 insns\n", LINES[2]),
        ("back-edge from insn 3 to 1\n", LINES[1]),
        ("0: (95) exit\nR0 !read_ok\n", LINES[0]),
        ("number of funcs in func_info doesn't match number of subprogs\n", None),
        ("", None),
    ],
)
def test_the_place_of_a_refusal(log: str, line: Line | None) -> None:
    assert verifier.place(log, LINES) == line
    assert verifier.place(log, ()) is None


def test_the_error_names_the_template() -> None:
    error = verifier.refused(
        Program("f", "struct_ops", "f", True, bytes(40), (), LINES),
        SyscallError("BPF_PROG_LOAD: Permission denied", detail=REFUSED, errno=13),
    )
    assert error.message == (
        "mine.j2:9: the kernel's verifier refused f: R1 invalid mem access 'scalar'"
    )
    assert error.data == {"object": "f", "errno": 13, "path": "mine.j2", "line": 9}
    assert error.detail == REFUSED


ENDLESS = """359: (07) r1 += 1
360: (05) goto pc-2
infinite loop detected at insn 360
cur state: R0=0 R10=fp0
old state: R0=0 R10=fp0
processed 400 insns (limit 1000000) max_states_per_insn 0 total_states 1 peak_states 2 mark_read 0
"""
BOUND = "a loop needs a bound that the verifier can see: for (i = 0; i < 64; i++)"
GIVEN_UP = """BPF program is too large. Processed 1000001 insn
processed 1000001 insns (limit 1000000) max_states_per_insn 4 total_states 9 peak_states 9
"""


BACK = b"\x05\0\xfe\xff\0\0\0\0"  # goto pc-2
PLAIN = b"\xb7\0\0\0\0\0\0\0"


def endless(log: str, insns: bytes, *lines: Line) -> VerifierError:
    return verifier.refused(
        Program("f", "struct_ops", "f", True, insns, (), (*LINES, *lines)),
        SyscallError("BPF_PROG_LOAD: Invalid argument", detail=log, errno=22),
    )


def test_a_loop_without_an_end_is_told_as_one() -> None:
    error = endless(ENDLESS, PLAIN * 5)
    assert error.message.endswith("refused f: infinite loop detected at insn 360")
    assert "a bound" in error.hint


def test_what_is_given_up_names_the_policys_loops() -> None:
    """The verifier names no place then; a base's own loops are no cause, and not all that jumps
    back is a loop."""
    ours, base = Line(6, "mine.j2", 12, "for (;;)"), Line(7, "bpf/include/base.bpf.c.j2", 9, "do")
    one = endless(GIVEN_UP, PLAIN * 6 + BACK * 2, ours, base)
    assert one.message.startswith("mine.j2:12: ") and (one.data["line"], one.hint) == (12, BOUND)
    assert one.message.endswith("BPF program is too large. Processed 1000001 insn")
    other = Line(5, "mine.j2", 11, "\t} while (i < n);")
    two = endless(GIVEN_UP, PLAIN * 3 + BACK * 5, other, ours, base)
    assert two.message.startswith("the kernel's") and "line" not in two.data
    assert two.hint == f"{BOUND}; there are loops at mine.j2:11, mine.j2:12"
    none = endless(GIVEN_UP, PLAIN * 7 + BACK, ours, base)
    assert "in maps" in none.hint and "line" not in none.data


def test_people_see_the_log_from_the_refused_instruction_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    way = "".join(f"{n}: (07) r1 += 1\n" for n in range(999))
    error = verifier.refused(
        Program("f", "struct_ops", "f", True, bytes(40), (), LINES),
        SyscallError("BPF_PROG_LOAD: Permission denied", detail=way + REFUSED, errno=13),
    )
    main.report(error, as_json=False)
    first, *log, last = capsys.readouterr().err.splitlines()
    assert first.startswith("bpfoom: mine.j2:9: ") and last == f"hint: {error.hint}"
    left, *seen = log
    assert seen == REFUSED.splitlines()[-3:] and seen[1] == "R1 invalid mem access 'scalar'"
    assert f"{999 + len(REFUSED.splitlines()) - 3} lines before" in left
    main.report(error, as_json=True)
    assert json.loads(capsys.readouterr().err)["detail"] == way + REFUSED


def test_a_log_without_an_instruction_is_shown_whole() -> None:
    assert verifier.ending("unreachable insn 4\nprocessed 0 insns\n").startswith("unreachable")


def test_without_lines_it_names_none() -> None:
    error = verifier.refused(
        Program("f", "struct_ops", "f", True, bytes(40), ()),
        SyscallError("BPF_PROG_LOAD: Permission denied", detail=REFUSED, errno=13),
    )
    assert error.message.startswith("the kernel's verifier refused f: ")
    assert "path" not in error.data


@pytest.mark.parametrize(
    ("log", "found"),
    [
        (
            "verification time 281120 usec\nstack depth max 128\n"
            "subprog 0 (f) main insns_self 7974 insns_total 7974 stack 128\n"
            "processed 7974 insns (limit 1000000) max_states_per_insn 18 total_states 407 "
            "peak_states 1247 mark_read 0\n",
            Statistics(7974, 407, 1247, 128),
        ),
        (
            "verification time 50 usec\nstack depth 24+0\n"
            "processed 9 insns (limit 1000000) max_states_per_insn 0 total_states 1 "
            "peak_states 1 mark_read 1\n",
            Statistics(9, 1, 1, 24),
        ),
        ("", Statistics(None, None, None, None)),
    ],
)
def test_statistics(log: str, found: Statistics) -> None:
    assert verifier.statistics(log) == found
