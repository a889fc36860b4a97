# SPDX-License-Identifier: Apache-2.0
"""A tree on a real kernel: make the cgroups, start and fill the workloads, trigger, clean up.

The order is always make, start, fill, and only then grow, so that every OOM begins in the state
that was written down. Waits are for events and exits, never for a time.
"""

from __future__ import annotations

import select
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from bpfoom.errors import InfrastructureError
from bpfoom.observe import cgroupfs
from bpfoom.observe.result import Process
from bpfoom.scenario.tree import Node, Workload

# What fills in 2 s on an idle TCG guest gets a hundred times that.
_DEADLINE_S = 200.0
_HOG = Path(__file__).with_name("hog.py")


class Hog:
    """One workload process in its cgroup."""

    def __init__(self, workload: Workload, path: str, directory: Path) -> None:
        self.workload = workload
        self.path = path
        # The system's Python, bare: a small process that no virtual environment slows down.
        self._child = subprocess.Popen(
            ["/usr/bin/python3", "-I", "-S", str(_HOG)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # select() must see every answer that was not read yet
        )
        self.pid = self._child.pid
        (directory / "cgroup.procs").write_text(str(self.pid))
        adj = Path("/proc", str(self.pid), "oom_score_adj")
        adj.write_text(str(workload.oom_score_adj))

    @property
    def process(self) -> Process:
        return Process(self.pid, self.workload.comm, self.path)

    def order(self, what: str, value: str) -> None:
        """Give an order without waiting for its end; a process that is gone does not hear it."""
        assert self._child.stdin is not None
        with suppress(BrokenPipeError):
            self._child.stdin.write(f"{what} {value}\n".encode())

    def obeyed(self, timeout: float) -> bool:
        """Whether the last order was carried out within ``timeout`` seconds."""
        assert self._child.stdout is not None
        ready, _, _ = select.select([self._child.stdout], [], [], timeout)
        return bool(ready) and self._child.stdout.readline() == b"done\n"

    def expect(self, deadline: float) -> None:
        """Wait until the last order was carried out; InfrastructureError when it was not."""
        if not self.obeyed(max(0.0, deadline - time.monotonic())):
            raise InfrastructureError(
                f"workload {self.workload.comm} did not get ready",
                hint="is there memory enough for the tree?",
                cgroup=self.path,
                status=self._child.poll(),
            )

    def ended(self) -> bool:
        """Whether the process is gone, which here means killed."""
        return self._child.poll() is not None

    def end(self) -> None:
        """Kill and reap it, if it is still there."""
        self._child.kill()
        self._child.communicate()


class Stage:
    """``with Stage(tree) as stage:`` the tree stands below the cgroup2 root and is filled.

    Leaving kills the workloads and removes the cgroups. Raises PermissionError without root.
    """

    def __init__(self, tree: Node) -> None:
        self.tree = tree
        self.hogs: list[Hog] = []
        self._top = cgroupfs.mount().path
        self._made: list[Path] = []

    def directory(self, path: str) -> Path:
        """Where the node with that path is; "/" is the hierarchy's root."""
        return self._top / path.strip("/")

    def __enter__(self) -> Self:
        try:
            for path, node in self.tree.walk():
                self._make(path, node)
            for path, node in self.tree.walk():
                for workload in node.workloads:
                    self.hogs.append(Hog(workload, path, self.directory(path)))
            self._fill()
        except BaseException:
            self._clear()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def trigger(self) -> None:
        """Let the one workload that grows grow, until that and all it caused is over.

        Then a roll call: who was killed may still be on the way out, and never answers.
        """
        (grower,) = (hog for hog in self.hogs if hog.workload.grow)
        deadline = time.monotonic() + _DEADLINE_S
        grower.order("take", str(grower.workload.grow))
        self._settle(grower, deadline)
        for hog in self.hogs:
            if not hog.ended():
                hog.order("name", hog.workload.comm)
                self._settle(hog, deadline)

    def events(self) -> dict[str, dict[str, int]]:
        """memory.events of every node."""
        return {
            path: cgroupfs.parse_counters((self.directory(path) / "memory.events").read_text())
            for path, _ in self.tree.walk()
        }

    def _make(self, path: str, node: Node) -> None:
        directory = self.directory(path)
        directory.mkdir()
        self._made.append(directory)
        if node.children:
            (directory / "cgroup.subtree_control").write_text("+memory")
        if node.memory_max is not None:
            (directory / "memory.max").write_text(str(node.memory_max))
        if node.oom_group:
            (directory / "memory.oom.group").write_text("1")

    def _fill(self) -> None:
        for hog in self.hogs:
            hog.order("name", hog.workload.comm)
            hog.order("take", str(hog.workload.fill))
        deadline = time.monotonic() + _DEADLINE_S
        for hog in self.hogs:
            hog.expect(deadline)
            hog.expect(deadline)

    def _settle(self, hog: Hog, deadline: float) -> None:
        """Wait until the workload has obeyed its last order or is gone."""
        while not hog.ended() and not hog.obeyed(0.05):
            if time.monotonic() > deadline:
                raise InfrastructureError(
                    f"workload {hog.workload.comm} neither obeyed nor died",
                    hint="see dmesg",
                    events=self.events(),
                )

    def _clear(self) -> None:
        for hog in self.hogs:
            hog.end()
        for directory in reversed(self._made):
            directory.rmdir()
        self._made.clear()
