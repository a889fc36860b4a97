# SPDX-License-Identifier: Apache-2.0
"""The kernel's side of a link: update, counters, tracepoint. Names carry the section they prove."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from bpfoom.btf.types import Btf
from bpfoom.errors import SyscallError
from bpfoom.handler import info, pins, syscalls
from bpfoom.handler.attach import link_to_cgroup
from bpfoom.handler.load import load
from bpfoom.handler.syscalls import Fd
from bpfoom.observe import cgroupfs
from tests.guest import callers
from tests.guest.asm import (
    HANDLED,
    PASS,
    R0,
    R1,
    R2,
    R3,
    R6,
    R8,
    Attached,
    attached,
    forget_seen,
    of_handler,
)
from tests.guest.byhand import (
    ROOT,
    Trees,
    cli,
    cli_json,
    handler_object,
    oom_once,
    returns,
    wait_for,
)
from tests.guest.memory import hog

GET_CURRENT_TASK_BTF = 158
TRACING = Path("/sys/kernel/tracing")
EXIT_VERDICTS = {0: "passed", 1: "unproven", 2: "kernel", 3: "invalid", -1: "invalid"}


class Linked(Attached):
    """A hand-made handler linked to the box, and a second one loaded beside it."""

    def __init__(self, trees: Trees, btf: Btf, first: int, second: int, stack: ExitStack) -> None:
        where = pins.require()
        objects = [
            handler_object(returns(first), name="first"),
            handler_object(returns(second), name="second"),
        ]
        self.first, self.second = (
            stack.enter_context(load(obj, btf, where, note={})) for obj in objects
        )
        with Fd(os.open(trees.box.path, os.O_RDONLY)) as target:
            super().__init__(stack.enter_context(link_to_cgroup(self.first, target, btf)))

    def map_id(self) -> int:
        return info.link_info(self.link).map_id


@contextmanager
def linked(trees: Trees, btf: Btf, first: int, second: int = 0) -> Iterator[Linked]:
    with ExitStack() as stack:
        yield Linked(trees, btf, first, second, stack)


def test_section_4_an_update_exchanges_the_map(trees: Trees, btf: Btf) -> None:
    with linked(trees, btf, 0, 2) as it:
        before = it.map_id()
        syscalls.link_update(it.link, it.second.ops_map)
        assert it.map_id() == info.map_info(it.second.ops_map).id != before
        assert info.link_info(it.link).cgroup_id == trees.box.id
        oom_once(trees.box)
        counters = it.counters()
        assert (counters["kernel"], counters["passed"]) == (counters["invocations"], 0)
        assert counters["invocations"] > 0


def test_section_4_updates_while_it_runs_out_of_memory(trees: Trees, btf: Btf) -> None:
    """Whichever is in place answers each call: none is lost between two."""
    with linked(trees, btf, 0, 2) as it:
        for number in range(100):
            syscalls.link_update(it.link, (it.second, it.first)[number % 2].ops_map)
            if number % 25 == 0:
                oom_once(trees.box)
        counters = it.counters()
        assert counters["invocations"] >= 4
        assert counters["invocations"] == counters["passed"] + counters["kernel"]


def test_section_4_no_update_of_a_removed_cgroup(trees: Trees, btf: Btf) -> None:
    with linked(trees, btf, 0) as it:
        trees.box.path.rmdir()
        with pytest.raises(SyscallError) as raised:
            syscalls.link_update(it.link, it.second.ops_map)
        assert raised.value.data["errno"] == errno.ENOLINK
        wait_for(lambda: it.map_id() == 0, "the link to be detached")
        with pytest.raises(SyscallError) as raised:
            syscalls.link_update(it.link, it.second.ops_map)
        assert raised.value.data["errno"] == errno.ENOLINK
        assert info.link_info(it.link).cgroup_id == trees.box.id


@pytest.mark.parametrize("verdict", EXIT_VERDICTS)
def test_section_4_counts_what_an_idle_handler_says(verdict: int, trees: Trees, btf: Btf) -> None:
    with linked(trees, btf, verdict) as it:
        assert set(it.counters().values()) >= {0}
        oom_once(trees.box)
        counters = it.counters()
        assert counters[EXIT_VERDICTS[verdict]] == counters["invocations"] > 0
        assert (counters["handled"], counters["kills"], counters["slow"]) == (0, 0, 0)
        assert 0 < counters["last_ns"] <= counters["max_ns"]


def test_section_4_counts_what_a_policy_does(trees: Trees) -> None:
    """Seen by people, in `bpfoom show`."""
    code, _, err = cli("attach", "--cgroup", str(trees.box.path), "--policy", "largest-task")
    assert code == 0, err
    oom_once(trees.box)
    counters = cli_json("show", "--cgroup", str(trees.box.path))["counters"]
    assert (int(counters["handled"]), int(counters["kills"])) == (1, 1)
    assert int(counters["invocations"]) == 1 + int(counters["passed"])


@contextmanager
def traced() -> Iterator[Path]:
    """Where the handlers' calls are told while the block lasts."""
    instance = TRACING / "instances" / "bpfoom-test"
    instance.mkdir()
    try:
        (instance / "events/oom/bpf_oom_handler/enable").write_text("1")
        yield instance / "trace"
    finally:
        instance.rmdir()


def calls_in(trace: Path) -> list[dict[str, str]]:
    """The fields of each call that was traced."""
    lines = re.findall(r"bpf_oom_handler: (.*)", trace.read_text())
    return [dict(part.split("=") for part in line.split()) for line in lines]


def test_section_7_the_tracepoint_tells_each_call(trees: Trees, btf: Btf) -> None:
    with traced() as trace, linked(trees, btf, 2) as it:
        oom_once(trees.box)
        calls = calls_in(trace)
        assert len(calls) == it.counters()["invocations"]
    fields = calls[0]
    assert int(fields.pop("duration_ns")) > 0
    assert fields == {
        "memcg_id": str(trees.box.id),
        "cgroup_id": str(trees.box.id),
        "name": "first",
        "verdict": "2",
        "memory_freed": "0",
        "promise_ms": "0",
    }


def test_section_7_the_tracepoint_tells_what_came_of_it(trees: Trees, btf: Btf) -> None:
    """A handler of the tree above promises at first, and then kills."""
    above = cgroupfs.resolve(str(ROOT))
    code = of_handler().slot(R8, 0).load(R8, R8, 0).count(0).jump_if(R8, "==", 0, "first")
    code.helper(GET_CURRENT_TASK_BTF).copy(R2, R0).copy(R1, R6).string(R3, "By the test")
    code.kfunc("bpf_oom_kill_process").exit(PASS)
    code.place("first").copy(R1, R6).const(R2, 70).kfunc("bpf_oom_promise").exit(HANDLED)
    forget_seen()
    with traced() as trace, attached(code, above, btf):
        oom_once(trees.box)
        calls = calls_in(trace)
    told = [(call["verdict"], call["memory_freed"], call["promise_ms"]) for call in calls]
    assert told[:2] == [("1", "0", "70"), ("0", "1", "0")]
    assert {(call["memcg_id"], call["cgroup_id"]) for call in calls} == {
        (str(trees.box.id), str(above.id))
    }


def test_section_7_the_tracepoint_on_a_system_wide_oom(trees: Trees, btf: Btf) -> None:
    root = cgroupfs.resolve("/")
    with (
        traced() as trace,
        attached(of_handler().exit(PASS), root, btf, "top"),
        hog(trees.child, 8, adj=1000) as worst,
    ):
        assert callers.declare(btf, None) == 1
        wait_for(worst.ended, "the kernel to kill the worst")
        calls = calls_in(trace)
    assert [(call["memcg_id"], call["cgroup_id"], call["name"]) for call in calls] == [
        ("0", str(root.id), "top")
    ]
