# SPDX-License-Identifier: Apache-2.0
"""apply and agent killed at random points: each cgroup is as it was or as it is to be, never else.

``python3 -m tests.guest.killing TIMES`` in the guest kills each of the two so often and prints the
facts as JSON. They run in forks of this process, so that few of the points are in Python's imports.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bpfoom.agent import loop  # noqa: F401 - so that the forks need not import it
from bpfoom.cli import agent, apply, main  # noqa: F401 - the same
from bpfoom.handler import pins
from tests.guest.byhand import cli
from tests.guest.orchard import ROOT, attached, entry, links, orchard, write_objects

_CGROUPS = [f"jobs/{number}" for number in range(6)]
_POLICIES = ("tunable", "other")


def run(times: int, seed: int = 1) -> dict[str, Any]:
    """Kill each so often; raises AssertionError where a state is none of the two."""
    chosen = random.Random(seed)
    with orchard(), tempfile.TemporaryDirectory() as name:
        file = Path(name, "killed.toml")
        write_objects(file.parent)
        for cgroup in _CGROUPS:
            (ROOT / cgroup).mkdir()
        took = max(_whole(file, policy) for policy in _POLICIES)
        for command in ("apply", "agent"):
            for number in range(times):
                policy = _POLICIES[number % 2]
                _kill_one(command, _write(file, policy), chosen, 1.2 * took)
                _check(file, policy)
    return {"apply": times, "agent": times, "whole_apply_seconds": round(took, 2)}


def _write(file: Path, policy: str) -> Path:
    file.write_text(entry("jobs/*", f"{policy}.o"))
    return file


def _whole(file: Path, policy: str) -> float:
    """How long an apply takes that is left alone."""
    start = time.monotonic()
    _, status = os.waitpid(_fork("apply", _write(file, policy)), 0)
    assert status == 0
    return time.monotonic() - start


def _kill_one(command: str, file: Path, chosen: random.Random, within: float) -> None:
    """Kill a command before it ends; one that was quicker is begun again."""
    while True:
        pid = _fork(command, file)
        time.sleep(chosen.uniform(0, within))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            return
        assert status == 0, f"{command} ended by itself: {status}"


def _fork(command: str, file: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(null, number)
        main.main([command, "-f", str(file)])
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        os._exit(code)


def _check(file: Path, policy: str) -> None:
    """The machine is in one of the states, and the next command works."""
    now = attached()
    assert set(now.values()) <= set(_POLICIES), now
    assert len(now) == len(links()), (now, links())
    code, _, err = cli("apply", "-f", str(file))
    assert code == 0, err
    assert attached() == dict.fromkeys(_CGROUPS, policy)
    assert pins.require().cgroup_ids() == sorted(links())


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]))))
