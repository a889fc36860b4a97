# SPDX-License-Identifier: Apache-2.0
"""Kernel log records and the splats among them, from lines as /dev/kmsg has them."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from bpfoom.errors import UsageError
from bpfoom.guest import console
from bpfoom.guest.console import KernelLog, Record, exemptions, find_splats, parse_record

WARN, INFO = 4, 6


def records(*texts: str, from_kernel: bool = True) -> list[Record]:
    """Records a millisecond apart."""
    return [Record(n, n * 1000, WARN, from_kernel, text) for n, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("6,7,1500000,-;Linux version", Record(7, 1_500_000, INFO, True, "Linux version")),
        ("12,8,2,-;from user space", Record(8, 2, WARN, False, "from user space")),
        ("4,9,3,c,caller=T1;a;b", Record(9, 3, WARN, True, "a;b")),
        (" SUBSYSTEM=pci", None),
        ("no record at all", None),
    ],
)
def test_parse_record(line: str, expected: Record | None) -> None:
    assert parse_record(line) == expected


@pytest.mark.parametrize(
    "title",
    [
        "WARNING: mm/oom_kill.c:123 at out_of_memory+0x1/0x2, CPU#1: sh/12",
        "WARNING: possible circular locking dependency detected",
        "WARNING: possible recursive locking detected",
        "WARNING: possible irq lock inversion dependency detected",
        "WARNING: HARDIRQ-safe -> HARDIRQ-unsafe lock order detected",
        "WARNING: inconsistent lock state",
        "WARNING: bad unlock balance detected!",
        "WARNING: held lock freed!",
        "WARNING: tail/123 still has locks held!",
        "WARNING: lock held when returning to user space!",
        "WARNING: Nested lock was not taken",
        "[ BUG: Invalid wait context ]",
        "BUG: MAX_LOCKDEP_CHAINS too low!",
        "INFO: trying to register non-static key.",
        "WARNING: suspicious RCU usage",
        "Voluntary context switch within RCU read-side critical section!",
        "BUG: KASAN: slab-use-after-free in foo+0x1/0x2",
        "BUG: KASAN: invalid-free in bar+0x1/0x2",
        "BUG: kernel NULL pointer dereference, address: 0000000000000000",
        "BUG: sleeping function called from invalid context at mm/slub.c:1",
        "BUG: scheduling while atomic: sh/12/0x00000002",
        "BUG: using smp_processor_id() in preemptible [00000000] code: sh/12",
        "BUG: Bad page state in process sh  pfn:01234",
        "BUG: Bad rss-counter state mm:0000000000000000 type:MM_ANONPAGES val:1",
        "BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 30s!",
        "watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [sh:12]",
        "Oops: general protection fault, probably for non-canonical address 0x1: 0000 [#1]",
        "Oops: 0002 [#1] SMP",
        "kernel BUG at mm/memcontrol.c:99!",
        "general protection fault: 0000 [#1]",
        "rcu: INFO: rcu_preempt self-detected stall on CPU",
        "rcu: INFO: rcu_tasks detected stalls on tasks:",
        "INFO: task python3:123 blocked for more than 120 seconds.",
        "INFO: task python3:123 blocked in I/O wait for more than 120 seconds.",
        "ODEBUG: activate active (active state 1) object: 0 object type: rcu_head hint: 0x0",
        "UBSAN: array-index-out-of-bounds in kernel/x.c:1:2",
        "refcount_t: underflow; use-after-free.",
        "refcount_t: addition on 0; use-after-free.",
        "refcount_t: saturated; leaking memory.",
        "list_add corruption. next->prev should be prev (1), but was 2. (next=3).",
        "list_del corruption. prev->next should be 1, but was 2",
        "kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
        "Kernel panic - not syncing: sysrq triggered crash",
    ],
)
def test_alarms_are_splats(title: str) -> None:
    assert [s.title for s in find_splats(records("before", title, "after"))] == [title]


@pytest.mark.parametrize(
    "text",
    [
        "Call Trace:",
        "stress-ng invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0",
        "Out of memory: Killed process 12 (sh) total-vm:1kB, anon-rss:1kB",
        "oom_reaper: reaped process 12 (sh), now anon-rss:0kB",
        "rcu: Hierarchical RCU implementation.",
        "sysrq: Trigger a crash",
        "BPF: no WARNING: here",
        "FAULT_INJECTION: forcing a failure.",
        "tail: page allocation failure: order:0, mode:0xdc0(GFP_KERNEL|__GFP_ZERO)",
        "Huh VM_FAULT_OOM leaked out to the #PF handler. Retrying PF",
        "Kernel command line: panic=-1 watchdog_thresh=60",
    ],
)
def test_ordinary_messages_are_none(text: str) -> None:
    assert find_splats(records(text)) == []


def test_user_space_cannot_fake_one() -> None:
    assert find_splats(records("WARNING: at home", from_kernel=False)) == []


def test_a_report_ends_at_its_end_mark() -> None:
    lines = ("WARNING: one", "Call Trace:", "---[ end trace 0 ]---", "after", "BUG: two")
    found = find_splats(records(*lines))
    assert [len(splat.lines) for splat in found] == [3, 1]
    assert [splat.sequence for splat in found] == [0, 4]


def test_a_report_ends_at_a_pause() -> None:
    late = Record(2, 2_000_000, WARN, True, "much later")
    [splat] = find_splats([*records("WARNING: one", "its second line"), late])
    assert len(splat.lines) == 2


def test_log_is_read_as_it_grows_and_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "kernel.log"
    log = KernelLog(path)
    assert log.poll() == []
    path.write_text("6,0,1,-;a\n6,1,2,-;b\n6,2,3,-;unfini")
    assert [r.text for r in log.poll()] == ["a", "b"]
    with open(path, "a") as out:
        # The reader in the guest was overrun: it starts again, and 3 and 4 are gone.
        out.write("shed\n6,1,2,-;b\n6,2,3,-;unfinished\n6,5,6,-;f\n")
    assert [r.text for r in log.poll()] == ["unfinished", "f"]
    assert [r.text for r in log.records] == ["a", "b", "unfinished", "f"]
    assert log.lost == 2


def test_a_late_reader_starts_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "kernel.log"
    path.write_text("6,0,1,-;a\n")
    log = KernelLog(path, from_end=True)
    with open(path, "a") as out:
        out.write("6,1,2,-;b\n")
    assert [r.text for r in log.poll()] == ["b"]


ENTRY = '[[allow]]\nmatch = "lkdtm"\nreason = "planted"\nexpires = 2030-01-31\n'


@pytest.mark.parametrize(("today", "splats"), [(date(2030, 1, 30), 0), (date(2030, 1, 31), 1)])
def test_exemptions_expire(tmp_path: Path, today: date, splats: int) -> None:
    path = tmp_path / "allow.toml"
    path.write_text(ENTRY)
    said = records("WARNING: at lkdtm_WARNING")
    assert len(find_splats(said, exemptions(path), today=today)) == splats


@pytest.mark.parametrize("missing", ["match", "reason", "expires"])
def test_an_exemption_needs_all_three(tmp_path: Path, missing: str) -> None:
    path = tmp_path / "allow.toml"
    path.write_text("\n".join(row for row in ENTRY.splitlines() if not row.startswith(missing)))
    with pytest.raises(UsageError, match="entry 1 needs match, reason and expires"):
        exemptions(path)


def test_the_list_we_ship_is_readable() -> None:
    from bpfoom import resources

    for entry in console.exemptions(resources.room("vm") / "splat-allow.toml"):
        assert entry.expires > date.today(), f"expired: {entry.reason}"
