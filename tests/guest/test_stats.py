# SPDX-License-Identifier: Apache-2.0
"""What is counted of real OOMs: against the decision records, and through Prometheus' parser.

::

    /sys/fs/cgroup
    └── bpfoom-test
        └── box         memory.max 32M, no swap, largest-task: two tasks ate it and were killed
"""

from __future__ import annotations

import re
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from bpfoom.btf.types import Btf
from bpfoom.handler import pins
from bpfoom.observe import records
from bpfoom.observe.cgroupfs import Cgroup
from bpfoom.policy import latency
from tests import objects
from tests.guest.byhand import DEADLINE_S, Trees, cli, cli_json, oom_once
from tests.guest.callers import declare
from tests.guest.commands import Running
from tests.guest.memory import hog
from tests.schemas import valid

# Documents for people: each takes seconds of Python, and minutes on a debug kernel.
pytestmark = pytest.mark.flavours("plain")

HISTOGRAM = "bpfoom_decision_duration_seconds"


@pytest.fixture
def box(trees: Trees) -> Iterator[Cgroup]:
    path = str(objects.path())
    code, _, err = cli("attach", "--cgroup", trees.box.name, "--object", path)
    assert code == 0, err
    for _ in range(2):
        oom_once(trees.box)
    yield trees.box


def durations(box: Cgroup) -> list[int]:
    """Nanoseconds of its handler's decisions, by their records."""
    history = records.read_history(pins.find())
    mine = [one.fields for one in history if one.fields["handler_cgroup_id"] == box.id]
    return [int(fields["duration_ns"]) for fields in mine]


def test_the_document_agrees_with_the_records(box: Cgroup) -> None:
    stats = valid("stats", cli_json("stats"))
    (one,) = stats["handlers"]
    took = durations(box)
    assert one["cgroup"] == box.name
    assert one["counters"]["invocations"] == one["policy_counters"]["calls"] == len(took)
    assert one["counters"]["kills"] == 2
    assert sum(h["count"] for h in one["durations"]) == len(took)
    assert sum(h["sum_ns"] for h in one["durations"]) == sum(took)
    buckets = [
        sum(counts) for counts in zip(*(h["buckets"] for h in one["durations"]), strict=True)
    ]
    expected = [0] * latency.BUCKETS
    for nanoseconds in took:
        expected[min((nanoseconds // 1000).bit_length(), latency.BUCKETS - 1)] += 1
    assert buckets == expected
    assert stats["recorded"] >= len(took)


def families(text: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def test_openmetrics_of_real_ooms(box: Cgroup) -> None:
    code, text, err = cli("stats", "--openmetrics")
    assert code == 0, err
    found = families(text)
    (kills,) = found["bpfoom_kills"].samples
    assert (kills.labels, kills.value) == ({"cgroup": box.name}, 2)
    counts = [s for s in found[HISTOGRAM].samples if s.name == f"{HISTOGRAM}_count"]
    by_action = {(s.labels["action"], s.labels["reason"]): s.value for s in counts}
    assert by_action["kill", "allocation"] == 2
    assert sum(by_action.values()) == len(durations(box))


def test_it_goes_on_with_other_code(box: Cgroup) -> None:
    """An update that exchanges the program takes the histogram along."""
    before = cli_json("stats")["handlers"][0]
    path = str(objects.path())
    assert cli("attach", "--cgroup", box.name, "--object", path, "--replace")[0] == 0
    after = cli_json("stats")["handlers"][0]
    assert after["durations"] == before["durations"]
    oom_once(box)
    later = cli_json("stats")["handlers"][0]
    assert sum(h["count"] for h in later["durations"]) == len(durations(box))


def test_a_declared_oom_is_counted_apart(box: Cgroup, btf: Btf) -> None:
    with hog(box, 4):
        assert declare(btf, box) == 1
    found = cli_json("stats")["handlers"][0]["durations"]
    by_reason = {(h["action"], h["reason"]): h["count"] for h in found}
    assert by_reason["kill", "declared"] == 1
    assert by_reason["kill", "allocation"] == 2


def test_a_textfile(box: Cgroup, tmp_path: Path) -> None:
    path = tmp_path / "bpfoom.prom"
    assert cli("stats", "--textfile", str(path))[0] == 0
    assert f'bpfoom_kills_total{{cgroup="{box.name}"}} 2.0\n' in path.read_text()


def test_the_endpoint(box: Cgroup) -> None:
    """On loopback, in the format that is asked for, and as it is when it is asked for."""
    with Running("stats", "--listen", "0") as server:
        server.wait_until(lambda: "/metrics" in server.out(), "an address")
        address = re.search(r"http://127\.0\.0\.1:\d+/metrics", server.out())
        assert address, server.out()
        accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
        request = urllib.request.Request(address[0], headers=accept)
        for kills in (2, 3):
            with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
                (sample,) = families(answer.read().decode())["bpfoom_kills"].samples
            assert sample.value == kills
            oom_once(box)
        server.signal(signal.SIGTERM)
        code, _, err = server.wait()
        assert code == 0, err
