# SPDX-License-Identifier: Apache-2.0
"""Where races are run: a tree, handlers that are slow on purpose, C helpers, and a count of leaks.

::

    /sys/fs/cgroup
    └── bpfoom-race             memory.max 24M, controllers on for the children
        ├── box                 memory.max 2M, no swap, pids.max 64
        └── other               no limit of its own

A handler that takes a while is a window: slots 0 and 1 of ``seen`` count the beginnings and the
ends of calls, and what is done while they differ is done during an OOM. Kernel and Python slow down
alike under TCG and on a debug kernel, so a window's length is a number of turns, not of seconds.
"""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from bpfoom.btf.types import Btf
from bpfoom.errors import SyscallError
from bpfoom.handler import info, pins, syscalls
from bpfoom.handler.attach import link_to_cgroup
from bpfoom.handler.load import Loaded, load
from bpfoom.handler.syscalls import Fd
from bpfoom.observe import cgroupfs
from bpfoom.observe.cgroupfs import Cgroup
from tests import helpers
from tests.guest import census
from tests.guest.asm import (
    HANDLED,
    R0,
    R1,
    R2,
    R3,
    R6,
    R8,
    R10,
    SEEN,
    SLOTS,
    Asm,
    forget_seen,
    of_handler,
)
from tests.guest.byhand import remove_tree
from tests.guest.handlers import kill_memcg

ROOT = Path("/sys/fs/cgroup/bpfoom-race")
BOX_BYTES = 2 << 20

# Slots: calls begun, calls ended, and the first that handlers may use as they like.
BEGUN, ENDED, SPARE = 0, 1, 2

VERDICTS = ("handled", "passed", "kernel", "unproven", "invalid")

# For whatever is waited for: more than ten times of what was seen on a machine that had five times
# as much to do as it has CPUs.
BOUND_S = 120

# About a millisecond under TCG.
MS = 100_000


@dataclass
class Pace:
    """How long a race goes on: ``rounds``, or ``minutes`` if they are over before."""

    rounds: int
    minutes: float

    def __iter__(self) -> Iterator[int]:
        """The rounds' numbers."""
        end = time.monotonic() + 60 * self.minutes
        for number in range(self.rounds):
            if time.monotonic() > end:
                return
            yield number

    def chunks(self, size: int) -> Iterator[int]:
        """Numbers of rounds, for what does several at a time."""
        for done in Pace(-(-self.rounds // size), self.minutes):
            yield min(size, self.rounds - done * size)


@dataclass
class Tally:
    """What came of a race. ``hits``: how often what was to be raced really was under way.

    ``longest_s``: the longest that a round had to wait for the machine to get on.
    """

    rounds: int = 0
    hits: int = 0
    longest_s: float = 0.0
    facts: dict[str, int] = field(default_factory=dict)

    def add(self, facts: dict[str, int]) -> None:
        """Sum up numbers, by name."""
        for name, number in facts.items():
            self.facts[name] = self.facts.get(name, 0) + number

    def add_ooms(self, lines: list[str]) -> None:
        """What the helper oom has said: all its children must have been killed."""
        for line in lines:
            ms, killed, *children = line.split()
            assert int(killed) == len(children), f"survivors: {line}"
            self.add({"ooms": int(killed)})
            self.longest_s = max(self.longest_s, float(ms) / 1000)

    @contextmanager
    def round(self) -> Iterator[None]:
        """Count one round, and how long it took."""
        began = time.monotonic()
        yield
        self.rounds += 1
        self.longest_s = max(self.longest_s, time.monotonic() - began)


class Window:
    """The handlers' calls, as they tell of them in ``seen``."""

    def __init__(self, seen: Fd) -> None:
        self.seen = seen

    def slots(self) -> tuple[int, ...]:
        """All slots."""
        raw = syscalls.map_lookup(self.seen, bytes(4), SEEN.value_size)
        return struct.unpack(f"<{SLOTS}q", raw)

    def begun(self) -> tuple[int, bool]:
        """How many calls have begun, and whether the last one is still under way."""
        slots = self.slots()
        return slots[BEGUN], slots[BEGUN] != slots[ENDED]

    def call(self) -> int:
        """The number of the call that is under way; 0 if none is."""
        begun, under_way = self.begun()
        return begun if under_way else 0

    def wait(self, since: int | None = None) -> int:
        """Wait until a call is under way, or more than ``since`` (now) have begun; its number."""
        if since is None:
            since = self.begun()[0]

        def called() -> bool:
            begun, under_way = self.begun()
            return under_way or begun > since

        until(called, "a handler to be called", nap_s=0)
        return self.begun()[0]

    def finish(self, call: int) -> None:
        """Wait for a call's end."""
        until(lambda: self.slots()[ENDED] >= call, "a handler to be done")


class Helper:
    """A running C helper. Its lines are read with :meth:`line`, or all of them by :meth:`stop`."""

    def __init__(self, name: str, *args: object, fds: Sequence[int] = (), talks: bool = False):
        self.name = name
        # A file takes as many lines as there are; a pipe is for those who talk.
        self._out = None if talks else tempfile.TemporaryFile()  # noqa: SIM115
        # Children that outlive it would keep a pipe open.
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115
        self._counted = self._rounds = 0
        self.process = subprocess.Popen(
            [helpers.path(name), *(str(arg) for arg in args)],
            stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
            stdout=self._out or subprocess.PIPE,
            stderr=self._complaints,
            pass_fds=fds,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Whatever it does; its children are the arena's."""
        self.process.kill()
        self.process.wait(BOUND_S)
        for file in (self._out, self._complaints, self.process.stdin, self.process.stdout):
            if file:
                file.close()

    def rounds(self) -> int:
        """How many lines it has said so far."""
        assert self._out is not None
        fresh = os.pread(self._out.fileno(), 1 << 20, self._counted)
        self._counted += len(fresh)
        self._rounds += fresh.count(b"\n")
        return self._rounds

    def tell(self) -> None:
        """Give it a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def line(self) -> str:
        """Its next line."""
        assert self.process.stdout is not None
        text = self.process.stdout.readline().decode()
        assert text.endswith("\n"), f"{self.name} ended: {self.end()}"
        return text.strip()

    def stop(self) -> list[str]:
        """Have it end after its round, and well; its lines."""
        self.process.send_signal(signal.SIGTERM)
        return self.end()

    def end(self) -> list[str]:
        """Wait for its end, which must be a good one; its lines."""
        status = self.process.wait(BOUND_S)
        self._complaints.seek(0)
        assert status == 0, f"{self.name}: status {status}: {self._complaints.read().decode()}"
        if self._out is None:
            return []
        self._out.seek(0)
        return self._out.read().decode().splitlines()


class Arena:
    """The tree, its handlers and their window."""

    def __init__(self, btf: Btf, seen: Fd, stack: ExitStack) -> None:
        self.btf = btf
        self.window = Window(seen)
        self._stack = stack
        self.root = cgroup_at(ROOT)
        self.box = self.make("box")
        self.other = self.make("other", limit=None)

    def make(self, name: str, limit: int | None = BOX_BYTES) -> Cgroup:
        """A child of the tree's root, limited like the box."""
        path = ROOT / name
        path.mkdir()
        if limit is not None:
            limit_to(path, limit)
            (path / "pids.max").write_text("64")
        return cgroup_at(path)

    def load(self, code: Asm, name: str = "race") -> Loaded:
        """Load a handler for as long as the arena is there."""
        obj = code.handler(self.btf, name)
        return self._stack.enter_context(load(obj, self.btf, pins.require(), note={}))

    def link(self, handler: Loaded, cgroup: Cgroup) -> Fd:
        """Attach it. The link is the caller's to close."""
        with Fd(os.open(cgroup.path, os.O_RDONLY)) as target:
            return link_to_cgroup(handler, target, self.btf)

    def killer(self, turns: int) -> Loaded:
        """A handler that kills all of what is out of memory, then takes its time."""
        return self.load(ends(spin(kills(begins(), self.btf), turns), HANDLED))

    def answers(self, verdict: int, turns: int) -> Loaded:
        """A handler that takes its time and does nothing."""
        return self.load(ends(spin(begins(), turns), verdict))


@contextmanager
def arena() -> Iterator[Arena]:
    """Make the tree; in the end it must be gone, and with it every object that was made of BPF."""
    forget_seen()
    before = census.take()
    with ExitStack() as stack:
        btf = stack.enter_context(Btf.from_file())
        seen = stack.enter_context(_open_seen())
        stack.callback(remove_tree, ROOT)
        ROOT.mkdir()
        limit_to(ROOT, 12 * BOX_BYTES)
        (ROOT / "cgroup.subtree_control").write_text("+memory +pids")
        yield Arena(btf, seen, stack)
    until(lambda: not census.grown(before), f"no more than {before}", nap_s=0.1)


def until(condition: Callable[[], bool], what: str, *, nap_s: float = 0.001) -> None:
    """Wait: as :func:`wait_for` does, but to the millisecond. 0: without letting go of the CPU."""
    deadline = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {BOUND_S} s for {what}"
        if nap_s:
            time.sleep(nap_s)


def ooms_go_on(ooms: Helper) -> None:
    """Wait for the end of an OOM that begins now."""
    before = ooms.rounds()
    until(lambda: ooms.rounds() >= before + 2, "OOMs to go on")


def kill_from_outside(pid: int) -> None:
    """SIGKILL; who is dead already cannot be killed."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _open_seen() -> Fd:
    found = pins.require().open_shared(SEEN.name)
    assert found is not None
    return found


def limit_to(path: Path, limit: int) -> None:
    """Limit a cgroup, without swap."""
    (path / "memory.max").write_text(str(limit))
    (path / "memory.swap.max").write_text("0")


def cgroup_at(path: Path) -> Cgroup:
    """The cgroup of that directory."""
    return cgroupfs.resolve(str(path))


def counters(link: Fd) -> dict[str, int]:
    """The numbers of the link's fdinfo, of one moment between two calls."""
    while True:
        first, second = (
            {key: int(v) for key, v in info.fdinfo(link).items() if v.isdigit()} for _ in range(2)
        )
        if first == second:
            return first


def consistent(*links: Fd) -> dict[str, int]:
    """The calls' counters of links, summed up; those of each must add up."""
    tally = Tally()
    for link in links:
        tally.add(_consistent(counters(link)))
    return tally.facts


def _consistent(numbers: dict[str, int]) -> dict[str, int]:
    calls = {name: numbers[name] for name in ("invocations", *VERDICTS, "kills")}
    assert calls["invocations"] == sum(calls[name] for name in VERDICTS), calls
    return calls


def update_refused(link: Fd, handler: Loaded) -> int:
    """Try to update a link whose cgroup is gone; the errno."""
    try:
        syscalls.link_update(link, handler.ops_map)
    except SyscallError as error:
        return int(error.data["errno"])
    return 0


def begins() -> Asm:
    """The beginning of a handler whose calls are counted."""
    return of_handler().count(BEGUN)


def ends(code: Asm, verdict: int) -> Asm:
    """Its end."""
    return code.count(ENDED).exit(verdict)


def spin(code: Asm, turns: int) -> Asm:
    """Take a while; uses the stack's first eight bytes."""
    code.copy(R1, R10).add(R1, -8).const(R2, 0).const(R3, turns).kfunc("bpf_iter_num_new")
    code.place("spin").copy(R1, R10).add(R1, -8).kfunc("bpf_iter_num_next")
    code.jump_if(R0, "!=", 0, "spin")
    return code.copy(R1, R10).add(R1, -8).kfunc("bpf_iter_num_destroy")


def kills(code: Asm, btf: Btf) -> Asm:
    """Kill all of what is out of memory; uses r8 and the last slot."""
    code.member(R8, R6, btf, "oom_control", "memcg").jump_if(R8, "==", 0, "whole system")
    return kill_memcg(code, SLOTS - 1).place("whole system")
