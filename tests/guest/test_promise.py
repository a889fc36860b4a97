# SPDX-License-Identifier: Apache-2.0
"""bpf_oom_promise(): who waits, for how long, what ends it, and what it costs.

::

    box 32 MiB ── a pool of 24, which anybody can make smaller, and a process that takes 16 more
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
from bpfoom.scenario.model import MIB
from tests.guest.asm import (
    HANDLED,
    KERNEL,
    PASS,
    Asm,
    Attached,
    attached,
    forget_seen,
    of_handler,
    seen,
)
from tests.guest.byhand import DEADLINE_S, ROOT, Trees, oom_once, wait_for
from tests.guest.callers import declare, dry_run
from tests.guest.handlers import (
    FIRST,
    FOR_EVER,
    REFUSED,
    SECOND,
    UNSEEN,
    of_oom,
    promise,
    promiser,
    promises_or_raises,
    raise_max,
)
from tests.guest.memory import (
    Hog,
    give_back,
    hog,
    kills,
    make,
    pool,
    take,
    wait_until_waiting,
)

LONGEST_MS = 5000


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    forget_seen()


@contextmanager
def waiting(
    trees: Trees, btf: Btf, code: Asm | None = None
) -> Iterator[tuple[Attached, Hog, Path]]:
    """In the block a process waits for a promise of 5 s. All of the block must fit into it."""
    with ExitStack() as stack:
        it = stack.enter_context(attached(code or promiser(LONGEST_MS), trees.box, btf))
        held = stack.enter_context(pool(trees.box, 24))
        taker = stack.enter_context(hog(trees.box))
        take(taker, 16)
        wait_until_waiting(taker)
        yield it, taker, held


def end_of_one_promise(it: Attached, held: Path, *takers: Hog) -> None:
    """Keep the promise; it was the only one, so everything until now happened during it."""
    give_back(held, 20, *takers)
    assert all(taker.obeyed(DEADLINE_S) for taker in takers)
    counters = it.counters()
    assert counters["invocations"] == counters["handled"] == counters["promised"] == 1
    assert counters["promises_broken"] == 0


def wait_for_broken(it: Attached, number: int) -> None:
    wait_for(lambda: it.counters()["promises_broken"] == number, f"{number} broken promises")


# How it ends


def test_section_5_a_promise_is_kept_when_room_appears(trees: Trees, btf: Btf) -> None:
    with waiting(trees, btf) as (it, taker, held):
        assert not taker.obeyed(0.5)
        start = time.monotonic()
        end_of_one_promise(it, held, taker)
        assert time.monotonic() - start < 2  # not at the deadline, but soon
    assert kills(trees.box) == 0


@pytest.mark.parametrize("milliseconds", [0, 100])
def test_section_5_three_broken_in_a_row_then_the_kernel_acts(
    milliseconds: int, trees: Trees, btf: Btf
) -> None:
    with attached(promiser(milliseconds), trees.box, btf) as it:
        with hog(trees.box) as taker:
            take(taker, 40)
            wait_for(taker.ended, "the kernel to kill")
        counters = it.counters()
    assert (counters["promised"], counters["promises_broken"]) == (3, 3)
    assert counters["handled"] == 3
    assert counters["unproven"] == counters["invocations"] - 3 > 0
    assert seen()[REFUSED] == -errno.EBUSY
    assert kills(trees.box) == 1


def test_section_5_a_kept_promise_ends_the_row(trees: Trees, btf: Btf) -> None:
    with attached(promiser(1500), trees.box, btf) as it:
        with pool(trees.box, 24) as held, hog(trees.box) as taker:
            for broken in (2, 4):
                take(taker, 8)
                wait_for_broken(it, broken)
                wait_until_waiting(taker)
                give_back(held, 8, taker)
                assert taker.obeyed(DEADLINE_S)
        assert it.counters()["promised"] == 6
    assert kills(trees.box) == 0
    assert seen()[REFUSED] == 0


def test_section_5_a_killed_waiter_has_neither_kept_nor_broken(trees: Trees, btf: Btf) -> None:
    """Two broken ones before it, one after it: the row goes on."""
    with ExitStack() as stack:
        it = stack.enter_context(attached(promiser(1500), trees.box, btf))
        stack.enter_context(pool(trees.box, 24))
        first, second = (stack.enter_context(hog(trees.box)) for _ in range(2))
        take(first, 16)
        wait_for_broken(it, 2)
        wait_until_waiting(first)
        first.end()
        wait_for(lambda: dry_run(btf, trees.box).outcome != "join", "the third one to be over")
        assert (it.counters()["promised"], it.counters()["promises_broken"]) == (3, 2)
        take(second, 16)
        wait_for(second.ended, "the kernel to kill")
        assert (it.counters()["promised"], it.counters()["promises_broken"]) == (4, 3)
    assert seen()[REFUSED] == -errno.EBUSY


# Together with what


@pytest.mark.parametrize("verdict", [PASS, KERNEL, 77])
def test_section_5_a_promise_without_handled_is_none(verdict: int, trees: Trees, btf: Btf) -> None:
    with attached(promiser(FOR_EVER, verdict), trees.box, btf) as it:
        oom_once(trees.box)
        counters = it.counters()
    assert seen()[FIRST] == seen()[REFUSED] == 0
    assert (counters["promised"], counters["handled"], counters["promises_broken"]) == (0, 0, 0)
    assert kills(trees.box) == 1


def test_section_2_a_promise_is_not_for_the_next_handler(trees: Trees, btf: Btf) -> None:
    with ExitStack() as stack:
        above = of_handler().exit(HANDLED)
        it = stack.enter_context(attached(above, cgroupfs.resolve(str(ROOT)), btf))
        stack.enter_context(attached(promiser(FOR_EVER, PASS), trees.box, btf))
        oom_once(trees.box)
        counters = it.counters()
    assert counters["unproven"] == counters["invocations"] > 0
    assert counters["promised"] == 0
    assert kills(trees.box) == 1


# Who cannot wait


def tries_all(btf: Btf) -> Asm:
    """Promises, and tries to raise the limit; says whether there was a memcg to do that for."""
    code = promise(of_oom(btf), 1000)
    return raise_max(code, 64 * MIB, SECOND).place("absent").exit(HANDLED)


def refused(it: Attached) -> bool:
    """Whether both were refused because nobody waits, or could."""
    assert it.counters()["handled"] == 0
    return seen()[FIRST : SECOND + 1] == (UNSEEN, -errno.EOPNOTSUPP) and (
        seen()[REFUSED] == -errno.EOPNOTSUPP
    )


def test_section_5_who_lowers_memory_max_does_not_wait(trees: Trees, btf: Btf) -> None:
    with hog(trees.box, 24) as victim, attached(tries_all(btf), trees.box, btf) as it:
        (trees.box.path / "memory.max").write_text(str(8 * MIB))
        assert refused(it)
        wait_for(victim.ended, "the kernel to kill")
    assert trees.box.value("memory.max") == str(8 * MIB)


def test_section_5_who_declares_does_not_wait(trees: Trees, btf: Btf) -> None:
    with hog(trees.box, 8) as victim, attached(tries_all(btf), trees.box, btf) as it:
        assert declare(btf, trees.box) == 1
        assert refused(it)
        wait_for(victim.ended, "the kernel to kill")
    assert trees.box.value("memory.max") == str(32 * MIB)


def test_section_5_what_is_declared_does_not_join(trees: Trees, btf: Btf) -> None:
    with waiting(trees, btf) as (it, taker, held):
        assert dry_run(btf, trees.box).outcome == "join"
        assert declare(btf, trees.box) == 1
        assert (it.counters()["invocations"], it.counters()["unproven"]) == (2, 1)
        assert seen()[REFUSED] == -errno.EOPNOTSUPP
        wait_for(taker.ended, "the kernel to kill")
    assert kills(trees.box) == 1


def test_section_5_nobody_waits_for_a_dying_memcg(trees: Trees, btf: Btf) -> None:
    """The controller is switched off while a charge waits: it goes on with a memcg that dies, in
    which nobody is left to be killed, until it fails and begins again in the parent."""
    with waiting(trees, btf, promises_or_raises(64 * MIB, btf)) as (it, taker, _):
        (ROOT / "cgroup.subtree_control").write_text("-memory")
        assert taker.obeyed(DEADLINE_S)
        assert it.counters()["promised"] == 1
        assert seen()[REFUSED] == seen()[SECOND] == -errno.EOPNOTSUPP


# Others meanwhile


def test_section_5_others_join_the_wait_unasked(trees: Trees, btf: Btf) -> None:
    with hog(trees.box) as second, waiting(trees, btf) as (it, taker, held):
        take(second, 4)
        wait_until_waiting(second)
        wait_until_waiting(taker)
        end_of_one_promise(it, held, taker, second)
    assert kills(trees.box) == 0


def test_section_5_oom_lock_is_free_during_the_wait(trees: Trees, btf: Btf) -> None:
    other = make(ROOT / "other", memory_max="8M")
    with waiting(trees, btf) as (it, taker, held):
        oom_once(other)
        wait_until_waiting(taker)
        end_of_one_promise(it, held, taker)
    assert (kills(other), kills(trees.box)) == (1, 0)


def test_section_5_faults_and_cgroups_go_on_during_the_wait(trees: Trees, btf: Btf) -> None:
    with hog(make(ROOT / "other")) as it, waiting(trees, btf) as (link, taker, held):
        take(it, 16)
        assert it.obeyed(DEADLINE_S)
        make(ROOT / "short").path.rmdir()
        wait_until_waiting(taker)
        end_of_one_promise(link, held, taker)


def test_section_5_the_wait_is_memory_pressure(trees: Trees, btf: Btf) -> None:
    def stalled() -> int:
        """Microseconds in which the only process there waited for memory."""
        full = trees.box.value("memory.pressure").splitlines()[1]
        return int(full.rpartition("total=")[2])

    with waiting(trees, btf) as (it, taker, held):
        before = stalled()
        time.sleep(1)
        assert stalled() - before > 500_000
        end_of_one_promise(it, held, taker)
    after = stalled()
    time.sleep(1)
    assert stalled() - after < 500_000
