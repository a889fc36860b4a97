# SPDX-License-Identifier: Apache-2.0
"""Watch cgroups run out of memory: one thread collects what the kernel tells, and samples.

It listens to marks (tracing) and exits (netlink) and takes the timeline. Decisions are the
caller's to read, who may print them as they come; :meth:`Watch.run` joins all of it.
"""

from __future__ import annotations

import os
import re
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from bpfoom.observe import cgroupfs, join, kmsg
from bpfoom.observe.exits import Account, Exit, Exits
from bpfoom.observe.join import Clock, Marked
from bpfoom.observe.records import Decision, boot_offset
from bpfoom.observe.result import Limit, Lost, Process, Run
from bpfoom.observe.timeline import INTERVAL_MS, Timeline
from bpfoom.observe.tracing import Event, Instance

# Who is killed has exited when we are asked, or soon will.
_DEADLINE_S = 5.0
_REFRESH_S = 5.0
_NICE = -15
_MAX_KEPT = 50_000
# A name with a newline in it ends the line.
_MARK = re.compile(r"pid=(\d+) comm=(.*?)(?: total-vm=|$)")


class Sources:
    """``with Sources() as sources:`` what the kernel tells of marks and exits.

    Opening them takes some tenths of a second in a guest, the first time seconds: one watch after
    another can use the same. ``missing`` names what this kernel lacks. Raises
    PermissionDeniedError.
    """

    def __enter__(self) -> Self:
        with ExitStack() as owned:
            self.exits = owned.enter_context(Exits())
            self.marks = owned.enter_context(Instance(["oom/mark_victim"]))
            self.missing = (*self.exits.missing, *(() if self.marks.usable else ("tracing",)))
            self._owned = owned.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._owned.close()

    def forget(self) -> None:
        """Drop what has come so far."""
        self.exits.forget()
        self.marks.read()


class Watch:
    """``with Watch(sources, cgroups) as watch:`` ... ``watch.run(...)``, once.

    ``cgroups`` answers with the cgroups to watch: their directories by the paths that they are
    called by. It is asked again and again if ``around`` is given: then only so many seconds around
    each OOM are kept of the timeline, and exits only of who was marked.
    """

    def __init__(
        self,
        sources: Sources,
        cgroups: Callable[[], Mapping[str, Path]],
        around: float | None = None,
    ) -> None:
        self._sources = sources
        self._cgroups = cgroups
        self._around = around
        self._lock = threading.Lock()
        self._heard = threading.Condition(self._lock)
        self._marks: deque[Marked] = deque(maxlen=_MAX_KEPT)
        self._marked: set[int] = set()
        self._exits: deque[Exit] = deque(maxlen=_MAX_KEPT)
        self._accounts: deque[Account] = deque(maxlen=_MAX_KEPT)
        self._failure: Exception | None = None

    def __enter__(self) -> Self:
        with ExitStack() as owned:
            self._top = cgroupfs.mount().path
            self._sources.forget()
            self._log = owned.enter_context(kmsg.KernelLog())
            self._watched = dict(self._cgroups())
            self._timeline = owned.enter_context(Timeline(self._watched, self._around))
            self._started = time.time()
            first = self._timeline.sample()
            self._limits = {path: Limit(usage.max) for path, usage in first.cgroups.items()}
            self._stop = os.eventfd(0, os.EFD_CLOEXEC)
            owned.callback(os.close, self._stop)
            self._thread = threading.Thread(target=self._observe, name="bpfoom-watch", daemon=True)
            self._thread.start()
            owned.callback(self._end)
            self._owned = owned.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._owned.close()

    def keep(self) -> None:
        """Something happens: keep the timeline around now."""
        with self._lock:
            self._timeline.keep()

    def run(
        self,
        decisions: Sequence[Decision],
        *,
        name: str | None = None,
        handler: str | None = None,
        victims: Sequence[Process] | None = None,
        survivors: Sequence[Process] = (),
        memory_events: Mapping[str, dict[str, int]],
        kill_ns: int | None = None,
        lost_decisions: int = 0,
    ) -> Run:
        """End watching; all of it as one result.

        ``victims`` are known to have been killed; without them they are whom the kernel marked.
        ``decisions`` have the names of their cgroups.
        """
        self._await_exits({process.pid for process in victims or ()})
        self._end()
        if self._failure is not None:
            raise self._failure
        clock = Clock(boot_offset(), _suspended_ns())
        deaths = join.deaths(
            self._marks, victims or (), decisions, self._exits, self._accounts, clock
        )
        samples = self._timeline.samples()
        dead = tuple(Process(death.pid, death.comm, death.cgroup) for death in deaths)
        return Run(
            name=name,
            handler=handler,
            started=self._started,
            victims=dead if victims is None else tuple(victims),
            survivors=tuple(survivors),
            memory_events=dict(memory_events),
            dmesg=tuple(kmsg.about_oom(self._log.lines())),
            decisions=tuple(decisions),
            deaths=deaths,
            recovery=join.recoveries(decisions, samples),
            kill_ns=kill_ns,
            timeline=samples,
            interval_ms=INTERVAL_MS,
            limits=self._limits,
            lost=Lost(lost_decisions, self._sources.exits.lost),
        )

    def _await_exits(self, victims: set[int]) -> None:
        """Wait until the kernel has told of the exits of all who are known to be dead."""
        if "proc connector" in self._sources.missing:
            return

        def told() -> bool:
            heard = {one.tgid for one in self._exits}
            return victims <= heard or self._sources.exits.lost > 0 or self._failure is not None

        with self._heard:
            self._heard.wait_for(told, _DEADLINE_S)

    def _end(self) -> None:
        if self._thread.is_alive():
            os.eventfd_write(self._stop, 1)
            self._thread.join()

    def _observe(self) -> None:
        """The thread. What it fails of is for the caller."""
        with suppress(OSError):  # of this thread alone: there is most to see while all starve
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        try:
            self._listen()
        except Exception as error:
            self._failure = error

    def _listen(self) -> None:
        """Read what comes, and sample in between."""
        poll = select.poll()
        for fd in (self._stop, self._sources.marks.fileno(), *self._sources.exits.filenos()):
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        due, refresh = time.monotonic(), time.monotonic() + _REFRESH_S
        ready: set[int] = set()
        while self._stop not in ready:
            left = max(0.0, due - time.monotonic())
            ready = {fd for fd, _ in poll.poll(left * 1000)}
            now = time.monotonic()
            with self._heard:
                self._hear(ready)
                if now >= due:
                    self._timeline.sample()
                    due = now + INTERVAL_MS / 1000
                if self._around is not None and now >= refresh:
                    self._refresh()
                    refresh = now + _REFRESH_S
        with self._heard:
            self._hear(set(self._sources.exits.filenos()))
            self._timeline.sample()

    def _hear(self, ready: set[int]) -> None:
        """Marks first: they say whose exits matter."""
        for event in self._sources.marks.read():
            if marked := _marked(event, self._called):
                self._marks.append(marked)
                self._marked |= {marked.pid, marked.thread}
                self._timeline.keep()
        for fd in ready.intersection(self._sources.exits.filenos()):
            for told in self._sources.exits.read(fd):
                if not self._matters(told):
                    continue
                if isinstance(told, Exit):
                    self._exits.append(told)
                else:
                    self._accounts.append(told)
        self._heard.notify_all()

    def _matters(self, told: Exit | Account) -> bool:
        if self._around is None or not self._sources.marks.usable:
            return True
        return told.pid in self._marked or told.tgid in self._marked

    def _refresh(self) -> None:
        self._watched = dict(self._cgroups())
        self._timeline.watch(self._watched)

    def _called(self, cgroup: str) -> str:
        """What a cgroup is called here, from its path below the mount."""
        directory = self._top / cgroup.lstrip("/")
        return next((path for path, its in self._watched.items() if its == directory), cgroup)


def _marked(event: Event, called: Callable[[str], str]) -> Marked | None:
    """A mark, with what /proc still knows of the process."""
    found = _MARK.match(event.text)
    if event.name != "mark_victim" or not found:
        return None
    thread, pid, cgroup = int(found[1]), int(found[1]), None
    directory = Path("/proc", found[1])
    with suppress(OSError):
        for line in _lines(directory / "cgroup"):
            if line.startswith("0::"):
                cgroup = called(line[3:])
        for line in _lines(directory / "status"):
            if line.startswith("Tgid:"):
                pid = int(line.split()[1])
    return Marked(pid, thread, found[2], event.time_ns, cgroup)


def _lines(path: Path) -> list[str]:
    """A file's lines. Names in it are bytes of its owner's choice."""
    return os.fsdecode(path.read_bytes()).split("\n")


def _suspended_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
