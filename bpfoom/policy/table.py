# SPDX-License-Identifier: Apache-2.0
"""A TOML table that is read key by key, each with its type, and that must be empty at the end."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from bpfoom import near
from bpfoom.errors import UsageError
from bpfoom.policy import params
from bpfoom.policy.params import ParamSpec

_ALL = "all"
_NEEDED = object()
_BYTES = ParamSpec("size", "bytes", 0, "")
_DURATION = ParamSpec("time", "duration", 0, "")
_PLAIN = re.compile(r"[\w-]+\Z")


class Table:
    """One table. ``wrong`` makes the error of a key's full name and what is wrong with it."""

    def __init__(self, content: Any, place: str, wrong: Callable[[str, str], UsageError]) -> None:
        self.wrong = wrong
        self._place = place
        if not isinstance(content, dict):
            raise self.error("", "expected a table")
        self._left: dict[str, Any] = dict(content)
        self._asked: set[str] = set()

    def error(self, key: str, what: str) -> UsageError:
        """The error about a key of this table, or about the table itself for ""."""
        return self.wrong(self._name(key) if key else self._place, what)

    def has(self, key: str) -> bool:
        return key in self._left

    def take(self, key: str, default: Any = _NEEDED) -> Any:
        """A value of any type; it counts as read."""
        self._asked.add(key)
        if key not in self._left and default is _NEEDED:
            near_it = near.nearest(key, self._left)
            raise self.error(
                key, f"is missing; there is {near_it[0]!r}" if near_it else "is missing"
            )
        return self._left.pop(key, default)

    def end(self) -> None:
        """Refuse what nobody has read."""
        for key in self._left:
            hint = near.hint(key, self._asked)
            raise self.error(key, f"no such key; {hint}" if hint else "no such key")

    def string(self, key: str, default: Any = _NEEDED) -> str:
        value = self.take(key, default)
        if not isinstance(value, str) or (not value and default is _NEEDED):
            raise self.error(key, "expected text")
        return value

    def boolean(self, key: str) -> bool:
        return self.as_boolean(key, self.take(key, False))

    def as_boolean(self, key: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise self.error(key, "expected true or false")
        return value

    def number(self, key: str, default: int, *, low: int, high: int) -> int:
        value = self.take(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.error(key, f"expected a number from {low} to {high}")
        return value

    def number_or_all(self, key: str) -> int:
        """A count, 0 if it is not there, -1 for "all"."""
        if self._left.get(key) == _ALL:
            self.take(key)
            return -1
        return self.number(key, 0, low=0, high=100_000)

    def size(self, key: str) -> int:
        """Bytes, as in "24M"."""
        return self.as_bytes(key, self.take(key))

    def bytes_or_all(self, key: str) -> int:
        """Bytes, 0 if it is not there, -1 for "all"."""
        value = self.take(key, "0")
        return -1 if value == _ALL else self.as_bytes(key, value)

    def as_bytes(self, key: str, value: Any) -> int:
        return self._parsed(_BYTES, key, value)

    def milliseconds(self, key: str) -> int:
        """A duration such as "300ms", 0 if it is not there."""
        return self._parsed(_DURATION, key, self.take(key, "0ms")) // 1_000_000

    def names(self, key: str, default: tuple[str, ...] | object = _NEEDED) -> tuple[str, ...]:
        """A list of text; one text alone is a list of it."""
        value = self.take(key, default)
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list | tuple) or not all(isinstance(x, str) for x in value):
            raise self.error(key, "expected a list of names")
        return tuple(value)

    def strings(self, key: str) -> dict[str, str]:
        """A table of text, empty if it is not there."""
        inner = Table(self.take(key, {}), self._name(key), self.wrong)
        return {name: inner.string(name) for name in list(inner._left)}

    def settings(self, key: str) -> dict[str, str]:
        """A table of a policy's parameters, dotted ones too, each as the text of --set."""
        inner = Table(self.take(key, {}), self._name(key), self.wrong)
        found = {}
        for name, value in inner.flat():
            if not isinstance(value, str | int):
                raise inner.error(name, "expected text, a number, or true or false")
            found[name] = str(value).lower() if isinstance(value, bool) else str(value)
        return found

    def table(self, key: str) -> Table:
        return Table(self.take(key), self._name(key), self.wrong)

    def tables(self, key: str) -> list[tuple[str, Table]]:
        """The tables of a table, by their names; none if it is not there."""
        inner = Table(self.take(key, {}), self._name(key), self.wrong)
        return [
            (name, Table(value, inner._name(name), self.wrong))
            for name, value in inner._left.items()
        ]

    def list_of_tables(self, key: str) -> list[Table]:
        """The tables of a ``[[key]]``; none if it is not there."""
        value = self.take(key, [])
        if not isinstance(value, list):
            raise self.error(key, f"expected [[{key}]]")
        return [
            Table(item, f"{self._name(key)}[{number}]", self.wrong)
            for number, item in enumerate(value)
        ]

    def flat(self) -> Iterator[tuple[str, Any]]:
        """Every value with its dotted key: ``memory.max = 1`` is a table in a table."""
        return _flat(self._left, "")

    def _parsed(self, spec: ParamSpec, key: str, value: Any) -> int:
        try:
            number = params.parse(spec, value if isinstance(value, str) else "")
        except UsageError as error:
            kind = "bytes, such as 24M" if spec is _BYTES else "a duration, such as 300ms"
            raise self.error(key, f"expected {kind}") from error
        assert isinstance(number, int)
        return number

    def _name(self, key: str) -> str:
        shown = key if all(_PLAIN.match(part) for part in key.split(".")) else f'"{key}"'
        return f"{self._place}.{shown}" if self._place else shown


def _flat(content: dict[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
