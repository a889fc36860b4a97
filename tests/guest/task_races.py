# SPDX-License-Identifier: Apache-2.0
"""Races between OOMs and what tasks and memory cgroups do while a handler is being called."""

from __future__ import annotations

import errno
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bpfoom.handler.syscalls import Fd
from tests.guest.arena import (
    BOX_BYTES,
    MS,
    ROOT,
    SPARE,
    Arena,
    Helper,
    Pace,
    Tally,
    begins,
    consistent,
    counters,
    ends,
    kill_from_outside,
    kills,
    limit_to,
    spin,
    until,
)
from tests.guest.asm import HANDLED, KTIME_GET_NS, R0, R1, R2, R3, R6, R8, R9, R10, Asm

CSS_TASK_ITER_PROCS = 1
TEN = 10
PROMISE_MS = 5000

# Of a box' limit: what is left to its task is kernel memory, and what takes it to the limit.
MOST = BOX_BYTES * 3 // 4


def ten(it: Arena, pace: Pace) -> Tally:
    """Ten cgroups, each with its handler, run out of memory at once; a hit had all ten waiting."""
    tally = Tally()
    boxes = [it.make(f"box{number}") for number in range(TEN)]
    handlers = [it.load(_killer_with_a_clock(it, SPARE + number)) for number in range(TEN)]
    with ExitStack() as stack:
        links = [
            stack.enter_context(it.link(handler, box))
            for handler, box in zip(handlers, boxes, strict=True)
        ]
        for _ in pace:
            with tally.round(), Helper("oom", 1, MOST, *(box.path for box in boxes)) as ooms:
                said = ooms.end()
            tally.add_ooms(said)
            began = [int(word) for word in said[0].split()[2:]]
            at_once = _most_at_once(began, it.window.slots()[SPARE : SPARE + TEN])
            tally.hits += at_once == TEN
            tally.add({f"{at_once} at once": 1})
        tally.add(consistent(*links))
    killed = [box.memory_events()["oom_kill"] for box in boxes]
    assert killed == [tally.rounds] * TEN
    assert tally.facts["kills"] == TEN * tally.rounds
    return tally


def _most_at_once(began: Sequence[int], ended: Sequence[int]) -> int:
    """How many of these spans of time have a moment in common."""
    spans = list(zip(began, ended, strict=True))
    return max(sum(first <= at < last for first, last in spans) for at in began)


def _killer_with_a_clock(it: Arena, slot: int) -> Asm:
    """The killer, leaving the time when it is done in a slot."""
    code = spin(kills(begins(), it.btf), 30 * MS).helper(KTIME_GET_NS)
    return ends(code.keep(slot), HANDLED)


def forks(it: Arena, pace: Pace) -> Tally:
    """Fork into a cgroup while it is killed: what escapes one pass is killed in another."""
    tally = Tally()
    seen = it.window.seen.fileno()
    with it.link(it.killer(2 * MS), it.box) as link:
        with Helper("forks", it.box.path, seen, fds=[seen]) as storm:
            for _ in pace:
                with tally.round():
                    it.window.finish(it.window.wait())
            forked, tally.hits = (int(word) for word in storm.stop()[0].split())
        (it.box.path / "cgroup.kill").write_text("1")
        until(lambda: "populated 0" in it.box.value("cgroup.events"), "the box to be empty")
        tally.add({"forks": forked, "oom_kill": it.box.memory_events()["oom_kill"]})
        tally.add(consistent(link))
    assert tally.facts["kills"] > tally.rounds
    return tally


def migrate(it: Arena, pace: Pace) -> Tally:
    """Tasks leave between being chosen and being killed, and then are not killed: -EXDEV."""
    tally = Tally()
    seen = it.window.seen.fileno()
    arguments = it.box.path, it.other.path, seen
    with it.link(it.load(_chooser(it)), it.box) as link, Helper("oom", 0, 0, it.box.path) as ooms:
        with Helper("migrate", *arguments, fds=[seen]) as moves:
            for _ in pace:
                with tally.round():
                    it.window.finish(it.window.wait())
            moved, inside = (int(word) for word in moves.stop()[0].split())
        tally.add_ooms(ooms.stop())
        tally.add({"moved": moved, "meanwhile": inside})
        tally.add(consistent(link))
    killed, left, nobody = it.window.slots()[SPARE : SPARE + 3]
    tally.hits = left
    tally.add({"killed": killed, "nobody": nobody})
    assert killed == tally.facts["kills"] == tally.facts["handled"]
    return tally


def _chooser(it: Arena) -> Asm:
    """Choose the second task of what is out of memory, dither, kill it; note what came of it.

    The first one is the hog: who comes back is put behind.

    Slots: killed, left meanwhile, and nobody there or -EALREADY.
    """
    code = begins().member(R8, R6, it.btf, "oom_control", "memcg")
    code.jump_if(R8, "==", 0, "end").copy(R1, R10).add(R1, -16).copy(R2, R8)
    code.const(R3, CSS_TASK_ITER_PROCS).kfunc("bpf_iter_css_task_new").const(R9, 0)
    for _ in range(2):
        code.copy(R1, R10).add(R1, -16).kfunc("bpf_iter_css_task_next")
        code.jump_if(R0, "==", 0, "chosen")
    code.copy(R1, R0).kfunc("bpf_task_acquire").copy(R9, R0).place("chosen")
    code.copy(R1, R10).add(R1, -16).kfunc("bpf_iter_css_task_destroy")
    spin(code, 10 * MS).jump_if(R9, "==", 0, "nobody")
    code.copy(R1, R6).copy(R2, R9).string(R3, "race").kfunc("bpf_oom_kill_process")
    code.copy(R8, R0).copy(R1, R9).kfunc("bpf_task_release")
    code.jump_if(R8, "int==", 0, "killed").jump_if(R8, "int==", -errno.EXDEV, "left")
    code.place("nobody").count(SPARE + 2).jump("end")
    code.place("left").count(SPARE + 1).jump("end")
    code.place("killed").count(SPARE)
    return ends(code.place("end"), HANDLED)


def controller(it: Arena, pace: Pace) -> Tally:
    """Switch the memory controller off and on: OOMs are the parent's handler's, and back."""
    tally = Tally()
    handler = it.killer(5 * MS)
    switch = ROOT / "cgroup.subtree_control"
    limit_to(ROOT, 2 * BOX_BYTES)
    with it.link(handler, it.box) as link, it.link(handler, it.root) as parent:
        with Helper("oom", 0, 0, it.box.path) as ooms:
            for _ in pace:
                with tally.round():
                    call = it.window.wait()
                    tally.hits += it.window.call() == call
                    switch.write_text("-memory")
                    tally.add({"within a call": it.window.call() == call})
                    _calls_rise(parent)
                    it.window.wait()
                    tally.add({"refused": _switch_on(switch)})
                    # A new memory cgroup, without a limit.
                    limit_to(it.box.path, BOX_BYTES)
                    _calls_rise(link)
            tally.add_ooms(ooms.stop())
        tally.add(consistent(link, parent))
    return tally


def _switch_on(switch: Path) -> int:
    """Switch the memory controller on; how often that was refused.

    What it allocates is charged to the parent, which is out of memory: ENOMEM if nobody is left to
    kill, even though the last victim's memory came back while the handler was being called.
    """
    refused = 0

    def switched() -> bool:
        nonlocal refused
        try:
            switch.write_text("+memory")
        except OSError as error:
            assert error.errno == errno.ENOMEM
            refused += 1
            return False
        return True

    until(switched, "the memory controller to be on")
    return refused


def promise(it: Arena, pace: Pace) -> Tally:
    """Kill from outside those who wait for what a handler has promised: they go at once.

    Three wait for the same. What one of them frees keeps the promise, and leads to the next one.
    """
    tally = Tally()
    code = begins().copy(R1, R6).const(R2, PROMISE_MS).kfunc("bpf_oom_promise")
    with it.link(it.load(ends(code, HANDLED)), it.root) as link:
        for _ in pace:
            brief = it.make("brief")
            with Helper("oom", 1, 0, *[brief.path] * 3) as ooms:
                until(lambda: bool(_waiting(ROOT / "brief")), "a promise to be waited for")
                with tally.round():
                    _kill_waiting(ooms, brief.path, tally)
                # Not add_ooms(): its time begins before the promise.
                assert ooms.end()[0].split()[1] == "3"
            brief.path.rmdir()
        facts = counters(link)
        tally.add({"promised": facts["promised"], "broken": facts["promises_broken"]})
        tally.add(consistent(link))
    assert tally.facts["promised"] >= tally.rounds
    # Any task whose wait is not ended by its death is late.
    assert 10 * tally.facts.get("late", 0) <= tally.hits, tally
    return tally


def _kill_waiting(ooms: Helper, path: Path, tally: Tally) -> None:
    """Kill whoever waits until the helper is done; half a promise is too late to be gone."""

    def all_gone() -> bool:
        for pid in _waiting(path):
            tally.hits += 1
            tally.add({"late": _seconds_to_die(pid, path) > PROMISE_MS / 2000})
        return ooms.process.poll() is not None

    until(all_gone, "all that wait to be killed")


def _seconds_to_die(pid: int, path: Path) -> float:
    began = time.monotonic()
    kill_from_outside(pid)
    until(lambda: pid not in _tasks(path), "a killed task to be gone")
    return time.monotonic() - began


def _waiting(path: Path) -> list[int]:
    """The tasks of a cgroup that wait for a promise."""
    return [pid for pid in _tasks(path) if _place(pid) == "__bpf_oom_wait"]


def _place(pid: int) -> str:
    """The kernel function that a task sleeps in."""
    try:
        return Path(f"/proc/{pid}/wchan").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _tasks(path: Path) -> list[int]:
    return [int(word) for word in (path / "cgroup.procs").read_text().split()]


def _calls_rise(link: Fd) -> None:
    """Wait for a link's handler to be called once more."""
    before = counters(link)["invocations"]
    until(lambda: counters(link)["invocations"] > before, "its handler to be called")
