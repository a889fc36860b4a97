# SPDX-License-Identifier: Apache-2.0
"""A policy's card: the TOML in the opening Jinja comment of its file.

Owns the card's schema and its errors. Values of parameters are checked in
:mod:`bpfoom.policy.params`; the card itself is checked by giving each default to that.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bpfoom import near
from bpfoom.errors import CardError, ParameterError
from bpfoom.policy import params, toml_lines
from bpfoom.policy.params import ParamSpec

STATUSES = ("experimental", "stable")
# Far more than any has; tomllib takes quadratic time for some texts.
MAX_LENGTH = 16 << 10
_TEXTS = ("summary", "kills", "declines", "cost")
_ENTRIES = (*_TEXTS, "status", "params")


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
    """The card of a policy's text. Raises CardError with ``path``, line and what is wrong."""
    # Jinja ends a comment at the first "#}", whatever TOML makes of it.
    comment, end, _ = text.partition("#}")
    if not (end and comment.startswith("{#-") and comment.endswith("-")):
        raise _error(
            path,
            1,
            "no card",
            "a policy starts with its card, TOML in {#--- ... ---#}; `bpfoom new` writes one",
        )
    if len(comment) > MAX_LENGTH:
        raise _error(
            path,
            1,
            f"the card is longer than {MAX_LENGTH >> 10} KiB",
            "what the policy's reader need not know can stand in a comment of its own",
        )
    # Its first line is the file's first.
    toml = comment[2:].strip("-")
    try:
        table = tomllib.loads(toml)
    except (ValueError, RecursionError) as error:
        what, line = toml_lines.of_error(error, toml)
        raise _error(path, line, f"the card is not TOML: {what}") from error
    try:
        return _card(table)
    except _Wrong as wrong:
        known = toml_lines.of_entries(toml)
        line = next((known[key] for key in _outwards(wrong.key) if key in known), 1)
        found = _error(path, line, wrong.message, wrong.hint)
        found.data["entry"] = ".".join(filter(None, wrong.key))
        raise found from wrong


class _Wrong(CardError):
    """An error in a card's entry, or in one that is missing."""

    def __init__(self, key: toml_lines.Key, message: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.key = key


def _outwards(key: toml_lines.Key) -> Iterator[toml_lines.Key]:
    """A key, and the tables that it is in, innermost first."""
    return (key[:length] for length in range(len(key), 0, -1))


def _error(path: str, line: int, what: str, hint: str = "") -> CardError:
    return CardError(
        f"{path}:{line}: {what}", hint=hint or "correct the policy's card", path=path, line=line
    )


def _card(table: dict[str, Any]) -> Card:
    for name in table:
        if name not in _ENTRIES:
            nearest = near.hint(name, _ENTRIES)
            raise _Wrong(
                (name,),
                f"the card has an unknown entry {name!r}",
                nearest or f"a card has {', '.join(_ENTRIES)}",
            )
    for name in _TEXTS:
        if not isinstance(table.get(name), str) or not table[name].strip():
            raise _Wrong((name,), f"the card needs a text for {name!r}")
    if table.get("status") not in STATUSES:
        raise _Wrong(("status",), f"the card's status must be one of {', '.join(STATUSES)}")
    specs = table.get("params", {})
    if not isinstance(specs, dict):
        raise _Wrong(("params",), "params must be tables: [params.NAME]")
    parsed = tuple(_spec(name, fields) for name, fields in specs.items())
    wrappers = [p.name for p in parsed if p.type == "policy"]
    if len(wrappers) > 1:
        raise _Wrong(
            ("params", wrappers[1]),
            "a policy wraps one other at most: one parameter of type policy",
        )
    texts = {name: " ".join(table[name].split()) for name in _TEXTS}
    return Card(**texts, status=table["status"], params=parsed)


def _spec(name: str, fields: Any) -> ParamSpec:
    try:
        return params.spec(name, fields)
    except ParameterError as error:
        entry = error.data.get("entry", "")
        raise _Wrong(("params", name, entry), error.message, error.hint) from error
