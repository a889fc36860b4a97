# SPDX-License-Identifier: Apache-2.0
"""Where each rendered line came from: template file and line.

Template text is marked before Jinja sees it, and the marks are taken out of what it renders. Text
that an expression produces has no mark of its own and belongs to the line it was written on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from jinja2.ext import Extension
from jinja2.lexer import Token, TokenStream

# Control characters that no template may contain, see bpfoom.policy.render.
START, END = "\x01", "\x02"
_MARK = re.compile(f"{START}([^{END}]*):(\\d+){END}")
_LEADING = re.compile(f"(?:[ \\t]*{_MARK.pattern})*")


@dataclass(frozen=True)
class Origin:
    """A template, by the name it was loaded under, and a line in it, from 1."""

    template: str
    line: int


class LineMarks(Extension):
    """Marks the start of every piece of template text, and every line in it."""

    def filter_stream(self, stream: TokenStream) -> Iterable[Token]:
        name = stream.name or ""
        for token in stream:
            if token.type == "data":
                lines = token.value.split("\n")
                marked = [
                    f"{START}{name}:{token.lineno + i}{END}{line}" for i, line in enumerate(lines)
                ]
                yield Token(token.lineno, token.type, "\n".join(marked))
            else:
                yield token


def separate(marked: str) -> tuple[str, tuple[Origin, ...]]:
    """The text without its marks, and the origin of each of its lines."""
    text, origins = [], []
    current = Origin("", 1)
    for line in marked.split("\n"):
        # Of several marks, the last before any visible text says where that text was written.
        leading = _LEADING.match(line)
        marks = _MARK.findall(leading[0] if leading else "")
        here = Origin(marks[-1][0], int(marks[-1][1])) if marks else current
        origins.append(here)
        every = _MARK.findall(line)
        current = Origin(every[-1][0], int(every[-1][1])) if every else current
        text.append(_MARK.sub("", line))
    return "\n".join(text), tuple(origins)
