# SPDX-License-Identifier: Apache-2.0
"""Which accelerator carries a guest here: KVM if a real trial says so, TCG otherwise.

``/dev/kvm`` may open and still not carry a guest, so our kernel is booted under KVM once, with a
deadline; the answer is remembered for this boot of the host and this QEMU.
"""

from __future__ import annotations

import os
import subprocess
from functools import partial
from pathlib import Path

from bpfoom import cache
from bpfoom.errors import UsageError
from bpfoom.guest import process, qemu
from bpfoom.guest.supervisor import die_with_parent

CHOICES = ("auto", "kvm", "tcg")
KIND = "accelerator"

_KVM = Path("/dev/kvm")
_TRIAL_S = 20.0
# Where a kernel without a root file system ends: everything before worked.
_REACHED = b"Kernel panic - not syncing: VFS"


def choose(kernel: Path, wanted: str = "auto", progress: process.Progress = process.SILENT) -> str:
    """``kvm`` or ``tcg``; any ``wanted`` but ``auto`` is taken as it is."""
    if wanted not in CHOICES:
        raise UsageError(f"no such accelerator: {wanted}", hint=f"one of: {', '.join(CHOICES)}")
    if wanted != "auto":
        return wanted
    if not usable():
        return "tcg"
    answer = _answer()
    with cache.lock(KIND, answer.name):
        if not answer.exists():
            progress.stage(f"trying KVM, once since this machine's start (up to {_TRIAL_S:.0f} s)")
            found = b"kvm" if carries_a_guest(kernel, "kvm") else b"tcg"
            cache.write_file(KIND, answer.name, found)
        return answer.read_text()


def remembered() -> str | None:
    """What :func:`choose` found out since this machine's start; None if it has not tried yet."""
    answer = _answer()
    return answer.read_text() if answer.exists() else None


def usable() -> bool:
    """Whether a trial is worth it: /dev/kvm is there, and ours to open."""
    return os.access(_KVM, os.R_OK | os.W_OK)


def _answer() -> Path:
    """Where the answer for this boot of the host and this QEMU is kept."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text()
    return cache.path_of(KIND, cache.key_of(boot_id, qemu.version()))


def carries_a_guest(kernel: Path, accelerator: str, seconds: float = _TRIAL_S) -> bool:
    """Whether ``kernel`` gets as far as mounting a root file system under the accelerator."""
    argv = [
        *qemu.base(accelerator, kernel, "console=ttyS0 panic=-1"),
        *("-m", "256M", "-serial", "stdio"),
    ]
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=seconds,
            preexec_fn=partial(die_with_parent, os.getpid()),
        )
    except subprocess.TimeoutExpired:
        return False
    return _REACHED in done.stdout
