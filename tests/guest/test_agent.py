# SPDX-License-Identifier: Apache-2.0
"""What a file says, made so by apply and kept so by the agent, on real cgroups and OOMs."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpfoom.btf.types import Btf
from bpfoom.handler import marks, pins, syscalls
from bpfoom.handler.attach import link_to_cgroup
from bpfoom.handler.load import load
from bpfoom.observe import cgroupfs
from tests import deep, objects
from tests.guest.byhand import (
    DEADLINE_S,
    cli,
    cli_json,
    handler_object,
    oom_once,
    returns,
    wait_for,
)
from tests.guest.orchard import (
    NAME,
    ROOT,
    Running,
    attached,
    entry,
    links,
    orchard,
    running,
    wait_until_followed,
    write_objects,
)
from tests.schemas import valid

# Commands in Python: minutes on a debug kernel, which would check nothing more.
pytestmark = [pytest.mark.flavours("plain"), pytest.mark.usefixtures("tree")]


@pytest.fixture
def tree() -> Iterator[None]:
    with orchard():
        yield


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the configuration is, beside two objects."""
    write_objects(tmp_path)
    return tmp_path / "c.toml"


def apply(file: Path, *words: str, code: int = 0) -> dict[str, Any]:
    seen, out, err = cli("apply", "-f", str(file), "--json", *words)
    assert seen == code, err
    document = valid("apply", json.loads(out))
    assert isinstance(document, dict)
    return document


def actions(document: dict[str, Any]) -> dict[str, str]:
    steps = document["steps"]
    return {step["cgroup"].removeprefix(f"{NAME}/"): step["action"] for step in steps}


def errors(document: dict[str, Any]) -> list[str]:
    return [step["error"]["message"] for step in document["steps"] if step["error"]]


# Apply


def test_a_plan_changes_nothing_and_applying_twice_changes_nothing_more(file: Path) -> None:
    file.write_text(entry("shop/*", "tunable.o") + entry("shop/none", "tunable.o"))
    before = links()
    planned = apply(file, "--plan")
    assert actions(planned) == {"shop/api": "attach", "shop/batch": "attach"}
    assert {step["outcome"] for step in planned["steps"]} == {None}
    assert links() == before and attached() == {}
    assert {step["outcome"] for step in apply(file)["steps"]} == {"done"}
    made = links()
    assert attached() == {"shop/api": "tunable", "shop/batch": "tunable"}
    again = apply(file)
    assert (again["steps"], again["as_wanted"]) == ([], 2)
    assert again["idle"] == [f"{NAME}/shop/none"] and again["config"] == str(file)
    assert links() == made
    text = cli("apply", "-f", str(file))[1]
    assert text.splitlines() == [f"no cgroup is {NAME}/shop/none now", "2 as wanted", "no change"]


def test_what_changes_in_the_file_changes_and_nothing_else(file: Path) -> None:
    both = entry("shop/*", "tunable.o")
    file.write_text(both)
    apply(file)
    made = links()
    file.write_text(both + entry("shop/api", "tunable.o", set='{ min = "8M" }'))
    document = apply(file)
    assert actions(document) == {"shop/api": "set"} and document["as_wanted"] == 1
    assert document["steps"][0]["changed"] == [{"name": "min", "before": "0", "after": "8M"}]
    shown = cli_json("show", "--cgroup", f"{NAME}/shop/api")
    assert shown["parameters"][0]["value"] == "8M" and links() == made
    assert valid("show", shown)["provenance"]["attached_by"] == str(file)
    # Somebody sets it: the file's value comes back.
    cli_json("update", "--cgroup", f"{NAME}/shop/api", "--set", "min=1M")
    assert actions(apply(file)) == {"shop/api": "set"}
    file.write_text(both + entry("shop/api", "other.o"))
    assert actions(apply(file)) == {"shop/api": "exchange"}
    assert attached() == {"shop/api": "other", "shop/batch": "tunable"} and links() == made
    file.write_text(entry("shop/api", "other.o"))
    assert actions(apply(file)) == {"shop/batch": "detach"}
    assert attached() == {"shop/api": "other"}
    file.write_text("")
    apply(file)
    assert links() == {}


def test_what_others_attached_is_left_and_said(file: Path, btf: Btf) -> None:
    cli_json("attach", "--cgroup", f"{NAME}/shop/api", "--object", str(file.with_name("other.o")))
    elsewhere = file.with_name("elsewhere.toml")
    elsewhere.write_text(entry("jobs", "tunable.o"))
    apply(elsewhere)
    file.write_text(entry("**", "tunable.o"))
    target = os.open(ROOT / "shop" / "batch", os.O_RDONLY | os.O_DIRECTORY)
    with (
        syscalls.Fd(target) as directory,
        load(handler_object(returns(0)), btf, pins.require(), note={}) as loaded,
        link_to_cgroup(loaded, directory, btf),
    ):
        made = links()
        document = apply(file)
        left = {
            step["cgroup"].removeprefix(f"{NAME}/"): step["why"]
            for step in document["steps"]
            if step["outcome"] == "left"
        }
        number = made[cgroupfs.resolve(f"{NAME}/shop/batch").id]
        assert left == {
            "shop/api": "attached by hand",
            "jobs": f"attached by {elsewhere}",
            "shop/batch": f"link {number}, not pinned by bpfoom",
        }
        assert {key: links()[key] for key in made} == made
    file.write_text("")
    assert set(actions(apply(file)).values()) == {"detach"}
    assert attached() == {"shop/api": "other", "jobs": "tunable"}


def test_one_that_fails_does_not_stop_the_others(file: Path) -> None:
    """No memory controller where one is named; an object that is none."""
    (ROOT / "shop" / "api" / "bare").mkdir()
    file.with_name("bad.o").write_text("nothing")
    file.write_text(
        entry("shop/**", "tunable.o") + entry("shop/api/bare", "other.o") + entry("jobs", "bad.o")
    )
    document = apply(file, code=1)
    assert attached() == {"shop": "tunable", "shop/api": "tunable", "shop/batch": "tunable"}
    assert errors(document) == [f"the cgroup {NAME}/shop/api/bare has no memory controller"]
    assert document["waiting"] == [f"{NAME}/shop/api/bare"]
    (broken,) = document["broken"]
    assert (broken["entry"], broken["cgroups"]) == ("attach[2]", [f"{NAME}/jobs"])
    code, _, err = cli("apply", "-f", str(file))
    assert code == 1 and f"2 failed: {NAME}/shop/api/bare, {NAME}/jobs" in err
    # A glob means what can have a handler.
    file.write_text(entry("shop/**", "tunable.o"))
    document = apply(file)
    assert (document["steps"], document["waiting"]) == ([], [f"{NAME}/shop/api/bare"])


def test_marks_of_the_file_beside_those_of_people(file: Path) -> None:
    cli_json("marks", "set", f"{NAME}/shop/api=protect")
    file.write_text(f'[marks]\n"{NAME}/shop/*" = "avoid,priority:3"\n')
    changes = {c["cgroup"].removeprefix(NAME): c["after"] for c in apply(file, "--plan")["marks"]}
    assert changes == {"/shop/api": "protect,priority:3", "/shop/batch": "avoid,priority:3"}
    by_hand = {"glob": f"{NAME}/shop/api", "mark": "protect", "by": None}
    assert cli_json("marks", "list")["globs"] == [by_hand]
    assert len(apply(file)["marks"]) == 2
    rules = marks.read_rules(pins.require())
    assert [rule.by for rule in rules] == [str(file), ""]
    assert apply(file)["marks"] == [] and marks.read_rules(pins.require()) == rules
    listed = cli_json("marks", "list")["globs"]
    assert listed[1:] == [by_hand] and listed[0]["by"] == str(file)
    assert f"glob {NAME}/shop/*: avoid,priority:3 (of {file})\n" in cli("marks", "list")[1]
    file.write_text("")
    assert len(apply(file)["marks"]) == 2
    assert [rule.by for rule in marks.read_rules(pins.require())] == [""]


def test_a_policy_that_is_compiled_decides(file: Path) -> None:
    file.write_text(
        f'[[attach]]\ncgroup = "{NAME}/shop/api"\npolicy = "largest-task"\nset.min = "1M"\n'
    )
    apply(file)
    api = cgroupfs.resolve(f"{NAME}/shop/api")
    (api.path / "memory.max").write_text("16M")
    (api.path / "memory.swap.max").write_text("0")
    victim = oom_once(api)
    last = cli_json("show", "--cgroup", api.name)["last_decision"]
    assert (last["verdict"], last["victim_pid"]) == ("HANDLED", victim.pid)
    # It is known by its text and its values: nothing is compiled or loaded again.
    assert apply(file)["steps"] == []


def test_a_trigger_comes_and_goes_with_the_file(file: Path) -> None:
    early = entry("shop/api", "other.o", trigger='"full:500ms/1s"')
    file.write_text(early)
    document = apply(file)
    assert [one["action"] for one in document["steps"]] == ["attach", "trigger"]
    (found,) = cli_json("trigger")
    assert (found["cgroup"], found["psi"]) == (f"{NAME}/shop/api", "full:500ms/1s")
    assert apply(file)["steps"] == []
    file.write_text(early + 'cooldown = "1min"\n')
    assert actions(apply(file)) == {"shop/api": "trigger"}
    file.write_text(entry("shop/api", "other.o"))
    assert actions(apply(file)) == {"shop/api": "trigger"}
    assert cli_json("trigger") == [] and attached() == {"shop/api": "other"}
    file.write_text(early)
    apply(file)
    file.write_text("")
    assert [one["action"] for one in apply(file)["steps"]] == ["trigger", "detach"]
    assert cli_json("trigger") == [] and links() == {}


def test_a_trigger_that_would_look_at_nothing_fails(file: Path) -> None:
    api = cgroupfs.resolve(f"{NAME}/shop/api")
    (api.path / "cgroup.pressure").write_text("0")
    file.write_text(entry("shop/api", "other.o", trigger='"full:500ms/1s"'))
    document = apply(file, code=1)
    assert [one["outcome"] for one in document["steps"]] == ["done", "failed"]
    assert any("not watched" in error for error in errors(document))
    (api.path / "cgroup.pressure").write_text("1")
    assert [one["outcome"] for one in apply(file)["steps"]] == ["done"]


# Agent


def step(agent: Running) -> tuple[str, str, str]:
    fields = agent.until("step")
    return fields["action"], fields["cgroup"].removeprefix(f"{NAME}/"), fields["outcome"]


def test_the_agent_follows(file: Path) -> None:
    jobs = ROOT / "jobs"
    file.write_text(entry("jobs/*", "tunable.o") + entry("shop/api", "other.o"))
    with running(file) as agent:
        assert attached() == {"shop/api": "other"}
        (jobs / "a").mkdir()
        assert step(agent) == ("attach", "jobs/a", "done")
        first, fds = links(), agent.fds()
        (jobs / "a").rmdir()
        (jobs / "a").mkdir()
        assert step(agent) == ("attach", "jobs/a", "done")
        assert links() != first
        # A controller that comes late is waited for.
        (jobs / "cgroup.subtree_control").write_text("-memory")
        (jobs / "late").mkdir()
        wait_until_followed(agent)
        (jobs / "cgroup.subtree_control").write_text("+memory")
        assert step(agent) == ("attach", "jobs/late", "done")
        # The file as it is now.
        file.write_text(entry("jobs/*", "other.o"))
        agent.process.send_signal(signal.SIGHUP)
        seen = {step(agent) for _ in range(3)}
        assert seen == {
            ("exchange", "jobs/a", "done"), ("exchange", "jobs/late", "done"),
            ("detach", "shop/api", "done"),
        }  # fmt: skip
        agent.until("state")
        # One that cannot be read is said, and the present one goes on.
        file.write_text("[[attach]]\n")
        agent.process.send_signal(signal.SIGHUP)
        assert "attach[0].cgroup: is missing" in agent.until("error")["message"]
        agent.until("state")
        (jobs / "b").mkdir()
        assert step(agent) == ("attach", "jobs/b", "done")
        for name in ("a", "b", "late"):
            (jobs / name).rmdir()
        wait_for(lambda: pins.require().cgroup_ids() == [], "the pins of what is gone to go")
        wait_until_followed(agent)
        assert agent.fds() == fds
        agent.process.send_signal(signal.SIGTERM)
        assert agent.process.wait(DEADLINE_S) == 0


def test_handlers_outlive_the_agent_and_the_next_one_goes_on(file: Path) -> None:
    box = ROOT / "jobs" / "box"
    file.write_text(entry("jobs/*", str(objects.path())))
    box.mkdir()
    (box / "memory.max").write_text("16M")
    (box / "memory.swap.max").write_text("0")
    with running(file) as agent:
        made = links()
        agent.process.kill()
        agent.process.wait(DEADLINE_S)
    assert links() == made
    target = cgroupfs.resolve(str(box))
    oom_once(target)
    assert cli_json("show", "--cgroup", target.name)["last_decision"]["verdict"] == "HANDLED"
    (ROOT / "jobs" / "gone").mkdir()
    apply(file)
    (ROOT / "jobs" / "gone").rmdir()
    with running(file) as agent:
        assert links() == made and pins.require().cgroup_ids() == list(made)
        (ROOT / "jobs" / "new").mkdir()
        assert step(agent) == ("attach", "jobs/new", "done")


def test_cgroups_too_deep_for_a_path_end_nobody(file: Path) -> None:
    """Whoever owns a cgroup can make some."""
    jobs = ROOT / "jobs"
    file.write_text(entry("jobs/*", "tunable.o"))
    with deep.nested(jobs) as innermost, running(file) as agent:
        assert cgroupfs.by_id(innermost) is None and cgroupfs.exists(innermost)
        (jobs / "a").mkdir()
        assert step(agent) == ("attach", "jobs/a", "done")
        with deep.nested(jobs / "a"):
            (jobs / "b").mkdir()
            assert step(agent) == ("attach", "jobs/b", "done")
        assert cli("list")[0] == 0


def test_triggers_of_cgroups_that_go_are_taken_away(file: Path) -> None:
    """One that is set by hand, too, where there is no handler."""
    box = ROOT / "jobs" / "box"
    file.write_text("")
    with running(file) as agent:
        box.mkdir()
        wait_until_followed(agent)
        cli_json("trigger", "--cgroup", str(box), "--psi", "full:500ms/1s")
        number = box.stat().st_ino
        assert pins.require().cgroup_ids() == [number]
        box.rmdir()
        wait_for(lambda: pins.require().cgroup_ids() == [], "the pins of the trigger to go")


def test_trials_are_left_to_the_agent(file: Path) -> None:
    """Nobody is large enough for the new code: at the first OOM the code before comes back."""
    box = ROOT / "jobs" / "box"
    box.mkdir()
    (box / "memory.max").write_text("16M")
    (box / "memory.swap.max").write_text("0")
    target = cgroupfs.resolve(str(box))
    first = cli_json("attach", "--cgroup", target.name, "--object", str(objects.path()))
    file.write_text("")
    with running(file) as agent:
        changed = cli_json(
            *("update", "--cgroup", target.name, "--policy", "largest-task", "--set", "min=1T"),
            *("--rollback-after", "1"),
        )
        assert changed["trial"]["watched_by"] == "agent" and changed["prog_id"] != first["prog_id"]
        oom_once(target)
        ended = agent.until("trial")
        assert (ended["cgroup"], ended["trial"]["outcome"]) == (target.name, "rolled-back")
    assert cli_json("show", "--cgroup", target.name)["prog_id"] == first["prog_id"]


def test_the_next_agent_takes_trials_over(file: Path) -> None:
    box = ROOT / "jobs" / "box"
    box.mkdir()
    (box / "memory.max").write_text("16M")
    (box / "memory.swap.max").write_text("0")
    target = cgroupfs.resolve(str(box))
    cli_json("attach", "--cgroup", target.name, "--object", str(objects.path()))
    file.write_text("")
    with running(file) as first, running(file) as second:
        words = ("--policy", "largest-task", "--set", "min=1T", "--rollback-after", "2")
        cli_json("update", "--cgroup", target.name, *words)
        oom_once(target)
        first.process.kill()
        first.process.wait(DEADLINE_S)
        oom_once(target)
        ended = second.until("trial")
        assert (ended["trial"]["outcome"], ended["trial"]["running"]) == ("rolled-back", 2)
        assert first.told("trial") == []
