# SPDX-License-Identifier: Apache-2.0
"""Near misses: what somebody may have meant who wrote a name that there is not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def hint(word: str, known: Iterable[str]) -> str:
    """ "did you mean: ...?" with the nearest of the known names, "" where none is near."""
    close = nearest(word, known)
    return f"did you mean: {', '.join(close)}?" if close else ""


def nearest(word: str, known: Iterable[str]) -> list[str]:
    """The known names that are near, the nearest first."""
    return difflib.get_close_matches(word, list(known), n=3)
