# SPDX-License-Identifier: Apache-2.0
"""A policy's card: the TOML in the opening Jinja comment of its file.

Owns the card's schema and its errors. Values of parameters are checked in
:mod:`bpfoom.policy.params`; the card itself is checked by giving each default to that.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import Any

from bpfoom.errors import CardError, ParameterError
from bpfoom.policy import params
from bpfoom.policy.params import ParamSpec

STATUSES = ("experimental", "stable")
# Far more than any has; tomllib takes quadratic time for some texts.
MAX_LENGTH = 16 << 10
_TEXTS = ("summary", "kills", "declines", "cost")


@dataclass(frozen=True)
class Card:
    """What a policy says of itself. ``params`` keeps the order of the file."""

    summary: str
    kills: str
    declines: str
    cost: str
    status: str
    params: tuple[ParamSpec, ...]

    def param(self, name: str) -> ParamSpec | None:
        return next((p for p in self.params if p.name == name), None)

    @property
    def wrapped(self) -> ParamSpec | None:
        """The parameter that names the policy which this one wraps, if it is a wrapper."""
        return next((p for p in self.params if p.type == "policy"), None)


def parse(text: str, path: str) -> Card:
    """The card of a policy's text. Raises CardError with ``path`` and what is wrong."""
    # Jinja ends a comment at the first "#}", whatever TOML makes of it.
    comment, end, _ = text.partition("#}")
    if not (end and comment.startswith("{#-") and comment.endswith("-")):
        raise CardError(
            f"{path} has no card",
            hint="a policy starts with its card, TOML in {#--- ... ---#}; `bpfoom new` writes one",
            path=path,
        )
    if len(comment) > MAX_LENGTH:
        raise CardError(
            f"{path}: the card is longer than {MAX_LENGTH >> 10} KiB",
            hint="what the policy's reader need not know can stand in a comment of its own",
            path=path,
        )
    try:
        table = tomllib.loads(comment[2:].strip("-"))
    except (ValueError, RecursionError) as error:
        raise CardError(
            f"{path}: the card is not TOML: {error}",
            hint="line numbers count from the opening {#---",
            path=path,
        ) from error
    return _card(table, path)


def _card(table: dict[str, Any], path: str) -> Card:
    def wrong(what: str, hint: str = "") -> CardError:
        return CardError(f"{path}: {what}", hint=hint or "correct the policy's card", path=path)

    unknown = set(table) - {*_TEXTS, "status", "params"}
    if unknown:
        raise wrong(f"the card has an unknown entry {sorted(unknown)[0]!r}")
    for name in _TEXTS:
        if not isinstance(table.get(name), str) or not table[name].strip():
            raise wrong(f"the card needs a text for {name!r}")
    if table.get("status") not in STATUSES:
        raise wrong(f"the card's status must be one of {', '.join(STATUSES)}")
    specs = table.get("params", {})
    if not isinstance(specs, dict):
        raise wrong("params must be tables: [params.NAME]")
    try:
        parsed = tuple(params.spec(name, fields) for name, fields in specs.items())
    except ParameterError as error:
        raise wrong(error.message, error.hint) from error
    if sum(p.type == "policy" for p in parsed) > 1:
        raise wrong("a policy wraps one other at most: one parameter of type policy")
    texts = {name: " ".join(table[name].split()) for name in _TEXTS}
    return Card(**texts, status=table["status"], params=parsed)
