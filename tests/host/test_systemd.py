# SPDX-License-Identifier: Apache-2.0
"""The guest whose PID 1 is systemd: it starts whole, shuts services in, powers off by itself. One
boot for all."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from bpfoom.guest import session
from bpfoom.guest.recipe import SYSTEMD
from bpfoom.guest.running import Guest

DEADLINE_S = 600.0


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    booted = session.Session(*session.prepared(recipe=SYSTEMD))
    with booted as guest:
        yield guest
    assert booted.last_splats == []
    said = [record.text for record in guest.kernel_log.records]
    assert "systemd-shutdown[1]: All filesystems unmounted." in said


def run(guest: Guest, *argv: str, stdin: str = "") -> str:
    """What a command prints that must end well, without a splat."""
    result = guest.run(argv, stdin=stdin.encode(), timeout=DEADLINE_S)
    assert (result.exit_status, result.splats) == (0, ()), result
    return result.stdout.decode()


def test_nothing_fails_to_start(guest: Guest) -> None:
    assert run(guest, "systemctl", "is-system-running", "--wait") == "running\n"
    assert run(guest, "systemctl", "--failed", "--no-legend") == ""


def test_systemd_misses_nothing(guest: Guest) -> None:
    journal = ("journalctl", "--boot", "--priority=warning", "--output=cat", "--quiet")
    assert run(guest, *journal, "_PID=1") == ""


def test_the_loopback_interface_is_up(guest: Guest) -> None:
    [interface] = json.loads(run(guest, "ip", "-json", "address"))
    assert interface["addr_info"][0]["local"] == "127.0.0.1"
    assert "UP" in interface["flags"]


# What a kernel cannot do, systemd leaves out and goes on.
@pytest.mark.parametrize(
    ("setting", "look"),
    [
        ("SystemCallFilter=@system-service", "grep ^Seccomp: /proc/self/status"),
        ("ProtectHostname=yes", "readlink /proc/self/ns/uts"),
        ("PrivateNetwork=yes", "readlink /proc/self/ns/net"),
    ],
)
def test_a_service_can_be_shut_in(guest: Guest, setting: str, look: str) -> None:
    argv = look.split()
    properties = ("Type=oneshot", "StandardOutput=truncate:/run/inside", setting)
    run(guest, "systemd-run", *(f"--property={each}" for each in properties), *argv)
    assert run(guest, "cat", "/run/inside") not in ("", run(guest, *argv))
