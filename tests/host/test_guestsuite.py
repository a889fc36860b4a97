# SPDX-License-Identifier: Apache-2.0
"""The guest suite's own report, read from a run over one test of each outcome. Boots guests."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
SAMPLE = "tests/guest/samples/every_outcome.py"


@pytest.fixture(scope="module")
def report() -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "tests.guestsuite", SAMPLE]
    return subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, timeout=1800)


@pytest.mark.parametrize(
    ("test", "line"),
    [
        ("test_passes", "PASS  {}  "),
        ("test_fails", "FAIL  {}  "),
        ("test_is_skipped", "FAIL  {}: skipped  "),
        ("test_warns_unexpectedly", "FAIL  {}  "),
        ("test_panics_unexpectedly", "FAIL  {}: infrastructure lost  "),
        ("test_runs_after_the_panic", "PASS  {}  "),
        ("test_misses_its_splat", "FAIL  {}  "),
        ("test_fails_to_panic", "FAIL  {}  "),
    ],
)
def test_every_test_has_one_line(
    report: subprocess.CompletedProcess[str], test: str, line: str
) -> None:
    found = [row for row in report.stdout.splitlines() if re.search(rf"^\S.*::{test}\b", row)]
    assert len(found) == 1, report.stdout + report.stderr
    assert found[0].startswith(line.format(f"{SAMPLE}::{test}"))


@pytest.mark.parametrize(
    "reason",
    [
        "the reason it failed",
        "skipped is not passed",
        "WARNING: ",
        "Kernel panic - not syncing: sysrq triggered crash",
        "the kernel printed no splat that matches 'never printed'",
        "the guest should have died and did not",
    ],
)
def test_failures_say_why(report: subprocess.CompletedProcess[str], reason: str) -> None:
    assert any(row.startswith("      ") and reason in row for row in report.stdout.splitlines())


def test_what_is_left_is_counted_before_a_guest_is_lost_on_purpose(
    report: subprocess.CompletedProcess[str],
) -> None:
    assert len(re.findall("^nothing left behind in the kernel: ", report.stdout, re.MULTILINE)) == 1


def test_a_loss_costs_one_boot(report: subprocess.CompletedProcess[str]) -> None:
    assert len(re.findall("^guest: ", report.stdout, re.MULTILINE)) == 2


def test_the_summary_counts_and_decides(report: subprocess.CompletedProcess[str]) -> None:
    assert report.stdout.splitlines()[-1] == "2 passed, 6 failed"
    assert report.returncode == 1


def test_what_tests_leave_behind_fails_the_run() -> None:
    argv = [sys.executable, "-m", "tests.guestsuite", "tests/guest/samples/leaks.py"]
    said = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, timeout=1800)
    lines = said.stdout.splitlines()
    assert said.returncode == 1, said.stdout + said.stderr
    assert lines[-1] == "1 passed, 1 failed"
    found = lines[lines.index("FAIL  left behind in the kernel") + 1 : -1]
    assert re.search("map .*name forgotten", "\n".join(found))
    assert any("/sys/fs/cgroup/forgotten" in line for line in found)


def test_guest_tests_refuse_to_run_on_the_host() -> None:
    argv = [sys.executable, "-m", "pytest", "tests/guest"]
    said = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, timeout=300)
    assert said.returncode == 4
    assert "tests/guest runs inside the guest only" in said.stderr + said.stdout
