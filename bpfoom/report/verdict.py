# SPDX-License-Identifier: Apache-2.0
"""Why a handler decided as it did: a decision record with what came of it, ready to be shown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bpfoom.observe.records import Decision
from bpfoom.observe.result import Death, Run
from bpfoom.policy import record
from bpfoom.report import text

# Scores of these are no bytes, whatever they are near to.
_NOT_BYTES = frozenset({"newest", "pgscan"})
_BYTES = frozenset({"largest-cgroup", "largest-task", "priority", "qos", "raise-limit", "swap"})
_ACTS = frozenset({"kill", "kill-cgroup", "raise"})
_KILLS = frozenset({"kill", "kill-cgroup", "would-kill", "would-kill-cgroup"})
_REASONS = tuple(reason for reason in record.REASONS.values() if reason != "none")


@dataclass(frozen=True)
class Bar:
    """One bar: ``share`` of the longest, 0 to 1; ``kind`` is its colour's name in the palette."""

    label: str
    value: str
    share: float
    kind: str


@dataclass(frozen=True)
class Verdict:
    """One decision. ``number`` counts within the run, ``at`` is seconds on its timeline's clock.

    ``policy`` is None where that is not known. ``place`` is the cgroup out of memory; paths are
    None where they are not in the document.
    ``died`` is the number of processes whose death this decision was.
    """

    number: int
    at: float
    decision: Decision
    policy: str | None
    handler: str | None
    place: str | None
    victim: str | None
    died: int
    first_death_ns: int | None
    last_death_ns: int | None
    recovery_ns: int | None

    @property
    def fields(self) -> dict[str, Any]:
        """The record's numbers and names."""
        return self.decision.fields

    @property
    def acts(self) -> bool:
        """Whether it killed or raised, or would have, had it been let."""
        action = self.decision.action.removeprefix("would-")
        return action in _ACTS and self.decision.verdict == "HANDLED"

    @property
    def kills(self) -> bool:
        return self.decision.action in _KILLS

    @property
    def has_runner_up(self) -> bool:
        return bool(self.fields["runner_up_score"])

    @property
    def behind_by_rank(self) -> bool:
        """The runner-up scored higher: a preference or a priority stood before the score."""
        return int(self.fields["runner_up_score"]) > int(self.fields["best_score"])

    @property
    def in_bytes(self) -> bool:
        """Whether the scores are bytes, as far as the document tells."""
        if self.policy in _NOT_BYTES:
            return False
        return self.policy in _BYTES or self.fields["best_score"] == self.fields["victim_usage"]

    def score(self, number: int) -> str:
        return text.size(number) if self.in_bytes else text.number(number)

    def scores(self) -> list[Bar]:
        """The chosen one's score and the runner-up's; none where nothing was scored."""
        best, second = int(self.fields["best_score"]), int(self.fields["runner_up_score"])
        top = max(best, second)
        if not top:
            return []
        names = ("raised to", "before") if not self.kills else ("chosen", "runner-up")
        pairs = zip(names, (best, second), ("killed", "lived"), strict=True)
        return [Bar(name, self.score(n), n / top, kind) for name, n, kind in pairs if n]

    def candidates(self) -> list[Bar]:
        """Who was looked at, by what came of it; the first is the chosen one."""
        skipped = {reason: int(self.fields[f"skipped_{reason}"]) for reason in _REASONS}
        chosen = 1 if self.kills else 0
        rest = max(int(self.fields["seen"]) - chosen - sum(skipped.values()), 0)
        counts = {"chosen": chosen, "scored lower": rest, **skipped}
        if self.behind_by_rank:
            counts["ranked lower"] = counts.pop("scored lower")
        most = max(counts.values())
        kinds = {"chosen": "killed", "scored lower": "lived", "ranked lower": "lived"}
        return [
            Bar(name, text.number(count), count / most, kinds.get(name, "other"))
            for name, count in counts.items()
            if count
        ]

    def times(self) -> list[Bar]:
        """How long things took from the entry into the handler."""
        spans = {"deciding": int(self.fields["duration_ns"])}
        if self.died > 1:
            spans["first death"] = self.first_death_ns or 0
            spans["last death"] = self.last_death_ns or 0
        elif self.died:
            spans["death"] = self.last_death_ns or 0
        spans["memory fell"] = self.recovery_ns or 0
        spans = {name: span for name, span in spans.items() if span}
        longest = max(spans.values(), default=0)
        return [
            Bar(name, text.duration(span), span / longest, "decision")
            for name, span in spans.items()
        ]

    def flags(self) -> list[str]:
        """The record's flags in words."""
        return [word for bit, word in record.FLAGS.items() if int(self.fields["flags"]) & bit]


def of_run(run: Run, zero: float) -> list[Verdict]:
    """Every decision of a run, in order; ``zero`` is second 0 in epoch seconds."""
    return list(_verdicts(run, zero))


def _verdicts(run: Run, zero: float) -> Iterator[Verdict]:
    recovered = {entry.decision: entry for entry in run.recovery}
    for number, decision in enumerate(run.decisions, 1):
        deaths = [death for death in run.deaths if death.decision == decision.sequence]
        spans = [d.after_decision_ns for d in deaths if d.after_decision_ns is not None]
        recovery = recovered.get(decision.sequence)
        known = decision.cgroups
        yield Verdict(
            number=number,
            at=decision.time - zero,
            decision=decision,
            policy=decision.policy or _only_policy(run),
            handler=known.handler_cgroup if known else None,
            place=known.oom_cgroup if known else recovery.cgroup if recovery else None,
            victim=known.victim_cgroup if known else _cgroup_of(deaths),
            died=len(deaths),
            first_death_ns=min(spans, default=None),
            last_death_ns=max(spans, default=None),
            recovery_ns=recovery.ns if recovery else None,
        )


def _only_policy(run: Run) -> str | None:
    """The policy of a run that had one."""
    return run.handler if run.handler and ", " not in run.handler else None


def _cgroup_of(deaths: list[Death]) -> str | None:
    """The one cgroup that all of them were in."""
    cgroups = {death.cgroup for death in deaths}
    return cgroups.pop() if len(cgroups) == 1 else None
