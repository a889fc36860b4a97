# SPDX-License-Identifier: Apache-2.0
"""Cgroups as they come, go and change their attributes: each is watched by inotify, none polled.

Owns the watches and what was known of each cgroup when it was last looked at. What has stirred is
looked at again with what is below it; what that means is for others.
"""

from __future__ import annotations

import errno
from collections.abc import Container, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from inotify_simple import INotify, flags  # type: ignore[import-untyped]

from bpfoom.errors import BpfoomError
from bpfoom.observe import cgroupfs, tree
from bpfoom.observe.tree import Node

# Events of a burst are dealt with together; who is gone again by then costs next to nothing.
SETTLE_MS = 50
_EVENTS = flags.CREATE | flags.DELETE | flags.ATTRIB | flags.ONLYDIR
_CONTROLLERS = "cgroup.subtree_control"


@dataclass(frozen=True)
class Look:
    """A part of the tree: its cgroups, each before its children, and the ids of those that were
    known and are gone."""

    nodes: list[Node]
    gone: set[int]


class Watcher:
    """Watches the whole cgroup tree until it is closed. Cgroups are known by their names."""

    def __init__(self) -> None:
        self._top = cgroupfs.mount().path
        self._inotify = INotify()
        self._watches: dict[str, int] = {}
        self._watched: dict[int, str] = {}
        self._known: dict[str, Node] = {}
        self._children: dict[str, set[str]] = {}
        self._awaited: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._inotify.close()

    def fileno(self) -> int:
        """It can be read when something has stirred."""
        return int(self._inotify.fileno())

    def stirred(self, seconds: float) -> list[str]:
        """The topmost cgroups that have stirred, waited for so long; none once that is over."""
        events = self._inotify.read(timeout=round(seconds * 1000), read_delay=SETTLE_MS)
        return tree.topmost(self._names(events))

    def look(self, top: str, handled: Container[int]) -> Look:
        """What a cgroup and all below it are now, watched from here on.

        ``handled`` has the ids of the cgroups with a handler of ours.
        """
        before = {name: self._known[name].id for name in self._below(top)}
        above = [self._known[name] for name in tree.ancestors(top) if name in self._known]
        owners = frozenset(node.uid for node in above if node.id in handled)
        entered = set(before)

        def enter(name: str) -> None:
            entered.add(name)
            self._watch(name)

        path = self._top / top.lstrip("/")
        nodes = list(tree.walk(path, top, handled, owners, enter))
        for node in nodes:
            self._learn(node)
        for name in entered - {node.name for node in nodes}:
            self._forget(name)
        return Look(nodes, set(before.values()) - {node.id for node in nodes})

    def ids(self) -> set[int]:
        """The ids of all cgroups that were there when they were last looked at."""
        return {node.id for node in self._known.values()}

    def await_controllers(self, name: str) -> None:
        """Let a cgroup stir when controllers are handed to it from above, too."""
        above = tree.parent(name)
        if above not in self._awaited:
            self._awaited.add(above)
            self._watch(above)

    def _names(self, events: Iterable[tuple[int, int, int, str]]) -> set[str]:
        """The cgroups that have come, gone, or changed."""
        found = set()
        for watch, mask, _, child in events:
            if mask & flags.Q_OVERFLOW:
                return {"/"}
            name = self._watched.get(watch)
            if name is None or mask & flags.IGNORED:
                continue
            # A cgroup's own attributes come without a name; files in it do not matter.
            if mask & flags.ISDIR and (not child or not mask & flags.ATTRIB):
                found.add(tree.joined(name, child) if child else name)
            elif mask & flags.MODIFY and child == _CONTROLLERS:
                self._awaited.discard(name)
                found.add(name)
        return found

    def _below(self, top: str) -> list[str]:
        """A cgroup and all below it that are known."""
        found = [top] if top in self._known else []
        for name in found:
            found += self._children.get(name, ())
        return found

    def _learn(self, node: Node) -> None:
        self._known[node.name] = node
        if node.name != "/":
            self._children.setdefault(tree.parent(node.name), set()).add(node.name)

    def _forget(self, name: str) -> None:
        """It is gone, perhaps before it could be looked at."""
        self._known.pop(name, None)
        self._children.pop(name, None)
        self._children.get(tree.parent(name), set()).discard(name)
        self._awaited.discard(name)
        if name in self._watches:
            self._drop(self._watches.pop(name))

    def _watch(self, name: str) -> None:
        events = _EVENTS | flags.MODIFY if name in self._awaited else _EVENTS
        try:
            watch = self._inotify.add_watch(self._top / name.lstrip("/"), events)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise BpfoomError(
                    "the kernel allows no more inotify watches, and each cgroup needs one",
                    hint="raise it: sysctl fs.inotify.max_user_watches",
                    errno=error.errno,
                ) from error
            # Gone; or nested so deep by who owns it that no path leads there.
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.ENAMETOOLONG):
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
