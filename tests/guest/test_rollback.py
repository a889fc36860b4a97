# SPDX-License-Identifier: Apache-2.0
"""New code on trial: it proves itself or goes, whoever watches, and whoever dies meanwhile."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bpfoom.btf.types import Btf
from bpfoom.compiler.object import HandlerObject, MapSpec
from bpfoom.handler import describe, info, pins, rollback, syscalls, update
from bpfoom.handler.attach import attach
from bpfoom.handler.describe import Handler
from bpfoom.observe.cgroupfs import Cgroup
from bpfoom.observe.trial import progress_of
from bpfoom.policy import record
from bpfoom.policy.functions import ASKED_ENTRIES, HISTORY_ENTRIES
from tests.guest.byhand import (
    Trees,
    cli,
    cli_json,
    handler_object,
    oom_once,
    returns,
    wait_for,
)
from tests.guest.commands import Running
from tests.schemas import valid

# Compiling takes minutes on a debug kernel.
pytestmark = pytest.mark.flavours("plain")

CARD = """\
{#---
summary = "A test's"
kills = "k"
declines = "d"
cost = "c"
status = "experimental"
---#}
{% extends "include/tasks.bpf.c.j2" %}
"""
DECLINER = CARD + "{% block score %} return 0; {% endblock %}\n"
LIAR = DECLINER + "{% block action %} return VERDICT_HANDLED; {% endblock %}\n"
CHOOSY = """\
{#---
summary = "A test's"
kills = "k"
declines = "d"
cost = "c"
status = "experimental"
[params.least]
type = "bytes"
default = "0"
help = "what a process has at least"
live = true
---#}
{% extends "include/tasks.bpf.c.j2" %}
{% block score %}
	u64 bytes = memory_of(mm);

	return bytes >= {{ param.least }} ? bytes : 0;
{% endblock %}
"""


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("policies")
    (directory / "decliner.bpf.c.j2").write_text(DECLINER)
    (directory / "choosy.bpf.c.j2").write_text(CHOOSY)
    (directory / "liar.bpf.c.j2").write_text(LIAR)
    return directory


def handler(trees: Trees, btf: Btf) -> Handler:
    return describe.handler_of(trees.box.id, trees.box.name, pins.require(), btf)


def attach_policy(trees: Trees, policy: str) -> None:
    cli_json("attach", "--cgroup", trees.box.name, "--policy", policy)


@contextmanager
def trial_of(trees: Trees, policy: str, limit: int, *more: str) -> Iterator[Running]:
    """An update to another policy that watches it, under way."""
    before = map_id(trees)
    words = ("--policy", policy, "--rollback-after", str(limit), *more)
    with Running("update", "--cgroup", trees.box.name, *words) as running:
        running.wait_until(lambda: map_id(trees) != before, "the new code")
        running.wait_until(lambda: rollback.is_watched(trees.box.id, pins.require()), "a watcher")
        yield running


def map_id(trees: Trees) -> int:
    """What says which code is in force."""
    link = pins.require().open_link(trees.box.id)
    assert link is not None
    with link:
        return info.link_info(link).map_id


def pinned(trees: Trees) -> list[str]:
    """What is pinned for the box, those that belong to the code in force without its map's id."""
    names = [path.name for path in pins.require().directory(trees.box.id).iterdir()]
    return sorted(name.removesuffix(f"-{map_id(trees)}") for name in names)


def kills(trees: Trees, btf: Btf) -> int:
    """What handlers have killed since one was attached."""
    return handler(trees, btf).counters["kills"]


@pytest.mark.parametrize("bad", ["decliner", "liar"])
def test_back_to_what_worked(bad: str, trees: Trees, btf: Btf, policies: Path) -> None:
    attach_policy(trees, "largest-task")
    before = handler(trees, btf)
    with trial_of(trees, str(policies / f"{bad}.bpf.c.j2"), 2, "--json") as command:
        assert pinned(trees) == ["link", "previous"]
        # One shortage may take more than one decision: the kernel asks again if it has to.
        for _ in range(2):
            oom_once(trees.box)
        code, out, err = command.wait()
    assert code == 1, err
    said = valid("update", json.loads(out))
    assert (said["how"], said["policy"], said["policy_before"]) == (
        *("rollback", "largest-task", "largest-task"),
    )
    assert (said["trial"]["outcome"], said["trial"]["running"]) == ("rolled-back", 2)
    now = handler(trees, btf)
    assert (now.map_id, now.prog_id, now.link_id) == (
        *(before.map_id, before.prog_id, before.link_id),
    )
    assert pinned(trees) == ["link"]
    decided = kills(trees, btf)
    oom_once(trees.box)
    assert kills(trees, btf) == decided + 1


def test_settled_once_it_has_acted(trees: Trees, btf: Btf, policies: Path) -> None:
    attach_policy(trees, str(policies / "decliner.bpf.c.j2"))
    with trial_of(trees, "largest-task", 2) as command:
        oom_once(trees.box)
        oom_once(trees.box)
        code, out, err = command.wait()
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == f"updated largest-task of {trees.box.name}: " + (
        "decliner -> largest-task, min - -> 0, another program"
    )
    assert lines[1].startswith("watching in the foreground: back to decliner if it declines")
    assert [line.split(":")[0] for line in lines[2:4]] == ["acted, 1 of 2", "acted, 2 of 2"]
    assert lines[4] == "settled: decliner is let go"
    assert pinned(trees) == ["link"]
    assert kills(trees, btf) == 2


def test_a_watcher_that_was_killed_is_missed(trees: Trees, btf: Btf, policies: Path) -> None:
    """What happened while nobody watched counts, too."""
    attach_policy(trees, "largest-task")
    with trial_of(trees, str(policies / "decliner.bpf.c.j2"), 3) as command:
        assert command.kill() == -signal.SIGKILL
    oom_once(trees.box)
    shown = valid("show", cli_json("show", "--cgroup", trees.box.name))["trial"]
    assert (shown["outcome"], shown["watched_by"], shown["running"]) == ("unsettled", None, 1)
    _, out, _ = cli("show", "--cgroup", trees.box.name)
    assert "nobody watches" in out and "--watch" in out
    oom_once(trees.box)
    with Running("update", "--cgroup", trees.box.name, "--watch", "--json") as command:
        command.wait_until(lambda: rollback.is_watched(trees.box.id, pins.require()), "a watcher")
        shown = cli_json("show", "--cgroup", trees.box.name)["trial"]
        assert (shown["watched_by"], shown["running"]) == ("foreground", 2)
        code, _, err = cli("update", "--cgroup", trees.box.name, "--watch")
        assert (code, "watched already" in err) == (1, True)
        oom_once(trees.box)
        code, out, err = command.wait()
    assert (code, json.loads(out)["trial"]["running"]) == (1, 3), err
    assert handler(trees, btf).policy == "largest-task"


@pytest.mark.parametrize(
    ("how", "policy", "outcome"),
    [("--rollback", "largest-task", "rolled-back"), ("--settle", "decliner", "settled")],
)
def test_ended_by_hand(
    how: str, policy: str, outcome: str, trees: Trees, btf: Btf, policies: Path
) -> None:
    attach_policy(trees, "largest-task")
    with trial_of(trees, str(policies / "decliner.bpf.c.j2"), 3) as command:
        command.signal(signal.SIGINT)
        code, out, _ = command.wait()
        assert (code, "nobody watches" in out) == (0, True), out
    assert pinned(trees) == ["link", "previous"]
    said = valid("update", cli_json("update", "--cgroup", trees.box.name, how))
    assert said["trial"]["outcome"] == outcome
    assert handler(trees, btf).policy == policy
    assert pinned(trees) == ["link"]
    code, _, err = cli("update", "--cgroup", trees.box.name, how)
    assert (code, "settled" in err) == (4, True)


def test_what_is_watched_may_be_ended_by_somebody_else(
    trees: Trees, btf: Btf, policies: Path
) -> None:
    attach_policy(trees, "largest-task")
    with trial_of(trees, str(policies / "decliner.bpf.c.j2"), 3) as command:
        cli_json("update", "--cgroup", trees.box.name, "--rollback")
        code, _, err = command.wait()
    assert code == 1 and "somebody else has ended it" in err
    assert handler(trees, btf).policy == "largest-task"


def test_values_come_back_with_their_program(trees: Trees, btf: Btf, policies: Path) -> None:
    """Live parameters only: tried as a program of their own, for it can be taken back."""
    attach_policy(trees, str(policies / "choosy.bpf.c.j2"))
    name = trees.box.name
    assert cli_json("update", "--cgroup", name, "--set", "least=4K")["how"] == "live"
    words = ("--set", "least=1G", "--rollback-after", "1", "--json")
    with Running("update", "--cgroup", name, *words) as command:
        command.wait_until(lambda: "previous" in pinned(trees), "the trial")
        command.wait_until(lambda: rollback.is_watched(trees.box.id, pins.require()), "a watcher")
        # Nothing has that much: it declines.
        oom_once(trees.box)
        code, out, err = command.wait()
    assert (code, json.loads(out)["how"]) == (1, "rollback"), err
    assert handler(trees, btf).values["least"] == "4K"


def test_what_is_gone_back_to_is_what_was_settled_last(
    trees: Trees, btf: Btf, policies: Path
) -> None:
    attach_policy(trees, "largest-task")
    first = handler(trees, btf)
    for name in ("decliner", "liar"):
        with trial_of(trees, str(policies / f"{name}.bpf.c.j2"), 3) as command:
            command.kill()
    assert handler(trees, btf).policy == "liar"
    cli_json("update", "--cgroup", trees.box.name, "--rollback")
    assert handler(trees, btf).prog_id == first.prog_id
    with trial_of(trees, str(policies / "decliner.bpf.c.j2"), 3) as command:
        command.kill()
    code, out, _ = cli("update", "--cgroup", trees.box.name, "--policy", "largest-task")
    assert code == 0
    assert out.splitlines()[-1] == "the trial before is over: largest-task is let go"
    assert pinned(trees) == ["link"]


def test_left_to_the_agent(trees: Trees, btf: Btf, policies: Path) -> None:
    attach_policy(trees, "largest-task")
    bad = str(policies / "decliner.bpf.c.j2")
    words = ("update", "--cgroup", trees.box.name, "--policy", bad, "--rollback-after", "3")
    with rollback.being_agent(pins.require()) as mine:
        assert mine
        code, out, err = cli(*words)
        assert code == 0, err
        assert "watched by the agent" in out.splitlines()[-1]
        oom_once(trees.box)
        assert cli_json("show", "--cgroup", trees.box.name)["trial"]["watched_by"] == "agent"
    ((found, trial),) = rollback.on_trial(pins.require(), btf)
    assert (found, trial.limit) == (handler(trees, btf), 3)
    assert progress_of(trial, pins.require()).running == 1
    assert pinned(trees) == ["link", "previous"]


@pytest.mark.parametrize("how", ["detach", "rmdir"])
def test_the_code_before_goes_with_the_handler(how: str, trees: Trees, policies: Path) -> None:
    attach_policy(trees, "largest-task")
    with trial_of(trees, str(policies / "decliner.bpf.c.j2"), 3) as command:
        if how == "detach":
            cli_json("detach", "--cgroup", trees.box.name)
        else:
            trees.box.path.rmdir()
        code, _, err = command.wait()
    assert (code, "no handler of ours" in err) == (4, True), err
    where = pins.require()
    wait_for(lambda: bool(where.sweep()) or where.cgroup_ids() == [], "the pins to be swept")
    assert where.cgroup_ids() == []


def test_the_sampler_of_what_is_gone_back_to_runs_again(
    trees: Trees, btf: Btf, policies: Path
) -> None:
    attach_policy(trees, "fastest-growing")
    before = handler(trees, btf)
    assert pinned(trees) == ["link", "sampler"]
    with trial_of(trees, str(policies / "decliner.bpf.c.j2"), 3) as command:
        command.kill()
    assert pinned(trees) == ["link", "previous", "previous-sampler"]
    cli_json("update", "--cgroup", trees.box.name, "--rollback")
    assert pinned(trees) == ["link", "sampler"]
    assert handler(trees, btf).map_id == before.map_id


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("--rollback",), 4, "is settled"),
        (("--settle",), 4, "is settled"),
        (("--watch",), 4, "is settled"),
        (("--rollback", "--set", "min=1"), 2, "changes nothing else"),
        (("--settle", "--rollback-after", "1"), 2, "changes nothing else"),
        (("--rollback-after", "3"), 2, "nothing to change"),
        (("--set", "min=1", "--rollback-after", "0"), 2, "0 is not in the range"),
    ],
)
def test_what_cannot_be_tried(
    args: tuple[str, ...], code: int, says: str, trees: Trees, btf: Btf
) -> None:
    attach_policy(trees, "largest-task")
    before = handler(trees, btf)
    got, _, err = cli("update", "--cgroup", trees.box.name, *args)
    assert (got, says in err) == (code, True), err
    assert handler(trees, btf) == before


def test_code_that_keeps_no_record_is_not_tried(trees: Trees, btf: Btf, tmp_path: Path) -> None:
    attach_policy(trees, "largest-task")
    silent = tmp_path / "silent"
    silent.write_bytes(handler_object(returns(0)).to_bytes())
    words = ("--object", str(silent), "--rollback-after", "3")
    code, _, err = cli("update", "--cgroup", trees.box.name, *words)
    assert (code, "keeps no record" in err) == (2, True), err


def test_limits_that_nobody_remembers_are_told(trees: Trees, btf: Btf) -> None:
    name = trees.box.name
    words = ("--set", "cap=64M", "--set", "step=16M", "--set", "inner=largest-task")
    cli_json("attach", "--cgroup", name, "--policy", "raise-limit", *words)
    oom_once(trees.box)
    told = [{"cgroup": name, "cgroup_id": trees.box.id, "before": 32 << 20, "after": 64 << 20}]
    assert cli_json("update", "--cgroup", name, "--set", "step=8M")["raised"] == []
    said = valid("update", cli_json("update", "--cgroup", name, "--policy", "largest-task"))
    assert said["raised"] == told
    cli_json("attach", "--cgroup", name, "--policy", "raise-limit", "--replace", *words)
    (trees.box.path / "memory.max").write_text(str(32 << 20))
    oom_once(trees.box)
    code, out, _ = cli("attach", "--cgroup", name, "--policy", "largest-task", "--replace")
    assert code == 0
    assert f"  it had raised memory.max of {name} from 32M to 64M" in out.splitlines()


# Killed with -9, at each call in turn


def recording(insns: bytes, name: str) -> HandlerObject:
    """A handler by hand of which it can be said that it keeps a history."""
    obj = handler_object(insns, name=name)
    history = MapSpec(
        rollback.HISTORY_MAP, "array", 4, record.SIZE, HISTORY_ENTRIES + ASKED_ENTRIES, shared=True
    )
    return HandlerObject(obj.programs, (history,), (), (), (), (), obj.provenance)


def killed_after(calls: int, work: Callable[[], object]) -> int:
    """Do it in a child that dies after so many calls of bpf(2), or on pins; how that ended."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code, made = 2, 0

    def counted() -> None:
        nonlocal made
        made += 1
        if made > calls:
            os.kill(os.getpid(), signal.SIGKILL)

    def check(call: str, result: int, **facts: Any) -> int:
        counted()
        return real_check(call, result, **facts)

    def unlink(path: Path, missing_ok: bool = False) -> None:
        real_unlink(path, missing_ok)
        counted()

    real_check, real_unlink = syscalls._check, Path.unlink
    try:
        syscalls._check = check
        Path.unlink = unlink  # type: ignore[method-assign,assignment]
        work()
        code = 0
    finally:
        os._exit(code)


@pytest.fixture
def by_hand(trees: Trees, btf: Btf) -> Iterator[tuple[HandlerObject, HandlerObject]]:
    """An old handler, which is attached, and a new one."""
    old, new = recording(returns(0), "old"), recording(returns(2), "new")
    attach(old, trees.box.path, btf, pins.require(), name=trees.box.name)
    yield old, new


def change(new: HandlerObject, box: Cgroup, btf: Btf) -> None:
    where = pins.require()
    present = describe.handler_of(box.id, box.name, where, btf)
    update.exchange(new, present, box.path, btf, where, note={}, rollback_after=3)


def go_back(box: Cgroup, btf: Btf) -> None:
    where = pins.require()
    present = describe.handler_of(box.id, box.name, where, btf)
    found = rollback.trial_of(present, where, btf)
    assert found is not None
    rollback.go_back(found, box.name, box.path, btf, where)


def test_killed_anywhere_it_is_the_old_code_or_the_new(
    trees: Trees, btf: Btf, by_hand: tuple[HandlerObject, HandlerObject]
) -> None:
    old, new = by_hand
    where = pins.require()
    outcomes = []
    for calls in range(120):
        status = killed_after(calls, partial(change, new, trees.box, btf))
        now = handler(trees, btf)
        on_trial = rollback.trial_of(now, where, btf)
        assert (now.policy, on_trial is not None) in (("old", False), ("new", True))
        outcomes.append(now.policy)
        where.sweep()
        if on_trial is not None:
            assert pinned(trees) == ["link", "previous"]
            rollback.go_back(on_trial, trees.box.name, trees.box.path, btf, where)
        assert handler(trees, btf).policy == "old" and pinned(trees) == ["link"]
        if status == 0:
            break
        assert status == -signal.SIGKILL
    else:
        pytest.fail("it never came to its end")
    assert outcomes == sorted(outcomes, reverse=True) and set(outcomes) == {"old", "new"}


def test_killed_anywhere_on_the_way_back(
    trees: Trees, btf: Btf, by_hand: tuple[HandlerObject, HandlerObject]
) -> None:
    _, new = by_hand
    where = pins.require()
    outcomes = []
    for calls in range(120):
        if handler(trees, btf).policy == "old":
            change(new, trees.box, btf)
        status = killed_after(calls, partial(go_back, trees.box, btf))
        now = handler(trees, btf)
        on_trial = rollback.trial_of(now, where, btf)
        assert (now.policy, on_trial is not None) in (("old", False), ("new", True))
        outcomes.append(now.policy)
        where.sweep()
        assert pinned(trees) == (["link"] if on_trial is None else ["link", "previous"])
        if status == 0:
            break
        assert status == -signal.SIGKILL
    else:
        pytest.fail("it never came to its end")
    assert outcomes == sorted(outcomes) and set(outcomes) == {"old", "new"}
