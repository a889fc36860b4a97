# SPDX-License-Identifier: Apache-2.0
"""What a trigger is set to, and what it has seen: the one element of its map.

One table describes it, as the decision record's does: rendering makes the C struct of it, loading
fills it and reading decodes it. Times are microseconds, points in time on CLOCK_BOOTTIME.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Self

from bpfoom.errors import ParameterError
from bpfoom.policy import params
from bpfoom.policy.params import ParamSpec
from bpfoom.policy.record import Field

MAP = "bpfoom_trigger"

FIELDS = (
    Field("psi_id", "u64", "the cgroup whose pressure it is, 0 = the whole system"),
    Field("full", "u64", "whether all tasks must stall, not some"),
    Field("threshold_us", "u64", "declare if so much of a window was lost to stalls"),
    Field("window_us", "u64", "the window"),
    Field("cooldown_us", "u64", "from one declaration to the next at least"),
    Field("repeat", "u64", "whether to declare again while the pressure lasts"),
    Field("looks", "u64", "how often it has looked"),
    Field("looked_us", "u64", "when last"),
    Field("start_us", "u64", "when the present window began"),
    Field("start_total_us", "u64", "the group's total then"),
    Field("before_us", "u64", "lost to stalls in the window before"),
    Field("stall_us", "u64", "lost to stalls in the last window, when it looked last"),
    Field("armed", "u64", "whether pressure was below the threshold since the last declaration"),
    Field("fired", "u64", "how many OOMs it has declared"),
    Field("fired_us", "u64", "when last"),
    Field("relieved", "u64", "how many of them led to a victim, or to memory"),
    Field("result", "u64", "what bpf_out_of_memory() returned last"),
)
_LAYOUT = struct.Struct(f"<{len(FIELDS)}Q")
SIZE = _LAYOUT.size

_PSI = re.compile(r"(some|full):([^/]+)/([^/]+)")
_SECOND = 10**9


def _duration(name: str, least: int, most: int, help: str) -> ParamSpec:
    return ParamSpec(name, "duration", least, help, min=least, max=most)


_THRESHOLD = _duration("threshold", 1000, 60 * _SECOND, "stall time in a window")
_WINDOW = _duration("window", _SECOND // 2, 60 * _SECOND, "what the threshold is a part of")
# Unless somebody says otherwise.
COOLDOWN = "10s"
_COOLDOWN = _duration("cooldown", 0, 24 * 3600 * _SECOND, "from one declaration to the next")


@dataclass(frozen=True)
class Settings:
    """When to declare: so much stall ("some" or "full") in a window, not before the cooldown is
    over; once until pressure has fallen below that, or with ``repeat`` for as long as it lasts."""

    kind: str
    threshold_us: int
    window_us: int
    cooldown_us: int
    repeat: bool = False

    @classmethod
    def parse(cls, psi: str, cooldown: str, repeat: bool = False) -> Self:
        """From ``full:50ms/1s`` and ``10s``. Raises ParameterError."""
        found = _PSI.fullmatch(psi.strip())
        if not found:
            raise ParameterError(
                f"{psi!r} is no pressure", hint="write KIND:STALL/WINDOW, such as full:50ms/1s"
            )
        threshold, window = _microseconds(_THRESHOLD, found[2]), _microseconds(_WINDOW, found[3])
        if threshold > window:
            raise ParameterError(
                f"{psi!r}: the stall cannot be longer than the window",
                hint="write KIND:STALL/WINDOW, such as full:50ms/1s",
            )
        return cls(found[1], threshold, window, _microseconds(_COOLDOWN, cooldown), repeat)

    @property
    def psi(self) -> str:
        """As :meth:`parse` takes it."""
        return f"{self.kind}:{shown(self.threshold_us)}/{shown(self.window_us)}"


@dataclass(frozen=True)
class State:
    """What a trigger has seen and done; all zero when it is new."""

    looks: int = 0
    looked_us: int = 0
    stall_us: int = 0
    armed: bool = False
    fired: int = 0
    fired_us: int = 0
    relieved: int = 0
    result: int = 0


def encode(psi_id: int, settings: Settings, state: State) -> bytes:
    """The map's element for a trigger that begins; what was declared before is carried over."""
    given = {
        "psi_id": psi_id,
        "full": settings.kind == "full",
        "threshold_us": settings.threshold_us,
        "window_us": settings.window_us,
        "cooldown_us": settings.cooldown_us,
        "repeat": settings.repeat,
        "armed": 1,
        "fired": state.fired,
        "fired_us": state.fired_us,
        "relieved": state.relieved,
        "result": state.result,
    }
    return _LAYOUT.pack(*(int(given.get(field.name, 0)) & (1 << 64) - 1 for field in FIELDS))


def decode(raw: bytes) -> tuple[Settings, State]:
    """The element as it is now, :data:`SIZE` bytes."""
    found = dict(zip((field.name for field in FIELDS), _LAYOUT.unpack(raw), strict=True))
    (result,) = struct.unpack("<q", struct.pack("<Q", found["result"]))
    settings = Settings(
        "full" if found["full"] else "some",
        found["threshold_us"],
        found["window_us"],
        found["cooldown_us"],
        bool(found["repeat"]),
    )
    numbers = ("looks", "looked_us", "stall_us", "fired", "fired_us", "relieved")
    return settings, State(
        **{name: found[name] for name in numbers}, armed=bool(found["armed"]), result=result
    )


def shown(microseconds: int) -> str:
    """A duration in the largest unit that leaves nothing over."""
    return params.show(_COOLDOWN, microseconds * 1000)


def _microseconds(spec: ParamSpec, text: str) -> int:
    value = params.parse(spec, text)
    assert isinstance(value, int)
    return value // 1000
