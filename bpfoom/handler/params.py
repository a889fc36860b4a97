# SPDX-License-Identifier: Apache-2.0
"""Live parameters of an attached handler: read as they are, changed as one set.

The handler's params map has two sets, and a map of one number says which is in force. A call of
the handler counts itself in, looks at the number once, and counts itself out; so a writer fills the
other set once nobody who has seen the number before can still be reading there, and then changes
the number. Calls are serialised by the kernel, writers by the pins' lock.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from bpfoom.compiler.object import HIGHEST, LOWEST, HandlerObject, Parameter
from bpfoom.errors import BpfoomError, ParameterError
from bpfoom.handler import info, maps, syscalls
from bpfoom.handler.syscalls import Fd
from bpfoom.policy import params
from bpfoom.policy.functions import PARAMS, PARAMS_SET
from bpfoom.policy.params import ParamSpec, Value

# A call that takes a second is reported by the kernel; ten of them are a handler that is stuck.
PATIENCE_S = 10.0

_KEYS = (bytes(4), (1).to_bytes(4, "little"))
_WORD = 8


class LiveSets:
    """The maps that hold a handler's live parameters; open until :meth:`close`."""

    def __init__(self, sets: Fd, chosen: Fd, counters: Fd) -> None:
        self._maps = (sets, chosen, counters)
        self._size = info.map_info(sets).value_size
        self._counters_size = info.map_info(counters).value_size

    @classmethod
    def of_program(cls, map_ids: Sequence[int]) -> LiveSets | None:
        """Those of a program, by the ids of its maps; None if it has no live parameters."""
        found = [maps.find(map_ids, name) for name in (PARAMS, PARAMS_SET, maps.COUNTERS)]
        sets, chosen, counters = found
        if sets and chosen and counters:
            return cls(sets, chosen, counters)
        for fd in found:
            if fd is not None:
                fd.close()
        return None

    def close(self) -> None:
        for fd in self._maps:
            fd.close()

    def __enter__(self) -> LiveSets:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self) -> bytes:
        """The set in force, read until two reads agree: a writer may be at work."""
        seen = self._read()
        while (again := self._read()) != seen:
            seen = again
        return seen[1]

    def write(self, values: bytes) -> None:
        """Put another set in force. Only within the pins' lock.

        Raises BpfoomError if a call of the handler does not come to its end.
        """
        other = 1 - self._in_force()
        self._wait_for_calls()
        syscalls.map_update(self._maps[0], _KEYS[other], values)
        syscalls.map_update(self._maps[1], _KEYS[0], other.to_bytes(_WORD, "little"))

    def _read(self) -> tuple[int, bytes]:
        number = self._in_force()
        return number, syscalls.map_lookup(self._maps[0], _KEYS[number], self._size)

    def _in_force(self) -> int:
        return syscalls.map_lookup(self._maps[1], _KEYS[0], _WORD)[0] & 1

    def _wait_for_calls(self) -> None:
        """Until every call that is under way now has ended."""
        begun, ended = self._calls()
        deadline = time.monotonic() + PATIENCE_S
        while ended < begun:
            if time.monotonic() > deadline:
                raise BpfoomError(
                    f"the handler has been at work on one OOM for {PATIENCE_S:.0f} s",
                    hint="nothing was changed; try again, or `bpfoom detach` it",
                )
            time.sleep(0.001)
            _, ended = self._calls()

    def _calls(self) -> tuple[int, int]:
        """How many calls have begun and ended: the counters' last two words."""
        raw = syscalls.map_lookup(self._maps[2], _KEYS[0], self._counters_size)
        begun, ended = raw[-2 * _WORD : -_WORD], raw[-_WORD:]
        return int.from_bytes(begun, "little"), int.from_bytes(ended, "little")


def parameter(given: Mapping[str, Any]) -> Parameter:
    """A parameter from its provenance, which another version of bpfoom may have written."""
    known = {field.name for field in fields(Parameter)}
    return Parameter(**{key: value for key, value in given.items() if key in known})


def parameters(given: object) -> tuple[Parameter, ...]:
    """Those of a provenance; none where it says nothing that can be understood."""
    try:
        return tuple(parameter(one) for one in given or ())  # type: ignore[attr-defined]
    except (TypeError, AttributeError):
        return ()


def spec_of(given: Parameter) -> ParamSpec:
    """How a live parameter is read from what people type, and shown to them."""
    return ParamSpec(
        name=given.name,
        type=given.type,
        default=given.default,
        help=given.help,
        live=given.live,
        min=None if given.least == LOWEST else given.least,
        max=None if given.most == HIGHEST else given.most,
    )


def shown(parameters: Sequence[Parameter], values: bytes) -> dict[str, str]:
    """The live ones among the parameters in a set, by name, as a person would type them."""
    return {p.name: params.show(spec_of(p), _decoded(p, values)) for p in parameters if p.live}


def changed(parameters: Sequence[Parameter], values: bytes, settings: Mapping[str, str]) -> bytes:
    """A set with these settings instead. Raises ParameterError: unknown, not live, out of range."""
    named = {p.name: p for p in parameters}
    for name, text in settings.items():
        if name in named and not named[name].live:
            raise ParameterError(
                f"parameter {name} is not live: it is compiled in",
                hint="compile the policy with another value of it, and attach that",
                parameter=name,
                value=text,
            )
    checked = params.resolve([spec_of(p) for p in parameters], settings)
    made = bytearray(values)
    for name in settings:
        value, place = checked[name], named[name]
        assert isinstance(value, int)
        word = (value & (1 << 64) - 1).to_bytes(_WORD, "little")
        made[place.offset : place.offset + place.size] = word
    return bytes(made)


def set_live(obj: HandlerObject, settings: Mapping[str, str]) -> HandlerObject:
    """The object with live parameters that begin with other values. Raises ParameterError."""
    if not settings:
        return obj
    before = next((spec.initial for spec in obj.maps if spec.name == PARAMS), b"")
    values = changed(obj.parameters, before, settings)
    texts = shown(obj.parameters, values)
    return replace(
        obj,
        maps=tuple(replace(m, initial=values) if m.name == PARAMS else m for m in obj.maps),
        parameters=tuple(replace(p, value=texts.get(p.name, p.value)) for p in obj.parameters),
    )


def _decoded(given: Parameter, values: bytes) -> Value:
    raw = values[given.offset : given.offset + given.size]
    if given.type == "bool":
        return any(raw)
    return int.from_bytes(raw, "little", signed=given.type == "int")
