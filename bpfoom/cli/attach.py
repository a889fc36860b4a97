# SPDX-License-Identifier: Apache-2.0
"""``bpfoom attach`` and ``bpfoom detach``: a policy onto a cgroup, and off again."""

from __future__ import annotations

from typing import Any

import click

from bpfoom.cli import output, view
from bpfoom.errors import UsageError
from bpfoom.handler import describe, features, pins
from bpfoom.observe import cgroupfs
from bpfoom.observe.cgroupfs import Cgroup


@click.command(name="attach")
@click.option(
    "--cgroup", required=True, metavar="PATH", help="On cgroup2, or relative to it; / is the root."
)
@click.option("--policy", required=True, metavar="NAME|FILE", help="A policy's name, or its file.")
@click.option("--set", "settings", multiple=True, metavar="K=V", help="A parameter of the policy.")
@click.option("--dry-run", is_flag=True, help="Record what it would do, never act.")
@click.option("--json", "as_json", is_flag=True, help="Print the handler as JSON.")
def attach_command(
    cgroup: str, policy: str, settings: tuple[str, ...], dry_run: bool, as_json: bool
) -> None:
    """Attach a policy to a cgroup and pin it.

    It stays until detached, the cgroup is removed, or the machine is restarted.
    """
    values = parse_settings(settings)
    _check_policy(policy, values)
    target = cgroupfs.resolve(cgroup)
    handler = _attach(policy, values, target, dry_run)
    if as_json:
        output.emit_json(handler)
        return
    dry = ", dry run: it only records" if handler["dry_run"] else ""
    click.echo(
        f"attached {handler['policy']} to {handler['cgroup']} (link {handler['link_id']}{dry})"
    )


def _attach(policy: str, values: dict[str, str], target: Cgroup, dry_run: bool) -> dict[str, Any]:
    """Everything that needs the kernel; what cannot work is said before the slow compiler runs."""
    from bpfoom.btf.types import Btf
    from bpfoom.handler.attach import attach
    from bpfoom.handler.load import require_ops

    with Btf.from_file() as btf:
        require_ops(btf)
        features.require_rights()
        cgroupfs.require_memory(target)
        where = pins.require()

        from bpfoom.compiler.build import compile_policy

        obj = compile_policy(policy, values, dry_run=dry_run)
        handler = attach(obj, target.path, btf, where, name=target.name, dry_run=dry_run)
    return view.handler(handler)


@click.command(name="detach")
@click.option("--cgroup", metavar="PATH", help="On cgroup2, or relative to it; / is the root.")
@click.option("--all", "everything", is_flag=True, help="Every handler that bpfoom attached.")
@click.option("--json", "as_json", is_flag=True, help="Print what was detached as JSON.")
def detach_command(cgroup: str | None, everything: bool, as_json: bool) -> None:
    """Detach the policy of a cgroup, or all of them."""
    if (cgroup is None) != everything:
        raise UsageError("name one cgroup with --cgroup, or give --all")
    detached = _detach_all() if cgroup is None else [_detach(cgroupfs.resolve(cgroup))]
    if as_json:
        output.emit_json(detached)
        return
    for gone in detached:
        click.echo(f"detached the handler of {gone['cgroup']}")
    if not detached:
        click.echo("no handlers attached")


def _detach(target: Cgroup) -> dict[str, Any]:
    from bpfoom.handler.attach import detach

    where = pins.find()
    if where is None or not detach(target.id, where):
        raise describe.not_attached(target.name, target.id)
    return {"cgroup": target.name, "cgroup_id": target.id}


def _detach_all() -> list[dict[str, Any]]:
    from bpfoom.handler.attach import detach

    where = pins.find()
    ids = where.cgroup_ids() if where else []
    names = {number: view.cgroup_name(number) for number in ids}
    return [
        {"cgroup": names[number], "cgroup_id": number}
        for number in ids
        if where and detach(number, where)
    ]


def parse_settings(settings: tuple[str, ...]) -> dict[str, str]:
    """``K=V`` arguments by name. Raises UsageError."""
    values: dict[str, str] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise UsageError(f"--set {setting}: expected NAME=VALUE", parameter=name)
        if name in values:
            raise UsageError(f"--set {name} is given twice", parameter=name)
        values[name] = value
    return values


def _check_policy(policy: str, values: dict[str, str]) -> None:
    """Complain about the policy and its parameters before anything else is looked at."""
    from bpfoom.policy.find import find_policy
    from bpfoom.policy.params import resolve

    resolve(find_policy(policy).card.params, values)
