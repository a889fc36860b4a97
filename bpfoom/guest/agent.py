# SPDX-License-Identifier: Apache-2.0
"""Talk to a guest's two control sockets: QEMU's monitor (QMP) and the agent inside the guest.

Both speak QMP's messages, so one client (qemu.qmp) serves both. A socket takes one client at a
time: each exchange connects, asks and leaves, under a file lock, so that several commands can use
one guest. What is asked is the session's affair.
"""

from __future__ import annotations

import asyncio
import fcntl
from pathlib import Path
from typing import Any

from bpfoom.errors import CommandError, InfrastructureError

_CONNECT_S = 30.0


class NoAnswerError(InfrastructureError):
    """The other end is gone, or silent for longer than was allowed."""


class Channel:
    """One control socket. ``greets`` is true of the monitor, false of the agent."""

    def __init__(self, socket: Path, *, greets: bool) -> None:
        self.socket = socket
        self.greets = greets

    def call(self, command: str, arguments: dict[str, Any] | None = None, *, timeout: float) -> Any:
        """Ask one command and return its answer.

        Raises CommandError with the other end's message when it refuses, NoAnswerError when it
        cannot be reached or says nothing for ``timeout`` seconds.
        """
        with open(self.socket.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return asyncio.run(self._exchange(command, arguments, timeout))

    async def _exchange(
        self, command: str, arguments: dict[str, Any] | None, seconds: float
    ) -> Any:
        from qemu.qmp import ExecuteError, QMPClient, QMPError

        client = QMPClient("bpfoom")
        client.logger.disabled = True
        client.await_greeting = client.negotiate = self.greets
        try:
            await asyncio.wait_for(client.connect(str(self.socket)), _CONNECT_S)
            try:
                return await asyncio.wait_for(client.execute(command, arguments), seconds)
            finally:
                await client.disconnect()
        except ExecuteError as error:
            raise CommandError(f"{command}: {error}", command=command) from error
        except (QMPError, OSError, EOFError, TimeoutError) as error:
            raise NoAnswerError(
                f"no answer to {command} on {self.socket.name}: {error or type(error).__name__}",
                command=command,
            ) from error
