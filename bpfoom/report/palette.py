# SPDX-License-Identifier: Apache-2.0
"""The page's colours, light and dark, and their stand-ins while matplotlib draws.

matplotlib knows no CSS variable. Plots are drawn in colours that mean nothing but a place in this
table; afterwards each becomes ``var(--name)``, so that one drawing serves both modes. Who was
killed is orange and who lived is blue, which every kind of colour vision tells apart; shades differ
in lightness and letters name them, so nothing depends on hue.
"""

from __future__ import annotations

import re

# name: (light, dark)
COLOURS = {
    "paper": ("#ffffff", "#12161b"),
    "card": ("#f5f7f9", "#1b2128"),
    "line": ("#cdd4db", "#3a434e"),
    "ink": ("#1b2026", "#e9edf1"),
    "muted": ("#55606b", "#a8b2bd"),
    "link": ("#0b5394", "#8ec1f5"),
    "killed": ("#ad3f08", "#f2915a"),
    "killed-0": ("#d96e33", "#d2692f"),
    "killed-1": ("#eca47a", "#a14c1d"),
    "killed-2": ("#f7d3bd", "#e3a07a"),
    "lived": ("#2a6aa1", "#78b5ea"),
    "lived-0": ("#4f8cc0", "#3b78ad"),
    "lived-1": ("#93bede", "#285480"),
    "lived-2": ("#cbe0f0", "#6c9fcc"),
    "killed-area": ("#fbe8dd", "#56301c"),
    "lived-area": ("#d5e6f3", "#24435e"),
    "other-0": ("#b3bac2", "#5b6570"),
    "other-1": ("#d5dadf", "#434c56"),
    "decision": ("#6b3fa0", "#c3a2f2"),
    "some": ("#e8c468", "#6b5518"),
    "full": ("#8a5c00", "#f2c14e"),
}
# Of areas; the names without a number are of lines, marks and text.
SHADES = 3

_STAND_INS = {name: f"#00{number:02x}ef" for number, name in enumerate(COLOURS)}
_STAND_IN = re.compile(r"#00([0-9a-f]{2})ef")
_NAMES = tuple(COLOURS)


def stand_in(name: str) -> str:
    """The colour to draw in where the page's colour of that name is meant."""
    return _STAND_INS[name]


def shade(kind: str, number: int) -> str:
    """The name of an area's colour; shades come again where there are more than SHADES."""
    return f"{kind}-{number % SHADES}"


def as_variables(drawing: str) -> str:
    """The drawing with every stand-in as a CSS variable; without CSS it is the light colour."""

    def variable(match: re.Match[str]) -> str:
        name = _NAMES[int(match[1], 16)]
        return f"var(--{name}, {COLOURS[name][0]})"

    return _STAND_IN.sub(variable, drawing)


def style(mode: int) -> str:
    """CSS declarations of all colours: mode 0 is light, 1 dark."""
    return " ".join(f"--{name}: {pair[mode]};" for name, pair in COLOURS.items())
