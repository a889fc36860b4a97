# SPDX-License-Identifier: Apache-2.0
"""Workload processes (hog.py) seen from outside: give orders, hear that they are obeyed.

They are forked off one bare Python: quickly, and with nothing charged to a cgroup that they enter
later but what they are told to take.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from bpfoom.errors import InfrastructureError
from bpfoom.observe.result import Process

_HOG = Path(__file__).with_name("hog.py")
_DONE, _REFUSED = b"done\n", b"refused\n"


class Nursery:
    """``with Nursery() as nursery:`` the process that workloads are forked off. It is never killed
    for memory; its children inherit that until they are told otherwise.
    """

    def __enter__(self) -> Self:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # The system's Python, bare: a small process that no virtual environment slows down.
            self._child = subprocess.Popen(
                ["/usr/bin/python3", "-I", "-S", str(_HOG)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
            )
        _set_adj(self._child.pid, -1000)
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        self._child.wait()

    def fork(self, stdin: int, stdout: int) -> int:
        """The pid of a new workload process with these descriptors."""
        socket.send_fds(self._channel, [b"+"], [stdin, stdout])
        return int(self._channel.recv(16))


class Hog:
    """One workload process; ``path`` is its cgroup's for people, ``comm`` its name.

    ``refused``: the kernel has refused it memory.
    """

    def __init__(self, nursery: Nursery, comm: str, path: str) -> None:
        self.comm = comm
        self.path = path
        self.refused = False
        stdin, self._orders = os.pipe()
        self._answers, stdout = os.pipe()
        self.pid = nursery.fork(stdin, stdout)
        self._process = os.pidfd_open(self.pid)
        os.close(stdin)
        os.close(stdout)
        self._unread = b""
        self.order("name", comm)

    @property
    def process(self) -> Process:
        return Process(self.pid, self.comm, self.path)

    def enter(self, directory: Path) -> None:
        """Move it into a cgroup."""
        (directory / "cgroup.procs").write_text(str(self.pid))

    def set_adj(self, oom_score_adj: int) -> None:
        """Write its oom_score_adj."""
        _set_adj(self.pid, oom_score_adj)

    def order(self, what: str, *values: str) -> None:
        """Give an order without waiting for its end; a process that is gone does not hear it."""
        with suppress(BrokenPipeError):
            os.write(self._orders, f"{' '.join((what, *values))}\n".encode())

    def obeyed(self, timeout: float) -> bool:
        """Whether the last order was carried out within ``timeout`` seconds."""
        return self._answer(time.monotonic() + timeout) == _DONE

    def expect(self, deadline: float) -> None:
        """Wait until the last order was carried out; InfrastructureError when it was not."""
        if self._answer(deadline) != _DONE:
            raise InfrastructureError(
                f"workload {self.comm} did not get ready",
                hint="is there memory enough for the tree?",
                cgroup=self.path,
            )

    def settle(self, deadline: float) -> None:
        """Wait until the last order was carried out or refused, or the process has died of it."""
        answer = self._answer(deadline)
        if answer == _REFUSED:
            self.refused = True
        elif answer is None or (not answer and not self._ends_until(deadline)):
            raise InfrastructureError(
                f"workload {self.comm} neither obeyed nor died", hint="see dmesg", cgroup=self.path
            )

    def ended(self) -> bool:
        """Whether the process is gone, which here means killed."""
        return self._ends_until(0)

    def end(self) -> None:
        """Kill it, if it is still there, and see it go."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._process, signal.SIGKILL)
        select.select([self._process], [], [])
        for fd in (self._process, self._orders, self._answers):
            os.close(fd)

    def _ends_until(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._process], [], [], _left(deadline))
        return bool(ready)

    def _answer(self, deadline: float) -> bytes | None:
        """A line; b"" if there will be none any more, None if there was none in time."""
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._answers], [], [], _left(deadline))
            if not ready:
                return None
            some = os.read(self._answers, 4096)
            if not some:
                return b""
            self._unread += some
        line, _, self._unread = self._unread.partition(b"\n")
        return line + b"\n"


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _set_adj(pid: int, oom_score_adj: int) -> None:
    Path("/proc", str(pid), "oom_score_adj").write_text(str(oom_score_adj))
