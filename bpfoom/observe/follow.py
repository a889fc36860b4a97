# SPDX-License-Identifier: Apache-2.0
"""Marks kept true while cgroups come and go: every cgroup is watched by inotify.

Only what has stirred is looked at again, with what is below it. Changes of the globs are not
watched: whoever changes them brings all marks up to date.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
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
    """Watches the whole cgroup tree until it is closed."""

    def __init__(self, where: Pins) -> None:
        self._where = where
        self._top = cgroupfs.mount().path
        self._inotify = INotify()
        self._watches: dict[Path, int] = {}
        self._ids: dict[Path, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._inotify.close()

    def start(self) -> list[Change]:
        """Watch every cgroup there is, and bring all marks up to date."""
        with marks.make_marks(self._where) as shared, self._where.writing():
            known = set(marks.read_all(shared))
        return self._refresh(self._top, known)

    def wait(self, seconds: float) -> list[Change]:
        """What has changed by what stirs next, or nothing once so much time is over."""
        changes = []
        events = self._inotify.read(timeout=round(seconds * 1000), read_delay=_SETTLE_MS)
        for path in _topmost(self._stirred(events)):
            try:
                changes += self._refresh(path, set())
            except BpfoomError as error:
                if error.data.get("errno") != errno.E2BIG:
                    raise
                # Only who looks at all of them can tell which have to make room.
                return changes + self.start()
        return changes

    def _stirred(self, events: Iterable[tuple[int, int, int, str]]) -> set[Path]:
        """The cgroups that have come, gone, or changed their attributes."""
        directories = {watch: path for path, watch in self._watches.items()}
        found = set()
        for watch, mask, _, name in events:
            if mask & flags.Q_OVERFLOW:
                return {self._top}
            directory = directories.get(watch)
            if directory is None or mask & flags.IGNORED:
                continue
            # A cgroup's own attributes come without a name; files in it do not matter.
            if mask & flags.ISDIR and (not name or not mask & flags.ATTRIB):
                found.add(directory / name)
        return found

    def _refresh(self, top: Path, others: set[int]) -> list[Change]:
        """Mark a cgroup and all below it anew; ``others`` are ids that may have to be forgotten."""
        gone = {path: number for path, number in self._ids.items() if _within(path, top)}
        with marks.make_marks(self._where) as shared, self._where.writing():
            watched = watched_by(self._where)
            above = frozenset(
                watched[self._ids[path]] for path in top.parents if self._ids.get(path) in watched
            )
            nodes = list(walk(top, self._name(top), watched, above, self._watch))
            found = marked(nodes, marks.read_rules(self._where))
            concerned = {node.id for node in nodes} | set(gone.values()) | others
            present = ((number, marks.read(shared, number)) for number in concerned)
            changes = apply(shared, {n: mark for n, mark in present if mark is not None}, found)
        here = {node.path: node.id for node in nodes}
        for path in gone.keys() - here.keys():
            self._forget(path)
        self._ids |= here
        return changes

    def _name(self, path: Path) -> str:
        return "/" if path == self._top else f"/{path.relative_to(self._top)}"

    def _watch(self, path: Path) -> None:
        before = self._watches.get(path)
        try:
            self._watches[path] = self._inotify.add_watch(path, _EVENTS)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise BpfoomError(
                    "the kernel allows no more inotify watches, and each cgroup needs one",
                    hint="raise it: sysctl fs.inotify.max_user_watches",
                    errno=error.errno,
                ) from error
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise
        else:
            # Gone, and another one of that name has come.
            if before is not None and before != self._watches[path]:
                self._drop(before)

    def _forget(self, path: Path) -> None:
        """A cgroup is gone."""
        del self._ids[path]
        watch = self._watches.pop(path, None)
        if watch is not None:
            self._drop(watch)

    def _drop(self, watch: int) -> None:
        """A watch that is kept would hold the inode of a cgroup that is gone."""
        with suppress(OSError):
            self._inotify.rm_watch(watch)


def _within(path: Path, top: Path) -> bool:
    return path == top or top in path.parents


def _topmost(paths: Iterable[Path]) -> list[Path]:
    """The paths without those that are below another of them."""
    found: list[Path] = []
    for path in sorted(paths):
        if not found or not _within(path, found[-1]):
            found.append(path)
    return found
