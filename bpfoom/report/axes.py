# SPDX-License-Identifier: Apache-2.0
"""Where a plot has its ticks, what they say, and which marks stand so close that they are one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bpfoom.report import text
from bpfoom.report.timeline import Mark

_UNITS = (
    *((1e-6, "microseconds"), (1e-3, "milliseconds"), (1.0, "seconds")),
    *((60.0, "minutes"), (3600.0, "hours")),
)


@dataclass(frozen=True)
class Ticks:
    """Places on an axis, in its data's unit, and their labels."""

    places: tuple[float, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Cluster:
    """Marks of one kind that are drawn as one, where the first of them is."""

    kind: str
    time: float
    marks: tuple[Mark, ...]

    @property
    def label(self) -> str:
        """The decisions' numbers, or how many died."""
        if self.kind == "death":
            return f"×{len(self.marks)}" if len(self.marks) > 1 else ""
        first, last = self.marks[0].number, self.marks[-1].number
        return str(first) if first == last else f"{first}–{last}"


def of_bytes(top: int, most: int = 5) -> Ticks:
    """Ticks from 0 to ``top`` bytes at round binary sizes."""
    step = 1
    while top / step > most:
        step *= 2
    places = tuple(range(0, top + 1, step))
    return Ticks(places, tuple(text.size(place) if place else "0" for place in places))


def corners(*columns: Sequence[float | None]) -> list[int]:
    """The places where a column changes, and the ends: between them everything is level."""
    rows = list(zip(*columns, strict=True))
    inner = range(1, len(rows) - 1)
    changing = [n for n in inner if not rows[n - 1] == rows[n] == rows[n + 1]]
    return sorted({0, *changing, len(rows) - 1}) if rows else []


def time_unit(span: float) -> tuple[float, str]:
    """The unit, in seconds, that a span of time is best counted in, and its name."""
    fitting = [(unit, name) for unit, name in _UNITS if span >= 2 * unit]
    return fitting[-1] if fitting else _UNITS[0]


def clusters(marks: Iterable[Mark], near: float) -> list[Cluster]:
    """The marks from left to right, those of one kind within ``near`` seconds as one."""
    found: list[Cluster] = []
    for kind in ("decision", "death"):
        group: list[Mark] = []
        for mark in sorted((m for m in marks if m.kind == kind), key=lambda m: m.time):
            if group and mark.time - group[0].time > near:
                found.append(_cluster(kind, group))
                group = []
            group.append(mark)
        if group:
            found.append(_cluster(kind, group))
    return found


def _cluster(kind: str, marks: Sequence[Mark]) -> Cluster:
    return Cluster(kind, marks[0].time, tuple(marks))
