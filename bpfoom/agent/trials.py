# SPDX-License-Identifier: Apache-2.0
"""New code on trial that was left to the agent: ended when the decisions so far decide it.

Only decisions can decide a trial, so it is looked at when one was made; what they come to is
:mod:`bpfoom.observe.trial`'s, going back and settling :mod:`bpfoom.handler.rollback`'s.
"""

from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

from bpfoom.btf.types import Btf
from bpfoom.errors import BpfoomError, NotThereError
from bpfoom.handler import rollback
from bpfoom.handler.pins import Pins
from bpfoom.handler.rollback import Outcome, Progress, Trial
from bpfoom.observe import cgroupfs
from bpfoom.observe.records import Tail
from bpfoom.observe.trial import progress_of

# A wake-up by the ring can be missed: while there is a trial, it is looked at this often anyway.
WAKE_S = 1.0
_DAY_S = 86400.0


@dataclass(frozen=True)
class Ended:
    """A trial that is over: of which cgroup, and what it came to."""

    cgroup: str
    cgroup_id: int
    trial: Trial
    progress: Progress
    outcome: Outcome


class Trials:
    """The machine's trials, within its block; nobody's for as long as another agent has them.

    A history that cannot be read is told once: without it nobody can tell what decides a trial. So
    is a trial that cannot be ended, though it is tried again.
    """

    def __init__(self, btf: Btf, where: Pins) -> None:
        self._btf = btf
        self._where = where
        self._owned = ExitStack()
        self._tail: Tail | None = None
        self._unread: BpfoomError | None = None
        self._mine = False
        self._fresh = False
        self._on = True  # unless somebody looks, who knows
        self._said: dict[int, str] = {}

    def __enter__(self) -> Self:
        self._take()
        try:
            self._tail = self._owned.enter_context(Tail(self._where, from_now=True))
        except BpfoomError as error:
            self._unread = error
        return self

    def __exit__(self, *_: object) -> None:
        self._owned.close()

    def wait(self, seconds: float | None, other: int) -> None:
        """Return when something was decided, ``other`` can be read, or time is up."""
        # Who was busy when a decision came has perhaps missed its wake-up.
        self._fresh = self._decided()
        if self._fresh or self._unread is not None:
            return
        limits = (seconds, WAKE_S if self._on else _DAY_S)
        patience = min(limit for limit in limits if limit is not None)
        if self._tail is not None:
            self._tail.wait(patience, other)
        else:
            select.select([other], [], [], patience)

    def look(self) -> Iterator[Ended | BpfoomError]:
        """End what further decisions have decided."""
        decided = self._decided() or self._fresh
        if self._unread is not None:
            yield self._unread
            self._unread = None
        if self._take():
            self._on = True
        if not self._mine or not (decided or self._on):
            self._on = False
            return
        try:
            trials = rollback.on_trial(self._where, self._btf)
        except BpfoomError as error:
            yield from self._complaint(0, error)
            return
        self._on = bool(trials)
        for handler, trial in trials:
            try:
                ended = self._ended(trial)
            except NotThereError:
                continue
            except BpfoomError as error:
                name = handler.provenance.get("cgroup", f"id:{trial.cgroup_id}")
                error.message = f"the trial on {name} is not ended: {error.message}"
                yield from self._complaint(trial.cgroup_id, error)
                continue
            if ended is not None:
                self._said.pop(trial.cgroup_id, None)
                yield ended

    def _take(self) -> bool:
        """Be the machine's agent from now on, if nobody else is; whether that is new."""
        if self._mine or rollback.agent_runs(self._where):
            return False
        with ExitStack() as taken:
            self._mine = taken.enter_context(rollback.being_agent(self._where))
            self._owned.push(taken.pop_all())
        return self._mine

    def _complaint(self, cgroup_id: int, error: BpfoomError) -> Iterator[BpfoomError]:
        """What fails, unless it was just that the last time."""
        if self._said.get(cgroup_id) != error.message:
            self._said[cgroup_id] = error.message
            yield error

    def _decided(self) -> bool:
        """Whether there were decisions since the last time."""
        try:
            return self._tail is not None and bool(self._tail.read())
        except BpfoomError as error:
            self._unread, self._tail = error, None
            return False

    def _ended(self, trial: Trial) -> Ended | None:
        """A trial, if it is decided and nobody else watches it: then it is over."""
        cgroup = cgroupfs.by_id(trial.cgroup_id)
        if cgroup is None:
            return None
        with rollback.watching(cgroup.id, self._where) as mine:
            progress = progress_of(trial, self._where) if mine else Progress()
            outcome = progress.outcome(trial.limit)
            if outcome is Outcome.UNSETTLED:
                return None
            if outcome is Outcome.ROLLED_BACK:
                rollback.go_back(trial, cgroup.name, cgroup.path, self._btf, self._where)
            else:
                rollback.settle(trial, cgroup.name, self._btf, self._where)
        return Ended(cgroup.name, cgroup.id, trial, progress, outcome)
