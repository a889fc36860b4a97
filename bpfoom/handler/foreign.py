# SPDX-License-Identifier: Apache-2.0
"""What others have put where bpfoom pins: all of it, by name, for people to look at.

Nothing here is ever changed or removed.
"""

from __future__ import annotations

from collections.abc import Iterator

from bpfoom.errors import ForeignPinError
from bpfoom.handler import pinned, pins
from bpfoom.handler.pins import Pins

_STRANGE = "nothing that bpfoom puts there"


def found(where: Pins) -> list[ForeignPinError]:
    """Everything of others' in our places or beside them, an error that was not raised for each.

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
