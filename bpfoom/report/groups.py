# SPDX-License-Identifier: Apache-2.0
"""Runs that belong together, and what they can be compared by.

Runs of one scenario are one group, whatever files they come from; so are runs that were watched in
the same cgroups. The stock killer's come first.
"""

from __future__ import annotations

import itertools
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bpfoom.observe.result import Document, Process, Run
from bpfoom.report import text, timeline, verdict
from bpfoom.report.timeline import Timeline
from bpfoom.report.verdict import Bar, Verdict

STOCK = "stock killer"
# So many cgroups are shown with all of their processes.
_FEW = 12


@dataclass(frozen=True)
class Source:
    """A result document, and the name of the file that it was read from."""

    file: str
    document: Document


@dataclass
class Shown:
    """One run: its label within the group, and an id that no other run of the page has."""

    run: Run
    source: Source
    label: str = ""
    key: str = ""
    lines: Timeline = field(init=False)
    verdicts: list[Verdict] = field(init=False)

    def __post_init__(self) -> None:
        self.lines = timeline.of_run(self.run)
        self.verdicts = verdict.of_run(self.run, self.lines.zero)

    @property
    def is_stock(self) -> bool:
        return self.run.handler is None

    @property
    def killed_cgroups(self) -> list[str]:
        """Where somebody was killed, in the order of the tree."""
        paths = {process.cgroup for process in self.run.victims}
        paths |= {death.cgroup for death in self.run.deaths}
        return sorted(paths, key=timeline.parts)

    @property
    def acting(self) -> list[Verdict]:
        """The decisions that did something, else the one that mattered."""
        acting = [one for one in self.verdicts if one.acts]
        mattered = [one for one in self.verdicts if one.decision == self.run.decision]
        return acting or mattered[-1:]

    @property
    def others(self) -> list[Verdict]:
        acting = self.acting
        return [one for one in self.verdicts if one not in acting]

    @property
    def events(self) -> list[tuple[str, dict[str, int]]]:
        """What memory.events counted, without what it did not."""
        counted = {
            path: {name: count for name, count in counters.items() if count}
            for path, counters in self.run.memory_events.items()
        }
        return [(path, counters) for path, counters in counted.items() if counters]

    def toll(self, path: str | None) -> str:
        """How many were killed in a cgroup, "" for none."""
        inside = timeline.parts(path or "")
        killed = sum(timeline.parts(process.cgroup) == inside for process in self.run.victims)
        return f"{text.number(killed)} killed" if killed else ""

    def people(self) -> tuple[list[Cgroup], list[Cgroup]]:
        """Every cgroup with processes; where they are many, apart those where nobody was killed."""
        cgroups = self._people()
        if len(cgroups) <= _FEW:
            return cgroups, []
        return [one for one in cgroups if one.killed], [one for one in cgroups if not one.killed]

    def _people(self) -> list[Cgroup]:
        found: dict[str, Cgroup] = {}
        for killed, processes in ((True, self.run.victims), (False, self.run.survivors)):
            for process in processes:
                cgroup = found.setdefault(process.cgroup, Cgroup(process.cgroup))
                (cgroup.killed if killed else cgroup.lived).append(process)
        return sorted(found.values(), key=lambda cgroup: timeline.parts(cgroup.path))


@dataclass
class Cgroup:
    """The processes of a cgroup."""

    path: str
    killed: list[Process] = field(default_factory=list)
    lived: list[Process] = field(default_factory=list)


@dataclass(frozen=True)
class Group:
    """Runs to be shown side by side."""

    title: str
    key: str
    runs: tuple[Shown, ...]

    @property
    def compares(self) -> bool:
        """Whether the stock killer and a handler were at it."""
        return len({shown.is_stock for shown in self.runs}) == 2

    @property
    def trees(self) -> list[tuple[str, ...]]:
        """The drawn trees of its documents, each once."""
        found: list[tuple[str, ...]] = []
        for shown in self.runs:
            lines = _tree_of(shown.run.name, shown.source.document.tree)
            if lines and lines not in found:
                found.append(lines)
        return found


def _tree_of(name: str | None, lines: Sequence[str]) -> tuple[str, ...]:
    """A scenario's own tree: a document of several has each below a line with its name."""
    if name is None or f"{name}:" not in lines:
        return tuple(lines)
    below = lines[lines.index(f"{name}:") + 1 :]
    own = itertools.takewhile(lambda line: line.startswith(" ") or not line, below)
    return tuple(textwrap.dedent("\n".join(own)).splitlines())


def group(sources: Sequence[Source]) -> list[Group]:
    """The groups of all runs, in the order in which they first come."""
    found: dict[Any, list[Shown]] = {}
    for source in sources:
        for run in source.document.runs:
            key = run.name if run.name is not None else tuple(sorted(run.limits))
            found.setdefault(key, []).append(Shown(run, source))
    return [
        _group(number, key if isinstance(key, str) else _watched(key), runs)
        for number, (key, runs) in enumerate(found.items(), 1)
    ]


def _watched(paths: Sequence[str]) -> str:
    """A title for runs that are no scenario's."""
    return f"{text.listed(timeline.tops(paths))}, watched" if paths else "Watched"


def _group(number: int, title: str, runs: list[Shown]) -> Group:
    runs = sorted(runs, key=lambda shown: not shown.is_stock)
    labels = [shown.run.handler or STOCK for shown in runs]
    total, seen = Counter(labels), Counter[str]()
    for place, (shown, label) in enumerate(zip(runs, labels, strict=True), 1):
        seen[label] += 1
        shown.label = f"{label}, run {seen[label]}" if total[label] > 1 else label
        shown.key = f"g{number}-r{place}"
    return Group(title, f"g{number}", tuple(runs))


def comparison(runs: Sequence[Shown]) -> list[tuple[str, list[Bar]]]:
    """What can be measured of each run, a row a run; only what any of them has."""
    measured = (
        ("Processes killed", [len(shown.run.victims) for shown in runs], text.number),
        ("Memory of those killed", [_killed_memory(shown) for shown in runs], text.size),
        ("From the OOM to the first kill", [s.run.kill_ns for s in runs], text.duration),
        ("Until memory had fallen", [_recovery(shown) for shown in runs], text.duration),
    )
    return [
        (title, _bars(runs, values, write))
        for title, values, write in measured
        if any(value is not None for value in values)
    ]


def _bars(runs: Sequence[Shown], values: Sequence[int | None], write: Any) -> list[Bar]:
    longest = max((value for value in values if value), default=1)
    return [
        Bar(
            shown.label,
            "not measured" if value is None else write(value),
            (value or 0) / longest,
            "other" if shown.is_stock else "decision",
        )
        for shown, value in zip(runs, values, strict=True)
    ]


def _killed_memory(shown: Shown) -> int | None:
    return _sum(death.peak_rss for death in shown.run.deaths)


def _recovery(shown: Shown) -> int | None:
    spans = [entry.ns for entry in shown.run.recovery if entry.ns is not None]
    return max(spans, default=None)


def _sum(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
