# SPDX-License-Identifier: Apache-2.0
"""``bpfoom kernel``: build the guest's kernel, say whether it is built, list the patch series."""

from __future__ import annotations

import shlex
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bpfoom.cli.flavour import chosen, flavour_options
from bpfoom.cli.output import emit_fields, emit_json, emit_table
from bpfoom.guest.flavour import FLAVOURS, PLAIN

if TYPE_CHECKING:
    from bpfoom.guest.kernel import Kernel, Plan

_source_option = click.option(
    "--source",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Build this git checkout of the kernel instead of Debian's source; it is only read.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.group("kernel")
def kernel_command() -> None:
    """The kernel of the guest: Debian's source, our patch series, a small config.

    \b
    Examples:
      bpfoom kernel build
      bpfoom kernel status
    """


@kernel_command.command("build")
@_source_option
@flavour_options
@click.option("--show-command", is_flag=True, help="Print the make commands and do nothing.")
@_json_option
def build_command(
    source: Path | None, flavour: str | None, show_command: bool, as_json: bool
) -> None:
    """Build the kernel, unless this very one is in the cache.

    \b
    Examples:
      bpfoom kernel build
      bpfoom kernel build --debug
    """
    from bpfoom.cli.progress import progress
    from bpfoom.guest import kernel

    if show_command:
        with progress() as shown:
            for argv in kernel.commands(kernel.plan(source, shown, chosen(flavour))):
                click.echo(shlex.join(argv))
        return
    started = time.monotonic()
    with progress() as shown:
        built = kernel.build(source, shown, chosen(flavour))
    if as_json:
        emit_json(_described(built))
        return
    click.echo(f"{built.facts.release} ready after {time.monotonic() - started:.1f} s")
    click.echo(str(built.path))


@kernel_command.command("status")
@_source_option
@_json_option
def status_command(source: Path | None, as_json: bool) -> None:
    """Say what would be built, in which flavours, and which of these are.

    \b
    Example:
      bpfoom kernel status
    """
    from bpfoom.guest import kernel, series

    plans = {flavour.name: kernel.known_plan(source, flavour) for flavour in FLAVOURS.values()}
    flavours = [_state(name, plan) for name, plan in plans.items()]
    plan = plans[PLAIN.name]
    facts: dict[str, Any] = {
        "source": plan.source.name if plan else None,
        "version": plan.source.version if plan else None,
        "patches": [patch.name for patch in series.load().patches],
        "compiler": plan.toolchain.compiler if plan else None,
    }
    if as_json:
        emit_json({**facts, "flavours": flavours})
        return
    emit_fields({**facts, "patches": len(facts["patches"])})
    emit_table(
        {"flavour": "FLAVOUR", "state": "STATE", "release": "RELEASE", "path": "PATH"},
        [{**row, **(row["kernel"] or {})} for row in flavours],
    )
    if not all(row["kernel"] for row in flavours):
        click.echo("hint: bpfoom kernel build [--debug | --base]")


@kernel_command.command("patches")
@_json_option
def patches_command(as_json: bool) -> None:
    """List the patch series in order.

    \b
    Example:
      bpfoom kernel patches
    """
    from bpfoom.guest import series

    rows = [
        {
            "name": patch.name,
            "subject": patch.subject,
            "added": sum(change.count("+") for change in patch.changes),
            "removed": sum(change.count("-") for change in patch.changes),
            "files": [change.path for change in patch.changes],
        }
        for patch in series.load().patches
    ]
    if as_json:
        emit_json(rows)
    else:
        emit_table({"name": "PATCH", "added": "+", "removed": "-", "subject": "SUBJECT"}, rows)


def _state(flavour: str, plan: Plan | None) -> dict[str, Any]:
    """One flavour: whether it is built, and the kernel if it is."""
    built = plan.find() if plan else None
    return {
        "flavour": flavour,
        "state": "built" if built else "not built",
        "kernel": _described(built) if built else None,
    }


def _described(built: Kernel) -> dict[str, Any]:
    return {"path": str(built.path), "image": str(built.image), **asdict(built.facts)}
