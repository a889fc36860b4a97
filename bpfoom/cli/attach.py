# SPDX-License-Identifier: Apache-2.0
"""``bpfoom attach`` and ``bpfoom detach``: a policy onto a cgroup, and off again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bpfoom.btf.types import Btf
from bpfoom.cli import complete, output, raised, view
from bpfoom.cli.marks import marked_for, parse
from bpfoom.cli.options import OBJECT_OPTION, POLICY_OPTION, SET_OPTION, parse_settings
from bpfoom.cli.timings import TIMINGS_OPTION
from bpfoom.errors import BpfoomError, ForeignPinError, NotThereError, UsageError
from bpfoom.handler import describe, features, foreign, pins
from bpfoom.handler.describe import ATTACHED_BY, Handler
from bpfoom.handler.pins import Pins
from bpfoom.handler.wanted import Wanted
from bpfoom.observe import cgroupfs, units
from bpfoom.observe.cgroupfs import Cgroup
from bpfoom.observe.marks import sync
from bpfoom.timings import IMPORTS, stage

if TYPE_CHECKING:
    from bpfoom.compiler.object import HandlerObject


@click.command(name="attach")
@click.option(
    "--cgroup",
    metavar="PATH",
    shell_complete=complete.cgroups,
    help="On cgroup2, or relative to it; / is the root.",
)
@click.option(
    "--unit",
    metavar="NAME",
    shell_complete=complete.units,
    help="Instead: the cgroup that a systemd unit has now.",
)
@POLICY_OPTION
@OBJECT_OPTION
@SET_OPTION
@click.option("--dry-run", is_flag=True, help="Record what it would do, never act.")
@click.option(
    "--mark",
    "marks",
    multiple=True,
    metavar="GLOB=MARK",
    help="Mark cgroups below this one, as `bpfoom marks set` does.",
)
@click.option("--replace", is_flag=True, help="If there is a handler, exchange it.")
@click.option("--follow", is_flag=True, help="With --unit: stay, and attach at each start of it.")
@click.option("--json", "as_json", is_flag=True, help="Print the handler as JSON.")
@TIMINGS_OPTION
def attach_command(
    cgroup: str | None,
    unit: str | None,
    policy: str | None,
    object_file: Path | None,
    settings: tuple[str, ...],
    dry_run: bool,
    marks: tuple[str, ...],
    replace: bool,
    follow: bool,
    as_json: bool,
) -> None:
    """Attach a policy to a cgroup and pin it.

    It stays until detached, the cgroup is removed, or the machine is restarted. A unit has another
    cgroup after each start of it: --follow stays to attach it anew, and so does `bpfoom agent`.

    \b
    Examples:
      bpfoom attach --cgroup shop --policy largest-cgroup
      bpfoom attach --unit web.service --policy largest-cgroup --follow
      bpfoom attach --cgroup / --policy protect --set inner=swap --mark 'db*=omit'
      bpfoom attach --cgroup shop --object largest.bpfoom --dry-run
    """
    what = Wanted.of(policy, object_file, parse_settings(settings), dry_run or None)
    what.check()
    _check_place(cgroup, unit, follow, alone=not (marks or replace))
    if unit is not None and follow:
        from bpfoom.cli.agent import keep_unit

        keep_unit(units.full_name(unit), what, as_json)
        return
    note, target = _placed(cgroup, unit)
    rules = [parse(text, target.name) for text in marks]
    with ready(target) as (btf, where):
        if not replace:
            _require_free(target, btf, where)
        obj = what.compile()
        with marked_for(obj, rules, where):
            handler, dropped = _attach(obj, {**what.note(), **note}, target, btf, where, replace)
    if as_json:
        output.emit_json({**view.handler(handler), "raised": dropped})
        return
    dry = ", dry run: it only records" if handler.dry_run else ""
    output.say(f"attached {handler.policy} to {target.name} (link {handler.link_id}{dry})")
    if dropped:
        click.echo("the handler before it is gone")
        raised.tell(dropped)


def _check_place(cgroup: str | None, unit: str | None, follow: bool, *, alone: bool) -> None:
    if (cgroup is None) == (unit is None):
        raise UsageError("name a cgroup with --cgroup, or a unit with --unit")
    if follow and not (unit and alone):
        raise UsageError(
            "--follow follows a unit, with neither --mark nor --replace",
            hint="`bpfoom agent` follows whatever a file says",
        )


def _placed(cgroup: str | None, unit: str | None) -> tuple[dict[str, str], Cgroup]:
    """The cgroup that is meant, and what the provenance says of it."""
    if unit is None:
        assert cgroup is not None
        return {}, cgroupfs.resolve(cgroup)
    name = units.full_name(unit)
    return {ATTACHED_BY: units.owner(name)}, units.resolve(name)


def _require_free(target: Cgroup, btf: Btf, where: Pins) -> None:
    with stage(IMPORTS):
        from bpfoom.handler.attach import require_free

    require_free(target.id, target.name, where, btf)


def _attach(
    obj: HandlerObject,
    note: dict[str, object],
    target: Cgroup,
    btf: Btf,
    where: Pins,
    replace: bool,
) -> tuple[Handler, list[dict[str, Any]]]:
    """The handler, and the limits that one before it had raised and nobody remembers any more."""
    with stage(IMPORTS):
        from bpfoom.handler import raises
        from bpfoom.handler.attach import attach
        from bpfoom.handler.update import exchange

    present = None
    if replace:
        with suppress(NotThereError):
            present = describe.handler_of(target.id, target.name, where, btf)
    if present is None:
        return attach(obj, target.path, btf, where, name=target.name, note=note), []
    with raises.held(present.map_ids) as limits:
        handler = exchange(obj, present, target.path, btf, where, note=note)
        return handler, raised.document(limits(handler.map_ids))


@contextmanager
def ready(target: Cgroup) -> Iterator[tuple[Btf, Pins]]:
    """What changing a handler needs. What cannot work is said before the slow compiler runs."""
    from bpfoom.handler.load import require_ops

    with stage("read BTF"):
        btf = Btf.from_file()
    with btf:
        require_ops(btf)
        features.require_rights()
        cgroupfs.require_memory(target)
        yield btf, pins.require()


@click.command(name="detach")
@click.option(
    "--cgroup",
    metavar="PATH",
    shell_complete=complete.cgroups,
    help="On cgroup2, or relative to it; / is the root.",
)
@click.option("--all", "everything", is_flag=True, help="Every handler that bpfoom attached.")
@click.option("--json", "as_json", is_flag=True, help="Print what was detached as JSON.")
def detach_command(cgroup: str | None, everything: bool, as_json: bool) -> None:
    """Detach the policy of a cgroup, or all of them.

    \b
    Examples:
      bpfoom detach --cgroup shop
      bpfoom detach --all
    """
    if (cgroup is None) != everything:
        raise UsageError("name one cgroup with --cgroup, or give --all")
    where = pins.find()
    detached = _detach_all(where) if cgroup is None else [_detach(_present(cgroup), where)]
    if as_json:
        output.emit_json(detached)
    else:
        _print_detached(detached)
    if where is None:
        return
    sync(where)
    if cgroup is None:
        for error in foreign.found(where):
            raise error


def _print_detached(detached: list[dict[str, Any]]) -> None:
    for gone in detached:
        if gone["handler"]:
            output.say(f"detached the handler of {gone['cgroup']}")
        if gone["trigger"]:
            output.say(f"removed the trigger of {gone['cgroup']}")
        raised.tell(gone["raised"])
    if not detached:
        click.echo("no handlers attached")


def _present(cgroup: str) -> Cgroup:
    """The cgroup that is named: one that is not there is not to be made in order to detach."""
    try:
        return cgroupfs.resolve(cgroup)
    except NotThereError as error:
        error.hint = "`bpfoom list` shows what is attached"
        raise


def _detach(target: Cgroup, where: Pins | None) -> dict[str, Any]:
    gone = _detach_one(target.id, where) if where else None
    if gone is None:
        raise describe.not_attached(target.name, target.id)
    return gone


def _detach_all(where: Pins | None) -> list[dict[str, Any]]:
    """All but what others have put in our places: that stays, and is named in the end."""
    if where is None:
        return []
    found = []
    for cgroup_id in where.cgroup_ids():
        with suppress(ForeignPinError):
            found.append(_detach_one(cgroup_id, where))
    return [gone for gone in found if gone]


def _detach_one(cgroup_id: int, where: Pins) -> dict[str, Any] | None:
    """Detach the handler of a cgroup, after its trigger, if it has them: what went, JSON-ready."""
    from bpfoom.handler import raises, trigger
    from bpfoom.handler.attach import detach

    name = view.cgroup_name(cgroup_id)
    removed = trigger.remove(cgroup_id, where)
    with raises.held(_map_ids(cgroup_id, where)) as limits:
        attached = detach(cgroup_id, where)
        if not (attached or removed):
            return None
        return {
            "cgroup": name,
            "cgroup_id": cgroup_id,
            "handler": attached,
            "trigger": removed.settings.psi if removed else None,
            "raised": raised.document(limits(())),
        }


def _map_ids(cgroup_id: int, where: Pins) -> tuple[int, ...]:
    """The maps of a cgroup's handler. One that cannot be described can still be detached."""
    with Btf.from_file() as btf, suppress(BpfoomError):
        return describe.handler_of(cgroup_id, view.cgroup_name(cgroup_id), where, btf).map_ids
    return ()
