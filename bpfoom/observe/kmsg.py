# SPDX-License-Identifier: Apache-2.0
"""Kernel log lines from ``/dev/kmsg``, from a moment on. For people: reports are rate limited,
so no result may depend on them."""

from __future__ import annotations

import os
from typing import Self

_RECORD = 8192  # no record is longer (CONSOLE_EXT_LOG_MAX)
_OOM_WORDS = ("oom-kill:", "oom_handler=", "Killed process", "is going to kill", "oom_reaper:")


class KernelLog:
    """``with KernelLog() as log:`` ... ``log.lines()`` are those printed since entering."""

    def __enter__(self) -> Self:
        self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self._fd, 0, os.SEEK_END)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def lines(self) -> list[str]:
        """The messages since the last call, without prefix and continuation lines."""
        found: list[str] = []
        while True:
            try:
                raw = os.read(self._fd, _RECORD)
            except BlockingIOError:
                return found
            except BrokenPipeError:
                continue  # overwritten before we read it; the next read goes on with the oldest
            message = raw.decode("utf-8", "replace").partition(";")[2]
            found.append(message.split("\n", 1)[0])


def about_oom(lines: list[str]) -> list[str]:
    """The lines that say who was chosen and who was killed."""
    return [line for line in lines if any(word in line for word in _OOM_WORDS)]
