# SPDX-License-Identifier: Apache-2.0
"""The guest whose PID 1 is systemd, and our units in it, started for real. One boot for all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from bpfoom.guest import session
from bpfoom.guest.recipe import SYSTEMD
from bpfoom.guest.running import Guest

DEADLINE_S = 600.0
AGENT, APPLY, SHOP = "bpfoom-agent.service", "bpfoom-apply.service", "shop.service"
CGROUP = f"/sys/fs/cgroup/system.slice/{SHOP}"

# A service that needs more memory than it may have as soon as it is told, and starts again.
SHOP_UNIT = """\
[Service]
Type=notify
ExecStart=/usr/bin/python3 /run/shop.py
MemoryMax=64M
MemorySwapMax=0
Restart=always
RestartSec=0
"""
SHOP_CODE = """\
import signal
from sdnotify import SystemdNotifier
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
SystemdNotifier().notify("READY=1")
signal.sigwait([signal.SIGUSR1])
b"x" * (256 << 20)
"""
CONFIG = """\
[[attach]]
unit = "shop"
policy = "largest-task"
"""
# What we ship says minutes; who waits for them has to.
HASTE = """\
[Service]
WatchdogSec=60s
RestartSec=0
"""


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    booted = session.Session(*session.prepared(recipe=SYSTEMD))
    with booted as guest:
        yield guest
    assert booted.last_splats == []
    said = [record.text for record in guest.kernel_log.records]
    assert "systemd-shutdown[1]: All filesystems unmounted." in said


@pytest.fixture(scope="module")
def shop(guest: Guest) -> Guest:
    write(guest, "/run/shop.py", SHOP_CODE)
    write(guest, f"/etc/systemd/system/{SHOP}", SHOP_UNIT)
    run(guest, "systemctl", "daemon-reload")
    run(guest, "systemctl", "start", SHOP)
    return guest


@pytest.fixture
def agent(shop: Guest) -> Guest:
    """The agent as it is shipped, started if it does not run."""
    if shop.run(["test", "-e", "/etc/bpfoom"]).exit_status:
        write(shop, "/etc/bpfoom/bpfoom.toml", CONFIG)
        write(shop, f"/etc/systemd/system/{AGENT}.d/haste.conf", HASTE)
        run(shop, "sh", "-c", "cp /bpfoom/bpfoom/units/*.service /etc/systemd/system/")
        run(shop, "systemctl", "daemon-reload")
    run(shop, "systemctl", "start", AGENT)
    return shop


def run(guest: Guest, *argv: str, stdin: str = "") -> str:
    """What a command prints that must end well, without a splat."""
    result = guest.run(argv, stdin=stdin.encode(), timeout=DEADLINE_S)
    assert (result.exit_status, result.splats) == (0, ()), result
    return result.stdout.decode()


def write(guest: Guest, path: str, text: str) -> None:
    run(guest, "sh", "-c", 'mkdir -p "${0%/*}" && cat >"$0"', path, stdin=text)


def wait_for(guest: Guest, condition: str) -> None:
    """Until a command of a shell ends well, with a deadline."""
    run(guest, "sh", "-c", f"until {condition}; do sleep 0.1; done")


def show(guest: Guest, unit: str, field: str) -> str:
    return run(guest, "systemctl", "show", "--value", f"--property={field}", unit).strip()


def cgroup_id(guest: Guest) -> int:
    return int(run(guest, "stat", "--format=%i", CGROUP))


def wait_until_attached(guest: Guest) -> None:
    wait_for(guest, f"[ -e /sys/fs/bpf/bpfoom/$(stat -c %i {CGROUP})/link ]")


def oom(guest: Guest) -> list[dict[str, Any]]:
    """Have the shop run out of memory, wait until it runs again; the decisions of its handler."""
    cgroup, before = cgroup_id(guest), show(guest, SHOP, "NRestarts")
    run(guest, "systemctl", "kill", "--signal=USR1", SHOP)
    again = f"[ $(systemctl show --value --property=NRestarts {SHOP}) -gt {before} ]"
    wait_for(guest, f"{again} && systemctl is-active --quiet {SHOP}")
    lines = run(guest, "bpfoom", "events", "--json").splitlines()
    return [d for d in map(json.loads, lines) if d["handler_cgroup_id"] == cgroup]


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


def test_who_was_started_has_attached(agent: Guest) -> None:
    # start came back at READY=1, not before.
    assert show(agent, AGENT, "ActiveState") == "active"
    assert show(agent, AGENT, "StatusText").endswith("handlers: 1 attached")
    assert f"{cgroup_id(agent)}\n" in run(agent, "ls", "/sys/fs/bpf/bpfoom")


def test_an_oom_in_a_service_is_decided_and_so_is_the_next_ones(agent: Guest) -> None:
    for _ in range(2):
        wait_until_attached(agent)
        victim = int(show(agent, SHOP, "MainPID"))
        [decision] = oom(agent)
        assert (decision["action"], decision["verdict"]) == ("kill", "HANDLED")
        assert decision["victim_pid"] == victim
    journal = run(agent, "journalctl", "--output=cat", f"--unit={SHOP}")
    assert journal.count(f"{SHOP}: Failed with result 'oom-kill'.") == 2


def test_an_agent_that_hangs_is_started_again(agent: Guest) -> None:
    before = show(agent, AGENT, "MainPID")
    run(agent, "kill", "-STOP", before)
    new = f"[ $(systemctl show --value --property=MainPID {AGENT}) != {before} ]"
    wait_for(agent, f"{new} && systemctl is-active --quiet {AGENT}")
    journal = run(agent, "journalctl", "--output=cat", f"--unit={AGENT}")
    assert f"{AGENT}: Watchdog timeout" in journal
    assert f"{AGENT}: Failed with result 'watchdog'." in journal


def test_handlers_stay_and_decide_when_the_agent_stops(agent: Guest) -> None:
    wait_until_attached(agent)
    run(agent, "systemctl", "stop", AGENT)
    assert show(agent, AGENT, "Result") == "success"
    [decision] = oom(agent)
    assert decision["verdict"] == "HANDLED"


def test_systemd_finds_little_exposed(agent: Guest) -> None:
    # 2.1 of 10 it says; options that a new systemd rates may add a little.
    for unit in (AGENT, APPLY):
        run(agent, "systemd-analyze", "security", "--no-pager", "--threshold=25", unit)


def test_apply_attaches_at_start_and_at_reload(agent: Guest) -> None:
    run(agent, "systemctl", "stop", AGENT)
    run(agent, "bpfoom", "detach", "--all")
    for verb in ("start", "reload"):
        run(agent, "systemctl", verb, APPLY)
        wait_until_attached(agent)
        run(agent, "systemctl", "restart", SHOP)
    run(agent, "systemctl", "stop", APPLY)


def test_attach_unit_follows_a_service_over_its_restarts(agent: Guest) -> None:
    run(agent, "systemctl", "stop", AGENT)
    # The agent's cache: what it has compiled is not compiled again.
    start = (
        "systemd-run",
        "--unit=follow",
        "--property=Type=notify",
        "--setenv=XDG_CACHE_HOME=/var/cache",
    )
    run(agent, *start, "bpfoom", "attach", "--unit", "shop", "--policy", "largest-task", "--follow")
    for _ in range(2):
        wait_until_attached(agent)
        run(agent, "systemctl", "restart", SHOP)
    wait_until_attached(agent)
    run(agent, "systemctl", "stop", "follow")
