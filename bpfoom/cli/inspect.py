# SPDX-License-Identifier: Apache-2.0
"""``bpfoom list``, ``show`` and ``status``: what is attached, and what it did last."""

from __future__ import annotations

from typing import Any

import click

from bpfoom.btf.types import Btf
from bpfoom.cli import output, strangers, trial, view
from bpfoom.cli.attach import CGROUP_OPTION
from bpfoom.errors import PermissionDeniedError
from bpfoom.handler import describe, features, pins
from bpfoom.handler.describe import Handler
from bpfoom.observe import cgroupfs, records

_LAST = 5


@click.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def list_command(as_json: bool) -> None:
    """List the attached handlers, one per line.

    \b
    Example:
      bpfoom list
    """
    found = [view.handler(handler) for handler in _handlers()]
    if as_json:
        output.emit_json(found)
    else:
        _emit_handlers(found)
    strangers.tell(pins.find())


@click.command(name="show")
@CGROUP_OPTION
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def show_command(cgroup: str, as_json: bool) -> None:
    """Show one cgroup's handler: where it comes from, how it is set, what it did.

    \b
    Example:
      bpfoom show --cgroup shop
    """
    target = cgroupfs.resolve(cgroup)
    fields = _details(_handler_of(target), target)
    if as_json:
        output.emit_json(fields)
        return
    output.emit_fields(
        {
            "cgroup": f"{fields['cgroup']} (id {fields['cgroup_id']})",
            "policy": fields["policy"],
            "name": fields["name"],
            "dry run": fields["dry_run"],
            "since": output.clock(fields["attached_at"]),
            "updated": output.clock(fields["updated_at"]),
            "link, map, program": f"{fields['link_id']}, {fields['map_id']}, {fields['prog_id']}",
            "program tag": fields["prog_tag"],
            **{key.replace("_", " "): value for key, value in fields["provenance"].items()},
            **{f"set {item['name']}": _setting(item) for item in fields["parameters"]},
            **{f"counter {name}": value for name, value in fields["counters"].items()},
            **{f"memory.events {name}": value for name, value in fields["memory_events"].items()},
        }
    )
    if fields["trial"]:
        click.echo(trial.sentence(fields["trial"], fields["cgroup"]))
    if fields["last_decision"]:
        click.echo("last decision:")
        output.emit_table(view.DECISION_COLUMNS, [view.decision_row(fields["last_decision"])])


@click.command(name="status")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def status_command(as_json: bool = False) -> None:
    """Show kernel support, attached handlers and the last decisions.

    \b
    Example:
      bpfoom status
    """
    status = _status()
    strangers.tell(pins.find() if status["kernel"]["supported"] and not status["note"] else None)
    if as_json:
        output.emit_json(status)
        return
    click.echo(status["kernel"]["summary"])
    if status["note"]:
        click.echo(status["note"])
        return
    _emit_handlers(status["handlers"])
    if status["decisions"]:
        click.echo("last decisions:")
        rows = [view.decision_row(fields) for fields in status["decisions"]]
        output.emit_table(view.DECISION_COLUMNS, rows)


def _status() -> dict[str, Any]:
    """Every part that can be known; without root the kernel's line and a note why."""
    with Btf.from_file() as btf:
        supported, summary = features.support(btf)
    status: dict[str, Any] = {
        "kernel": {"supported": supported, "summary": summary},
        "handlers": [],
        "decisions": [],
        "note": "",
    }
    if not supported:
        status["note"] = features.GUEST
        return status
    try:
        status["handlers"] = [view.handler(handler) for handler in _handlers()]
        status["decisions"] = [
            view.decision(seen) for seen in records.history_if_readable(pins.find())[-_LAST:]
        ]
    except PermissionDeniedError as error:
        status["note"] = f"{error.message}: {error.hint}"
    return status


def _handlers() -> list[Handler]:
    where = pins.find()
    if where is None or not where.cgroup_ids():
        return []
    with Btf.from_file() as btf:
        return describe.handlers(where, btf)


def _handler_of(target: cgroupfs.Cgroup) -> Handler:
    where = pins.find()
    if where is None:
        raise describe.not_attached(target.name, target.id)
    with Btf.from_file() as btf:
        return describe.handler_of(target.id, target.name, where, btf)


def _details(handler: Handler, target: cgroupfs.Cgroup) -> dict[str, Any]:
    """Everything that is known of one handler, JSON-ready."""
    shown = ("path", "policy_hash", "bpfoom_version", "bcc_version", "llvm_version")
    decisions = [
        seen
        for seen in records.history_if_readable(pins.find())
        if seen.fields["handler_cgroup_id"] == target.id
    ]
    return {
        **view.handler(handler),
        "prog_tag": handler.prog_tag,
        "provenance": {key: handler.provenance[key] for key in shown if key in handler.provenance},
        "parameters": view.present_parameters(handler),
        "counters": handler.counters,
        "trial": _trial(handler),
        "memory_events": target.memory_events(),
        "last_decision": view.decision(decisions[-1]) if decisions else None,
    }


def _trial(handler: Handler) -> dict[str, Any] | None:
    """The trial that its code is on."""
    with Btf.from_file() as btf:
        return trial.present(handler, pins.require(), btf)


def _setting(parameter: dict[str, Any]) -> str:
    return f"{parameter['value']}{' (live)' if parameter['live'] else ''}"


def _emit_handlers(found: list[dict[str, Any]]) -> None:
    if found:
        output.emit_table(view.HANDLER_COLUMNS, [view.handler_row(fields) for fields in found])
    else:
        click.echo("no handlers attached")
