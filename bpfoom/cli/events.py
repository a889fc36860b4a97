# SPDX-License-Identifier: Apache-2.0
"""``bpfoom events``: the decisions that handlers took, from the history and as they happen."""

from __future__ import annotations

import re
import signal
import time
from contextlib import ExitStack
from datetime import datetime

import click

from bpfoom.cli import output, view
from bpfoom.errors import UsageError
from bpfoom.handler import pins
from bpfoom.handler.pins import Pins
from bpfoom.observe import records
from bpfoom.observe.records import Decision, History, Ring

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
# Another consumer of the ring can take our wake-up: look at the history this often anyway.
_WAKE_S = 1.0


@click.command(name="events")
@click.option("--follow", is_flag=True, help="Go on printing decisions as they are taken.")
@click.option("--since", metavar="WHEN", help="An age (90s, 10m, 2h, 1d) or an ISO date and time.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document per line.")
def events_command(follow: bool, since: str | None, as_json: bool) -> None:
    """Print what handlers decided, oldest first.

    \b
    Examples:
      bpfoom events --since 10m
      bpfoom events --follow --json
    """
    oldest = parse_since(since, time.time()) if since else 0.0
    where = pins.find()
    if follow:
        _follow(pins.require() if where is None else where, oldest, as_json)
        return
    found = [seen for seen in records.read_history(where) if seen.time >= oldest]
    if as_json:
        _emit_lines(found, True)
    elif found:
        rows = [view.decision_row(view.decision(seen)) for seen in found]
        output.emit_table(view.DECISION_COLUMNS, rows)
    else:
        click.echo("no decisions recorded")


def parse_since(text: str, now: float) -> float:
    """The point in time, epoch seconds, that ``--since`` names. Raises UsageError."""
    age = re.fullmatch(r"(\d+)\s*([a-z]+)", text.strip())
    if age and age[2] in _UNITS:
        return now - int(age[1]) * _UNITS[age[2]]
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except ValueError:
        raise UsageError(
            f"--since {text}: neither an age nor a date",
            hint="write 90s, 10m, 2h, 1d, or 2026-01-31T12:00:00",
        ) from None


def _follow(where: Pins, oldest: float, as_json: bool) -> None:
    """Print the history, then every new decision, until interrupted."""
    # A KeyboardInterrupt inside libbpf's callback would be lost: ctypes drops exceptions there.
    interrupted = False

    def interrupt(_number: int, _frame: object) -> None:
        nonlocal interrupted
        interrupted = True

    signal.signal(signal.SIGINT, interrupt)
    with ExitStack() as owned:
        while (shared := where.open_shared(records.HISTORY_MAP)) is None:
            time.sleep(_WAKE_S)  # the first attach makes it
            if interrupted:
                return
        history = History.of_map(owned.enter_context(shared))
        ring_map = where.open_shared(records.RING_MAP)
        ring = owned.enter_context(Ring(owned.enter_context(ring_map))) if ring_map else None
        while not interrupted:
            lost = history.lost
            _emit_lines([seen for seen in history.read() if seen.time >= oldest], as_json)
            _report_lost(history.lost - lost, as_json)
            if ring:
                ring.wait(_WAKE_S)
            else:
                time.sleep(_WAKE_S)


def _emit_lines(found: list[Decision], as_json: bool) -> None:
    for seen in found:
        fields = view.decision(seen)
        if as_json:
            output.emit_json_line(fields)
        else:
            output.emit_line(view.DECISION_COLUMNS, view.decision_row(fields))


def _report_lost(lost: int, as_json: bool) -> None:
    if lost and as_json:
        output.emit_json_line({"lost": lost})
    elif lost:
        click.echo(f"({lost} decisions were overwritten before they could be read)", err=True)
