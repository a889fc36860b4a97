# SPDX-License-Identifier: Apache-2.0
"""Steps from the machine as it is to what the configuration says; nothing is changed here.

A handler belongs to the configuration that attached it, which its provenance names. Whatever
somebody else has attached is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bpfoom.agent.config import Config, Entry
from bpfoom.compiler.object import HandlerObject
from bpfoom.errors import BpfoomError
from bpfoom.handler.describe import ATTACHED_BY, Handler
from bpfoom.handler.trigger import Trigger
from bpfoom.observe.tree import Node
from bpfoom.policy.trigger import Settings, shown

ATTACH, SET, EXCHANGE, DETACH, LEAVE = "attach", "set", "exchange", "detach", "leave"
TRIGGER = "trigger"


@dataclass(frozen=True)
class Setting:
    """A parameter, and what it is before and after; None where the policy has none of it."""

    name: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Step:
    """One thing to do to one cgroup, or to leave alone.

    ``policy`` is what is attached afterwards, ``policy_before`` what is now; None for nothing.
    ``why`` says what these and ``changed`` do not. ``obj``, ``handler``, ``note`` and ``trigger``
    are what it takes to do it.
    """

    action: str
    cgroup: str
    cgroup_id: int
    path: Path
    policy: str | None
    policy_before: str | None
    changed: tuple[Setting, ...] = ()
    why: str = ""
    obj: HandlerObject | None = field(default=None, repr=False)
    handler: Handler | None = field(default=None, repr=False)
    note: Mapping[str, Any] = field(default_factory=dict, repr=False)
    trigger: Settings | None = None


@dataclass(frozen=True)
class Foreign:
    """A handler that is there and cannot be read: what is known of it, in words."""

    what: str


@dataclass(frozen=True)
class Broken:
    """An entry whose policy cannot be had, or whose unit, and its cgroups, left as they are."""

    entry: Entry
    error: BpfoomError
    cgroups: list[str]


@dataclass
class Plan:
    """What differs. ``as_wanted`` counts the cgroups where nothing does; ``meant`` are the cgroups
    by the globs and units that mean them; ``waiting`` those that have no memory controller;
    ``unknown`` the units of which systemd does not say which cgroup they have."""

    steps: list[Step] = field(default_factory=list)
    broken: list[Broken] = field(default_factory=list)
    meant: dict[str, list[str]] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)
    unknown: set[str] = field(default_factory=set)
    as_wanted: int = 0


Present = Handler | Foreign | None


def owned(present: Present, config: Config) -> bool:
    """Whether a handler was attached by this configuration."""
    by = present.provenance.get(ATTACHED_BY) if isinstance(present, Handler) else None
    return by == config.owner


def step_for(
    node: Node, entry: Entry, obj: HandlerObject, present: Present, config: Config
) -> Step | None:
    """What is to be done to a cgroup that is to have this object; None if it has it."""
    provenance, place = obj.provenance, (node.name, node.id, node.path)
    note = {ATTACHED_BY: config.owner, **entry.wanted.note()}
    if present is None:
        return Step(ATTACH, *place, provenance.policy, None, obj=obj, note=note)
    if not isinstance(present, Handler) or not owned(present, config):
        return _left(node, present)
    changed = _changed(present, obj)
    action = SET if _is_live(present, obj, changed) else EXCHANGE
    if action == SET and not changed:
        return None
    why = _why(present, obj, changed)
    return Step(
        *(action, *place, provenance.policy, present.policy, changed, why, obj, present, note)
    )


def step_for_trigger(
    node: Node, wanted: Settings | None, present: Trigger | None, config: Config
) -> Step | None:
    """What is to be done to a cgroup's trigger; None if it is as it is to be, or somebody else's
    where none is wanted."""
    by = present.provenance.get(ATTACHED_BY) if present else config.owner
    place = (node.name, node.id, node.path, None, None)
    if by != config.owner:
        return Step(LEAVE, *place, why="its trigger is somebody else's") if wanted else None
    before = present.settings if present else None
    if before == wanted:
        return None
    changed = (Setting(TRIGGER, _shown(before), _shown(wanted)),)
    note = {"cgroup": node.name, ATTACHED_BY: config.owner}
    return Step(TRIGGER, *place, changed=changed, note=note, trigger=wanted)


def _shown(settings: Settings | None) -> str | None:
    if settings is None:
        return None
    repeat = ", repeats" if settings.repeat else ""
    return f"{settings.psi}, cooldown {shown(settings.cooldown_us)}{repeat}"


def detach(node: Node, handler: Handler) -> Step:
    """Take away what the configuration no longer wants."""
    policy = handler.policy or handler.name
    return Step(DETACH, node.name, node.id, node.path, None, policy, handler=handler)


def _left(node: Node, present: Handler | Foreign) -> Step:
    if isinstance(present, Foreign):
        return Step(LEAVE, node.name, node.id, node.path, None, None, why=present.what)
    policy, by = present.policy or present.name, present.provenance.get(ATTACHED_BY)
    why = f"attached by {by}" if by else "attached by hand"
    return Step(LEAVE, node.name, node.id, node.path, policy, policy, why=why)


def _changed(handler: Handler, obj: HandlerObject) -> tuple[Setting, ...]:
    """The parameters that are others. Those of another policy are others altogether."""
    same_policy = handler.policy == obj.provenance.policy
    before = handler.values if same_policy else {}
    after = {parameter.name: parameter.value for parameter in obj.parameters}
    return tuple(
        Setting(name, before.get(name), after.get(name))
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    )


def _is_live(handler: Handler, obj: HandlerObject, changed: tuple[Setting, ...]) -> bool:
    """Whether it is the same program, and what is to be changed can be changed while it runs."""
    live = {parameter.name for parameter in handler.parameters if parameter.live}
    return (
        handler.provenance.get("policy_hash") == obj.provenance.policy_hash
        and handler.dry_run == obj.provenance.dry_run
        and live.issuperset(setting.name for setting in changed)
    )


def _why(handler: Handler, obj: HandlerObject, changed: tuple[Setting, ...]) -> str:
    if handler.dry_run != obj.provenance.dry_run:
        return "only records from now on" if obj.provenance.dry_run else "acts from now on"
    if handler.policy == obj.provenance.policy and not changed:
        return "the policy's text is another one"
    return ""
