# SPDX-License-Identifier: Apache-2.0
"""Limits that a handler has raised, told when it goes: nobody else remembers what they were."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from bpfoom.cli import output, view
from bpfoom.handler.raises import Raised


def document(limits: Iterable[Raised]) -> list[dict[str, Any]]:
    """Each limit, JSON-ready."""
    return [{**asdict(limit), "cgroup": view.cgroup_name(limit.cgroup_id)} for limit in limits]


def tell(shown: Iterable[dict[str, Any]]) -> None:
    """The same for people, a line each."""
    for limit in shown:
        before, after = output.size(limit["before"]), output.size(limit["after"])
        output.say(f"  it had raised memory.max of {limit['cgroup']} from {before} to {after}")
