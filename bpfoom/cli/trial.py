# SPDX-License-Identifier: Apache-2.0
"""New code on trial, as ``bpfoom update`` shows it: watched in the foreground, ended by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bpfoom.btf.types import Btf
from bpfoom.cli import output, view
from bpfoom.cli.interrupt import Interrupt
from bpfoom.errors import BpfoomError
from bpfoom.handler import describe, rollback
from bpfoom.handler.describe import Handler
from bpfoom.handler.pins import Pins
from bpfoom.handler.rollback import Outcome, Progress, Trial
from bpfoom.observe.cgroupfs import Cgroup
from bpfoom.observe.records import Decision
from bpfoom.observe.trial import Watch, progress_of

AGENT, FOREGROUND = "agent", "foreground"
# Another consumer of the ring can take our wake-up: look at the history this often anyway.
_WAKE_S = 1.0


@dataclass(frozen=True)
class Place:
    """A cgroup and what is needed to change its handler."""

    target: Cgroup
    btf: Btf
    where: Pins

    def handler(self) -> Handler:
        """What is attached. Raises NotThereError."""
        return describe.handler_of(self.target.id, self.target.name, self.where, self.btf)

    def trial(self) -> Trial:
        """The trial of the code attached. Raises NotThereError."""
        found = rollback.trial_of(self.handler(), self.where, self.btf)
        if found is None:
            raise rollback.no_trial(self.target.name)
        return found

    def settle(self, trial: Trial) -> None:
        """Let the previous code go."""
        rollback.settle(trial, self.target.name, self.btf, self.where)

    def go_back(self, trial: Trial) -> Handler:
        """Put the previous code in force again."""
        return rollback.go_back(trial, self.target.name, self.target.path, self.btf, self.where)


def watcher(trial: Trial, where: Pins) -> str | None:
    """Who watches a trial now: a command in the foreground, the agent, or nobody."""
    if rollback.is_watched(trial.cgroup_id, where):
        return FOREGROUND
    return AGENT if rollback.agent_runs(where) else None


def document(
    trial: Trial, progress: Progress, outcome: Outcome, watched_by: str | None
) -> dict[str, Any]:
    """A trial, JSON-ready."""
    return {
        "rollback_after": trial.limit,
        "previous_policy": trial.previous_policy,
        "previous_map_id": trial.previous_map_id,
        "acted": progress.acted,
        "running": progress.running,
        "outcome": outcome.value,
        "watched_by": watched_by,
    }


def present(handler: Handler, where: Pins, btf: Btf) -> dict[str, Any] | None:
    """The trial that a handler is on now, JSON-ready; None if it is settled."""
    trial = rollback.trial_of(handler, where, btf)
    if trial is None:
        return None
    progress = progress_of(trial, where)
    return document(trial, progress, Outcome.UNSETTLED, watcher(trial, where))


def sentence(shown: dict[str, Any], name: str) -> str:
    """A trial for people, and what can be done about it."""
    previous, limit = shown["previous_policy"], shown["rollback_after"]
    if shown["outcome"] == Outcome.SETTLED.value:
        return f"settled: {previous} is let go"
    if shown["outcome"] == Outcome.ROLLED_BACK.value:
        return f"rolled back: {name} has {previous} again"
    so_far = f"acted {shown['acted']}, declined or failed {shown['running']} running, of {limit}"
    if shown["watched_by"]:
        return f"on trial, watched by the {shown['watched_by']}: {so_far}; before it: {previous}"
    return (
        f"on trial, and nobody watches: {so_far}; {previous} is still pinned; "
        f"go on with `bpfoom update --cgroup {name} --watch`, or --settle, or --rollback"
    )


def watch(place: Place, trial: Trial, *, quiet: bool) -> dict[str, Any]:
    """Watch a trial until it is decided or we are interrupted, and do what follows from it.

    The trial as it is then, JSON-ready. Raises BpfoomError if somebody else watches it, or ends it.
    """
    with rollback.watching(trial.cgroup_id, place.where) as mine:
        if not mine:
            raise BpfoomError(
                f"the trial on {place.target.name} is watched already",
                hint="leave it to them, or end it with --settle or --rollback",
                path=place.target.name,
            )
        if not quiet:
            output.say(_announcement(trial))
        watched = _follow(place, trial, quiet)
        if watched.outcome is Outcome.ROLLED_BACK:
            place.go_back(trial)
        elif watched.outcome is Outcome.SETTLED:
            place.settle(trial)
    return document(trial, watched.progress, watched.outcome, None)


def _announcement(trial: Trial) -> str:
    times = "once" if trial.limit == 1 else f"{trial.limit} times"
    return (
        f"watching in the foreground: back to {trial.previous_policy} if it declines or fails "
        f"{times} running, settled once it has acted {times}"
    )


def _follow(place: Place, trial: Trial, quiet: bool) -> Watch:
    """Read decisions until the trial is decided, or SIGINT or SIGTERM comes."""
    with Interrupt() as interrupt, Watch(trial, place.where) as watched:
        while True:
            for decision, progress in watched.look():
                if not quiet:
                    output.say(_line(decision, progress, trial.limit))
            if watched.outcome is not Outcome.UNSETTLED or interrupt.seen:
                return watched
            if rollback.trial_of(place.handler(), place.where, place.btf) != trial:
                raise rollback.over(place.target.name)
            watched.wait(_WAKE_S, interrupt.fileno())


def _line(decision: Decision, progress: Progress, limit: int) -> str:
    """What one decision has come to."""
    fields = view.decision_row(decision.named(view.cgroup_name).as_dict())
    if progress.running:
        said = f"declined or failed, {progress.running} of {limit} running"
    else:
        said = f"acted, {progress.acted} of {limit}"
    facts = (fields["sequence"], fields["verdict"], fields["action"], fields["victim"])
    return f"{said}: " + "  ".join(str(fact) for fact in facts if fact)
