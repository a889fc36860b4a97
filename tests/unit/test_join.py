# SPDX-License-Identifier: Apache-2.0
"""Decisions joined with marks, exits, accounts and samples that were written down by hand.

Times are nanoseconds since boot; the epoch began a second before boot, and nobody slept.
"""

from __future__ import annotations

import pytest

from bpfoom.observe.exits import Account, Exit
from bpfoom.observe.join import Clock, Marked, deaths, recoveries
from bpfoom.observe.records import Decision
from bpfoom.observe.result import Death, Process, Sample, Usage
from bpfoom.policy import record

MS = 1_000_000
CLOCK = Clock(1.0, 0)
KILLED = 9
MIB = 1 << 20


def decision(sequence: int, at_ms: int, took_ms: int = 5, **fields: int | str) -> Decision:
    """A decision of a handler at cgroup 1 about cgroup 1, victims in cgroup 2."""
    empty = record.decode(record.VERSION.to_bytes(4, "little") + bytes(record.SIZE - 4))
    given = {"handler_cgroup_id": 1, "oom_memcg_id": 1, "verdict": 1, "action": 1, **fields}
    times = {"sequence": sequence, "time_ns": at_ms * MS, "duration_ns": took_ms * MS}
    made = Decision({**empty, **times, **given}, 1.0 + at_ms / 1000)
    return made.named({1: "/shop", 2: "/shop/batch"}.__getitem__)


def mark(pid: int, at_ms: float, comm: str = "hog", cgroup: str | None = "/shop/a") -> Marked:
    return Marked(pid, pid, comm, round(at_ms * MS), cgroup)


def killed(pid: int, at_ms: int, *, tgid: int = 0, code: int = KILLED) -> Exit:
    return Exit(pid, tgid or pid, at_ms * MS, code)


def test_a_victim_that_a_handler_chose() -> None:
    one = decision(7, 100, victim_pid=42, victim_comm="hog", victim_cgroup_id=2)
    (death,) = deaths(
        [mark(42, 102, cgroup="/shop/batch")],
        [],
        [one],
        [killed(42, 130)],
        [Account(42, None, "hog", 30 * MIB, 9000)],
        CLOCK,
    )
    assert death == Death(42, "hog", "/shop/batch", 1.13, KILLED, None, 30 * MIB, 9000, 7, 30 * MS)


def test_whose_mark_lies_in_no_call_the_kernel_chose() -> None:
    passed = decision(1, 100, 5, verdict=0, action=0)
    marks = [mark(1, 105.5), mark(2, 104), mark(3, 99)]
    found = deaths(marks, [], [passed], [], [], CLOCK)
    assert {death.pid: death.decision for death in found} == {1: None, 2: 1, 3: None}


def test_a_cgroup_that_was_killed_names_nobody_but_all_are_found() -> None:
    group = decision(3, 100, 10, action=2, victim_cgroup_id=2)
    marks = [mark(pid, 101 + pid, f"worker-{pid}", None) for pid in (1, 2)]
    found = deaths(marks, [], [group], [killed(2, 120), killed(1, 140)], [], CLOCK)
    assert [(d.pid, d.comm, d.cgroup, d.decision) for d in found] == [
        (2, "worker-2", "/shop/batch", 3),
        (1, "worker-1", "/shop/batch", 3),
    ]
    assert [death.after_decision_ns for death in found] == [20 * MS, 40 * MS]


def test_without_a_trace_the_record_names_the_victim() -> None:
    one = decision(7, 100, victim_pid=42, victim_comm="hog", victim_cgroup_id=2)
    (death,) = deaths([], [], [one], [], [], CLOCK)
    assert (death.pid, death.comm, death.cgroup) == (42, "hog", "/shop/batch")
    assert death.time is None and death.signal is None and death.after_decision_ns is None


@pytest.mark.parametrize("fields", [{"action": 17}, {"flags": record.FLAG_DRY_RUN}])
def test_who_was_only_thought_of_has_not_died(fields: dict[str, int]) -> None:
    assert deaths([], [], [decision(1, 1, victim_pid=42, **fields)], [], [], CLOCK) == ()


def test_the_last_thread_is_the_end_of_a_process() -> None:
    """10 is headless: its leader has exited long ago, 11 and 12 go on."""
    exits = [killed(11, 150, tgid=10), killed(12, 170, tgid=10), killed(99, 190)]
    accounts = [
        Account(11, None, "hog", 20 * MIB, 5),
        Account(12, 10, "hog", 30 * MIB, 25),
        Account(99, None, "other", 90 * MIB, 1),
    ]
    (death,) = deaths([mark(10, 120)], [], [], exits, accounts, CLOCK)
    assert (death.time, death.peak_rss, death.cpu_ns) == (1.17, 30 * MIB, 25)


def test_of_a_process_whose_last_account_was_lost_its_threads_are_added_up() -> None:
    exits = [killed(10, 170), killed(11, 150, tgid=10)]
    accounts = [Account(11, None, "a", MIB, 5), Account(10, None, "a", MIB, 6)]
    (death,) = deaths([], [Process(10, "a", "b")], [], exits, accounts, CLOCK)
    assert death.cpu_ns == 11


def test_who_exits_by_itself_has_a_code() -> None:
    (death,) = deaths([mark(5, 1)], [], [], [killed(5, 9, code=3 << 8)], [], CLOCK)
    assert (death.signal, death.exit_code) == (None, 3)


def test_sleep_counts_for_boot_time_only() -> None:
    clock = Clock(1.0, 50 * MS)
    one = decision(1, 100, victim_pid=5)
    (death,) = deaths([], [], [one], [killed(5, 70)], [], clock)
    assert (death.time, death.after_decision_ns) == (1.12, 20 * MS)


def timeline(*current: int, limit: int | None = 100, path: str = "/shop") -> list[Sample]:
    """A sample each 50 ms, MiB."""
    top = None if limit is None else limit * MIB
    return [
        Sample(1.0 + n * 0.05, {path: Usage(mib * MIB, 0, 0, 0, top)})
        for n, mib in enumerate(current)
    ]


@pytest.mark.parametrize(
    ("samples", "ns"),
    [
        # The decision is between the second and the third.
        (timeline(60, 80, 100, 70), 90 * MS),
        (timeline(60, 80, 40), 40 * MS),
        (timeline(60, 80, 100, 100), None),
        (timeline(100, 100), None),
        ([], None),
        (timeline(60, 80, 40, path="/elsewhere"), None),
        # Nobody limits it: below what it was before.
        (timeline(60, 80, 85, 79, limit=None), 90 * MS),
        # The limit was lowered to 50 in between, or raised to 150.
        ([*timeline(80, 80, limit=100), *timeline(0, 0, 79, 45, limit=50)[2:]], 40 * MS),
        ([*timeline(95, 99, limit=100), *timeline(0, 0, 120, 99, limit=150)[2:]], 90 * MS),
    ],
)
def test_when_memory_fell(samples: list[Sample], ns: int | None) -> None:
    (recovery,) = recoveries([decision(4, 60)], samples)
    assert (recovery.decision, recovery.cgroup) == (4, "/shop")
    assert recovery.ns == pytest.approx(ns, abs=1000) if ns else recovery.ns is None


def test_who_did_nothing_has_nothing_to_recover_from() -> None:
    idle = [decision(1, 60, verdict=0), decision(2, 60, action=17), decision(3, 60, action=0)]
    assert recoveries(idle, timeline(1, 1)) == ()
