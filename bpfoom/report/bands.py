# SPDX-License-Identifier: Apache-2.0
"""Which cgroups a plot is about: those out of memory; and how their memory divides below them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bpfoom.observe.result import Run
from bpfoom.report import timeline
from bpfoom.report.timeline import Series, Timeline

# So many cgroups can be told apart in one stack; the rest is summed up.
MOST = 6
MOST_PLACES = 4
# What a cgroup holds beside those below it is shown from this share of its peak on.
_WORTH_SHOWING = 0.03


@dataclass(frozen=True)
class Band:
    """A layer of a stack: bytes for each time. ``path`` is None for a sum or a remainder."""

    label: str
    path: str | None
    values: tuple[int, ...]
    kind: str  # killed, lived or other
    shade: int = 0

    @property
    def peak(self) -> int:
        return max(self.values, default=0)


@dataclass(frozen=True)
class Stack:
    """What was held in ``place`` (None: in the whole system), bottom to top."""

    place: str | None
    bands: tuple[Band, ...]
    limit: int | None
    pressure: Series | None

    @property
    def totals(self) -> tuple[int, ...]:
        return tuple(sum(held) for held in zip(*(b.values for b in self.bands), strict=True))

    @property
    def peak(self) -> int:
        return max(self.totals, default=0)


def places(run: Run, lines: Timeline) -> list[str | None]:
    """The cgroups that ran out of memory themselves, else the topmost one or the whole system."""
    known = {timeline.parts(path): path for path in lines.series}
    events = run.memory_events
    own = [path for path in events if _own_ooms(path, events) > 0]
    asked = [one.cgroups.oom_cgroup for one in run.decisions if one.cgroups]
    found = {known[key] for key in map(timeline.parts, [*own, *asked]) if key in known}
    if found:
        ordered: list[str | None] = []
        return ordered + sorted(found, key=timeline.parts)
    top = timeline.tops(lines.series)
    return [top[0]] if len(top) == 1 else [None]


def _own_ooms(path: str, events: dict[str, dict[str, int]]) -> int:
    """OOMs of the cgroup's own limit: memory.events counts those below it, too."""
    below = [other for other in events if timeline.is_below(other, path)]
    inner = sum(events[child].get("oom", 0) for child in timeline.tops(below))
    return events[path].get("oom", 0) - inner


def stack(lines: Timeline, place: str | None, killed: Iterable[str]) -> Stack:
    """The bands of a place: who lost a process on top, then by size; small ones as one."""
    inside = [p for p in lines.series if place is None or timeline.is_below(p, place)]
    members = timeline.leaves(inside) or ([place] if place is not None else [])
    lost = {timeline.parts(path) for path in killed}
    series = sorted(
        (lines.series[path] for path in members),
        key=lambda one: (timeline.parts(one.path) not in lost, -one.peak, one.path),
    )
    shown, small = series[:MOST], series[MOST:]
    of_victims = [one for one in shown if timeline.parts(one.path) in lost]
    others = [one for one in shown if one not in of_victims]
    whole = lines.series.get(place) if place is not None else None
    bands = [
        *_rest(whole, series),
        *([_sum(small)] if small else []),
        *reversed([_band(one, "lived", shade) for shade, one in enumerate(others)]),
        *reversed([_band(one, "killed", shade) for shade, one in enumerate(of_victims)]),
    ]
    return Stack(place, tuple(bands), whole.limit if whole else None, whole)


def _band(one: Series, kind: str, shade: int) -> Band:
    return Band(one.path, one.path, _filled(one), kind, shade)


def _sum(small: Sequence[Series]) -> Band:
    held = tuple(map(sum, zip(*(_filled(one) for one in small), strict=True)))
    return Band(f"{len(small)} more cgroups", None, held, "other")


def _rest(whole: Series | None, members: Sequence[Series]) -> list[Band]:
    """What the place holds that is in none of its leaves."""
    if whole is None or [whole] == list(members):
        return []
    columns = zip(_filled(whole), *(_filled(one) for one in members), strict=True)
    held = tuple(max(total - sum(parts), 0) for total, *parts in columns)
    if max(held, default=0) < whole.peak * _WORTH_SHOWING:
        return []
    return [Band("in none of these", None, held, "other", 1)]


def _filled(one: Series) -> tuple[int, ...]:
    return tuple(value or 0 for value in one.current)
