# SPDX-License-Identifier: Apache-2.0
"""Steps from what is attached to what is wanted, without a kernel; and units by name."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from bpfoom.agent import plan
from bpfoom.agent.config import Config, Entry
from bpfoom.agent.plan import Foreign, Setting, Step
from bpfoom.compiler.object import HandlerObject, Parameter, Provenance
from bpfoom.errors import MissingFeatureError, NotThereError, UsageError
from bpfoom.handler.describe import Handler
from bpfoom.handler.trigger import Trigger
from bpfoom.handler.wanted import Wanted
from bpfoom.observe import units
from bpfoom.observe.tree import Node
from bpfoom.policy.trigger import Settings, State

CONFIG = Config("/etc/c.toml", ())
ENTRY = Entry("attach[0]", ("/a",), (), Wanted("priority", None, {}, None))
NODE = Node("/a", Path("/sys/fs/cgroup/a"), 7, 0, frozenset())


def obj(
    policy: str = "priority", *, text: str = "1", dry_run: bool = False, **values: str
) -> HandlerObject:
    """An object with a live parameter ``min`` and a fixed one ``unit``, by default 0 and task."""
    shown = {"min": "0", "unit": "task"} | values
    parameters = tuple(Parameter(name, "enum", v, name == "min") for name, v in shown.items())
    provenance = Provenance(policy, "", text, "", "", "", dry_run)
    return HandlerObject((), (), (), (), (), parameters, provenance)


def attached(of: HandlerObject, by: str | None = CONFIG.owner) -> Handler:
    """That object, as it is attached."""
    provenance = {
        **asdict(of.provenance),
        "parameters": [asdict(parameter) for parameter in of.parameters],
        **({"attached_by": by} if by else {}),
    }
    values = {parameter.name: parameter.value for parameter in of.parameters}
    handler = Handler(7, 1, 2, 3, "", of.provenance.policy, 0, provenance=provenance, values=values)
    return handler


def step(wanted: HandlerObject, present: Handler | Foreign | None) -> Step | None:
    return plan.step_for(NODE, ENTRY, wanted, present, CONFIG)


def test_nothing_is_there() -> None:
    found = step(obj(), None)
    assert found is not None and found.action == plan.ATTACH
    assert (found.policy, found.policy_before, found.note) == (
        "priority", None, {"attached_by": "/etc/c.toml"},
    )  # fmt: skip


def test_what_is_wanted_is_there() -> None:
    assert step(obj(), attached(obj())) is None


@pytest.mark.parametrize(
    ("wanted", "action", "changed", "why"),
    [
        (obj(min="1M"), plan.SET, [("min", "0", "1M")], ""),
        (obj(text="2", unit="cgroup"), plan.EXCHANGE, [("unit", "task", "cgroup")], ""),
        (
            obj(text="2", unit="cgroup", min="1M"),
            plan.EXCHANGE,
            [("min", "0", "1M"), ("unit", "task", "cgroup")],
            "",
        ),
        (obj(text="2"), plan.EXCHANGE, [], "the policy's text is another one"),
        (obj(text="2", dry_run=True), plan.EXCHANGE, [], "only records from now on"),
        (
            obj("newest", text="2"),
            plan.EXCHANGE,
            [("min", None, "0"), ("unit", None, "task")],
            "",
        ),
    ],
)
def test_what_differs(
    wanted: HandlerObject, action: str, changed: list[tuple[str, str | None, str]], why: str
) -> None:
    found = step(wanted, attached(obj()))
    assert found is not None
    assert (found.action, found.why) == (action, why)
    assert found.changed == tuple(Setting(*one) for one in changed)
    assert (found.policy_before, found.policy) == ("priority", wanted.provenance.policy)


def test_a_dry_run_that_is_to_act() -> None:
    found = step(obj(), attached(obj(text="2", dry_run=True)))
    assert found is not None and found.why == "acts from now on"


@pytest.mark.parametrize(
    ("present", "why"),
    [
        (attached(obj(), None), "attached by hand"),
        (attached(obj(min="1M"), "/etc/other.toml"), "attached by /etc/other.toml"),
        (Foreign("link 9, not pinned by bpfoom"), "link 9, not pinned by bpfoom"),
    ],
)
def test_what_others_attached_is_left(present: Handler | Foreign, why: str) -> None:
    found = step(obj(), present)
    assert found is not None and (found.action, found.why) == (plan.LEAVE, why)
    assert found.policy == found.policy_before
    assert not plan.owned(present, CONFIG)


def test_detaching() -> None:
    found = plan.detach(NODE, attached(obj()))
    assert (found.action, found.policy, found.policy_before) == (plan.DETACH, None, "priority")


# Triggers

HALF = Settings("full", 500_000, 1_000_000, 10_000_000)
TENTH = Settings("some", 100_000, 1_000_000, 60_000_000, repeat=True)


def a_trigger(settings: Settings, by: str | None = CONFIG.owner) -> Trigger:
    return Trigger(7, settings, State(), 1, 2, {"attached_by": by} if by else {})


@pytest.mark.parametrize(
    ("wanted", "present", "changed"),
    [
        (HALF, None, (None, "full:500ms/1s, cooldown 10s")),
        (
            TENTH,
            a_trigger(HALF),
            ("full:500ms/1s, cooldown 10s", "some:100ms/1s, cooldown 1min, repeats"),
        ),
        (None, a_trigger(HALF), ("full:500ms/1s, cooldown 10s", None)),
    ],
)
def test_triggers(
    wanted: Settings | None, present: Trigger | None, changed: tuple[str | None, str | None]
) -> None:
    found = plan.step_for_trigger(NODE, wanted, present, CONFIG)
    assert found is not None and found.action == plan.TRIGGER
    assert (found.changed, found.trigger) == ((Setting("trigger", *changed),), wanted)


def test_triggers_that_are_as_wanted_or_somebody_elses() -> None:
    assert plan.step_for_trigger(NODE, HALF, a_trigger(HALF), CONFIG) is None
    assert plan.step_for_trigger(NODE, None, None, CONFIG) is None
    assert plan.step_for_trigger(NODE, None, a_trigger(HALF, None), CONFIG) is None
    found = plan.step_for_trigger(NODE, HALF, a_trigger(TENTH, None), CONFIG)
    assert found is not None and (found.action, found.trigger) == (plan.LEAVE, None)


# Units


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("web", "web.service"),
        ("web.service", "web.service"),
        ("machine.slice", "machine.slice"),
        ("user@1000", "user@1000.service"),
        (r"dev-disk-by\x2duuid", r"dev-disk-by\x2duuid.service"),
        ("-.slice", "-.slice"),
    ],
)
def test_names_of_units(given: str, name: str) -> None:
    assert units.full_name(given) == name


@pytest.mark.parametrize("given", ["", "a b", "a/b", "a;b", "a\n", "x" * 256])
def test_what_is_no_unit(given: str) -> None:
    with pytest.raises(UsageError, match="no name of a unit"):
        units.full_name(given)


def test_cgroups_of_units() -> None:
    assert units.is_cgroup_of("/system.slice/web.service", "web.service")
    assert units.is_cgroup_of("/_cpu.service", "cpu.service")
    assert not units.is_cgroup_of("/system.slice/xweb.service", "web.service")


def test_systemd_is_asked_where_it_runs() -> None:
    if Path("/run/systemd/system").is_dir():
        assert units.control_group("-.slice") == "/"
        with pytest.raises(NotThereError, match="no cgroup"):
            units.resolve("bpfoom-no-such.service")
    else:
        with pytest.raises(MissingFeatureError, match="systemd does not run here"):
            units.control_group("-.slice")
