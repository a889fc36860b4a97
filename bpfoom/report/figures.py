# SPDX-License-Identifier: Apache-2.0
"""The plots, drawn by matplotlib: the only module that imports it.

Plots hold numbers and letters only. Names stand beside them as text of the page, where they wrap,
are escaped, and are drawn in whatever font the reader has for them.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bpfoom.errors import MissingFeatureError
from bpfoom.report import axes, palette, svg
from bpfoom.report.bands import Stack
from bpfoom.report.palette import stand_in
from bpfoom.report.timeline import Mark, Series, Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POINTS = 72  # a unit of the drawing is 1/72 inch
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


@dataclass(frozen=True)
class Shape:
    """How a plot is drawn for one width of the page, in its own units (about CSS pixels)."""

    width: int
    memory: int
    pressure: int
    font: float
    left: int
    ticks: int


WIDE = Shape(width=920, memory=250, pressure=74, font=13, left=78, ticks=9)
HALF = Shape(width=540, memory=230, pressure=70, font=13, left=78, ticks=6)
NARROW = Shape(width=340, memory=210, pressure=64, font=12, left=66, ticks=4)
_LANE, _GAP, _BOTTOM, _RIGHT, _TOP = 24, 22, 42, 12, 4
_MARK = 36  # a mark with its label
ROW_WIDTH, ROW_HEIGHT = 400, 60


@dataclass(frozen=True)
class Frame:
    """What plots have in common: ``low`` to ``high`` seconds, up to ``top`` bytes, a letter for
    each cgroup that is a layer somewhere, by its path, and the kinds of marks that there are."""

    low: float
    high: float
    top: int
    letters: Mapping[str, str]
    marked: tuple[str, ...] = ("death", "decision")


def require() -> None:
    """Raises MissingFeatureError where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingFeatureError(
            "a report is drawn by matplotlib, which is not installed",
            hint="pip install 'bpfoom[report]'",
            object="matplotlib",
        ) from error


def stack(what: Stack, lines: Timeline, frame: Frame, shape: Shape, prefix: str) -> str:
    """Memory as layers below the limit, pressure beneath, marks above: an ``<svg>`` element.

    ``prefix`` begins its ids, and is no other drawing's.
    """
    room = shape.width - shape.left - _RIGHT
    found = axes.clusters(lines.marks, (frame.high - frame.low) * _MARK / room)
    heights = [_LANE * len(frame.marked) + 1, shape.memory, shape.pressure]
    with _figure(shape, sum(heights) + _GAP + _TOP + _BOTTOM, prefix) as (figure, drawn):
        lane, memory, pressure = _panels(figure, shape, heights)
        _marks(lane, found, frame.marked)
        _layers(memory, what, lines.times, frame.letters)
        _limit(memory, what.limit, frame)
        _pressure(pressure, what.pressure, lines.times)
        for panel in (memory, pressure):
            _moments(panel, found)
        for panel in (lane, memory, pressure):
            panel.set_xlim(frame.low, frame.high)
        memory.set_ylim(0, float(frame.top))
        ticks = axes.of_bytes(frame.top)
        memory.set_yticks([float(place) for place in ticks.places], ticks.labels)
        _time_axis(memory, pressure, frame, shape)
        pressure.set_xlabel(f"{axes.time_unit(frame.high - frame.low)[1]} from {lines.origin}")
    return svg.inline(drawn.getvalue(), prefix)


def row(
    one: Series,
    kind: str,
    times: Sequence[float],
    marks: Sequence[Mark],
    frame: Frame,
    prefix: str,
) -> str:
    """One cgroup's memory and pressure without any text, to be stretched to a row's width.

    ``kind`` is "killed" where somebody was, else "lived".
    """
    shape = Shape(ROW_WIDTH, 0, 0, 10, 0, 0)
    places = axes.corners(one.current, one.swap, one.some, one.full)
    one, times = one.only(places), [times[place] for place in places]
    with _figure(shape, ROW_HEIGHT, prefix) as (figure, drawn):
        # Memory has the upper part, pressure the lower: one panel, as there may be many rows.
        panel = figure.add_axes((0, 0, 1, 1))
        panel.axis("off")
        panel.set_xlim(frame.low, frame.high)
        panel.set_ylim(-0.4, 1)
        held, swapped = (
            [float("nan") if value is None else value / frame.top for value in values]
            for values in (one.current, one.swap)
        )
        panel.fill_between(times, held, color=stand_in(f"{kind}-area"), linewidth=0)
        panel.plot(times, held, color=stand_in(kind), linewidth=1.5)
        if one.peak_swap:
            panel.plot(times, swapped, color=stand_in("ink"), linewidth=1.5, dashes=(1, 2))
        if one.limit is not None and one.limit <= frame.top:
            panel.axhline(one.limit / frame.top, color=stand_in("ink"), linewidth=1, dashes=(4, 3))
        _stalls(panel, one, times, -0.38, 0.33)
        panel.axhline(-0.38, color=stand_in("line"), linewidth=1)
        _moments(panel, axes.clusters(marks, (frame.high - frame.low) / 100))
    return svg.inline(drawn.getvalue(), prefix).replace(
        "<svg ", '<svg preserveAspectRatio="none" class="row" ', 1
    )


@contextmanager
def _figure(shape: Shape, height: int, prefix: str) -> Iterator[tuple[Figure, io.StringIO]]:
    """A figure of that size; when the block ends, the text is its SVG. Same input, same bytes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context():
        mpl.rcdefaults()  # not the user's own matplotlibrc
        mpl.rcParams.update(_parameters(shape.font, prefix))
        figure = Figure(figsize=(shape.width / _POINTS, height / _POINTS), dpi=_POINTS)
        drawn = io.StringIO()
        yield figure, drawn
        figure.savefig(drawn, format="svg", metadata=_NO_METADATA, transparent=True)


def _parameters(font: float, prefix: str) -> Any:
    ink, muted, line = stand_in("ink"), stand_in("muted"), stand_in("line")
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": prefix,
        "font.size": font,
        "text.parse_math": False,
        "text.color": ink,
        "axes.edgecolor": line,
        "axes.labelcolor": muted,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.grid.axis": "y",
        "grid.color": line,
        "grid.linewidth": 0.8,
        "xtick.color": line,
        "ytick.color": line,
        "xtick.labelcolor": muted,
        "ytick.labelcolor": muted,
        "ytick.major.size": 0,
    }


def _panels(figure: Figure, shape: Shape, heights: Sequence[int]) -> list[Axes]:
    """Panels from top to bottom; their margins are fixed, so that plots stand alike."""
    whole = figure.get_size_inches()[1] * _POINTS
    left, width = shape.left / shape.width, 1 - (shape.left + _RIGHT) / shape.width
    made = []
    below = whole - _TOP
    for height in heights:
        below -= height
        made.append(figure.add_axes((left, below / whole, width, height / whole)))
        below -= _GAP if len(made) > 1 else 0
    return made


def _layers(panel: Axes, what: Stack, times: Sequence[float], letters: Mapping[str, str]) -> None:
    colours = [stand_in(palette.shade(band.kind, band.shade)) for band in what.bands]
    panel.stackplot(
        times,
        # As floats: numpy takes no integer of 64 bits and more, and sums have more.
        *[[float(value) for value in band.values] for band in what.bands],
        colors=colours,
        edgecolor=stand_in("paper"),
        linewidth=1.2,
    )
    below = [0] * len(times)
    for band in what.bands:
        _letter(panel, band.values, below, times, letters.get(band.path or ""), what.peak)
        below = [low + value for low, value in zip(below, band.values, strict=True)]


def _letter(
    panel: Axes,
    values: Sequence[int],
    below: Sequence[int],
    times: Sequence[float],
    letter: str | None,
    peak: int,
) -> None:
    """The band's letter where there is most room around it, if there is any."""
    around = max(len(values) // 16, 1)
    rooms = [min(values[max(n - around, 0) : n + around + 1]) for n in range(len(values))]
    if letter is None or max(rooms) < peak * 0.09:
        return
    widest = [n for n, room in enumerate(rooms) if room >= max(rooms) * 0.95]
    at = widest[len(widest) // 2]
    panel.text(
        times[at],
        below[at] + values[at] / 2,
        letter,
        ha="center",
        va="center",
        weight="bold",
        clip_on=True,
        bbox={
            "boxstyle": "circle,pad=0.22",
            "facecolor": stand_in("paper"),
            "edgecolor": "none",
        },
    )


def _limit(panel: Axes, limit: int | None, frame: Frame) -> None:
    if limit is not None and limit <= frame.top:
        panel.axhline(float(limit), color=stand_in("ink"), linewidth=1.6, dashes=(5, 3))


def _pressure(panel: Axes, one: Series | None, times: Sequence[float]) -> None:
    if one is not None:
        _stalls(panel, one, times)
    panel.set_ylim(0, 1)
    panel.set_yticks((0, 0.5, 1), ("0", "50 %", "100 %"))


def _stalls(
    panel: Axes, one: Series, times: Sequence[float], floor: float = 0, height: float = 1
) -> None:
    """Areas from ``floor`` up, ``height`` being stalled all the time."""
    # A share is of the interval that ends at its time.
    for values, name in ((one.some, "some"), (one.full, "full")):
        tops = [floor + height * value for value in values]
        panel.fill_between(times, tops, floor, step="pre", color=stand_in(name), linewidth=0)


def _marks(lane: Axes, found: Sequence[axes.Cluster], marked: Sequence[str]) -> None:
    """Decisions with their numbers and deaths with their count, each in a line of its own."""
    heights = {kind: number + 0.5 for number, kind in enumerate(marked)}
    lane.set_ylim(0, max(len(marked), 1))
    lane.grid(False)
    lane.spines["bottom"].set_visible(False)
    lane.set_xticks(())
    words = {"decision": "decided", "death": "died"}
    lane.set_yticks(list(heights.values()), [words[kind] for kind in marked])
    looks = {"decision": ("v", "decision"), "death": ("x", "killed")}
    for cluster in found:
        marker, name = looks[cluster.kind]
        at = (cluster.time, heights[cluster.kind])
        lane.vlines(cluster.time, 0, at[1], **_line(cluster))
        lane.plot(*at, marker, color=stand_in(name), markersize=8, markeredgewidth=2, clip_on=False)
        if cluster.label:
            lane.annotate(cluster.label, at, (8, 0), textcoords="offset points", va="center")


def _moments(panel: Axes, found: Sequence[axes.Cluster]) -> None:
    """A line down through a panel for each mark."""
    for cluster in found:
        panel.axvline(cluster.time, **_line(cluster))


def _line(cluster: axes.Cluster) -> dict[str, Any]:
    decided = cluster.kind == "decision"
    return {
        "color": stand_in("decision" if decided else "killed"),
        "linewidth": 1.2,
        "linestyle": "-" if decided else (0, (2, 2)),
    }


def _time_axis(memory: Axes, pressure: Axes, frame: Frame, shape: Shape) -> None:
    from matplotlib.ticker import MaxNLocator

    unit, _ = axes.time_unit(frame.high - frame.low)
    locator = MaxNLocator(nbins=shape.ticks, steps=[1, 2, 5, 10])
    ticks = locator.tick_values(frame.low / unit, frame.high / unit)
    shown = [tick for tick in ticks if frame.low <= tick * unit <= frame.high]
    memory.set_xticks([tick * unit for tick in shown], [""] * len(shown))
    memory.tick_params(axis="x", length=0)
    labels = [f"{tick:g}".replace("-", "\u2212") for tick in shown]
    pressure.set_xticks([tick * unit for tick in shown], labels)
