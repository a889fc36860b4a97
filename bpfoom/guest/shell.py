# SPDX-License-Identifier: Apache-2.0
"""An interactive shell in a guest, on the caller's terminal.

socat carries bytes between the terminal and the guest's virtio console; the window's size is handed
over by the agent, at the start and whenever it changes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from bpfoom.errors import PreflightError, UsageError
from bpfoom.guest import qemu
from bpfoom.guest.running import Guest

# Ctrl-] leaves, as in telnet: the way out when the shell inside hangs.
_ESCAPE = 0x1D


class _Left(Exception):
    """The caller pressed the escape key."""


class _Window:
    """The size of the caller's terminal, and whether the guest knows it."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._stale = False

    def changed(self, number: int, frame: FrameType | None) -> None:
        """Signal handler. It may interrupt an exchange with the agent, so it only takes note."""
        self._stale = True

    def hand_over(self) -> None:
        if self._stale:
            self._stale = False
            size = ["rows", str(_size().lines), "columns", str(_size().columns)]
            arguments = ["-F", "/dev/hvc0", *size]
            self._guest.ask(self._guest.agent, "guest-exec", path="/usr/bin/stty", arg=arguments)


def interact(guest: Guest) -> int:
    """Give the caller's terminal to a shell in the guest; the shell's exit status.

    Raises UsageError without a terminal, LostVMError when the guest vanishes.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "vm shell needs a terminal", hint="for a single command use: bpfoom vm run -- CMD"
        )
    window = _Window(guest)
    with _carrier(guest) as socat, _on_resize(window):

        def poll() -> None:
            window.hand_over()
            if socat.poll() is not None:
                raise _Left

        argv = ["/usr/local/sbin/bpfoom-shell", str(_size().lines), str(_size().columns)]
        try:
            result = guest.run(argv, env={"TERM": os.environ.get("TERM", "vt100")}, on_poll=poll)
        except _Left:
            guest.ask(guest.agent, "guest-exec", path="/usr/bin/pkill", arg=["-HUP", "-t", "hvc0"])
            return 0
        # The last output may still be on its way.
        time.sleep(0.1)
        return result.exit_status


def _size() -> os.terminal_size:
    return os.get_terminal_size(sys.stdout.fileno())


@contextmanager
def _carrier(guest: Guest) -> Iterator[subprocess.Popen[bytes]]:
    """socat between terminal and console, the terminal as it was afterwards."""
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    argv = [
        "socat",
        f"STDIO,raw,echo=0,escape=0x{_ESCAPE:02x}",
        f"UNIX-CONNECT:{guest.run_dir / qemu.SHELL_SOCKET}",
    ]
    try:
        socat = subprocess.Popen(argv)
    except FileNotFoundError as error:
        raise PreflightError(
            "socat is not installed", hint="./run installs it; or: apt install socat"
        ) from error
    try:
        yield socat
    finally:
        socat.terminate()
        socat.wait()
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


@contextmanager
def _on_resize(window: _Window) -> Iterator[None]:
    before = signal.signal(signal.SIGWINCH, window.changed)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)
