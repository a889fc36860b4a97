# SPDX-License-Identifier: Apache-2.0
"""``bpfoom policies``, ``render`` and ``check``: what policies there are, and what they become."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bpfoom.cli import output, view
from bpfoom.cli.attach import parse_settings

if TYPE_CHECKING:
    from bpfoom.compiler.object import HandlerObject
    from bpfoom.policy.find import Policy

BTF_OPTION = click.option(
    "--btf",
    type=click.Path(path_type=Path),
    help="Type information of another kernel than the running one.",
)
SET_OPTION = click.option(
    "--set", "settings", metavar="K=V", multiple=True, help="Set a parameter of the policy."
)
DRY_RUN_OPTION = click.option("--dry-run", is_flag=True, help="A handler that never acts.")


@click.command(name="policies")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def policies_command(name: str | None, as_json: bool) -> None:
    """List the policies, or show the card of one."""
    from bpfoom.policy.find import find_policies, find_policy

    if name is not None:
        policy = find_policy(name)
        if as_json:
            output.emit_json(_as_dict(policy))
        else:
            click.echo(_card(policy))
        return
    found = find_policies()
    if as_json:
        output.emit_json([_as_dict(policy) for policy in found])
        return
    width = max((len(policy.name) for policy in found), default=0)
    for policy in found:
        click.echo(f"{policy.name:{width}}  {policy.card.summary}")


@click.command(name="render")
@click.argument("policy")
@SET_OPTION
@DRY_RUN_OPTION
@BTF_OPTION
def render_command(policy: str, settings: tuple[str, ...], dry_run: bool, btf: Path | None) -> None:
    """Print the C text of a policy, as clang would see it."""
    from bpfoom.compiler.build import render_policy

    rendered = render_policy(policy, parse_settings(settings), btf=btf, dry_run=dry_run)
    click.echo(rendered.text, nl=False)


@click.command(name="check")
@click.argument("policy")
@SET_OPTION
@DRY_RUN_OPTION
@BTF_OPTION
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def check_command(
    policy: str, settings: tuple[str, ...], dry_run: bool, btf: Path | None, as_json: bool
) -> None:
    """Render, compile and lint a policy; as root on such a kernel, ask its verifier too."""
    from bpfoom.compiler.build import compile_policy

    made = compile_policy(policy, parse_settings(settings), btf=btf, dry_run=dry_run)
    summary = {**_summary(made), "verifier": _verify(made, btf)}
    if as_json:
        output.emit_json(summary)
        return
    click.echo(f"{made.provenance.policy}: renders, compiles and passes the lint")
    for label, value in summary.items():
        click.echo(f"  {label.replace('_', ' ') + ':':18}{_plain(value)}")


def _verify(made: HandlerObject, btf: Path | None) -> str:
    """What the running kernel's verifier says. Raises VerifierError when that is no."""
    if btf is not None:
        return "not asked: compiled for another kernel"
    from bpfoom.btf.types import Btf
    from bpfoom.handler import features, pins
    from bpfoom.handler.load import load

    if features.rights().blocks:
        return "not asked: needs root"
    with Btf.from_file() as running, load(made, running, pins.require(), note={}):
        return "accepts it"


def _summary(made: HandlerObject) -> dict[str, Any]:
    return {
        "policy": made.provenance.policy,
        "policy_hash": made.provenance.policy_hash,
        "instructions": sum(len(p.insns) // 8 for p in made.programs),
        "kfuncs": [k.name for k in made.kfuncs],
        "maps": [m.name for m in made.maps],
        "accesses": len(made.accesses),
        "enums": len(made.enums),
        "parameters": view.parameters(asdict(p) for p in made.parameters),
        "bcc_version": made.provenance.bcc_version,
        "llvm_version": made.provenance.llvm_version,
    }


def _plain(value: Any) -> str:
    """A cell: lists in one line, parameters as they are typed."""
    if not isinstance(value, list):
        return str(value)
    items = (item if isinstance(item, str) else f"{item['name']}={item['value']}" for item in value)
    return ", ".join(items) or "none"


def _as_dict(policy: Policy) -> dict[str, Any]:
    from bpfoom.policy.params import show

    card = policy.card
    return {
        "name": policy.name,
        "path": str(policy.path),
        "summary": card.summary,
        "kills": card.kills,
        "declines": card.declines,
        "cost": card.cost,
        "status": card.status,
        "parameters": [
            {
                "name": p.name,
                "type": p.type,
                "default": show(p, p.default),
                "min": None if p.min is None else show(p, p.min),
                "max": None if p.max is None else show(p, p.max),
                "choices": list(p.choices),
                "live": p.live,
                "help": p.help,
            }
            for p in card.params
        ],
    }


def _card(policy: Policy) -> str:
    from bpfoom.policy.params import describe

    card = policy.card
    lines = [
        f"{policy.name}: {card.summary}",
        f"  kills:    {card.kills}",
        f"  declines: {card.declines}",
        f"  cost:     {card.cost}",
        f"  status:   {card.status}",
        f"  file:     {policy.path}",
    ]
    lines += [f"  --set {p.name}=  ({describe(p)})  {p.help}" for p in card.params]
    return "\n".join(lines)
