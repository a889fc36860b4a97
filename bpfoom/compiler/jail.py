# SPDX-License-Identifier: Apache-2.0
"""Locks the compiler's child process down before it looks at a template.

Everything that the child needs is imported before; afterwards it has limits, an empty directory
that holds only the stub headers, and, when it was started as root, neither identity nor
capabilities.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import resource
import time
from dataclasses import dataclass

_NOBODY = 65534
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_SET_DUMPABLE = 24, 38, 4
_CLONE_NEWUSER = 0x10000000
_NAMESPACES = 0x20000 | 0x08000000 | 0x40000000  # mount, IPC, network
_CAPABILITY_VERSION_3 = 0x20080522


@dataclass(frozen=True)
class Limits:
    """CPU seconds from now until SIGXCPU (SIGKILL follows), and bytes of address space."""

    cpu_seconds: int
    memory_bytes: int


def lock_down(directory: str, limits: Limits) -> str:
    """Give up everything but memory, CPU within limits, and the open file descriptors.

    Returns ``directory`` as this process sees it from now on: "" after a chroot, its path where
    an unprivileged user cannot have one. Raises OSError when a step fails that must not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    seen = _confine_as_root(libc, directory) if os.geteuid() == 0 else _confine(libc, directory)
    _drop_capabilities(libc)
    _prctl(libc, _PR_SET_NO_NEW_PRIVS, 1)
    _prctl(libc, _PR_SET_DUMPABLE, 0)
    _set_limits(limits)
    return seen


def _confine_as_root(libc: ctypes.CDLL, directory: str) -> str:
    # A plus where the container allows it; nothing below depends on it.
    libc.unshare(_NAMESPACES)
    os.chroot(directory)
    os.chdir("/")
    _drop_bounding_set(libc)
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    return ""


def _confine(libc: ctypes.CDLL, directory: str) -> str:
    """A user has nothing to lose but files of their own; a user namespace hides these too."""
    os.chdir(directory)
    if libc.unshare(_CLONE_NEWUSER | _NAMESPACES) != 0:
        return directory
    os.chroot(directory)
    return ""


def _set_limits(limits: Limits) -> None:
    # What the imports took is no fault of the template's; under emulation it is seconds.
    cpu = math.ceil(time.process_time()) + limits.cpu_seconds
    bounds = {
        resource.RLIMIT_CPU: (cpu, cpu + 1),
        resource.RLIMIT_AS: (limits.memory_bytes, limits.memory_bytes),
        resource.RLIMIT_FSIZE: (0, 0),
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_NOFILE: (32, 32),
    }
    for what, bound in bounds.items():
        resource.setrlimit(what, bound)


def _drop_bounding_set(libc: ctypes.CDLL) -> None:
    for capability in range(64):
        with contextlib.suppress(OSError):
            _prctl(libc, _PR_CAPBSET_DROP, capability)


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    if libc.capset(header, nothing) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _prctl(libc: ctypes.CDLL, option: int, value: int) -> None:
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")
