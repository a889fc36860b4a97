# SPDX-License-Identifier: Apache-2.0
"""The cache under ``$XDG_CACHE_HOME/bpfoom``: content-keyed, written atomically, parallel-safe.

An entry is ``<kind>/<key>``, a file or a directory. Kinds are named by their owners (``objects``,
``kernels``, ``images``, ...); this module knows nothing of what is inside.

What is being made has a name that begins with a dot, and its maker holds a flock on it, which the
kernel drops with the maker: what nobody holds is what somebody left half-written when he died. An
entry that has to go is given such a name first, so that there are no half entries either.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

# A FIFO must not hold us up.
_LOOK = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@dataclass(frozen=True)
class Entry:
    """One cache entry: its kind, key, path, size in bytes and time of last change (epoch s)."""

    kind: str
    key: str
    path: Path
    size: int
    mtime: float


def root() -> Path:
    """The cache's directory; it need not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "bpfoom"


def key_of(*parts: str | bytes) -> str:
    """A short content key: 32 hex digits of the SHA-256 of the parts, each with its length."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.hexdigest()[:32]


def path_of(kind: str, key: str) -> Path:
    """Where the entry is, or would be."""
    return root() / kind / key


@contextmanager
def lock(kind: str, key: str) -> Iterator[None]:
    """Hold the entry against other processes of ours while it is made."""
    locks = root() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with open(locks / f"{kind}-{key}", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def staged(kind: str, key: str) -> Iterator[Path]:
    """A fresh directory that becomes the entry when the block ends well, and vanishes if not."""
    target = path_of(kind, key)
    with _place(target, directory=True) as (work, _):
        try:
            yield work
            os.chmod(work, 0o755)
            if target.exists():
                _discard(target)
            work.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def write_file(kind: str, key: str, data: bytes) -> Path:
    """Make ``data`` the entry, atomically. Raises OSError (a full disk leaves nothing behind)."""
    target = path_of(kind, key)
    with _place(target, directory=False) as (work, descriptor):
        try:
            with os.fdopen(os.dup(descriptor), "wb") as out:
                out.write(data)
            if target.is_dir():
                _discard(target)
            os.replace(work, target)
        except OSError:
            work.unlink(missing_ok=True)
            raise
    return target


@contextmanager
def _place(target: Path, *, directory: bool) -> Iterator[tuple[Path, int]]:
    """A new place beside an entry to make it in, held against those who clean up; it stays."""
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent)
    while True:
        work, descriptor = _fresh(target, directory)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Somebody may have cleaned up before it was held.
            if work.exists():
                yield work, descriptor
                return
        finally:
            os.close(descriptor)


def _fresh(target: Path, directory: bool) -> tuple[Path, int]:
    """A new place beside an entry, and a descriptor of it."""
    prefix = f".{target.name}."
    if not directory:
        descriptor, name = tempfile.mkstemp(prefix=prefix, dir=target.parent)
        return Path(name), descriptor
    while True:
        made = tempfile.mkdtemp(prefix=prefix, dir=target.parent)
        with suppress(FileNotFoundError):
            return Path(made), os.open(made, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def sweep(kind: Path) -> list[Path]:
    """Remove what was left half-made in the directory of a kind; what that was."""
    found = []
    for path in sorted(kind.glob(".*")):
        try:
            descriptor = os.open(path, _LOOK)
        except OSError:  # gone meanwhile, or nobody's that makes entries
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _delete(path)
            found.append(path)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)
    return found


def entries() -> list[Entry]:
    """Every finished entry, sorted by kind and key."""
    found = []
    for kind in kinds():
        for path in sorted(p for p in kind.iterdir() if not p.name.startswith(".")):
            found.append(Entry(kind.name, path.name, path, _size(path), path.lstat().st_mtime))
    return found


def remove(entry: Entry) -> None:
    """Remove one entry."""
    _discard(entry.path)


def kinds() -> list[Path]:
    """The directory of every kind that has ever had an entry."""
    if not root().is_dir():
        return []
    return sorted(p for p in root().iterdir() if p.is_dir() and p.name != "locks")


def _discard(path: Path) -> None:
    """Remove an entry so that it is there, or not, and never a part of it."""
    with _place(path, directory=True) as (aside, _):
        with suppress(FileNotFoundError):
            path.rename(aside / path.name)
        _delete(aside)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    """Bytes on disk, sparse files counted as what they occupy."""
    if not path.is_dir():
        return path.lstat().st_blocks * 512
    return sum(
        os.lstat(os.path.join(top, name)).st_blocks * 512
        for top, _, names in os.walk(path)
        for name in names
    )
