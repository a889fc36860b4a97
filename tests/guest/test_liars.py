# SPDX-License-Identifier: Apache-2.0
"""Handlers that lie, and one that takes its time: what they cost, and that the machine gets on.

::

    bpfoom-test                 memory.max as the test says
    ├── box         32M         the liar's
    └── other       32M         of somebody else, no handler

Whoever runs out of memory here has to be dead after a while whatever the handler says. The bounds
are ten times what a loaded machine under TCG took, or what a promise may cost by its budget.
"""

from __future__ import annotations

import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from bpfoom.btf.types import Btf
from bpfoom.observe.cgroupfs import Cgroup, parse_counters
from bpfoom.observe.kmsg import KernelLog
from tests.guest.asm import (
    HANDLED,
    KTIME_GET_NS,
    PASS,
    R0,
    R1,
    R2,
    R3,
    R6,
    R8,
    R10,
    Asm,
    Attached,
    attached,
    forget_seen,
    of_handler,
    seen,
)
from tests.guest.byhand import ROOT, Trees, wait_for
from tests.guest.memory import make

NONSENSE = 77

# One eater alone took 0.6 s at most, and over 20 s on a debug kernel.
BOUND_S = 200.0


def start(cgroup: Cgroup) -> subprocess.Popen[bytes]:
    """A task that grows until it is killed, on one CPU: stocks of others would be room."""
    script = f"echo 0 > {cgroup.path}/cgroup.procs && exec tail /dev/zero"
    return subprocess.Popen(["taskset", "-c", "0", "sh", "-c", script])


def seconds_to_die(cgroup: Cgroup, bound: float) -> float:
    """How long a new eater lives; the test fails if it is more than the bound."""
    began = time.monotonic()
    eater = start(cgroup)
    try:
        status = eater.wait(bound)
    finally:
        eater.kill()
        eater.wait()
    assert status == -signal.SIGKILL
    return time.monotonic() - began


def only(handler: Attached, **expected: int) -> None:
    """The counters that are not zero, without those of time and calls, must be these."""
    counters = handler.counters()
    answers = ["handled", "passed", "kernel", "unproven", "invalid"]
    assert counters["invocations"] == sum(counters[name] for name in answers) > 0
    names = [*answers, "promised", "promises_broken", "kills", "slow"]
    assert {name: counters[name] for name in names if counters[name]} == expected


@pytest.mark.parametrize(("says", "counted"), [(HANDLED, "unproven"), (NONSENSE, "invalid")])
def test_section_2_who_only_talks(says: int, counted: str, trees: Trees, btf: Btf) -> None:
    with attached(of_handler().exit(says), trees.box, btf) as handler:
        took = seconds_to_die(trees.box, BOUND_S)
        print(f"says {says}: {took:.2f} s")
        only(handler, **{counted: handler.counters()["invocations"]})
    assert trees.box.memory_events()["oom_kill"] == 1


@pytest.mark.parametrize(("asked_ms", "granted_ms"), [(50, 50), (0xFFFFFFFF, 5000)])
def test_section_5_who_only_promises(
    asked_ms: int, granted_ms: int, trees: Trees, btf: Btf
) -> None:
    """Three times in a row, and nobody believes it any more: the kernel kills."""
    code = of_handler().copy(R1, R6).const(R2, asked_ms).kfunc("bpf_oom_promise").exit(HANDLED)
    budget = 3 * granted_ms / 1000
    with attached(code, trees.box, btf) as handler:
        took = seconds_to_die(trees.box, budget + BOUND_S)
        print(f"promises {asked_ms} ms: {took:.2f} s, budget {budget:.2f} s")
        only(handler, handled=3, promised=3, promises_broken=3, unproven=1)
    assert took >= budget
    assert trees.box.memory_events()["oom_kill"] == 1


def raising(btf: Btf, step: int) -> Asm:
    """A handler that raises the limit of what is out of memory by so many bytes."""
    code = of_handler().member(R2, R6, btf, "oom_control", "memcg").jump_if(R2, "==", 0, "system")
    code.copy(R1, R6).member(R3, R2, btf, "mem_cgroup", "memory.max").shift_left(R3, 12)
    code.add(R3, step).kfunc("bpf_oom_raise_max").exit(HANDLED)
    return code.place("system").exit(PASS)


def test_section_5_who_raises_by_a_page_at_a_time(trees: Trees, btf: Btf) -> None:
    """Up to the limit above it, which is not the handler's to raise: there the kernel kills."""
    headroom, tree = 2 << 20, Path(ROOT)
    with attached(raising(btf, 4096), trees.box, btf) as handler:
        (tree / "memory.max").write_text(str((32 << 20) + headroom))
        (tree / "memory.swap.max").write_text("0")
        took = seconds_to_die(trees.box, 3 * BOUND_S)
        counters = handler.counters()
        print(f"{counters['handled']} raises, one page each: {took:.2f} s")
        only(handler, handled=counters["invocations"])
    pages = headroom // 4096
    assert 0.8 * pages < counters["handled"] <= pages
    limit = int((trees.box.path / "memory.max").read_text())
    assert limit == (32 << 20) + 4096 * counters["handled"]
    # Whose limit it was that killed.
    local = parse_counters((tree / "memory.events.local").read_text())
    assert (local["oom"] > 0, trees.box.memory_events()["oom_kill"]) == (True, 1)


CALLS, BEGUN, ENDED = range(3)
TENTHS = 52
SHORT_TENTHS = 12


def sloth() -> Asm:
    """A handler that does nothing for 5.2 s, or at later calls for 1.2 s, and passes."""
    code = of_handler().helper(KTIME_GET_NS).keep(BEGUN).slot(R8, CALLS).load(R8, R8, 0)
    code.const(R3, SHORT_TENTHS).jump_if(R8, "!=", 0, "short").const(R3, TENTHS).place("short")
    code.count(CALLS).copy(R1, R10).add(R1, -16).const(R2, 0).kfunc("bpf_iter_num_new")
    code.place("tenth").copy(R1, R10).add(R1, -16).kfunc("bpf_iter_num_next")
    code.jump_if(R0, "==", 0, "over").busy(100).jump("tenth").place("over")
    code.copy(R1, R10).add(R1, -16).kfunc("bpf_iter_num_destroy")
    return code.helper(KTIME_GET_NS).keep(ENDED).exit(PASS)


def test_section_8_a_sloth_delays_every_other_tree(trees: Trees, btf: Btf) -> None:
    """The kernel does not bound a handler's time, it tells of it. All proceed when it is over."""
    other = make(ROOT / "other", memory_max="32M")
    alone = seconds_to_die(other, BOUND_S)
    forget_seen()
    with KernelLog() as log, attached(sloth(), trees.box, btf, "sloth") as handler:
        eater = start(trees.box)
        wait_for(lambda: seen()[CALLS] == 1, "the sloth to be called")
        delayed = seconds_to_die(other, TENTHS / 10 + BOUND_S)
        died = time.monotonic_ns()
        begun, ended = seen()[BEGUN : ENDED + 1]
        assert eater.wait(BOUND_S) == -signal.SIGKILL
        print(f"the other tree's OOM: {alone:.2f} s alone, {delayed:.2f} s behind the sloth")
        assert begun < died - 1e9 * delayed < ended < died
        slow_once(handler, ended - begun)
        # Slow again, and counted, but not told a second time.
        seconds_to_die(trees.box, SHORT_TENTHS / 10 + BOUND_S)
        counters = handler.counters()
        told = [line for line in log.lines() if "while every other OOM waits" in line]
    assert counters["slow"] == counters["invocations"] == seen()[CALLS] > 1
    assert 1_200_000_000 <= counters["last_ns"] < counters["max_ns"]
    assert len(told) == 1
    took = re.fullmatch(r"oom_handler=sloth took (\d+) ms, while every other OOM waits", told[0])
    assert took and int(took[1]) == counters["max_ns"] // 1_000_000


def slow_once(handler: Attached, took_ns: int) -> None:
    counters = handler.counters()
    assert (counters["slow"], counters["passed"]) == (1, 1)
    assert TENTHS * 100_000_000 <= took_ns <= counters["max_ns"] == counters["last_ns"]
