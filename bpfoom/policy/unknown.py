# SPDX-License-Identifier: Apache-2.0
"""Names that a template uses and that there are not, said in the words of who wrote it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jinja2
from jinja2.utils import missing

from bpfoom import near
from bpfoom.btf.types import Btf, Kind
from bpfoom.errors import MissingFeatureError
from bpfoom.policy.values import Live, Parameters, ParamText

_WORDS: dict[type, str] = {
    Live: "a live parameter",
    ParamText: "a parameter's text",
    str: "a text",
    int: "a number",
}


# What a question about a kernel's types calls what it did not find, and where such names are.
_KINDS = {
    "struct": (Kind.STRUCT, Kind.UNION),
    "enum": (Kind.ENUM, Kind.ENUM64),
    "function": (Kind.FUNC,),
}


def in_types(error: MissingFeatureError, btf: Btf) -> str:
    """Names in a kernel's types that are near the one that the error says is not there."""
    for what, kinds in _KINDS.items():
        if list(error.data) == [what]:
            return near.hint(error.data[what], btf.names(*kinds))
    return ""


def undefined_among(names: Collection[str]) -> type[jinja2.StrictUndefined]:
    """What an unknown name is where these are known: an error as soon as it is used."""

    class Unknown(jinja2.StrictUndefined):
        def __init__(
            self,
            hint: str | None = None,
            obj: Any = missing,
            name: str | None = None,
            exc: type[jinja2.TemplateRuntimeError] = jinja2.UndefinedError,
        ) -> None:
            super().__init__(hint or _said(obj, name, names), obj, name, exc)

    return Unknown


def _said(thing: object, name: str | None, names: Collection[str]) -> str | None:
    """What is wrong, and on a line of its own what to do; None where Jinja's words will do."""
    if name is None:
        return None
    known: Collection[str] = ()
    if thing is missing:
        known, what = names, f"{name!r} is undefined"
    elif isinstance(thing, Parameters):
        known, what = vars(thing), f"the card has no parameter {name!r}"
    else:
        words = (text for kind, text in _WORDS.items() if isinstance(thing, kind))
        what = f"{next(words, 'this')} has no {name!r}"
    return f"{what}\n{near.hint(name, known)}"
