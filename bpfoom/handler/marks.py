# SPDX-License-Identifier: Apache-2.0
"""Marks of cgroups, as handlers look them up, and the globs that they are made from.

The marks are a hash map by cgroup id, which the kernel reads at each OOM. The globs are a JSON text
in a frozen map: both are pinned beside each other, so they last as long as what is attached does.
Which cgroups a glob means is :mod:`bpfoom.observe.marks`' to find out.
"""

from __future__ import annotations

import errno
import json
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from bpfoom.compiler.object import HandlerObject, MapSpec
from bpfoom.errors import BpfoomError, SyscallError, UsageError
from bpfoom.handler import info, maps, pinned, syscalls
from bpfoom.handler.load import make_map
from bpfoom.handler.pins import NEW, Pins
from bpfoom.handler.syscalls import Fd

MARKS = MapSpec("bpfoom_marks", "hash", 8, 16, 16384, shared=True)
RULES_MAP = "bpfoom_rules"
# In the order of their codes, from 1; 0 is none.
PREFERENCES = ("normal", "avoid", "protect", "omit")

_VALUE = struct.Struct("<IIiI")  # preference, has_priority, priority, 0
_PRIORITY = re.compile(r"priority:([+-]?[0-9]{1,10})\Z")
_HINT = f"a mark is {', '.join(PREFERENCES)}, priority:N, or two of them as in avoid,priority:5"


@dataclass(frozen=True)
class Mark:
    """What a cgroup is marked with. Each of the two may be absent: then it is inherited.

    ``preference`` is one of :data:`PREFERENCES`, ``priority`` has 32 bits; the lowest goes first.
    """

    preference: str | None = None
    priority: int | None = None

    @classmethod
    def parse(cls, text: str) -> Mark:
        """``omit``, ``priority:-10``, ``avoid,priority:5``. Raises UsageError."""
        preference, priority = None, None
        for part in text.split(","):
            number = _PRIORITY.match(part.strip())
            if part.strip() in PREFERENCES and preference is None:
                preference = part.strip()
            elif number and priority is None and -(1 << 31) <= int(number[1]) < 1 << 31:
                priority = int(number[1])
            else:
                raise UsageError(f"the mark {text[:80]!r} cannot be understood", hint=_HINT)
        return cls(preference, priority)

    @classmethod
    def unpack(cls, value: bytes) -> Mark:
        """From an element of the map; a preference of another version counts as none."""
        code, has_priority, priority, _ = _VALUE.unpack(value)
        known = 1 <= code <= len(PREFERENCES)
        return cls(PREFERENCES[code - 1] if known else None, priority if has_priority else None)

    def pack(self) -> bytes:
        """An element of the map."""
        code = PREFERENCES.index(self.preference) + 1 if self.preference else 0
        return _VALUE.pack(code, self.priority is not None, self.priority or 0, 0)

    def over(self, other: Mark) -> Mark:
        """This mark and, where it has nothing to say, the other."""
        return Mark(
            self.preference or other.preference,
            other.priority if self.priority is None else self.priority,
        )

    def __str__(self) -> str:
        parts = [self.preference] if self.preference else []
        return ",".join(parts + ([] if self.priority is None else [f"priority:{self.priority}"]))


@dataclass(frozen=True)
class Rule:
    """A glob, the cgroup that it is below unless it begins with a slash, and what it gives.

    ``by`` is the configuration file that has it, "" for one that somebody has set.
    """

    base: str
    glob: str
    mark: Mark
    by: str = ""

    @property
    def pattern(self) -> str:
        """The glob from the root on: what it is called."""
        return self.glob if self.glob.startswith("/") else f"{self.base.rstrip('/')}/{self.glob}"


def used_by(obj: HandlerObject) -> bool:
    """Whether a handler looks at marks at all."""
    return any(spec.name == MARKS.name for spec in obj.maps)


def open_marks(where: Pins) -> Fd | None:
    """The machine's map of marks, or None if there was never a need for one.

    Raises BpfoomError if another version of bpfoom has made it so that we cannot read it.
    """
    found = where.open_shared(MARKS.name)
    if found is not None:
        about = info.map_info(found)
        if about.shape[:3] != maps.shape_of(MARKS)[:3]:
            found.close()
            raise _not_ours(MARKS.name, where)
    return found


def make_marks(where: Pins) -> Fd:
    """The machine's map of marks, made if there is none. Not within the pins' lock."""
    return where.ensure_shared(MARKS, make_map)


def read_all(marks: Fd) -> dict[int, Mark]:
    """Every mark in force, by cgroup id."""
    found = {}
    for key in list(syscalls.map_keys(marks, MARKS.key_size)):
        mark = read(marks, int.from_bytes(key, "little"))
        if mark is not None:
            found[int.from_bytes(key, "little")] = mark
    return found


def read(marks: Fd, cgroup_id: int) -> Mark | None:
    """The mark of one cgroup itself."""
    try:
        return Mark.unpack(syscalls.map_lookup(marks, _key(cgroup_id), MARKS.value_size))
    except SyscallError as error:
        if error.data["errno"] == errno.ENOENT:
            return None
        raise


def write(marks: Fd, cgroup_id: int, mark: Mark | None) -> None:
    """Mark a cgroup, or take its mark away. Raises BpfoomError when there is no room."""
    try:
        if mark is None:
            syscalls.map_delete(marks, _key(cgroup_id))
        else:
            syscalls.map_update(marks, _key(cgroup_id), mark.pack())
    except SyscallError as error:
        if mark is None and error.data["errno"] == errno.ENOENT:
            return
        if error.data["errno"] != errno.E2BIG:
            raise
        raise no_room(MARKS.max_entries + 1) from error


def no_room(wanted: int) -> BpfoomError:
    """The error for more marks than the map takes."""
    return BpfoomError(
        f"there is room for {MARKS.max_entries} marks, not for {wanted}",
        hint="mark a common ancestor: what is below inherits it",
        errno=errno.E2BIG,
    )


def read_rules(where: Pins) -> tuple[Rule, ...]:
    """The globs, in the order in which they were given."""
    found = where.open_shared(RULES_MAP)
    if found is None:
        return ()
    with found:
        about = info.map_info(found)
        if about.shape != maps.shape("array", 4, about.value_size, 1):
            raise _not_ours(RULES_MAP, where)
        raw = syscalls.map_lookup(found, bytes(4), about.value_size)
    try:
        return tuple(
            Rule(item["base"], item["glob"], Mark.parse(item["mark"]), item.get("by", ""))
            for item in json.loads(raw)
        )
    except (ValueError, KeyError, TypeError, UsageError, RecursionError) as error:
        raise _not_ours(RULES_MAP, where) from error


def write_rules(where: Pins, rules: Sequence[Rule]) -> None:
    """Put other globs in the place of all that there are. Only within the pins' lock, and after
    :func:`make_marks`. Raises ForeignPinError.
    """
    path = where.shared_path(RULES_MAP)
    if not rules:
        path.unlink(missing_ok=True)
        return
    document = [
        {"base": r.base, "glob": r.glob, "mark": str(r.mark), **({"by": r.by} if r.by else {})}
        for r in rules
    ]
    text = json.dumps(document).encode()
    spec = MapSpec(RULES_MAP, "array", 4, len(text), 1, frozen=True, initial=text)
    # Renamed into its place, so that readers find the old ones or the new.
    fresh = path.with_name(f"{path.name}{NEW}")
    left = pinned.open_map(fresh, RULES_MAP)
    if left is not None:
        left.close()
        fresh.unlink()
    with make_map(spec) as made:
        syscalls.obj_pin(made, str(fresh))
    os.rename(fresh, path)


def _not_ours(name: str, where: Pins) -> BpfoomError:
    path = where.shared_path(name)
    return BpfoomError(
        f"{path} is not as this version of bpfoom makes it",
        hint=f"another version has made it: use that one, or rm {path} and set the marks again",
        path=str(path),
        object=name,
    )


def _key(cgroup_id: int) -> bytes:
    return cgroup_id.to_bytes(MARKS.key_size, "little")
