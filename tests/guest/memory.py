# SPDX-License-Identifier: Apache-2.0
"""What holds a cgroup's memory in tests of the kernel: processes that take it when told to, and
files in memory that anybody can make smaller from outside.

All of it stays on one CPU: what another CPU keeps in stock for a cgroup comes back at some time of
its own, and would make room where a test says there is none.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bpfoom.observe import cgroupfs
from bpfoom.observe.cgroupfs import Cgroup
from tests.guest.byhand import DEADLINE_S, wait_for

MIB = 1 << 20
_CPU = 0

_WRITER = """
import sys
for path, value in (("/proc/self/oom_score_adj", "-1000"), (sys.argv[1] + "/cgroup.procs", "0")):
    with open(path, "w") as file:
        file.write(value)
with open(sys.argv[2], "wb") as pool:
    for _ in range(int(sys.argv[3])):
        pool.write(bytes(1 << 20))
print("written", flush=True)
sys.stdin.read()
"""

# Page after page by a plain store, as most programs take memory: a charge that fails is tried again
# by the page fault. Workloads of scenarios ask for all at once instead, and are told.
_TAKER = """
import mmap, sys
chunk, held = b"\\1" * (1 << 20), []
with open("/proc/self/comm", "w") as comm:
    comm.write("hog")
print("done", flush=True)
for line in sys.stdin:
    size = int(line)
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for start in range(0, size, len(chunk)):
        area[start : start + len(chunk)] = chunk[: size - start]
    held.append(area)
    print("done", flush=True)
"""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long
_SYS_MEMBARRIER, _MEMBARRIER_CMD_GLOBAL = 324, 1
_PTRACE_SEIZE, _PTRACE_CONT, _PTRACE_O_TRACEEXIT = 0x4206, 7, 1 << 6


def make(path: Path, *, parent: bool = False, **files: str) -> Cgroup:
    """Make a cgroup; ``memory_max="8M"`` writes that to memory.max, and so on.

    A ``parent`` hands the memory controller on to its children, and can have no process then.
    """
    path.mkdir()
    if parent:
        (path / "cgroup.subtree_control").write_text("+memory")
    for name, value in {"memory_swap_max": "0", **files}.items():
        (path / name.replace("_", ".")).write_text(value)
    return cgroupfs.resolve(str(path))


@contextmanager
def on_one_cpu() -> Iterator[None]:
    """Start processes that stay on one CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {_CPU})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Hog:
    """A process called hog that takes memory when it is told to."""

    def __init__(self) -> None:
        self._child = subprocess.Popen(
            ["/usr/bin/python3", "-I", "-S", "-c", _TAKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # select() must see every answer that was not read yet
        )
        self.pid = self._child.pid

    def take(self, size: int) -> None:
        """Have it take so many bytes more, without waiting for it."""
        assert self._child.stdin is not None
        with suppress(BrokenPipeError):
            self._child.stdin.write(f"{size}\n".encode())

    def obeyed(self, timeout: float) -> bool:
        """Whether the last order was carried out within ``timeout`` seconds."""
        assert self._child.stdout is not None
        ready, _, _ = select.select([self._child.stdout], [], [], timeout)
        return bool(ready) and self._child.stdout.readline() == b"done\n"

    def ended(self) -> bool:
        """Whether it is gone, which here means killed."""
        return self._child.poll() is not None

    def end(self) -> None:
        """Kill and reap it, if it is still there."""
        self._child.kill()
        self._child.communicate()


@contextmanager
def hog(cgroup: Cgroup, fill: int = 1, *, adj: int = 0) -> Iterator[Hog]:
    """A process that has taken ``fill`` MiB; it is killed at the end of the block.

    It enters the cgroup when it is ready, so what its start took is not charged there.
    """
    with on_one_cpu():
        made = Hog()
    try:
        Path("/proc", str(made.pid), "oom_score_adj").write_text(str(adj))
        assert made.obeyed(DEADLINE_S)
        (cgroup.path / "cgroup.procs").write_text(str(made.pid))
        take(made, fill)
        assert made.obeyed(DEADLINE_S)
        yield made
    finally:
        made.end()


def take(taker: Hog, mebibytes: int) -> None:
    """Have a process take so much more, without waiting for it; it may have to wait, or die."""
    taker.take(mebibytes * MIB)


@contextmanager
def pool(cgroup: Cgroup, mebibytes: int) -> Iterator[Path]:
    """A file of that size whose memory is charged to the cgroup, gone at the end of the block.

    Who has written it stays as long: what an exit frees comes back at some time of its own, too.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "pool")
        argv = ["/usr/bin/python3", "-I", "-S", "-c", _WRITER]
        argv += [str(cgroup.path), str(path), str(mebibytes)]
        with on_one_cpu():
            writer = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            assert writer.stdout and writer.stdout.readline() == b"written\n"
            yield path
        finally:
            writer.kill()
            writer.communicate()


def give_back(path: Path, mebibytes: int, *takers: Hog) -> None:
    """Make a pool smaller by so much, and only then let the takers go on.

    A taker can be quicker than the file that shrinks, and would be out of memory once more; what
    RCU frees of the file would be room that nobody has made.
    """
    for taker in takers:
        os.kill(taker.pid, signal.SIGSTOP)
    with on_one_cpu():
        os.truncate(path, path.stat().st_size - mebibytes * MIB)
    for _ in range(2):
        _libc.syscall(_SYS_MEMBARRIER, _MEMBARRIER_CMD_GLOBAL, 0, 0)  # waits for a grace period
    for taker in takers:
        os.kill(taker.pid, signal.SIGCONT)


def wait_until_waiting(taker: Hog) -> None:
    """See the process wait for memory that was promised.

    One look may miss it, as every 20 ms it is awake for a moment.
    """

    def is_waiting() -> bool:
        return Path("/proc", str(taker.pid), "wchan").read_text() == "__bpf_oom_wait"

    wait_for(is_waiting, f"{taker.pid} to wait for what was promised")


def usage(cgroup: Cgroup) -> int:
    """Bytes charged to the cgroup."""
    return int(cgroup.value("memory.current"))


def kills(cgroup: Cgroup) -> int:
    """Processes killed for lack of memory in the cgroup's subtree so far."""
    return cgroup.memory_events()["oom_kill"]


@contextmanager
def held_at_exit(pid: int) -> Iterator[None]:
    """Stop a child of ours on its way out once it is killed, until the end of the block.

    So it is a victim in flight until the reaper gives it up, two seconds later at least. Nobody may
    wait for it meanwhile.
    """
    if _libc.ptrace(_PTRACE_SEIZE, pid, None, _PTRACE_O_TRACEEXIT):
        raise OSError(ctypes.get_errno(), "ptrace")
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        _libc.ptrace(_PTRACE_CONT, pid, None, None)
