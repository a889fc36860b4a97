# SPDX-License-Identifier: Apache-2.0
"""Commands that nobody waits for: real processes, with this machine in the guest agent's place."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpfoom.errors import CommandError
from bpfoom.guest import qemu, running
from bpfoom.guest.agent import Channel

DEADLINE_S = 60.0


class Here(running.Guest):
    """Starts commands here, without the helper that only the guest has; ``then`` comes after."""

    def __init__(self, run_dir: Path, then: signal.Signals | None = None) -> None:
        (run_dir / qemu.SHARE).mkdir()
        (run_dir / qemu.KERNEL_LOG).touch()
        super().__init__(run_dir)
        self.then = then
        self.command: subprocess.Popen[bytes] | None = None

    def alive(self) -> bool:
        return True

    def ask(self, channel: Channel, command: str, timeout: float = 60.0, **values: Any) -> Any:
        assert command == "guest-exec"
        argv = [values["path"], *values["arg"]]
        if self.command is not None:
            subprocess.run(argv, check=True)
            return {"pid": 0}
        del argv[1:4]  # the helper, the job's name, the directory
        self.command = subprocess.Popen(argv)
        if self.then:
            os.kill(os.getpid(), self.then)
        return {"pid": self.command.pid}

    def was_killed(self) -> bool:
        assert self.command is not None
        return self.command.wait(DEADLINE_S) == -signal.SIGKILL


SLEEP = ["sleep", "1000"]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where a shell has started us in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_command_out_of_time_is_killed(tmp_path: Path) -> None:
    guest = Here(tmp_path)
    with pytest.raises(CommandError, match="was killed"):
        guest.run(SLEEP, timeout=0.1)
    assert guest.was_killed()


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_command_is_killed_even_if_it_has_only_just_been_started(
    tmp_path: Path,
) -> None:
    guest = Here(tmp_path, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        guest.run(SLEEP)
    assert guest.was_killed()


def test_a_command_whose_output_nobody_reads_is_killed(tmp_path: Path) -> None:
    guest = Here(tmp_path)

    def broken() -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        guest.run(SLEEP, on_poll=broken)
    assert guest.was_killed()
