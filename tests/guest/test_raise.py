# SPDX-License-Identifier: Apache-2.0
"""bpf_oom_raise_max(): whose limit, how far, and by whom. The box has 32 MiB."""

from __future__ import annotations

import errno
import os
import subprocess
from contextlib import ExitStack

import pytest

from bpfoom.btf.types import Btf
from bpfoom.observe import cgroupfs
from bpfoom.observe.cgroupfs import Cgroup
from bpfoom.scenario.model import MIB
from tests.guest.asm import HANDLED, R0, R1, R2, R3, R6, R7, R8, Asm, attached, forget_seen, seen
from tests.guest.byhand import DEADLINE_S, ROOT, Trees, oom_once, wait_for
from tests.guest.callers import dry_run
from tests.guest.handlers import FIRST, SECOND, STARTED, end, of_cgroup, of_oom, raise_max, raiser
from tests.guest.memory import hog, kills, make, take, usage
from tests.guest.states import without_sys_resource

PAGE = 4096
FAR = 64 * MIB


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    forget_seen()


def limit_of(cgroup: Cgroup) -> int:
    return int(cgroup.value("memory.max"))


# How far


def test_section_5_a_raised_limit_instead_of_a_kill(trees: Trees, btf: Btf) -> None:
    with attached(raiser(FAR, btf), trees.box, btf) as it, hog(trees.box) as taker:
        take(taker, 48)
        assert taker.obeyed(DEADLINE_S)
        counters = it.counters()
        assert usage(trees.box) > 48 * MIB
    assert seen()[FIRST] == 0
    assert counters["handled"] == counters["invocations"] == 1
    assert limit_of(trees.box) == FAR
    assert kills(trees.box) == 0


@pytest.mark.parametrize(
    "limit",
    [
        0,
        16 * MIB,
        32 * MIB,
        32 * MIB + PAGE - 1,
        ((1 << 63) - 1) // PAGE * PAGE,  # "max"
        (1 << 64) - 1,
    ],
)
def test_section_5_upwards_and_to_a_limit_only(limit: int, trees: Trees, btf: Btf) -> None:
    with attached(raiser(limit, btf), trees.box, btf) as it:
        oom_once(trees.box)
        counters = it.counters()
    assert seen()[FIRST] == -errno.EINVAL
    assert (counters["handled"], counters["unproven"]) == (0, counters["invocations"])
    assert limit_of(trees.box) == 32 * MIB
    assert kills(trees.box) == 1


def test_section_5_the_farthest_limit(trees: Trees, btf: Btf) -> None:
    farthest = ((1 << 63) - 1) // PAGE * PAGE - PAGE
    with attached(raiser(farthest, btf), trees.box, btf), hog(trees.box) as taker:
        take(taker, 40)
        assert taker.obeyed(DEADLINE_S)
    assert limit_of(trees.box) == farthest


def test_section_5_a_page_at_a_time_makes_progress(trees: Trees, btf: Btf) -> None:
    """2 MiB too much take no more calls than there are pages in them, and some for the kernel."""
    code = of_oom(btf)
    code.load(R3, R8, btf.place("mem_cgroup", "memory.max").offset // 8)
    code.add(R3, 1).shift_left(R3, 12).copy(R1, R6).copy(R2, R8)
    code.kfunc("bpf_oom_raise_max").note(FIRST).place("absent").exit(HANDLED)
    with attached(code, trees.box, btf) as it, hog(trees.box) as taker:
        take(taker, 33)
        assert taker.obeyed(DEADLINE_S)
        counters = it.counters()
    raised = (limit_of(trees.box) - 32 * MIB) // PAGE
    assert counters["handled"] == counters["invocations"] == raised
    assert 2 * MIB // PAGE <= raised <= 6 * MIB // PAGE
    assert kills(trees.box) == 0


def test_section_5_a_raise_without_room_is_not_believed(trees: Trees, btf: Btf) -> None:
    """The limit was lowered below usage, by a writer who does not wait for it to follow."""
    with hog(trees.box, 24) as taker:
        writer = os.open(trees.box.path / "memory.max", os.O_WRONLY | os.O_NONBLOCK)
        os.write(writer, b"8M")
        os.close(writer)
        with attached(raiser(12 * MIB, btf), trees.box, btf) as it:
            take(taker, 1)
            wait_for(taker.ended, "the kernel to kill")
            counters = it.counters()
    assert (counters["handled"], counters["unproven"]) == (0, counters["invocations"])
    assert counters["invocations"] > 0
    assert limit_of(trees.box) == 12 * MIB
    assert kills(trees.box) == 1


def test_section_5_the_limits_of_ancestors_still_hold(trees: Trees, btf: Btf) -> None:
    top = make(ROOT / "top", parent=True, memory_max="32M")
    leaf = make(top.path / "leaf", memory_max="16M")
    with attached(raiser(FAR, btf), leaf, btf) as it, hog(leaf) as taker:
        take(taker, 48)
        wait_for(taker.ended, "the kernel to kill")
        counters = it.counters()
    assert counters["handled"] == counters["invocations"] == 1
    assert (limit_of(leaf), limit_of(top)) == (FAR, 32 * MIB)
    # The parent ran out of memory, its child did not any more.
    assert top.memory_events()["oom"] > leaf.memory_events()["oom"] == 1
    peak = int(top.value("memory.peak"))
    assert peak <= 32 * MIB


def test_section_5_memory_high_still_holds(trees: Trees, btf: Btf) -> None:
    (trees.box.path / "memory.high").write_text(str(30 * MIB))
    with attached(raiser(FAR, btf), trees.box, btf), hog(trees.box) as taker:
        take(taker, 32)
        assert taker.obeyed(DEADLINE_S)
        before = trees.box.memory_events()["high"]
        take(taker, 1)
        assert taker.obeyed(DEADLINE_S)
        assert trees.box.memory_events()["high"] > before > 0
    assert int(trees.box.value("memory.high")) == 30 * MIB
    assert limit_of(trees.box) == FAR


def slow_raiser(btf: Btf) -> Asm:
    """A handler that thinks for a while, then raises far; leaves -EAGAIN in slot SECOND."""
    code = of_oom(btf).copy(R7, R8).const(R0, 1).note(STARTED).busy(1500).copy(R8, R7)
    raise_max(code, FAR).jump_if(R0, "!=", -errno.EAGAIN, "absent").note(SECOND)
    return code.place("absent").exit(HANDLED)


def test_section_5_not_against_who_lowers_the_limit(trees: Trees, btf: Btf) -> None:
    """While the handler makes up its mind. Whoever lowers a limit has to wait, and runs out of
    memory as well, where another error comes first."""
    with attached(slow_raiser(btf), trees.box, btf) as it, hog(trees.box) as taker:
        take(taker, 40)
        wait_for(lambda: seen()[STARTED] == 1, "the handler to be called")
        with subprocess.Popen(["sh", "-c", f"echo 24M > {trees.box.path}/memory.max"]):
            wait_for(lambda: limit_of(trees.box) == 24 * MIB, "the writer")
            assert it.counters()["invocations"] == 0
            wait_for(taker.ended, "the kernel to kill")
        assert it.counters()["handled"] == 0
    assert seen()[SECOND] == -errno.EAGAIN
    assert limit_of(trees.box) == 24 * MIB
    assert kills(trees.box) == 1


def test_section_5_not_over_who_raises_the_limit(trees: Trees, btf: Btf) -> None:
    """What somebody else has made room for is used first; the next call knows the new limit."""
    with attached(slow_raiser(btf), trees.box, btf) as it, hog(trees.box) as taker:
        take(taker, 40)
        wait_for(lambda: seen()[STARTED] == 1, "the handler to be called")
        (trees.box.path / "memory.max").write_text("33M")
        assert it.counters()["invocations"] == 0
        assert taker.obeyed(DEADLINE_S)
        assert (it.counters()["unproven"], it.counters()["handled"]) == (1, 1)
    assert seen()[SECOND] == -errno.EAGAIN
    assert limit_of(trees.box) == FAR
    assert kills(trees.box) == 0


# Whose


@pytest.mark.parametrize("other", ["top", "top/sibling", "top/leaf/inner"])
def test_section_5_only_of_what_is_out_of_memory(other: str, trees: Trees, btf: Btf) -> None:
    """::

    top 128 ─┬─ leaf 32 ── inner 64   leaf runs out of memory, by what is in inner
             └─ sibling 64
    """
    top = make(ROOT / "top", parent=True, memory_max="128M")
    leaf = make(top.path / "leaf", parent=True, memory_max="32M")
    inner = make(leaf.path / "inner", memory_max="64M")
    make(top.path / "sibling", memory_max="64M")
    target = cgroupfs.resolve(f"{ROOT}/{other}")
    before = limit_of(target)
    code = end(raise_max(of_cgroup(target, btf), 256 * MIB), "bpf_put_mem_cgroup", HANDLED)
    with attached(code, leaf, btf) as it:
        oom_once(inner)
        assert it.counters()["unproven"] == it.counters()["invocations"] > 0
    assert seen()[FIRST] == -errno.EXDEV
    assert limit_of(target) == before
    assert kills(leaf) == 1


def test_section_5_not_of_the_whole_system(trees: Trees, btf: Btf) -> None:
    root = cgroupfs.resolve("/")
    code = end(raise_max(of_cgroup(root, btf), FAR), "bpf_put_mem_cgroup", HANDLED)
    with attached(code, root, btf):
        assert dry_run(btf, None).outcome == "kernel"
    assert seen()[FIRST] == -errno.EOPNOTSUPP


# By whom


def test_section_5_not_its_own_limit_without_the_right_to(trees: Trees, btf: Btf) -> None:
    with ExitStack() as stack:
        with without_sys_resource():
            it = stack.enter_context(attached(raiser(FAR, btf), trees.box, btf))
        oom_once(trees.box)
        assert it.counters()["unproven"] == it.counters()["invocations"] > 0
    assert seen()[FIRST] == -errno.EPERM
    assert limit_of(trees.box) == 32 * MIB
    assert kills(trees.box) == 1


def test_section_5_a_descendants_limit_without_that_right(trees: Trees, btf: Btf) -> None:
    with ExitStack() as stack:
        with without_sys_resource():
            above = cgroupfs.resolve(str(ROOT))
            it = stack.enter_context(attached(raiser(FAR, btf), above, btf))
        taker = stack.enter_context(hog(trees.box))
        take(taker, 48)
        assert taker.obeyed(DEADLINE_S)
        assert it.counters()["handled"] == it.counters()["invocations"] == 1
    assert seen()[FIRST] == 0
    assert limit_of(trees.box) == FAR
    assert kills(trees.box) == 0
