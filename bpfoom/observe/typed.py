# SPDX-License-Identifier: Apache-2.0
"""JSON back into the dataclasses that it was made of, each value checked for its type.

Fields may be numbers, words, None, tuples, dictionaries by name, other such dataclasses, and
classes that read themselves by ``from_dict``. Fields that nobody knows are passed over: they are
a later version's.
"""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")

_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def read(kind: type[T], value: Any, place: str = "the document") -> T:
    """``value`` as a ``kind``. Raises ValueError, which names the place of what does not fit."""
    made: T = _read(kind, value, place)
    return made


def _read(kind: Any, value: Any, place: str) -> Any:
    if isinstance(kind, UnionType):  # X | None
        if value is None:
            return None
        (kind,) = (one for one in get_args(kind) if one is not NoneType)
    origin = get_origin(kind)
    if origin is tuple:
        items = _instance(list, value, place, "a list")
        inner = get_args(kind)[0]
        return tuple(_read(inner, item, f"{place}[{n}]") for n, item in enumerate(items))
    if origin is dict:
        named = _instance(dict, value, place, "an object")
        inner = get_args(kind)[1]
        return {key: _read(inner, item, f"{place}.{key}") for key, item in named.items()}
    if hasattr(kind, "from_dict"):
        return _by_itself(kind, _instance(dict, value, place, "an object"), place)
    if is_dataclass(kind):
        return _fields(kind, _instance(dict, value, place, "an object"), place)
    return _plain(kind, value, place)


def _fields(kind: Any, value: dict[str, Any], place: str) -> Any:
    hints = get_type_hints(kind)
    given = {}
    for field in fields(kind):
        if field.name in value:
            where = f"{place}.{field.name}"
            given[field.name] = _read(hints[field.name], value[field.name], where)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{place} has no {field.name}")
    return kind(**given)


def _by_itself(kind: Any, value: dict[str, Any], place: str) -> Any:
    try:
        return kind.from_dict(value)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{place}: {error}") from error


def _plain(kind: Any, value: Any, place: str) -> Any:
    fitting = (int, float) if kind is float else kind
    # To Python true is a number, too.
    if not isinstance(value, fitting) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{place} is not {_WORDS[kind]}")
    # The kernel counts in 64 bits; no clock says NaN or infinity, which JSON may.
    if fitting is not str and not abs(value) < 1 << 64:
        raise ValueError(f"{place} is beyond 64 bits")
    return value


def _instance(kind: type[T], value: Any, place: str, word: str) -> T:
    if not isinstance(value, kind):
        raise ValueError(f"{place} is not {word}")
    return value
