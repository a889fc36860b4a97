# SPDX-License-Identifier: Apache-2.0
"""``bpfoom demo``: the same OOM twice, without and with a handler, side by side."""

from __future__ import annotations

import json
import os
import re
import textwrap
from pathlib import Path
from typing import Any

import click

from bpfoom.cli.output import duration, emit_json, say, size
from bpfoom.errors import CommandError, PermissionDeniedError

_LABEL = 15
_COLUMN = 44


@click.command("demo")
@click.option("--here", is_flag=True, help="On this machine's kernel, as root; no guest.")
@click.option("--accel", type=click.Choice(["auto", "kvm", "tcg"]), default="auto")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option(
    "--result", type=click.Path(path_type=Path), help="Write what was seen there, for report."
)
def demo_command(here: bool, accel: str, as_json: bool, result: Path | None) -> None:
    """Show who dies in one cgroup tree: the stock killer's victim, then a policy's.

    \b
    Example:
      bpfoom demo            # in the guest
      bpfoom demo --here     # on this machine, if its kernel has the patches
      bpfoom demo --result demo.json && bpfoom report demo.json
    """
    document = _here() if here else _in_guest(accel)
    if result:
        from bpfoom.observe.result import from_dict, write_file

        write_file(result, from_dict(document))
    if as_json:
        emit_json(document)
    else:
        _print(document)


def _here() -> dict[str, Any]:
    if os.geteuid() != 0:
        raise PermissionDeniedError("the demo makes cgroups, which needs root", hint="sudo")
    from bpfoom.scenario import demo

    return demo.run().as_dict()


def _in_guest(accel: str) -> dict[str, Any]:
    """Boot the guest, run the demo in it, and add what only the host knows."""
    from bpfoom.cli.progress import progress
    from bpfoom.guest.session import Session, prepared

    with progress() as shown:
        kernel, image = prepared(shown)
    with Session(kernel, image, accelerator=accel) as guest:
        result = guest.run(["bpfoom", "demo", "--here", "--json"])
        accelerator = guest.info.accelerator
    if result.exit_status or result.splats:
        raise CommandError(
            f"the demo failed in the guest with status {result.exit_status}",
            detail=(result.stderr or result.stdout).decode("utf-8", "replace"),
            hint="bpfoom vm shell, then: bpfoom demo --here",
            splats=[splat.title for splat in result.splats],
        )
    document: dict[str, Any] = json.loads(result.stdout)
    document["accelerator"] = accelerator
    return document


def _print(document: dict[str, Any]) -> None:
    click.echo(f"kernel {document['kernel']}, accelerator {document['accelerator']}\n")
    for line in document["tree"]:
        say(line)
    click.echo()
    runs = document["runs"]
    _row("", [run["handler"] or "stock killer" for run in runs])
    _row("", ["-" * len(run["handler"] or "stock killer") for run in runs])
    _row("victims", [_processes(run["victims"]) for run in runs])
    _row("survivors", [_processes(run["survivors"]) for run in runs])
    _row("memory.events", [_events(run["memory_events"]) for run in runs])
    _row("OOM to kill", [_time(run["kill_ns"]) for run in runs])
    _row("deaths", [_deaths(run["deaths"]) for run in runs])
    _row("memory fell", [_recovery(run["recovery"]) for run in runs])
    _row("decision", [_decision(run["decision"]) for run in runs])
    _row("dmesg", [_kills(run["dmesg"]) for run in runs])


def _row(label: str, cells: list[str]) -> None:
    """One row of wrapped cells, a line each for every line of the longest."""
    wrapped = [
        [part for line in cell.splitlines() for part in textwrap.wrap(line, _COLUMN - 2)] or ["-"]
        for cell in cells
    ]
    for number in range(max(len(lines) for lines in wrapped)):
        texts = [lines[number] if number < len(lines) else "" for lines in wrapped]
        columns = "".join(text.ljust(_COLUMN) for text in texts)
        click.echo(f"{label if number == 0 else '':<{_LABEL}}{columns}".rstrip())


def _processes(processes: list[dict[str, Any]]) -> str:
    return "\n".join(f"{p['cgroup']}: {p['comm']} ({p['pid']})" for p in processes) or "none"


def _deaths(deaths: list[dict[str, Any]]) -> str:
    """How long after the decision each was gone, and how much memory it had mapped."""
    lines = []
    for death in deaths:
        after, peak = death["after_decision_ns"], death["peak_rss"]
        gone = "gone" if death["time"] is not None else "no exit seen"
        when = f" after {duration(after)}" if after is not None else ""
        lines.append(f"{death['comm']}: {gone}{when}" + (f", peak {size(peak)}" if peak else ""))
    return "\n".join(lines)


def _recovery(found: list[dict[str, Any]]) -> str:
    """By the first decision that memory fell after."""
    seen = [recovery["ns"] for recovery in found if recovery["ns"] is not None]
    return f"after {duration(seen[0])}" if seen else ""


def _events(events: dict[str, dict[str, int]]) -> str:
    """What was counted of OOMs, and where."""
    lines = []
    for path, counters in events.items():
        about_oom = {name: count for name, count in counters.items() if name.startswith("oom")}
        counted = ", ".join(f"{name} {count}" for name, count in about_oom.items() if count)
        if counted:
            lines.append(f"{path}: {counted}")
    return "\n".join(lines)


def _kills(lines: list[str]) -> str:
    """The kill lines, each as far as the victim's name."""
    found = (re.match(r".*Killed process \d+ \(.*?\)", line) for line in lines)
    return "\n".join(match[0] for match in found if match)


def _time(nanoseconds: int | None) -> str:
    return duration(nanoseconds) if nanoseconds is not None else ""


def _decision(record: dict[str, Any] | None) -> str:
    if record is None:
        return ""
    return "\n".join(
        (
            f"{record['verdict']}: {record['action']}, kfunc result {record['kfunc_result']}",
            f"score {size(record['best_score'])}, next {size(record['runner_up_score'])}, "
            f"{record['seen']} candidates",
            f"decided in {duration(record['duration_ns'])} by policy {record['policy_hash']}",
        )
    )
