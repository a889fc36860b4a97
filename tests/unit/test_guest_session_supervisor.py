# SPDX-License-Identifier: Apache-2.0
"""The process tree: real supervisors over a child that would sleep for ever, in QEMU's place."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bpfoom.guest import supervisor

DEADLINE_S = 60.0


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@dataclass
class Tree:
    """A supervisor, its run directory, and its child's process id."""

    process: subprocess.Popen[bytes]
    run_dir: Path
    child: int

    def child_gone(self) -> bool:
        try:
            stat = Path(f"/proc/{self.child}/stat").read_text()
        except FileNotFoundError:
            return True
        # Killed with its parent it may stay a zombie where nobody reaps orphans.
        return stat.rpartition(")")[2].split()[0] == "Z"

    def counts_as_alive(self) -> bool:
        """The lock, as a session looks at it."""
        try:
            with open(self.run_dir / "alive.lock") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        return False


def grow(run_dir: Path, *, idle_seconds: float = 1000.0, seconds: str = "1000") -> Tree:
    run_dir.mkdir()
    # The child tells its process id, then becomes the sleeper.
    child = ["sh", "-c", 'echo $$ >"$0/child"; exec sleep "$1"', str(run_dir), seconds]
    order = {"argv": child, "idle_seconds": idle_seconds}
    (run_dir / supervisor.ORDER).write_text(json.dumps(order))
    (run_dir / supervisor.USE_LOCK).touch()
    with open(run_dir / "alive.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        argv = [sys.executable, "-I", supervisor.__file__, str(run_dir), str(lock.fileno())]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, pass_fds=[lock.fileno()], bufsize=0)
    told = run_dir / "child"
    wait_until(lambda: told.exists() and told.read_text().endswith("\n"))
    return Tree(process, run_dir, int(told.read_text()))


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    grown = grow(tmp_path / "run")
    yield grown
    fell(grown)


def fell(tree: Tree) -> None:
    assert tree.process.stdin is not None
    tree.process.stdin.close()
    tree.process.kill()
    tree.process.wait()


def test_it_is_alive_until_the_child_ends(tree: Tree) -> None:
    assert tree.counts_as_alive()
    os.kill(tree.child, signal.SIGKILL)
    assert tree.process.wait(DEADLINE_S) == 0
    assert not tree.counts_as_alive()
    assert (tree.run_dir / supervisor.EXIT).read_text() == str(-signal.SIGKILL)


def test_the_child_dies_with_a_killed_supervisor(tree: Tree) -> None:
    tree.process.kill()
    wait_until(tree.child_gone)
    assert not tree.counts_as_alive()


def test_the_child_dies_when_the_starter_is_gone(tree: Tree) -> None:
    assert tree.process.stdin is not None
    tree.process.stdin.close()
    assert tree.process.wait(DEADLINE_S) == 0
    assert tree.child_gone()
    assert not tree.run_dir.exists()


def test_sigterm_ends_both(tree: Tree) -> None:
    tree.process.terminate()
    tree.process.wait(DEADLINE_S)
    assert tree.child_gone()


def test_a_detached_one_outlives_its_starter_until_the_idle_limit(tmp_path: Path) -> None:
    tree = grow(tmp_path / "run", idle_seconds=0.5)
    try:
        with open(tree.run_dir / supervisor.USE_LOCK) as in_use:
            fcntl.flock(in_use, fcntl.LOCK_SH)
            assert tree.process.stdin is not None
            tree.process.stdin.write(supervisor.DETACH)
            tree.process.stdin.close()
            # Used for longer than the limit: the use counts, not the time since the start.
            with pytest.raises(subprocess.TimeoutExpired):
                tree.process.wait(2.0)
            os.utime(in_use.fileno())
        assert tree.process.wait(DEADLINE_S) == 0
        assert tree.child_gone()
        assert not tree.run_dir.exists()
    finally:
        fell(tree)
