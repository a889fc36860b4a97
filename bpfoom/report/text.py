# SPDX-License-Identifier: Apache-2.0
"""Names, sizes and times as they stand on the page.

Names of cgroups and processes are bytes that anybody may choose: what cannot be printed is shown
escaped, so that no name can hide, reorder or end anything.
"""

from __future__ import annotations

from collections.abc import Iterable

_SIZES = ("B", "KiB", "MiB", "GiB", "TiB")
_TIMES = (("ns", 1000), ("µs", 1000), ("ms", 1000), ("s", 60), ("min", 60), ("h", 0))
# Python's escape of a byte that is no UTF-8 (surrogateescape).
_BYTE = range(0xDC80, 0xDD00)


def clean(name: str) -> str:
    """The text with everything unprintable escaped: NUL is ``\\x00``, a lone byte ``\\xff``."""
    return "".join(char if char.isprintable() else _escaped(char) for char in name)


def _escaped(char: str) -> str:
    if ord(char) in _BYTE:
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")


def size(number: float) -> str:
    """Bytes in binary units: 1610612736 -> "1.5 GiB"."""
    amount, units = float(number), list(_SIZES)
    while abs(amount) >= 1024 and len(units) > 1:
        amount /= 1024
        del units[0]
    return f"{_short(amount)} {units[0]}"


def duration(nanoseconds: float) -> str:
    """A time span: 4500000 -> "4.5 ms"."""
    amount, (name, more), *larger = float(nanoseconds), *_TIMES
    while more and abs(amount) >= more:
        amount /= more
        (name, more), *larger = larger
    return f"{_short(amount)} {name}"


def moment(seconds: float) -> str:
    """A moment on a timeline: 1.5 -> "+1.5 s"."""
    sign = "\u2212" if seconds < 0 else "+"
    return sign + duration(abs(seconds) * 1e9) if seconds else "0 s"


def number(value: int) -> str:
    """A count with its thousands apart: 1234567 -> "1,234,567"."""
    return f"{value:,}"


def counted(count: int, noun: str, plural: str = "") -> str:
    """A count with its noun: "1 process", "4 processes"."""
    return f"{number(count)} {noun if count == 1 else plural or noun + 's'}"


def listed(words: Iterable[str], most: int = 4) -> str:
    """Words in a sentence; beyond ``most`` of them, how many more: "a, b and 3 more"."""
    all_words = list(words)
    if len(all_words) > most:
        all_words = [*all_words[: most - 1], f"{len(all_words) - most + 1} more"]
    if len(all_words) < 2:
        return "".join(all_words)
    return f"{', '.join(all_words[:-1])} and {all_words[-1]}"


def _short(amount: float) -> str:
    """Two or three digits that matter."""
    return f"{amount:.1f}".removesuffix(".0") if abs(amount) < 10 else f"{amount:.0f}"
