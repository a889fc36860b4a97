# SPDX-License-Identifier: Apache-2.0
"""The cache under ``$XDG_CACHE_HOME/bpfoom``: content-keyed, written atomically, parallel-safe.

An entry is ``<kind>/<key>``, a file or a directory. Kinds are named by their owners (``objects``,
``kernels``, ``images``, ...); this module knows nothing of what is inside.

What is being made has a name that begins with a dot (:mod:`bpfoom.files`). An entry that has to go
is given such a name first, so that there are no half entries either.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bpfoom import files
from bpfoom.errors import BpfoomError


@dataclass(frozen=True)
class Entry:
    """One cache entry: its kind, key, path, size in bytes and time of last change (epoch s)."""

    kind: str
    key: str
    path: Path
    size: int
    mtime: float


def root() -> Path:
    """The cache's directory; it need not exist yet. Raises BpfoomError where nobody knows."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base) / "bpfoom"
    try:
        return Path.home() / ".cache" / "bpfoom"
    except RuntimeError as error:
        raise BpfoomError(
            f"the user {os.getuid()} has no home directory for the cache",
            hint="set XDG_CACHE_HOME, or HOME",
        ) from error


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
    with _beside(target) as work:
        try:
            yield work
            os.chmod(work, 0o755)
            if target.exists():
                _discard(target)
            work.rename(target)
        finally:
            files.delete(work)


def write_file(kind: str, key: str, data: bytes) -> Path:
    """Make ``data`` the entry, atomically. Raises OSError (a full disk leaves nothing behind)."""
    target = path_of(kind, key)
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent)
    if target.is_dir():
        _discard(target)
    files.replace(target, data)
    return target


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A new directory beside an entry, held against those who sweep; it stays."""
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent)
    with files.making(target.parent, f".{target.name}.", directory=True) as (work, _):
        yield work


def sweep(kind: Path) -> list[Path]:
    """Remove what was left half-made in the directory of a kind; what that was."""
    return files.sweep(kind, ".")


def entries() -> list[Entry]:
    """Every finished entry, sorted by kind and key."""
    found = []
    for kind in kinds():
        for path in sorted(p for p in kind.iterdir() if not p.name.startswith(".")):
            with suppress(FileNotFoundError):  # somebody else has just removed it
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
    with _beside(path) as aside:
        with suppress(FileNotFoundError):
            path.rename(aside / path.name)
        files.delete(aside)


def _size(path: Path) -> int:
    """Bytes on disk, sparse files counted as what they occupy."""
    if not path.is_dir():
        return path.lstat().st_blocks * 512
    return sum(
        os.lstat(os.path.join(top, name)).st_blocks * 512
        for top, _, names in os.walk(path)
        for name in names
    )
