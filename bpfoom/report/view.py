# SPDX-License-Identifier: Apache-2.0
"""What the template is given: groups and runs with their drawings, on scales that they share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from bpfoom.report import bands, figures, text, timeline
from bpfoom.report.bands import Stack
from bpfoom.report.figures import Frame, Shape
from bpfoom.report.groups import Group, Shown
from bpfoom.report.timeline import Series

# So many cgroups are shown at once where none is a layer; the others unfold.
_ROWS = 10
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# A limit that is further above what was held than this is told, not drawn.
_NEAR = 1.6
_HEADROOM = 1.06


@dataclass(frozen=True)
class Plot:
    """A drawing for wide pages, the same for narrow ones, and what they show in words."""

    wide: Markup
    narrow: Markup
    words: str
    what: Stack
    limit_drawn: bool


@dataclass(frozen=True)
class Row:
    """One cgroup beside its small plot; sizes in bytes, None where it was not there."""

    series: Series
    drawing: Markup
    letter: str
    toll: str
    at_zero: int | None

    @property
    def path(self) -> str:
        return self.series.path


@dataclass(frozen=True)
class RunView:
    """A run with its drawings; ``rows`` are shown, ``more_rows`` unfold."""

    shown: Shown
    plots: list[Plot]
    rows: list[Row]
    more_rows: list[Row]
    frame: Frame | None


@dataclass(frozen=True)
class GroupView:
    """A group with its runs as they are shown, and the letters of its plots by path."""

    group: Group
    runs: list[RunView]
    letters: Mapping[str, str]


def of_group(group: Group) -> GroupView:
    """The group with everything drawn."""
    stacks = {shown.key: _stacks(shown) for shown in group.runs}
    frame = _frame(group.runs, [stack for of_run in stacks.values() for stack in of_run])
    shape = figures.HALF if len(group.runs) > 1 else figures.WIDE
    runs = [_run(shown, stacks[shown.key], frame, shape) for shown in group.runs]
    return GroupView(group, runs, frame.letters if frame else {})


def _stacks(shown: Shown) -> list[Stack]:
    """A stack for each place that ran out of memory; none without samples."""
    if not shown.lines:
        return []
    places = bands.places(shown.run, shown.lines)[: bands.MOST_PLACES]
    return [bands.stack(shown.lines, place, shown.killed_cgroups) for place in places]


def _frame(runs: Sequence[Shown], stacks: Sequence[Stack]) -> Frame | None:
    """One for all plots of a group, so that they can be compared; None if there is no plot."""
    if not stacks:
        return None
    times = [time for shown in runs if shown.lines for time in shown.lines.times]
    top = int(max(_top(stack) for stack in stacks) * _HEADROOM)
    paths = {band.path for stack in stacks for band in stack.bands if band.path is not None}
    letters = {path: _letter(n) for n, path in enumerate(sorted(paths, key=timeline.parts))}
    kinds = {mark.kind for shown in runs for mark in shown.lines.marks}
    return Frame(min(times), max(times), max(top, 1), letters, tuple(sorted(kinds)))


def _top(stack: Stack) -> int:
    """What a plot has to reach up to: its limit, if that is near."""
    return max(stack.peak, stack.limit or 0) if _is_near(stack) else stack.peak


def _is_near(stack: Stack) -> bool:
    return stack.limit is not None and stack.limit <= stack.peak * _NEAR


def _letter(number: int) -> str:
    """A to Z, then AA to ZZ."""
    high, low = divmod(number, len(_LETTERS))
    return (_letter(high - 1) if high else "") + _LETTERS[low]


def _run(shown: Shown, stacks: Sequence[Stack], frame: Frame | None, shape: Shape) -> RunView:
    if frame is None or not stacks:
        return RunView(shown, [], [], [], None)
    plots = [
        _plot(shown, stack, frame, shape, f"{shown.key}-p{number}")
        for number, stack in enumerate(stacks, 1)
    ]
    rows = list(_rows(shown, stacks, frame))
    first = {row.path for row in rows if row.letter} or {row.path for row in rows[:_ROWS]}
    return RunView(
        shown,
        plots,
        [row for row in rows if row.path in first],
        [row for row in rows if row.path not in first],
        frame,
    )


def _plot(shown: Shown, stack: Stack, frame: Frame, shape: Shape, key: str) -> Plot:
    lines = shown.lines.within(stack.place)
    return Plot(
        wide=Markup(figures.stack(stack, lines, frame, shape, f"{key}w")),
        narrow=Markup(figures.stack(stack, lines, frame, figures.NARROW, f"{key}n")),
        words=_words(shown, stack),
        what=stack,
        limit_drawn=_is_near(stack),
    )


def _words(shown: Shown, stack: Stack) -> str:
    """What a plot shows, for who cannot see it."""
    times, totals = shown.lines.times, stack.totals
    at = [total for time, total in zip(times, totals, strict=True) if time <= 0] or totals[:1]
    place = stack.place if stack.place is not None else "the whole system"
    told = [
        f"Memory and pressure of {place} from {text.moment(times[0])} to {text.moment(times[-1])}.",
        f"It held {text.size(totals[0])} at first, {text.size(at[-1])} at {shown.lines.origin},"
        f" {text.size(stack.peak)} at most and {text.size(totals[-1])} in the end.",
    ]
    if stack.limit is not None:
        told.append(f"Its limit was {text.size(stack.limit)}.")
    if stack.pressure is not None:
        some, full = max(stack.pressure.some), max(stack.pressure.full)
        told.append(f"At worst some tasks were stalled {some:.0%} of the time, all {full:.0%}.")
    return " ".join(told)


def _rows(shown: Shown, stacks: Sequence[Stack], frame: Frame) -> Iterator[Row]:
    """Every cgroup that is not a plot of its own, in the order of the tree."""
    lines = shown.lines
    whole = {stack.place for stack in stacks}
    series = [one for one in lines.series.values() if one.path not in whole]
    top = max((max(one.peak, one.peak_swap) for one in series), default=0)
    own_frame = replace(frame, top=max(int(top * _HEADROOM), 1))
    for number, one in enumerate(series):
        marks = [m for m in lines.marks if m.kind == "decision" or m.cgroup == one.path]
        toll = shown.toll(one.path)
        kind, key = "killed" if toll else "lived", f"{shown.key}-c{number}"
        yield Row(
            series=one,
            drawing=Markup(figures.row(one, kind, lines.times, marks, own_frame, key)),
            letter=frame.letters.get(one.path, ""),
            toll=toll,
            at_zero=one.at(lines.times, 0.0),
        )
