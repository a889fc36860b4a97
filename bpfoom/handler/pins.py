# SPDX-License-Identifier: Apache-2.0
"""Pins: ``<bpffs>/bpfoom/<cgroup id>/link`` per handler, ``<bpffs>/bpfoom/shared/`` per machine.

Beside a link may be what belongs to the code with a certain struct_ops map: ``sampler-<map id>``,
its sampler; and while it is on trial ``previous-<map id>``, the map of the code before it, with
``previous-sampler-<map id>``, the program of that one's sampler. What the link refers to says which
of them count. A cgroup's trigger, with or without a handler, is ``trigger``, and ``trigger-work``
the map of it that lives only as long as somebody holds it.

A handler is attached exactly while its link is pinned, so there is nothing to repair after a crash:
an empty cgroup directory, the pin of a dead link, what belongs to code that is not in force are
only litter, swept by the next writer. What others have put there is not ours to sweep: it is named,
and stays. Directories are 0700. Writers hold a flock on the base directory,
which the kernel drops with them: without it, sweeping a dead link's pin could hit the fresh one
that has just taken its place.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bpfoom import mounts
from bpfoom.compiler.object import MapSpec
from bpfoom.errors import BpfoomError, ForeignPinError, MissingFeatureError, SyscallError
from bpfoom.handler import info, maps, pinned, syscalls
from bpfoom.handler.syscalls import Fd
from bpfoom.policy import record
from bpfoom.policy.functions import ASKED_ENTRIES, HISTORY_ENTRIES, RANKED_ENTRIES

USUAL_BPFFS = Path("/sys/fs/bpf")
LINK = "link"
SAMPLER, PREVIOUS, PREVIOUS_SAMPLER = "sampler", "previous", "previous-sampler"
# What they are pins of.
KINDS = {SAMPLER: pinned.LINK, PREVIOUS: pinned.MAP, PREVIOUS_SAMPLER: pinned.PROGRAM}
TRIGGER, TRIGGER_WORK = "trigger", "trigger-work"
TRIGGER_KINDS = {TRIGGER: pinned.LINK, TRIGGER_WORK: pinned.MAP}
SHARED, AGENT = "shared", "agent"
# What a shared map is called until it takes another one's place.
NEW = "-new"

# The shared maps that are read by what is known of their layout here.
SHAPES = {
    "bpfoom_history": maps.shape("array", 4, record.SIZE, HISTORY_ENTRIES + ASKED_ENTRIES),
    "bpfoom_state": maps.shape("array", 4, 8, 3),
    "bpfoom_ring": maps.shape("ringbuf", 0, 0, 262144),
    "bpfoom_ranked": maps.shape("array", 4, record.CANDIDATE_SIZE, RANKED_ENTRIES),
}

_BESIDE = re.compile(rf"({'|'.join(KINDS)})-([0-9]+)")
_SHARED = re.compile(rf"v([0-9]+)-(.+?)({NEW})?")


def find_bpffs(mountinfo: Path = mounts.MOUNTINFO) -> Path | None:
    """Where bpffs is mounted, the usual place first; None if it is not."""
    found = [mount.path for mount in mounts.of_type("bpf", mountinfo)]
    return USUAL_BPFFS if USUAL_BPFFS in found else next(iter(found), None)


@dataclass(frozen=True)
class Pins:
    """The pins below one directory of a bpffs; it need not exist yet."""

    base: Path

    def directory(self, cgroup_id: int) -> Path:
        """Where what belongs to a cgroup's handler is pinned, or would be."""
        return self.base / str(cgroup_id)

    def link_path(self, cgroup_id: int) -> Path:
        """Where the link of a cgroup's handler is pinned, or would be."""
        return self.directory(cgroup_id) / LINK

    def cgroup_ids(self) -> list[int]:
        """The cgroups that have a place here, ascending. Raises PermissionDeniedError."""
        return sorted(int(name) for name in names_in(self.base) if is_id(name))

    def with_handlers(self) -> list[int]:
        """The cgroups with something in the place of a handler's link, ascending."""
        return [cgroup_id for cgroup_id in self.cgroup_ids() if self.link_path(cgroup_id).exists()]

    def open_link(self, cgroup_id: int) -> Fd | None:
        """The pinned link of a cgroup's handler, alive or not; None where there is none.

        Raises ForeignPinError if something else is in its place.
        """
        found = pinned.open_link_of(self.link_path(cgroup_id), cgroup_id)
        return found[0] if found else None

    def pin(self, cgroup_id: int, link: Fd, map_id: int, sampler: Fd | None) -> None:
        """Pin a fresh link, after the sampler of its code if that has one.

        Pins of ours that are in the way can only be those of a dead link: they are replaced.
        """
        with self.writing():
            directory = self.directory(cgroup_id)
            _make_directory(directory)
            self._clear(cgroup_id)
            if sampler is not None:
                self.pin_beside(SAMPLER, cgroup_id, map_id, sampler)
            _pin(link, directory / LINK)

    def open_beside(self, what: str, cgroup_id: int, map_id: int) -> Fd | None:
        """One of :data:`KINDS` that belongs to the code with that map, or None."""
        return pinned.open_object(self._beside(what, cgroup_id, map_id), KINDS[what])

    def pin_beside(self, what: str, cgroup_id: int, map_id: int, fd: Fd) -> None:
        """Pin one of :data:`KINDS`, before the code that it belongs to is put in force.

        Only in :meth:`writing`.
        """
        path = self._beside(what, cgroup_id, map_id)
        _remove(path, KINDS[what])
        _pin(fd, path)

    def with_previous(self) -> list[int]:
        """The cgroups with code that is to be gone back to, ascending."""
        found = []
        for cgroup_id in self.cgroup_ids():
            with suppress(ForeignPinError):
                if any(what == PREVIOUS for _, what, _ in self._all_beside(cgroup_id)):
                    found.append(cgroup_id)
        return found

    def drop_previous(self, cgroup_id: int, map_id: int) -> None:
        """Let go of the code before the one with that map. Only in :meth:`writing`."""
        for what in (PREVIOUS, PREVIOUS_SAMPLER):
            _remove(self._beside(what, cgroup_id, map_id), KINDS[what])

    def open_trigger(self, cgroup_id: int) -> Fd | None:
        """The link of a cgroup's trigger, or None."""
        return pinned.open_object(self.directory(cgroup_id) / TRIGGER, pinned.LINK)

    def require_trigger_room(self, cgroup_id: int) -> None:
        """Raise ForeignPinError if a trigger could not be pinned."""
        for name, kind in TRIGGER_KINDS.items():
            found = pinned.open_object(self.directory(cgroup_id) / name, kind)
            if found is not None:
                found.close()

    def pin_trigger(self, cgroup_id: int, link: Fd, work: Fd) -> None:
        """Pin a trigger where there is none. Only in :meth:`writing`."""
        directory = self.directory(cgroup_id)
        _make_directory(directory)
        _pin(work, directory / TRIGGER_WORK)
        _pin(link, directory / TRIGGER)

    def unpin_trigger(self, cgroup_id: int) -> None:
        """Take a trigger away, which ends it. Only in :meth:`writing`."""
        directory = self.directory(cgroup_id)
        for name, kind in TRIGGER_KINDS.items():
            _remove(directory / name, kind)
        _remove_directory(directory)

    def tidy(self, cgroup_id: int, map_id: int) -> None:
        """Remove what belongs to other code than that in force. Only in :meth:`writing`."""
        found = self._all_beside(cgroup_id)
        settled = not any((what, number) == (PREVIOUS, map_id) for _, what, number in found)
        for path, what, number in found:
            if number != map_id or (settled and what == PREVIOUS_SAMPLER):
                _remove(path, KINDS[what])

    def unpin(self, cgroup_id: int) -> None:
        """Take away all that is ours of a cgroup, the link first. Only in :meth:`writing`.

        Its directory goes, too, unless something else is in it. Raises ForeignPinError if that is
        in the link's place.
        """
        self._clear(cgroup_id)
        _remove_directory(self.directory(cgroup_id))

    def _clear(self, cgroup_id: int) -> None:
        link = self.open_link(cgroup_id)
        if link is not None:
            link.close()
            self.link_path(cgroup_id).unlink()
        for path, what, _ in self._all_beside(cgroup_id):
            _remove(path, KINDS[what])

    def sweep(self, among: Container[int] | None = None) -> list[int]:
        """Remove what is left of handlers that are gone; the ids of dead links' cgroups.

        ``among`` are ids of the only cgroups to look at: links are many where cgroups are.
        """
        dead = []
        with self.writing():
            for cgroup_id in self.cgroup_ids():
                if among is not None and cgroup_id not in among:
                    continue
                with suppress(ForeignPinError):
                    if self._sweep(cgroup_id):
                        dead.append(cgroup_id)
        return dead

    def _sweep(self, cgroup_id: int) -> bool:
        """Whether a dead link was found."""
        found = pinned.open_link_of(self.link_path(cgroup_id), cgroup_id)
        if found is not None:
            link, about = found
            link.close()
            if about.map_id != 0:
                self.tidy(cgroup_id, about.map_id)
                return False
            self.unpin_trigger(cgroup_id)
        self.unpin(cgroup_id)
        return found is not None

    def make_agent_directory(self) -> None:
        """Make what the machine's agent holds a lock on. Only in :meth:`writing`."""
        _make_directory(self.base / AGENT)

    def shared_path(self, name: str) -> Path:
        """Where a shared map is pinned: its name carries the record's version."""
        return self.base / SHARED / f"v{record.VERSION}-{name}"

    def open_shared(self, name: str) -> Fd | None:
        """A shared map, or None if no handler has made it yet.

        Raises ForeignPinError, and BpfoomError if another version of bpfoom has made it so that we
        cannot read it.
        """
        path = self.shared_path(name)
        found = pinned.open_map(path, name)
        if found is not None and name in SHAPES:
            _check_shape(found, name, SHAPES[name], path)
        return found

    def other_versions(self, name: str) -> dict[int, Path]:
        """Shared maps of that name that other versions of bpfoom have made, by version."""
        found = {entry: shared(entry) for entry in names_in(self.base / SHARED)}
        return {
            told[0]: self.base / SHARED / entry
            for entry, told in found.items()
            if told and told[1] == name and told[0] != record.VERSION
        }

    def ensure_shared(self, spec: MapSpec, make: Callable[[MapSpec], Fd]) -> Fd:
        """The machine's map of that name, made and pinned if there is none.

        Raises BpfoomError if the pinned map has another shape, ForeignPinError if it is none of
        ours.
        """
        path = self.shared_path(spec.name)
        with self.writing():
            found = pinned.open_map(path, spec.name)
            if found is not None:
                _check_shape(found, spec.name, maps.shape_of(spec), path)
                return found
            _make_directory(path.parent)
            fresh = make(spec)
            try:
                _pin(fresh, path)
            except BpfoomError:
                fresh.close()
                raise
            return fresh

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the base directory, made if need be, against other writers."""
        try:
            _make_directory(self.base)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            directory = os.open(self.base, flags)
        except PermissionError as error:
            raise pinned.denied(self.base) from error
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise pinned.foreign(self.base, "no directory") from error
            raise BpfoomError(
                f"nothing can be pinned in {self.base}: {error.strerror}",
                hint="bpffs must be mounted, and so that it can be written to",
                path=str(self.base),
                errno=error.errno,
            ) from error
        with Fd(directory):
            fcntl.flock(directory, fcntl.LOCK_EX)
            yield

    def _beside(self, what: str, cgroup_id: int, map_id: int) -> Path:
        return self.directory(cgroup_id) / f"{what}-{map_id}"

    def _all_beside(self, cgroup_id: int) -> list[tuple[Path, str, int]]:
        """What is pinned beside a link, each with its kind and the map id of its code."""
        directory = self.directory(cgroup_id)
        found = ((name, beside(name)) for name in names_in(directory))
        return [(directory / name, *parsed) for name, parsed in found if parsed]


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


def beside(name: str) -> tuple[str, int] | None:
    """Which of :data:`KINDS` a name says it is, and the map id of the code that it belongs to."""
    found = _BESIDE.fullmatch(name)
    return (found[1], int(found[2])) if found else None


def shared(name: str) -> tuple[int, str] | None:
    """The version and the name of the shared map that a name says it is."""
    found = _SHARED.fullmatch(name)
    return (int(found[1]), found[2]) if found else None


def names_in(directory: Path) -> list[str]:
    """What is in a directory of ours, by name; nothing if there is none. Raises ForeignPinError."""
    try:
        if directory.is_symlink():
            raise pinned.foreign(directory, "a symbolic link")
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        raise pinned.foreign(directory, "no directory") from None
    except PermissionError as error:
        raise pinned.denied(directory) from error


def is_id(name: str) -> bool:
    """Whether an entry of the base directory is a cgroup's."""
    return name.isascii() and name.isdecimal() and str(int(name)) == name


def _make_directory(path: Path) -> None:
    """Make it if it is not there. Raises ForeignPinError if something else is."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if path.is_symlink() or not path.is_dir():
            raise pinned.foreign(path, "no directory") from None
        # Where bpffs is everybody's to write, anybody could have been here first.
        about = path.stat()
        if about.st_uid not in (0, os.geteuid()) or about.st_mode & 0o022:
            what = f"a directory of uid {about.st_uid}, mode {about.st_mode & 0o7777:04o}"
            raise pinned.foreign(path, what) from None


def _remove_directory(path: Path) -> None:
    """Remove a directory of ours, unless there is something in it that is not."""
    try:
        path.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.ENOTDIR):
            raise


def _pin(fd: Fd, path: Path) -> None:
    """Pin an object where nothing of ours is. Raises ForeignPinError if something else is."""
    try:
        syscalls.obj_pin(fd, str(path))
    except SyscallError as error:
        if error.data["errno"] != errno.EEXIST:
            raise
        raise pinned.foreign(path, "something else") from error


def _remove(path: Path, kind: str) -> None:
    """Remove a pin of that kind; what is none stays."""
    with suppress(ForeignPinError):
        found = pinned.open_object(path, kind)
        if found is not None:
            found.close()
            path.unlink()


def _check_shape(fd: Fd, name: str, wanted: maps.Shape, path: Path) -> None:
    actual = info.map_info(fd).shape
    if wanted != actual:
        fd.close()
        raise BpfoomError(
            f"the shared map {path.name} has another shape: (type, key, value, entries) is "
            f"{actual}, this version of bpfoom needs {wanted}",
            hint="another version has made it: use that one, or detach all handlers "
            f"(`bpfoom detach --all`), then rm {path}",
            object=name,
            path=str(path),
        )
