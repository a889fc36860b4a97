# SPDX-License-Identifier: Apache-2.0
"""Samples of directories that look like cgroups, and lines of a trace."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from bpfoom.observe import latency, timeline, tracing
from bpfoom.observe.result import Usage
from bpfoom.observe.timeline import Timeline
from bpfoom.observe.tracing import Event
from bpfoom.observe.watch import _marked

PRESSURE = """some avg10=0.00 avg60=0.00 avg300=0.00 total=1200
full avg10=0.00 avg60=0.00 avg300=0.00 total=700
"""


def cgroup(directory: Path, **files: str) -> Path:
    directory.mkdir()
    for name, text in files.items():
        (directory / name.replace("_", ".", 1).replace("_", ".")).write_text(text)
    return directory


def test_what_a_sample_holds(tmp_path: Path) -> None:
    full = cgroup(
        tmp_path / "full",
        memory_current="4096\n",
        memory_max="8192\n",
        memory_swap_current="512\n",
        memory_pressure=PRESSURE,
    )
    bare = cgroup(tmp_path / "bare", memory_current="1\n", memory_max="max\n")
    root = cgroup(tmp_path / "root")
    with Timeline({"full": full, "bare": bare, "/": root}) as line:
        taken = line.sample()
        assert taken.cgroups == {
            "full": Usage(4096, 512, 1200, 700, 8192),
            "bare": Usage(1, None, 0, 0, None),
        }
        (full / "memory.current").write_text("4000\n")
        assert line.sample().cgroups["full"].current == 4000
        assert len(line.samples()) == 2


def test_cgroups_come_and_go_and_there_are_only_so_many(tmp_path: Path) -> None:
    many = {str(n): cgroup(tmp_path / str(n), memory_current=f"{n}\n") for n in range(80)}
    with Timeline(many) as line:
        assert list(line.sample().cgroups) == [str(n) for n in range(timeline.MAX_CGROUPS)]
        line.watch({"70": many["70"], "new": many["1"]})
        assert {path: u.current for path, u in line.sample().cgroups.items()} == {
            "70": 70,
            "new": 1,
        }


def test_another_cgroup_of_the_name_of_one_that_is_gone_is_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restarted service. Reading a file of a removed cgroup fails with ENODEV."""
    place = cgroup(tmp_path / "a", memory_current="1\n")
    with Timeline({"a": place}) as line:

        def removed(*_: object) -> bytes:
            raise OSError(errno.ENODEV, "")

        with monkeypatch.context() as patched:
            patched.setattr(timeline.os, "pread", removed)
            assert line.sample().cgroups == {}
        (place / "memory.current").unlink()
        place.rmdir()
        cgroup(place, memory_current="2\n")
        line.watch({"a": place})
        assert line.sample().cgroups["a"].current == 2


def test_only_what_is_around_an_event_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(timeline.time, "time", lambda: now)
    with Timeline({"a": cgroup(tmp_path / "a", memory_current="1\n")}, around=3) as line:
        for second in range(40):
            now = float(second)
            line.sample()
            if second in (10, 12, 30):
                line.keep()
    times = [sample.time for sample in line.samples()]
    assert times == [float(n) for n in (*range(7, 16), *range(27, 34))]


@pytest.mark.parametrize(
    ("line", "event"),
    [
        (
            "   tail-128     [001] d..1.    12.345678: mark_victim: pid=128 comm=a b total-vm=5kB",
            Event(12_345_678_000, "mark_victim", "pid=128 comm=a b total-vm=5kB"),
        ),
        (
            "   kworker/1:2-7   [000] .....  9000.000001: bpfoom_5: (out_of_memory+0x0/0x9)",
            Event(9_000_000_001_000, "bpfoom_5", "(out_of_memory+0x0/0x9)"),
        ),
        (
            "  1.000000: x: y-9 (   -7) [000] d..1.    12.000000: mark_victim: pid=9 comm=z",
            Event(12_000_000_000, "mark_victim", "pid=9 comm=z"),
        ),
        ("CPU:1 [LOST 5 EVENTS]", None),
        ("", None),
    ],
)
def test_lines_of_a_trace(line: str, event: Event | None) -> None:
    assert tracing.parse(line) == event


@pytest.mark.parametrize("comm", ["\udcff", "a\nb total", "x total-vm=1"])
def test_whoever_is_marked_is_seen_whatever_they_are_called(comm: str) -> None:
    """This process stands in for the victim, and takes that name meanwhile."""
    name = Path("/proc/self/comm")
    before = name.read_bytes()
    name.write_bytes(os.fsencode(comm))
    try:
        line = f"{comm}-1 [000] d..1. 12.000000: mark_victim: pid={os.getpid()} comm={comm}"
        text = os.fsencode(line + " total-vm=5kB\n").decode("utf-8", "replace")
        (event,) = (found for part in text.split("\n") if (found := tracing.parse(part)))
        marked = _marked(event, lambda cgroup: cgroup)
    finally:
        name.write_bytes(before)
    assert marked is not None
    assert (marked.pid, marked.thread) == (os.getpid(), os.getpid())
    assert marked.cgroup is not None and marked.cgroup.startswith("/")


def test_where_there_is_no_tracing_nothing_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "TRACEFS", tmp_path / "not mounted")
    with tracing.Instance(["oom/mark_victim"]) as trace:
        assert not trace.usable and trace.fileno() < 0 and trace.read() == []


def test_what_killed_processes_left_of_probes_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (tracing, latency):
        monkeypatch.setattr(module, "TRACEFS", tmp_path)
    (tmp_path / "instances").mkdir()
    dead = subprocess.Popen(["true"])
    dead.wait()
    names = (f"bpfoom/bpfoom_{dead.pid}", f"bpfoom/bpfoom_{os.getppid()}", "other/bpfoom_1")
    present = "".join(f"p:{name} out_of_memory\n" for name in names)
    (tmp_path / "kprobe_events").write_text(present)
    own = f"bpfoom/bpfoom_{os.getpid()}"
    with latency.KillTrace():
        pass
    written = (tmp_path / "kprobe_events").read_text().removeprefix(present).splitlines()
    assert written == [f"-:{names[0]}", f"p:{own} out_of_memory", f"-:{own}"]


def test_what_killed_processes_left_of_tracing_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "TRACEFS", tmp_path)
    dead = subprocess.Popen(["true"])
    dead.wait()
    for name in (f"bpfoom_{dead.pid}_1", f"bpfoom_{os.getpid()}_999", "somebody", "bpfoom_x_1"):
        (tmp_path / "instances" / name).mkdir(parents=True)
    with tracing.Instance([]):
        pass
    left = {path.name for path in (tmp_path / "instances").iterdir()}
    assert {f"bpfoom_{os.getpid()}_999", "somebody", "bpfoom_x_1"} <= left
    assert f"bpfoom_{dead.pid}_1" not in left
