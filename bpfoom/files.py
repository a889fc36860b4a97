# SPDX-License-Identifier: Apache-2.0
"""Files and directories that are whole, or not there, whenever who makes them dies.

They are made beside their place and put there when they are done. Until then their maker holds a
flock on them, which the kernel drops with him: what nobody holds was left half-made.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bpfoom.errors import BpfoomError

# A FIFO must not hold us up.
_LOOK = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def write_whole(path: Path, data: bytes) -> None:
    """Make ``data`` the content of a file that people name, for everybody to read.

    Raises BpfoomError; what is there but no file (a device, a pipe) is left alone.
    """
    try:
        if path.exists() and not path.is_file():
            raise BpfoomError(f"{path} is there and is no file", hint="name a file", path=str(path))
        replace(path, data, 0o644)
    except OSError as error:
        raise BpfoomError(
            f"cannot write {path}: {error.strerror}",
            hint="name a file in a directory that you may write to",
            path=str(path),
            errno=error.errno,
        ) from error


def replace(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Make ``data`` the file's content, so that a reader finds the old one or all of the new.

    Raises OSError; a full disk leaves nothing behind.
    """
    prefix = f".{path.name}.bpfoom-"
    sweep(path.parent, prefix)
    with making(path.parent, prefix, directory=False) as (work, descriptor):
        try:
            with os.fdopen(os.dup(descriptor), "wb") as out:
                out.write(data)
                out.flush()
                os.fsync(descriptor)
            os.chmod(work, mode)
            os.replace(work, path)
        finally:
            work.unlink(missing_ok=True)


@contextmanager
def making(parent: Path, prefix: str, *, directory: bool) -> Iterator[tuple[Path, int]]:
    """A new file or directory there to make something in, and a descriptor of it.

    Its name begins with the prefix. It is held against those who sweep; it stays. Raises OSError.
    """
    while True:
        work, descriptor = _fresh(parent, prefix, directory)
        try:
            # Where a file system knows no locks nobody sweeps either.
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Somebody may have swept before it was held.
            if work.exists():
                yield work, descriptor
                return
        finally:
            os.close(descriptor)


def _fresh(parent: Path, prefix: str, directory: bool) -> tuple[Path, int]:
    if not directory:
        descriptor, name = tempfile.mkstemp(prefix=prefix, dir=parent)
        return Path(name), descriptor
    while True:
        made = tempfile.mkdtemp(prefix=prefix, dir=parent)
        with suppress(FileNotFoundError):
            return Path(made), os.open(made, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def sweep(parent: Path, prefix: str) -> list[Path]:
    """Remove what was left half-made in a directory under names that begin so; what that was.

    What belongs to other users is theirs to sweep.
    """
    found = []
    for path in _named(parent, prefix):
        try:
            descriptor = os.open(path, _LOOK)
        except OSError:  # gone meanwhile, or nobody's that makes such things
            continue
        try:
            if os.fstat(descriptor).st_uid != os.geteuid():
                continue
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            delete(path)
            found.append(path)
        except OSError:  # held
            continue
        finally:
            os.close(descriptor)
    return found


def _named(parent: Path, prefix: str) -> list[Path]:
    try:
        return sorted(parent / name for name in os.listdir(parent) if name.startswith(prefix))
    except OSError:
        return []


def delete(path: Path) -> None:
    """Remove a file, or a directory with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
