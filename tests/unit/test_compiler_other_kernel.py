# SPDX-License-Identifier: Apache-2.0
"""A policy compiled for a kernel that differs in one thing, held against one that does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bpfoom.btf.types import Btf
from bpfoom.compiler.build import compile_policy
from bpfoom.errors import StaleObjectError
from bpfoom.handler import compare
from tests.btf_edit import EditedBtf

KERNEL = Path(__file__).parents[1] / "data" / "kernel.btf"
ORDER = "bpf_cgroup_iter_order"
PRE = "BPF_CGROUP_ITER_DESCENDANTS_PRE"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (
            lambda btf: btf.move_member("task_struct", "tgid", 8192),
            "struct task_struct, member tgid: at bit 8192, 32 bits, pid_t in the object",
        ),
        (
            lambda btf: btf.set_enum_value(ORDER, PRE, 77),
            f"enum {ORDER}, value {PRE}: 77 in the object, ",
        ),
        (
            lambda btf: btf.set_parameter_type("bpf_iter_css_new", 2, "u64"),
            "kfunc bpf_iter_css_new: int bpf_iter_css_new(struct bpf_iter_css *it, "
            "struct cgroup_subsys_state *start, u64 flags) in the object, ",
        ),
    ],
    ids=["member", "enum value", "kfunc"],
)
def test_the_first_difference_is_named(
    edit: Callable[[EditedBtf], None], said: str, tmp_path: Path
) -> None:
    other = EditedBtf(KERNEL.read_bytes())
    edit(other)
    (tmp_path / "other.btf").write_bytes(other.raw)
    made = compile_policy("largest-task", {}, btf=tmp_path / "other.btf")
    with Btf.from_file(KERNEL) as btf, pytest.raises(StaleObjectError) as caught:
        compare.check(made, btf)
    assert caught.value.message.startswith(f"compiled for another kernel: {said}")
    with Btf.from_file(tmp_path / "other.btf") as btf:
        compare.check(made, btf)


def test_what_a_policy_does_not_use_may_differ(tmp_path: Path) -> None:
    other = EditedBtf(KERNEL.read_bytes())
    other.move_member("task_struct", "exit_state", 8192)
    (tmp_path / "other.btf").write_bytes(other.raw)
    made = compile_policy("largest-task", {}, btf=tmp_path / "other.btf")
    with Btf.from_file(KERNEL) as btf:
        assert btf.place("task_struct", "exit_state").offset != 8192
        compare.check(made, btf)
