# SPDX-License-Identifier: Apache-2.0
"""Trees of cgroups, objects and configurations for tests of apply and agent, and agents that run.

::

    /sys/fs/cgroup
    └── bpfoom-orchard          memory controller on for the children, theirs too
        ├── jobs                what comes and goes
        └── shop
            ├── api
            └── batch
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from bpfoom.compiler.object import HandlerObject, MapSpec, Parameter, Relocation, write_file
from bpfoom.handler import links as handler_links
from bpfoom.handler.maps import COUNTERS
from bpfoom.observe import cgroupfs
from bpfoom.policy.functions import PARAMS, PARAMS_SET
from tests.guest.byhand import DEADLINE_S, cli, handler_object, remove_tree, returns, wait_for
from tests.schemas import valid

ROOT = Path("/sys/fs/cgroup/bpfoom-orchard")
NAME = f"/{ROOT.name}"
_LDDW = b"\x18\x01\0\0\0\0\0\0" + bytes(8)


@contextmanager
def orchard() -> Iterator[None]:
    """The tree, and at the end neither it nor any handler of ours."""
    for path in (
        ROOT,
        ROOT / "jobs",
        ROOT / "shop",
        ROOT / "shop" / "api",
        ROOT / "shop" / "batch",
    ):
        path.mkdir()
        if path.parent in (ROOT, ROOT.parent):
            (path / "cgroup.subtree_control").write_text("+memory")
    try:
        yield
    finally:
        cli("detach", "--all")
        cli("marks", "clear", "--all")
        remove_tree(ROOT)


def tunable(name: str = "tunable", *, verdict: int = 0) -> HandlerObject:
    """A handler that does nothing, with a live parameter ``min`` that it does not look at."""
    names = (PARAMS, PARAMS_SET, COUNTERS)
    maps = [MapSpec(PARAMS, "array", 4, 8, 2), MapSpec(PARAMS_SET, "array", 4, 8, 1)]
    maps.append(MapSpec(COUNTERS, "array", 4, 16, 1))
    made = handler_object(_LDDW * len(names) + returns(verdict), name=name)
    relocations = tuple(Relocation(2 * n, "map", name) for n, name in enumerate(names))
    return replace(
        made,
        programs=(replace(made.programs[0], relocations=relocations),),
        maps=tuple(maps),
        parameters=(Parameter("min", "bytes", "0", True, 0, 8),),
        provenance=replace(made.provenance, policy_hash=f"{verdict:064x}"),
    )


def write_objects(directory: Path) -> None:
    """``tunable.o``, and ``other.o``, which is another policy."""
    write_file(directory / "tunable.o", tunable())
    write_file(directory / "other.o", tunable("other", verdict=2))


def entry(cgroup: str, file: str, **more: str) -> str:
    """An ``[[attach]]`` below the tree; ``more`` are lines of TOML by key."""
    lines = [f'cgroup = "{NAME}/{cgroup}"', f'object = "{file}"']
    return "\n".join(["[[attach]]", *lines, *(f"{k} = {v}" for k, v in more.items())]) + "\n"


def attached() -> dict[str, str]:
    """The policy on each cgroup of the tree, by its path below it."""
    code, out, err = cli("list", "--json")
    assert code == 0, err
    below = [h for h in json.loads(out) if h["cgroup"].startswith(NAME)]
    return {handler["cgroup"].removeprefix(f"{NAME}/"): handler["policy"] for handler in below}


def links() -> dict[int, int]:
    """The link on each cgroup of the machine, whoever made it."""
    return handler_links.attached()


class Running:
    """An agent that runs, and what it tells, which is read as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid
        self.lines: list[dict[str, Any]] = []
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def until(self, kind: str) -> Any:
        """The next of a kind (step, mark, ...) that it tells; what comes before is passed over."""
        while True:
            line = self._queue.get(timeout=4 * DEADLINE_S)
            assert line is not None, f"the agent ended: {self.process.wait()}"
            if line[kind] is not None:
                return line[kind]

    def told(self, kind: str) -> list[Any]:
        """All of a kind so far."""
        return [line[kind] for line in list(self.lines) if line[kind] is not None]

    def end(self) -> None:
        self.process.kill()
        self._reader.join()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for text in self.process.stdout:
            document = json.loads(text)
            self.lines.append(document)
            self._queue.put(document)
        self._queue.put(None)

    def fds(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def watches(self) -> int:
        """How many inotify watches it has."""
        found = 0
        for path in Path(f"/proc/{self.pid}/fdinfo").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                found += path.read_text().count("inotify wd:")
        return found

    def rss_kib(self) -> int:
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(text.partition("VmRSS:")[2].split()[0])

    def cpu_s(self) -> float:
        """Seconds of CPU so far, its children's included."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running(file: Path, **environment: str) -> Iterator[Running]:
    """An agent on that file, ready; killed at the end of the block if it has not ended."""
    argv = [sys.executable, "-m", "bpfoom.cli.main", "agent", "-f", str(file), "--json"]
    env = {**os.environ, **environment}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env) as process:
        agent = Running(process)
        try:
            agent.until("state")
            yield agent
            for line in agent.lines:
                valid("agent", line)
        finally:
            agent.end()


def cgroups() -> int:
    """How many cgroups there are."""
    return sum(1 for _ in os.walk(cgroupfs.mount().path))


def wait_until_followed(agent: Running) -> None:
    """Until every cgroup is watched, and no other: so all that came and went was looked at."""
    wait_for(
        lambda: agent.watches() == cgroups(),
        "watches for all cgroups and no others",
        4 * DEADLINE_S,
    )
