# SPDX-License-Identifier: Apache-2.0
"""Play one scenario once: stage it, attach the handlers, trigger, and return what was seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Self

from bpfoom.btf.types import Btf
from bpfoom.compiler.object import HandlerObject
from bpfoom.errors import UsageError
from bpfoom.handler import attach as attaching
from bpfoom.handler import describe, info, maps, marks, pins, syscalls
from bpfoom.handler.load import require_ops
from bpfoom.handler.marks import Mark
from bpfoom.observe.latency import KillTrace
from bpfoom.observe.records import Decision, Tail
from bpfoom.observe.result import Run
from bpfoom.observe.watch import Sources, Watch
from bpfoom.scenario.model import Attachment, Growth, Scenario
from bpfoom.scenario.outcome import Outcome
from bpfoom.scenario.policies import Policies
from bpfoom.scenario.stage import Stage
from bpfoom.scenario.workers import Nursery

# Where the base of policies with a sampler keeps what it has seen, by cgroup id.
BASELINE = "bpfoom_baseline"


@dataclass
class Machine:
    """The kernel that scenarios run on, and what they share.

    ``with Machine() as machine: machine.play(scenario)``; MissingFeatureError on a kernel that has
    no handlers. ``system_wide``: whether scenarios may
    run the whole machine out of memory, or attach to its root.
    """

    system_wide: bool = False

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._btf = stack.enter_context(Btf.from_file())
            require_ops(self._btf)
            self._nursery = stack.enter_context(Nursery())
            self.policies = stack.enter_context(Policies())
            self._sources = stack.enter_context(Sources())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def play(self, scenario: Scenario, *, timed: bool = False) -> Outcome:
        """Run the scenario's OOM. ``timed``: trace how long the kernel takes to kill.

        Raises what compiling and attaching do; UsageError for a scenario that this machine may not
        run, or whose tree does not fit; InfrastructureError when it cannot be filled.
        """
        if scenario.system_wide and not self.system_wide:
            raise UsageError(
                f"{scenario.name} concerns the whole system",
                hint="--system-wide, on a machine that may lose any process",
                path=str(scenario.file),
            )
        objects = self.policies.of(scenario)
        with ExitStack() as stack:
            if scenario.system_wide:
                self.policies.rest()
                stack.enter_context(_spared())
            stage = stack.enter_context(Stage(scenario, self._nursery))
            ids = {self._attach(stack, stage, a, obj): a.cgroup for a, obj in objects}
            if scenario.marks:
                stack.enter_context(_marked(stage, scenario))
            trace = stack.enter_context(KillTrace()) if timed else None
            run = self._watch(scenario, stage, ids, trace)
            return self._outcome(scenario, stage, run, ids)

    def _watch(
        self, scenario: Scenario, stage: Stage, ids: Mapping[int, str], trace: KillTrace | None
    ) -> Run:
        """Trigger, and see what comes of it."""
        paths = stage.paths()
        seen: list[Decision] = []
        with ExitStack() as owned:
            where = pins.find()
            tail = owned.enter_context(Tail(where, from_now=True)) if where else None
            handler_of = describe.finder(where, self._btf) if where else lambda _: None

            def name_of(number: int) -> str:
                return paths.get(number, f"id:{number}")

            def decisions() -> list[Decision]:
                for decision in tail.read() if tail else ():
                    seen.append(decision.named(name_of, handler_of))
                return seen

            ready = {
                "promise": lambda: any(
                    (d.action, d.verdict) == ("promise", "HANDLED") for d in decisions()
                ),
                "sample": lambda: self._sampled(scenario, stage, ids),
            }
            watch = owned.enter_context(Watch(self._sources, stage.directories))
            stage.trigger(ready)
            return watch.run(
                decisions(),
                name=scenario.name,
                handler=", ".join(a.policy for a in scenario.attachments) or None,
                victims=[hog.process for hog in stage.hogs.values() if hog.ended()],
                survivors=[hog.process for hog in stage.hogs.values() if not hog.ended()],
                memory_events=stage.events(),
                kill_ns=trace.nanoseconds() if trace else None,
                lost_decisions=tail.lost if tail else 0,
            )

    def _outcome(self, scenario: Scenario, stage: Stage, run: Run, ids: dict[int, str]) -> Outcome:
        where = pins.find()
        counters = {
            path: describe.handler_of(number, path, where, self._btf).counters
            for number, path in ids.items()
            if where
        }
        made: dict[str, list[Decision]] = {path: [] for path in ids.values()}
        for decision in run.decisions:
            path = ids.get(decision.fields["handler_cgroup_id"])
            if path is not None:
                made[path].append(decision)
        # Who forks until it is killed has not told how many there were.
        forks = any(isinstance(t, Growth) and t.take.children for t in scenario.triggers)
        total = stage.total()
        gone = stage.started - len(stage.processes())
        return Outcome(
            run=run,
            killed=total["oom_kill"] if forks else gone,
            total=total,
            refused=tuple(name for name, hog in stage.hogs.items() if hog.refused),
            counters=counters,
            decisions={path: tuple(found) for path, found in made.items()},
        )

    def _sampled(self, scenario: Scenario, stage: Stage, ids: Mapping[int, str]) -> bool:
        """Whether the samplers of all handlers know all cgroups that hold a workload."""
        where = pins.require()
        wanted = {stage.directory(path).stat().st_ino for path in scenario.inhabited}
        for number, path in ids.items():
            handler = describe.handler_of(number, path, where, self._btf)
            with syscalls.prog_by_id(handler.prog_id) as program:
                found = maps.find(info.prog_info(program).map_ids, BASELINE)
            if found is None:
                continue
            with found:
                known = {int.from_bytes(key, "little") for key in syscalls.map_keys(found, 8)}
            if not wanted <= known:
                return False
        return True

    def _attach(
        self, stack: ExitStack, stage: Stage, attachment: Attachment, obj: HandlerObject
    ) -> int:
        where = pins.require()
        handler = attaching.attach(
            obj,
            stage.directory(attachment.cgroup),
            self._btf,
            where,
            name=stage.name(attachment.cgroup),
            note={"dry_run": attachment.dry_run},
        )
        stack.callback(attaching.detach, handler.cgroup_id, where)
        return handler.cgroup_id


@contextmanager
def _marked(stage: Stage, scenario: Scenario) -> Iterator[None]:
    """Mark the cgroups that the scenario's globs match, the last one that does."""
    ids = {}
    for cgroup in scenario.cgroups:
        texts = [text for glob, text in scenario.marks.items() if fnmatchcase(cgroup.path, glob)]
        if texts:
            ids[stage.directory(cgroup.path).stat().st_ino] = Mark.parse(texts[-1])
    with marks.make_marks(pins.require()) as found:
        for number, mark in ids.items():
            marks.write(found, number, mark)
        try:
            yield
        finally:
            for number in ids:
                marks.write(found, number, None)


@contextmanager
def _spared() -> Iterator[None]:
    """Keep this process from being the victim of an OOM of the whole system."""
    adj = Path("/proc/self/oom_score_adj")
    before = adj.read_text()
    adj.write_text("-1000")
    try:
        yield
    finally:
        adj.write_text(before)
