# SPDX-License-Identifier: Apache-2.0
"""What memory and pressure did around an OOM: a run's samples as series, on one clock.

Times are seconds from the moment that mattered. Long watches are cut to what is around decisions
and deaths, and thinned to as many points as a plot can show.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from bpfoom.observe.records import SYSTEM
from bpfoom.observe.result import Run, Sample, Usage

T = TypeVar("T")

MAX_POINTS = 300
# How much is shown before the first mark and after the last, at least, in seconds.
_AROUND = 10.0


@dataclass(frozen=True)
class Mark:
    """A moment of the run: a "decision" by its number in the run, or a "death".

    ``cgroup`` is where memory had run out or somebody died, "" where that is not known.
    """

    kind: str
    time: float
    number: int = 0
    cgroup: str = ""


@dataclass(frozen=True)
class Series:
    """One cgroup: a value for each time of its timeline.

    ``current`` and ``swap`` in bytes, None where the cgroup was not there; ``some`` and ``full``
    are the share of the time since the sample before in which tasks were stalled, 0 to 1.
    ``limit`` is memory.max, None for none.
    """

    path: str
    current: tuple[int | None, ...]
    swap: tuple[int | None, ...]
    some: tuple[float, ...]
    full: tuple[float, ...]
    limit: int | None

    @property
    def peak(self) -> int:
        return max((value for value in self.current if value is not None), default=0)

    def only(self, places: Sequence[int]) -> Series:
        """The same with the values of these places alone."""
        return Series(
            self.path,
            _picked(self.current, places),
            _picked(self.swap, places),
            _picked(self.some, places),
            _picked(self.full, places),
            self.limit,
        )

    @property
    def peak_swap(self) -> int:
        return max((value for value in self.swap if value is not None), default=0)

    @property
    def last(self) -> int | None:
        return self.current[-1] if self.current else None

    def at(self, times: Sequence[float], moment: float) -> int | None:
        """memory.current as it was last sampled before a moment; None if it never was."""
        seen = [v for t, v in zip(times, self.current, strict=True) if t <= moment]
        return seen[-1] if seen else None


@dataclass(frozen=True)
class Timeline:
    """The series of a run. Second 0 is ``zero`` in epoch seconds; ``origin`` says what it is."""

    zero: float
    origin: str
    times: tuple[float, ...]
    series: dict[str, Series]
    marks: tuple[Mark, ...]

    def within(self, place: str | None) -> Timeline:
        """The same with the marks of a place and what is below it alone; None is everywhere."""
        if place is None:
            return self
        inside = [m for m in self.marks if not m.cgroup or is_within(m.cgroup, place)]
        return replace(self, marks=tuple(inside))

    def __bool__(self) -> bool:
        return len(self.times) > 1


def of_run(run: Run) -> Timeline:
    """The timeline of a run of the result document; false if there is nothing to plot."""
    samples = sorted(run.timeline, key=lambda sample: sample.time)
    zero, origin = _zero(run, samples)
    marks = tuple(_marks(run, zero))
    samples = _thinned(_around(samples, [mark.time + zero for mark in marks]))
    times = tuple(sample.time - zero for sample in samples)
    paths = sorted({path for sample in samples for path in sample.cgroups}, key=parts)
    limits = {path: limit.max for path, limit in run.limits.items()}
    series = {path: _series(path, samples, times, limits.get(path)) for path in paths}
    return Timeline(zero, origin, times, series, marks)


def parts(path: str) -> tuple[str, ...]:
    """The names of a cgroup's path; none for the root."""
    return tuple(part for part in path.split("/") if part)


def is_below(path: str, above: str) -> bool:
    """Whether a cgroup is a descendant of another."""
    mine, its = parts(path), parts(above)
    return len(mine) > len(its) and mine[: len(its)] == its


def is_within(path: str, place: str) -> bool:
    """Whether a cgroup is another or below it."""
    return parts(path) == parts(place) or is_below(path, place)


def leaves(paths: Iterable[str]) -> list[str]:
    """The paths that have no other below them."""
    known = list(paths)
    inner = {parts(path)[:depth] for path in known for depth in range(len(parts(path)))}
    return [path for path in known if parts(path) not in inner]


def tops(paths: Iterable[str]) -> list[str]:
    """The paths that are below no other."""
    known = list(paths)
    names = {parts(path) for path in known}
    return [p for p in known if not any(parts(p)[:n] in names for n in range(len(parts(p))))]


def _picked(values: Sequence[T], places: Sequence[int]) -> tuple[T, ...]:
    return tuple(values[place] for place in places)


def _zero(run: Run, samples: Sequence[Sample]) -> tuple[float, str]:
    """Second 0, epoch seconds, and what it is."""
    if run.decision is not None:
        return run.decision.time, "the decision"
    died = [death.time for death in run.deaths if death.time is not None]
    if died:
        # The kernel takes memory back before a victim exits: the peak is nearer to its decision.
        before = [sample for sample in samples if sample.time <= min(died)]
        if before:
            return max(before, key=lambda sample: (_held(sample), sample.time)).time, "the peak"
        return min(died), "the first death"
    return (samples[0].time if samples else 0.0), "the start of watching"


def _marks(run: Run, zero: float) -> Iterator[Mark]:
    for number, decision in enumerate(run.decisions, 1):
        known = decision.cgroups
        place = known.oom_cgroup if known and known.oom_cgroup != SYSTEM else ""
        yield Mark("decision", decision.time - zero, number, place)
    for death in run.deaths:
        if death.time is not None:
            yield Mark("death", death.time - zero, cgroup=death.cgroup)


def _around(samples: list[Sample], moments: list[float]) -> list[Sample]:
    """The samples around the marks; all of them if there is no mark."""
    if not moments:
        return samples
    margin = max(_AROUND, (max(moments) - min(moments)) / 2)
    low, high = min(moments) - margin, max(moments) + margin
    return [sample for sample in samples if low <= sample.time <= high]


def _thinned(samples: list[Sample]) -> list[Sample]:
    """At most MAX_POINTS samples: of neighbours the one with the most memory, and both ends."""
    if len(samples) <= MAX_POINTS:
        return samples
    inner, buckets = samples[1:-1], MAX_POINTS - 2
    edges = [round(number * len(inner) / buckets) for number in range(buckets + 1)]
    fullest = [max(inner[low:high], key=_held) for low, high in zip(edges, edges[1:], strict=False)]
    return [samples[0], *fullest, samples[-1]]


def _held(sample: Sample) -> int:
    return sum(usage.current for usage in sample.cgroups.values())


def _series(
    path: str, samples: Sequence[Sample], times: Sequence[float], limit: int | None
) -> Series:
    seen: list[Usage | None] = [sample.cgroups.get(path) for sample in samples]
    return Series(
        path,
        current=tuple(usage.current if usage else None for usage in seen),
        swap=tuple(usage.swap if usage else None for usage in seen),
        some=_shares([usage.some_us if usage else None for usage in seen], times),
        full=_shares([usage.full_us if usage else None for usage in seen], times),
        limit=limit,
    )


def _shares(totals: Sequence[int | None], times: Sequence[float]) -> tuple[float, ...]:
    """The share of each interval that a running total of microseconds grew by."""
    found = [0.0]
    for number in range(1, len(totals)):
        before, now = totals[number - 1], totals[number]
        passed = (times[number] - times[number - 1]) * 1e6
        # A cgroup that was made anew starts from 0.
        grown = now - before if before is not None and now is not None else 0
        found.append(min(max(grown / passed, 0.0), 1.0) if passed > 0 else 0.0)
    return tuple(found[: len(totals)])
