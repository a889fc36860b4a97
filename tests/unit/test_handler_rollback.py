# SPDX-License-Identifier: Apache-2.0
"""What decisions come to while code is on trial, and who may watch."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpfoom.handler import rollback
from bpfoom.handler.pins import Pins
from bpfoom.handler.rollback import Outcome, Progress, Trial

DRY, ASKED, IN_FLIGHT, INCOMPLETE = 1, 2, 4, 8
PASS, HANDLED, KERNEL = range(3)
NONE, KILL, KILL_CGROUP, PROMISE, RAISE = range(5)
WOULD = 16


def decision(
    verdict: int = HANDLED, action: int = KILL, result: int = 0, flags: int = 0
) -> dict[str, Any]:
    return {"verdict": verdict, "action": action, "kfunc_result": result, "flags": flags}


@pytest.mark.parametrize(
    ("seen", "acted"),
    [
        (decision(), True),
        (decision(action=KILL_CGROUP, result=7), True),
        (decision(action=RAISE), True),
        # It found nobody, or leaves it to others.
        (decision(PASS, NONE), False),
        (decision(KERNEL, NONE), False),
        (decision(PASS, NONE, flags=INCOMPLETE), False),
        # It tried, and the kernel refused.
        (decision(PASS, KILL, -3), False),
        (decision(PASS, PROMISE, -16), False),
        # It says that it has handled it, and has done nothing.
        (decision(HANDLED, NONE), False),
        (decision(-7, KILL), False),
        # It says nothing about the code.
        (decision(HANDLED, PROMISE), None),
        (decision(HANDLED, PROMISE, flags=IN_FLIGHT), None),
        (decision(PASS, PROMISE, -16, flags=IN_FLIGHT), None),
        # A dry run always passes.
        (decision(PASS, WOULD + KILL, flags=DRY), True),
        (decision(PASS, WOULD + PROMISE, flags=DRY), None),
        (decision(PASS, NONE, flags=DRY), False),
    ],
)
def test_a_decision(seen: dict[str, Any], acted: bool | None) -> None:
    assert rollback.judged(seen) is acted


A, D, N = decision(), decision(PASS, NONE), decision(HANDLED, PROMISE)


@pytest.mark.parametrize(
    ("limit", "seen", "acted", "running", "outcome"),
    [
        (3, [], 0, 0, Outcome.UNSETTLED),
        (3, [A, A], 2, 0, Outcome.UNSETTLED),
        (3, [A, A, A], 3, 0, Outcome.SETTLED),
        (3, [D, D], 0, 2, Outcome.UNSETTLED),
        (3, [D, D, D], 0, 3, Outcome.ROLLED_BACK),
        # Running: an OOM that it acted on begins the count anew.
        (3, [D, D, A, D, D], 1, 2, Outcome.UNSETTLED),
        # In all: it has to act three times, but not three times running.
        (3, [A, D, D, A, D, D, A], 3, 0, Outcome.SETTLED),
        # What says nothing is passed over.
        (3, [D, N, D, N, N, D], 0, 3, Outcome.ROLLED_BACK),
        # What comes after the end does not count.
        (2, [D, D, A, A], 0, 2, Outcome.ROLLED_BACK),
        (2, [A, A, D, D], 2, 0, Outcome.SETTLED),
        (1, [N, A], 1, 0, Outcome.SETTLED),
        (1, [D], 0, 1, Outcome.ROLLED_BACK),
    ],
)
def test_decisions_one_after_another(
    limit: int, seen: list[dict[str, Any]], acted: int, running: int, outcome: Outcome
) -> None:
    came_to = rollback.step(Progress(), limit, seen)
    assert came_to == Progress(acted, running)
    assert came_to.outcome(limit) is outcome


@given(st.lists(st.sampled_from([A, D, N])), st.integers(1, 5), st.integers(0, 20))
def test_it_does_not_matter_how_often_somebody_looks(
    seen: list[dict[str, Any]], limit: int, cut: int
) -> None:
    halfway = rollback.step(Progress(), limit, seen[:cut])
    assert rollback.step(halfway, limit, seen[cut:]) == rollback.step(Progress(), limit, seen)


@given(st.lists(st.booleans(), min_size=1), st.integers(1, 5))
def test_every_trial_ends(pattern: list[bool], limit: int) -> None:
    """Whatever the code does again and again, as long as it says something."""
    seen = [A if acted else D for acted in pattern * 5 * limit]
    assert rollback.step(Progress(), limit, seen).outcome(limit) is not Outcome.UNSETTLED


@pytest.mark.parametrize(
    ("fields", "ours"),
    [
        ({}, True),
        ({"handler_cgroup_id": 8}, False),
        ({"policy_hash": 0x12}, False),
        ({"sequence": 100}, False),
    ],
)
def test_only_decisions_of_the_code_on_trial_count(fields: dict[str, int], ours: bool) -> None:
    trial = Trial(7, 3, 100, 0x11, 2, 1, "before")
    seen = {"handler_cgroup_id": 7, "policy_hash": 0x11, "sequence": 101, **fields}
    assert trial.concerns(seen) is ours


def _watch(base: Path, begun: multiprocessing.synchronize.Event) -> None:
    with rollback.watching(7, Pins(base)) as mine, rollback.being_agent(Pins(base)) as agent:
        assert mine and agent
        begun.set()
        multiprocessing.Event().wait()


def test_one_watches_and_is_missed_when_it_dies(tmp_path: Path) -> None:
    where = Pins(tmp_path)
    where.directory(7).mkdir()
    assert not rollback.agent_runs(where)
    context = multiprocessing.get_context("spawn")
    begun = context.Event()
    watcher = context.Process(target=_watch, args=(tmp_path, begun))
    watcher.start()
    assert begun.wait(60)
    assert rollback.is_watched(7, where) and rollback.agent_runs(where)
    with rollback.watching(7, where) as mine, rollback.being_agent(where) as agent:
        assert not mine and not agent
    watcher.kill()
    watcher.join()
    assert not rollback.is_watched(7, where) and not rollback.agent_runs(where)
    with rollback.watching(7, where) as mine:
        assert mine


def _ask(base: Path, asked: multiprocessing.synchronize.Event) -> None:
    while True:
        assert not rollback.is_watched(7, Pins(base)) and not rollback.agent_runs(Pins(base))
        asked.set()


def test_who_asks_is_in_nobodys_way(tmp_path: Path) -> None:
    where = Pins(tmp_path)
    for directory in (where.directory(7), tmp_path / "agent"):
        directory.mkdir()
    context = multiprocessing.get_context("fork")
    begun = [context.Event() for _ in range(2)]
    asking = [context.Process(target=_ask, args=(tmp_path, asked)) for asked in begun]
    for one in asking:
        one.start()
    assert all(asked.wait(60) for asked in begun)
    for _ in range(200):
        assert not rollback.agent_runs(where)
    assert all(one.is_alive() for one in asking), "one took the other for a watcher"
    for one in asking:
        one.kill()
        one.join()


def test_what_is_detached_is_not_watched(tmp_path: Path) -> None:
    assert not rollback.is_watched(7, Pins(tmp_path))
    with rollback.watching(7, Pins(tmp_path)) as mine:
        assert not mine
