# SPDX-License-Identifier: Apache-2.0
"""Which line of the C text each instruction came from, as bcc tells it.

bcc disassembles what it compiled, on stderr, with source lines between the instructions. Their text
is that of its own rewriting of ours; their numbers are ours, owing to the #line directives of
:mod:`bpfoom.compiler.source`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from bpfoom.compiler.object import Line
from bpfoom.compiler.source import Origins, origin

# Instruction index and line number, from 1; ascending by instruction.
Numbers = Sequence[tuple[int, int]]

_PROGRAM = re.compile(r"Disassembly of function (\w+)")
_LINE = re.compile(r"; .*// Line +(\d+)")
_INSN = re.compile(r" *(\d+):\t")


def split(stderr: str) -> tuple[str, dict[str, Numbers]]:
    """What a compile said, and the line numbers of each program it made."""
    said: list[str] = []
    numbers: dict[str, list[tuple[int, int]]] = {}
    current: list[tuple[int, int]] | None = None
    line = 0
    for text in stderr.splitlines(keepends=True):
        program, number, insn = (p.match(text) for p in (_PROGRAM, _LINE, _INSN))
        if program:
            current, line = numbers.setdefault(program[1], []), 0
        elif current is None or not (number or insn or not text.strip()):
            said.append(text)
        elif number:
            line = int(number[1])
        elif insn and line and (not current or current[-1][1] != line):
            current.append((int(insn[1]), line))
    return "".join(said), dict(numbers)


def located(
    numbers: Numbers, text: str, origins: Origins, starts: Iterable[int]
) -> tuple[Line, ...]:
    """The lines as places in templates, for a program whose instructions begin at ``starts``.

    The first instruction has a line if any has: the kernel insists on it.
    """
    known = frozenset(starts)
    c_lines = text.split("\n")
    found: list[Line] = []
    for insn, number in numbers:
        if insn in known and number <= len(c_lines):
            path, line = origin(origins, number)
            found.append(Line(insn if found else 0, path, line, c_lines[number - 1].strip()))
    return tuple(found)
