# SPDX-License-Identifier: Apache-2.0
"""Kernel types by name, against the reduced BTF of our kernel in tests/data."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpfoom.btf.reduce import reduce
from bpfoom.btf.types import Btf, Kind
from bpfoom.errors import BpfoomError, MissingFeatureError

KERNEL = Path(__file__).parents[1] / "data" / "kernel.btf"


@pytest.fixture(scope="module")
def btf():
    with Btf.from_file(KERNEL) as opened:
        yield opened


@pytest.mark.parametrize(
    ("struct", "member", "size", "type"),
    [
        ("task_struct", "flags", 32, "unsigned int"),
        ("task_struct", "comm", 128, "char[16]"),
        ("task_struct", "signal", 64, "struct signal_struct *"),
        ("signal_struct", "oom_score_adj", 16, "short int"),
        # Both are inside an anonymous struct of mm_struct, one has a typedef in the way.
        ("mm_struct", "pgtables_bytes.counter", 64, "s64"),
        ("cgroup_subsys_state", "online_cnt.counter", 32, "int"),
        ("oom_control", "gfp_mask", 32, "const gfp_t"),
        ("bpf_oom_ops", "name", 512, "char[64]"),
    ],
)
def test_place_of_a_member(btf, struct, member, size, type):
    place = btf.place(struct, member)
    assert (place.size, place.type, place.bitfield) == (size, type, False)
    assert place.offset + place.size <= btf.size_of(btf.struct_id(struct)) * 8


def test_offsets_of_neighbours_differ_by_their_sizes(btf):
    memcg, mask = btf.place("oom_control", "memcg"), btf.place("oom_control", "gfp_mask")
    assert mask.offset - memcg.offset == memcg.size


@pytest.mark.parametrize(
    ("name", "prototype"),
    [
        ("bpf_task_acquire", "struct task_struct *bpf_task_acquire(struct task_struct *p)"),
        ("bpf_cgroup_from_id", "struct cgroup *bpf_cgroup_from_id(u64 cgid)"),
        (
            "bpf_oom_kill_process",
            "int bpf_oom_kill_process(struct oom_control *oc, struct task_struct *task, "
            "const char *message__str)",
        ),
        ("bpf_rcu_read_lock", "void bpf_rcu_read_lock(void)"),
    ],
)
def test_prototype(btf, name, prototype):
    assert btf.prototype(name) == prototype


def test_enum_value(btf):
    assert btf.enum_value("bpf_oom_verdict", "BPF_OOM_HANDLED") == 1


@pytest.mark.parametrize(
    ("question", "named"),
    [
        (lambda btf: btf.place("nosuch", "x"), "nosuch"),
        (lambda btf: btf.place("task_struct", "nosuch"), "nosuch"),
        (lambda btf: btf.place("task_struct", "flags.nosuch"), "flags.nosuch"),
        (lambda btf: btf.enum_value("nosuch", "X"), "nosuch"),
        (lambda btf: btf.enum_value("bpf_oom_verdict", "NOSUCH"), "NOSUCH"),
        (lambda btf: btf.prototype("bpf_nosuch"), "bpf_nosuch"),
    ],
)
def test_what_is_missing_is_named(btf, question, named):
    with pytest.raises(MissingFeatureError, match=named) as caught:
        question(btf)
    assert caught.value.hint


def test_presence_without_errors(btf):
    assert btf.has_function("bpf_task_acquire") and not btf.has_function("bpf_nosuch")
    assert btf.has_member("oom_control", "memcg") and not btf.has_member("oom_control", "nosuch")
    assert btf.find("task_struct", Kind.ENUM) is None


def test_garbage_is_refused():
    with pytest.raises(BpfoomError, match="not type information"):
        Btf(b"\x7fELF" + bytes(100))


def test_a_kernel_without_btf(tmp_path):
    with pytest.raises(MissingFeatureError, match="cannot read type information"):
        Btf.from_file(tmp_path / "vmlinux")


def test_reducing_again_changes_nothing(btf):
    with Btf(reduce(btf), "again") as again:
        for struct, member in [("task_struct", "comm"), ("mem_cgroup", "oom_group")]:
            one, two = btf.place(struct, member), again.place(struct, member)
            assert (one.offset, one.size, one.type) == (two.offset, two.size, two.type)
        assert again.prototype("bpf_oom_kill_cgroup") == btf.prototype("bpf_oom_kill_cgroup")


def test_the_reduced_btf_is_small():
    assert KERNEL.stat().st_size < 200 << 10


def test_a_wrong_members_hint_names_the_file_that_was_read(btf):
    with pytest.raises(MissingFeatureError) as caught:
        btf.place("task_struct", "comn")
    assert f"bpftool btf dump file {KERNEL} format c" in caught.value.hint
    assert "did you mean: comm" in caught.value.hint
