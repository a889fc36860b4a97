# SPDX-License-Identifier: Apache-2.0
"""What the comparison with the base kernel makes of what selftests print."""

from __future__ import annotations

from collections import Counter

from bpfoom.guest.running import CommandResult
from tests.compare.selftests import COLUMNS, _outcomes, table

TAP = b"""TAP version 13
1..3
ok 1 test_memcg_max
not ok 2 test_memcg_low
ok 3 # SKIP test_memcg_sock
# Totals: pass:1 fail:1 xfail:0 xpass:0 skip:1 error:0
"""


def said(status: int, stdout: bytes, stderr: bytes = b"") -> CommandResult:
    return CommandResult(("test_memcontrol",), status, stdout, stderr, 1.0, ())


def test_each_test_of_a_program_counts() -> None:
    assert _outcomes(said(1, TAP)) == {
        "test_memcg_max": "ok",
        "test_memcg_low": "not ok",
        "test_memcg_sock": "skip",
    }


def test_a_program_that_died_is_no_result() -> None:
    found = _outcomes(said(139, TAP, b"Segmentation fault"))
    assert found["exit status 139"] == "Segmentation fault"
    assert _outcomes(said(0, b"")) == {"exit status 0": "no output"}


def test_what_most_rounds_say_is_compared() -> None:
    base, series = Counter({"ok": 3}), Counter({"ok": 2, "not ok": 1})
    lines, same = table([(COLUMNS[0], {"a: t": base}), (COLUMNS[1], {"a: t": series})])
    assert same
    assert "ok 2, not ok 1" in lines[1]


def test_a_difference_is_marked() -> None:
    lines, same = table(
        [(COLUMNS[0], {"a: t": Counter(ok=3)}), (COLUMNS[1], {"a: t": Counter({"not ok": 3})})]
    )
    assert not same
    assert lines[1].endswith("DIFFERS")


def test_a_test_that_is_missing_is_a_difference() -> None:
    lines, same = table([(COLUMNS[0], {"a: t": Counter(ok=1)}), (COLUMNS[1], {})])
    assert not same
    assert "absent 1" in lines[1]
