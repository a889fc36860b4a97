# SPDX-License-Identifier: Apache-2.0
"""What a service manager is told, and what it and people tell by signals.

Without a service manager nothing is told to anybody. Signals only wake: what they ask for is looked
at where there is time for it.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from types import FrameType
from typing import Self

_STOP = (signal.SIGINT, signal.SIGTERM)
_RELOAD = signal.SIGHUP


class Service:
    """sd_notify(3)'s side of it: readiness, what it is doing, and that it is alive."""

    def __init__(self) -> None:
        self._notifier = None
        if "NOTIFY_SOCKET" in os.environ:
            from sdnotify import SystemdNotifier  # type: ignore[import-untyped]

            self._notifier = SystemdNotifier()
        self._every = _watchdog_seconds()
        self._due = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._notifier is not None and self._notifier.socket is not None:
            self._notifier.socket.close()

    @property
    def patience(self) -> float | None:
        """How many seconds may pass until the next :meth:`alive`; None for any number."""
        return self._every

    def alive(self) -> None:
        """Tell that it goes on, if it is time."""
        if self._every is not None and time.monotonic() >= self._due:
            self._tell("WATCHDOG=1")
            # A wake-up for it that comes a little early counts.
            self._due = time.monotonic() + self._every / 2

    def ready(self, status: str) -> None:
        self._tell(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={now}")

    def status(self, text: str) -> None:
        self._tell(f"STATUS={text}")

    def stopping(self) -> None:
        self._tell("STOPPING=1")

    def _tell(self, state: str) -> None:
        if self._notifier is not None:
            self._notifier.notify(state)


class Signals:
    """Within its block: SIGTERM and SIGINT ask to stop, SIGHUP to read the file again."""

    def __init__(self) -> None:
        self.stop = False
        self.reload = False
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in (*_STOP, _RELOAD):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type] # what signal() gave
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._read)
        os.close(self._write)

    def fileno(self) -> int:
        """It can be read once a signal has come, until :meth:`heard`."""
        return self._read

    def heard(self) -> None:
        """What has come so far has been looked at."""
        with suppress(BlockingIOError):
            os.read(self._read, 4096)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == _RELOAD:
            self.reload = True
        else:
            self.stop = True


def _watchdog_seconds() -> float | None:
    """Half the time after which the service manager would give us up; None if it never does."""
    usec = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not usec.isdecimal() or not int(usec) or pid != str(os.getpid()):
        return None
    return int(usec) / 2e6
