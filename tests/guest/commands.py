# SPDX-License-Identifier: Apache-2.0
"""Command lines that run beside the test, as processes that can be signalled and killed.

They are forks of this one: what a command does is there at once, without the seconds that Python
needs to start and import.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from typing import NoReturn, Self

from bpfoom.cli import main
from tests.guest.byhand import DEADLINE_S, wait_for


class Running:
    """A command line under way. At the end of the block it is killed, if it is still there."""

    def __init__(self, *args: str) -> None:
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        self._status: int | None = None
        self.pid = os.fork()
        if not self.pid:
            self._run(args)

    def _run(self, args: tuple[str, ...]) -> NoReturn:
        code = 2
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            os.dup2(self._out.fileno(), 1)
            os.dup2(self._err.fileno(), 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            try:
                main.main(list(args))
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._out.close()
        self._err.close()

    def out(self) -> str:
        """What it has said so far."""
        return self._read(self._out.fileno())

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> int:
        """SIGKILL, unless it is over; how it ended."""
        if not self._over():
            os.kill(self.pid, signal.SIGKILL)
        return self._end()[0]

    def wait(self) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        wait_for(self._over, "a command to end", 2 * DEADLINE_S)
        return self._end()

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something that it does; it must not end before."""
        wait_for(lambda: condition() or self._over(), what, 2 * DEADLINE_S)
        assert condition(), self._end()

    def _over(self) -> bool:
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status is not None

    def _end(self) -> tuple[int, str, str]:
        while not self._over():
            time.sleep(0.001)
        assert self._status is not None
        return self._status, self.out(), self._read(self._err.fileno())

    @staticmethod
    def _read(descriptor: int) -> str:
        return os.pread(descriptor, 1 << 20, 0).decode()
