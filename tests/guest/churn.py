# SPDX-License-Identifier: Apache-2.0
"""Cgroups that come and go at random while OOMs happen, under an agent: what it costs, what leaks.

``python3 -m tests.guest.churn CGROUPS`` in the guest prints the facts as JSON; `./run soak churn`
does it for two thousand, the suite for a hundred.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from bpfoom.handler import pins
from bpfoom.observe import cgroupfs
from tests import objects
from tests.guest import census
from tests.guest.byhand import eat, wait_for
from tests.guest.orchard import ROOT, Running, entry, orchard, running, wait_until_followed

JOBS = ROOT / "jobs"
# At a time, and one in so many runs out of memory.
_PRESENT, _EACH = 40, 50


def run(cgroups: int, seed: int = 1) -> dict[str, Any]:
    """Make and remove so many cgroups; the facts, with all that was left behind."""
    with orchard(), tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "churn.toml")
        file.write_text(entry("jobs/**", str(objects.path())))
        with running(file) as agent:
            wait_until_followed(agent)
            facts = _under(agent, cgroups, random.Random(seed))
    return facts


def _under(agent: Running, cgroups: int, chosen: random.Random) -> dict[str, Any]:
    # What is opened at the first decision stays open.
    _churn(_EACH, chosen)
    wait_until_followed(agent)
    before, fds, cpu = census.take(), agent.fds(), agent.cpu_s()
    start, rss, jobs = time.monotonic(), agent.rss_kib(), cgroupfs.resolve(str(JOBS))
    _churn(cgroups, chosen)
    churned = time.monotonic() - start
    wait_until_followed(agent)
    wait_for(lambda: pins.require().cgroup_ids() == [jobs.id], "the pins of what is gone to go")
    caught_up = time.monotonic() - start
    settled = time.monotonic() + census.SETTLE_S
    while grown := census.grown(before):
        if time.monotonic() > settled:
            break
    left = [f"{before} before, {census.take()} after"] if grown else []
    if (now := agent.fds()) != fds:
        left.append(f"{fds} file descriptors before, {now} after")
    done = [step for step in agent.told("step") if step["action"] == "attach"]
    return {
        "cgroups": cgroups,
        "ooms": jobs.memory_events()["oom"],
        "attached": sum(step["outcome"] == "done" for step in done),
        "failed": [step["error"]["message"] for step in done if step["error"]],
        "cgroups_per_minute": round(cgroups * 60 / churned),
        "seconds": round(churned, 1),
        "caught_up_after_seconds": round(caught_up, 1),
        "agent_cpu_seconds": round(agent.cpu_s() - cpu, 1),
        "agent_rss_kib": [rss, agent.rss_kib()],
        "left": left,
    }


def _churn(cgroups: int, chosen: random.Random) -> None:
    """Make so many and remove all of them again, a few being there at any time."""
    present: list[tuple[Path, subprocess.Popen[bytes] | None]] = []
    for number in range(cgroups):
        while len(present) > chosen.randrange(2 * _PRESENT):
            _remove(*present.pop(chosen.randrange(len(present))))
        # Names come again, as they do.
        path = JOBS / f"job{number % (3 * _PRESENT)}"
        with suppress(FileExistsError):
            path.mkdir()
            present.append((path, _eater(path) if number % _EACH == 0 else None))
    for path, eater in present:
        _remove(path, eater)


def _eater(path: Path) -> subprocess.Popen[bytes]:
    (path / "memory.max").write_text("4M")
    (path / "memory.swap.max").write_text("0")
    return eat(cgroupfs.resolve(str(path)))


def _remove(path: Path, eater: subprocess.Popen[bytes] | None) -> None:
    if eater is not None:
        eater.wait()
        wait_for(
            lambda: "populated 0" in (path / "cgroup.events").read_text(), f"{path} to be empty"
        )
    path.rmdir()


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]))))
