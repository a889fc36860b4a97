# SPDX-License-Identifier: Apache-2.0
"""One test for each outcome the suite knows: tests/host runs this file and reads the report.

Not collected by itself: its name is no test module's.
"""

from __future__ import annotations

from pathlib import Path

import pytest


def test_passes() -> None:
    assert Path("/run/bpfoom").is_mount()


def test_fails() -> None:
    assert Path("/run/bpfoom/nothing").exists(), "the reason it failed"


# Not left undone: tests/host/test_guestsuite.py holds the suite to calling this one a failure.
@pytest.mark.skip(reason="skipped is not passed")
def test_is_skipped() -> None:
    pass


def test_warns_unexpectedly() -> None:
    Path("/sys/kernel/debug/provoke-crash/DIRECT").write_text("WARNING")


def test_panics_unexpectedly() -> None:
    Path("/proc/sysrq-trigger").write_text("c")


def test_runs_after_the_panic() -> None:
    assert Path("/run/bpfoom").is_mount()


@pytest.mark.splat("never printed")
def test_misses_its_splat() -> None:
    pass


@pytest.mark.loses_guest
def test_fails_to_panic() -> None:
    pass
