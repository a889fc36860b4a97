# SPDX-License-Identifier: Apache-2.0
"""Decisions, read from the shared history map by their own sequence numbers.

The history is the truth; the ring buffer beside it only wakes those who follow. Its layout is
:mod:`bpfoom.policy.record`'s, finding the maps the pins' business.
"""

from __future__ import annotations

import mmap
import select
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from bpfoom.errors import BpfoomError, PermissionDeniedError
from bpfoom.handler import info, syscalls
from bpfoom.handler.describe import Handler
from bpfoom.handler.pins import Pins
from bpfoom.handler.syscalls import Fd
from bpfoom.observe import typed
from bpfoom.policy import record
from bpfoom.policy.functions import HISTORY_ENTRIES

HISTORY_MAP = "bpfoom_history"
STATE_MAP = "bpfoom_state"
RING_MAP = "bpfoom_ring"

SYSTEM = "system"  # in the place of a cgroup's path: the whole machine is out of memory
_WORDS = {
    "verdict": record.VERDICTS,
    "action": record.ACTIONS,
    "constraint": record.CONSTRAINTS,
}

# Writing a record takes about a microsecond: so many unequal reads mean that it is no record.
_TRIES = 8
# How long a record stays in the ring after it has woken somebody, who may not be the only one.
_LINGER_S = 0.02


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
    tells. ``cgroups`` are the paths of the cgroups in it where somebody looked them up, ``policy``
    is what decided where that was found: its code need not be attached any more.
    """

    fields: dict[str, Any]
    at: float | None = None
    cgroups: Cgroups | None = None
    policy: str | None = None

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
        policy = given.get("policy")
        if policy is not None:
            typed.read(str, policy, "policy")
        return cls(fields, typed.read(float, given["time"], "time"), cgroups, policy)

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

    def named(
        self,
        name_of: Callable[[int], str],
        handler_of: Callable[[int], Handler | None] = lambda _: None,
    ) -> Decision:
        """The same with the time of now's clock, the paths of its cgroups and the policy's name
        written down.

        Both are given a cgroup's id; ``handler_of`` answers with the handler that is there now.
        """
        oom, victim = self.fields["oom_memcg_id"], self.fields["victim_cgroup_id"]
        cgroups = Cgroups(
            handler_cgroup=name_of(self.fields["handler_cgroup_id"]),
            oom_cgroup=name_of(oom) if oom else SYSTEM,
            victim_cgroup=name_of(victim) if victim else None,
        )
        handler = handler_of(self.fields["handler_cgroup_id"])
        if handler is None or not handler.has_code(self.fields["policy_hash"]):
            return Decision(self.fields, self.time, cgroups)
        return Decision(self.fields, self.time, cgroups, handler.policy)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: the fields, codes by name, the hash in hex, the time as epoch seconds, and
        the names where they were looked up."""
        return {
            **self.fields,
            "policy_hash": f"{self.fields['policy_hash']:016x}",
            "time": round(self.time, 6),
            "verdict": self.verdict,
            "action": self.action,
            "constraint": self.constraint,
            "dry_run": self.dry_run,
            **({"policy": self.policy, **asdict(self.cgroups)} if self.cgroups else {}),
        }

    def _word(self, name: str) -> str:
        number = int(self.fields[name])
        return _WORDS[name].get(number, str(number))


def boot_offset() -> float:
    """Epoch seconds at boot: add it to a CLOCK_BOOTTIME time."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass
class History:
    """A reader of the history with a sequence of its own: any number of them see every record.

    ``slot`` reads one of the ``slots`` slots, each :data:`record.SIZE` bytes, ``last`` the number
    of the newest decision. ``lost`` counts the decisions that were overwritten before this reader
    saw them.
    """

    slot: Callable[[int], bytes]
    last: Callable[[], int]
    slots: int
    next: int = 1
    lost: int = 0

    @classmethod
    def of_maps(cls, history: Fd, state: Fd) -> History:
        """A reader of the pinned maps; the descriptors stay the caller's."""
        about = info.map_info(history)
        if (about.key_size, about.value_size) != (4, record.SIZE) or (
            about.max_entries < HISTORY_ENTRIES
        ):
            raise BpfoomError(
                f"the history has {about.max_entries} records of {about.value_size} bytes, not "
                f"{HISTORY_ENTRIES} of {record.SIZE}",
                hint="it was made by another version of bpfoom: use that one to read it",
                object=HISTORY_MAP,
            )

        def slot(number: int) -> bytes:
            return syscalls.map_lookup(history, number.to_bytes(4, "little"), record.SIZE)

        def last() -> int:
            return int.from_bytes(syscalls.map_lookup(state, bytes(4), 8), "little")

        return cls(slot, last, HISTORY_ENTRIES)

    def read(self) -> list[Decision]:
        """The decisions since the last call, oldest first. Raises BpfoomError for what is none."""
        last = self.last()
        self._skip_to(last - self.slots + 1)
        found = []
        while self.next <= last:
            raw = self._settled(self.next)
            if raw is None and self.next == last:
                break  # it is still being written
            if raw is None:
                self.lost += 1
            else:
                found.append(Decision(_decoded(raw)))
            self.next += 1
        return found

    def _skip_to(self, oldest: int) -> None:
        """What is older is overwritten."""
        if self.next < oldest:
            self.lost += oldest - self.next
            self.next = oldest

    def _settled(self, sequence: int) -> bytes | None:
        """That record, read until two reads agree; None where there is another one, or half."""
        number = (sequence - 1) % self.slots
        raw = self.slot(number)
        for _ in range(_TRIES):
            again = self.slot(number)
            if again == raw:
                break
            raw = again
        else:
            return None
        written = int.from_bytes(raw[_SEQUENCE : _SEQUENCE + 8], "little")
        return raw if written == sequence else None


_SEQUENCE = record.offsets()["sequence"]


def _decoded(raw: bytes) -> dict[str, Any]:
    try:
        return record.decode(raw)
    except ValueError as error:
        raise BpfoomError(
            f"the history is not what this bpfoom reads: {error}",
            hint="it was made by another version of bpfoom: use that one to read it",
            object=HISTORY_MAP,
        ) from error


def read_history(where: Pins | None) -> list[Decision]:
    """All decisions that the history still holds, oldest first; none if it was never made."""
    if where is None:
        return []
    with Tail(where) as tail:
        return tail.read()


def history_if_readable(where: Pins | None) -> list[Decision]:
    """The same for who has more to tell: none where there is no history that can be read."""
    try:
        return read_history(where)
    except PermissionDeniedError:
        raise
    except BpfoomError:
        return []


def _check_versions(where: Pins) -> None:
    """Raise BpfoomError for a history that another version of bpfoom has made."""
    for version, path in where.other_versions(HISTORY_MAP).items():
        raise BpfoomError(
            f"{path} is a history of version {version}, this bpfoom reads version {record.VERSION}",
            hint="the bpfoom that has made it reads it",
            path=str(path),
        )


class Tail:
    """The decisions as they come, from the oldest that the history holds or, ``from_now``, without
    those. The history need not be there yet: the first handler makes it.

    ``lost`` counts decisions that were overwritten before they were read. Raises ForeignPinError,
    and BpfoomError where there is only a history of another version.
    """

    def __init__(self, where: Pins, *, from_now: bool = False) -> None:
        self._where = where
        self._owned = ExitStack()
        self._history: History | None = None
        self._ring: Ring | None = None
        self._inode = 0
        self._lost_before = 0
        self._open()
        if not self._history:
            _check_versions(where)
        if self._history and from_now:
            self._history.next = self._history.last() + 1

    @property
    def lost(self) -> int:
        return self._lost_before + (self._history.lost if self._history else 0)

    def read(self) -> list[Decision]:
        """Those since the last call, oldest first."""
        found = self._history.read() if self._history else []
        if self._pinned() not in (0, self._inode):  # made for the first time, or anew
            self._open()
            found += self._history.read() if self._history else []
        return found

    def wait(self, seconds: float, other: int) -> None:
        """Return when there may be more, the descriptor ``other`` can be read, or time is up."""
        ring_map = None if self._ring else self._where.open_shared(RING_MAP)
        if ring_map is not None:
            self._ring = self._owned.enter_context(Ring(self._owned.enter_context(ring_map)))
        if self._ring:
            self._ring.wait(seconds, other)
        else:
            select.select([other], [], [], seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._owned.close()

    def _pinned(self) -> int:
        """Which history is pinned now: the inode of its pin, 0 if none can be seen."""
        try:
            return self._where.shared_path(HISTORY_MAP).stat().st_ino
        except OSError:
            return 0

    def _open(self) -> None:
        """Go over to the history that is pinned now, if there is one."""
        inode, lost = self._pinned(), self.lost
        with ExitStack() as owned:
            maps = []
            for name in (HISTORY_MAP, STATE_MAP):
                found = self._where.open_shared(name)
                if found is None:
                    return
                maps.append(owned.enter_context(found))
            opened = History.of_maps(*maps)
            self._owned.close()
            self._owned, self._ring = owned.pop_all(), None
        self._history, self._inode, self._lost_before = opened, inode, lost


class Ring:
    """Waits for the ring buffer to stir, and empties it; what was in it is not looked at.

    Any number of them can wait. They give each other time to notice before they empty it, and
    callers wait with a timeout: a wake-up that was missed is only a delay.
    """

    def __init__(self, ring_map: Fd) -> None:
        self._fd = ring_map.fileno()
        # The kernel's positions: the first page is the consumer's to write, the second read only.
        # No library's consumer: two of them that follow records while either moves the position
        # can end up in the middle of one.
        page = mmap.PAGESIZE
        self._consumed = mmap.mmap(self._fd, page)
        self._produced = mmap.mmap(self._fd, page, prot=mmap.PROT_READ, offset=page)

    def wait(self, seconds: float, other: int) -> None:
        """Return when something was submitted, ``other`` can be read, or time is up."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(other, select.POLLIN)
        if self._fd in (ready for ready, _ in poll.poll(seconds * 1000)):
            self.empty()

    def fileno(self) -> int:
        """To wait for with others: it can be read when something was submitted."""
        return self._fd

    def empty(self) -> None:
        """Until something else is submitted there is nothing to be read."""
        time.sleep(_LINGER_S)
        memoryview(self._consumed).cast("Q")[0] = memoryview(self._produced).cast("Q")[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumed.close()
        self._produced.close()
