# SPDX-License-Identifier: Apache-2.0
"""The kfuncs of a handler that kill, and those that know of victims: each clause, each errno.

Nearly all OOMs here are declared: then a handler is asked exactly once, and nothing is in a hurry.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

from bpfoom.btf.types import Btf
from bpfoom.observe import cgroupfs
from bpfoom.observe.cgroupfs import Cgroup
from bpfoom.observe.kmsg import KernelLog
from tests.guest.asm import (
    HANDLED,
    KERNEL,
    PASS,
    R0,
    R1,
    R6,
    R8,
    attached,
    forget_seen,
    of_handler,
    seen,
)
from tests.guest.byhand import ROOT, Trees, wait_for
from tests.guest.callers import declare, dry_run
from tests.guest.handlers import (
    FIRST,
    OTHER,
    SECOND,
    VICTIMS,
    cgroup_killer,
    end,
    kill_memcg,
    kill_task,
    note_victims,
    of_cgroup,
    of_task,
    process_killer,
)
from tests.guest.memory import held_at_exit, hog, kills, make
from tests.guest.states import in_vfork, processes

Target = Callable[[Cgroup], AbstractContextManager[int]]


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    forget_seen()


# bpf_oom_kill_process(): whom it refuses


@contextmanager
def init_task(box: Cgroup) -> Iterator[int]:
    yield 1


@contextmanager
def kernel_thread(box: Cgroup) -> Iterator[int]:
    yield 2


@contextmanager
def spared(box: Cgroup) -> Iterator[int]:
    with hog(box, 4, adj=-1000) as it:
        yield it.pid


@contextmanager
def outside(box: Cgroup) -> Iterator[int]:
    with hog(make(ROOT / "outside"), 4) as it:
        yield it.pid


@contextmanager
def zombie(box: Cgroup) -> Iterator[int]:
    with subprocess.Popen(["sh", "-c", f"echo 0 > {box.path}/cgroup.procs"]) as child:
        stat = Path("/proc", str(child.pid), "stat")
        wait_for(lambda: ") Z " in stat.read_text(), "the child to be a zombie")
        yield child.pid


@pytest.mark.parametrize(
    ("target", "number"),
    [
        (init_task, errno.EPERM),
        (kernel_thread, errno.EPERM),
        (spared, errno.EINVAL),
        (in_vfork, errno.EINVAL),
        (zombie, errno.ESRCH),
        (outside, errno.EXDEV),
    ],
)
def test_section_5_kill_process_refuses(
    target: Target, number: int, trees: Trees, btf: Btf
) -> None:
    """And then HANDLED is not believed."""
    with target(trees.box) as pid, attached(process_killer(pid), trees.box, btf) as it:
        declare(btf, trees.box)
        assert seen()[FIRST] == -number
        counters = it.counters()
        assert (counters["unproven"], counters["handled"], counters["kills"]) == (1, 0, 0)


def test_section_5_kill_process_refuses_a_victim(trees: Trees, btf: Btf) -> None:
    """In the call that killed it, and in the next one, which is then not believed."""
    with hog(trees.box, 8) as victim, held_at_exit(victim.pid):
        twice = kill_task(kill_task(of_task(victim.pid), FIRST), SECOND)
        with attached(end(twice, "bpf_task_release", HANDLED), trees.box, btf) as it:
            assert declare(btf, trees.box) == 1
            assert seen()[:2] == (0, -errno.EALREADY)
            declare(btf, trees.box)
            assert seen()[:2] == (-errno.EALREADY, -errno.EALREADY)
            counters = it.counters()
        assert (counters["handled"], counters["unproven"], counters["kills"]) == (1, 1, 1)
        assert kills(trees.box) == 1


# bpf_oom_kill_process(): what it does


@pytest.mark.parametrize("verdict", [PASS, HANDLED, KERNEL, 77])
def test_section_2_a_kill_ends_the_walk_whatever_is_answered(
    verdict: int, trees: Trees, btf: Btf
) -> None:
    parent = cgroupfs.resolve(str(ROOT))
    with hog(trees.box, 4) as small, hog(trees.box, 16) as large, ExitStack() as stack:
        above = stack.enter_context(attached(of_handler().exit(PASS), parent, btf))
        code = process_killer(small.pid, verdict)
        it = stack.enter_context(attached(code, trees.box, btf))
        assert declare(btf, trees.box) == 1
        wait_for(small.ended, "the chosen one to die")
        assert not large.ended()
        counters = it.counters()
        assert (counters["handled"], counters["kills"], counters["invocations"]) == (1, 1, 1)
        assert above.counters()["invocations"] == 0
    assert seen()[FIRST] == 0


def test_section_5_kill_process_is_the_kernels_kill(trees: Trees, btf: Btf) -> None:
    """Message, event; afterwards oc->chosen is NULL again, and the task a victim."""
    chosen = btf.place("oom_control", "chosen").offset // 8
    with hog(trees.box, 8) as victim, KernelLog() as log:
        code = of_task(victim.pid).copy(R1, R8).kfunc("bpf_task_is_oom_victim").note(SECOND)
        code = kill_task(code, FIRST).load(R0, R6, chosen).keep(OTHER)
        code.copy(R1, R8).kfunc("bpf_task_is_oom_victim").note(VICTIMS)
        with attached(end(code, "bpf_task_release", HANDLED), trees.box, btf):
            assert declare(btf, trees.box) == 1
        wait_for(victim.ended, "the victim to die")
        assert any(
            line.startswith(f"by hand: Killed process {victim.pid} ") for line in log.lines()
        )
    assert seen()[OTHER] == 0
    assert [value & 0xFF for value in seen()[FIRST:OTHER]] == [0, 0, 1]
    assert kills(trees.box) == 1


def test_section_5_kill_process_takes_the_whole_group(trees: Trees, btf: Btf) -> None:
    (trees.box.path / "memory.oom.group").write_text("1")
    with hog(trees.box, 4) as one, hog(trees.box, 4) as two, hog(trees.box, adj=-1000) as three:
        with attached(process_killer(one.pid), trees.box, btf) as it:
            assert declare(btf, trees.box) == 1
            assert it.counters()["kills"] == 2
        wait_for(lambda: one.ended() and two.ended(), "the group to die")
        assert not three.ended()
    assert seen()[FIRST] == 0
    assert trees.box.memory_events()["oom_group_kill"] == 1


# bpf_oom_victims()


def test_section_5_victims_are_counted_inside_the_oom_only(trees: Trees, btf: Btf) -> None:
    other = make(ROOT / "other")
    counter = note_victims(of_handler(), VICTIMS).exit(PASS)

    def counted(where: Cgroup | None) -> int:
        dry_run(btf, where)
        return seen()[VICTIMS]

    with hog(trees.box, 8) as victim, held_at_exit(victim.pid), ExitStack() as stack:
        stack.enter_context(attached(counter, cgroupfs.resolve("/"), btf))
        assert counted(trees.box) == counted(None) == 0
        assert declare(btf, trees.box) == 1
        assert (counted(trees.box), counted(other), counted(None)) == (1, 0, 1)
        # The process is still there, but the reaper has taken its memory.
        wait_for(lambda: counted(trees.box) == 0, "the reaper")
        assert processes(trees.box) == [victim.pid]


def test_section_5_a_victim_counts_until_its_memory_is_free(trees: Trees, btf: Btf) -> None:
    """Its parent has reaped it, but a process that shares its memory is still there."""
    counter = note_victims(of_handler(), VICTIMS).exit(PASS)

    def counted() -> int:
        dry_run(btf, trees.box)
        return seen()[VICTIMS]

    with in_vfork(trees.box, 8) as child:
        (victim,) = set(processes(trees.box)) - {child}
        Path("/proc", str(victim), "oom_score_adj").write_text("0")
        with held_at_exit(child):
            with attached(process_killer(victim), trees.box, btf):
                assert declare(btf, trees.box) == 1
            os.waitpid(victim, 0)
            with attached(counter, trees.box, btf):
                assert counted() == 1
                wait_for(lambda: counted() == 0, "the reaper")
        os.waitpid(child, 0)


def test_section_5_no_second_kill_while_a_victim_is_on_its_way(trees: Trees, btf: Btf) -> None:
    """The handler is asked again, is refused, and passes."""
    with hog(trees.box, 8) as victim, hog(trees.box, 4) as second, held_at_exit(victim.pid):
        code = note_victims(kill_task(of_task(victim.pid), FIRST), VICTIMS)
        with attached(end(code, "bpf_task_release", PASS), trees.box, btf) as it:
            assert declare(btf, trees.box) == 1
            assert seen()[FIRST : VICTIMS + 1] == (0, 0, 1)
            assert declare(btf, trees.box) == 1
            assert seen()[FIRST : VICTIMS + 1] == (-errno.EALREADY, 0, 1)
            counters = it.counters()
        assert (counters["handled"], counters["passed"]) == (1, 1)
        assert kills(trees.box) == 1 and not second.ended()


# bpf_oom_kill_cgroup()


def test_section_5_kill_cgroup_kills_all_that_may_be_killed(trees: Trees, btf: Btf) -> None:
    """One report, one event, however many."""
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(hog(trees.box, 2))
        left = stack.enter_context(hog(trees.box, adj=-1000))
        log = stack.enter_context(KernelLog())
        code = note_victims(kill_memcg(of_cgroup(trees.box, btf), FIRST), VICTIMS)
        code = end(kill_memcg(code, SECOND), "bpf_put_mem_cgroup", PASS)
        it = stack.enter_context(attached(code, trees.box, btf))
        assert declare(btf, trees.box) == 1
        assert seen()[FIRST] == 3
        # In the same call: until oom_lock is dropped nobody of them is sure to be gone.
        assert seen()[VICTIMS] in range(4)
        assert seen()[SECOND] in (-errno.EALREADY, -errno.ESRCH)
        assert (it.counters()["handled"], it.counters()["kills"]) == (1, 3)
        wait_for(lambda: processes(trees.box) == [left.pid], "all others to die")
        said = [line for line in log.lines() if "is going to kill the tasks in" in line]
        assert said == [f"oom_handler=by-hand is going to kill the tasks in {trees.box.name}"]
    assert trees.box.memory_events()["oom_group_kill"] == 1
    assert kills(trees.box) == 3


def test_section_5_kill_cgroup_refuses_victims_in_flight(trees: Trees, btf: Btf) -> None:
    code = cgroup_killer(trees.box, btf)
    with hog(trees.box, 8) as it, held_at_exit(it.pid), attached(code, trees.box, btf) as link:
        assert declare(btf, trees.box) == 1
        assert seen()[FIRST] == 1
        declare(btf, trees.box)
        assert seen()[FIRST] == -errno.EALREADY
        assert (link.counters()["handled"], link.counters()["unproven"]) == (1, 1)


@pytest.mark.parametrize("target", [None, spared, in_vfork])
def test_section_5_kill_cgroup_finds_nobody(target: Target | None, trees: Trees, btf: Btf) -> None:
    with ExitStack() as stack:
        if target:
            stack.enter_context(target(trees.box))
        there = processes(trees.box)
        it = stack.enter_context(attached(cgroup_killer(trees.box, btf), trees.box, btf))
        assert declare(btf, trees.box) == 0
        assert seen()[FIRST] == -errno.ESRCH
        assert it.counters()["unproven"] == 1
        assert processes(trees.box) == there


@pytest.mark.parametrize(
    ("where", "number"),
    [("/", errno.EOPNOTSUPP), (str(ROOT), errno.EXDEV), (f"{ROOT}/other", errno.EXDEV)],
)
def test_section_5_kill_cgroup_stays_inside(
    where: str, number: int, trees: Trees, btf: Btf
) -> None:
    with hog(make(ROOT / "other"), 4) as bystander:
        with attached(cgroup_killer(cgroupfs.resolve(where), btf), trees.box, btf) as it:
            assert declare(btf, trees.box) == 0
            assert it.counters()["unproven"] == 1
        assert seen()[FIRST] == -number
        assert not bystander.ended()


@pytest.mark.parametrize(("declared", "killed"), [("top", 3), ("top/job", 2), ("top/job/x", 1)])
def test_section_5_kill_cgroup_takes_the_highest_group_inside(
    declared: str, killed: int, trees: Trees, btf: Btf
) -> None:
    """All but the last are memory.oom.group; what is out of memory bounds it. ::

    top ─┬─ job ─┬─ x   the cgroup to kill
         │       └─ y
         └─ z
    """
    top = make(ROOT / "top", parent=True, memory_oom_group="1")
    job = make(top.path / "job", parent=True, memory_oom_group="1")
    leaves = [make(job.path / "x"), make(job.path / "y"), make(top.path / "z")]
    oom = cgroupfs.resolve(f"{ROOT}/{declared}")
    with ExitStack() as stack:
        hogs = [stack.enter_context(hog(leaf, 4)) for leaf in leaves]
        stack.enter_context(attached(cgroup_killer(leaves[0], btf), top, btf))
        assert declare(btf, oom) == 1
        assert seen()[FIRST] == killed
        wait_for(lambda: all(it.ended() for it in hogs[:killed]), "the group to die")
        assert not any(it.ended() for it in hogs[killed:])
    local = cgroupfs.parse_counters((oom.path / "memory.events.local").read_text())
    assert local["oom_group_kill"] == 1
