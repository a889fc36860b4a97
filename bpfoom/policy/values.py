# SPDX-License-Identifier: Apache-2.0
"""Parameters as a template sees them: what can be written, computed with, or only passed on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from bpfoom.errors import TemplateError
from bpfoom.policy.params import Value

# Types of parameters whose values are unsigned in C.
_UNSIGNED = ("bytes", "duration")


@dataclass(frozen=True)
class Setting:
    """A parameter with its checked value, as a template sees it.

    ``name`` is what its own card calls it, ``prefix`` what stands before that where it is set. A
    value of type "policy" is the name of the wrapped template.
    """

    name: str
    type: str
    value: Value
    live: bool
    prefix: str = ""

    @property
    def identifier(self) -> str:
        """Its name in C, unlike that of any other of the same handler."""
        return (self.prefix + self.name).replace(".", "__")


class Number(int):
    """A number that a person gave as a parameter; its C type is that of its parameter.

    An unadorned constant's type would depend on its value, and what is computed from it as well.
    """

    unsigned: bool

    def __new__(cls, value: int, unsigned: bool) -> Number:
        made = super().__new__(cls, value)
        made.unsigned = unsigned
        return made

    def as_c(self) -> str:
        """The constant, in parentheses where a sign is before it."""
        if self.unsigned:
            return f"{int(self)}ULL"
        if self == -(1 << 63):
            return f"({int(self) + 1}LL - 1)"  # C has no negative constants
        return f"({int(self)}LL)" if self < 0 else f"{int(self)}LL"


class Live:
    """A live parameter: C that reads it. It has no value yet, so nothing can depend on that."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text

    def _no_value(self, *_: object) -> NoReturn:
        raise TemplateError(
            "a live parameter has no value while its policy is rendered",
            hint="ask for it in C, alone in its braces: if ({{ param.NAME }} > 3)",
        )

    # All that a template can do with a number.
    __bool__ = __int__ = __float__ = __index__ = __round__ = _no_value
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _no_value
    __neg__ = __pos__ = __abs__ = __len__ = __iter__ = __contains__ = __getitem__ = _no_value
    __add__ = __sub__ = __mul__ = __truediv__ = __floordiv__ = __mod__ = __pow__ = _no_value
    __radd__ = __rsub__ = __rmul__ = __rtruediv__ = __rfloordiv__ = __rmod__ = _no_value
    __rpow__ = _no_value


class ParamText:
    """Text that a person gave as a parameter. It cannot become part of the C text."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        raise TemplateError(
            "a parameter's text cannot become code", hint="pass it through string(...)"
        )

    def __repr__(self) -> str:
        return "<parameter text>"


class Parameters:
    """What ``param`` is in a template: its card's parameters, as attributes."""

    def __init__(self, settings: Iterable[Setting]) -> None:
        self.__dict__.update({setting.name: _seen(setting) for setting in settings})


def _seen(setting: Setting) -> Any:
    """A parameter as the template sees it: live ones as C expressions on ``call``."""
    value = setting.value
    if setting.live:
        cast = "(s64)" if setting.type == "int" else ""
        return Live(f"({cast}call->params->{setting.identifier})")
    if isinstance(value, tuple):
        return tuple(ParamText(text) for text in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return Number(value, setting.type in _UNSIGNED)
    return value
