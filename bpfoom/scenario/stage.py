# SPDX-License-Identifier: Apache-2.0
"""A scenario's tree on a real kernel: make, fill, freeze, trigger, settle, clean up.

Filling meets no limit, so no OOM can happen before the trigger; only then the tree is frozen and
gets its limits, handlers are attached, and thawing lets all triggers go at once. So every run
begins in the state that was written down. Waits are for events and exits, never for a time.
"""

from __future__ import annotations

import fcntl
import os
import select
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

from bpfoom.errors import BpfoomError, InfrastructureError, UsageError
from bpfoom.observe import cgroupfs
from bpfoom.scenario import model, zram
from bpfoom.scenario.draw import size
from bpfoom.scenario.model import MIB, Cgroup, Growth, Lowering, Scenario, Take, Workload
from bpfoom.scenario.workers import Hog, Nursery

TOP = "bpfoom-scenario"

# What fills in 2 s on an idle TCG guest gets a hundred times that.
_DEADLINE_S = 200.0
_POLL_S = 0.02
_CHUNK = 64 * MIB  # all of a machine's memory at once would be refused
_SIGKILL_PENDING = 1 << 8
# A memcg's statistics are added up in batches, and where a flush on one CPU overtakes charges on
# another only by the next one: the kernel's own comes every 2 s. That gets ten times.
_SLACK = 2 * MIB
_FLUSHED_S = 20.0


class Stage:
    """``with Stage(scenario, nursery) as stage:`` the tree is filled, limited and frozen.

    ``started`` is how many processes it then holds. Leaving kills the workloads and removes
    everything. Raises PermissionError without root.
    """

    def __init__(self, scenario: Scenario, nursery: Nursery) -> None:
        self.scenario = scenario
        self._nursery = nursery
        self.hogs: dict[str, Hog] = {}
        self.started = 0
        self._mount = cgroupfs.mount().path
        self._top = self._mount / TOP
        self._stack = ExitStack()
        self._places: dict[str, Path] = {}
        self._deadline = time.monotonic() + _DEADLINE_S

    def directory(self, path: str) -> Path:
        """Where the cgroup with that path is; "/" is the hierarchy's root."""
        return self._mount if path == model.ROOT else self._top / path

    def name(self, path: str) -> str:
        """The cgroup as people call it, from the root on."""
        return path if path == model.ROOT else f"/{TOP}/{path}"

    def paths(self) -> dict[int, str]:
        """The paths of the cgroups by id, the hierarchy's root among them."""
        paths = [model.ROOT, *(cgroup.path for cgroup in self.scenario.cgroups)]
        return {self.directory(path).stat().st_ino: path for path in paths}

    def directories(self) -> dict[str, Path]:
        """Where its cgroups are, by their paths."""
        return {cgroup.path: self.directory(cgroup.path) for cgroup in self.scenario.cgroups}

    def __enter__(self) -> Self:
        with self._stack:
            self._stack.enter_context(_alone(self._mount))
            self._make()
            self._open_places()
            self._start()
            for workload in self.scenario.workloads:
                self._fill(workload)
            self._freeze(True)
            self.started = len(self.processes())
            for cgroup in self.scenario.cgroups:
                self._verify(cgroup)
            for cgroup in self.scenario.cgroups:
                self._limit(cgroup)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def trigger(self, ready: Mapping[str, Callable[[], bool]]) -> None:
        """Let all triggers go at once and wait until that and all it caused is over.

        ``ready`` says of "promise" and "sample" whether triggers that wait for them may go. At
        last a roll call: who was killed may still be on the way out, and never answers.
        """
        given = [self._give(trigger) for trigger in self.scenario.triggers if _at_once(trigger)]
        self._freeze(False)
        for trigger in self.scenario.triggers:
            if _at_once(trigger):
                continue
            assert isinstance(trigger, Growth)
            if trigger.after == "others":
                self._settle(given)
                given.clear()
            else:
                self._await(ready[trigger.after], f"a {trigger.after}")
            given.append(self._give(trigger))
        self._settle(given)
        for hog in self.hogs.values():
            hog.order("name", hog.comm)
        self._settle([(hog, 1) for hog in self.hogs.values()])
        if "children" in self.scenario.takes:
            self._await(self._nobody_is_dying, "the victims' end")

    def events(self) -> dict[str, dict[str, int]]:
        """memory.events of every cgroup by its path."""
        return {cgroup.path: self._events(cgroup.path) for cgroup in self.scenario.cgroups}

    def total(self) -> dict[str, int]:
        """memory.events of the whole tree."""
        return self._events("")

    def processes(self) -> list[int]:
        """Every process of the tree that has not exited yet."""
        found: list[str] = []
        for cgroup in self.scenario.cgroups:
            found += (self.directory(cgroup.path) / "cgroup.procs").read_text().split()
        return [int(pid) for pid in found]

    def _events(self, path: str) -> dict[str, int]:
        return cgroupfs.parse_counters((self.directory(path) / "memory.events").read_text())

    def _make(self) -> None:
        if self._top.exists():
            _remove(self._top, self._deadline)
        self._top.mkdir()
        self._stack.callback(self._clear)
        parents = {cgroup.parent for cgroup in self.scenario.cgroups}
        (self._top / "cgroup.subtree_control").write_text("+memory")
        for cgroup in self.scenario.cgroups:
            directory = self.directory(cgroup.path)
            directory.mkdir()
            if cgroup.path in parents:
                (directory / "cgroup.subtree_control").write_text("+memory")

    def _open_places(self) -> None:
        """Swap, a disk and a tmpfs, as far as the scenario needs them."""
        kinds = self.scenario.takes
        if "swap" in kinds or any("memory.swap.max" in c.files for c in self.scenario.cgroups):
            self._stack.enter_context(zram.swap(256 * MIB))
        if "file" in kinds:
            self._places["file"] = self._stack.enter_context(zram.disk(256 * MIB))
        if "tmpfs" in kinds:
            directory = tempfile.TemporaryDirectory(prefix="bpfoom-", dir="/dev/shm")
            self._places["tmpfs"] = Path(self._stack.enter_context(directory))

    def _start(self) -> None:
        for workload in self.scenario.workloads:
            hog = Hog(self._nursery, workload.name, workload.home)
            self._stack.callback(hog.end)
            self.hogs[workload.name] = hog
        for hog in self.hogs.values():
            hog.expect(self._deadline)

    def _fill(self, workload: Workload) -> None:
        hog = self.hogs[workload.name]
        if workload.exit_ms:  # by a process that is no part of the scenario
            self._obey(hog, "linger", str(workload.exit_ms))
        hog.set_adj(workload.oom_score_adj)
        hog.enter(self.directory(workload.cgroup))
        for _ in range(self._order(hog, workload.fill)):
            hog.expect(self._deadline)
        if workload.maps:
            self._obey(hog, "map", str(self._places["tmpfs"] / workload.maps))
        if workload.moves_to:
            hog.enter(self.directory(workload.moves_to))
        if workload.headless:
            self._obey(hog, "behead")

    def _obey(self, hog: Hog, what: str, value: str = "") -> None:
        hog.order(what, *value.split())
        hog.expect(self._deadline)

    def _order(self, hog: Hog, take: Take) -> int:
        """Give the orders that make up a take; how many answers will come."""
        number = 0
        for kind, amount in take.kinds():
            for what, *values in self._orders(hog, kind, amount):
                hog.order(what, *values)
                number += 1
        return number

    def _orders(self, hog: Hog, kind: str, amount: int) -> list[tuple[str, ...]]:
        if kind in ("file", "tmpfs"):
            return [("write", str(self._places[kind] / hog.comm), str(amount))]
        if kind == "anon" and amount == model.ALL:
            memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            return [("take", str(_CHUNK))] * (memory // _CHUNK + 1)
        order = {"anon": "take", "swap": "swap", "shared": "share", "children": "fork"}[kind]
        return [(order, str(amount))]

    def _give(self, trigger: model.Trigger) -> tuple[Hog, int]:
        """Order what a trigger says, without waiting; who was told, and how many answers come."""
        if isinstance(trigger, Lowering):
            writer = Hog(self._nursery, "bpfoom-writer", model.ROOT)
            self._stack.callback(writer.end)
            writer.expect(self._deadline)
            file = self.directory(trigger.cgroup) / "memory.max"
            writer.order("put", str(file), str(trigger.memory_max))
            return writer, 1
        hog = self.hogs[trigger.workload]
        if trigger.gives_back:
            hog.order("give_back")
        return hog, self._order(hog, trigger.take) + trigger.gives_back

    def _settle(self, given: Sequence[tuple[Hog, int]]) -> None:
        """Wait until orders are carried out or refused, or have cost their process its life."""
        for hog, number in given:
            for _ in range(number):
                if not hog.ended():
                    hog.settle(self._deadline)

    def _freeze(self, frozen: bool) -> None:
        (self._top / "cgroup.freeze").write_text(str(int(frozen)))
        await_event(self._top, f"frozen {int(frozen)}", self._deadline)

    def _verify(self, cgroup: Cgroup) -> None:
        """Refuse a tree that does not hold what it should, or already too much."""
        directory = self.directory(cgroup.path)
        wanted = self._wanted(cgroup)
        deadline = time.monotonic() + _FLUSHED_S
        while lacking := _lacking(directory, wanted):
            if time.monotonic() > deadline:
                kind, seen = lacking
                raise InfrastructureError(
                    f"{cgroup.path} holds {seen} bytes of {kind}, not {wanted[kind]}",
                    hint="is there memory enough for the tree?",
                    cgroup=cgroup.path,
                )
            time.sleep(_POLL_S)
        limit = cgroup.files.get("memory.max", "max")
        used = int((directory / "memory.current").read_text())
        if limit != "max" and used > int(limit):
            raise UsageError(
                f"{self.scenario.name}: {cgroup.path} is filled with {used} bytes, above its "
                f"memory.max of {size(int(limit))}",
                hint="a process takes some more than what is written down",
                cgroup=cgroup.path,
            )

    def _wanted(self, cgroup: Cgroup) -> dict[str, int]:
        """The bytes of each kind that a filled cgroup holds at least."""
        inside = [workload.fill for workload in self.scenario.inside(cgroup.path)]
        wanted = {
            "anon": sum(take.anon for take in inside),
            "file": sum(take.file + take.tmpfs + take.shared for take in inside),
            # A page that is in use meanwhile stays.
            "swap": sum(take.swap for take in inside) * 7 // 8,
        }
        return {kind: least for kind, least in wanted.items() if least}

    def _limit(self, cgroup: Cgroup) -> None:
        directory = self.directory(cgroup.path)
        files = {"memory.swap.max": "0", **cgroup.files} if not cgroup.parent else cgroup.files
        for name, value in files.items():
            if (directory / name).exists():  # a kernel without swap has no memory.swap.max
                (directory / name).write_text(value)

    def _await(self, condition: Callable[[], bool], what: str) -> None:
        while not condition():
            if time.monotonic() > self._deadline:
                raise InfrastructureError(
                    f"waited {_DEADLINE_S:.0f} s for {what}", hint="see dmesg", events=self.events()
                )
            time.sleep(_POLL_S)

    def _nobody_is_dying(self) -> bool:
        return not any(_is_killed(pid) for pid in self.processes())

    def _clear(self) -> None:
        _remove(self._top, time.monotonic() + _DEADLINE_S)


def await_event(cgroup: Path, line: str, deadline: float) -> None:
    """Wait until cgroup.events has that line; the kernel says when it changes."""
    with open(cgroup / "cgroup.events") as events:
        watch = select.poll()
        watch.register(events, select.POLLPRI | select.POLLERR)
        while line not in events.read():
            left = deadline - time.monotonic()
            if left < 0:
                raise InfrastructureError(f"{cgroup} did not become {line}", cgroup=str(cgroup))
            watch.poll(left * 1000)
            events.seek(0)


@contextmanager
def _alone(mount: Path) -> Iterator[None]:
    """Keep other runs of scenarios off this hierarchy: they would take our tree for a leftover."""
    handle = os.open(mount, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise BpfoomError(
            "another run of scenarios is under way", hint="wait for its end", path=str(mount)
        ) from error
    finally:
        os.close(handle)


def _lacking(directory: Path, wanted: Mapping[str, int]) -> tuple[str, int] | None:
    """The first kind of memory that a cgroup has too little of, with the bytes that it has."""
    stat = cgroupfs.parse_counters((directory / "memory.stat").read_text())
    for kind, least in wanted.items():
        swap = directory / "memory.swap.current"
        seen = int(swap.read_text()) if kind == "swap" else stat[kind]
        if seen < least - _SLACK:
            return kind, seen
    return None


def _at_once(trigger: model.Trigger) -> bool:
    return isinstance(trigger, Lowering) or not trigger.after


def _is_killed(pid: int) -> bool:
    """Whether a process has been sent a SIGKILL that it still dies of."""
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in Path("/proc", str(pid), "status").read_text().splitlines():
            if line.startswith("ShdPnd:"):
                return bool(int(line.split()[1], 16) & _SIGKILL_PENDING)
    return False


def _remove(top: Path, deadline: float) -> None:
    """Kill all that is in a tree and remove it."""
    try:
        (top / "cgroup.kill").write_text("1")
        await_event(top, "populated 0", deadline)
        for path, _, _ in os.walk(top, topdown=False):
            os.rmdir(path)
    except OSError as error:
        raise BpfoomError(
            f"{top} cannot be removed: {error.strerror}", path=str(top), errno=error.errno
        ) from error
