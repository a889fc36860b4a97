# SPDX-License-Identifier: Apache-2.0
"""``bpfoom list``, ``show`` and ``status``: what is attached, and what it did last."""

from __future__ import annotations

import shlex
from typing import Any

import click

from bpfoom.btf.types import Btf
from bpfoom.cli import complete, output, overview, strangers, trial, view
from bpfoom.cli.options import CGROUP_OPTION
from bpfoom.errors import NotThereError, PermissionDeniedError, UsageError
from bpfoom.handler import describe, features, pins
from bpfoom.handler.describe import ATTACHED_BY, Handler
from bpfoom.observe import cgroupfs, overrides, records
from bpfoom.observe.overview import Attached, Node, look, oom_groups

_LAST = 5


@click.command(name="list")
@click.option("--tree", is_flag=True, help="The cgroup tree, and who is asked in it.")
@click.option(
    "--all", "everything", is_flag=True, help="With --tree: cgroups without a handler, too."
)
@click.option(
    "--cgroup",
    metavar="PATH",
    shell_complete=complete.cgroups,
    help="With --tree: from this one down.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def list_command(tree: bool, everything: bool, cgroup: str | None, as_json: bool) -> None:
    """List the attached handlers, one per line, or where they are in the tree of cgroups.

    In the tree each cgroup tells who is asked about its OOMs: its own handler, those above it, at
    last the kernel. Cgroups that have no handler and are not on the way to one are counted.

    \b
    Examples:
      bpfoom list
      bpfoom list --tree
      bpfoom list --tree --all --cgroup shop
    """
    if not tree:
        if everything or cgroup is not None:
            raise UsageError("--all and --cgroup go with --tree")
        _emit_handlers([view.handler(handler) for handler in _handlers()], as_json)
        strangers.tell(pins.find())
        return
    found = look(cgroupfs.resolve(cgroup or "/"), _attached(), everything=everything)
    document = overview.as_dict(found)
    if as_json:
        output.emit_json(document)
    else:
        overview.show(document)
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
    fields = _details(target)
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
            "pinned": ", ".join(fields["pinned"]),
            "asked": overview.chain(fields["chain"], target.id),
            "trigger": overview.trigger(fields["trigger"]),
            **{key.replace("_", " "): value for key, value in fields["provenance"].items()},
            **{f"set {item['name']}": _setting(item) for item in fields["parameters"]},
            **{f"counter {name}": value for name, value in fields["counters"].items()},
            **{f"memory.events {name}": value for name, value in fields["memory_events"].items()},
            "killed as a whole": ", ".join(fields["oom_groups"]),
        }
    )
    overview.show_effects(fields["overrides"])
    if fields["trial"]:
        output.say(trial.sentence(fields["trial"], fields["cgroup"]))
    if fields["last_decision"]:
        click.echo("last decision:")
        output.emit_table(view.DECISION_COLUMNS, [view.decision_row(fields["last_decision"])])


@click.command(name="status")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def status_command(ctx: click.Context, as_json: bool = False) -> None:
    """Show kernel support, the attached handlers in their tree and the last decisions.

    \b
    Example:
      bpfoom status
    """
    status, denied = _status()
    strangers.tell(pins.find() if status["kernel"]["supported"] and not denied else None)
    if as_json:
        output.emit_json(status)
    else:
        _emit_status(status)
    if denied:
        ctx.exit(denied.exit_code)


def _emit_status(status: dict[str, Any]) -> None:
    click.echo(status["kernel"]["summary"])
    if status["note"]:
        output.say(status["note"])
        return
    if status["handlers"]:
        overview.show(status["tree"])
    else:
        click.echo("no handlers attached")
        overview.show_effects(status["tree"]["overrides"])
    if status["decisions"]:
        click.echo("last decisions:")
        rows = [view.decision_row(fields) for fields in status["decisions"]]
        output.emit_table(view.DECISION_COLUMNS, rows)


def _status() -> tuple[dict[str, Any], PermissionDeniedError | None]:
    """Every part that can be known; without root the kernel's line, a note why, and the error."""
    with Btf.from_file() as btf:
        supported, summary = features.support(btf)
    status: dict[str, Any] = {
        "kernel": {"supported": supported, "summary": summary},
        "handlers": [],
        "tree": None,
        "decisions": [],
        "note": "",
    }
    if not supported:
        status["note"] = features.GUEST
        return status, None
    try:
        attached = _attached()
        status["tree"] = overview.as_dict(look(cgroupfs.resolve("/"), attached))
        status["handlers"] = [
            node["handler"] for node in status["tree"]["nodes"] if node["handler"]
        ]
        decisions = records.history_if_readable(pins.find())[-_LAST:]
        status["decisions"] = view.decisions(decisions, attached.handlers.get)
    except PermissionDeniedError as error:
        status["note"] = f"{error.message}: {error.hint}"
        return status, error
    return status, None


def _attached() -> Attached:
    with Btf.from_file() as btf:
        return Attached.now(btf, pins.find())


def _handlers() -> list[Handler]:
    where = pins.find()
    if where is None or not where.cgroup_ids():
        return []
    with Btf.from_file() as btf:
        return describe.handlers(where, btf)


def _details(target: cgroupfs.Cgroup) -> dict[str, Any]:
    """Everything that is known of one cgroup's handler, JSON-ready. Raises NotThereError."""
    where = pins.find()
    with Btf.from_file() as btf:
        attached = Attached.now(btf, where)
        (node,) = look(target, attached).nodes[:1]
        if where is None:
            raise _elsewhere(target, node)
        try:
            # By itself: something else may be in its place, and is named then.
            handler = describe.handler_of(target.id, target.name, where, btf)
        except NotThereError as error:
            raise _elsewhere(target, node) from error
    shown = ("path", "policy_hash", "bpfoom_version", "bcc_version", "llvm_version", ATTACHED_BY)
    groups = oom_groups(target)
    names = {*node.overrides, *([overrides.GROUP] if groups else [])}
    own = [node.last] if node.last and _is_own(node.last, handler) else []
    decided = view.decisions(own, attached.handlers.get)
    return {
        **view.handler(handler),
        "prog_tag": handler.prog_tag,
        "pinned": list(node.pinned),
        "chain": overview.asked(node.chain),
        "trigger": view.trigger(node.trigger) if node.trigger else None,
        "provenance": {key: handler.provenance[key] for key in shown if key in handler.provenance},
        "parameters": view.present_parameters(handler),
        "counters": handler.counters,
        "trial": _trial(handler),
        "memory_events": node.memory_events,
        "oom_groups": groups,
        "overrides": overview.effects(attached.sysctls, names),
        "last_decision": next(iter(decided), None),
    }


def _is_own(decision: records.Decision, handler: Handler) -> bool:
    """Whether it is this handler's, not of one that was attached to the cgroup before."""
    return handler.attached_at is None or decision.time >= handler.attached_at


def _trial(handler: Handler) -> dict[str, Any] | None:
    """The trial that its code is on."""
    with Btf.from_file() as btf:
        return trial.present(handler, pins.require(), btf)


def _elsewhere(target: cgroupfs.Cgroup, node: Node) -> NotThereError:
    """The error for a cgroup without a handler of ours: it says who is asked instead."""
    error = describe.not_attached(target.name, target.id)
    who = overview.chain(overview.asked(node.chain), target.id)
    error.message += f"; asked about its OOMs: {who}"
    if node.chain:
        error.hint = f"`bpfoom show --cgroup {shlex.quote(node.chain[0].cgroup)}`"
    return error


def _setting(parameter: dict[str, Any]) -> str:
    return f"{parameter['value']}{' (live)' if parameter['live'] else ''}"


def _emit_handlers(found: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        output.emit_json(found)
    elif found:
        output.emit_table(view.HANDLER_COLUMNS, [view.handler_row(fields) for fields in found])
    else:
        click.echo("no handlers attached")
