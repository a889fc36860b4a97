# SPDX-License-Identifier: Apache-2.0
"""The ops and what they are given, the verdicts and what is believed of them, and what people see.

Handlers are attached to byhand's tree: inner to box, outer to bpfoom-test above it.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass

import pytest

from bpfoom.btf.types import Btf
from bpfoom.errors import BpfoomError
from bpfoom.handler.load import OpsLayout
from bpfoom.observe import cgroupfs
from bpfoom.observe.kmsg import KernelLog
from tests.guest.asm import (
    HANDLED,
    KERNEL,
    PASS,
    R0,
    R1,
    R2,
    R3,
    R6,
    R7,
    R8,
    SLOTS,
    Asm,
    attached,
    forget_seen,
    of_handler,
    seen,
)
from tests.guest.byhand import ROOT, Trees, oom_once, ops_map, wait_for

GET_CURRENT_TASK_BTF, PROBE_READ_KERNEL_STR = 158, 115
NONSENSE = 77


def kill_current(code: Asm, message: str = "By the test") -> Asm:
    """r0 = what it is to kill the task that allocates."""
    code.helper(GET_CURRENT_TASK_BTF).copy(R2, R0).copy(R1, R6).string(R3, message)
    return code.kfunc("bpf_oom_kill_process")


def cgroup_id(code: Asm, cgroup: int, btf: Btf) -> Asm:
    """r0 = the ID of a cgroup in a register."""
    code.member(R0, cgroup, btf, "cgroup", "kn")
    return code.member(R0, R0, btf, "kernfs_node", "id")


# 1. The ops


def test_section_1_what_btf_says(btf: Btf) -> None:
    verdicts = {"BPF_OOM_PASS": 0, "BPF_OOM_HANDLED": 1, "BPF_OOM_KERNEL": 2}
    assert btf.enum_values("bpf_oom_verdict") == verdicts
    assert btf.enum_values("bpf_oom_flags") == {"BPF_OOM_FLAGS_WAIT_ON_OOM_LOCK": 1}
    layout = OpsLayout.read(btf)
    assert layout.name_size == 64
    members = [member.name for member in btf.members(btf.type(layout.type_id))]
    assert members == ["handle_out_of_memory", "name"]
    types = {
        "bpf_memory_freed": "bool",
        "bpf_declared": "bool",
        "bpf_dry_run": "bool",
        "bpf_handler_name": "const char *",
    }
    assert {name: btf.place("oom_control", name).type for name in types} == types


def test_section_1_no_callback(btf: Btf) -> None:
    with pytest.raises(BpfoomError) as raised, ops_map(btf, verdict=None):
        pass
    assert raised.value.data["errno"] == errno.EINVAL


@pytest.mark.parametrize("name", [b"x" * 64, b"a\nb", b"a\x7f", b"caf\xc3\xa9", b"\x01"])
def test_section_1_names_that_are_refused(name: bytes, btf: Btf) -> None:
    with pytest.raises(BpfoomError) as raised, ops_map(btf, name=name):
        pass
    assert raised.value.data["errno"] == errno.EINVAL


@pytest.mark.parametrize(
    ("given", "shown"), [("", "bpf_defined_policy"), ("x" * 63, "x" * 63), ("a b~", "a b~")]
)
def test_section_1_the_name_as_the_handler_sees_it(
    given: str, shown: str, trees: Trees, btf: Btf
) -> None:
    code = of_handler().member(R3, R6, btf, "oom_control", "bpf_handler_name")
    code.slot(R1, 0).const(R2, 64).helper(PROBE_READ_KERNEL_STR)
    forget_seen()
    with attached(code.exit(PASS), trees.box, btf, given):
        oom_once(trees.box)
    text = struct.pack(f"<{SLOTS}q", *seen()).partition(b"\0")[0].decode()
    assert text == shown


def test_section_1_what_a_handler_is_given(trees: Trees, btf: Btf) -> None:
    """oc->memcg is what is out of memory, the second argument is where the handler sits.

    Both are trusted: kfuncs take them.
    """
    MEMCG, CGROUP, USAGE, LEVEL = range(4)
    code = cgroup_id(of_handler(), R7, btf).keep(CGROUP)
    code.copy(R1, R7).kfunc("bpf_cgroup_acquire").jump_if(R0, "==", 0, "system")
    code.copy(R8, R0).member(R0, R8, btf, "cgroup", "level").keep(LEVEL)
    code.copy(R1, R8).kfunc("bpf_cgroup_release")
    code.member(R8, R6, btf, "oom_control", "memcg").jump_if(R8, "==", 0, "system")
    code.member(R0, R8, btf, "mem_cgroup", "css.cgroup")
    cgroup_id(code, R0, btf).keep(MEMCG).copy(R1, R8).kfunc("bpf_mem_cgroup_usage").keep(USAGE)
    forget_seen()
    outer = cgroupfs.resolve(str(ROOT))
    with attached(code.place("system").exit(PASS), outer, btf):
        oom_once(trees.box)
    slots = seen()
    assert (slots[MEMCG], slots[CGROUP], slots[LEVEL]) == (trees.box.id, outer.id, 1)
    assert 30 << 20 < slots[USAGE] <= 32 << 20


# 2. The verdicts


@dataclass(frozen=True)
class Answer:
    """What a handler does and says, how that is counted, whether the next one is asked."""

    verdict: int
    kills: bool
    counted: str
    goes_on: bool


ANSWERS = (
    Answer(PASS, False, "passed", True),
    Answer(HANDLED, False, "unproven", True),
    Answer(KERNEL, False, "kernel", False),
    Answer(NONSENSE, False, "invalid", True),
    Answer(-1, False, "invalid", True),
    Answer(1 << 31, False, "invalid", True),
    # Who has killed ends the walk, whatever it says.
    Answer(PASS, True, "handled", False),
    Answer(HANDLED, True, "handled", False),
    Answer(KERNEL, True, "handled", False),
    Answer(NONSENSE, True, "handled", False),
)


@pytest.mark.parametrize(
    "answer", ANSWERS, ids=lambda a: f"{a.verdict}-{'after' if a.kills else 'without'}-a-kill"
)
def test_section_2_what_is_believed(answer: Answer, trees: Trees, btf: Btf) -> None:
    code = kill_current(of_handler()) if answer.kills else of_handler()
    with (
        attached(code.exit(answer.verdict), trees.box, btf) as inner,
        attached(of_handler().exit(PASS), cgroupfs.resolve(str(ROOT)), btf) as outer,
    ):
        oom_once(trees.box)
        counters, asked = inner.counters(), outer.counters()["invocations"]
    assert counters[answer.counted] == counters["invocations"] > 0
    assert counters["kills"] == (counters["invocations"] if answer.kills else 0)
    assert (asked > 0) is answer.goes_on
    assert trees.box.memory_events()["oom_kill"] == 1


def test_section_2_a_kill_that_failed_proves_nothing(trees: Trees, btf: Btf) -> None:
    """init is not to be had: -EPERM, no flag, and HANDLED is not believed."""
    BEFORE, RESULT, AFTER = range(3)
    code = of_handler().member(R0, R6, btf, "oom_control", "bpf_memory_freed").keep(BEFORE)
    code.task(R8, 1, "none").copy(R1, R6).copy(R2, R8).string(R3, "never")
    code.kfunc("bpf_oom_kill_process").note(RESULT)
    code.member(R0, R6, btf, "oom_control", "bpf_memory_freed").keep(AFTER)
    code.copy(R1, R8).kfunc("bpf_task_release").place("none").exit(HANDLED)
    forget_seen()
    with (
        attached(code, trees.box, btf) as inner,
        attached(of_handler().exit(PASS), cgroupfs.resolve(str(ROOT)), btf) as outer,
    ):
        oom_once(trees.box)
        assert inner.counters()["unproven"] == inner.counters()["invocations"] > 0
        assert outer.counters()["invocations"] > 0
    assert seen()[:3] == (0, -errno.EPERM, 0)


def test_section_2_the_flag_is_of_one_call(trees: Trees, btf: Btf) -> None:
    """The first call kills, later ones only say so: they are not believed."""
    CALLS, BEFORE, AFTER, LATER = range(4)
    code = of_handler().slot(R8, CALLS).load(R8, R8, 0).count(CALLS)
    code.member(R0, R6, btf, "oom_control", "bpf_memory_freed")
    code.jump_if(R8, "!=", 0, "later").keep(BEFORE)
    kill_current(code).member(R0, R6, btf, "oom_control", "bpf_memory_freed").keep(AFTER)
    code.exit(HANDLED).place("later").keep(LATER).exit(HANDLED)
    forget_seen()
    with attached(code, trees.box, btf) as handler:
        oom_once(trees.box)
        oom_once(trees.box)
        counters = handler.counters()
    assert (counters["handled"], counters["kills"]) == (1, 1)
    assert counters["unproven"] == counters["invocations"] - 1 > 0
    assert seen()[: LATER + 1] == (counters["invocations"], 0, 1, 0)


# 7. What people see


def oom_lines(trees: Trees, needed: str) -> list[str]:
    """What the log says about one OOM of the box; reports are rate limited, so try again."""
    found: list[str] = []

    def told() -> bool:
        with KernelLog() as log:
            victim = oom_once(trees.box)
            found[:] = [f"victim {victim.pid}", *log.lines()]
        return any(needed in line for line in found)

    wait_for(told, f"a report with {needed!r}")
    return found


def test_section_7_the_report_names_handler_and_message(trees: Trees, btf: Btf) -> None:
    with attached(kill_current(of_handler(), "Told so").exit(HANDLED), trees.box, btf, "namely"):
        first, *lines = oom_lines(trees, "oom_handler=")
    pid = first.removeprefix("victim ")
    assert "oom_handler=namely" in lines
    assert any(line.startswith(f"Told so: Killed process {pid} (tail)") for line in lines)
    assert any(line.startswith("oom-kill:constraint=CONSTRAINT_MEMCG") for line in lines)


def test_section_7_a_report_of_the_kernel_names_nobody(trees: Trees, btf: Btf) -> None:
    """Who has passed has nothing to do with the kill."""
    with attached(of_handler().exit(PASS), trees.box, btf, "namely"):
        _, *lines = oom_lines(trees, "invoked oom-killer")
    assert any("Memory cgroup out of memory: Killed process" in line for line in lines)
    assert not any("oom_handler=" in line for line in lines)
