# SPDX-License-Identifier: Apache-2.0
"""Which lines of a TOML text its entries and its errors are on; tomllib itself keeps no lines."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Any

Key = tuple[str, ...]

_PLACE = re.compile(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)\Z", re.DOTALL)
_DEPTH = 3  # params.NAME.ENTRY
# Every line that a statement goes on for is another attempt to read it.
_LONGEST = 64


def of_error(error: Exception, text: str) -> tuple[str, int]:
    """What tomllib found wrong in a text, and the line, from 1."""
    found = _PLACE.match(str(error))
    if not found:
        return str(error), 1
    return found[1], int(found[2] or text.count("\n") + 1)


def of_entries(text: str) -> dict[Key, int]:
    """The line, from 1, that each key begins on, where it stands first; tables by their headers.

    The text is TOML, as tomllib has found. What follows a statement of very many lines is missing.
    """
    found: dict[Key, int] = {}
    table: Key = ()
    statement: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        statement.append(line)
        try:
            tree = tomllib.loads("\n".join(statement))
        except ValueError:
            if len(statement) == _LONGEST:
                break
            continue
        keys = list(_keys(tree, _DEPTH))
        if line.lstrip().startswith("["):
            table = keys[-1]
            keys = [table[:length] for length in range(1, len(table) + 1)]
        else:
            keys = [table + key for key in keys]
        for key in keys:
            found.setdefault(key, number - len(statement) + 1)
        statement = []
    return found


def _keys(tree: dict[str, Any], depth: int) -> Iterator[Key]:
    """The keys of tables in tables, outer ones first."""
    for name, value in tree.items():
        yield (name,)
        if isinstance(value, dict) and depth > 1:
            yield from ((name, *inner) for inner in _keys(value, depth - 1))
