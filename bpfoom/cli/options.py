# SPDX-License-Identifier: Apache-2.0
"""Options that several commands have, and what is typed in them.

Apart from the commands, so that one that only reads cards does not import what attaches.
"""

from __future__ import annotations

from pathlib import Path

import click

from bpfoom.cli import complete
from bpfoom.errors import UsageError

CGROUP_OPTION = click.option(
    "--cgroup",
    required=True,
    metavar="PATH",
    shell_complete=complete.cgroups,
    help="On cgroup2, or relative to it; / is the root.",
)
POLICY_OPTION = click.option(
    "--policy",
    metavar="NAME|FILE",
    shell_complete=complete.policies,
    help="A policy's name, or its file.",
)
OBJECT_OPTION = click.option(
    "--object",
    "object_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="What `bpfoom compile -o` wrote.",
)
SET_OPTION = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="K=V",
    shell_complete=complete.settings,
    help="A parameter of the policy.",
)


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
