# SPDX-License-Identifier: Apache-2.0
"""The page: documents in, one self-contained HTML text out. The same documents, the same bytes.

All text goes through the template's escaping, and what is unprintable through ``text.clean``. The
page forbids itself scripts and network besides (Content-Security-Policy).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bpfoom import __version__
from bpfoom.report import figures, groups, palette, text, view
from bpfoom.report.groups import Source

_TEMPLATES = Path(__file__).parent / "templates"
_YEAR_10000 = 253402300800


def render(sources: Sequence[Source]) -> str:
    """The page. Raises MissingFeatureError without matplotlib."""
    figures.require()
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            sources=sources,
            groups=[view.of_group(group) for group in groups.group(sources)],
            version=__version__,
            light=Markup(palette.style(0)),
            dark=Markup(palette.style(1)),
            css=Markup((_TEMPLATES / "page.css").read_text()),
        )
    )


def _environment() -> Environment:
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
        moment=text.moment,
        clock=_clock,
    )
    environment.globals.update(counted=text.counted, comparison=groups.comparison)
    return environment


def _cleaned(value: Any) -> Any:
    """Every value that the template puts out; only the drawings and the style are trusted."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else text.clean(value)


def _clock(epoch: float) -> str:
    """A point in time for people, in UTC: the same wherever the page is made."""
    if not 0 <= epoch < _YEAR_10000:
        return "at a time that no clock has"
    return datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
