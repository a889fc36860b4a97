# SPDX-License-Identifier: Apache-2.0
"""Marks kept true while cgroups come and go, and what there is for others that follow them.

Only what has stirred is looked at again, with what is below it. Changes of the globs are not
watched: whoever changes them brings all marks up to date.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Self

from bpfoom.errors import BpfoomError
from bpfoom.handler import marks
from bpfoom.handler.pins import Pins
from bpfoom.observe.marks import Change, apply, marked
from bpfoom.observe.stirring import SETTLE_MS, Watcher
from bpfoom.observe.tree import Node


@dataclass
class Seen:
    """What was looked at again: cgroups, each before its children; the ids of those that were
    known and are gone; the marks that have changed, or why they could not be changed."""

    nodes: list[Node] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)
    changes: list[Change] = field(default_factory=list)
    error: BpfoomError | None = None


class Follower:
    """Follows the whole cgroup tree until it is closed."""

    def __init__(self, where: Pins) -> None:
        self._where = where
        self.watcher = Watcher()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.watcher.__exit__()

    def start(self) -> Seen:
        """Watch every cgroup there is, and bring all marks up to date if there are any."""
        shared = marks.open_marks(self._where)
        others = set()
        if shared is not None:
            with shared:
                others = set(marks.read_all(shared))
        return self.look(["/"], others)

    def wait(self, seconds: float) -> Seen:
        """What came of what stirs next, or nothing once so much time is over."""
        tops = self.watcher.stirred(seconds)
        return self.look(tops) if tops else Seen()

    def settle(self) -> Seen:
        """What came of what has begun to stir, and of what does so with it."""
        time.sleep(SETTLE_MS / 1000)
        return self.wait(0)

    def look(self, tops: Iterable[str], others: Iterable[int] = ()) -> Seen:
        """Look at cgroups and all below them anew, and mark them.

        ``others`` are ids of cgroups whose marks may have to be forgotten.
        """
        seen = Seen()
        with self._where.writing():
            handled = frozenset(self._where.cgroup_ids())
            for top in tops:
                found = self.watcher.look(top, handled)
                seen.nodes += found.nodes
                seen.gone |= found.gone
            try:
                seen.changes = self._mark(seen.nodes, {*seen.gone, *others})
            except BpfoomError as error:
                seen.error = error
        if seen.error and seen.error.data.get("errno") == errno.E2BIG and "/" not in tops:
            # Only who looks at all of them can tell which have to make room.
            everything = self.start()
            return replace(everything, gone=everything.gone | seen.gone)
        return seen

    def _mark(self, nodes: list[Node], gone: set[int]) -> list[Change]:
        """Make the marks of these cgroups what globs and attributes say."""
        shared = marks.open_marks(self._where)
        if shared is None:
            return []
        with shared:
            found = marked(nodes, marks.read_rules(self._where))
            concerned = {node.id for node in nodes} | gone
            present = ((number, marks.read(shared, number)) for number in concerned)
            return apply(shared, {n: mark for n, mark in present if mark is not None}, found)
