# SPDX-License-Identifier: Apache-2.0
"""Who reads decisions misses none, and what comes of OOMs is told: by real ones, in real cgroups.

::

    /sys/fs/cgroup
    └── bpfoom-test
        └── box         memory.max 32M, no swap, largest-task or largest-cgroup
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from bpfoom.handler import pins, syscalls
from bpfoom.observe import result, tracing
from bpfoom.observe.exits import Account, Exit, Exits
from bpfoom.observe.latency import KillTrace
from bpfoom.observe.records import STATE_MAP, Tail
from bpfoom.observe.result import Run
from bpfoom.scenario.library import find_scenarios
from bpfoom.scenario.run import Machine
from bpfoom.scenario.workers import Hog, Nursery
from tests.guest.byhand import DEADLINE_S, Trees, cli, cli_json, oom_once
from tests.schemas import valid

# Compiling takes minutes on a debug kernel.
pytestmark = pytest.mark.flavours("plain")

MIB = 1 << 20


class Follower:
    """``bpfoom events --follow --json``, its lines as they come."""

    def __init__(self, *args: str) -> None:
        argv = [sys.executable, "-m", "bpfoom.cli.main", "events", "--follow", "--json", *args]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.lines: list[dict[str, Any]] = []
        self._unread = b""

    def until(self, sequence: int) -> list[dict[str, Any]]:
        """All lines so far, once the decision of that number is among them."""
        deadline = time.monotonic() + DEADLINE_S
        while not any(line.get("sequence") == sequence for line in self.lines):
            left = max(0.0, deadline - time.monotonic())
            assert select.select([self.process.stdout], [], [], left)[0], self.lines
            assert self.process.stdout is not None
            some = os.read(self.process.stdout.fileno(), 1 << 16)
            assert some, self.process.communicate()
            *lines, self._unread = (self._unread + some).split(b"\n")
            self.lines += [json.loads(line) for line in lines]
        return self.lines

    def end(self, number: signal.Signals) -> str:
        """Interrupt it; what it said on stderr."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=DEADLINE_S)
        assert self.process.returncode == 0, err
        return err.decode()


@contextmanager
def following(*args: str) -> Iterator[Follower]:
    follower = Follower(*args)
    try:
        yield follower
    finally:
        follower.process.kill()
        follower.process.communicate()


def listed(*args: str) -> list[dict[str, Any]]:
    """What ``bpfoom events`` prints now, as JSON."""
    code, out, err = cli("events", "--json", *args)
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


def last_sequence() -> int:
    shared = pins.require().open_shared(STATE_MAP)
    assert shared is not None
    with shared:
        return int.from_bytes(syscalls.map_lookup(shared, bytes(4), 8), "little")


def attach(trees: Trees, policy: str = "largest-task") -> None:
    cli_json("attach", "--cgroup", trees.box.name, "--policy", policy)


def test_two_followers_each_see_every_record(trees: Trees) -> None:
    attach(trees)
    oom_once(trees.box)
    began = last_sequence()
    with following() as one, following() as other:
        for follower in (one, other):
            follower.until(began)
        victims = [oom_once(trees.box).pid for _ in range(12)]
        ended = last_sequence()
        for follower in (one, other):
            lines = [line for line in follower.until(ended) if line.get("sequence", 0) > began]
            assert [line["sequence"] for line in lines] == list(range(began + 1, ended + 1))
            assert [line["victim_pid"] for line in lines if line["action"] == "kill"] == victims
            # Others may have filled the history before; of ours nothing is missing.
            assert not any("lost" in line for line in follower.lines[1:])
        for follower in (one, other):
            follower.end(signal.SIGINT)


def test_both_are_woken_by_what_comes(trees: Trees) -> None:
    attach(trees)
    oom_once(trees.box)
    never, other_end = os.pipe()
    took: list[float] = []

    def wait() -> None:
        with Tail(pins.require()) as tail:
            tail.wait(0, never)  # what the ring still holds
            began = time.monotonic()
            tail.wait(DEADLINE_S, never)
            took.append(time.monotonic() - began)

    waiting = [threading.Thread(target=wait) for _ in range(2)]
    for thread in waiting:
        thread.start()
    while any(thread.is_alive() for thread in waiting):
        oom_once(trees.box)
    assert len(took) == 2 and max(took) < DEADLINE_S
    for fd in (never, other_end):
        os.close(fd)


def test_nobody_listened_and_since(trees: Trees) -> None:
    attach(trees)
    first = oom_once(trees.box).pid
    between = datetime.now().isoformat()
    second = oom_once(trees.box).pid
    pids = [line["victim_pid"] for line in listed("--since", "1h") if line.get("victim_pid")]
    assert pids[-2:] == [first, second]
    since = listed("--since", between)
    assert [line["victim_pid"] for line in since if line["action"] == "kill"] == [second]
    assert listed("--since", "2099-01-01") == []


def test_lost_records_are_counted_and_said(trees: Trees) -> None:
    """As if thousands had come at once: the machine's count jumps, and the next is far ahead."""
    attach(trees)
    oom_once(trees.box)
    with following() as follower:
        before = last_sequence()
        follower.until(before)
        shared = pins.require().open_shared(STATE_MAP)
        assert shared is not None
        with shared:
            syscalls.map_update(shared, bytes(4), (before + 5000).to_bytes(8, "little"))
        oom_once(trees.box)
        lines = follower.until(before + 5001)
        lost = [valid("lost", line)["lost"] for line in lines if "lost" in line]
        assert sum(lost) >= 5000 - 1
        follower.end(signal.SIGINT)
    # Who asks later is told, too, and people as well; it is no part of what is in the range.
    (head, *found) = listed()
    assert head["lost"] >= 5000 - 1 and found[-1]["sequence"] == last_sequence()
    code, out, err = cli("events")
    assert code == 0 and "overwritten before they could be read" in err and "lost" not in out


def test_a_history_that_is_made_anew_is_followed(trees: Trees) -> None:
    where = pins.require()
    attach(trees)
    with Tail(where, from_now=True) as tail:
        oom_once(trees.box)
        assert [d.fields["victim_pid"] for d in tail.read() if d.action == "kill"]
        cli("detach", "--all")
        shutil.rmtree(where.base / "shared")
        attach(trees)
        victim = oom_once(trees.box)
        (kill, *_) = tail.read()
        assert (kill.sequence, kill.fields["victim_pid"], tail.lost) == (1, victim.pid, 0)


def test_a_result_of_what_was_followed(trees: Trees, tmp_path: Path) -> None:
    attach(trees)
    path = tmp_path / "oom.json"
    with following("--result", str(path)) as follower:
        oom_once(trees.box)
        follower.until(last_sequence())
        began = last_sequence()
        eaters = [oom_once(trees.box).pid for _ in range(2)]
        follower.until(last_sequence())
        said = follower.end(signal.SIGTERM)
    document = result.read_file(path)
    valid("result", json.loads(path.read_text()))
    (run,) = document.runs
    assert str(path) in said and f"{len(run.deaths)} deaths" in said
    assert (run.name, run.handler, run.lost.events) == (None, "largest-task", 0)
    decided = {d.sequence: d for d in run.decisions if d.sequence > began and d.action == "kill"}
    found = [death for death in run.deaths if death.decision in decided]
    assert [death.pid for death in found] == eaters
    for death in found:
        decision = decided[death.decision or 0]
        assert decision.fields["victim_pid"] == death.pid
        assert (death.comm, death.cgroup, death.signal) == ("tail", trees.box.name, 9)
        assert death.peak_rss is not None and 24 * MIB < death.peak_rss < 64 * MIB
        assert death.cpu_ns and death.time and death.time > decision.time
        assert death.after_decision_ns == pytest.approx((death.time - decision.time) * 1e9, abs=1e6)
    assert run.memory_events[trees.box.name]["oom_kill"] >= 2
    assert run.limits[trees.box.name].max == 32 * MIB
    most = max(sample.cgroups[trees.box.name].current for sample in run.timeline)
    assert most <= 32 * MIB
    assert any(f"pid={eaters[0]}" in line for line in run.dmesg) or len(run.dmesg) > 0
    assert f"{trees.box.name}  memory.max={32 * MIB}  handler=largest-task" in document.tree


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine() as running:
        yield running


def played(machine: Machine, name: str, *, stock: bool = False) -> Run:
    (scenario,) = find_scenarios([name])
    run = machine.play(replace(scenario, attachments=()) if stock else scenario).run
    assert run.lost == result.Lost(0, 0)
    return run


def test_a_cgroup_that_was_killed(machine: Machine) -> None:
    """Nobody but the kernel's marks and exits says who its processes were."""
    run = played(machine, "largest-cgroup/demo")
    assert run.decision is not None and run.decision.action == "kill-cgroup"
    workers = {f"worker-{n}" for n in range(1, 5)}
    assert {death.comm for death in run.deaths} == workers
    assert {death.pid for death in run.deaths} == {victim.pid for victim in run.victims}
    for death in run.deaths:
        assert (death.cgroup, death.signal) == ("shop/batch", 9)
        assert death.decision == run.decision.sequence
        assert death.peak_rss is not None and death.peak_rss >= 28 * MIB
        assert death.after_decision_ns is not None and death.after_decision_ns > 0
    (recovery, *_) = run.recovery
    assert (recovery.decision, recovery.cgroup) == (run.decision.sequence, "shop")
    assert recovery.ns is not None and recovery.ns > 0
    assert run.limits["shop"].max == 256 * MIB and run.limits["shop/api"].max is None
    first, last = run.timeline[0], run.timeline[-1]
    assert first.cgroups["shop/batch"].current > 112 * MIB
    assert last.cgroups["shop/batch"].current < 16 * MIB
    assert last.cgroups["shop/api"].current > 96 * MIB
    assert last.cgroups["shop"].some_us >= first.cgroups["shop"].some_us


def test_the_kernels_own_choice(machine: Machine) -> None:
    run = played(machine, "largest-cgroup/demo", stock=True)
    assert "api-server" in {death.comm for death in run.deaths}
    assert {death.pid for death in run.deaths} == {victim.pid for victim in run.victims}
    for death in run.deaths:
        assert death.signal == 9 and death.time is not None
        assert (death.decision, death.after_decision_ns) == (None, None)
    assert run.recovery == () and run.decisions == ()


def test_threads_are_one_process(machine: Machine) -> None:
    """Its leader has exited before: the others hold the memory, and are the ones that are told."""
    run = played(machine, "across/headless")
    for death in run.deaths:
        assert death.signal == 9 and death.peak_rss and death.cpu_ns


OBSERVER = """
import time
from bpfoom.observe.latency import KillTrace
from bpfoom.observe.tracing import Instance
with {observer}:
    print("ready", flush=True)
    time.sleep(1000)
"""


def killed(observer: str) -> int:
    """The pid of a process that was killed while it observed."""
    argv = [sys.executable, "-c", OBSERVER.format(observer=observer)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        child.kill()
    return child.pid


def test_the_probe_of_a_killed_observer_is_swept_by_the_next() -> None:
    left = f"bpfoom/bpfoom_{killed('KillTrace()')} "
    probes = tracing.TRACEFS / "kprobe_events"
    assert left in probes.read_text()
    with KillTrace():
        assert left not in probes.read_text()
    assert "bpfoom/bpfoom_" not in probes.read_text()


def test_tracing_of_a_killed_observer_is_swept_by_the_next() -> None:
    pid = killed('Instance(["oom/mark_victim"])')
    instances = tracing.TRACEFS / "instances"
    left = f"bpfoom_{pid}_1"
    before = set(os.listdir(instances))
    assert left in before
    with tracing.Instance(["oom/mark_victim"]) as trace:
        assert trace.usable and left not in os.listdir(instances)
    assert set(os.listdir(instances)) == before - {left}


def test_messages_that_found_no_room_are_counted() -> None:
    with Exits(room=4096) as exits:
        assert exits.missing == []
        exits.forget()
        assert exits.lost == 0
        for _ in range(50):
            subprocess.run(["true"], check=True)
        assert exits.lost > 0
        exits.forget()
        assert exits.lost == 0


def test_exits_and_accounts_as_they_happened() -> None:
    with Exits() as exits:
        exits.forget()
        with Nursery() as nursery:
            victim = Hog(nursery, "victim", "/")
            victim.order("take", str(32 * MIB))
            victim.expect(time.monotonic() + DEADLINE_S)
            victim.expect(time.monotonic() + DEADLINE_S)
            victim.end()
        told: list[Exit | Account] = []
        deadline = time.monotonic() + DEADLINE_S
        while sum(one.pid == victim.pid for one in told) < 2 and time.monotonic() < deadline:
            ready, _, _ = select.select(exits.filenos(), [], [], 1.0)
            told += [one for fileno in ready for one in exits.read(fileno)]
    (gone,) = [one for one in told if isinstance(one, Exit) and one.pid == victim.pid]
    (account,) = [one for one in told if isinstance(one, Account) and one.pid == victim.pid]
    assert (gone.tgid, gone.code) == (victim.pid, 9)
    assert 0 <= time.monotonic_ns() - gone.time_ns < DEADLINE_S * 1e9
    assert account.comm == "victim" and 32 * MIB < account.peak_rss < 64 * MIB
