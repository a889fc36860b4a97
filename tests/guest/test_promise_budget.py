# SPDX-License-Identifier: Apache-2.0
"""What promises cost: bounds of each, the budget of a memcg, and what makes it whole again.

A budget is spent here without a kill, by three promises of 5 s that are kept at once.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from bpfoom.btf.types import Btf
from bpfoom.observe import cgroupfs
from bpfoom.observe.cgroupfs import Cgroup
from bpfoom.scenario.model import MIB
from tests.guest.asm import (
    HANDLED,
    KERNEL,
    R1,
    R8,
    Asm,
    Attached,
    attached,
    forget_seen,
    of_handler,
    seen,
)
from tests.guest.byhand import DEADLINE_S, ROOT, Trees, oom_once, wait_for
from tests.guest.callers import dry_run
from tests.guest.handlers import (
    FOR_EVER,
    REFUSED,
    SECOND,
    kill_task,
    of_task,
    promise,
    promiser,
    promises_or_raises,
)
from tests.guest.memory import Hog, give_back, hog, kills, make, pool, take, wait_until_waiting


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    forget_seen()


@pytest.mark.parametrize(
    ("asked", "where", "granted"),
    [
        (0, "box", 1),
        (4999, "box", 4999),
        (FOR_EVER, "box", 5000),
        (0, "system", 1),
        (999, "system", 999),
        (FOR_EVER, "system", 1000),
    ],
)
def test_section_5_a_promise_has_bounds(
    asked: int, where: str, granted: int, trees: Trees, btf: Btf
) -> None:
    with attached(promiser(asked), cgroupfs.resolve("/"), btf):
        assert dry_run(btf, trees.box if where == "box" else None).promise_ms == granted


def spend(it: Attached, taker: Hog, held: Path, *, step: int = 8) -> None:
    """Use up 15 s of promises in a moment: each of three is kept at once."""
    before = it.counters()["promised"]
    for number in range(1, 4):
        take(taker, step)
        wait_until_waiting(taker)
        give_back(held, step, taker)
        assert taker.obeyed(DEADLINE_S)
        assert it.counters()["promised"] == before + number
    assert it.counters()["promises_broken"] == 0


def may_promise(btf: Btf, cgroup: Cgroup) -> bool:
    """Whether the handler's promise would be accepted now."""
    forget_seen()
    granted = dry_run(btf, cgroup).outcome == "promise"
    assert seen()[REFUSED] == (0 if granted else -errno.EBUSY)
    return granted


@contextmanager
def spent(box: Cgroup, btf: Btf, code: Asm | None = None) -> Iterator[tuple[Attached, Hog, Path]]:
    """A handler of the box that may not promise any more; nobody has been killed."""
    with ExitStack() as stack:
        it = stack.enter_context(attached(code or promiser(FOR_EVER), box, btf))
        held = stack.enter_context(pool(box, 26))
        taker = stack.enter_context(hog(box))
        spend(it, taker, held)
        yield it, taker, held


def test_section_5_fifteen_seconds_a_minute_kept_or_not(trees: Trees, btf: Btf) -> None:
    with spent(trees.box, btf) as (it, taker, _):
        assert kills(trees.box) == 0
        assert not may_promise(btf, trees.box)
        take(taker, 16)
        wait_for(taker.ended, "the kernel to kill")
        counters = it.counters()
    assert (counters["promised"], counters["promises_broken"]) == (3, 0)
    assert counters["unproven"] > 0
    assert kills(trees.box) == 1


def test_section_5_each_memcg_has_a_budget_of_its_own(trees: Trees, btf: Btf) -> None:
    """And the system one; whichever handler it is that asks."""
    other = make(ROOT / "other")
    with spent(trees.box, btf), attached(promiser(FOR_EVER), cgroupfs.resolve("/"), btf):
        assert may_promise(btf, other)
        assert dry_run(btf, None).outcome == "promise"


def test_section_5_another_handler_gets_no_budget_of_its_own(trees: Trees, btf: Btf) -> None:
    with spent(trees.box, btf):
        pass
    with attached(promiser(1), cgroupfs.resolve(str(ROOT)), btf):
        assert not may_promise(btf, trees.box)


def test_section_5_the_budget_is_fresh_after_a_kill_below(trees: Trees, btf: Btf) -> None:
    """Not after one elsewhere. ::

    top 32 MiB ─┬─ a     pool and process
                └─ b 8   its handler leaves all to the kernel
    """
    top = make(ROOT / "top", parent=True, memory_max="32M")
    leaf, below = make(top.path / "a"), make(top.path / "b", memory_max="3M")
    with ExitStack() as stack:
        it = stack.enter_context(attached(promiser(FOR_EVER), top, btf))
        stack.enter_context(attached(of_handler().exit(KERNEL), below, btf))
        held = stack.enter_context(pool(leaf, 26))
        taker = stack.enter_context(hog(leaf))
        spend(it, taker, held)
        give_back(held, held.stat().st_size // MIB)
        oom_once(trees.box)
        assert not may_promise(btf, top)
        oom_once(below)
        assert may_promise(btf, top)
        assert it.counters()["promised"] == 3


@pytest.mark.parametrize(("limit", "renewed"), [(31, False), (32, False), (33, True)])
def test_section_5_the_budget_is_fresh_after_a_raised_limit(
    limit: int, renewed: bool, trees: Trees, btf: Btf
) -> None:
    with spent(trees.box, btf) as (_, taker, held):
        give_back(held, held.stat().st_size // MIB)
        (trees.box.path / "memory.max").write_text(str(limit * MIB))
        assert may_promise(btf, trees.box) == renewed


def test_section_5_the_budget_is_not_fresh_after_a_handlers_raise(trees: Trees, btf: Btf) -> None:
    with spent(trees.box, btf, promises_or_raises(64 * MIB, btf)) as (it, taker, _):
        take(taker, 16)
        assert taker.obeyed(DEADLINE_S)
        assert trees.box.value("memory.max") == str(64 * MIB)
        assert seen()[REFUSED] == -errno.EBUSY
        assert dry_run(btf, trees.box).outcome == "kernel"
        assert (it.counters()["promised"], kills(trees.box)) == (3, 0)


def test_section_5_beside_a_kill_a_promise_costs_nothing(trees: Trees, btf: Btf) -> None:
    """Three of 5 s are left after it."""
    with hog(trees.box, 8) as victim, ExitStack() as stack:
        code = kill_task(of_task(victim.pid), SECOND).copy(R1, R8).kfunc("bpf_task_release")
        code = promise(code.place("absent"), FOR_EVER).exit(HANDLED)
        it = stack.enter_context(attached(code, trees.box, btf))
        held = stack.enter_context(pool(trees.box, 18))
        taker = stack.enter_context(hog(trees.box))
        take(taker, 10)
        assert taker.obeyed(DEADLINE_S)
        counters = it.counters()
        assert (counters["promised"], counters["kills"]) == (1, 1)
        spend(it, taker, held, step=6)
        assert dry_run(btf, trees.box).outcome == "kernel"
        assert seen()[REFUSED] == -errno.EBUSY
    assert kills(trees.box) == 1


@pytest.mark.slow
def test_section_5_the_budget_is_fresh_after_a_minute(trees: Trees, btf: Btf) -> None:
    with spent(trees.box, btf):
        start = time.monotonic()
        while time.monotonic() - start < 50:
            assert not may_promise(btf, trees.box)
            time.sleep(5)
        wait_for(lambda: may_promise(btf, trees.box), "the minute to be over")
