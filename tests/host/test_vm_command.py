# SPDX-License-Identifier: Apache-2.0
"""``bpfoom vm`` as people type it: real guests, started from real processes."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bpfoom.guest import rootfs
from bpfoom.guest.recipe import SYSTEMD

CHECKOUT = Path(__file__).resolve().parents[2]
BPFOOM = [sys.executable, "-m", "bpfoom.cli.main"]
DEADLINE_S = 600.0
WARN = "echo WARNING >/sys/kernel/debug/provoke-crash/DIRECT"


def vm(*argv: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*BPFOOM, "vm", *argv], input=stdin, capture_output=True, timeout=DEADLINE_S
    )


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def processes_of(run_dir: Path) -> list[int]:
    """QEMU and supervisor of a guest: whoever has its run directory on the command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(run_dir).encode() in entry.read_bytes():
                found.append(int(entry.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def run_dirs() -> list[Path]:
    return list(Path(os.environ["TMPDIR"]).glob("bpfoom-guest-*"))


@pytest.fixture(autouse=True)
def own_directories(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Guests that others have started on this machine are none of ours.

    Not below pytest's own directory: a socket's path has 107 characters at most.
    """
    with tempfile.TemporaryDirectory() as directory:
        monkeypatch.setenv("TMPDIR", directory)
        monkeypatch.setenv("XDG_RUNTIME_DIR", directory)
        yield


@pytest.fixture
def started(own_directories: None) -> Iterator[None]:
    done = vm("start")
    assert done.returncode == 0, done.stderr
    yield
    assert vm("stop").returncode == 0


def test_run_passes_status_and_output_on_and_leaves_nothing() -> None:
    done = vm("run", "--stdin", "--", "sh", "-c", "cat; echo err >&2; exit 7", stdin=b"in\0put")
    assert (done.returncode, done.stdout) == (7, b"in\0put")
    assert done.stderr.endswith(b"err\n")
    assert run_dirs() == []


def test_run_as_json_names_the_accelerator() -> None:
    done = vm("run", "--json", "--memory", "700", "--", "uname", "-r")
    told = json.loads(done.stdout)
    assert (told["exit_status"], told["splats"]) == (0, [])
    assert told["stdout"].startswith("7.")
    assert told["guest"]["accelerator"] in ("kvm", "tcg")
    assert told["guest"]["memory_mib"] == 700
    assert told["guest"]["boot_seconds"] > 0


def test_a_splat_makes_it_69() -> None:
    done = vm("run", "--", "sh", "-c", WARN)
    assert done.returncode == 69
    assert b"printed 1 splat(s): WARNING: " in done.stderr
    assert b"lkdtm" in done.stderr


def test_a_lost_guest_makes_it_69_with_its_last_lines() -> None:
    done = vm("run", "--", "sh", "-c", "echo so far; echo c >/proc/sysrq-trigger")
    assert (done.returncode, done.stdout) == (69, b"so far\n")
    assert b"Kernel panic - not syncing: sysrq triggered crash" in done.stderr


def test_show_command_runs_nothing() -> None:
    done = vm("run", "--show-command", "--", "true")
    assert done.returncode == 0
    assert done.stdout.split()[0].endswith(b"qemu-system-x86_64")


def test_the_image_that_is_asked_for_decides_what_starts() -> None:
    rootfs.ensure(recipe=SYSTEMD)
    done = vm("run", "--image", "systemd", "--show-command", "--", "true")
    assert done.returncode == 0, done.stderr
    assert b"init=/usr/lib/systemd/systemd" in done.stdout


def test_showing_a_command_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done = vm("run", "--show-command", "--", "true")
    assert done.returncode == 4
    assert b"kernel is not made yet" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_guest_dies_with_the_verb_that_is_killed() -> None:
    verb = subprocess.Popen(
        [*BPFOOM, "vm", "run", "--", "sh", "-c", "echo up; sleep 1000"], stdout=subprocess.PIPE
    )
    assert verb.stdout is not None
    assert verb.stdout.readline() == b"up\n"
    [run_dir] = run_dirs()
    assert len(processes_of(run_dir)) == 2
    with verb:
        verb.send_signal(signal.SIGKILL)
    wait_until(lambda: not processes_of(run_dir) and not run_dir.exists())


@pytest.mark.usefixtures("started")
def test_commands_share_a_started_guest() -> None:
    assert vm("run", "--", "touch", "/tmp/shared").returncode == 0
    assert vm("run", "--", "ls", "/tmp/shared").stdout == b"/tmp/shared\n"


@pytest.mark.usefixtures("started")
def test_a_started_guest_reports_a_splat_once() -> None:
    assert vm("run", "--", "sh", "-c", WARN).returncode == 69
    assert vm("run", "--", "true").returncode == 0


@pytest.mark.usefixtures("started")
def test_a_command_out_of_time_is_killed_and_the_guest_goes_on() -> None:
    done = vm("run", "--timeout", "2", "--", "sh", "-c", "sleep 4321 & sleep 4321")
    assert done.returncode == 1
    assert b"did not end within 2 s and was killed" in done.stderr
    assert vm("run", "--", "pgrep", "-x", "sleep").stdout == b""


@pytest.mark.usefixtures("started")
def test_a_started_guest_goes_on_without_the_command_of_a_verb_that_is_ended() -> None:
    for number, status in ((signal.SIGINT, 1), (signal.SIGTERM, 128 + signal.SIGTERM)):
        with subprocess.Popen(
            [*BPFOOM, "vm", "run", "--", "sh", "-c", "echo up; sleep 4321 & sleep 4321"],
            stdout=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as verb:
            assert verb.stdout is not None
            assert verb.stdout.readline() == b"up\n"
            verb.send_signal(number)
            assert verb.wait(DEADLINE_S) == status
        wait_until(lambda: vm("run", "--", "pgrep", "-x", "sleep").stdout == b"")


@pytest.mark.usefixtures("started")
def test_more_output_than_the_agent_could_carry() -> None:
    done = vm("run", "--", "head", "-c", "12000000", "/dev/zero")
    assert (done.returncode, len(done.stdout)) == (0, 12_000_000)


@pytest.mark.usefixtures("started")
def test_shell_is_a_terminal_with_our_size() -> None:
    leader, follower = pty.openpty()
    subprocess.run(["stty", "rows", "41", "columns", "99"], stdin=follower, check=True)
    shell = subprocess.Popen(
        [*BPFOOM, "vm", "shell"], stdin=follower, stdout=follower, stderr=follower
    )
    os.close(follower)
    seen = b""

    def until(word: bytes) -> None:
        nonlocal seen
        while word not in seen:
            assert select.select([leader], [], [], DEADLINE_S)[0], seen
            seen += os.read(leader, 4096)

    until(b"# ")
    # The shell sees the arithmetic, the echo of what was typed does not contain the result.
    os.write(leader, b"stty size; tty; echo $((6 * 7))done\n")
    until(b"42done")
    assert b"41 99" in seen
    assert b"/dev/hvc0" in seen
    os.write(leader, b"exit 5\n")
    assert shell.wait(DEADLINE_S) == 5
    os.close(leader)


def test_stop_without_a_guest() -> None:
    assert vm("stop").returncode == 4


@pytest.mark.usefixtures("started")
def test_a_started_guest_sees_code_that_is_edited() -> None:
    # In a directory that git and the tools ignore.
    with tempfile.NamedTemporaryFile("w", suffix=".py", dir=CHECKOUT / ".venv") as module:
        seen = ("cat", f"/bpfoom/.venv/{Path(module.name).name}")
        for text in ("first\n", "second\n"):
            Path(module.name).write_text(text)
            assert vm("run", "--", *seen).stdout.decode() == text
