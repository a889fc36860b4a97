# SPDX-License-Identifier: Apache-2.0
"""Tests that need the patched kernel: they run inside the guest, as root, on its real cgroups.

Started by ``python -m tests.guestsuite`` on the host, which reads what the plugin below streams.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.guest import census
from tests.guest.byhand import btf, trees
from tests.guest.census import Census

__all__ = ["btf", "trees"]  # fixtures

# The share through which the host reaches a guest of ours; nothing else has it.
SHARE = Path("/run/bpfoom")

MARKERS = (
    "guest_memory(mib): runs in a guest of its own with that much memory",
    "splat(pattern): passes only if the kernel prints a splat that matches meanwhile",
    "loses_guest: passes only if the guest dies meanwhile",
    "flavours(name, ...): runs on these kernels only, otherwise on all that have the series",
    "fault_injection: makes the kernel's allocations fail",
)
WITH_SERIES = ("plain", "debug")

_LOOK_S = 0.02


def pytest_configure(config: pytest.Config) -> None:
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    if "BPFOOM_SUITE_STREAM" in os.environ:
        config.pluginmanager.register(_Stream(os.environ), "bpfoom-stream")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if items and not SHARE.is_mount():
        raise pytest.UsageError(
            "tests/guest runs inside the guest only; on the host use: python -m tests.guestsuite"
        )


class _Stream:
    """Tells the host what happens, one JSON document a line, and marks it in the kernel log.

    Other guests may share the work: before a file is begun the host is asked whose it is. Every
    second guest begins with the last.

    The marks put kernel messages and tests into one order, without comparing clocks. What the tests
    leave behind in the kernel is told as well, before those that lose the guest: after them nothing
    can be counted.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        path = environment["BPFOOM_SUITE_STREAM"]
        self._out = open(path, "a", buffering=1)  # noqa: SIM115 - open until pytest exits
        self._answers = Path(environment["BPFOOM_SUITE_ANSWERS"])
        self._memory = int(environment["BPFOOM_SUITE_MEMORY"])
        self._flavour = environment["BPFOOM_SUITE_FLAVOUR"]
        self._from_end = int(environment["BPFOOM_SUITE_LANE"]) % 2 == 1
        self._before: Census | None = None
        self._counted = False
        self._phases: list[pytest.TestReport] = []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        fit = [item for item in items if self._flavour in _flavours(item)]
        self._tell("collected", tests=[_describe(item) for item in fit])
        ours = [item for item in fit if _memory(item) == self._memory]
        if self._from_end:
            files = list(dict.fromkeys(map(_file, ours)))
            ours.sort(key=lambda item: -files.index(_file(item)))
        # The suite boots again after them: better once than in the middle.
        ours.sort(key=_loses_guest)
        config.hook.pytest_deselected(items=[item for item in items if item not in ours])
        items[:] = ours

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        if not self._is_ours(_file(item)):
            return True  # as if it had run
        if self._before is None:
            self._before = census.take()
        if _loses_guest(item):
            self._count()
        return None

    @cache  # noqa: B019 - one object, as long as pytest
    def _is_ours(self, file: str) -> bool:
        """Ask the host whether this guest runs a file; it says so within its look at the stream."""
        self._tell("begins", file=file)
        while True:
            told = self._answers.read_text() if self._answers.exists() else ""
            for line in told[: told.rfind("\n") + 1].splitlines():
                answer = json.loads(line)
                if answer["file"] == file:
                    return bool(answer["ours"])
            time.sleep(_LOOK_S)

    def pytest_sessionfinish(self) -> None:
        self._count()

    def _count(self) -> None:
        """Tell once what the tests so far have left behind."""
        if self._before is not None and not self._counted:
            self._counted = True
            left = census.left_behind(self._before)
            self._tell("counted", before=str(self._before), left=left)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.outcome != "passed":
            self._tell("not collected", test=report.nodeid, text=report.longreprtext)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._phases = []
        self._tell("start", test=nodeid)
        _mark_kernel_log(f"start of {nodeid}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._phases.append(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        # The host waits for this mark. Not the test's name: the log escapes some characters.
        mark = f"end of test {uuid.uuid4().hex[:12]}"
        _mark_kernel_log(mark)
        # Skipped and expected to fail are not passed: the suite has no other good outcome.
        bad = [r for r in self._phases if r.outcome != "passed" or hasattr(r, "wasxfail")]
        self._tell(
            "end",
            test=nodeid,
            mark=mark,
            outcome=bad[0].outcome if bad else "passed",
            seconds=sum(r.duration for r in self._phases),
            text="\n".join(_text(r) for r in bad),
        )

    def pytest_internalerror(self, excrepr: object) -> None:
        self._tell("not collected", test="pytest", text=str(excrepr))

    def _tell(self, event: str, **facts: Any) -> None:
        self._out.write(json.dumps({"event": event, **facts}) + "\n")


def _memory(item: pytest.Item) -> int:
    """The guest size a test asks for in MiB, 0 = no matter."""
    marker = item.get_closest_marker("guest_memory")
    return int(marker.args[0]) if marker else 0


def _flavours(item: pytest.Item) -> tuple[str, ...]:
    """The kernels a test is meant for."""
    marker = item.get_closest_marker("flavours")
    return marker.args if marker else WITH_SERIES


def _loses_guest(item: pytest.Item) -> bool:
    return item.get_closest_marker("loses_guest") is not None


def _file(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def _describe(item: pytest.Item) -> dict[str, Any]:
    splat = item.get_closest_marker("splat")
    return {
        "name": item.nodeid,
        "memory": _memory(item),
        "splat": splat.args[0] if splat else None,
        "loses_guest": _loses_guest(item),
    }


def _text(report: pytest.TestReport) -> str:
    parts = [report.longreprtext, *(f"--- {title} ---\n{text}" for title, text in report.sections)]
    return "\n".join(part for part in parts if part)


def _mark_kernel_log(text: str) -> None:
    Path("/dev/kmsg").write_text(f"bpfoom: {text}\n")
