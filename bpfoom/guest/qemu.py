# SPDX-License-Identifier: Apache-2.0
"""The QEMU command line of a guest: machine, disks, shares, ports, kernel parameters.

It only composes argument lists. Starting them is the supervisor's work, choosing the accelerator
accel's, and what the guest makes of the ports and shares stands in ``vm/init``.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bpfoom.errors import PreflightError
from bpfoom.guest.recipe import Recipe

BINARY = "qemu-system-x86_64"

# Names inside a run directory.
AGENT_SOCKET = "agent.sock"
MONITOR_SOCKET = "monitor.sock"
SHELL_SOCKET = "shell.sock"
KERNEL_LOG = "kernel.log"
CONSOLE_LOG = "console.log"
SHARE = "share"


@dataclass(frozen=True)
class Machine:
    """What a guest is made of. ``image`` was made by ``recipe``; ``source`` is a directory of the
    host, shown at ``source_at``.

    ``stays`` is true of a guest that outlives the verb: it must see code that is edited meanwhile.
    """

    kernel: Path
    image: Path
    recipe: Recipe
    run_dir: Path
    source: Path
    source_at: str
    pycache: Path
    memory_mib: int
    cpus: int
    accelerator: str
    stays: bool = False


def binary() -> str:
    """QEMU's path. Raises PreflightError when it is not installed."""
    found = shutil.which(BINARY)
    if found is None:
        raise PreflightError(
            f"{BINARY} is not installed", hint="./run installs it; or: apt install qemu-system-x86"
        )
    return found


@cache
def version() -> str:
    """QEMU's own version line."""
    done = subprocess.run([binary(), "--version"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]


def command(machine: Machine) -> list[str]:
    """The argument list that runs the machine."""
    return [
        *base(machine.accelerator, machine.kernel, _parameters(machine)),
        *("-smp", str(machine.cpus), "-m", f"{machine.memory_mib}M"),
        *_disk(machine),
        *_consoles(machine),
        *_ports(machine),
        *_shares(machine),
    ]


def base(accelerator: str, kernel: Path, parameters: str) -> list[str]:
    """The part that every machine shares: no devices but the board's, straight into Linux."""
    machine, accel = "q35", accelerator
    if accelerator == "tcg":
        # One host thread for each guest CPU; QEMU falls back to one without it. On a busy host the
        # kernel reads the TSC's rate off the PIT, which lags, and its clock runs many times too
        # fast; the HPET does not lag.
        machine, accel = "q35,pit=off", "tcg,thread=multi"
    return [
        binary(),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", machine, "-accel", accel),
        # Without it TCG offers a CPU of 2006: no rdrand (slow seeding), no popcnt.
        *("-cpu", "max"),
        # qboot instead of SeaBIOS: it loads a kernel and nothing else.
        *("-bios", "qboot.rom"),
        # A panic or a reboot ends QEMU instead of booting again.
        "-no-reboot",
        *("-kernel", str(kernel), "-append", parameters),
    ]


def _parameters(machine: Machine) -> str:
    """The kernel command line."""
    words = [
        f"root=/dev/vda rootfstype=ext4 {'rw' if machine.recipe.writable else 'ro'}",
        # quiet: the serial port is slow, and all messages leave through /dev/kmsg anyway. A panic
        # is still printed, and ends the guest at once.
        "console=ttyS0 quiet panic=-1",
        # Markers written to /dev/kmsg by the guest must not be rate limited.
        "printk.devkmsg=on log_buf_len=4M",
        # The watchdog takes a CPU that the host did not run for a wrong clock. QEMU's TSCs agree.
        "tsc=reliable",
        # loose never looks again at what it has seen: an import costs half.
        f"bpfoom.source={machine.source_at} bpfoom.cache={'mmap' if machine.stays else 'loose'}",
        machine.recipe.parameters,
    ]
    return " ".join(words)


def _disk(machine: Machine) -> list[str]:
    # snapshot: what is written goes to a file that QEMU forgets; the image stays as it is.
    access = "snapshot=on" if machine.recipe.writable else "readonly=on"
    drive = f"file={_escape(machine.image)},if=none,id=root,format=raw,{access}"
    return ["-drive", drive, "-device", "virtio-blk-pci,drive=root"]


def _consoles(machine: Machine) -> list[str]:
    log = _escape(machine.run_dir / CONSOLE_LOG)
    return ["-chardev", f"file,id=console,path={log}", "-serial", "chardev:console"]


def _ports(machine: Machine) -> list[str]:
    """QMP, and the virtio ports: kernel log, agent, and a console for `vm shell`."""
    run = machine.run_dir
    agent, shell = _escape(run / AGENT_SOCKET), _escape(run / SHELL_SOCKET)
    return [
        *("-qmp", f"unix:{_escape(run / MONITOR_SOCKET)},server=on,wait=off"),
        *("-device", "virtio-serial-pci"),
        *("-chardev", f"file,id=kmsg,path={_escape(run / KERNEL_LOG)}"),
        *("-device", "virtserialport,chardev=kmsg,name=bpfoom.kmsg"),
        *("-chardev", f"socket,id=agent,path={agent},server=on,wait=off"),
        *("-device", "virtserialport,chardev=agent,name=bpfoom.agent"),
        *("-chardev", f"socket,id=shell,path={shell},server=on,wait=off"),
        *("-device", "virtconsole,chardev=shell"),
    ]


def _shares(machine: Machine) -> list[str]:
    return [
        *_share("bpfoom.source", machine.source, "readonly=on"),
        *_share("bpfoom.pycache", machine.pycache, "readonly=off"),
        *_share("bpfoom.run", machine.run_dir / SHARE, "readonly=off"),
    ]


def _share(tag: str, directory: Path, access: str) -> list[str]:
    name = tag.replace(".", "-")
    # security_model=none: files belong to whoever runs QEMU, root or not. multidevs=remap: a
    # checkout may have other file systems mounted inside.
    options = f"security_model=none,multidevs=remap,{access}"
    return [
        *("-fsdev", f"local,id={name},path={_escape(directory)},{options}"),
        *("-device", f"virtio-9p-pci,fsdev={name},mount_tag={tag}"),
    ]


def _escape(path: Path) -> str:
    """A path as a value in a QEMU option list: commas doubled."""
    return str(path).replace(",", ",,")
