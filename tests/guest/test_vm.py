# SPDX-License-Identifier: Apache-2.0
"""What every other guest test relies on: the guest as its image, init and session make it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bpfoom.guest import pydeps

# The guest itself and what is installed in it: nothing that a checker of the kernel sees.
pytestmark = pytest.mark.flavours("plain")

CGROUPS = Path("/sys/fs/cgroup")


def oom_score_adj(pid: int | str) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def mounts() -> dict[str, list[str]]:
    """Mount point -> [file system type, options...]; the last mount on a point wins."""
    rows = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return {row[1]: [row[2], *row[3].split(",")] for row in rows}


def test_pid_1_is_tini() -> None:
    assert Path("/proc/1/comm").read_text() == "tini\n"


def test_agent_is_spared_and_commands_are_not() -> None:
    agent = subprocess.run(["pgrep", "-x", "qemu-ga"], capture_output=True, text=True, check=True)
    assert oom_score_adj(agent.stdout.strip()) == -1000
    assert oom_score_adj("self") == 0


def test_commands_run_as_root_in_the_root_cgroup() -> None:
    assert os.geteuid() == 0
    assert Path("/proc/self/cgroup").read_text() == "0::/\n"


def test_any_new_cgroup_has_the_memory_controller() -> None:
    cgroup = CGROUPS / "vm-test"
    cgroup.mkdir()
    try:
        (cgroup / "memory.max").write_text("1048576")
        assert (cgroup / "memory.max").read_text() == "1048576\n"
        assert "oom_kill 0\n" in (cgroup / "memory.events").read_text()
    finally:
        cgroup.rmdir()


@pytest.mark.parametrize("directory", ["/", "/usr", "/bpfoom"])
def test_image_and_checkout_are_read_only(directory: str) -> None:
    with pytest.raises(OSError, match="Read-only file system"):
        Path(directory, "written").write_text("")


@pytest.mark.parametrize("directory", ["/tmp", "/run", "/var/tmp", "/root", "/dev/shm"])
def test_scratch_directories_are_writable(directory: str) -> None:
    written = Path(directory, "written")
    written.write_text("")
    written.unlink()
    assert mounts()[directory][0] == "tmpfs"


@pytest.mark.parametrize(
    ("point", "kind"),
    [
        ("/sys/fs/cgroup", "cgroup2"),
        ("/sys/fs/bpf", "bpf"),
        ("/sys/kernel/tracing", "tracefs"),
        ("/sys/kernel/debug", "debugfs"),
        ("/bpfoom", "9p"),
        ("/run/bpfoom", "9p"),
    ],
)
def test_mounts(point: str, kind: str) -> None:
    assert mounts()[point][0] == kind


def test_there_is_no_network() -> None:
    assert {entry.name for entry in Path("/sys/class/net").iterdir()} <= {"lo"}


def test_bytecode_of_the_checkout_outlives_the_guest() -> None:
    cached = importlib.util.cache_from_source(pydeps.__file__)
    assert cached == "/pycache/bpfoom/bpfoom/guest/pydeps.cpython-313.pyc"
    assert Path(cached).exists()
    assert mounts()["/pycache/bpfoom"][0] == "9p"


def test_packages_have_the_versions_of_the_lock() -> None:
    lock = pydeps.guest_requirements(pydeps.lock_file().read_text())
    wanted = re.findall(r"^([\w.-]+)==(\S+)(?!.*(?:win32|'nt'))", lock, re.MULTILINE)
    assert len(wanted) > 10
    assert {name: importlib.metadata.version(name) for name, _ in wanted} == dict(wanted)


def test_bpfoom_is_in_the_path() -> None:
    said = subprocess.run(["bpfoom", "--version"], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("bpfoom, version ")


def test_bcc_is_the_distributions() -> None:
    code = "import bcc; print(bcc.__file__)"
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    assert said.stdout == "/usr/lib/python3/dist-packages/bcc/__init__.py\n"


@pytest.mark.guest_memory(512)
def test_a_marker_chooses_the_guests_size() -> None:
    total = re.search(r"MemTotal: *(\d+) kB", Path("/proc/meminfo").read_text())
    assert total is not None
    assert 300 < int(total[1]) / 1024 < 512


@pytest.mark.splat(r"^WARNING: .*lkdtm")
def test_a_planted_warning_is_seen() -> None:
    Path("/sys/kernel/debug/provoke-crash/DIRECT").write_text("WARNING")


@pytest.mark.loses_guest
def test_a_panic_loses_the_guest() -> None:
    Path("/proc/sysrq-trigger").write_text("c")
