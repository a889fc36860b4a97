# SPDX-License-Identifier: Apache-2.0
"""``bpfoom agent``: what a file says, kept so."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bpfoom.agent import config
from bpfoom.agent.config import Config, Entry
from bpfoom.agent.converge import Result
from bpfoom.agent.plan import Broken
from bpfoom.agent.trials import Ended
from bpfoom.cli import output, steps
from bpfoom.cli.apply import FILE_OPTION, converging
from bpfoom.errors import BpfoomError
from bpfoom.handler.wanted import Wanted
from bpfoom.observe import units
from bpfoom.observe.marks import Change

if TYPE_CHECKING:
    from bpfoom.agent.loop import Told


@click.command(name="agent")
@FILE_OPTION
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one line for each event.")
def agent_command(file: Path, as_json: bool) -> None:
    """Keep what `bpfoom apply` makes, as cgroups come and go, until interrupted.

    SIGHUP has it read the file again. What it has attached stays when it ends, however it does.
    The unit bpfoom-agent.service runs it.

    \b
    Examples:
      bpfoom agent -f /etc/bpfoom/bpfoom.toml
      bpfoom agent -f /etc/bpfoom/bpfoom.toml --json
    """
    config.read(file)
    _keep(lambda: config.read(file), as_json)


def keep_unit(unit: str, wanted: Wanted, as_json: bool) -> None:
    """What `bpfoom attach --unit` attaches, again at each start of the unit, until interrupted."""
    units.control_group(unit)  # no systemd: no unit
    entry = Entry(f"--unit {unit}", (), (unit,), wanted)
    _keep(lambda: Config(units.owner(unit), (entry,)), as_json)


def _keep(read: Callable[[], Config], as_json: bool) -> None:
    from bpfoom.agent.loop import Agent
    from bpfoom.agent.trials import Trials
    from bpfoom.observe.follow import Follower

    tell = _tell_json if as_json else _tell
    with (
        converging() as converger,
        Follower(converger.where) as follower,
        Trials(converger.btf, converger.where) as trials,
    ):
        Agent(read, converger, follower, trials, tell).run()


def _tell(news: Told) -> None:
    """One line, for people; the journal adds the time."""
    document = _document(news)
    if document["step"]:
        row = steps.row(document["step"])
    elif document["mark"]:
        row = steps.mark_row(document["mark"])
    elif document["broken"]:
        row = steps.broken_row(document["broken"])
    elif document["trial"]:
        row = steps.trial_row(document["trial"])
    elif document["error"]:
        row = {"action": "FAILED", "what": document["error"]["message"]}
    else:
        row = {"action": "agent", "what": document["state"]}
    shown = {key: title for key, title in steps.COLUMNS.items() if row.get(key)}
    output.emit_line(shown, row)


def _tell_json(news: Told) -> None:
    output.emit_json_line(_document(news))


def _document(news: Told) -> dict[str, Any]:
    """What is told, JSON-ready: exactly one of the fields has it, the others are null."""
    return {
        "time": round(time.time(), 3),
        "step": steps.document(news.step, news) if isinstance(news, Result) else None,
        "mark": steps.mark(news) if isinstance(news, Change) else None,
        "broken": steps.broken(news) if isinstance(news, Broken) else None,
        "trial": steps.ended(news) if isinstance(news, Ended) else None,
        "error": news.as_dict() if isinstance(news, BpfoomError) else None,
        "state": news if isinstance(news, str) else None,
    }
