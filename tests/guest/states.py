# SPDX-License-Identifier: Apache-2.0
"""Processes in states that few are ever seen in: vforked, dumping core, short of a capability."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bpfoom.observe.cgroupfs import Cgroup
from tests.guest.byhand import DEADLINE_S, wait_for

_CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_SYS_RESOURCE = 24

_libc = ctypes.CDLL(None, use_errno=True)


class _CapHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _CapData(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


def processes(cgroup: Cgroup) -> list[int]:
    """The processes of a cgroup that have not exited yet."""
    return [int(pid) for pid in cgroup.value("cgroup.procs").split()]


@contextmanager
def in_vfork(box: Cgroup, mebibytes: int = 0) -> Iterator[int]:
    """The child of a posix_spawn() that hangs in opening a FIFO, before it executes anything.

    It may be killed, its parent may not; but they share their memory, so much and a Python's.
    """
    fifo = Path("/tmp/bpfoom-fifo")
    os.mkfifo(fifo)
    action = f"(os.POSIX_SPAWN_OPEN, 0, {str(fifo)!r}, os.O_RDONLY, 0)"
    spawn = f"os.posix_spawn('/bin/true', ['true'], {{}}, file_actions=[{action}])"
    parent = _python(box, f"import os; held = b'+' * ({mebibytes} << 20); {spawn}")
    try:
        child = _child_of(parent.pid, box)
        for pid, adj in ((parent.pid, "-1000"), (child, "0")):
            Path("/proc", str(pid), "oom_score_adj").write_text(adj)
        yield child
    finally:
        (box.path / "cgroup.kill").write_text("1")
        parent.wait()
        fifo.unlink()


@contextmanager
def dumping_core(box: Cgroup, mebibytes: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process that dumps core, so much and a Python, to a socket that nobody reads from."""
    before = _CORE_PATTERN.read_text()
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as reader:
        reader.bind(f"{directory}/core")
        reader.listen()
        reader.settimeout(DEADLINE_S)
        _CORE_PATTERN.write_text(f"@{directory}/core")
        process = _python(box, f"import os; held = b'+' * ({mebibytes} << 20); os.abort()")
        try:
            with reader.accept()[0]:
                yield process
        finally:
            process.kill()
            process.wait()
            _CORE_PATTERN.write_text(before)


@contextmanager
def without_sys_resource() -> Iterator[None]:
    """Drop CAP_SYS_RESOURCE, and no other capability, for the length of the block."""
    header, data = _CapHeader(_CAPABILITY_VERSION_3, 0), (_CapData * 2)()
    assert _libc.capget(ctypes.byref(header), data) == 0
    data[0].effective &= ~(1 << _CAP_SYS_RESOURCE)
    assert _libc.capset(ctypes.byref(header), data) == 0
    try:
        yield
    finally:
        data[0].effective |= 1 << _CAP_SYS_RESOURCE
        assert _libc.capset(ctypes.byref(header), data) == 0


def _python(cgroup: Cgroup, code: str) -> subprocess.Popen[bytes]:
    """A bare Python, in the cgroup from its start. ``code`` stands between double quotes."""
    script = f'echo 0 > {cgroup.path}/cgroup.procs && exec /usr/bin/python3 -I -S -c "{code}"'
    return subprocess.Popen(["sh", "-c", script])


def _child_of(pid: int, box: Cgroup) -> int:
    wait_for(lambda: len(processes(box)) == 2, "the child")
    (child,) = set(processes(box)) - {pid}
    return child
