# SPDX-License-Identifier: Apache-2.0
"""Config fragments: read them, and check that a finished ``.config`` holds every line.

Kconfig drops an option silently when what it depends on is missing; here that is an error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from bpfoom.errors import BuildError

_SET = re.compile(r"^CONFIG_(\w+)=(.*)$")
_UNSET = re.compile(r"^# CONFIG_(\w+) is not set$")


@dataclass(frozen=True)
class Lost:
    """An option that did not come out as the fragment says; values as in a .config, "n" = unset."""

    name: str
    wanted: str
    got: str


def parse(text: str) -> dict[str, str]:
    """Option -> value ("n" when not set) of a fragment or a whole .config; the last line wins."""
    values = {}
    for line in text.splitlines():
        if found := _SET.match(line):
            values[found[1]] = found[2]
        elif found := _UNSET.match(line):
            values[found[1]] = "n"
    return values


def lost(fragment: str, config: str) -> list[Lost]:
    """The options of ``fragment`` that ``config`` does not hold."""
    have = parse(config)
    pairs = ((name, wanted, have.get(name, "n")) for name, wanted in parse(fragment).items())
    return [Lost(name, wanted, got) for name, wanted, got in pairs if wanted != got]


def verify(fragment: str, config: str) -> None:
    """Raise BuildError naming every lost option."""
    if gone := lost(fragment, config):
        raise BuildError(
            "the kernel's configuration lost "
            + ", ".join(f"CONFIG_{entry.name}" for entry in gone),
            detail="\n".join(
                f"CONFIG_{entry.name}: wanted {entry.wanted}, got {entry.got}" for entry in gone
            ),
            hint="a dependency is off or the option was renamed: correct the fragment in vm/",
            options=[entry.name for entry in gone],
        )
