# SPDX-License-Identifier: Apache-2.0
"""Expectations against made-up outcomes: each kind holds, and each can fail, with its words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from junitparser import JUnitXml

from bpfoom.btf.types import Btf
from bpfoom.cli import inspect
from bpfoom.cli import main as cli
from bpfoom.cli import scenario as command
from bpfoom.errors import InfrastructureError, MissingFeatureError, UsageError
from bpfoom.observe.records import Decision
from bpfoom.observe.result import Document, Process, Run
from bpfoom.policy import record
from bpfoom.scenario import junit, suite
from bpfoom.scenario.library import find_scenarios
from bpfoom.scenario.model import Condition, Expect
from bpfoom.scenario.outcome import Outcome, holds, judge
from bpfoom.scenario.run import Machine
from bpfoom.scenario.suite import Result
from tests.schemas import valid
from tests.unit.tiny_btf import TinyBtf


def decision(**fields: int | str) -> Decision:
    empty = record.decode(record.VERSION.to_bytes(4, "little") + bytes(record.SIZE - 4))
    return Decision({**empty, **fields})


KILL = decision(sequence=1, verdict=1, action=1, victim_comm="large", seen=3, best_score=9)
PROMISE = decision(sequence=2, verdict=1, action=3, flags=record.FLAG_DRY_RUN)
PASS = decision(sequence=3)
LARGE, SMALL = Process(7, "large", "top/a"), Process(8, "small", "top/b")


def run(*decisions: Decision, victims: tuple[Process, ...] = (LARGE,)) -> Run:
    alive = tuple(p for p in (LARGE, SMALL) if p not in victims)
    events = {"top": {"oom": 1, "oom_kill": 1}}
    named = tuple(decision.named(lambda number: f"id:{number}") for decision in decisions)
    return Run("area/name", "p", 1.0, victims, alive, events, ("line",), named)


SEEN = Outcome(
    run=run(KILL, PROMISE, PASS),
    killed=1,
    total={"oom_kill": 1, "oom_group_kill": 0},
    refused=("small",),
    counters={"top": {"kills": 1, "passed": 4}, "top/a": {"kills": 0, "passed": 1}},
    decisions={"top": (KILL, PROMISE), "top/a": (PASS,)},
)


def equal(value: int | str) -> Condition:
    return Condition("==", value)


EXPECTED = Expect(
    victims=("large",),
    survivors=("small",),
    decided_by=("top",),
    kills=equal(1),
    refused=("small",),
    verdict="HANDLED",
    action="kill",
    counters={"top": {"passed": Condition(">=", 4), "kills": equal(1)}},
    memory_events={"top": {"oom": Condition("<", 2)}},
    decisions={"top": {"victim_comm": equal("large"), "seen": Condition(">", 2)}},
)

# What is expected instead -> what is said of it.
WRONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    "another victim": ({"victims": ("small",)}, ["victims: expected small, seen large"]),
    "nobody": ({"victims": ()}, ["victims: expected none, seen large"]),
    "one more": ({"victims": ("large", "small")}, ["victims: expected large, small, seen large"]),
    "no survivor": (
        {"survivors": ("large", "small")},
        ["survivors: expected large, small, seen large killed"],
    ),
    "more kills": ({"kills": Condition(">=", 2)}, ["kills: expected >=2, seen 1"]),
    "nobody refused": ({"refused": ()}, ["refused: expected none, seen small"]),
    "the kernel": ({"decided_by": ("kernel",)}, ["decided_by: expected kernel, seen top"]),
    "a verdict": ({"verdict": "PASS"}, ["verdict: expected PASS, seen HANDLED"]),
    "an action": ({"action": "promise"}, ["action: expected promise, seen kill"]),
    "a counter": (
        {"counters": {"top/a": {"passed": Condition(">", 1)}}},
        ["counters.top/a.passed: expected >1, seen 1"],
    ),
    "a counter of no such name": (
        {"counters": {"top": {"thanks": equal(1)}}},
        ["counters.top.thanks: expected 1, seen nothing of that name"],
    ),
    "an event": (
        {"memory_events": {"top": {"oom_kill": equal(0)}}},
        ["memory_events.top.oom_kill: expected 0, seen 1"],
    ),
    "two things that no one decision has": (
        {"decisions": {"top": {"action": equal("promise"), "victim_comm": equal("large")}}},
        ["decisions.top.action: expected promise, seen kill"],
    ),
    "a word for a number": (
        {"decisions": {"top": {"seen": equal("three")}}},
        ["decisions.top.seen: expected three, seen 3"],
    ),
}


def test_all_as_expected() -> None:
    assert judge(EXPECTED, SEEN) == ()


@pytest.mark.parametrize("what", WRONG)
def test_each_expectation_can_fail(what: str) -> None:
    instead, said = WRONG[what]
    assert [str(f) for f in judge(replace(EXPECTED, **instead), SEEN)] == said


def test_nothing_decided() -> None:
    silent = replace(SEEN, run=run(), decisions={"top": (), "top/a": ()})
    said = [str(failure) for failure in judge(EXPECTED, silent)]
    assert "verdict: expected HANDLED, seen no decision" in said
    assert "decisions.top: expected a decision, seen none" in said


def test_a_second_kill_that_no_process_shows() -> None:
    """More kills counted than processes gone, but where a group's first victim counts twice."""
    twice = replace(SEEN, total={"oom_kill": 2, "oom_group_kill": 0})
    assert [str(f) for f in judge(EXPECTED, twice)] == [
        "memory_events.oom_kill: expected 1, seen 2"
    ]
    assert judge(EXPECTED, replace(SEEN, total={"oom_kill": 2, "oom_group_kill": 1})) == ()


def test_who_decided() -> None:
    nobody = {"top": {"kills": 0}, "top/a": {"kills": 0}}
    raised = decision(sequence=4, verdict=1, action=4)
    kept = replace(SEEN, counters=nobody, killed=0, refused=())
    assert SEEN.deciders == ("top",)
    assert replace(SEEN, killed=2).deciders == ("top", "kernel")
    assert replace(SEEN, counters=nobody).deciders == ("kernel",)
    assert kept.deciders == ("top",)  # a promise, and nobody died
    assert replace(kept, refused=("small",)).deciders == ()
    assert replace(kept, decisions={"top": (PASS,), "top/a": (raised,)}).deciders == ("top/a",)


@pytest.mark.parametrize(
    ("operator", "good", "bad"),
    [("==", 5, 6), (">=", 5, 4), ("<=", 5, 6), (">", 6, 5), ("<", 4, 5)],
)
def test_comparisons(operator: str, good: int, bad: int) -> None:
    assert holds(Condition(operator, 5), good)
    assert not holds(Condition(operator, 5), bad)
    assert not holds(Condition(operator, 5), "5")
    assert not holds(Condition(operator, 5), None)
    assert holds(Condition("==", "yes"), True) and not holds(Condition("==", "yes"), False)


def test_the_decision_is_the_one_that_acted() -> None:
    for decisions in ((KILL, PROMISE, PASS), (PROMISE, PASS), (PASS,)):
        chosen = run(*decisions).decision
        assert chosen is not None and chosen.sequence == decisions[0].sequence
    assert run().decision is None


def test_the_json_form_of_a_run() -> None:
    document = Document("7.3", "tcg", ("top",), (run(), replace(run(), handler=None)))
    runs = document.as_dict()["runs"]
    assert [item["handler"] for item in runs] == ["p", None]
    assert runs[0]["victims"] == [{"pid": 7, "comm": "large", "cgroup": "top/a"}]
    assert runs[0]["decision"] is None


# Results of many


class Replay:
    """A machine that shows outcomes again, or fails as it is told to."""

    def __init__(self, *outcomes: Outcome | Exception) -> None:
        self._left = list(outcomes)

    def play(self, scenario: object) -> Outcome:
        shown = self._left.pop(0)
        if isinstance(shown, Exception):
            raise shown
        return shown


def scenario_of(expect: Expect = EXPECTED) -> Any:
    (leaf,) = find_scenarios(["largest-task/leaf"])
    return replace(leaf, expect=expect)


def results() -> list[Result]:
    """One that passed, one that failed the third time, two that could not be run."""
    other = replace(SEEN, run=run(KILL, victims=(SMALL,)))
    return [
        suite.run_one(scenario_of(), Replay(SEEN, SEEN), 2),
        suite.run_one(scenario_of(), Replay(SEEN, SEEN, other, SEEN), 4),
        suite.run_one(scenario_of(), Replay(UsageError("no room", hint="less"))),
        suite.run_one(scenario_of(), Replay(InfrastructureError("lost"))),
    ]


def document(*which: int) -> dict[str, Any]:
    """As the command makes it, through JSON; of all results, or of some."""
    chosen = [result for number, result in enumerate(results()) if number in which or not which]
    made = {
        "kernel": "7.3",
        "accelerator": "tcg",
        "passed": all(result.passed for result in chosen),
        "splats": [],
        "results": [result.as_dict() for result in chosen],
    }
    return dict(json.loads(json.dumps(made)))


def test_repetitions_end_with_the_first_that_fails() -> None:
    passed, failed, wrong, lost = results()
    assert passed.passed and len(passed.outcomes) == 2
    assert not failed.passed and len(failed.outcomes) == 3
    assert str(failed.failures[0]) == "victims: expected large, seen small"
    assert not wrong.passed and wrong.outcomes == ()
    assert isinstance(lost.error, InfrastructureError)


def test_the_document_is_what_the_schema_says() -> None:
    valid("scenario-run", document())


def test_all_runs_are_one_result() -> None:
    made = suite.result_of(document())
    assert valid("result", made.as_dict())["accelerator"] == "tcg"
    assert len(made.runs) == 2 + 3
    assert made.tree[0] == "largest-task/leaf:" and made.tree[1].startswith("    box")
    assert len(made.tree) == 4 * (1 + len(document()["results"][0]["tree"]))


def test_exit_codes() -> None:
    assert command._status(document(0)) == 0
    assert command._status(document(0, 1)) == 1
    assert command._status(document(0, 2)) == 1
    assert command._status(document(0, 3)) == 69
    assert command._status({**document(0), "splats": ["WARNING"]}) == 69


def test_the_table_and_what_did_not_hold(capsys: pytest.CaptureFixture[str]) -> None:
    command._print({**document(), "splats": ["WARNING: at mm/oom_kill.c"]})
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert "kernel 7.3, accelerator tcg" in out
    row = ["largest-task/leaf", "largest-task", "large", "top", "HANDLED", "PASS", "x2"]
    assert row in lines
    assert [*row[:2], "small", "top", "HANDLED", "FAIL", "x3"] in lines
    assert [*row[:2], "-", "-", "-", "FAIL"] in lines
    assert "  victims: expected large, seen small" in out.splitlines()
    assert "  UsageError: no room" in out and "  hint: less" in out
    assert "kernel splat: WARNING: at mm/oom_kill.c" in out


def test_junit(tmp_path: Path) -> None:
    file = tmp_path / "results.xml"
    junit.write({**document(), "splats": ["WARNING"]}, file)
    (found,) = JUnitXml.fromfile(str(file))
    assert (found.tests, found.failures, found.errors) == (5, 2, 2)
    passed, failed, wrong, lost, splat = found
    assert (passed.classname, passed.name, passed.is_passed) == ("largest-task", "leaf", True)
    assert "victims: expected large, seen small" in failed.result[0].message
    assert (wrong.result[0].type, lost.result[0].message) == ("UsageError", "lost")
    assert splat.result[0].message == "WARNING"


def test_a_case_that_misses_several_expectations_fails_once(tmp_path: Path) -> None:
    made = document(1)
    made["results"][0]["failures"].append({"key": "kills", "expected": "1", "seen": "2"})
    junit.write(made, tmp_path / "results.xml")
    (found,) = JUnitXml.fromfile(str(tmp_path / "results.xml"))
    assert (found.tests, found.failures) == (1, 1)
    (case,) = found
    (failure,) = case.result
    assert failure.text.splitlines()[-1] == "kills: expected 1, seen 2"
    assert "victims: expected large, seen small" in failure.message


def test_where_results_cannot_go_is_said_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_in_guest", lambda *_: pytest.fail("it ran"))
    for option in ("--junit", "--result"):
        argv = ["scenario", "run", "largest-task/leaf", option, str(tmp_path / "no" / "it")]
        with pytest.raises(SystemExit) as ended:
            cli.main(argv)
        assert ended.value.code == 1
        assert f"{tmp_path}/no/it: No such file or directory" in capsys.readouterr().err
    command._check_place(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_a_kernel_without_handlers_is_named_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = TinyBtf()
    other.int("int", 4)
    monkeypatch.setattr(Btf, "from_file", lambda: Btf(other.blob(), "this"))
    with pytest.raises(MissingFeatureError, match="this kernel cannot run OOM handlers"):
        Machine().__enter__()


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["scenario", "list", "largest-task", "--json"])
    assert ended.value.code == 0
    listed = valid("scenarios", json.loads(capsys.readouterr().out))
    assert {one["name"] for one in listed} >= {"largest-task/leaf", "largest-task/declines"}
    with pytest.raises(SystemExit):
        cli.main(["scenario", "list", "largest-task/leaf"])
    titles, row = capsys.readouterr().out.splitlines()
    assert titles.split() == ["SCENARIO", "POLICIES", "SUMMARY"]
    assert row.split()[:2] == ["largest-task/leaf", "largest-task"]


def test_a_file_that_is_wrong_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "it.toml"
    file.write_text('summary = "x"\ncolour = "red"\n[expect]\nvictims = []\ndecided_by = []\n')
    with pytest.raises(SystemExit) as ended:
        cli.main(["scenario", "run", str(file)])
    assert ended.value.code == 2
    assert f"{file}: colour: no such key" in capsys.readouterr().err


def test_a_decision_before_the_handler_was_attached_is_not_its_own() -> None:
    for since, own in ((KILL.time - 9, True), (KILL.time + 9, False), (None, True)):
        handler: Any = SimpleNamespace(attached_at=since)
        assert inspect._is_own(KILL, handler) == own
