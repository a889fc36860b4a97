# SPDX-License-Identifier: Apache-2.0
"""What came of a scenario, and whether it is what was expected."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from bpfoom.observe.records import Decision
from bpfoom.observe.result import Run
from bpfoom.scenario.model import Condition, Conditions, Expect

KERNEL = "kernel"
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True)
class Outcome:
    """One run of a scenario.

    ``killed`` is the number of processes killed, children included; ``refused`` are workloads
    that the kernel refused memory. ``counters`` are the kernel's, of each handler, by the path of
    its cgroup; ``decisions`` the handlers' records by the same. ``total`` is memory.events of the
    whole tree.
    """

    run: Run
    killed: int
    total: dict[str, int]
    refused: tuple[str, ...]
    counters: dict[str, dict[str, int]]
    decisions: dict[str, tuple[Decision, ...]]

    @property
    def deciders(self) -> tuple[str, ...]:
        """The cgroups whose handlers acted, or else kept a promise, and "kernel" if it killed."""
        # Of many calls only the last are on record, so kills are counted.
        acted = [
            path
            for path, made in self.decisions.items()
            if self.counters[path]["kills"] or _handled(made, "raise")
        ]
        if self.killed > sum(counters["kills"] for counters in self.counters.values()):
            acted.append(KERNEL)
        if acted or self.refused:
            return tuple(acted)
        return tuple(p for p, made in self.decisions.items() if _handled(made, "promise"))

    @property
    def victims(self) -> tuple[str, ...]:
        """Names of the workloads that were killed, sorted."""
        return tuple(sorted(process.comm for process in self.run.victims))

    def without_timeline(self) -> Outcome:
        """The same without what takes most of its room."""
        return replace(self, run=replace(self.run, timeline=()))

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "run": self.run.as_dict(),
            "killed": self.killed,
            "refused": list(self.refused),
            "decided_by": list(self.deciders),
            "counters": self.counters,
        }


@dataclass(frozen=True)
class Failure:
    """An expectation that did not hold: its key in the scenario's file, both sides as text."""

    key: str
    expected: str
    seen: str

    def __str__(self) -> str:
        return f"{self.key}: expected {self.expected}, seen {self.seen}"

    def as_dict(self) -> dict[str, str]:
        """JSON-ready."""
        return asdict(self)


def judge(expect: Expect, outcome: Outcome) -> tuple[Failure, ...]:
    """Every expectation that the outcome does not meet, in the order of the format."""
    return tuple(_failures(expect, outcome))


def _failures(expect: Expect, outcome: Outcome) -> Iterator[Failure]:
    yield from _same("victims", expect.victims, outcome.victims)
    alive = {process.comm for process in outcome.run.survivors}
    if missing := set(expect.survivors) - alive:
        yield Failure("survivors", _list(expect.survivors), f"{_list(missing)} killed")
    yield from _compare("kills", {"kills": expect.kills}, {"kills": outcome.killed})
    yield from _same("refused", expect.refused, outcome.refused)
    yield from _same("decided_by", expect.decided_by, outcome.deciders)
    decision = outcome.run.decision
    for key in ("verdict", "action"):
        wanted, seen = getattr(expect, key), getattr(decision, key, "no decision")
        if wanted and wanted != seen:
            yield Failure(key, wanted, seen)
    for path, conditions in expect.counters.items():
        yield from _compare(f"counters.{path}", conditions, outcome.counters.get(path, {}))
    for path, conditions in expect.memory_events.items():
        seen_events = outcome.run.memory_events.get(path, {})
        yield from _compare(f"memory_events.{path}", conditions, seen_events)
    for path, conditions in expect.decisions.items():
        yield from _decision(path, conditions, outcome.decisions.get(path, ()))
    yield from _counted(outcome)


def _same(key: str, expected: tuple[str, ...], seen: tuple[str, ...]) -> Iterator[Failure]:
    if set(expected) != set(seen):
        yield Failure(key, _list(expected), _list(seen))


def _compare(key: str, wanted: Conditions, seen: Mapping[str, Any]) -> Iterator[Failure]:
    for name, condition in wanted.items():
        if not holds(condition, seen.get(name)):
            full = key if name == key else f"{key}.{name}"
            yield Failure(full, str(condition), str(seen.get(name, "nothing of that name")))


def _decision(path: str, wanted: Conditions, made: tuple[Decision, ...]) -> Iterator[Failure]:
    """One record must meet all conditions at once; the nearest one is shown."""
    records = [decision.as_dict() for decision in made]
    missed = [list(_compare(f"decisions.{path}", wanted, record)) for record in records]
    if not missed:
        yield Failure(f"decisions.{path}", "a decision", "none")
    else:
        yield from min(missed, key=len)


def _counted(outcome: Outcome) -> Iterator[Failure]:
    """The kernel counts each kill, a memory.oom.group's first victim perhaps twice."""
    counted = outcome.total["oom_kill"]
    if not outcome.total["oom_group_kill"] and counted > outcome.killed:
        yield Failure("memory_events.oom_kill", str(outcome.killed), str(counted))


def holds(condition: Condition, seen: Any) -> bool:
    """Whether a number or word is as wanted; what is not there never is."""
    if isinstance(seen, bool):
        seen = "yes" if seen else "no"
    if isinstance(condition.value, int) != isinstance(seen, int):
        return False
    return _COMPARE[condition.operator](seen, condition.value)


def _handled(made: tuple[Decision, ...], action: str) -> bool:
    return any(d.verdict == "HANDLED" and d.action == action for d in made)


def _list(names: Iterator[str] | tuple[str, ...] | set[str]) -> str:
    return ", ".join(sorted(names)) or "none"
