# SPDX-License-Identifier: Apache-2.0
"""Typed policy parameters: from what people type (``512M``, ``250ms``) to checked values.

Owns the types, their units and ranges. A value that passed here can be a number, a truth value,
one of the card's own words, a list of plain names, or a policy to look up; none of them can become
C code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bpfoom import near
from bpfoom.errors import ParameterError

Value = int | bool | str | tuple[str, ...]

_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_TIMES = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "min": 60 * 10**9, "h": 3600 * 10**9}
_TRUTH = {"true": True, "yes": True, "on": True, "1": True} | {
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
_LIMIT = {"bytes": 1 << 63, "duration": 1 << 63, "int": 1 << 63}
_IDENTIFIER = re.compile(r"[a-z][a-z0-9_]{0,31}\Z")
_WORD = re.compile(r"[a-z0-9][a-z0-9-]{0,31}\Z")
_NAME = re.compile(r"[A-Za-z0-9_.:@+()\[\] -]{1,15}\Z")  # "(sd-pam)", "Web Content"
_CGROUP = re.compile(r"/?[A-Za-z0-9_.:@+-]+(/[A-Za-z0-9_.:@+-]+)*\Z")


@dataclass(frozen=True)
class ParamSpec:
    """A parameter as its card declares it; ``default``, ``min`` and ``max`` are checked values."""

    name: str
    type: str
    default: Value
    help: str
    live: bool = False
    min: int | None = None
    max: int | None = None
    choices: tuple[str, ...] = ()


def _bytes(text: str) -> int:
    found = re.fullmatch(
        r"([0-9]{1,19})\s*([KMGT]?)(?:i?B)?", text.strip(), re.ASCII | re.IGNORECASE
    )
    if not found:
        raise ValueError("expected bytes, such as 512M or 2G")
    return int(found[1]) * _SIZES[found[2].upper()]


def _duration(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,19})\s*(ns|us|ms|s|min|h)", text.strip())
    if not found:
        raise ValueError("expected a duration with its unit, such as 250ms or 2s")
    return int(found[1]) * _TIMES[found[2]]


def _int(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,19}", text.strip()):
        raise ValueError("expected a whole number")
    return int(text)


def _bool(text: str) -> bool:
    if text.strip().lower() not in _TRUTH:
        raise ValueError("expected true or false")
    return _TRUTH[text.strip().lower()]


def _policy(text: str) -> str:
    found = text.strip()
    if not (0 < len(found) <= 4096 and found.isprintable()):
        raise ValueError("expected a policy's name, or its file")
    return found


def _names(pattern: re.Pattern[str], what: str) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        found = tuple(part.strip() for part in text.split(",") if part.strip())
        for name in found:
            if not pattern.match(name):
                raise ValueError(f"{name!r} is not {what}")
        return found

    return parse


_PARSERS: dict[str, Callable[[str], Value]] = {
    "bytes": _bytes,
    "duration": _duration,
    "int": _int,
    "bool": _bool,
    "enum": lambda text: text.strip(),
    "policy": _policy,
    "name-list": _names(
        _NAME, "a process name (at most 15 of letters, digits, blanks, _.:@+-()[])"
    ),
    "cgroup-list": _names(_CGROUP, "a cgroup path (letters, digits and _.:@+- between slashes)"),
}
_ENTRIES = ("type", "default", "help", "live", "min", "max", "choices")
TYPES = tuple(_PARSERS)
SCALARS = ("bytes", "duration", "int", "bool")


def parse(spec: ParamSpec, text: str) -> Value:
    """The checked value of ``text``; bytes as bytes, durations in nanoseconds.

    Raises ParameterError for another type, a value out of range, or a word that is no choice.
    """

    def wrong(why: str) -> ParameterError:
        return ParameterError(
            f"parameter {spec.name}: {why}",
            hint=f"{spec.name} ({describe(spec)}): {spec.help}",
            parameter=spec.name,
            value=text,
        )

    try:
        value = _PARSERS[spec.type](text)
    except ValueError as error:
        raise wrong(f"{error}, not {text!r}") from error
    if spec.type == "enum" and value not in spec.choices:
        raise wrong(f"{text!r} is not one of {', '.join(spec.choices)}")
    if isinstance(value, int) and not isinstance(value, bool):
        if spec.min is not None and value < spec.min:
            raise wrong(f"{text} is below the least, {show(spec, spec.min)}")
        if spec.max is not None and value > spec.max:
            raise wrong(f"{text} is above the most, {show(spec, spec.max)}")
        if not -(1 << 63) <= value < _LIMIT[spec.type]:
            raise wrong(f"{text} does not fit in 64 bits")
    return value


def resolve(specs: Sequence[ParamSpec], settings: Mapping[str, str]) -> dict[str, Value]:
    """All parameters: the settings, checked, and defaults for the others, in the card's order.

    Raises ParameterError; an unknown name comes with the nearest known ones.
    """
    known = {spec.name: spec for spec in specs}
    for name in settings:
        if name not in known:
            listed = ", ".join(known) or "none"
            raise ParameterError(
                f"unknown parameter {name!r}",
                hint=near.hint(name, known) or f"this policy's parameters: {listed}",
                parameter=name,
                known=list(known),
            )
    return {
        name: parse(spec, settings[name]) if name in settings else spec.default
        for name, spec in known.items()
    }


def show(spec: ParamSpec, value: Value) -> str:
    """A value as a person would type it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, str):
        return value
    units = {"bytes": _SIZES, "duration": _TIMES}.get(spec.type)
    if units is None:
        return str(value)
    smallest = min(units, key=lambda u: units[u])
    fitting = [u for u in units if value and value % units[u] == 0]
    unit = max(fitting, key=lambda u: units[u], default=smallest)
    return f"{value // units[unit]}{unit}"


def describe(spec: ParamSpec) -> str:
    """Type, range and default in one line."""
    parts = [" | ".join(spec.choices) if spec.choices else spec.type]
    if spec.min is not None or spec.max is not None:
        low = "" if spec.min is None else show(spec, spec.min)
        high = "" if spec.max is None else show(spec, spec.max)
        parts.append(f"{low}..{high}")
    parts.append(f"default {show(spec, spec.default) or 'empty'}")
    return ", ".join(parts)


def spec(name: str, fields: Any) -> ParamSpec:
    """A card's ``[params.NAME]`` table as a spec.

    Raises ParameterError, with the table's ``entry`` in its data where it is about one.
    """
    if not _IDENTIFIER.match(name):
        raise _wrong(name, "a name has lower-case letters, digits and underscores")
    if not isinstance(fields, dict):
        raise _wrong(name, f"a table has {', '.join(_ENTRIES)}")
    for entry in fields:
        if entry not in _ENTRIES:
            raise ParameterError(
                f"parameter {name}: unknown entry {entry!r}",
                hint=near.hint(entry, _ENTRIES) or f"a parameter has {', '.join(_ENTRIES)}",
                entry=entry,
            )
    bare = _without_range(name, fields)
    low, high = (_bound(bare, fields, end) for end in ("min", "max"))
    ranged = replace(bare, min=low, max=high)
    return replace(ranged, default=_given(ranged, fields, "default"))


def _without_range(name: str, fields: Mapping[str, Any]) -> ParamSpec:
    """A spec with its default as text, for messages: it is not checked yet."""
    kind, choices, live = fields.get("type"), fields.get("choices", []), fields.get("live", False)
    if not isinstance(kind, str):
        raise _wrong(name, "its type is a text", "type")
    if kind not in TYPES:
        raise _wrong(name, f"unknown type {kind!r}", "type", near.hint(kind, TYPES))
    words = isinstance(choices, list) and all(isinstance(c, str) for c in choices)
    if (kind == "enum") != bool(choices) or not words or not all(map(_WORD.match, choices)):
        message = "an enum, and nothing else, has choices: words of a-z, 0-9 and -"
        raise _wrong(name, message, "choices")
    if not isinstance(fields.get("help"), str):
        raise _wrong(name, "it needs help, a text", "help")
    if "default" not in fields:
        raise _wrong(name, "it needs a default")
    if not isinstance(live, bool):
        raise _wrong(name, "live is true or false, without quotes", "live")
    if live and kind not in SCALARS:
        raise _wrong(name, f"only {', '.join(SCALARS)} can be live", "live")
    given = _as_text(name, fields, "default")
    return ParamSpec(name, kind, given, fields["help"], live, choices=tuple(choices))


def _wrong(name: str, why: str, entry: str = "", hint: str = "") -> ParameterError:
    hint = hint or f"types: {', '.join(TYPES)}"
    return ParameterError(f"parameter {name}: {why}", hint=hint, entry=entry)


def _bound(spec: ParamSpec, fields: Mapping[str, Any], end: str) -> int | None:
    if end not in fields:
        return None
    value = _given(spec, fields, end)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(spec.name, "only numbers have min and max", end)
    return value


def _given(spec: ParamSpec, fields: Mapping[str, Any], entry: str) -> Value:
    try:
        return parse(spec, _as_text(spec.name, fields, entry))
    except ParameterError as error:
        error.data["entry"] = entry
        raise


def _as_text(name: str, fields: Mapping[str, Any], entry: str) -> str:
    """A TOML value as what a person would have typed for it."""
    given = fields[entry]
    parts = given if isinstance(given, list) else [given]
    for part in parts:
        if not isinstance(part, str | int | float):
            message = "a value is a text, a number, a truth value, or a list of these"
            raise _wrong(name, message, entry)
        if isinstance(part, int) and part.bit_length() > 64:
            raise _wrong(name, "a number does not fit in 64 bits", entry)
    return ",".join(str(part) for part in parts)
