# SPDX-License-Identifier: Apache-2.0
"""Decisions, read from the shared history map by their own sequence numbers.

The history is the truth; the ring buffer beside it only wakes a reader that follows. Its layout is
:mod:`bpfoom.policy.record`'s, finding the maps the pins' business.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from bpfoom.btf import libbpf
from bpfoom.errors import BpfoomError
from bpfoom.handler import info, syscalls
from bpfoom.handler.pins import Pins
from bpfoom.handler.syscalls import Fd
from bpfoom.observe import typed
from bpfoom.policy import record
from bpfoom.policy.functions import HISTORY_ENTRIES

HISTORY_MAP = "bpfoom_history"
RING_MAP = "bpfoom_ring"

SYSTEM = "system"  # in the place of a cgroup's path: the whole machine is out of memory
_WORDS = {
    "verdict": record.VERDICTS,
    "action": record.ACTIONS,
    "constraint": record.CONSTRAINTS,
}

# Writing a record takes about a microsecond: so many unequal reads mean that it is no record.
_TRIES = 8


@dataclass(frozen=True)
class Cgroups:
    """The paths of a decision's cgroups; ``victim_cgroup`` is None without a victim."""

    handler_cgroup: str
    oom_cgroup: str
    victim_cgroup: str | None


_CGROUPS = tuple(field.name for field in fields(Cgroups))


@dataclass(frozen=True)
class Decision:
    """One decision record, decoded. ``fields`` has the names and units of record.FIELDS.

    ``at`` is its time in epoch seconds where that was written down; without it, the present clock
    tells. ``cgroups`` are the paths of the cgroups in it where somebody looked them up.
    """

    fields: dict[str, Any]
    at: float | None = None
    cgroups: Cgroups | None = None

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> Self:
        """What :meth:`as_dict` made. Raises KeyError, TypeError or ValueError for other things."""
        fields = {field.name: given[field.name] for field in record.FIELDS}
        fields["policy_hash"] = int(fields["policy_hash"], 16)
        for name, words in _WORDS.items():
            codes = {word: code for code, word in words.items()}
            fields[name] = codes[fields[name]] if fields[name] in codes else int(fields[name])
        for field in record.FIELDS:
            kind = str if field.type == "comm" else int
            typed.read(kind, fields[field.name], field.name)
        named = "handler_cgroup" in given
        cgroups = typed.read(Cgroups, {name: given[name] for name in _CGROUPS}) if named else None
        return cls(fields, typed.read(float, given["time"], "time"), cgroups)

    @property
    def sequence(self) -> int:
        return int(self.fields["sequence"])

    @property
    def time(self) -> float:
        """When the handler was entered, epoch seconds."""
        return boot_offset() + int(self.fields["time_ns"]) / 1e9 if self.at is None else self.at

    @property
    def verdict(self) -> str:
        return self._word("verdict")

    @property
    def action(self) -> str:
        return self._word("action")

    @property
    def constraint(self) -> str:
        return self._word("constraint")

    @property
    def dry_run(self) -> bool:
        return bool(self.fields["flags"] & record.FLAG_DRY_RUN)

    def named(self, name_of: Callable[[int], str]) -> Decision:
        """The same with the time of now's clock and the paths of its cgroups written down.

        ``name_of`` is given a cgroup's id.
        """
        oom, victim = self.fields["oom_memcg_id"], self.fields["victim_cgroup_id"]
        cgroups = Cgroups(
            handler_cgroup=name_of(self.fields["handler_cgroup_id"]),
            oom_cgroup=name_of(oom) if oom else SYSTEM,
            victim_cgroup=name_of(victim) if victim else None,
        )
        return Decision(self.fields, self.time, cgroups)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: the fields, codes by name, the hash in hex, the time as epoch seconds, and
        the paths of cgroups where they are known."""
        return {
            **self.fields,
            "policy_hash": f"{self.fields['policy_hash']:016x}",
            "time": round(self.time, 6),
            "verdict": self.verdict,
            "action": self.action,
            "constraint": self.constraint,
            "dry_run": self.dry_run,
            **(asdict(self.cgroups) if self.cgroups else {}),
        }

    def _word(self, name: str) -> str:
        number = int(self.fields[name])
        return _WORDS[name].get(number, str(number))


def boot_offset() -> float:
    """Epoch seconds at boot: add it to a CLOCK_BOOTTIME time."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass
class History:
    """A reader of the history with a sequence of its own.

    ``slot`` reads one of the ``slots`` slots, each :data:`record.SIZE` bytes. ``lost`` counts the
    decisions that were overwritten before this reader saw them.
    """

    slot: Callable[[int], bytes]
    slots: int
    next: int = 1
    lost: int = 0

    @classmethod
    def of_map(cls, history: Fd) -> History:
        """A reader of the pinned map; the descriptor stays the caller's."""
        about = info.map_info(history)
        if about.value_size != record.SIZE or about.key_size != 4:
            raise BpfoomError(
                f"the history holds records of {about.value_size} bytes, not {record.SIZE}",
                hint="it was made by another version of bpfoom: use that one to read it",
                object=HISTORY_MAP,
            )

        def slot(number: int) -> bytes:
            return syscalls.map_lookup(history, number.to_bytes(4, "little"), record.SIZE)

        return cls(slot, HISTORY_ENTRIES)

    def read(self) -> list[Decision]:
        """The decisions since the last call, oldest first."""
        settled = (self._settled(number) for number in range(self.slots))
        found = [Decision(record.decode(raw)) for raw in settled if raw is not None]
        found = sorted(
            (decision for decision in found if decision.sequence >= self.next),
            key=lambda decision: decision.sequence,
        )
        if found:
            last = found[-1].sequence
            self.lost += last - self.next + 1 - len(found)
            self.next = last + 1
        return found

    def _settled(self, number: int) -> bytes | None:
        """One slot's record, read until two reads agree; None if it is empty or unsettled."""
        raw = self.slot(number)
        for _ in range(_TRIES):
            if not int.from_bytes(raw[_SEQUENCE : _SEQUENCE + 8], "little"):
                return None
            again = self.slot(number)
            if again == raw:
                return raw
            raw = again
        return None


def read_history(where: Pins | None) -> list[Decision]:
    """All decisions that the history still holds, oldest first; none if it was never made."""
    shared = where.open_shared(HISTORY_MAP) if where else None
    if shared is None:
        return []
    with shared:
        return History.of_map(shared).read()


_SEQUENCE = record.offsets()["sequence"]
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class Ring:
    """Waits for the ring buffer to stir and empties it; what was in it is not looked at.

    A second consumer may take the wake-up, so callers wait with a timeout and read the history
    either way.
    """

    def __init__(self, ring_map: Fd) -> None:
        self._lib = libbpf.load()
        self._lib.ring_buffer__new.restype = ctypes.c_void_p
        self._callback = _CALLBACK(lambda _context, _data, _size: 0)
        self._ring = self._lib.ring_buffer__new(ring_map.fileno(), self._callback, None, None)
        if not self._ring:
            syscalls.fail("ring_buffer__new", ctypes.get_errno(), object=RING_MAP)

    def wait(self, timeout: float) -> None:
        """Return when something was submitted, or after ``timeout`` seconds."""
        self._lib.ring_buffer__poll(ctypes.c_void_p(self._ring), int(timeout * 1000))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lib.ring_buffer__free(ctypes.c_void_p(self._ring))
