# SPDX-License-Identifier: Apache-2.0
"""Boot a guest for a while: a context manager from QEMU's start to power-off.

``with Session(*prepared()) as guest: guest.run(["uname", "-r"])``. What can be done with the
guest stands in running.py; the command line is qemu.py's, the process tree the supervisor's, and
building what is booted belongs to kernel.py and rootfs.py. A guest that stays (`bpfoom vm start`)
is a session that was detached; the one there is can be found again by :func:`started`.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

from bpfoom import cache, resources
from bpfoom.errors import NotThereError, PermissionDeniedError
from bpfoom.guest import accel, kernel, preflight, process, qemu, rootfs, supervisor
from bpfoom.guest.agent import NoAnswerError
from bpfoom.guest.console import Splat
from bpfoom.guest.flavour import PLAIN, Flavour
from bpfoom.guest.recipe import PLAIN as PLAIN_IMAGE
from bpfoom.guest.recipe import Recipe
from bpfoom.guest.running import ALIVE_LOCK, Guest, Info

CPUS = 2
IDLE_SECONDS = 30 * 60.0

# TCG on a busy machine is slow, and a debug kernel ten times slower still.
_BOOT_S = 600.0
_RETRY_S = 0.02
_STARTED = "started.json"


def prepared(
    progress: process.Progress = process.SILENT,
    flavour: Flavour = PLAIN,
    recipe: Recipe = PLAIN_IMAGE,
) -> tuple[Path, rootfs.Image]:
    """Kernel of a flavour and root file system to boot, built now where they are missing.

    A kernel that was built is taken as it is: whether the mirror has a newer source is a matter of
    `bpfoom kernel build`. Raises PreflightError, BuildError, KernelPatchError.
    """
    built, image = _made(flavour, recipe)
    if not built or not image:
        preflight.check()
    built = built or kernel.build(progress=progress, flavour=flavour)
    return built.image, image or rootfs.ensure(progress, recipe)


def made(flavour: Flavour = PLAIN, recipe: Recipe = PLAIN_IMAGE) -> tuple[Path, rootfs.Image]:
    """As :func:`prepared`, but nothing is built. Raises NotThereError where one is missing."""
    built, image = _made(flavour, recipe)
    if not built or not image:
        what = "root file system" if built else "kernel"
        raise NotThereError(f"the guest's {what} is not made yet", hint="bpfoom vm run -- true")
    return built.image, image


def _made(flavour: Flavour, recipe: Recipe) -> tuple[kernel.Kernel | None, rootfs.Image | None]:
    plan = kernel.known_plan(flavour=flavour)
    return plan.find() if plan else None, rootfs.find(recipe)


class Session:
    """A guest that lives as long as the ``with`` block, or until :meth:`close`.

    ``memory_mib`` and ``cpus`` are the guest's size; ``accelerator`` as :func:`accel.choose` says.
    A guest that ``stays`` is meant to be detached, and sees code that is edited meanwhile.
    Entering raises LostVMError when the guest does not come up. ``last_splats`` are those that the
    kernel printed after the last command, known once the session is closed.
    """

    def __init__(
        self,
        kernel_image: Path,
        root_image: rootfs.Image,
        *,
        memory_mib: int = PLAIN.memory_mib,
        cpus: int = CPUS,
        accelerator: str = "auto",
        stays: bool = False,
    ) -> None:
        self.kernel = kernel_image
        self.image = root_image
        self.memory_mib = memory_mib
        self.cpus = cpus
        self.accelerator = accelerator
        self.stays = stays
        self.last_splats: list[Splat] = []
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._guest: Guest | None = None

    def __enter__(self) -> Guest:
        return self.boot()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def machine(self, run_dir: Path) -> qemu.Machine:
        """What is booted with its files in ``run_dir``; may try KVM first."""
        source = resources.checkout()
        package = Path(__file__).resolve().parent.parent
        shown = source or package
        pycache = cache.path_of("pycache", cache.key_of(str(shown)))
        return qemu.Machine(
            kernel=self.kernel,
            image=self.image.path,
            recipe=self.image.recipe,
            run_dir=run_dir,
            source=shown,
            # An installed package is shown alone: its directory has the whole site-packages beside.
            source_at="/bpfoom" if source else "/bpfoom/bpfoom",
            pycache=pycache,
            memory_mib=self.memory_mib,
            cpus=self.cpus,
            accelerator=accel.choose(self.kernel, self.accelerator),
            stays=self.stays,
        )

    def command(self) -> list[str]:
        """QEMU's command line, with a run directory that is not made."""
        return qemu.command(self.machine(Path(tempfile.gettempdir()) / "bpfoom-guest"))

    def boot(self) -> Guest:
        """Start QEMU and wait for the agent's first answer."""
        run_dir = Path(tempfile.mkdtemp(prefix="bpfoom-guest-"))
        try:
            machine = self.machine(run_dir)
            (run_dir / qemu.SHARE).mkdir()
            (run_dir / supervisor.USE_LOCK).touch()
            machine.pycache.mkdir(parents=True, exist_ok=True)
            self._supervise(run_dir, qemu.command(machine))
            self._guest = Guest(run_dir, from_end=False)
            self._guest.record(self._await_agent(self._guest, machine))
            return self._guest
        except BaseException:
            self._end(run_dir)
            raise

    def detach(self) -> None:
        """Leave the guest running, until it is powered off or nobody used it for a while."""
        assert self._supervisor is not None and self._supervisor.stdin is not None
        self._supervisor.stdin.write(supervisor.DETACH)
        self._supervisor.stdin.close()
        self._supervisor = self._guest = None

    def close(self) -> None:
        """Power the guest off and remove what it left on the host."""
        if self._guest is None:
            return
        guest, self._guest = self._guest, None
        try:
            guest.power_off()
            self.last_splats = guest.new_splats()
        finally:
            self._end(guest.run_dir)

    def _supervise(self, run_dir: Path, argv: list[str]) -> None:
        """Start the supervisor, holding the lock that says the guest is alive."""
        order = {"argv": argv, "idle_seconds": IDLE_SECONDS}
        (run_dir / supervisor.ORDER).write_text(json.dumps(order))
        with open(run_dir / ALIVE_LOCK, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._supervisor = subprocess.Popen(
                [sys.executable, "-I", supervisor.__file__, str(run_dir), str(lock.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[lock.fileno()],
                bufsize=0,
                # Ctrl-C is for us: we power the guest off, the terminal must not kill it first.
                start_new_session=True,
            )

    def _await_agent(self, guest: Guest, machine: qemu.Machine) -> Info:
        """Wait for the agent; the facts of the boot."""
        began = time.monotonic()
        while True:
            try:
                guest.agent.call("guest-ping", timeout=_BOOT_S)
                break
            except NoAnswerError as error:
                if not guest.alive() or time.monotonic() - began > _BOOT_S:
                    raise guest.lost("it did not come up") from error
                # QEMU has not made its sockets yet.
                time.sleep(_RETRY_S)
        seconds = time.monotonic() - began
        # QEMU's word, not what we asked for.
        on_kvm = guest.ask(guest.monitor, "query-kvm")["enabled"]
        return Info(
            accelerator="kvm" if on_kvm else "tcg",
            boot_seconds=seconds,
            memory_mib=machine.memory_mib,
            cpus=machine.cpus,
            kernel=str(machine.kernel),
            image=str(machine.image),
        )

    def _end(self, run_dir: Path) -> None:
        """Let go of the supervisor, which ends a QEMU that still runs, and clean up."""
        if self._supervisor is not None:
            assert self._supervisor.stdin is not None
            self._supervisor.stdin.close()
            self._supervisor.wait()
            self._supervisor = None
        shutil.rmtree(run_dir, ignore_errors=True)


def started() -> Guest | None:
    """The guest that `bpfoom vm start` left running, if it still does."""
    try:
        run_dir = Path(json.loads((_state_dir() / _STARTED).read_text())["run_dir"])
    except FileNotFoundError:
        return None
    if not (run_dir / ALIVE_LOCK).exists():
        return None
    guest = Guest(run_dir)
    return guest if guest.alive() else None


def keep(guest: Guest) -> None:
    """Make ``guest`` the one that :func:`started` finds."""
    (_state_dir() / _STARTED).write_text(json.dumps({"run_dir": str(guest.run_dir)}))


def _state_dir() -> Path:
    """A directory of this user that does not survive the machine's own boot."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base:
        directory = Path(base) / "bpfoom"
    else:
        directory = Path(tempfile.gettempdir()) / f"bpfoom-{os.getuid()}"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.stat().st_uid != os.getuid():
        raise PermissionDeniedError(
            f"{directory} belongs to somebody else", hint="set XDG_RUNTIME_DIR", path=str(directory)
        )
    return directory
