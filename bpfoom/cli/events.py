# SPDX-License-Identifier: Apache-2.0
"""``bpfoom events``: the decisions that handlers took, from the history and as they happen."""

from __future__ import annotations

import re
import time
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bpfoom.btf.types import Btf
from bpfoom.cli import output, view
from bpfoom.cli.interrupt import Interrupt
from bpfoom.errors import UsageError
from bpfoom.handler import describe, pins
from bpfoom.handler.pins import Pins
from bpfoom.observe.records import Decision, Tail

if TYPE_CHECKING:
    from bpfoom.observe.recording import Recording
    from bpfoom.observe.result import Document

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
# Older than any decision, in whatever unit; beyond that, floats end.
_LONGEST = 10**12
# Another consumer of the ring can take our wake-up: look at the history this often anyway.
_WAKE_S = 1.0


@click.command(name="events")
@click.option("--follow", is_flag=True, help="Go on printing decisions as they are taken.")
@click.option("--since", metavar="WHEN", help="An age (90s, 10m, 2h, 1d) or an ISO date and time.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document per line.")
@click.option(
    "--result",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="With --follow: when it ends, write there what came of it all.",
)
def events_command(follow: bool, since: str | None, as_json: bool, result: Path | None) -> None:
    """Print what handlers decided, oldest first.

    The last 1024 decisions of the machine are kept, whether anybody listens or not. How many were
    overwritten before they could be read is said.

    \b
    Examples:
      bpfoom events --since 10m
      bpfoom events --follow --json
      bpfoom events --follow --result oom.json     # then: bpfoom report oom.json
    """
    if result and not follow:
        raise UsageError("--result needs --follow", hint="it holds what is seen meanwhile")
    oldest = parse_since(since, time.time()) if since else 0.0
    where = pins.find()
    if follow:
        _follow(pins.require() if where is None else where, oldest, as_json, result)
    elif where is None:
        _print([], 0, as_json)
    else:
        with Tail(where) as tail:
            found, lost = _caught_up(tail, oldest)
        _print(_fields(found, where), lost, as_json)


def parse_since(text: str, now: float) -> float:
    """The point in time, epoch seconds, that ``--since`` names. Raises UsageError."""
    age = re.fullmatch(r"(\d+)\s*([a-z]+)", text.strip())
    if age and age[2] in _UNITS:
        return now - min(int(age[1]), _LONGEST) * _UNITS[age[2]]
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError):
        raise UsageError(
            f"--since {text}: neither an age nor a date",
            hint="write 90s, 10m, 2h, 1d, or 2026-01-31T12:00:00",
        ) from None


def _follow(where: Pins, oldest: float, as_json: bool, result: Path | None) -> None:
    """Print the history, then every new decision, until interrupted."""
    with Interrupt() as interrupt, ExitStack() as owned:
        recording = _recording(where, owned) if result else None
        tail = owned.enter_context(Tail(where))
        found, lost = _caught_up(tail, oldest)
        before = seen = tail.lost
        try:
            while True:
                if recording:
                    recording.add(found)
                _report_lost(lost, as_json)
                _emit_lines(_fields(found, where), as_json)
                if interrupt.seen:
                    break
                tail.wait(_WAKE_S, interrupt.fileno())
                found = tail.read()
                lost, seen = tail.lost - seen, tail.lost
        finally:
            if result and recording:
                _write(result, recording.document(tail.lost - before))


def _caught_up(tail: Tail, oldest: float) -> tuple[list[Decision], int]:
    """The decisions so far that are no older, and how many at most were lost of them."""
    found = tail.read()
    young = [seen for seen in found if seen.time >= oldest]
    return young, tail.lost if len(young) == len(found) else 0


def _recording(where: Pins, owned: ExitStack) -> Recording:
    # Netlink: seconds, in a guest.
    from bpfoom.observe.recording import Recording
    from bpfoom.observe.watch import Sources

    sources = owned.enter_context(Sources())
    if sources.missing:
        missing = ", ".join(sources.missing)
        click.echo(f"(this kernel lacks {missing}: some of the result will be null)", err=True)
    return owned.enter_context(Recording(where, sources, view.cgroup_name))


def _write(path: Path, document: Document) -> None:
    from bpfoom.observe import result

    result.write_file(path, document)
    (run,) = document.runs
    click.echo(f"{path}: {len(run.decisions)} decisions, {len(run.deaths)} deaths", err=True)
    if run.lost.events:
        click.echo(f"({run.lost.events} messages about exits were lost)", err=True)


def _print(found: list[dict[str, Any]], lost: int, as_json: bool) -> None:
    _report_lost(lost, as_json)
    if as_json:
        _emit_lines(found, True)
    elif found:
        output.emit_table(view.DECISION_COLUMNS, [view.decision_row(fields) for fields in found])
    else:
        click.echo("no decisions recorded")


def _emit_lines(found: list[dict[str, Any]], as_json: bool) -> None:
    for fields in found:
        if as_json:
            output.emit_json_line(fields)
        else:
            output.emit_line(view.DECISION_COLUMNS, view.decision_row(fields))


def _fields(found: list[Decision], where: Pins) -> list[dict[str, Any]]:
    """Decisions that were read together, JSON-ready, with the names of now."""
    if not found:
        return []
    with Btf.from_file() as btf:
        return view.decisions(found, describe.finder(where, btf))


def _report_lost(lost: int, as_json: bool) -> None:
    if lost and as_json:
        output.emit_json_line({"lost": lost})
    elif lost:
        click.echo(f"({lost} decisions were overwritten before they could be read)", err=True)
