# SPDX-License-Identifier: Apache-2.0
"""``explain``: ranked candidates, reasons, the chain and the kernel's own choice; nothing changes.

top ─┬─ small  ── hog 8
     ├─ large  ── hog 24, hog 2 (oom_score_adj -1000)
     └─ middle ── hog 16 (oom_score_adj 900)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bpfoom.handler import pins
from bpfoom.observe import cgroupfs
from bpfoom.observe.cgroupfs import Cgroup
from bpfoom.observe.records import read_history
from tests.guest.byhand import cli, cli_json, remove_tree
from tests.guest.memory import hog, kills, make
from tests.schemas import valid

# Compiling takes minutes on a debug kernel.
pytestmark = pytest.mark.flavours("plain")

MIB = 1 << 20


@dataclass(frozen=True)
class Tree:
    top: Cgroup
    small: Cgroup
    large: Cgroup
    middle: Cgroup
    pids: dict[str, int]


@pytest.fixture(scope="module")
def tree() -> Iterator[Tree]:
    path = cgroupfs.mount().path / "explained"
    remove_tree(path)
    with ExitStack() as stack:
        stack.callback(remove_tree, path)
        top = make(path, parent=True)
        places = {name: make(path / name) for name in ("small", "large", "middle")}
        pids = {
            "small": stack.enter_context(hog(places["small"], 8)).pid,
            "large": stack.enter_context(hog(places["large"], 24)).pid,
            "spared": stack.enter_context(hog(places["large"], 2, adj=-1000)).pid,
            "middle": stack.enter_context(hog(places["middle"], 16, adj=900)).pid,
        }
        yield Tree(top, **places, pids=pids)


@pytest.fixture
def attach(tree: Tree) -> Iterator[Any]:
    taken: list[str] = []

    def do(cgroup: Cgroup, policy: str, *more: str) -> None:
        code, _, err = cli("attach", "--cgroup", cgroup.name, "--policy", policy, *more)
        assert code == 0, err
        taken.append(cgroup.name)

    yield do
    for name in taken:
        cli("detach", "--cgroup", name)


def explained(cgroup: Cgroup, *more: str) -> Any:
    return valid("explain", cli_json("explain", "--cgroup", cgroup.name, *more))


def who(link: dict[str, Any]) -> list[tuple[int, str]]:
    return [(c["pid"], c["reason"]) for c in link["candidates"]]


def test_without_a_handler_the_kernel_chooses(tree: Tree) -> None:
    found = explained(tree.top)
    assert (found["outcome"], found["chain"], found["victim_pid"]) == ("kernel", [], 0)
    # Who has the higher oom_score_adj, although it is not the largest.
    assert found["kernel_pid"] == tree.pids["middle"]
    assert found["kernel_comm"] == "hog"


def test_processes_are_ranked_and_skips_have_reasons(tree: Tree, attach: Any) -> None:
    attach(tree.top, "largest-task")
    before = read_history(pins.find()), kills(tree.top)
    found = explained(tree.top)
    (link,) = found["chain"]
    pids = tree.pids
    assert who(link) == [
        (pids["large"], "none"),
        (pids["middle"], "none"),
        (pids["small"], "none"),
        (pids["spared"], "unkillable"),
    ]
    scores = [candidate["score"] for candidate in link["candidates"]]
    # More than what each was told to take: its Python came before.
    assert scores[0] > 24 * MIB
    assert scores[0] > scores[1] > scores[2] > 8 * MIB
    assert (found["outcome"], found["victim_pid"]) == ("handler", pids["large"])
    assert found["kernel_pid"] == pids["middle"]
    decision = link["decision"]
    assert (decision["verdict"], decision["action"]) == ("HANDLED", "kill")
    assert (decision["seen"], decision["skipped_unkillable"]) == (4, 1)
    assert decision["victim_pid"] == pids["large"]
    assert decision["runner_up_score"] == scores[1]
    assert (read_history(pins.find()), kills(tree.top)) == before
    shown = cli_json("show", "--cgroup", tree.top.name)
    assert shown["counters"]["invocations"] == shown["counters"]["kills"] == 0


def test_asking_again_does_not_add_up(tree: Tree, attach: Any) -> None:
    attach(tree.top, "largest-task")
    first, second = explained(tree.top), explained(tree.top)
    assert who(first["chain"][0]) == who(second["chain"][0])
    assert len(second["chain"][0]["candidates"]) == 4


def test_cgroups_are_ranked(tree: Tree, attach: Any) -> None:
    attach(tree.top, "largest-cgroup")
    (link,) = explained(tree.top)["chain"]
    assert [c["cgroup"] for c in link["candidates"]] == [
        tree.large.name,
        tree.middle.name,
        tree.small.name,
    ]
    assert [c["pid"] for c in link["candidates"]] == [0, 0, 0]


def test_the_chain_is_asked_until_one_acts(tree: Tree, attach: Any) -> None:
    attach(tree.large, "monitor")
    attach(tree.top, "largest-cgroup")
    found = explained(tree.large)
    inner, outer = found["chain"]
    assert [inner["policy"], outer["policy"]] == ["monitor", "largest-cgroup"]
    assert (inner["decision"]["verdict"], inner["decision"]["action"]) == ("PASS", "would-kill")
    assert outer["decision"]["verdict"] == "HANDLED"
    assert found["cgroup_id"] == tree.top.id
    # The scope is the cgroup out of memory, for the outer one too.
    assert {c["cgroup"] for link in found["chain"] for c in link["candidates"]} == {tree.large.name}


def test_an_outer_handler_is_not_asked_when_an_inner_one_acts(tree: Tree, attach: Any) -> None:
    attach(tree.large, "largest-task")
    attach(tree.top, "largest-cgroup")
    inner, outer = explained(tree.large)["chain"]
    assert inner["decision"]["action"] == "kill"
    assert (outer["decision"], outer["candidates"]) == (None, [])


def test_marks_tiers_and_preferences_are_shown(tree: Tree, attach: Any) -> None:
    attach(tree.top, "protect", "--set", "inner=priority", "--set", "inner.unit=task")
    for place, mark in {
        tree.large: "omit",
        tree.middle: "avoid",
        tree.small: "priority:-7",
    }.items():
        code, _, err = cli("marks", "set", f"{place.name}={mark}")
        assert code == 0, err
    try:
        (link,) = explained(tree.top)["chain"]
    finally:
        assert cli("marks", "clear", "--all")[0] == 0
    pids = tree.pids
    assert who(link) == [
        (pids["small"], "none"),
        (pids["middle"], "none"),
        (pids["large"], "protected"),
        (pids["spared"], "unkillable"),
    ]
    small, middle, *_ = link["candidates"]
    assert (small["preference"], middle["preference"]) == ("normal", "avoid")
    assert small["tier"] > middle["tier"]


def test_a_wrapper_that_acts_first(tree: Tree, attach: Any) -> None:
    attach(tree.large, "raise-limit", "--set", "cap=200M", "--set", "step=16M")
    limit = Path(tree.large.path, "memory.max")
    limit.write_text(str(64 * MIB))
    try:
        found = explained(tree.large)
        assert (found["outcome"], found["raised_max"]) == ("handler", 80 * MIB)
        assert found["chain"][0]["decision"]["action"] == "raise"
        assert limit.read_text().strip() == str(64 * MIB)
    finally:
        limit.write_text("max")


def test_for_people(tree: Tree, attach: Any) -> None:
    attach(tree.top, "largest-task")
    code, out, err = cli("explain", "--cgroup", tree.top.name, "--limit", "2")
    assert code == 0, err
    lines = out.splitlines()
    pids = tree.pids
    assert lines[0].startswith("/explained, order 0: the handler of /explained would act: kill 1")
    assert lines[1] == f"the kernel's own killer: hog[{pids['middle']}]"
    asked = f"largest-task on /explained: HANDLED, kill hog[{pids['large']}], 4 candidates"
    assert f"handler 1: {asked}" in out
    (row,) = [line for line in lines if f"hog[{pids['large']}]" in line and "MIB" not in line][-1:]
    assert row.split()[0] == "1"
    assert lines[-1] == "(2 more: --limit, --json)"


def test_an_order_that_there_is_not(tree: Tree) -> None:
    code, _, err = cli("explain", "--cgroup", tree.top.name, "--order", "30")
    assert code == 1
    assert "EINVAL" in err
