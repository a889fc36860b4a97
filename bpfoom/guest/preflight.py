# SPDX-License-Identifier: Apache-2.0
"""Find out before the long work whether this machine can do it, and name all it lacks at once.

Checks, no repairs: ``./run`` installs packages, people decide about disks, sudo and containers.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bpfoom import cache
from bpfoom.errors import InfrastructureError, PreflightError
from bpfoom.guest import mirror, process

# Debian releases that this is tested on: VERSION_ID of os-release.
RELEASES = {"12": "bookworm", "13": "trixie"}
# Measured: source 1.7 GB, build tree 1.6 GB, build chroot 0.8 GB, guest image 1.3 GB, and room.
DISK_BYTES = 7 << 30
# Measured: linking vmlinux and making its BTF take 2 GB.
MEMORY_BYTES = 3 << 30

# Program -> the Debian package that has it.
BUILD_TOOLS = {
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "git": "git",
    "mmdebstrap": "mmdebstrap",
    "mount": "mount",
    "tar": "tar",
    "unshare": "util-linux",
    "xz": "xz-utils",
}
GUEST_TOOLS = {
    **BUILD_TOOLS,
    "mke2fs": "e2fsprogs",
    "qemu-system-x86_64": "qemu-system-x86",
    "socat": "socat",
}

_TRY_MOUNT = 'mount --make-rprivate / 2>/dev/null || :; mount -t tmpfs none "$1" && umount "$1"'


@dataclass(frozen=True)
class Finding:
    """One thing that is missing, and what to do about it."""

    what: str
    remedy: str


def check(tools: dict[str, str] = GUEST_TOOLS) -> None:
    """Raise PreflightError with every finding; return when there is none."""
    found = findings(tools)
    if not found:
        return
    raise PreflightError(
        "this machine cannot build and run the guest yet",
        detail="\n".join(f"- {finding.what}: {finding.remedy}" for finding in found),
        hint="put these right, then run the same command again",
        findings=[asdict(finding) for finding in found],
    )


def findings(tools: dict[str, str] = GUEST_TOOLS) -> list[Finding]:
    """Everything that is missing here."""
    found = [
        *_machine(platform.machine()),
        *_release(_os_release()),
        *_memory(_total_memory()),
        *_disk(cache.root()),
        *_tools(tools),
    ]
    rights = list(_sudo())
    # Without root the mount trial would only repeat that root is missing.
    return [*found, *(rights or _mounts())]


def _machine(machine: str) -> Iterator[Finding]:
    if machine != "x86_64":
        yield Finding(f"the machine is {machine}", "only x86-64 is supported")


def _os_release() -> dict[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def _release(fields: dict[str, str]) -> Iterator[Finding]:
    if fields.get("ID") == "debian" and fields.get("VERSION_ID") in RELEASES:
        return
    name = fields.get("PRETTY_NAME", "an unknown system")
    known = " or ".join(f"{number} ({code})" for number, code in RELEASES.items())
    yield Finding(
        f"this is {name}",
        f"only Debian {known} is supported; a container or a virtual machine with it will do",
    )


def _total_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _memory(total: int) -> Iterator[Finding]:
    # A machine sold as 3 GiB shows a little less.
    if total < MEMORY_BYTES * 0.95:
        yield Finding(
            f"the machine has {total / 2**30:.1f} GiB of memory",
            f"{MEMORY_BYTES >> 30} GiB are needed to link a kernel with its BTF",
        )


def _disk(directory: Path) -> Iterator[Finding]:
    place = directory
    while not place.exists():
        place = place.parent
    status = os.statvfs(place)
    free = status.f_bavail * status.f_frsize
    held = sum(entry.size for entry in cache.entries()) if free < DISK_BYTES else 0
    if free + held < DISK_BYTES:
        yield Finding(
            f"{place} has {free / 2**30:.1f} GiB free",
            f"the cache needs {DISK_BYTES >> 30} GiB: free some, or set XDG_CACHE_HOME elsewhere",
        )
    if status.f_flag & os.ST_NOEXEC:
        yield Finding(
            f"{place} is mounted noexec", "the build chroot runs from there: set XDG_CACHE_HOME"
        )
    if not os.access(place, os.W_OK):
        yield Finding(f"{place} is not writable for you", "make it so, or set XDG_CACHE_HOME")


def _tools(tools: dict[str, str]) -> Iterator[Finding]:
    packages = sorted({tools[name] for name in tools if _which(name) is None})
    if packages:
        yield Finding(
            "not installed: " + " ".join(packages), f"apt-get install {' '.join(packages)}"
        )
    if not mirror.KEYRING.is_file():
        yield Finding("Debian's archive keys are missing", "install debian-archive-keyring")
    if _which("apt-get"):
        try:
            mirror.find()
        except InfrastructureError as error:
            yield Finding(error.message, error.hint or error.detail)


def _which(program: str) -> str | None:
    # /usr/sbin is not in a user's PATH, but sudo has it.
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _sudo() -> Iterator[Finding]:
    if os.geteuid() == 0:
        return
    if shutil.which("sudo") is None:
        yield Finding("you are not root and there is no sudo", "install sudo, or become root")
    elif not _succeeds(["sudo", "-n", "true"]) and not sys.stdin.isatty():
        yield Finding(
            "sudo asks for a password and there is no terminal to ask on",
            "run from a terminal, or as root",
        )


def _mounts() -> Iterator[Finding]:
    with tempfile.TemporaryDirectory() as target:
        namespaces = ["unshare", "--mount", "--propagation=unchanged", "--pid", "--fork"]
        trial = [*namespaces, "sh", "-c", _TRY_MOUNT, "try", target]
        if not _succeeds(process.as_root(trial)):
            yield Finding(
                "mounting is not permitted here, not even for root",
                "in a container: start it with --privileged (CAP_SYS_ADMIN and no mount filter)",
            )


def _succeeds(argv: Sequence[str]) -> bool:
    try:
        return subprocess.run(argv, capture_output=True).returncode == 0
    except OSError:
        return False
