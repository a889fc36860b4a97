# SPDX-License-Identifier: Apache-2.0
"""A trial of new code, followed through the history: what its decisions come to.

Reads only. What is done about it is :mod:`bpfoom.handler.rollback`'s, and the callers': the
foreground command and the agent.
"""

from __future__ import annotations

from typing import Self

from bpfoom.handler import rollback
from bpfoom.handler.pins import Pins
from bpfoom.handler.rollback import Outcome, Progress, Trial
from bpfoom.observe import records
from bpfoom.observe.records import Decision, Tail


class Watch:
    """One trial, from its first decision on; open until the end of the block.

    Decisions that were overwritten before anybody looked say nothing for it nor against it.
    """

    def __init__(self, trial: Trial, where: Pins) -> None:
        self.trial = trial
        self.progress = Progress()
        self._tail = Tail(where)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._tail.__exit__()

    @property
    def outcome(self) -> Outcome:
        """What the decisions so far come to."""
        return self.progress.outcome(self.trial.limit)

    def look(self) -> list[tuple[Decision, Progress]]:
        """The decisions since the last look that say something, each with what they came to."""
        found = []
        for decision in self._tail.read():
            if not self.trial.concerns(decision.fields):
                continue
            before = self.progress
            self.progress = rollback.step(before, self.trial.limit, [decision.fields])
            if self.progress != before:
                found.append((decision, self.progress))
        return found

    def wait(self, seconds: float, other: int) -> None:
        """Return when there may be more, the descriptor ``other`` can be read, or time is up."""
        self._tail.wait(seconds, other)


def progress_of(trial: Trial, where: Pins) -> Progress:
    """What has come of a trial so far, as far as the history can be read."""
    decisions = records.history_if_readable(where)
    ours = (seen.fields for seen in decisions if trial.concerns(seen.fields))
    return rollback.step(Progress(), trial.limit, ours)
