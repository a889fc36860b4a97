# SPDX-License-Identifier: Apache-2.0
"""``bpfoom new``: a policy to begin with."""

from __future__ import annotations

from pathlib import Path

import click

from bpfoom.cli.output import say
from bpfoom.errors import UsageError
from bpfoom.policy import find, starter


@click.command(name="new")
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice(starter.kinds()),
    default="task",
    show_default=True,
    help="What it chooses among.",
)
@click.option(
    "-o",
    "--output",
    "directory",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=Path(),
    help="Where to write it, by default here.",
)
def new_command(name: str, kind: str, directory: Path) -> None:
    """Write a policy to begin with, NAME.bpf.c.j2, and a scenario that tests it, NAME.toml.

    \b
    Example:
      bpfoom new mine --kind cgroup
    """
    if (find.directories()[0] / f"{name}{find.SUFFIX}").exists():
        raise UsageError(
            f"{name} is a policy that bpfoom ships, and its name will always find that one",
            hint=f"call it my-{name}",
            policy=name,
        )
    policy, scenario = starter.write(name, kind, directory)
    steps = {
        f"bpfoom check {policy}": "what it compiles to; as root on such a kernel, what it costs",
        f"bpfoom scenario run {scenario}": "an OOM for it to decide, in the guest",
        f"bpfoom render {policy} --show-line-map": "the C text, and where each line is from",
    }
    width = max(len(step) for step in steps)
    say(f"wrote {policy} and {scenario}; next:")
    for step, why in steps.items():
        click.echo(f"  {step:{width}}  # {why}")
