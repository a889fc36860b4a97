# SPDX-License-Identifier: Apache-2.0
"""bpf_oom_dry_run(): what would be done is told, and nothing of it is done."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from bpfoom.btf.types import Btf
from bpfoom.handler import syscalls
from bpfoom.handler.ask import Answer
from bpfoom.observe import cgroupfs
from bpfoom.observe.cgroupfs import Cgroup
from bpfoom.scenario.model import MIB
from tests.guest.asm import (
    HANDLED,
    KERNEL,
    PASS,
    Asm,
    Attached,
    attached,
    loaded_program,
    of_handler,
    seen,
)
from tests.guest.byhand import DEADLINE_S, ROOT, Trees, wait_for
from tests.guest.callers import context, declare, dry_run, run, trial
from tests.guest.handlers import FIRST, cgroup_killer, process_killer, promiser, raiser
from tests.guest.memory import (
    give_back,
    held_at_exit,
    hog,
    kills,
    make,
    pool,
    take,
    wait_until_waiting,
)

COUNTERS = "invocations handled passed kernel unproven invalid promised promises_broken kills"


def nobody(**fields: object) -> Answer:
    """The result of an OOM that no handler is asked about, but for ``fields``."""
    untouched: dict[str, object] = {
        **dict.fromkeys(("cgroup_id", "victim_memcg_id", "raised_max", "verdict"), 0),
        **dict.fromkeys(("victim_pid", "nr_kills", "promise_ms", "kernel_pid"), 0),
        **{"outcome": "kernel", "handler_name": ""},
    }
    return Answer(**{**untouched, **fields})  # type: ignore[arg-type]


def by_hand(cgroup: Cgroup, **fields: object) -> Answer:
    """The result of an OOM that the cgroup's handler has answered."""
    return nobody(cgroup_id=cgroup.id, handler_name="by-hand", **fields)


@contextmanager
def nothing_done(code: Asm, cgroup: Cgroup, btf: Btf) -> Iterator[Attached]:
    """With a handler there; nothing that it would have done may be seen at the end of the block."""
    before = cgroup.value("memory.max"), cgroup.value("memory.events")
    with attached(code, cgroup, btf) as it:
        yield it
        counters = it.counters()
    assert {counters[name] for name in [*COUNTERS.split(), "slow", "last_ns", "max_ns"]} == {0}
    assert (cgroup.value("memory.max"), cgroup.value("memory.events")) == before


def test_section_6_with_nobody_to_ask(trees: Trees, btf: Btf) -> None:
    assert dry_run(btf, trees.box) == nobody()
    with hog(trees.box, 4), hog(trees.box, 12) as large:
        assert dry_run(btf, trees.box) == nobody(kernel_pid=large.pid)
        assert not large.ended()


def test_section_6_a_kill_is_told(trees: Trees, btf: Btf) -> None:
    """And the kernel's choice is the one that it makes afterwards."""
    with hog(trees.box, 4) as small, hog(trees.box, 12) as large:
        with nothing_done(process_killer(small.pid), trees.box, btf):
            assert dry_run(btf, trees.box) == by_hand(
                trees.box,
                outcome="handler",
                verdict=HANDLED,
                victim_pid=small.pid,
                victim_memcg_id=trees.box.id,
                nr_kills=1,
                kernel_pid=large.pid,
            )
        assert not small.ended() and not large.ended()
        assert declare(btf, trees.box) == 1
        wait_for(large.ended, "the kernel's choice to die")
        assert not small.ended()


def test_section_6_a_kill_of_a_group_is_told(trees: Trees, btf: Btf) -> None:
    (trees.box.path / "memory.oom.group").write_text("1")
    with hog(trees.box) as one, hog(trees.box, 8) as two, hog(trees.box, adj=-1000):
        with nothing_done(process_killer(one.pid, PASS), trees.box, btf):
            assert dry_run(btf, trees.box) == by_hand(
                trees.box,
                outcome="handler",
                verdict=PASS,
                victim_pid=one.pid,
                victim_memcg_id=trees.box.id,
                nr_kills=2,
                kernel_pid=two.pid,
            )
        assert not one.ended() and not two.ended()


def test_section_6_a_kill_of_a_cgroup_is_told(trees: Trees, btf: Btf) -> None:
    with hog(trees.box, 8) as first, hog(trees.box) as second, hog(trees.box, adj=-1000):
        with nothing_done(cgroup_killer(trees.box, btf), trees.box, btf):
            found = dry_run(btf, trees.box)
        assert found.victim_pid in (first.pid, second.pid)
        assert found == by_hand(
            trees.box,
            outcome="handler",
            verdict=HANDLED,
            victim_pid=found.victim_pid,
            victim_memcg_id=trees.box.id,
            nr_kills=2,
            kernel_pid=first.pid,
        )
        assert not first.ended() and not second.ended()


def test_section_6_what_a_kill_would_be_refused_for(trees: Trees, btf: Btf) -> None:
    with hog(make(ROOT / "other")) as outside, hog(trees.box) as inside:
        with nothing_done(process_killer(outside.pid), trees.box, btf):
            assert dry_run(btf, trees.box) == by_hand(
                trees.box, verdict=HANDLED, kernel_pid=inside.pid
            )
        assert seen()[FIRST] == -errno.EXDEV


def test_section_6_a_promise_is_told(trees: Trees, btf: Btf) -> None:
    """As often as one likes: nothing is granted."""
    with nothing_done(promiser(5000), trees.box, btf):
        for _ in range(5):
            assert dry_run(btf, trees.box) == by_hand(
                trees.box, outcome="promise", verdict=HANDLED, promise_ms=5000
            )


def test_section_6_a_promise_without_handled_is_none(trees: Trees, btf: Btf) -> None:
    with nothing_done(promiser(5000, PASS), trees.box, btf):
        assert dry_run(btf, trees.box) == by_hand(trees.box)


def test_section_6_a_wait_that_would_be_joined(trees: Trees, btf: Btf) -> None:
    """The handler would not be asked, and so it is not named."""
    with (
        attached(promiser(5000), trees.box, btf) as it,
        pool(trees.box, 24) as held,
        hog(trees.box) as taker,
    ):
        take(taker, 16)
        wait_until_waiting(taker)
        found = dry_run(btf, trees.box)
        assert 0 < found.promise_ms <= 5000
        assert found == nobody(outcome="join", promise_ms=found.promise_ms, kernel_pid=taker.pid)
        give_back(held, 16, taker)
        assert taker.obeyed(DEADLINE_S)
        assert it.counters()["invocations"] == 1


@pytest.mark.parametrize(
    ("limit", "outcome", "told"),
    [
        (64 * MIB + 4095, "handler", 64 * MIB),
        (48 * MIB, "handler", 48 * MIB),
        # No raise
        (32 * MIB, "kernel", 0),
    ],
)
def test_section_6_a_raised_limit_is_told(
    limit: int, outcome: str, told: int, trees: Trees, btf: Btf
) -> None:
    with nothing_done(raiser(limit, btf), trees.box, btf):
        assert dry_run(btf, trees.box) == by_hand(
            trees.box, outcome=outcome, verdict=HANDLED, raised_max=told
        )


def test_section_6_the_order_counts_for_room(trees: Trees, btf: Btf) -> None:
    """4 MiB more hold a page of the highest order, one page more does not."""
    with pool(trees.box, 30):
        with nothing_done(raiser(32 * MIB + 4096, btf), trees.box, btf):
            assert dry_run(btf, trees.box).outcome == "handler"
            assert dry_run(btf, trees.box, 10).outcome == "kernel"
        with nothing_done(raiser(36 * MIB, btf), trees.box, btf):
            assert dry_run(btf, trees.box, 10).outcome == "handler"


@pytest.mark.parametrize(("verdict", "asked"), [(KERNEL, "box"), (PASS, "parent"), (77, "parent")])
def test_section_6_who_was_asked_last(verdict: int, asked: str, trees: Trees, btf: Btf) -> None:
    parent = cgroupfs.resolve(str(ROOT))
    with (
        nothing_done(of_handler().exit(PASS), parent, btf),
        nothing_done(of_handler().exit(verdict), trees.box, btf),
    ):
        found = dry_run(btf, trees.box)
        if asked == "box":
            assert found == by_hand(trees.box, verdict=KERNEL)
        else:
            assert found == by_hand(parent, verdict=PASS)


def test_section_6_victims_that_would_be_waited_for(trees: Trees, btf: Btf) -> None:
    with hog(trees.box, 8) as victim, held_at_exit(victim.pid), ExitStack() as stack:
        assert declare(btf, trees.box) == 1
        # The kernel sees it, too, for as long as it is not exiting.
        assert dry_run(btf, trees.box) == nobody(kernel_pid=-1)
        stack.enter_context(nothing_done(of_handler().exit(PASS), trees.box, btf))
        assert dry_run(btf, trees.box) == by_hand(trees.box, outcome="victims", kernel_pid=-1)
    assert kills(trees.box) == 1


@pytest.mark.parametrize("by_name", [True, False], ids=["root", "NULL"])
def test_section_6_a_dry_run_of_the_whole_system(by_name: bool, trees: Trees, btf: Btf) -> None:
    root = cgroupfs.resolve("/")
    with hog(trees.box, 8, adj=1000) as likely, attached(promiser(5000), root, btf) as it:
        assert dry_run(btf, root if by_name else None) == by_hand(
            root, outcome="promise", verdict=HANDLED, promise_ms=1000, kernel_pid=likely.pid
        )
        assert it.counters()["invocations"] == 0


@pytest.mark.parametrize("order", [-1, 11])
def test_section_6_a_dry_run_of_no_such_order(order: int, trees: Trees, btf: Btf) -> None:
    with loaded_program(trial(btf), btf) as program:
        assert run(program, context(trees.box, order) + bytes(112)) == -errno.EINVAL


@pytest.mark.parametrize("size", [8, 24, 112, 160])
def test_section_6_results_of_other_sizes(size: int, trees: Trees, btf: Btf) -> None:
    """Shorter ones are cut, longer ones filled with zeroes, and nothing else is written."""
    given = context(trees.box)
    with (
        hog(trees.box, 4) as it,
        attached(process_killer(it.pid), trees.box, btf),
        loaded_program(trial(btf, 112), btf) as usual,
        loaded_program(trial(btf, size), btf) as other,
    ):
        _, whole = syscalls.prog_run(usual, given + bytes(112))
        code, found = syscalls.prog_run(other, given + b"\xaa" * 200)
    assert code == 0
    whole, found = whole[len(given) :], found[len(given) :]
    assert found == whole[:size].ljust(size, b"\0") + b"\xaa" * (200 - size)
    assert whole[:8] == trees.box.id.to_bytes(8, "little")
