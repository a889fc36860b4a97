# SPDX-License-Identifier: Apache-2.0
"""The page: documents in, one self-contained HTML text out. The same documents, the same bytes.

All text goes through the template's escaping, and what is unprintable through ``text.clean``. The
page forbids itself scripts and network besides (Content-Security-Policy).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bpfoom import __version__
from bpfoom.report import bands, figures, groups, palette, text, timeline
from bpfoom.report.bands import Stack
from bpfoom.report.figures import Shape, Window
from bpfoom.report.groups import Group, Shown, Source
from bpfoom.report.timeline import Series

_TEMPLATES = Path(__file__).parent / "templates"
# So many cgroups are shown at once; the others unfold.
_ROWS = 10
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# A limit that is further above what was held than this is told, not drawn.
_NEAR = 1.6
_YEAR_10000 = 253402300800


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
    window: Window | None


@dataclass(frozen=True)
class GroupView:
    """A group with its runs as they are shown."""

    group: Group
    runs: list[RunView]
    letters: dict[str, str]


def render(sources: Sequence[Source]) -> str:
    """The page. Raises MissingFeatureError without matplotlib."""
    figures.require()
    views = [_view(group) for group in groups.group(sources)]
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_cleaned,
    )
    environment.filters.update(
        size=text.size,
        duration=text.duration,
        number=text.number,
        clock=_clock,
        seconds=_seconds,
        listed=text.listed,
        clean=text.clean,
    )
    environment.globals.update(counted=text.counted, comparison=groups.comparison)
    return environment.get_template("page.html.j2").render(
        sources=sources,
        groups=views,
        version=__version__,
        light=Markup(palette.style(0)),
        dark=Markup(palette.style(1)),
        css=Markup((_TEMPLATES / "page.css").read_text()),
    )


def _cleaned(value: Any) -> Any:
    """Every value that the template puts out; only the drawings and the style are trusted."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else text.clean(value)


def _view(group: Group) -> GroupView:
    stacks = {
        shown.key: [
            bands.stack(shown.lines, place, shown.killed_cgroups)
            for place in bands.places(shown.run, shown.lines)[: bands.MOST_PLACES]
        ]
        for shown in group.runs
        if shown.lines
    }
    everything = [stack for of_run in stacks.values() for stack in of_run]
    window = _window(group.runs, everything) if everything else None
    letters = _letters(everything)
    shape = figures.HALF if len(group.runs) > 1 else figures.WIDE
    runs = [_run(shown, stacks.get(shown.key, []), window, letters, shape) for shown in group.runs]
    return GroupView(group, runs, letters)


def _window(runs: Iterable[Shown], stacks: Iterable[Stack]) -> Window:
    """One for all plots of a group, so that they can be compared."""
    times = [time for shown in runs for time in shown.lines.times]
    tops = [_top(stack) for stack in stacks]
    return Window(min(times), max(times), max(max(tops), 1))


def _top(stack: Stack) -> int:
    limit = stack.limit if stack.limit is not None and _is_near(stack) else 0
    return int(max(stack.peak, limit) * 1.06)


def _is_near(stack: Stack) -> bool:
    return stack.limit is not None and stack.limit <= stack.peak * _NEAR


def _letters(stacks: Iterable[Stack]) -> dict[str, str]:
    """A letter for each cgroup that is a layer somewhere, the same in all plots of the group."""
    paths = {band.path for stack in stacks for band in stack.bands if band.path is not None}
    ordered = sorted(paths, key=timeline.parts)
    return {path: _letter(number) for number, path in enumerate(ordered)}


def _letter(number: int) -> str:
    """A to Z, then AA to ZZ."""
    high, low = divmod(number, len(_LETTERS))
    return (_letter(high - 1) if high else "") + _LETTERS[low]


def _run(
    shown: Shown,
    stacks: Sequence[Stack],
    window: Window | None,
    letters: dict[str, str],
    shape: Shape,
) -> RunView:
    if window is None or not shown.lines:
        return RunView(shown, [], [], [], None)
    plots = [
        _plot(shown, stack, window, letters, shape, f"{shown.key}-p{number}")
        for number, stack in enumerate(stacks, 1)
    ]
    rows = list(_rows(shown, stacks, window, letters))
    first = {row.path for row in rows if row.letter} or {row.path for row in rows[:_ROWS]}
    return RunView(
        shown,
        plots,
        [row for row in rows if row.path in first],
        [row for row in rows if row.path not in first],
        window,
    )


def _plot(
    shown: Shown,
    stack: Stack,
    window: Window,
    letters: dict[str, str],
    shape: Shape,
    key: str,
) -> Plot:
    lines = shown.lines

    def draw(this: Shape, prefix: str) -> Markup:
        args = (stack, lines.times, lines.marks, window, letters, this, lines.origin, prefix)
        return Markup(figures.stack(*args))

    return Plot(
        draw(shape, f"{key}w"),
        draw(figures.NARROW, f"{key}n"),
        _words(shown, stack),
        stack,
        _is_near(stack),
    )


def _words(shown: Shown, stack: Stack) -> str:
    """What a plot shows, for who cannot see it."""
    times, totals = shown.lines.times, stack.totals
    at = [total for time, total in zip(times, totals, strict=True) if time <= 0] or totals[:1]
    place = stack.place if stack.place is not None else "the whole system"
    told = [
        f"Memory and pressure of {place} from {_seconds(times[0])} to {_seconds(times[-1])}.",
        f"It held {text.size(totals[0])} at first, {text.size(at[-1])} at {shown.lines.origin},"
        f" {text.size(stack.peak)} at most and {text.size(totals[-1])} in the end.",
    ]
    if stack.limit is not None:
        told.append(f"Its limit was {text.size(stack.limit)}.")
    if stack.pressure is not None:
        some, full = max(stack.pressure.some), max(stack.pressure.full)
        told.append(f"At worst some tasks were stalled {some:.0%} of the time, all {full:.0%}.")
    return " ".join(told)


def _rows(
    shown: Shown, stacks: Sequence[Stack], window: Window, letters: dict[str, str]
) -> Iterable[Row]:
    """Every cgroup that is not a plot of its own, in the order of the tree."""
    lines = shown.lines
    whole = {stack.place for stack in stacks}
    series = [one for one in lines.series.values() if one.path not in whole]
    top = int(max((max(one.peak, one.peak_swap) for one in series), default=0) * 1.06)
    scaled = Window(window.low, window.high, max(top, 1))
    for number, one in enumerate(series):
        marks = [m for m in lines.marks if m.kind == "decision" or m.cgroup == one.path]
        drawing = figures.row(one, lines.times, marks, scaled, f"{shown.key}-c{number}")
        yield Row(
            one,
            Markup(drawing),
            letters.get(one.path, ""),
            shown.toll(one.path),
            one.at(lines.times, 0.0),
        )


def _clock(epoch: float) -> str:
    """A point in time for people, in UTC: the same wherever the page is made."""
    if not 0 <= epoch < _YEAR_10000:
        return "at a time that no clock has"
    return datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _seconds(seconds: float) -> str:
    """A moment on a timeline: "+1.5 s"."""
    sign = "−" if seconds < 0 else "+"
    return sign + text.duration(abs(seconds) * 1e9) if seconds else "0 s"
