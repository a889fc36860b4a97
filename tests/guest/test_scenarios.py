# SPDX-License-Identifier: Apache-2.0
"""Every scenario of the library, and that an expectation which is wrong is told.

One boot, one nursery of workloads, and each policy compiled once serve them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bpfoom.errors import UsageError
from bpfoom.scenario import suite
from bpfoom.scenario.library import find_scenarios, shipped
from bpfoom.scenario.model import Condition, Scenario
from bpfoom.scenario.run import Machine
from bpfoom.scenario.stage import TOP, Stage
from bpfoom.scenario.workers import Nursery

# Compiling takes minutes on a debug kernel.
pytestmark = pytest.mark.flavours("plain")

CGROUPS = Path("/sys/fs/cgroup")


@pytest.fixture(scope="module")
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """Compiles in the background what the tests that were picked will attach."""
    picked = [getattr(item, "callspec", None) for item in request.session.items]
    with Machine(system_wide=True) as running:
        running.policies.want(p.params["scenario"] for p in picked if p and "scenario" in p.params)
        yield running


def cases() -> list[object]:
    """The machine runs out of memory sooner where there is less."""
    small = pytest.mark.guest_memory(512)
    return [
        pytest.param(it, id=it.name, marks=[small] if "anon" in it.all_of_it else [])
        for it in shipped()
    ]


@pytest.mark.parametrize("scenario", cases())
def test_scenario(machine: Machine, scenario: Scenario) -> None:
    result = suite.run_one(scenario, machine)
    if result.error is not None:
        raise result.error
    decisions = [d.as_dict() for d in result.outcomes[-1].run.decisions]
    assert [str(failure) for failure in result.failures] == [], decisions
    assert not (CGROUPS / TOP).exists()


def test_wrong_expectations_are_told(machine: Machine) -> None:
    (it,) = find_scenarios(["largest-task/leaf"])
    wrong = replace(
        it.expect,
        victims=("small",),
        survivors=("large",),
        kills=Condition(">=", 2),
        refused=("small",),
        decided_by=("kernel",),
        verdict="PASS",
        action="promise",
        counters={"box": {"kills": Condition("==", 0)}},
        memory_events={"box": {"oom_kill": Condition(">", 1)}},
        decisions={"box": {"victim_comm": Condition("==", "small")}},
    )
    result = suite.run_one(replace(it, expect=wrong), machine)
    assert [str(failure) for failure in result.failures] == [
        "victims: expected small, seen large",
        "survivors: expected large, seen large killed",
        "kills: expected >=2, seen 1",
        "refused: expected small, seen none",
        "decided_by: expected kernel, seen box",
        "verdict: expected PASS, seen HANDLED",
        "action: expected promise, seen kill",
        "counters.box.kills: expected 0, seen 1",
        "memory_events.box.oom_kill: expected >1, seen 1",
        "decisions.box.victim_comm: expected small, seen large",
    ]


def test_another_policy_instead(machine: Machine) -> None:
    (it,) = find_scenarios(["largest-task/leaf"])
    result = suite.run_one(it.with_policy("largest-cgroup"), machine)
    assert result.outcomes[0].victims == ("large", "medium", "small")
    assert not result.passed


def test_a_tree_that_does_not_fit_leaves_nothing_behind(machine: Machine) -> None:
    (it,) = find_scenarios(["largest-task/leaf"])
    (box,) = it.cgroups
    small = replace(it, cgroups=(replace(box, files={"memory.max": str(16 << 20)}),))
    result = suite.run_one(small, machine)
    assert isinstance(result.error, UsageError)
    assert "box is filled with" in result.error.message
    assert not (CGROUPS / TOP).exists()


def test_what_a_killed_run_left_behind_is_removed(machine: Machine) -> None:
    left = CGROUPS / TOP / "box" / "inner"
    left.mkdir(parents=True)
    (it,) = find_scenarios(["largest-task/leaf"])
    assert suite.run_one(it, machine).passed


def test_one_run_at_a_time(machine: Machine) -> None:
    (it,) = find_scenarios(["largest-task/leaf"])
    with Nursery() as nursery, Stage(it, nursery):
        result = suite.run_one(it, machine)
        assert (CGROUPS / TOP / "box").exists()
    assert result.error is not None
    assert result.error.message == "another run of scenarios is under way"


def test_the_whole_system_only_where_it_is_allowed() -> None:
    (it,) = find_scenarios(["across/leaf-and-root"])
    with Machine() as careful:
        result = suite.run_one(it, careful)
    assert isinstance(result.error, UsageError)
    assert "--system-wide" in result.error.hint
