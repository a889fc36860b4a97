# SPDX-License-Identifier: Apache-2.0
"""What a dry run leaves, decoded: candidates, their order, and the program that asks."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from bpfoom.btf.types import Btf
from bpfoom.compiler import decode
from bpfoom.handler import ask
from bpfoom.observe.explain import Candidate
from bpfoom.policy import record

KERNEL = Path(__file__).parents[1] / "data" / "kernel.btf"
OMIT = 4


def rank(preference: int, tier: int) -> int:
    """As rank_of() of bpf/include/base.bpf.c.j2."""
    return (OMIT - preference) << 32 | (tier & 0xFFFFFFFF) ^ 0x80000000


def candidate(**fields: object) -> Candidate:
    usual = {"cgroup_id": 7, "rank": rank(1, 0), "score": 1, "tie": 0, "usage": 1, "pid": 1}
    return Candidate({**usual, "reason": 0, "comm": "", "handler_cgroup_id": 1, **fields})


def test_a_candidate_lies_in_64_aligned_bytes():
    places = record.offsets(record.CANDIDATE_FIELDS)
    assert record.CANDIDATE_SIZE == 72
    assert (places["handler_cgroup_id"], places["pid"], places["comm"]) == (0, 48, 56)


def test_a_candidate_is_decoded():
    raw = struct.pack("<6QII16s", 1, 2, 3, 4, 5, 6, 7, 5, b"name\0rest")
    assert record.decode_candidate(raw) == {
        "handler_cgroup_id": 1,
        "cgroup_id": 2,
        "rank": 3,
        "score": 4,
        "tie": 5,
        "usage": 6,
        "pid": 7,
        "reason": 5,
        "comm": "name",
    }


@pytest.mark.parametrize("tier", [-(1 << 31), -1, 0, 1, (1 << 31) - 1])
@pytest.mark.parametrize(("number", "name"), [(1, "normal"), (2, "avoid"), (3, "protect")])
def test_rank_is_taken_apart(tier, number, name):
    found = candidate(rank=rank(number, tier))
    assert (found.preference, found.tier) == (name, tier)


def test_one_that_was_skipped_has_no_rank():
    found = candidate(rank=0, reason=2).as_dict()
    assert (found["reason"], found["preference"], found["tier"]) == ("unkillable", None, None)


def test_order_is_that_of_the_kernel_side():
    first_to_last = [
        candidate(rank=rank(1, 5), score=1),
        candidate(rank=rank(1, 0), score=9),
        candidate(rank=rank(1, 0), score=8, tie=2),
        candidate(rank=rank(1, 0), score=8, tie=1, cgroup_id=3),
        candidate(rank=rank(1, 0), score=8, tie=1, cgroup_id=4, pid=5),
        candidate(rank=rank(1, 0), score=8, tie=1, cgroup_id=4, pid=6),
        candidate(rank=rank(1, -1), score=99),
        candidate(rank=rank(2, 7), score=99),
        candidate(rank=rank(3, 7), score=99),
        candidate(rank=0, reason=1),
        candidate(rank=0, reason=2, usage=5),
        candidate(rank=0, reason=2, usage=4),
    ]
    assert sorted(reversed(first_to_last), key=lambda c: c.order) == first_to_last


def test_every_jump_of_the_asking_program_goes_where_it_should():
    with Btf.from_file(KERNEL) as btf:
        program, kfuncs = ask._program(btf, 112)
    insns = decode.instructions(program.insns)
    targets = {insn.index: insn.target for insn in insns if insn.is_jump}
    exits = [insn.index for insn in insns if insn.code == decode.EXIT]
    ask_at = program.relocations[kfuncs.index("bpf_oom_dry_run")].insn
    absent = exits[0] + 1
    assert sorted(targets.values()) == sorted([ask_at - 5, absent, absent, exits[0] - 1])
    assert insns[absent].imm == -2
    assert [r.target for r in program.relocations] == list(kfuncs)
