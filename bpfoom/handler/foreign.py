# SPDX-License-Identifier: Apache-2.0
"""What others have put where bpfoom pins: all of it, by name, for people to look at.

Nothing here is ever changed or removed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bpfoom.errors import ForeignPinError
from bpfoom.handler import pinned, pins
from bpfoom.handler.pins import Pins
from bpfoom.policy import record

_STRANGE = "nothing that bpfoom puts there"


def everywhere(where: Pins) -> list[ForeignPinError]:
    """The same, and what is in the places that belong to no cgroup: shared maps, the agent's.

    Maps of other versions of bpfoom are not looked at.
    """
    strangers = found(where)
    if any(one.data["path"] == str(where.base) for one in strangers):
        return strangers
    return [*strangers, *_of_machine(where)]


def found(where: Pins) -> list[ForeignPinError]:
    """All of others' where cgroups' pins are, or beside them: an error that was not raised each.

    Raises PermissionDeniedError.
    """
    try:
        return list(_below(where))
    except ForeignPinError as error:  # the base directory itself
        return [error]


def _below(where: Pins) -> Iterator[ForeignPinError]:
    for name in pins.names_in(where.base):
        if pins.is_id(name):
            yield from _of_cgroup(int(name), where)
        elif name not in (pins.SHARED, pins.AGENT):
            yield pinned.foreign(where.base / name, _STRANGE)


def _of_machine(where: Pins) -> Iterator[ForeignPinError]:
    for place in (pins.SHARED, pins.AGENT):
        try:
            names = pins.names_in(where.base / place)
        except ForeignPinError as error:
            yield error
            continue
        for name in names:
            try:
                _look_at_shared(where.base / place / name)
            except ForeignPinError as error:
                yield error


def _look_at_shared(path: Path) -> None:
    """Raise ForeignPinError unless it is a map that is called as the path says."""
    told = pins.shared(path.name)
    if path.parent.name != pins.SHARED or told is None:
        raise pinned.foreign(path, _STRANGE)
    version, name = told
    if version == record.VERSION:
        seen = pinned.open_map(path, name)
        if seen is not None:
            seen.close()


def _of_cgroup(cgroup_id: int, where: Pins) -> Iterator[ForeignPinError]:
    try:
        names = pins.names_in(where.directory(cgroup_id))
    except ForeignPinError as error:
        yield error
        return
    for name in names:
        try:
            _look(cgroup_id, name, where)
        except ForeignPinError as error:
            yield error


def _look(cgroup_id: int, name: str, where: Pins) -> None:
    """Raise ForeignPinError unless what is pinned under that name is of the kind that we pin."""
    path = where.directory(cgroup_id) / name
    beside = pins.beside(name)
    if name == pins.LINK:
        seen = where.open_link(cgroup_id)
    elif beside is not None:
        seen = pinned.open_object(path, pins.KINDS[beside[0]])
    elif name in pins.TRIGGER_KINDS:
        seen = pinned.open_object(path, pins.TRIGGER_KINDS[name])
    else:
        raise pinned.foreign(path, _STRANGE)
    if seen is not None:
        seen.close()
