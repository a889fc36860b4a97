# SPDX-License-Identifier: Apache-2.0
"""Marks kept true while cgroups come and go: every cgroup is watched by inotify.

Only what has stirred is looked at again, with what is below it. Changes of the globs are not
watched: whoever changes them brings all marks up to date.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Self

from inotify_simple import INotify, flags  # type: ignore[import-untyped]

from bpfoom.errors import BpfoomError
from bpfoom.handler import marks
from bpfoom.handler.pins import Pins
from bpfoom.observe import cgroupfs
from bpfoom.observe.marks import Change, apply, marked, walk, watched_by

# Events of a burst are dealt with together.
_SETTLE_MS = 50
_EVENTS = flags.CREATE | flags.DELETE | flags.ATTRIB | flags.ONLYDIR


class Follower:
    """Watches the whole cgroup tree until it is closed. Cgroups are known by their names."""

    def __init__(self, where: Pins) -> None:
        self._where = where
        self._top = cgroupfs.mount().path
        self._inotify = INotify()
        self._watches: dict[str, int] = {}
        self._watched: dict[int, str] = {}
        self._ids: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._inotify.close()

    def start(self) -> list[Change]:
        """Watch every cgroup there is, and bring all marks up to date."""
        with marks.make_marks(self._where) as shared, self._where.writing():
            known = set(marks.read_all(shared))
        return self._refresh("/", known)

    def wait(self, seconds: float) -> list[Change]:
        """What has changed by what stirs next, or nothing once so much time is over."""
        changes = []
        events = self._inotify.read(timeout=round(seconds * 1000), read_delay=_SETTLE_MS)
        for name in topmost(self._stirred(events)):
            try:
                changes += self._refresh(name, set())
            except BpfoomError as error:
                if error.data.get("errno") != errno.E2BIG:
                    raise
                # Only who looks at all of them can tell which have to make room.
                return changes + self.start()
        return changes

    def _stirred(self, events: Iterable[tuple[int, int, int, str]]) -> set[str]:
        """The cgroups that have come, gone, or changed their attributes."""
        found = set()
        for watch, mask, _, child in events:
            if mask & flags.Q_OVERFLOW:
                return {"/"}
            name = self._watched.get(watch)
            if name is None or mask & flags.IGNORED:
                continue
            # A cgroup's own attributes come without a name; files in it do not matter.
            if mask & flags.ISDIR and (not child or not mask & flags.ATTRIB):
                found.add(f"{name.rstrip('/')}/{child}" if child else name)
        return found

    def _refresh(self, top: str, others: set[int]) -> list[Change]:
        """Mark a cgroup and all below it anew; ``others`` are ids that may have to be forgotten."""
        gone = {name: number for name, number in self._ids.items() if is_within(name, top)}
        with marks.make_marks(self._where) as shared, self._where.writing():
            watched = watched_by(self._where)
            above = frozenset(
                watched[number]
                for number in (self._ids.get(name) for name in ancestors(top))
                if number in watched
            )
            path = self._top / top.lstrip("/")
            nodes = list(walk(path, top, watched, above, self._watch))
            found = marked(nodes, marks.read_rules(self._where))
            concerned = {node.id for node in nodes} | set(gone.values()) | others
            present = ((number, marks.read(shared, number)) for number in concerned)
            changes = apply(shared, {n: mark for n, mark in present if mark is not None}, found)
        here = {node.name: node.id for node in nodes}
        for name in gone.keys() - here.keys():
            del self._ids[name]
        self._ids |= here
        for name in self._watches.keys() - self._ids.keys():
            self._drop(self._watches.pop(name))
        return changes

    def _watch(self, name: str) -> None:
        try:
            watch = self._inotify.add_watch(self._top / name.lstrip("/"), _EVENTS)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise BpfoomError(
                    "the kernel allows no more inotify watches, and each cgroup needs one",
                    hint="raise it: sysctl fs.inotify.max_user_watches",
                    errno=error.errno,
                ) from error
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise
            return
        before = self._watches.get(name)
        if before is not None and before != watch:
            self._drop(before)  # gone, and another one of that name has come
        self._watches[name] = watch
        self._watched[watch] = name

    def _drop(self, watch: int) -> None:
        """A watch that is kept would hold the inode of a cgroup that is gone."""
        del self._watched[watch]
        with suppress(OSError):
            self._inotify.rm_watch(watch)


def is_within(name: str, top: str) -> bool:
    """Whether a cgroup is another one, or below it."""
    return name == top or name.startswith(f"{top.rstrip('/')}/")


def ancestors(name: str) -> Iterator[str]:
    """The names of the cgroups above one, upwards."""
    while name != "/":
        name = name.rpartition("/")[0] or "/"
        yield name


def topmost(names: Iterable[str]) -> list[str]:
    """The names without those that are below another of them."""
    given = set(names)
    return sorted(name for name in given if not any(up in given for up in ancestors(name)))
