# SPDX-License-Identifier: Apache-2.0
"""QEMU's parent: a process of one thread that ends QEMU whenever its own reason to live ends.

Started as a file of its own (``python -I supervisor.py RUN_DIR LOCK_FD``), with the standard
library only. Its stdin is a lifeline to the starter: end of file means that the starter is gone,
unless ``detach`` was written before; from then on an idle limit counts. One thread, because
PR_SET_PDEATHSIG fires when the *thread* that forked ends. What QEMU runs is qemu.py's affair.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import FrameType

ORDER = "supervisor.json"
PID = "supervisor.pid"
QEMU_LOG = "qemu.log"
EXIT = "exit"
USE_LOCK = "use.lock"
DETACH = b"detach\n"

_PR_SET_PDEATHSIG = 1
_IDLE_CHECK_S = 2.0
_TERMINATE_S = 10.0


def die_with_parent(parent: int) -> None:
    """For a child between fork and exec: be killed when the thread that forked it ends.

    ``parent`` is the forking process: it may die before the call, and then nobody would ever send
    the signal.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def main(argv: list[str]) -> int:
    """Run QEMU as RUN_DIR/supervisor.json orders, until it, the starter or the idle limit ends."""
    run_dir, lock_fd = Path(argv[0]), int(argv[1])
    order = json.loads((run_dir / ORDER).read_text())
    (run_dir / PID).write_text(str(os.getpid()))
    signal.signal(signal.SIGTERM, _end)
    with open(run_dir / QEMU_LOG, "wb") as log:
        qemu = subprocess.Popen(
            order["argv"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=partial(die_with_parent, os.getpid()),
        )
    owned = False
    try:
        owned = _watch(qemu, run_dir / USE_LOCK, order["idle_seconds"])
    finally:
        _stop(qemu)
        (run_dir / EXIT).write_text(str(qemu.returncode))
        # From here on the guest counts as gone; whoever waits for it may look at what it left.
        os.close(lock_fd)
    if owned:
        with open(run_dir / USE_LOCK, "a") as use:
            fcntl.flock(use, fcntl.LOCK_EX)
            shutil.rmtree(run_dir, ignore_errors=True)
    return 0


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _watch(qemu: subprocess.Popen[bytes], use_lock: Path, idle_seconds: float) -> bool:
    """Wait for an end. True if the run directory is ours to remove: nobody else is left to."""
    poll = select.poll()
    exited = os.pidfd_open(qemu.pid)
    poll.register(exited, select.POLLIN)
    poll.register(sys.stdin.fileno(), select.POLLIN | select.POLLHUP)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if exited in ready:
            return False
        word = os.read(sys.stdin.fileno(), len(DETACH))
        if not word:
            return True
        if word == DETACH:
            break
    poll.unregister(sys.stdin.fileno())
    while not poll.poll(min(_IDLE_CHECK_S, idle_seconds) * 1000):
        if _idle_for(use_lock) > idle_seconds:
            break
    return True


def _idle_for(use_lock: Path) -> float:
    """Seconds since the guest was last used; 0 while a command holds the lock."""
    with open(use_lock, "a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0.0
        return time.time() - os.fstat(handle.fileno()).st_mtime


def _stop(qemu: subprocess.Popen[bytes]) -> None:
    """End QEMU if it still runs: asked first, then killed."""
    if qemu.poll() is None:
        qemu.terminate()
    try:
        qemu.wait(_TERMINATE_S)
    except subprocess.TimeoutExpired:
        qemu.kill()
        qemu.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
