# SPDX-License-Identifier: Apache-2.0
"""The debug kernel's checkers are on: without them its silence would mean nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.flavours("debug")


# In a guest of its own: lockdep ends itself after the first report of anybody.
@pytest.mark.guest_memory(2048)
@pytest.mark.splat("BUG: KASAN: slab-use-after-free in lkdtm_READ_AFTER_FREE")
@pytest.mark.parametrize("time", ["first", "second"])
def test_kasan_reports_every_time(time: str) -> None:
    Path("/sys/kernel/debug/provoke-crash/DIRECT").write_text("READ_AFTER_FREE")


def test_lockdep_is_on() -> None:
    """It ends itself when it runs out of room, too."""
    stats = Path("/proc/lockdep_stats").read_text().splitlines()
    facts = dict(line.split(":", 1) for line in stats if ":" in line)
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    assert facts["debug_locks"] == "1"
    print(facts["dependency chains"], facts["direct dependencies"], facts["lock-classes"])
