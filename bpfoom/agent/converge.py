# SPDX-License-Identifier: Apache-2.0
"""Make the machine what the configuration says: plan for the cgroups that are given, do a step.

What fails concerns its cgroup, or its entry, alone. Which cgroups there are is the callers' to
find out, who look once or follow them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from bpfoom.agent import plan, recipes
from bpfoom.agent.config import Config, Entry
from bpfoom.agent.plan import Broken, Foreign, Plan, Present, Step
from bpfoom.agent.recipes import Recipes
from bpfoom.btf.types import Btf
from bpfoom.errors import BpfoomError, NotThereError
from bpfoom.handler import attach, describe, links, marks, raises, trigger, update
from bpfoom.handler.describe import Handler
from bpfoom.handler.marks import Rule
from bpfoom.handler.pins import Pins
from bpfoom.handler.raises import Raised
from bpfoom.observe import cgroupfs, tree, units
from bpfoom.observe import marks as observed
from bpfoom.observe.cgroupfs import Cgroup
from bpfoom.observe.marks import Synced
from bpfoom.observe.tree import Node
from bpfoom.policy.trigger import Settings

DONE, GONE, LEFT, FAILED = "done", "gone", "left", "failed"


@dataclass(frozen=True)
class Result:
    """What came of a step: done, left alone, failed, or its cgroup is gone meanwhile.

    ``raised`` are the limits that a handler which was detached had raised.
    """

    step: Step
    outcome: str
    error: BpfoomError | None = None
    raised: Sequence[Raised] = ()


class Converger:
    """One configuration at a time, for as long as ``btf`` is open."""

    def __init__(self, btf: Btf, where: Pins) -> None:
        self.btf = btf
        self.where = where
        self.config = Config("", ())
        self._recipes: Recipes = {}

    def adopt(self, config: Config, tick: Callable[[], object] = lambda: None) -> None:
        """Go by another configuration from now on; ``tick`` is called where it takes long."""
        self._recipes = recipes.compiled(config, tick)
        self.config = config

    def preview_marks(self) -> Synced:
        """What :meth:`sync_marks` would change. Raises as it does."""
        return observed.preview(self.where, self._edit_of_rules())

    def sync_marks(self) -> Synced:
        """Make the marks what the configuration, globs set by hand, and attributes say.

        Raises BpfoomError where there is no room for all.
        """
        return observed.sync(self.where, self._edit_of_rules())

    def sweep(self, among: Container[int] | None = None) -> None:
        """Remove what is left of handlers and triggers of cgroups that are gone.

        ``among`` are ids of the only cgroups to look at.
        """
        self.where.sweep(among)
        trigger.sweep(self.where, cgroupfs.exists, among)

    def plan_all(self) -> Plan:
        """What differs on the machine now."""
        nodes = list(tree.everything(frozenset(self.where.cgroup_ids())))
        return self.plan(nodes, links.attached())

    def idle(self, found: Plan) -> list[str]:
        """The globs and units that mean no cgroup of a plan."""
        patterns = (pattern for entry in self.config.entries for pattern in entry.patterns)
        return [pattern for pattern in patterns if pattern not in found.meant]

    def plan(self, nodes: Sequence[Node], foreign: Mapping[int, int]) -> Plan:
        """What differs on these cgroups; nothing is said of others.

        ``foreign`` has the links of cgroups, by id, as far as handlers of others matter.
        """
        found = Plan()
        in_units = self._in_units(nodes, found)
        pinned = frozenset(self.where.cgroup_ids())
        for node in nodes:
            entry = None
            for candidate in self.config.entries:
                for pattern in candidate.matching(node.name, in_units):
                    entry = candidate
                    found.meant.setdefault(pattern, []).append(node.name)
            if entry is not None or node.id in pinned:
                self._add(found, node, entry, self._present(node, pinned, foreign))
        for entry in self.config.entries:
            made = self._recipes[entry.place]
            if isinstance(made, BpfoomError):
                names = {name for key in entry.patterns for name in found.meant.get(key, ())}
                found.broken.append(Broken(entry, made, sorted(names)))
        return found

    def carry_out(self, step: Step) -> Result:
        """Do one step. What fails is in the result."""
        if step.action == plan.LEAVE:
            return Result(step, LEFT)
        try:
            return Result(step, DONE, raised=self._do(step))
        except (BpfoomError, OSError) as error:
            if _is_gone(step):
                return Result(step, GONE)
            if isinstance(error, OSError):
                error = BpfoomError(f"{step.cgroup}: {error.strerror}", errno=error.errno)
            return Result(step, FAILED, error)

    def _add(self, found: Plan, node: Node, entry: Entry | None, present: Present) -> None:
        """Put into the plan what is to be done to one cgroup."""
        if entry is None:
            perhaps = any(units.is_cgroup_of(node.name, unit) for unit in found.unknown)
            if not perhaps:
                self._add_trigger(found, node, None)
                if isinstance(present, Handler) and plan.owned(present, self.config):
                    found.steps.append(plan.detach(node, present))
            return
        obj = self._recipes[entry.place]
        if isinstance(obj, BpfoomError):
            return
        if present is None and not _has_memory(node):
            found.waiting.append(node.name)
            if not entry.names(node.name):
                return
        step = plan.step_for(node, entry, obj, present, self.config)
        if step is not None:
            found.steps.append(step)
        if step is None or step.action != plan.LEAVE:
            as_wanted = not self._add_trigger(found, node, entry.trigger)
            found.as_wanted += step is None and as_wanted

    def _add_trigger(self, found: Plan, node: Node, wanted: Settings | None) -> bool:
        """Put into the plan what is to be done to the cgroup's trigger, if anything is."""
        try:
            present = trigger.trigger_of(node.id, self.where)
        except BpfoomError as error:
            place = (node.name, node.id, node.path, None, None)
            found.steps.append(Step(plan.LEAVE, *place, why=error.message))
            return True
        step = plan.step_for_trigger(node, wanted, present, self.config)
        if step is not None:
            found.steps.append(step)
        return step is not None

    def _present(self, node: Node, pinned: Container[int], foreign: Mapping[int, int]) -> Present:
        """The handler that a cgroup has."""
        if node.id in pinned:
            try:
                return describe.handler_of(node.id, node.name, self.where, self.btf)
            except NotThereError:
                pass
            except BpfoomError as error:
                return Foreign(error.message)
        link = foreign.get(node.id)
        return None if link is None else Foreign(f"link {link}, not pinned by bpfoom")

    def _in_units(self, nodes: Sequence[Node], found: Plan) -> dict[str, str]:
        """The cgroups of the units that are named; only those that may be among the nodes."""
        asked = {}
        for entry in self.config.entries:
            for unit in entry.units:
                if not any(units.is_cgroup_of(node.name, unit) for node in nodes):
                    continue
                try:
                    name = units.control_group(unit)
                except BpfoomError as error:
                    found.broken.append(Broken(entry, error, [unit]))
                    found.unknown.add(unit)
                else:
                    asked[unit] = name or ""
        return asked

    def _edit_of_rules(self) -> Callable[[Sequence[Rule]], Sequence[Rule]] | None:
        """How the globs are to be changed; None where nobody needs a map of marks."""
        objects = (obj for obj in self._recipes.values() if not isinstance(obj, BpfoomError))
        rules = marks.read_rules(self.where)
        needed = self._rules(rules) != rules or any(marks.used_by(obj) for obj in objects)
        return self._rules if needed else None

    def _rules(self, present: Sequence[Rule]) -> Sequence[Rule]:
        """The globs of marks as they are to be. What somebody has set comes last, and wins."""
        ours = self.config.rules
        if tuple(rule for rule in present if rule.by == self.config.owner) == ours:
            return present
        return (*ours, *(rule for rule in present if rule.by != self.config.owner))

    def _do(self, step: Step) -> list[Raised]:
        """Do one step; the limits that nobody remembers any more."""
        if step.action == plan.ATTACH:
            self._attach(step)
            return []
        if step.action == plan.TRIGGER:
            self._set_trigger(step)
            return []
        assert step.handler is not None
        if step.action == plan.SET:
            values = {one.name: one.after for one in step.changed if one.after is not None}
            update.set_live(step.handler, values, self.btf, self.where)
            return []
        with raises.held(step.handler.map_ids) as limits:
            if step.action == plan.DETACH:
                attach.detach(step.cgroup_id, self.where, sweep=False)
                return limits(())
            return limits(self._exchange(step, step.handler).map_ids)

    def _attach(self, step: Step) -> None:
        assert step.obj is not None
        cgroupfs.require_memory(Cgroup(step.path, step.cgroup, step.cgroup_id))
        given = (step.obj, step.path, self.btf, self.where)
        attach.attach(*given, name=step.cgroup, note=step.note, sweep=False)

    def _set_trigger(self, step: Step) -> None:
        if step.trigger is None:
            trigger.remove(step.cgroup_id, self.where)
            return
        cgroupfs.require_memory(Cgroup(step.path, step.cgroup, step.cgroup_id))
        obj = self._recipes[recipes.TRIGGER]
        if isinstance(obj, BpfoomError):
            raise obj
        given = (obj, step.path, step.trigger, self.btf, self.where)
        trigger.set_trigger(*given, note=step.note)

    def _exchange(self, step: Step, handler: Handler) -> Handler:
        assert step.obj is not None
        given = (step.obj, handler, step.path, self.btf, self.where)
        return update.exchange(*given, note=step.note)


def _has_memory(node: Node) -> bool:
    """Whether a cgroup has a memory controller; no if it is gone."""
    with suppress(NotThereError):
        return "memory" in Cgroup(node.path, node.name, node.id).controllers()
    return False


def _is_gone(step: Step) -> bool:
    try:
        return os.stat(step.path).st_ino != step.cgroup_id
    except FileNotFoundError:
        return True
