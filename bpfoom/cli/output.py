# SPDX-License-Identifier: Apache-2.0
"""How every command prints: tables, field lists and JSON from the same rows.

On a terminal tables are rich's; elsewhere they are plain aligned text, never cut, never coloured,
and rich is not even imported.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from bpfoom.report.text import clean


def emit_json(data: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(data, indent=2, default=str))


def emit_json_line(data: Any) -> None:
    """One JSON document on one line, for streams; written at once."""
    click.echo(json.dumps(data, default=str))
    sys.stdout.flush()


def say(line: str, *, err: bool = False) -> None:
    """One line for people, with names in it that anybody may have chosen; see :func:`text`."""
    click.echo(clean(line), err=err)


def emit_now(line: str) -> None:
    """One line for people, written at once: whoever reads a pipe waits for it."""
    say(line)
    sys.stdout.flush()


def emit_table(
    columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]], *, whole: str = ""
) -> None:
    """A table: ``columns`` maps the rows' keys to titles; the order is theirs.

    Cells of the column ``whole`` are never broken, however narrow the terminal.
    """
    cells = [[text(row.get(key)) for key in columns] for row in rows]
    if sys.stdout.isatty():
        _rich_table(list(columns.values()), cells, columns.get(whole, ""))
    else:
        _plain_table(list(columns.values()), cells)


def emit_line(columns: Mapping[str, str], row: Mapping[str, Any]) -> None:
    """One row of a table that is still growing: no title, no widths; written at once."""
    click.echo("  ".join(text(row.get(key)) for key in columns))
    sys.stdout.flush()


def emit_fields(fields: Mapping[str, Any]) -> None:
    """One ``title: value`` per line, values aligned."""
    width = max((len(title) for title in fields), default=0)
    for title, value in fields.items():
        click.echo(f"{title + ':':<{width + 1}} {text(value)}".rstrip())


def text(value: Any) -> str:
    """A cell's text: "-" for nothing, yes and no for booleans.

    Names of tasks and cgroups are bytes that anybody may choose: what a terminal would obey, or
    take for another line, is escaped.
    """
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return clean(str(value))


def size(number: int) -> str:
    """Bytes for people, in binary units: 1536 -> "1.5K"."""
    amount, unit = float(number), ""
    for unit in ("", "K", "M", "G", "T"):
        if abs(amount) < 1024 or unit == "T":
            break
        amount /= 1024
    return f"{amount:.0f}{unit}" if amount >= 10 or not unit else f"{amount:.1f}{unit}"


def duration(nanoseconds: int) -> str:
    """A short time for people: 1500000 -> "1.5ms"."""
    amount, unit = float(nanoseconds), "ns"
    for unit in ("ns", "us", "ms", "s"):
        if amount < 1000 or unit == "s":
            break
        amount /= 1000
    return f"{amount:.0f}{unit}" if amount >= 10 or unit == "ns" else f"{amount:.1f}{unit}"


def clock(epoch: float | None) -> str:
    """A point in time, local and to the second; "-" for None."""
    if epoch is None:
        return "-"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(epoch))


def _plain_table(titles: list[str], cells: list[list[str]]) -> None:
    table = [titles, *cells]
    widths = [max(len(row[i]) for row in table) for i in range(len(titles))]
    for row in table:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())


def _rich_table(titles: list[str], cells: list[list[str]], whole: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column, title in enumerate(titles):
        widest = max((len(row[column]) for row in cells), default=0)
        least = widest if title == whole else None
        table.add_column(title, min_width=least, overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
