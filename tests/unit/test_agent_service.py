# SPDX-License-Identifier: Apache-2.0
"""What a service manager hears, by a real socket, and how signals wake."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfoom.agent.service import Service, Signals

DEADLINE_S = 30.0


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(path)
        made.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        yield made


def heard(manager: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(manager.recv(4096).decode())
        except BlockingIOError:
            return found


def test_what_is_told(manager: socket.socket) -> None:
    with Service() as service:
        service.ready("3 handlers")
        service.status("4 handlers")
        service.reloading()
        service.stopping()
        service.alive()
        assert service.patience is None
    first, second, third, last = heard(manager)
    assert (first, second) == ("READY=1\nSTATUS=3 handlers", "STATUS=4 handlers")
    reloading, _, stamp = third.partition("\n")
    assert reloading == "RELOADING=1" and stamp.startswith("MONOTONIC_USEC=")
    assert last == "STOPPING=1"


def test_the_watchdog_hears_twice_in_its_time(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "3600000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    with Service() as service:
        assert service.patience == 1800.0
        service.alive()
        service.alive()  # not every time that there would be an opportunity
    assert heard(manager) == ["WATCHDOG=1"]


@pytest.mark.usefixtures("manager")
def test_a_watchdog_without_a_time_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "0")
    with Service() as service:
        assert service.patience is None


@pytest.mark.usefixtures("manager")
def test_somebody_elses_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "3600000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
    with Service() as service:
        assert service.patience is None


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    with Service() as service:
        service.ready("")
        service.alive()


def test_signals_wake_and_are_put_back() -> None:
    before = signal.getsignal(signal.SIGHUP)
    with Signals() as signals:
        signals.heard()
        os.kill(os.getpid(), signal.SIGHUP)
        assert select.select([signals], [], [], DEADLINE_S)[0]
        assert (signals.reload, signals.stop) == (True, False)
        signals.heard()
        assert not select.select([signals], [], [], 0)[0]
        os.kill(os.getpid(), signal.SIGTERM)
        assert select.select([signals], [], [], DEADLINE_S)[0] and signals.stop
    assert signal.getsignal(signal.SIGHUP) == before
