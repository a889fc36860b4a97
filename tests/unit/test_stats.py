# SPDX-License-Identifier: Apache-2.0
"""What was counted, as people and Prometheus get it: held against Prometheus' own parsers.

What is counted is real in tests/guest/test_stats.py; here it is what :func:`metrics.read` could
have read.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from bpfoom import resources
from bpfoom.cli import main, stats
from bpfoom.errors import BpfoomError, UsageError
from bpfoom.handler import maps
from bpfoom.handler.describe import Handler
from bpfoom.handler.trigger import Trigger
from bpfoom.observe import metrics
from bpfoom.observe.metrics import HandlerStats, Stats
from bpfoom.policy import latency, record, trigger
from bpfoom.policy.latency import Histogram
from bpfoom.policy.trigger import Settings, State
from tests.templates import words_of

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def a_histogram(*durations_us: int, action: str = "kill", reason: str = "allocation") -> Histogram:
    counts = [0] * latency.BUCKETS
    for duration in durations_us:
        counts[min(duration.bit_length(), latency.BUCKETS - 1)] += 1
    return Histogram(action, reason, 1000 * sum(durations_us), tuple(counts))


def a_handler(cgroup_id: int, policy: str, **counters: int) -> Handler:
    provenance = {"policy": policy, "policy_hash": "ab" * 32, "dry_run": False}
    return Handler(cgroup_id, 3, 4, 5, "tag", policy, 0, provenance=provenance, counters=counters)


def some() -> Stats:
    shop = a_handler(22, "largest-task", handled=3, passed=1, kernel=0, kills=3, max_ns=9_000_000)
    odd = a_handler(23, "monitor", handled=0, passed=2, kernel=0, kills=0, max_ns=0)
    histograms = (a_histogram(700, 900, 20_000_000), a_histogram(5, reason="declared"))
    own = dict.fromkeys(maps.COUNTER_NAMES, 0) | {"failed": 1}
    settings, state = Settings.parse("full:50ms/1s", "10s"), State(9, 8, 7000, True, 2, 5, 1, 1)
    return Stats(
        (
            HandlerStats("/shop", shop, own, histograms),
            HandlerStats('/a "b"\\c\udcff\n', odd),
        ),
        (("/shop", Trigger(22, settings, state, 6, 7)),),
        4,
    )


def registry_of(counted: Stats | None) -> CollectorRegistry:
    return stats._registry(lambda: counted)


def parsed(text: bytes) -> dict[str, Metric]:
    """The families of OpenMetrics text, by name; the official parser is strict."""
    return {f.name: f for f in openmetrics.text_string_to_metric_families(text.decode())}


def value(family: Metric, suffix: str = "", **labels: str) -> float:
    (found,) = (
        s.value
        for s in family.samples
        if s.name == family.name + suffix and labels.items() <= s.labels.items()
    )
    return float(found)


def test_openmetrics_text_is_what_the_official_parser_takes() -> None:
    found = parsed(stats._openmetrics_text(registry_of(some())))
    assert value(found["bpfoom_up"]) == 1
    calls = found["bpfoom_calls"]
    assert value(calls, "_total", cgroup="/shop", verdict="handled") == 3
    assert value(found["bpfoom_kills"], "_total", cgroup="/shop") == 3
    assert value(found["bpfoom_refused_actions"], "_total", cgroup="/shop") == 1
    assert value(found["bpfoom_call_duration_max_seconds"], cgroup="/shop") == pytest.approx(0.009)
    assert value(found["bpfoom_decisions_recorded"], "_total") == 4
    (about,) = (s for s in found["bpfoom_handler"].samples if s.labels["cgroup"] == "/shop")
    assert about.labels["policy"] == "largest-task"
    assert value(found["bpfoom_trigger_declared"], "_total", cgroup="/shop") == 2
    assert value(found["bpfoom_trigger_stall_seconds"], cgroup="/shop") == pytest.approx(0.007)


def test_a_histogram_per_cgroup_action_and_reason() -> None:
    family = parsed(stats._openmetrics_text(registry_of(some())))[
        "bpfoom_decision_duration_seconds"
    ]
    of_allocations = {"cgroup": "/shop", "action": "kill", "reason": "allocation"}
    assert value(family, "_count", **of_allocations) == 3
    assert value(family, "_sum", **of_allocations) == pytest.approx(20.0016)
    assert value(family, "_bucket", **of_allocations, le="0.000512") == 0
    assert value(family, "_bucket", **of_allocations, le="0.001024") == 2
    assert value(family, "_bucket", **of_allocations, le="16.777216") == 2
    assert value(family, "_bucket", **of_allocations, le="+Inf") == 3
    assert value(family, "_count", **{**of_allocations, "reason": "declared"}) == 1


def test_names_of_cgroups_are_escaped() -> None:
    found = parsed(stats._openmetrics_text(registry_of(some())))
    names = {s.labels["cgroup"] for s in found["bpfoom_calls"].samples}
    assert names == {"/shop", '/a "b"\\c\\xff\n'} or names == {"/shop", '/a "b"\\c\\udcff\n'}


def test_the_textfile_is_prometheus_text() -> None:
    text = stats._prometheus_text(registry_of(some())).decode()
    found = {family.name: family for family in text_string_to_metric_families(text)}
    assert found["bpfoom_kills"].type == "counter"
    assert value(found["bpfoom_kills"], "_total", cgroup="/shop") == 3
    assert found["bpfoom_decision_duration_seconds"].type == "histogram"


def test_what_cannot_be_read_is_down() -> None:
    found = parsed(stats._openmetrics_text(registry_of(None)))
    assert value(found.pop("bpfoom_up")) == 0
    assert found == {}


@settings(deadline=None)
@given(st.lists(st.integers(0, 1 << 26), max_size=20), st.lists(st.text(max_size=8), max_size=3))
def test_whatever_was_counted_can_be_parsed(durations: list[int], names: list[str]) -> None:
    names = list(dict.fromkeys(names))
    handlers = [
        HandlerStats(name, a_handler(at, name, kills=at), {}, (a_histogram(*durations),))
        for at, name in enumerate(names, 1)
    ]
    found = parsed(stats._openmetrics_text(registry_of(Stats(handlers))))
    assert len(found["bpfoom_kills"].samples) == len(names)
    family = found["bpfoom_decision_duration_seconds"]
    counts = [s.value for s in family.samples if s.name.endswith("_count")]
    assert counts == [len(durations)] * len(names)


# Where it comes from


def test_rows_are_read_back() -> None:
    rows = [bytes(latency.SIZE)] * latency.ROWS
    code = next(number for number, name in record.ACTIONS.items() if name == "would-kill")
    words = [5000, 0, 2, *[0] * (latency.SLOTS - 2)]
    raw = b"".join(word.to_bytes(8, "little") for word in words)
    rows[latency.row_of(code, record.FLAG_DECLARED)] = raw
    (found,) = latency.decode(rows)
    assert (found.action, found.reason, found.sum_ns) == ("would-kill", "declared", 5000)
    assert found.count == found.buckets[1] == 2


def test_every_action_has_a_row_of_its_own() -> None:
    rows = [latency.row_of(code, flag) for code in record.ACTIONS for flag in (0, 16)]
    assert len(set(rows)) == len(rows) and max(rows) < latency.ROWS


def test_most_decisions_were_shorter_than() -> None:
    assert latency.quantile_us([a_histogram(3)], 0.99) == 4
    assert latency.quantile_us([a_histogram(*[3] * 98, 100, 200)], 0.99) == 128
    assert latency.quantile_us([a_histogram(3), a_histogram(200)], 0.5) == 4
    assert latency.quantile_us([a_histogram(1 << 25)], 0.5) is None
    assert latency.quantile_us([], 0.99) is None


def test_counters_are_called_as_in_the_template() -> None:
    assert words_of("include/base.bpf.c.j2", "counters") == list(maps.COUNTER_NAMES)


def test_a_trigger_is_read_back() -> None:
    settings = Settings.parse("some:200ms/2s", "1min", repeat=True)
    raw = trigger.encode(22, settings, State(fired=3, fired_us=4, relieved=2, result=-4))
    assert trigger.decode(raw) == (
        settings,
        State(armed=True, fired=3, fired_us=4, relieved=2, result=-4),
    )
    assert settings.psi == "some:200ms/2s"


@pytest.mark.parametrize(
    "psi",
    ["full", "full:1s", "any:1ms/1s", "full:2s/1s", "full:0ms/1s", "full:1ms/1ms", "full:50/1s"],
)
def test_what_is_no_pressure(psi: str) -> None:
    with pytest.raises(UsageError):
        Settings.parse(psi, "10s")


# The endpoint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("9778", ("127.0.0.1", 9778)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),
        ("[::1]:65535", ("::1", 65535)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert stats.parse_address(text) == expected


@pytest.mark.parametrize("text", ["", "host", ":80", "127.0.0.1:", "1.2.3.4:65536", "-1"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError):
        stats.parse_address(text)


@pytest.fixture
def endpoint() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command, listening on loopback, and its address."""
    with subprocess.Popen(
        [sys.executable, "-m", "bpfoom.cli.main", "stats", "--listen", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.fullmatch(r"serving (http://127\.0\.0\.1:\d+/metrics)\n", line)
            assert found, f"{line}{process.stderr.read() if process.stderr else ''}"
            yield process, found[1]
        finally:
            process.kill()


def fetched(address: str, accept: str) -> tuple[str, bytes]:
    request = urllib.request.Request(address, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.headers["Content-Type"], answer.read()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_endpoint_serves_until_it_is_told_to_end(
    endpoint: tuple[subprocess.Popen[str], str], number: signal.Signals
) -> None:
    process, address = endpoint
    kind, text = fetched(address, OPENMETRICS)
    assert kind.startswith("application/openmetrics-text")
    assert "bpfoom_up" in parsed(text)
    kind, text = fetched(address, "text/plain")
    assert kind.startswith("text/plain")
    assert list(text_string_to_metric_families(text.decode()))
    process.send_signal(number)
    assert process.wait(60) == 0


def test_a_port_that_is_taken(endpoint: tuple[subprocess.Popen[str], str]) -> None:
    port = re.search(r":(\d+)/", endpoint[1])
    assert port
    done = subprocess.run(
        [sys.executable, "-m", "bpfoom.cli.main", "stats", "--listen", port[1], "--json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "choose one" in done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "bpfoom.cli.main", "stats", "--listen", port[1]],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"bpfoom: cannot listen on 127.0.0.1, port {port[1]}: ")


@pytest.mark.parametrize("address", ["..", "a" * 100])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(BpfoomError, match="cannot listen on"):
        stats.serve(CollectorRegistry(), address, 0)


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    stats._emit(replace(some(), handlers=some().handlers[:1]))
    titles, shop, said, _, of_trigger = capsys.readouterr().out.splitlines()
    assert titles.split()[:3] == ["CGROUP", "POLICY", "CALLS"]
    assert re.split(r" {2,}", shop)[1:] == [
        *("largest-task", "-", "3", "1", "3", "1", "5.0s", "-", "9.0ms"),
    ]
    assert said == "triggers:" and "full:50ms/1s" in of_trigger


def test_a_textfile_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bpfoom.prom"
    with pytest.raises(SystemExit) as ended:
        main.main(["stats", "--textfile", str(path)])
    assert not ended.value.code, capsys.readouterr().err
    assert list(text_string_to_metric_families(path.read_text()))
    assert list(tmp_path.iterdir()) == [path]


def test_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    from tests.schemas import valid

    document = json.loads(json.dumps(stats.fields(some())))
    assert valid("stats", document)["handlers"][0]["durations"][0]["count"] == 3


def test_the_page_lists_every_metric() -> None:
    page = (resources.room("bpf").parent / "docs" / "metrics.md").read_text()
    suffixes = {"counter": "_total", "info": "_info"}
    families = metrics.Collector(some).collect()
    names = {family.name + suffixes.get(family.type, "") for family in families}
    assert set(re.findall(r"^\| `(bpfoom_\w+)` \|", page, re.M)) == names
