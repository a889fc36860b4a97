# SPDX-License-Identifier: Apache-2.0
"""What doctor finds on machines that lack one thing."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from bpfoom.btf.types import Btf
from bpfoom.cli import main
from bpfoom.guest import accel
from bpfoom.handler import features, pins
from bpfoom.handler.features import MISSING, OK, WARN, Finding
from bpfoom.handler.pins import Pins
from bpfoom.handler.shape import shape
from bpfoom.policy import needs
from bpfoom.policy.find import find_policies
from bpfoom.policy.needs import ENUM, KFUNC, STRUCT, Need
from tests.btf_edit import EditedBtf

KERNEL = (Path(__file__).parents[1] / "data" / "kernel.btf").read_bytes()


def shape_of(raw: bytes) -> dict[str, Finding]:
    with Btf(raw) as btf:
        return {finding.name: finding for finding in shape(btf)}


# Types


def test_the_needs_are_those_of_the_templates() -> None:
    asked = needs.shipped()
    assert set(asked.all) <= {policy.name for policy in find_policies()}
    assert asked.everybody(Need(STRUCT, "task_struct", "signal"))
    assert asked.everybody(Need(KFUNC, "bpf_iter_css_new"))
    assert asked.of[Need(STRUCT, "mem_cgroup", "swap.usage.counter")] == ("swap",)
    assert "pgscan" in asked.of[Need(ENUM, "node_stat_item", "PGSCAN_DIRECT")]
    # Only grace cannot do without it; the others ask first whether it is there.
    assert asked.of[Need(KFUNC, "bpf_oom_promise")] == ("grace",)
    assert Need(KFUNC, "bpf_oom_victims") not in asked.of


def test_our_kernel_has_the_shape_with_sizes() -> None:
    found = shape_of(KERNEL)
    assert {finding.status for finding in found.values()} == {OK}
    assert "comm 16" in found["struct task_struct"].seen
    assert found["struct signal_struct"].seen.startswith("bytes: flags 4, oom_score_adj 2")
    assert found["other kfuncs"].seen.startswith("all ")


def test_a_member_that_all_need_blocks() -> None:
    found = shape_of(KERNEL.replace(b"\0oom_score_adj\0", b"\0oom_score_abc\0"))[
        "struct signal_struct"
    ]
    assert (found.status, found.seen, found.blocks) == (MISSING, "no oom_score_adj", True)
    assert "bpfoom vm shell" in found.advice


def test_a_member_that_one_policy_needs_does_not_block() -> None:
    found = shape_of(KERNEL.replace(b"\0totalpages\0", b"\0totalpigs_\0"))["struct oom_control"]
    assert (found.status, found.seen, found.blocks) == (WARN, "no totalpages", False)
    assert "do without qos" in found.advice


def test_an_enum_value_and_a_kfunc_that_are_missing() -> None:
    found = shape_of(
        KERNEL.replace(b"\0PGSCAN_DIRECT\0", b"\0PGSCAN_DIRACT\0").replace(
            b"\0bpf_iter_css_new\0", b"\0bpf_iter_css_now\0"
        )
    )
    assert found["enum node_stat_item"].seen == "no PGSCAN_DIRECT"
    assert "do without pgscan" in found["enum node_stat_item"].advice
    assert (found["other kfuncs"].seen, found["other kfuncs"].blocks) == (
        "no bpf_iter_css_new",
        True,
    )


def test_members_that_overlap_are_told() -> None:
    edited = EditedBtf(KERNEL)
    with Btf(KERNEL) as btf:
        at = btf.place("task_struct", "pid").offset
    edited.move_member("task_struct", "tgid", at)
    found = shape_of(bytes(edited.raw))["struct task_struct"]
    assert found.blocks and "overlaps" in found.seen


# The machine


def config(text: str, tmp_path: Path, *, packed: bool) -> dict[str, Finding]:
    path = tmp_path / ("config.gz" if packed else "config")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    found = features.config((tmp_path / "nowhere", path))
    return {finding.name: finding for finding in found}


@pytest.mark.parametrize("packed", [True, False])
def test_config(packed: bool, tmp_path: Path) -> None:
    every = "".join(f"CONFIG_{name}=y\n" for name in (*features.CONFIG, *features.OPTIONS))
    assert {f.status for f in config(every, tmp_path, packed=packed).values()} == {OK}
    some = every.replace("CONFIG_MEMCG=y", "# CONFIG_MEMCG is not set").replace("CONFIG_PSI=y", "")
    found = config(some, tmp_path, packed=packed)
    assert found["kernel config"].blocks and found["kernel config"].seen == "not set: CONFIG_MEMCG"
    assert (found["CONFIG_PSI"].status, found["CONFIG_PSI"].blocks) == (WARN, False)


def test_a_kernel_that_does_not_show_its_config(tmp_path: Path) -> None:
    (found,) = features.config((tmp_path / "nowhere",))
    assert (found.status, found.blocks) == (WARN, False)


@pytest.mark.parametrize(("value", "blocks"), [("0\n", True), ("1\n", False), (None, False)])
def test_jit(value: str | None, blocks: bool, tmp_path: Path) -> None:
    path = tmp_path / "bpf_jit_enable"
    if value is not None:
        path.write_text(value)
    assert features.jit(path).blocks is blocks


@pytest.mark.parametrize(
    ("value", "says"), [("1", "kills"), ("64", "kills"), ("438", "nothing"), ("0", "nothing")]
)
def test_sysrq(value: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "sysrq"
    path.write_text(value)
    assert says in features.sysrq(path).seen


def test_sysctls_that_override(tmp_path: Path) -> None:
    (tmp_path / "panic_on_oom").write_text("2\n")
    found = {finding.name: finding for finding in features.sysctls(tmp_path)}
    assert (found["vm.panic_on_oom"].status, found["vm.panic_on_oom"].advice) == (
        WARN,
        "sysctl vm.panic_on_oom=0",
    )
    assert found["vm.oom_kill_allocating_task"].status == WARN


@pytest.mark.parametrize(("mode", "status"), [(0o700, OK), (0o755, MISSING), (0o711, MISSING)])
def test_pins_that_others_can_enter(
    mode: int, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "bpfoom"
    monkeypatch.setattr(pins, "find", lambda: Pins(base))
    assert features.pinned().seen == "none yet"
    base.mkdir()
    base.chmod(mode)
    expected = status if os.geteuid() == 0 else MISSING
    assert features.pinned().status == expected


def test_no_finding_leaves_it_at_that(capsys: pytest.CaptureFixture[str]) -> None:
    """Each that is not ok says what to do; the last line names those that block."""
    with pytest.raises(SystemExit) as ended:
        main.main(["doctor", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert not [f for f in document["findings"] if f["status"] != OK and not f["advice"]]
    assert document["ok"] is (not ended.value.code)
    with pytest.raises(SystemExit):
        main.main(["doctor"])
    last = capsys.readouterr().out.splitlines()[-1]
    blocking = [f["name"] for f in document["findings"] if f["required"] and f["status"] == MISSING]
    assert all(name in last for name in blocking)
    assert last.startswith("attach cannot work here: " if blocking else "attach can work here")


# KVM


@pytest.mark.parametrize(
    ("usable", "answer", "status", "says"),
    [
        (False, None, WARN, "no /dev/kvm"),
        (True, None, WARN, "not tried yet"),
        (True, b"kvm", OK, "carries a guest"),
        (True, b"tcg", WARN, "does not carry a guest"),
    ],
)
def test_kvm(
    usable: bool,
    answer: bytes | None,
    status: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(accel, "usable", lambda: usable)
    if answer is not None:
        path = accel._answer()
        path.parent.mkdir(parents=True)
        path.write_bytes(answer)
    with pytest.raises(SystemExit):
        main.main(["doctor", "--json"])
    findings = json.loads(capsys.readouterr().out)["findings"]
    (kvm,) = [finding for finding in findings if finding["name"] == "KVM"]
    assert (kvm["status"], kvm["required"]) == (status, False)
    assert says in kvm["seen"]
