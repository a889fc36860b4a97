# SPDX-License-Identifier: Apache-2.0
"""``bpfoom apply``: what a file says, made so once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bpfoom.btf.types import Btf
from bpfoom.cli import output, steps
from bpfoom.cli.timings import TIMINGS_OPTION
from bpfoom.errors import BpfoomError
from bpfoom.handler import features, pins
from bpfoom.observe.marks import Change, Synced
from bpfoom.timings import IMPORTS, stage

if TYPE_CHECKING:
    from bpfoom.agent.converge import Converger, Result
    from bpfoom.agent.plan import Plan

FILE_OPTION = click.option(
    "-f",
    "--file",
    "file",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="A TOML file; docs/agent.md is its format.",
)


@click.command(name="apply")
@FILE_OPTION
@click.option("--plan", "only_plan", is_flag=True, help="Show what would be done, do nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print plan and outcome as JSON.")
@TIMINGS_OPTION
def apply_command(file: Path, only_plan: bool, as_json: bool) -> None:
    """Attach what a file says to the cgroups that it names, once.

    Shows a plan first, and changes only what differs. Of what is attached, only what came from the
    same file is changed or detached; the rest is left and named. A cgroup that fails does not stop
    the others.

    \b
    Examples:
      bpfoom apply -f /etc/bpfoom/bpfoom.toml --plan
      bpfoom apply -f /etc/bpfoom/bpfoom.toml
    """
    with stage(IMPORTS):
        from bpfoom.agent import config

    wanted = config.read(file)
    with converging() as converger:
        converger.adopt(wanted)
        plan = converger.plan_all()
        marks = _Marks.of(converger.preview_marks)
        document = _document(converger, plan, (), marks)
        if not as_json:
            _show(document)
        if not only_plan:
            results, marks = _carry_out(converger, plan)
            document = _document(converger, plan, results, marks)
            if not as_json:
                _tell(document)
    if as_json:
        output.emit_json(document)
    _complain(document)


@contextmanager
def converging() -> Iterator[Converger]:
    """What converging needs. What cannot work is said before the slow compiler runs."""
    with stage(IMPORTS):
        from bpfoom.agent.converge import Converger
        from bpfoom.handler.load import require_ops

    with stage("read BTF"):
        btf = Btf.from_file()
    with btf:
        require_ops(btf)
        features.require_rights()
        yield Converger(btf, pins.require())


@dataclass(frozen=True)
class _Marks:
    """The marks that are others, or why there could be none."""

    changes: Sequence[Change]
    error: BpfoomError | None = None

    @classmethod
    def of(cls, call: Callable[[], Synced]) -> _Marks:
        try:
            return cls(call().changes)
        except BpfoomError as error:
            return cls((), error)


def _carry_out(converger: Converger, plan: Plan) -> tuple[list[Result], _Marks]:
    """Marks first: they are to be there when a handler looks. And last: whose attributes are
    believed depends on who watches."""
    converger.sweep()
    before = _Marks.of(converger.sync_marks)
    results = [converger.carry_out(step) for step in plan.steps]
    after = _Marks.of(converger.sync_marks)
    return results, _Marks([*before.changes, *after.changes], after.error)


def _document(
    converger: Converger, plan: Plan, results: Sequence[Result], marks: _Marks
) -> dict[str, Any]:
    """Plan and outcome, JSON-ready; without results nothing was done yet."""
    done = [steps.document(result.step, result) for result in results]
    return {
        "config": converger.config.owner,
        "steps": done or [steps.document(step) for step in plan.steps],
        "marks": [steps.mark(change) for change in marks.changes],
        "marks_error": marks.error.as_dict() if marks.error else None,
        "broken": [steps.broken(entry) for entry in plan.broken],
        "idle": converger.idle(plan),
        "waiting": plan.waiting,
        "as_wanted": plan.as_wanted,
    }


def _show(document: dict[str, Any]) -> None:
    """The plan, for people."""
    rows = [steps.row(step) for step in document["steps"]]
    rows += [steps.mark_row(change) for change in document["marks"]]
    rows += [steps.broken_row(entry) for entry in document["broken"]]
    if rows:
        output.emit_table(steps.COLUMNS, rows)
    for pattern in document["idle"]:
        output.say(f"no cgroup is {pattern} now")
    tally = Counter(step["action"] for step in document["steps"])
    tally["mark"] = len(document["marks"])
    counted = [f"{number} to {action}" for action, number in tally.items() if number]
    click.echo(", ".join([*counted, f"{document['as_wanted']} as wanted"]))


def _tell(document: dict[str, Any]) -> None:
    """What came of it, as far as the plan does not say it."""
    for step in document["steps"]:
        if step["outcome"] not in ("done", "left") or step["raised"]:
            output.emit_line(steps.COLUMNS, steps.row(step))
    outcomes = Counter(step["outcome"] for step in document["steps"])
    click.echo(", ".join(f"{number} {what}" for what, number in outcomes.items()) or "no change")


def _complain(document: dict[str, Any]) -> None:
    """Raise BpfoomError if anything failed: with all of it."""
    failed = {s["cgroup"]: s["error"] for s in document["steps"] if s["outcome"] == "failed"}
    for entry in document["broken"]:
        failed |= dict.fromkeys(entry["cgroups"] or [entry["entry"]], entry["error"])
    if document["marks_error"]:
        failed["marks"] = document["marks_error"]
    if failed:
        lines = [f"{what}: {error['message']}" for what, error in failed.items()]
        hints = dict.fromkeys(error["hint"] for error in failed.values() if error["hint"])
        raise BpfoomError(
            f"{len(failed)} failed: {', '.join(failed)}",
            detail="\n".join(lines),
            hint="; ".join(hints),
        )
