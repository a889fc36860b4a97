# SPDX-License-Identifier: Apache-2.0
"""The kernel log, for the OOM reports in it: read from a marked point on, records parsed.

OOM reports are rate limited by the kernel, so these lines are for people; no result may depend on
them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

_KMSG = Path("/dev/kmsg")
_RECORD_MAX = 8192
_REPORT = ("invoked oom-killer", "oom-kill:", "Killed process", "oom_handler=", "oom_reaper:")


@dataclass(frozen=True)
class Message:
    """One record: its number, when (microseconds since boot) and its first line."""

    sequence: int
    time_us: int
    text: str

    @property
    def of_oom(self) -> bool:
        """Is it a line of an OOM report that says who, where or why?"""
        return any(sign in self.text for sign in _REPORT)


def parse(raw: bytes) -> Message:
    """A record of /dev/kmsg: ``priority,sequence,time,flags;text``. Raises ValueError."""
    head, _, body = raw.decode("utf-8", "replace").partition(";")
    _priority, sequence, when, *_ = head.split(",")
    return Message(int(sequence), int(when), body.split("\n", 1)[0])


class KernelLog:
    """What the kernel says from now on. Needs root, or CAP_SYSLOG."""

    def __init__(self) -> None:
        self._fd = os.open(_KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self._fd, 0, os.SEEK_END)

    def read(self) -> list[Message]:
        """The messages since the last call, less what the kernel has overwritten meanwhile."""
        found = []
        while True:
            try:
                found.append(parse(os.read(self._fd, _RECORD_MAX)))
            except BlockingIOError:
                return found
            except BrokenPipeError:  # overwritten: the next read goes on with the oldest left
                continue

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        os.close(self._fd)
