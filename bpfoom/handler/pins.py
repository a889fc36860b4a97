# SPDX-License-Identifier: Apache-2.0
"""Pins: ``<bpffs>/bpfoom/<cgroup id>/link`` per handler, ``<bpffs>/bpfoom/shared/`` per machine.

A policy's sampler is pinned beside its handler's link, as ``sampler``: first to come, last to go.

A handler is attached exactly while its link is pinned, so there is nothing to repair after a crash:
an empty cgroup directory or the pin of a dead link is only litter, swept by the next writer.
Directories are 0700. Writers hold a flock on the base directory, which the kernel drops with them:
without it, sweeping a dead link's pin could hit the fresh one that has just taken its place.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bpfoom.compiler.object import MapSpec
from bpfoom.errors import BpfoomError, MissingFeatureError, PermissionDeniedError, SyscallError
from bpfoom.handler import info, maps, syscalls
from bpfoom.handler.syscalls import Fd
from bpfoom.policy import record

USUAL_BPFFS = Path("/sys/fs/bpf")
LINK, SAMPLER = "link", "sampler"
SHARED = "shared"


def find_bpffs(mountinfo: Path = Path("/proc/self/mountinfo")) -> Path | None:
    """Where bpffs is mounted, the usual place first; None if it is not."""
    mounts = []
    for line in mountinfo.read_text().splitlines():
        head, _, tail = line.partition(" - ")
        if tail.split()[0] == "bpf":
            mounts.append(Path(head.split()[4]))
    return USUAL_BPFFS if USUAL_BPFFS in mounts else next(iter(mounts), None)


@dataclass(frozen=True)
class Pins:
    """The pins below one directory of a bpffs; it need not exist yet."""

    base: Path

    def link_path(self, cgroup_id: int) -> Path:
        """Where the link of a cgroup's handler is pinned, or would be."""
        return self.base / str(cgroup_id) / LINK

    def cgroup_ids(self) -> list[int]:
        """The cgroups that have a directory here, ascending. Raises PermissionDeniedError."""
        try:
            names = os.listdir(self.base)
        except FileNotFoundError:
            return []
        except PermissionError as error:
            raise _denied(self.base) from error
        return sorted(int(name) for name in names if name.isdecimal())

    def open_link(self, cgroup_id: int) -> Fd | None:
        """The pinned link of a cgroup's handler, alive or not; None where there is none."""
        return _open(self.link_path(cgroup_id))

    def pin(self, cgroup_id: int, link: Fd, sampler: Fd | None) -> None:
        """Pin a fresh link, after the policy's sampler if it has one.

        Pins that are in the way can only be those of a dead link: they are replaced.
        """
        with self.writing():
            (self.base / str(cgroup_id)).mkdir(mode=0o700, exist_ok=True)
            self.pin_sampler(cgroup_id, sampler)
            path = self.link_path(cgroup_id)
            path.unlink(missing_ok=True)
            syscalls.obj_pin(link, str(path))

    def pin_sampler(self, cgroup_id: int, sampler: Fd | None) -> None:
        """Pin another sampler, or none, in the place of the present. Only in :meth:`writing`."""
        path = self.base / str(cgroup_id) / SAMPLER
        path.unlink(missing_ok=True)
        if sampler is not None:
            syscalls.obj_pin(sampler, str(path))

    def unpin(self, cgroup_id: int) -> None:
        """Take the pins away, and their directory. Only within :meth:`writing`."""
        path = self.link_path(cgroup_id)
        path.unlink(missing_ok=True)
        self.pin_sampler(cgroup_id, None)
        path.parent.rmdir()

    def sweep(self, among: Container[int] | None = None) -> list[int]:
        """Remove empty directories and pins of dead links; the ids of the latter's cgroups.

        ``among`` are ids of the only cgroups to look at: links are many where cgroups are.
        """
        dead = []
        with self.writing():
            for cgroup_id in self.cgroup_ids():
                if among is not None and cgroup_id not in among:
                    continue
                link = self.open_link(cgroup_id)
                if link is not None:
                    with link:
                        if info.link_info(link).map_id != 0:
                            continue
                    dead.append(cgroup_id)
                self.unpin(cgroup_id)
        return dead

    def shared_path(self, name: str) -> Path:
        """Where a shared map is pinned: its name carries the record's version."""
        return self.base / SHARED / f"v{record.VERSION}-{name}"

    def open_shared(self, name: str) -> Fd | None:
        """A shared map, or None if no handler has made it yet."""
        return _open(self.shared_path(name))

    def ensure_shared(self, spec: MapSpec, make: Callable[[MapSpec], Fd]) -> Fd:
        """The machine's map of that name, made and pinned if there is none.

        Raises BpfoomError if the pinned map has another shape.
        """
        path = self.shared_path(spec.name)
        with self.writing():
            found = _open(path)
            if found is not None:
                _check_shape(found, spec, path)
                return found
            path.parent.mkdir(mode=0o700, exist_ok=True)
            fresh = make(spec)
            try:
                syscalls.obj_pin(fresh, str(path))
            except BpfoomError:
                fresh.close()
                raise
            return fresh

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the base directory, made if need be, against other writers."""
        try:
            self.base.mkdir(mode=0o700, exist_ok=True)
            directory = os.open(self.base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except PermissionError as error:
            raise _denied(self.base) from error
        with Fd(directory):
            fcntl.flock(directory, fcntl.LOCK_EX)
            yield


def find() -> Pins | None:
    """bpfoom's pins, or None where no bpffs is mounted: then nothing of ours is attached."""
    bpffs = find_bpffs()
    return Pins(bpffs / "bpfoom") if bpffs else None


def require() -> Pins:
    """bpfoom's pins, to write. Raises MissingFeatureError where no bpffs is mounted."""
    found = find()
    if found is None:
        raise MissingFeatureError(
            "no bpffs is mounted", hint=f"mount -t bpf bpf {USUAL_BPFFS}", object="bpffs"
        )
    return found


def links_of(cgroup_id: int) -> Iterator[int]:
    """Ids of the struct_ops links on a cgroup, whoever made them."""
    return (link.id for link in _links() if link.cgroup_id == cgroup_id)


def attached() -> dict[int, int]:
    """The link of every cgroup that has a handler, whoever made it: ids by cgroup id."""
    return {link.cgroup_id: link.id for link in _links() if link.map_id and link.cgroup_id}


def _links() -> Iterator[info.LinkInfo]:
    """Every struct_ops link of the machine."""
    for number in syscalls.link_ids():
        try:
            with syscalls.link_by_id(number) as link:
                found = info.link_info(link)
        except SyscallError:  # gone between the two calls
            continue
        if found.type == info.LINK_TYPE_STRUCT_OPS:
            yield found


def _denied(path: Path) -> PermissionDeniedError:
    return PermissionDeniedError(
        f"what is pinned under {path} is for root only", hint="run it as root", path=str(path)
    )


def _open(path: Path) -> Fd | None:
    try:
        return syscalls.obj_get(str(path))
    except PermissionDeniedError as error:
        raise _denied(path) from error
    except SyscallError as error:
        if error.data["errno"] == errno.ENOENT:
            return None
        if error.data["errno"] == errno.EACCES:
            raise _denied(path) from error
        raise


def _check_shape(fd: Fd, spec: MapSpec, path: Path) -> None:
    wanted, actual = maps.shape_of(spec), info.map_info(fd).shape
    if wanted != actual:
        fd.close()
        raise BpfoomError(
            f"the shared map {path.name} has another shape: (type, key, value, entries) is "
            f"{actual}, this policy needs {wanted}",
            hint=f"detach all handlers (`bpfoom detach --all`), then rm {path}",
            object=spec.name,
            path=str(path),
        )
