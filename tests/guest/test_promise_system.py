# SPDX-License-Identifier: Apache-2.0
"""Promises about the whole system: in a small guest, with a victim that is preferred to all."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bpfoom.btf.types import Btf
from bpfoom.observe import cgroupfs
from tests.guest.asm import PASS, R0, R6, attached, forget_seen, of_handler, seen
from tests.guest.byhand import ROOT, Trees, wait_for
from tests.guest.callers import dry_run
from tests.guest.handlers import OTHER, REFUSED, promise, promiser
from tests.guest.memory import Hog, hog, make, take

LRU_GEN = Path("/sys/kernel/mm/lru_gen")


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    forget_seen()


def take_all(taker: Hog) -> None:
    """More than the machine has, in parts: all of it at once would be refused."""
    for _ in range(7):
        take(taker, 100)


@pytest.mark.guest_memory(512)
def test_section_5_the_whole_system_waits_a_second_at_most(trees: Trees, btf: Btf) -> None:
    """Until three are broken in a row, or 15 s are spent. Then the kernel kills.

    Whoever else needs memory waits with it. Caches that are dropped meanwhile can keep a promise: a
    debug kernel has so many that none was broken.
    """
    root = cgroupfs.resolve("/")
    with attached(promiser((1 << 32) - 1), root, btf) as it:
        with hog(make(ROOT / "loose"), adj=1000) as taker:
            start = time.monotonic()
            take_all(taker)
            wait_for(taker.ended, "the kernel to kill")
            took = time.monotonic() - start
        counters = it.counters()
    assert seen()[REFUSED] == -errno.EBUSY
    assert counters["promises_broken"] <= counters["promised"]
    # One that is kept early leaves its time to others.
    assert counters["promises_broken"] >= 3 or counters["promised"] >= 15
    assert counters["unproven"] == counters["invocations"] - counters["promised"] > 0
    assert took > 3
    # The kill was progress: the system's budget is whole again.
    assert dry_run_grants(btf)


def dry_run_grants(btf: Btf) -> bool:
    """Whether the whole system may be promised memory."""
    with attached(promiser(1000), cgroupfs.resolve("/"), btf):
        return dry_run(btf, None).outcome == "promise"


@contextmanager
def kept_for(milliseconds: int) -> Iterator[None]:
    """Have kswapd call for the OOM killer rather than evict what was used so lately."""
    before = (LRU_GEN / "enabled").read_text()
    (LRU_GEN / "enabled").write_text("y")
    (LRU_GEN / "min_ttl_ms").write_text(str(milliseconds))
    try:
        yield
    finally:
        (LRU_GEN / "min_ttl_ms").write_text("0")
        (LRU_GEN / "enabled").write_text(before)


@pytest.mark.guest_memory(512)
def test_section_5_kswapd_does_not_wait(trees: Trees, btf: Btf) -> None:
    """It enters as an OOM of the whole system, and is refused.

    Allocations may meet one, too, and before it: so again until it came.
    """
    memcg = btf.place("oom_control", "memcg").offset // 8
    code = promise(of_handler(), 1).load(R0, R6, memcg).keep(OTHER).exit(PASS)
    loose = make(ROOT / "loose")
    with kept_for(1_000_000), attached(code, cgroupfs.resolve("/"), btf):
        for _ in range(20):
            with hog(loose, adj=1000) as taker:
                take_all(taker)
                wait_for(taker.ended, "the kernel to kill")
            if seen()[REFUSED]:
                break
    assert seen()[REFUSED] == -errno.EOPNOTSUPP
    assert seen()[OTHER] == 0
