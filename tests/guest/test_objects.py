# SPDX-License-Identifier: Apache-2.0
"""Objects compiled elsewhere: attached without a compiler on the kernel that they are for, refused
with the first difference on another."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bpfoom.btf.types import RUNNING, Btf
from bpfoom.compiler import child
from bpfoom.compiler.object import read_file
from bpfoom.errors import StaleObjectError
from bpfoom.handler import compare
from tests import objects
from tests.btf_edit import EditedBtf
from tests.guest.byhand import Trees, cli, cli_json, oom_once

PLAIN = pytest.mark.flavours("plain")
DEBUG = pytest.mark.flavours("debug")

_ASK = child.ask


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rendering and compiling fail: what is attached here has to do without."""

    def never(mode: child.Mode, *_: object) -> None:
        raise AssertionError(f"a {mode.name} child")

    monkeypatch.setattr(child, "ask", never)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """What the host compiled for the plain kernel, by another bcc than this guest's: a copy, as
    the file may be some user's."""
    return Path(shutil.copyfile(objects.path(), tmp_path / "elsewhere.o"))


@pytest.fixture
def compiled_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], Path]:
    """Compile for the kernel with that BTF."""

    def make(raw: bytes) -> Path:
        types, made = tmp_path / "other.btf", tmp_path / "made.o"
        types.write_bytes(raw)
        with monkeypatch.context() as patch:
            patch.setattr(child, "ask", _ASK)
            code, _, err = cli("compile", "largest-task", "-o", str(made), "--btf", str(types))
        assert code == 0, err
        return made

    return make


def attach(trees: Trees, file: Path) -> tuple[int, str, str]:
    return cli("attach", "--cgroup", trees.box.name, "--object", str(file))


def must_be_refused(trees: Trees, file: Path, *said: str) -> None:
    code, out, err = attach(trees, file)
    assert (code, out) == (1, "")
    first = err.partition("\n")[0]
    assert first.startswith("bpfoom: compiled for another kernel: "), err
    for words in said:
        assert words in first
    assert cli_json("list") == []


@PLAIN
def test_an_object_from_elsewhere_decides_an_oom(trees: Trees, elsewhere: Path) -> None:
    code, _, err = attach(trees, elsewhere)
    assert code == 0, err
    eater = oom_once(trees.box)
    shown = cli_json("show", "--cgroup", trees.box.name)
    made = read_file(elsewhere).provenance
    assert shown["provenance"]["policy_hash"] == made.policy_hash
    assert shown["provenance"]["bcc_version"] == made.bcc_version
    assert shown["last_decision"]["victim_pid"] == eater.pid
    assert made.policy_hash.startswith(shown["last_decision"]["policy_hash"])


@PLAIN
@pytest.mark.parametrize(("owner", "mode"), [(65534, 0o644), (0, 0o666)])
def test_root_attaches_no_object_that_somebody_else_can_write(
    trees: Trees, elsewhere: Path, owner: int, mode: int
) -> None:
    os.chown(elsewhere, owner, owner)
    elsewhere.chmod(mode)
    code, out, err = attach(trees, elsewhere)
    assert (code, out) == (1, "") and "can be written by others than root" in err
    assert cli_json("list") == []


@PLAIN
def test_a_kernel_with_a_member_elsewhere(
    trees: Trees, compiled_for: Callable[[bytes], Path]
) -> None:
    other = EditedBtf(RUNNING.read_bytes())
    with Btf.from_file() as btf:
        here = btf.place("task_struct", "tgid").offset
        there = btf.size_of(btf.struct_id("task_struct")) * 8 - 64
    other.move_member("task_struct", "tgid", there)
    places = f"at bit {there}, 32 bits, pid_t in the object, at bit {here}, 32 bits, pid_t here"
    made = compiled_for(bytes(other.raw))
    must_be_refused(trees, made, f"struct task_struct, member tgid: {places}")


@PLAIN
def test_a_kernel_with_another_enum_value(
    trees: Trees, compiled_for: Callable[[bytes], Path]
) -> None:
    other = EditedBtf(RUNNING.read_bytes())
    name = "BPF_CGROUP_ITER_DESCENDANTS_PRE"
    with Btf.from_file() as btf:
        here = btf.enum_value("bpf_cgroup_iter_order", name)
    other.set_enum_value("bpf_cgroup_iter_order", name, 77)
    made = compiled_for(bytes(other.raw))
    said = f"enum bpf_cgroup_iter_order, value {name}: 77 in the object, {here} here"
    must_be_refused(trees, made, said)


@PLAIN
def test_a_kernel_with_another_kfunc(trees: Trees, compiled_for: Callable[[bytes], Path]) -> None:
    other = EditedBtf(RUNNING.read_bytes())
    other.set_parameter_type("bpf_iter_css_new", 2, "long unsigned int")
    made = compiled_for(bytes(other.raw))
    refused = "long unsigned int flags) in the object"
    must_be_refused(trees, made, "kfunc bpf_iter_css_new: ", refused)


@PLAIN
def test_an_object_for_this_kernel_by_its_own_btf(
    trees: Trees, compiled_for: Callable[[bytes], Path]
) -> None:
    """So it was the edit that the others were refused for."""
    code, _, err = attach(trees, compiled_for(RUNNING.read_bytes()))
    assert code == 0, err


@DEBUG
def test_the_debug_kernel_is_another_kernel(trees: Trees, elsewhere: Path, btf: Btf) -> None:
    """Its structs hold what lock debugging needs: offsets of the plain kernel's are wrong."""
    with pytest.raises(StaleObjectError) as first:
        compare.check(read_file(elsewhere), btf)
    assert first.value.data["struct"] and first.value.data["member"]
    must_be_refused(trees, elsewhere, first.value.message)
