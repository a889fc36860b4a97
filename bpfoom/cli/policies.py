# SPDX-License-Identifier: Apache-2.0
"""``bpfoom policies`` and ``render``: what policies there are, and the C text that they become."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bpfoom.cli import complete, output
from bpfoom.cli.options import SET_OPTION, parse_settings
from bpfoom.cli.timings import TIMINGS_OPTION
from bpfoom.errors import MissingFeatureError
from bpfoom.timings import IMPORTS, stage

if TYPE_CHECKING:
    from bpfoom.compiler.build import RenderedPolicy
    from bpfoom.policy.find import Policy

BTF_OPTION = click.option(
    "--btf",
    type=click.Path(path_type=Path),
    help="Type information of another kernel than the running one.",
)
POLICY_ARGUMENT = click.argument("policy", shell_complete=complete.policies)
_BTF_HINT = (
    "; or give a kernel's types with --btf FILE: those of bpfoom's own are the file btf in the "
    "directory that `bpfoom kernel build` prints"
)
DRY_RUN_OPTION = click.option("--dry-run", is_flag=True, help="A handler that never acts.")


@click.command(name="policies")
@click.argument("name", required=False, shell_complete=complete.policies)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def policies_command(name: str | None, as_json: bool) -> None:
    """List the policies, or show the card of one.

    \b
    Examples:
      bpfoom policies
      bpfoom policies largest-cgroup
    """
    from bpfoom.policy.find import find_policies, find_policy

    if name is not None:
        policy = find_policy(name)
        if as_json:
            output.emit_json(_as_dict(policy))
        else:
            for line in _card(policy).splitlines():
                output.say(line)
        return
    found = find_policies()
    if as_json:
        output.emit_json([_as_dict(policy) for policy in found])
        return
    width = max((len(policy.name) for policy in found), default=0)
    for policy in found:
        output.say(f"{policy.name:{width}}  {policy.card.summary}")


@click.command(name="render")
@POLICY_ARGUMENT
@SET_OPTION
@DRY_RUN_OPTION
@BTF_OPTION
@click.option(
    "--show-line-map",
    "with_places",
    is_flag=True,
    help="Each line after the place in a template that it is from: FILE:LINE:TEXT.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document, places included.")
@TIMINGS_OPTION
def render_command(
    policy: str,
    settings: tuple[str, ...],
    dry_run: bool,
    btf: Path | None,
    with_places: bool,
    as_json: bool,
) -> None:
    """Print the C text of a policy, as clang would see it.

    \b
    Examples:
      bpfoom render largest-task --set min=8M
      bpfoom render largest-task --btf other-kernel.btf
    """
    with stage(IMPORTS):
        from bpfoom.compiler.build import render_policy

    with hinting_at_btf(btf):
        rendered = render_policy(policy, parse_settings(settings), btf=btf, dry_run=dry_run)
    if as_json:
        output.emit_json(_rendered(rendered))
    elif with_places:
        for line in _rendered(rendered)["lines"]:
            click.echo(f"{line['path']}:{line['line']}:{line['text']}")
    else:
        click.echo(rendered.text, nl=False)


@contextmanager
def hinting_at_btf(btf: Path | None) -> Iterator[None]:
    """What the running kernel's types lack, others may have."""
    try:
        yield
    except MissingFeatureError as error:
        asked = {"struct", "enum", "function"} & set(error.data)
        if btf is None and asked:
            error.hint += _BTF_HINT
        raise


def _rendered(rendered: RenderedPolicy) -> dict[str, Any]:
    text = rendered.text.removesuffix("\n").split("\n")
    return {
        "policy": rendered.plan.policy.name,
        "policy_hash": rendered.hash,
        "lines": [
            {"path": path, "line": line, "text": words}
            for words, (path, line) in zip(text, rendered.origins, strict=False)
        ],
    }


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
