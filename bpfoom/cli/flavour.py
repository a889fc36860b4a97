# SPDX-License-Identifier: Apache-2.0
"""The options that choose the kernel's flavour, ``--debug`` and ``--base``, for every verb."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from bpfoom.guest.flavour import FLAVOURS, PLAIN, Flavour

_F = TypeVar("_F", bound=Callable[..., Any])


def flavour_options(command: _F) -> _F:
    """A flag for each flavour but the plain one; the parameter ``flavour`` is a name, or None."""
    for flavour in FLAVOURS.values():
        if flavour is not PLAIN:
            text = f"The {flavour.name} kernel: {flavour.purpose}."
            flag = click.option(f"--{flavour.name}", "flavour", flag_value=flavour.name, help=text)
            command = flag(command)
    return command


def chosen(flavour: str | None) -> Flavour:
    """The flavour that the options name, plain if they name none."""
    return FLAVOURS[flavour] if flavour else PLAIN
