# SPDX-License-Identifier: Apache-2.0
"""``bpfoom trigger``: declare an OOM early, when pressure says that memory is short."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bpfoom.btf.types import Btf
from bpfoom.cli import complete, output, view
from bpfoom.cli.options import OBJECT_OPTION
from bpfoom.errors import NotThereError, UsageError
from bpfoom.handler import features, pins, trigger
from bpfoom.observe import cgroupfs
from bpfoom.observe.cgroupfs import Cgroup
from bpfoom.policy.trigger import COOLDOWN, Settings, shown

if TYPE_CHECKING:
    from bpfoom.compiler.object import HandlerObject

COLUMNS = {
    "cgroup": "CGROUP",
    "psi": "PRESSURE",
    "cooldown": "COOLDOWN",
    "state": "STATE",
    "stall": "SEEN",
    "declared": "DECLARED",
    "relieved": "RELIEVED",
    "last": "LAST",
}


@click.command(name="trigger")
@click.option(
    "--cgroup",
    metavar="PATH",
    shell_complete=complete.cgroups,
    help="On cgroup2, or relative to it; / is the root.",
)
@click.option("--psi", metavar="KIND:STALL/WINDOW", help="Such as full:50ms/1s, or some:200ms/2s.")
@click.option(
    "--cooldown",
    metavar="TIME",
    show_default=COOLDOWN,
    help="From one declaration to the next at least.",
)
@click.option("--repeat", is_flag=True, help="Declare again for as long as the pressure lasts.")
@OBJECT_OPTION
@click.option("--off", is_flag=True, help="Remove the trigger.")
@click.option("--json", "as_json", is_flag=True, help="Print the triggers as a JSON list.")
def trigger_command(
    cgroup: str | None,
    psi: str | None,
    cooldown: str | None,
    repeat: bool,
    object_file: Path | None,
    off: bool,
    as_json: bool,
) -> None:
    """Declare an OOM of a cgroup when its memory pressure passes a threshold.

    The same policies decide as if memory had run out. The trigger is pinned: no process has to
    stay, and `bpfoom detach` removes it, too. Without --psi and --off: list what is set.

    \b
    Examples:
      bpfoom trigger --cgroup shop --psi full:50ms/1s
      bpfoom trigger
      bpfoom trigger --cgroup shop --off
    """
    if psi is not None and off:
        raise UsageError("give --psi or --off, not both")
    if psi is None and (cooldown is not None or repeat or object_file is not None):
        raise UsageError("--cooldown, --repeat and --object go with --psi")
    if cgroup is None:
        if psi is not None or off:
            raise UsageError("name the cgroup with --cgroup")
        found = _listed(None)
    elif off:
        found = [_removed(cgroupfs.resolve(cgroup))]
    elif psi is not None:
        settings = Settings.parse(psi, cooldown or COOLDOWN, repeat)
        found = [_set(cgroupfs.resolve(cgroup), settings, object_file)]
    else:
        found = _listed(cgroupfs.resolve(cgroup))
    if as_json:
        output.emit_json(found)
    elif off:
        output.say(f"removed the trigger of {found[0]['cgroup']}")
    elif found:
        output.emit_table(COLUMNS, [row(fields) for fields in found])
    else:
        click.echo("no triggers set")


def row(fields: dict[str, Any]) -> dict[str, Any]:
    """The same for a table."""
    repeat = ", repeats" if fields["repeat"] else ""
    return {
        **fields,
        "cooldown": shown(fields["cooldown_us"]) + repeat,
        "state": "armed" if fields["armed"] else "until pressure falls",
        "stall": output.duration(fields["stall_us"] * 1000) if fields["looks"] > 1 else None,
        "last": output.clock(fields["declared_at"]),
    }


def _set(target: Cgroup, settings: Settings, object_file: Path | None) -> dict[str, Any]:
    features.require_rights()
    cgroupfs.require_memory(target)
    trigger.require_pressure(target.path, target.name)  # before the slow compiler runs
    obj = _object(object_file)
    where = pins.require()
    trigger.sweep(where, cgroupfs.exists)
    with Btf.from_file() as btf:
        note = {"cgroup": target.name}
        return view.trigger(trigger.set_trigger(obj, target.path, settings, btf, where, note=note))


def _object(file: Path | None) -> HandlerObject:
    """The shipped trigger, compiled; or the one that `bpfoom compile -o` has written."""
    if file is not None:
        from bpfoom.compiler.object import read_file

        return read_file(file)
    from bpfoom.compiler.build import compile_trigger

    return compile_trigger()


def _removed(target: Cgroup) -> dict[str, Any]:
    where = pins.find()
    gone = trigger.remove(target.id, where) if where else None
    if gone is None:
        raise _none(target)
    return view.trigger(gone)


def _listed(target: Cgroup | None) -> list[dict[str, Any]]:
    """All triggers, or that of one cgroup. Raises NotThereError if that has none."""
    where = pins.find()
    if where is None:
        return []
    if target is None:
        return [view.trigger(found) for found in trigger.triggers(where)]
    found = trigger.trigger_of(target.id, where)
    if found is None:
        raise _none(target)
    return [view.trigger(found)]


def _none(target: Cgroup) -> NotThereError:
    return NotThereError(
        f"{target.name} has no trigger",
        hint="`bpfoom trigger` lists what is set",
        path=target.name,
        cgroup_id=target.id,
    )
