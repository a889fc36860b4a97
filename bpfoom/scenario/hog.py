# SPDX-License-Identifier: Apache-2.0
"""Workload processes: each takes memory when it is told to, and stays until its stdin is closed.

Run as a script by workers.py, isolated from site-packages so that it is small. The process that is
started only forks others, at its parent's request. They obey lines on stdin, an order and its
values, and answer each with ``done`` on stdout, or with ``refused`` where the kernel has no memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import signal
import sys

TYPE_CHECKING = False  # typing itself is slow to import
if TYPE_CHECKING:
    from collections.abc import Callable

_CHUNK = bytes(1 << 20)
_PAGE = mmap.PAGESIZE
_MADV_DONTNEED, _MADV_REMOVE = 4, 9
_MADV_PAGEOUT, _MADV_POPULATE_READ, _MADV_POPULATE_WRITE = 21, 22, 23
_PTRACE_SEIZE, _PTRACE_CONT, _PTRACE_O_TRACEEXIT, _WALL = 0x4206, 7, 1 << 6, 0x40000000
_MCL_CURRENT = 1
_SYS_EXIT = {"x86_64": 60}.get(os.uname().machine, 93)

# Children that do nothing but be there. The shell is small: a thousand of it are soon made.
_FORKER = 'n=0; while [ "$n" != "$1" ]; do read _ <&3 & n=$((n + 1)); done; echo; read _ <&3'

# What is mapped, and the advice that frees its pages: to unmap them can need memory itself.
held: list[tuple[mmap.mmap, int]] = []


def name(comm: str) -> None:
    """What the process is called."""
    with open("/proc/self/comm", "w") as file:
        file.write(comm)


def take(size: str) -> None:
    """Anonymous private memory of that size, every page written."""
    _area(int(size), mmap.MAP_PRIVATE)


def share(size: str) -> None:
    """The same as a shared mapping, which the OOM reaper cannot take away."""
    _area(int(size), mmap.MAP_SHARED)


def swap(size: str) -> None:
    """Anonymous memory that is swapped out again."""
    _area(int(size), mmap.MAP_PRIVATE).madvise(_MADV_PAGEOUT)


def write(path: str, size: str) -> None:
    """A file of that size, on its disk when this is done."""
    with open(path, "ab", buffering=0) as file:
        before = file.tell()
        try:
            for start in range(0, int(size), len(_CHUNK)):
                file.write(_CHUNK[: int(size) - start])
            os.fsync(file.fileno())
        except OSError:
            file.truncate(before)
            raise


def map_file(path: str) -> None:
    """A shared mapping of a whole file, its pages mapped."""
    with open(path, "r+b") as file:
        area = mmap.mmap(file.fileno(), 0)
    held.append((area, _MADV_DONTNEED))
    area.madvise(_MADV_POPULATE_READ)


def give_back() -> None:
    """All memory that was taken, but for files."""
    while held:
        _let_go()


def fork(children: str) -> None:
    """So many small children, "-1" = without end."""
    hold, never = os.pipe()
    told, tell = os.pipe()
    # They hold both ends of the pipe that they read: they stay when this process is gone.
    ends = ((hold, 0), (tell, 1), (hold, 3), (never, 4))
    actions = [(os.POSIX_SPAWN_DUP2, ours, theirs) for ours, theirs in ends]
    os.posix_spawn("/bin/sh", ["sh", "-c", _FORKER, "sh", children], {}, file_actions=actions)
    os.close(tell)
    if not os.read(told, 1):
        raise OSError(errno.ENOMEM, "no memory for children")


def put(path: str, text: str) -> None:
    """A cgroup's file, written as an administrator would."""
    with open(path, "w") as file:
        file.write(text)


def linger(milliseconds: str) -> None:
    """Be held on the way out for so long, the memory still there, once this process is killed."""
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    ready, tell = os.pipe()
    if os.fork() == 0:
        _hold_parent_at_exit(ptrace, tell, int(milliseconds) / 1000)
    os.close(tell)
    if not os.read(ready, 1):
        raise OSError("cannot trace myself")


def behead() -> None:
    """Let the thread group's leader exit; another thread holds the memory and obeys."""
    import threading

    def go_on() -> None:
        print("done", flush=True)
        obey()

    libc = ctypes.CDLL(None)
    threading.Thread(target=go_on).start()
    libc.syscall(_SYS_EXIT, 0)


def _area(size: int, flags: int) -> mmap.mmap:
    area = mmap.mmap(-1, size, flags=flags | mmap.MAP_ANONYMOUS)
    _populate(area, _MADV_REMOVE if flags == mmap.MAP_SHARED else _MADV_DONTNEED)
    return area


def _populate(area: mmap.mmap, undo: int) -> None:
    """Have each page written, or give all back: a process without room can do nothing at all.

    Where the kernel has no memory this ends with ENOMEM; a mere access would be tried for ever.
    """
    held.append((area, undo))
    try:
        area.madvise(_MADV_POPULATE_WRITE)
    except OSError:
        _let_go()
        raise


def _let_go() -> None:
    """Give back what was taken last."""
    area, undo = held.pop()
    with contextlib.suppress(OSError):
        area.madvise(undo)
    area.close()


def _hold_parent_at_exit(ptrace: Callable[..., int], tell: int, seconds: float) -> None:
    """A child's whole life: trace the parent to its exit, wait there, let it go."""
    import time

    for fd in (0, 1):  # the parent's end is to be seen
        os.close(fd)
    parent = os.getppid()
    if ptrace(_PTRACE_SEIZE, parent, None, _PTRACE_O_TRACEEXIT):
        os._exit(1)
    os.write(tell, b"+")
    os.close(tell)
    while True:
        _, status = os.waitpid(parent, _WALL)
        if not os.WIFSTOPPED(status):
            os._exit(0)
        if status >> 16:  # the stop at its exit
            time.sleep(seconds)
        ptrace(_PTRACE_CONT, parent, None, None)


_ORDERS: dict[str, Callable[..., None]] = {
    "name": name,
    "take": take,
    "share": share,
    "swap": swap,
    "write": write,
    "map": map_file,
    "give_back": give_back,
    "fork": fork,
    "put": put,
    "linger": linger,
    "behead": behead,
}


_TAKES = ("take", "share", "swap", "write", "fork")


def _rehearse_refusal() -> None:
    """Who is refused memory has none left for an answer: touch now what that will take.

    Not for other orders: they have to be obeyed where there is no memory at all.
    """
    bytearray(b"-") * (64 << 10)  # stays at the end of the heap
    with contextlib.suppress(OSError):
        _populate(mmap.mmap(-1, _PAGE, prot=mmap.PROT_READ), _MADV_DONTNEED)


def _leave_parent() -> None:
    """Have pages of our own for all that was the parent's and can be written."""
    libc = ctypes.CDLL(None)
    libc.mlockall(_MCL_CURRENT)
    libc.munlockall()


def obey() -> None:
    """Until there are no more orders."""
    for line in sys.stdin:
        order, *values = line.split()
        if order in _TAKES:
            _rehearse_refusal()
        answer = "done"
        try:
            _ORDERS[order](*values)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            answer = "refused"
        print(answer, flush=True)


def serve() -> None:
    """Fork a workload process for each pair of descriptors, its stdin and stdout, sent here."""
    import socket

    channel = socket.socket(fileno=os.dup(0))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        asked, ends, _, _ = socket.recv_fds(channel, 1, 2)
        if not asked:
            return
        pid = os.fork()
        if pid == 0:
            channel.close()
            for theirs, end in enumerate(ends):
                os.dup2(end, theirs)
                os.close(end)
            _leave_parent()
            obey()
            os._exit(0)
        for end in ends:
            os.close(end)
        channel.send(str(pid).encode())


if __name__ == "__main__":
    serve()
