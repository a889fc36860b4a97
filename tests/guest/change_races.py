# SPDX-License-Identifier: Apache-2.0
"""Races between OOMs, or kill -9, and those who change what is attached: real policies by real
commands, loaded anew each time."""

from __future__ import annotations

import random
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from bpfoom.compiler.build import compile_policy
from bpfoom.handler import describe, links, pins, rollback, update
from bpfoom.handler.attach import attach
from bpfoom.handler.describe import Handler
from bpfoom.observe.cgroupfs import Cgroup
from tests.guest.arena import Arena, Helper, Pace, Tally, ooms_go_on, until
from tests.guest.byhand import cli
from tests.guest.commands import Running

# The second has a sampler, which is to come and go with it.
FIRST, SECOND = "largest-task", "fastest-growing"
_ROOM = 16 << 20
# Acts, or declines, that no trial here comes to.
NEVER = "1000000"


@contextmanager
def _shared_as_before() -> Iterator[None]:
    """Whatever handlers make for the whole machine goes again: the arena counts."""
    where = pins.require()
    shared = where.shared_path("x").parent
    before = set(pins.names_in(shared))
    try:
        yield
    finally:
        for name in set(pins.names_in(shared)) - before:
            (shared / name).unlink()


@_shared_as_before()
def exchange(it: Arena, pace: Pace) -> Tally:
    """Exchange a handler's code while OOMs come one after another: each is decided by a handler."""
    tally, where = Tally(), pins.require()
    code = [compile_policy(FIRST, {"min": least}) for least in ("0", "4K")]
    handler = attach(code[0], it.box.path, it.btf, where, name=it.box.name)
    with Helper("oom", 0, 0, it.box.path) as ooms:
        ooms_go_on(ooms)
        for number in pace:
            with tally.round():
                before = handler.counters["invocations"]
                handler = update.exchange(
                    code[(number + 1) % 2], handler, it.box.path, it.btf, where, note={}
                )
                tally.hits += handler.counters["invocations"] != before
        ooms_go_on(ooms)
        tally.add_ooms(ooms.stop())
    counters = _handler(it.box, it).counters
    killed = it.box.memory_events()["oom_kill"]
    tally.add({"kills by handlers": counters["kills"], "kills": killed})
    cli("detach", "--cgroup", it.box.name)
    assert counters["kills"] == killed > 0, "somebody was killed by nobody's handler"
    return tally


@dataclass(frozen=True)
class State:
    """What can be attached: a policy or nothing, and whether it is on trial."""

    policy: str | None
    on_trial: bool = False


NOTHING, ONE, TWO, TRIAL = State(None), State(FIRST), State(SECOND), State(SECOND, True)


@dataclass(frozen=True)
class Change:
    """A command line that leads from one state to another."""

    verb: str
    before: State
    after: State
    words: tuple[str, ...] = field(default=())

    def argv(self, cgroup: Cgroup) -> tuple[str, ...]:
        return (self.verb, "--cgroup", cgroup.name, *self.words)


CHANGES = (
    Change("attach", NOTHING, ONE, ("--policy", FIRST)),
    Change("attach", NOTHING, TWO, ("--policy", SECOND)),
    Change("attach", ONE, TWO, ("--policy", SECOND, "--replace")),
    Change("update", ONE, TWO, ("--policy", SECOND)),
    Change("update", TWO, ONE, ("--policy", FIRST)),
    Change("update", ONE, TRIAL, ("--policy", SECOND, "--rollback-after", NEVER)),
    Change("update", TRIAL, ONE, ("--rollback",)),
    Change("update", TRIAL, TWO, ("--settle",)),
    Change("update", TRIAL, ONE, ("--policy", FIRST)),
    Change("detach", TWO, NOTHING),
)


@_shared_as_before()
def killed(it: Arena, pace: Pace) -> Tally:
    """Kill commands at random moments: what is attached is what was, or what was to be."""
    seed = secrets.randbits(32)
    tally, chance = Tally(facts={"seed": seed}), random.Random(seed)
    box = it.make("killed", _ROOM)
    lengths = {change: _length(change, box, it) for change in CHANGES}
    with Helper("oom", 0, 0, box.path) as ooms:
        for number in pace:
            with tally.round():
                change = CHANGES[number % len(CHANGES)]
                _bring_about(change.before, box, it)
                seconds = chance.uniform(0, lengths[change])
                died, came_to = _killed_after(seconds, change, box, it)
                tally.hits += died
                tally.add(
                    {
                        f"{change.verb} before"
                        if came_to == change.before
                        else f"{change.verb} after": 1
                    }
                )
                ooms_go_on(ooms)
                _bring_about(change.after, box, it)
        tally.add_ooms(ooms.stop())
    _bring_about(NOTHING, box, it)
    return tally


def _killed_after(seconds: float, change: Change, box: Cgroup, it: Arena) -> tuple[bool, State]:
    """Whether the command died of it, and what is attached then."""
    with Running(*change.argv(box)) as command:
        time.sleep(seconds)
        status = command.kill()
    assert status in (0, -signal.SIGKILL), status
    until(lambda: _settled(box), "links without a pin to go")
    came_to = _state(box, it)
    assert came_to in (change.before, change.after), f"{change}: {came_to}"
    return status == -signal.SIGKILL, came_to


def _settled(box: Cgroup) -> bool:
    """Whether all links on the box are pinned ones."""
    link = pins.require().open_link(box.id)
    pinned = link is not None
    if link is not None:
        link.close()
    return len(list(links.of(box.id))) == int(pinned)


def _state(box: Cgroup, it: Arena) -> State:
    """What is attached, also by what a command says."""
    code, _, err = cli("show", "--cgroup", box.name)
    found = [h for h in describe.handlers(pins.require(), it.btf) if h.cgroup_id == box.id]
    if not found:
        assert code == 4, err
        return NOTHING
    assert code == 0, err
    trial = rollback.trial_of(found[0], pins.require(), it.btf)
    return State(found[0].policy, trial is not None)


def _bring_about(wanted: State, box: Cgroup, it: Arena) -> None:
    """By the next command, which works whatever was killed before; nothing else is left then."""
    present = _state(box, it)
    if wanted == NOTHING:
        if present != NOTHING:
            _must("detach", "--cgroup", box.name)
        assert not pins.require().directory(box.id).exists()
        return
    assert wanted.policy is not None
    if wanted == TRIAL and present != TRIAL:
        _bring_about(ONE, box, it)
        argv = ("update", "--cgroup", box.name, "--policy", SECOND, "--rollback-after", NEVER)
        with rollback.being_agent(pins.require()):
            _must(*argv)
    elif present != wanted:
        _must("attach", "--cgroup", box.name, "--policy", wanted.policy, "--replace")
    pins.require().sweep()
    assert _state(box, it) == wanted
    number = _handler(box, it).map_id
    expected = {"link"}
    if wanted.policy == SECOND:
        expected.add(f"sampler-{number}")
    if wanted.on_trial:
        expected.add(f"previous-{number}")
    assert {path.name for path in pins.require().directory(box.id).iterdir()} == expected


def _must(*argv: str) -> None:
    code, out, err = cli(*argv)
    assert code == 0, f"{argv}: {out}{err}"


def _handler(box: Cgroup, it: Arena) -> Handler:
    return describe.handler_of(box.id, box.name, pins.require(), it.btf)


def _length(change: Change, box: Cgroup, it: Arena) -> float:
    """How long it takes if it is left alone, and a little more."""
    _bring_about(change.before, box, it)
    began = time.monotonic()
    with Running(*change.argv(box)) as command:
        if change.after == TRIAL:
            command.wait_until(_is_watched(box), "a watcher")
        else:
            code, _, err = command.wait()
            assert code == 0, err
        return 1.2 * (time.monotonic() - began)


def _is_watched(box: Cgroup) -> Callable[[], bool]:
    return lambda: rollback.is_watched(box.id, pins.require())
