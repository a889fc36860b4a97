# SPDX-License-Identifier: Apache-2.0
"""A running guest, reached through its run directory: commands, kernel messages, power-off.

Whoever booted it (a session of this process, or `bpfoom vm start` long ago) makes no difference
here. Booting is the session's affair, the control sockets the agent's, splats the console's.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bpfoom import resources
from bpfoom.errors import CommandError, LostVMError
from bpfoom.guest import console, qemu, supervisor
from bpfoom.guest.agent import Channel, NoAnswerError

OnOutput = Callable[[str, bytes], None]
"""Called with ``"stdout"`` or ``"stderr"`` and the bytes that came."""

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "PYTHONPATH": "/bpfoom",
    "PYTHONPYCACHEPREFIX": "/pycache",
}

_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
_POLL_S = 0.02
_CALL_S = 60.0
# How a command is doing is asked while it takes the guest's memory away: on a busy host the agent
# was seen to say nothing for more than a minute.
_STATUS_S = 600.0
_STATUS_CHECK_S = 10.0
_LOG_CATCH_UP_S = 60.0
_POWER_OFF_S = 60.0
_EXIT_S = 2.0
_LAST_RECORDS = 20
# A panic's report takes forty.
_LAST_LINES = 60
_INFO = "guest.json"
ALIVE_LOCK = "alive.lock"


@dataclass(frozen=True)
class Info:
    """Facts of a running guest. ``boot_seconds``: from QEMU's start to the agent's first answer."""

    accelerator: str
    boot_seconds: float
    memory_mib: int
    cpus: int
    kernel: str
    image: str


@dataclass(frozen=True)
class CommandResult:
    """What a guest command did. ``exit_status`` is 128 + n after signal n.

    ``splats`` are those the kernel printed until the command ended, since the last command.
    """

    argv: tuple[str, ...]
    exit_status: int
    stdout: bytes
    stderr: bytes
    seconds: float
    splats: tuple[console.Splat, ...]


class Guest:
    """A running guest, reached through its run directory."""

    def __init__(self, run_dir: Path, *, from_end: bool = True) -> None:
        self.run_dir = run_dir
        self.agent = Channel(run_dir / qemu.AGENT_SOCKET, greets=False)
        self.monitor = Channel(run_dir / qemu.MONITOR_SOCKET, greets=True)
        self.kernel_log = console.KernelLog(run_dir / qemu.KERNEL_LOG, from_end=from_end)
        self._exemptions = console.exemptions(resources.room("vm") / "splat-allow.toml")
        self._checked = 0
        self._silent = False

    @property
    def info(self) -> Info:
        """What is known of the guest since it booted."""
        return Info(**json.loads((self.run_dir / _INFO).read_text()))

    def record(self, info: Info) -> None:
        """Leave the facts of a boot for everybody who reaches the guest later."""
        (self.run_dir / _INFO).write_text(json.dumps(asdict(info)))

    def alive(self) -> bool:
        """Whether QEMU runs: its supervisor holds a lock as long as it does."""
        try:
            with open(self.run_dir / ALIVE_LOCK) as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the guest from its idle limit while the block runs."""
        with open(self.run_dir / supervisor.USE_LOCK, "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            try:
                yield
            finally:
                os.utime(lock.fileno())

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float | None = None,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str = "/bpfoom",
        on_output: OnOutput | None = None,
        on_poll: Callable[[], None] | None = None,
    ) -> CommandResult:
        """Run a command to its end, as root, in the root cgroup, at oom_score_adj 0.

        ``env`` is added to :data:`ENVIRONMENT`. A command that ends badly is a result; one that
        exceeds ``timeout`` seconds raises CommandError. It is killed with its whole session then,
        and whenever this is left before it ends: for Ctrl-C, or as nobody reads its output.
        ``on_poll`` is called again and again while the command runs.
        Raises LostVMError when the guest is gone or no longer answers.
        """
        job = _Job(self.run_dir / qemu.SHARE / f"command-{uuid.uuid4().hex[:12]}", timeout)
        job.directory.mkdir()
        (job.directory / "stdin").write_bytes(stdin)
        tails = [_Tail(job.directory / name, on_output) for name in ("stdout", "stderr")]
        with self.in_use():
            chores = [*(tail.pump for tail in tails), on_poll or _nothing]
            status = self._carry_out(job, argv, {**ENVIRONMENT, **(env or {})}, cwd, chores)
            seconds = job.elapsed()
            rung = job.rung()
            splats = self.splats_until(f"bpfoom: end of {job.directory.name}") if rung else []
        stdout, stderr = (tail.path.read_bytes() for tail in tails)
        shutil.rmtree(job.directory)
        return CommandResult(tuple(argv), status, stdout, stderr, seconds, tuple(splats))

    def new_splats(self) -> list[console.Splat]:
        """The splats since they were last asked for (for a Session: since boot)."""
        self.kernel_log.poll()
        return self._splats_before(len(self.kernel_log.records))

    def splats_until(self, marker: str) -> list[console.Splat]:
        """The splats since they were last asked for, up to a line written to /dev/kmsg.

        Waits for the line, so that none is missed. LostVMError if it does not come.
        """
        at = self._checked
        deadline = time.monotonic() + _LOG_CATCH_UP_S
        while True:
            alive = self.alive()
            self.kernel_log.poll()
            records = self.kernel_log.records
            while at < len(records):
                at += 1
                if records[at - 1].text == marker:
                    return self._splats_before(at)
            if not alive or time.monotonic() > deadline:
                raise self.lost("its kernel log stopped")
            time.sleep(_POLL_S)

    def _splats_before(self, end: int) -> list[console.Splat]:
        fresh = self.kernel_log.records[self._checked : end]
        self._checked = end
        return console.find_splats(fresh, self._exemptions)

    def ask(self, channel: Channel, command: str, timeout: float = _CALL_S, **values: Any) -> Any:
        """One exchange with agent or monitor; a missing answer is a LostVMError."""
        arguments = {name.replace("_", "-"): value for name, value in values.items()}
        try:
            return channel.call(command, arguments, timeout=timeout)
        except NoAnswerError as error:
            raise self.lost(error.message) from error

    def lost(self, what: str) -> LostVMError:
        """The error for a guest that is gone or silent, with its last lines."""
        # A QEMU that is just ending tells how; one that hangs will not be asked again.
        self._await_end(_EXIT_S)
        self._silent = True
        ended = self.run_dir / supervisor.EXIT
        exit_status = ended.read_text() if ended.exists() else "still running"
        return LostVMError(
            f"the guest was lost: {what} (QEMU: {exit_status})",
            detail="\n".join(self.last_lines()),
            hint="the lines above are the last that the guest's kernel and QEMU said",
            qemu=exit_status,
        )

    def last_lines(self) -> list[str]:
        """The last kernel records, then the console (a panic is only there), then QEMU's words."""
        self.kernel_log.poll()
        lines = [str(record) for record in self.kernel_log.records[-_LAST_RECORDS:]]
        for name in (qemu.CONSOLE_LOG, supervisor.QEMU_LOG):
            path = self.run_dir / name
            text = path.read_text(errors="replace") if path.exists() else ""
            lines += [line.rstrip() for line in text.splitlines() if line.strip()][-_LAST_LINES:]
        return lines

    def power_off(self) -> None:
        """Power the guest off; if it will not, or no longer answers, end QEMU."""
        ways = [(self.agent, "guest-shutdown"), (self.monitor, "quit")]
        for channel, command in ways[1:] if self._silent else ways:
            if self.alive():
                # A power-off that works is not answered: the channel just closes.
                with suppress(NoAnswerError, CommandError):
                    channel.call(command, timeout=_POWER_OFF_S)
                self._await_end(_POWER_OFF_S)
        if self.alive():
            os.kill(int((self.run_dir / supervisor.PID).read_text()), signal.SIGTERM)
            self._await_end(_POWER_OFF_S)

    def _await_end(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.alive() and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def _carry_out(
        self,
        job: _Job,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str,
        chores: Sequence[Callable[[], None]],
    ) -> int:
        """Start the command and wait for its end; its status. Killed if that is not waited for."""
        # One that comes before the pid is known would leave the command running.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
        try:
            pid = self._launch(job, argv, env, cwd)
            try:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                return self._wait(job, pid, chores)
            except LostVMError:
                raise
            except BaseException:
                self.kill(pid)
                raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _launch(self, job: _Job, argv: Sequence[str], env: Mapping[str, str], cwd: str) -> int:
        # setsid: whatever a command that runs out of time has started can be found and killed.
        answer = self.ask(
            self.agent,
            "guest-exec",
            path="/usr/bin/setsid",
            arg=["/usr/local/sbin/bpfoom-exec", job.directory.name, cwd, *argv],
            env=[f"{key}={value}" for key, value in env.items()],
        )
        return int(answer["pid"])

    def _wait(self, job: _Job, pid: int, chores: Sequence[Callable[[], None]]) -> int:
        """Do the chores until the command ends, and once more after; its exit status."""
        check = time.monotonic() + _STATUS_CHECK_S
        while True:
            rung = job.rung()
            for chore in chores:
                chore()
            if rung or time.monotonic() > check:
                # The agent's word is the truth; the doorbell only saves asking all the time.
                status = self._status(pid)
                if status is not None:
                    return status
                check = time.monotonic() + _STATUS_CHECK_S
            elif not self.alive():
                raise self.lost("it ended while a command ran")
            if job.timeout is not None and job.elapsed() > job.timeout:
                raise CommandError(
                    f"the guest command did not end within {job.timeout:g} s and was killed",
                    detail=job.output(),
                    timeout=job.timeout,
                )
            time.sleep(_POLL_S)

    def _status(self, pid: int) -> int | None:
        answer = self.ask(self.agent, "guest-exec-status", timeout=_STATUS_S, pid=pid)
        if not answer["exited"]:
            return None
        return int(answer["exitcode"]) if "exitcode" in answer else 128 + int(answer["signal"])

    def kill(self, pid: int) -> None:
        """Kill every process of the session that ``pid`` leads."""
        self.ask(self.agent, "guest-exec", path="/usr/bin/pkill", arg=["-KILL", "-s", str(pid)])


def _nothing() -> None:
    pass


class _Job:
    """A command under way: its directory on the share, and how long it has and had."""

    def __init__(self, directory: Path, timeout: float | None) -> None:
        self.directory = directory
        self.timeout = timeout
        self._began = time.monotonic()

    def elapsed(self) -> float:
        return time.monotonic() - self._began

    def rung(self) -> bool:
        """Whether the command's wrapper says that it ended."""
        return (self.directory / "done").exists()

    def output(self) -> str:
        """What the command said so far, stdout before stderr."""
        both = b"".join((self.directory / name).read_bytes() for name in ("stdout", "stderr"))
        return both.decode("utf-8", "replace")


class _Tail:
    """A file of the share that grows: hands on what is new. Its name is the stream's."""

    def __init__(self, path: Path, on_output: OnOutput | None) -> None:
        self.path = path
        path.touch()
        self._on_output = on_output
        self._offset = 0

    def pump(self) -> None:
        if self._on_output is None:
            return
        with open(self.path, "rb") as handle:
            # A command that opens /dev/stderr anew truncates it, as it would with any file.
            self._offset = min(self._offset, os.fstat(handle.fileno()).st_size)
            handle.seek(self._offset)
            data = handle.read()
        if data:
            self._offset += len(data)
            self._on_output(self.path.name, data)
