# SPDX-License-Identifier: Apache-2.0
"""cgroup2 as files: find the mount, resolve what the user typed, read ids, events and controllers.

Only reads. Making trees and moving tasks is the scenario room's, attaching the handler room's.
"""

from __future__ import annotations

import ctypes
import errno
import os
from dataclasses import dataclass
from pathlib import Path

from bpfoom import mounts
from bpfoom.errors import MissingFeatureError, NotThereError, UsageError
from bpfoom.mounts import Mount

_FILEID_KERNFS = 0xFE


@dataclass(frozen=True)
class Cgroup:
    """A cgroup of the unified hierarchy. ``name`` is its path below the mount, "/" the root."""

    path: Path
    name: str
    id: int

    @property
    def is_root(self) -> bool:
        return self.name == "/"

    def controllers(self) -> frozenset[str]:
        """The controllers that this cgroup has state of its own for."""
        return frozenset(self._read("cgroup.controllers").split())

    def memory_events(self) -> dict[str, int]:
        """memory.events, counted over the subtree; empty where the memory controller is not."""
        return parse_counters(self._read("memory.events"))

    def value(self, file: str) -> str:
        """One file's text, stripped; "" if the cgroup does not have it (the root: most)."""
        return self._read(file).strip()

    def _read(self, file: str) -> str:
        try:
            return (self.path / file).read_text(errors="replace")
        except FileNotFoundError:
            if not self.path.is_dir():
                raise _absent(self.name) from None
            return ""
        except OSError as error:
            raise _absent(self.name) from error


def parse_counters(text: str) -> dict[str, int]:
    """A flat keyed file: ``key value`` per line."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}


def mount() -> Mount:
    """The cgroup2 mount that bare paths are relative to. Raises MissingFeatureError."""
    found = mounts.of_type("cgroup2")
    if not found:
        raise MissingFeatureError(
            "cgroup2 is not mounted",
            hint="mount -t cgroup2 none /sys/fs/cgroup, or boot with systemd's unified hierarchy",
            object="cgroup2",
        )
    return found[0]


def resolve(text: str, top: Mount | None = None) -> Cgroup:
    """The cgroup that the user named: a path on cgroup2 as it is, any other below the mount.

    ``top`` is the mount, by default :func:`mount`'s. Raises NotThereError, or UsageError for an
    existing place that is not on cgroup2.
    """
    if not text or "\0" in text:
        raise UsageError("a cgroup path must not be empty", hint="the root cgroup is /")
    top = top or mount()
    try:
        path = _directory(top, text)
        return Cgroup(path, _name(path, top), path.stat().st_ino)
    except OSError as error:  # removed meanwhile; or no name can be so long
        raise _absent(text[:80]) from error


def _directory(top: Mount, text: str) -> Path:
    given = Path(text)
    if _device(given) != top.device:
        return _below(top, text)
    path = given.resolve()
    if not path.is_dir():
        raise UsageError(f"{text} is a file, not a cgroup", hint="name its directory", path=text)
    return path


def _below(top: Mount, text: str) -> Path:
    """The directory of that name below the mount; ".." does not lead out of it."""
    path = Path(f"{top.path}{os.path.normpath('/' + text)}")
    if path.is_dir() and _device(path) == top.device:
        return path.resolve()
    if _device(Path(text)) is not None:
        raise UsageError(
            f"{text} is not on cgroup2, and {top.path} has no cgroup of that name",
            hint=f"name a directory below {top.path}, or a path relative to it",
            path=text,
        )
    raise _absent(text, f"make it with mkdir below {top.path}")


def require_memory(cgroup: Cgroup) -> None:
    """Raise MissingFeatureError, with the way out, unless the cgroup has a memory controller."""
    if "memory" in cgroup.controllers():
        return
    if cgroup.is_root:
        hint = "cgroup v1 holds it: boot with cgroup_no_v1=memory (systemd: unified hierarchy)"
    elif cgroup.value("cgroup.type") in ("threaded", "domain invalid"):
        hint = "a threaded cgroup cannot have one: attach to its threaded domain"
    else:
        hint = f"echo +memory > {cgroup.path.parent}/cgroup.subtree_control"
    raise MissingFeatureError(
        f"the cgroup {cgroup.name} has no memory controller", hint=hint, path=cgroup.name
    )


def lineage(cgroup: Cgroup) -> list[Cgroup]:
    """The cgroup and all above it, upwards; the root is the last. Raises NotThereError."""
    found = [cgroup]
    while not found[-1].is_root:
        found.append(resolve(str(found[-1].path.parent)))
    return found


def by_id(cgroup_id: int) -> Cgroup | None:
    """The cgroup with that id; None if it is gone, or too deep to have a path.

    Needs CAP_DAC_READ_SEARCH.
    """
    top = mount()
    fd = _open_by_id(top.path, cgroup_id)
    if fd < 0:
        return None
    try:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
    except OSError:  # whoever owns a cgroup can nest others deeper than PATH_MAX
        return None
    finally:
        os.close(fd)
    # Where it was removed there is nothing, or another one.
    if _inode(path) != cgroup_id:
        return None
    return Cgroup(path, _name(path, top), cgroup_id)


def exists(cgroup_id: int) -> bool:
    """Whether there is a cgroup with that id; yes where that cannot be found out."""
    fd = _open_by_id(mount().path, cgroup_id)
    if fd < 0:
        return ctypes.get_errno() != errno.ESTALE
    os.close(fd)
    return True


class _FileHandle(ctypes.Structure):
    _fields_ = [
        ("handle_bytes", ctypes.c_uint32),
        ("handle_type", ctypes.c_int),
        ("cgroup_id", ctypes.c_uint64),
    ]


def _open_by_id(top: Path, cgroup_id: int) -> int:
    """open_by_handle_at(2) on kernfs, whose file handle is the id itself; -1 if it fails."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle = _FileHandle(8, _FILEID_KERNFS, cgroup_id)
    anchor = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        return int(libc.open_by_handle_at(anchor, ctypes.byref(handle), flags))
    finally:
        os.close(anchor)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _device(path: Path) -> int | None:
    try:
        return path.stat().st_dev
    except OSError:
        return None


def _name(path: Path, top: Mount) -> str:
    relative = os.path.relpath(path, top.path.resolve())
    return "/" if relative == "." else f"/{relative}"


def _absent(name: str, hint: str = "") -> NotThereError:
    return NotThereError(f"there is no cgroup {name}", hint=hint, path=name)
