# SPDX-License-Identifier: Apache-2.0
"""What comes of OOMs while somebody follows decisions, as one result."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Self

from bpfoom.btf.types import Btf
from bpfoom.handler import describe
from bpfoom.handler.pins import Pins
from bpfoom.observe import subtree
from bpfoom.observe.records import SYSTEM, Decision
from bpfoom.observe.result import Document
from bpfoom.observe.timeline import MAX_CGROUPS
from bpfoom.observe.watch import Sources, Watch

# Of the timeline, so many seconds before and after each OOM are kept.
AROUND_S = 10.0
MAX_DECISIONS = 10_000


class Recording:
    """``with Recording(where, sources, name_of) as recording:`` ... ``add()`` what is read, as it
    is read, and at the end ``document()``. ``name_of`` is given a cgroup's id.
    """

    def __init__(self, where: Pins, sources: Sources, name_of: Callable[[int], str]) -> None:
        self._where = where
        self._name_of = name_of
        self._decisions: deque[Decision] = deque(maxlen=MAX_DECISIONS)
        self._dropped = 0
        self._watch = Watch(sources, lambda: subtree.watched(MAX_CGROUPS), AROUND_S)

    def __enter__(self) -> Self:
        with Btf.from_file() as btf:
            found = describe.handlers(self._where, btf)
        self._handlers = {self._name_of(handler.cgroup_id): handler.policy for handler in found}
        self._tree = subtree.drawn(subtree.watched(MAX_CGROUPS), self._handlers)
        self._started = time.time()
        self._watch.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.__exit__()

    def add(self, decisions: Iterable[Decision]) -> None:
        """Decisions as they are read; those from before the recording do not count."""
        fresh = [decision for decision in decisions if decision.time >= self._started]
        if not fresh:
            return
        with Btf.from_file() as btf:
            name_of, handler_of = cache(self._name_of), describe.finder(self._where, btf)
            for decision in fresh:
                self._dropped += len(self._decisions) == MAX_DECISIONS
                self._decisions.append(decision.named(name_of, handler_of))
                self._watch.keep()

    def document(self, lost: int) -> Document:
        """All of it; ``lost`` decisions could not be read. Ends the recording."""
        decisions = tuple(self._decisions)
        oom = {decision.cgroups.oom_cgroup for decision in decisions if decision.cgroups}
        run = self._watch.run(
            decisions,
            handler=", ".join(dict.fromkeys(self._handlers.values())) or None,
            survivors=subtree.processes(oom - {SYSTEM}),
            memory_events=subtree.memory_events(subtree.watched(MAX_CGROUPS)),
            lost_decisions=lost + self._dropped,
        )
        kernel = Path("/proc/sys/kernel/osrelease").read_text().strip()
        return Document(kernel, "none", tuple(self._tree), (run,))
