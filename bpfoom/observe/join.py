# SPDX-License-Identifier: Apache-2.0
"""Decisions joined with what came of them: who was marked, who died and how, when memory fell.

Pure functions of what was collected. A mark belongs to the decision in whose call it was set:
handlers run one at a time, and nothing else marks meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bpfoom.observe.exits import Account, Exit
from bpfoom.observe.records import Decision
from bpfoom.observe.result import Death, Process, Recovery, Sample

# A trace has microseconds, a record nanoseconds.
_TRACED_NS = 1000
# CPUs keep some pages of a cgroup in stock; its usage moves so much without any being freed.
_SLACK = 512 << 10
# Actions that free memory, or let it be used.
_ACTED = ("kill", "kill-cgroup", "promise", "raise")


@dataclass(frozen=True)
class Marked:
    """A process that the kernel marked as victim, at ``time_ns`` since boot.

    ``thread`` is the one that the mark was found on. ``cgroup`` is None where nobody knows.
    """

    pid: int
    thread: int
    comm: str
    time_ns: int
    cgroup: str | None


@dataclass(frozen=True)
class Clock:
    """What to add to a time since boot for epoch seconds, and to CLOCK_MONOTONIC for one since
    boot, ns: that does not count suspended time."""

    epoch_s: float
    suspended_ns: int


def deaths(
    marks: Iterable[Marked],
    victims: Iterable[Process],
    decisions: Sequence[Decision],
    exits: Sequence[Exit],
    accounts: Sequence[Account],
    clock: Clock,
) -> tuple[Death, ...]:
    """Everybody who was marked, chosen by a decision or else known to have been killed, in the
    order of their deaths; those of whom nothing was heard come last."""
    by_pid = {mark.pid: mark for mark in marks}
    told = _Told(exits, accounts)
    known = {process.pid: process for process in victims}
    chosen = {d.fields["victim_pid"]: d for d in decisions if _killed(d) and d.fields["victim_pid"]}
    found = []
    for pid in dict.fromkeys((*by_pid, *chosen, *known)):
        mark = by_pid.get(pid)
        decision = chosen.get(pid) or (_decision_of(mark, decisions) if mark else None)
        process = known.get(pid) or _process(pid, mark, decision)
        found.append(_death(process, decision, told, clock))
    return tuple(sorted(found, key=lambda death: (death.time is None, death.time)))


def recoveries(decisions: Iterable[Decision], samples: Sequence[Sample]) -> tuple[Recovery, ...]:
    """Of each decision that acted, how long memory took to fall. Decisions have their names."""
    return tuple(
        Recovery(decision.sequence, decision.cgroups.oom_cgroup, _recovery_ns(decision, samples))
        for decision in decisions
        if decision.cgroups and decision.verdict == "HANDLED" and decision.action in _ACTED
    )


def _killed(decision: Decision) -> bool:
    return decision.action in ("kill", "kill-cgroup") and not decision.dry_run


def _decision_of(mark: Marked, decisions: Sequence[Decision]) -> Decision | None:
    """The decision in whose call a mark was set; None if the kernel itself chose."""
    for decision in decisions:
        entered = decision.fields["time_ns"]
        left = entered + decision.fields["duration_ns"]
        if entered - _TRACED_NS <= mark.time_ns <= left + _TRACED_NS:
            return decision
    return None


def _process(pid: int, mark: Marked | None, decision: Decision | None) -> Process:
    """What is known of somebody whom only the kernel told of."""
    comm, cgroup = (mark.comm, mark.cgroup) if mark else ("", None)
    if decision is not None:
        comm = comm or decision.fields["victim_comm"]
        cgroup = cgroup or (decision.cgroups.victim_cgroup if decision.cgroups else None)
    return Process(pid, comm, cgroup or "")


class _Told:
    """Exits and accounts by the process that they are about."""

    def __init__(self, exits: Sequence[Exit], accounts: Sequence[Account]) -> None:
        self.exits: dict[int, list[Exit]] = {}
        self.accounts: dict[int, list[Account]] = {}
        process_of = {one.pid: one.tgid for one in exits}
        for gone in exits:
            self.exits.setdefault(gone.tgid, []).append(gone)
        for account in accounts:
            # Only the last thread's account names the process; whose exit was not heard is one.
            pid = account.tgid or process_of.get(account.pid, account.pid)
            self.accounts.setdefault(pid, []).append(account)


def _death(process: Process, decision: Decision | None, told: _Told, clock: Clock) -> Death:
    threads = told.exits.get(process.pid, [])
    books = told.accounts.get(process.pid, [])
    whole = [one.cpu_ns for one in books if one.tgid == process.pid]
    last = max(threads, key=lambda one: one.time_ns, default=None)
    gone_ns = last.time_ns + clock.suspended_ns if last else None
    comm = next((one.comm for one in books if one.pid == process.pid), "")
    return Death(
        pid=process.pid,
        comm=process.comm or comm,
        cgroup=process.cgroup,
        time=None if gone_ns is None else round(gone_ns / 1e9 + clock.epoch_s, 6),
        signal=os.WTERMSIG(last.code) if last and os.WIFSIGNALED(last.code) else None,
        exit_code=os.WEXITSTATUS(last.code) if last and os.WIFEXITED(last.code) else None,
        peak_rss=max((one.peak_rss for one in books), default=None),
        cpu_ns=whole[0] if whole else sum(one.cpu_ns for one in books) if books else None,
        decision=decision.sequence if decision else None,
        after_decision_ns=(
            max(0, gone_ns - decision.fields["time_ns"]) if decision and gone_ns else None
        ),
    )


def _recovery_ns(decision: Decision, samples: Sequence[Sample]) -> int | None:
    assert decision.cgroups
    path = decision.cgroups.oom_cgroup
    seen = [(sample.time, sample.cgroups[path]) for sample in samples if path in sample.cgroups]
    before = [usage for time, usage in seen if time <= decision.time]
    after = [(time, usage) for time, usage in seen if time > decision.time]
    if not before or not after:
        return None
    # It is out of memory: there is as much as its limit, or more where somebody has lowered that.
    # Who has raised it since does not count.
    limits = [usage.max for usage in (before[-1], after[0][1]) if usage.max is not None]
    full = max(before[-1].current, min(limits, default=0))
    for time, usage in after:
        if usage.current < full - _SLACK:
            return round((time - decision.time) * 1e9)
    return None
