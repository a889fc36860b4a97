# SPDX-License-Identifier: Apache-2.0
"""The persistent build tree: a patched copy of a source, rewritten only where it changed.

Make decides by modification times, so a file whose content stays the same keeps its time and one
that changes gets a new one. The source is never written to; the object directory is make's.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bpfoom import cache
from bpfoom.guest.series import Series
from bpfoom.guest.source import Source, leaves


@dataclass
class State:
    """What the tree holds: the source's identity ("" while it changes), the paths patched, and for
    every other path how it looked in the source when it was copied (size, mtime, ctime)."""

    identity: str = ""
    touched: list[str] = field(default_factory=list)
    files: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class BuildTree:
    """The build tree of one flavour of one origin: Debian's source in all its versions, or one
    checkout."""

    key: str

    @classmethod
    def of(cls, source: Source, flavour: str) -> BuildTree:
        """The tree that builds of ``source`` in a flavour use."""
        origin = "debian" if source.ours else cache.key_of(str(source.directory))
        return cls(f"{origin}-{flavour}")

    @property
    def directory(self) -> Path:
        return cache.path_of("trees", self.key)

    @property
    def src(self) -> Path:
        """The patched source."""
        return self.directory / "src"

    @property
    def obj(self) -> Path:
        """The object directory, make's ``O=``."""
        return self.directory / "obj"

    @property
    def log(self) -> Path:
        """The log of the latest build, finished or not."""
        return self.directory / "log"

    def update(self, source: Source, series: Series) -> int:
        """Make ``src`` the source with the series applied; returns how many files changed.

        Raises KernelPatchError before anything is written when the series does not apply.
        """
        self.src.mkdir(parents=True, exist_ok=True)
        self.obj.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.directory) as name:
            scratch = Path(name)
            series.apply(source.directory, scratch)
            state, touched = self._load(), set(series.files)
            released = set(state.touched) - touched
            stale = state.identity != source.identity
            if stale or touched != set(state.touched):
                # An interrupted update must look unfinished to the next one.
                self._save(State("", sorted(touched | released), state.files))
            changed = self._sync(source, state.files, touched) if stale else 0
            changed += sum(_restore(source, name, self.src) for name in sorted(released))
            changed += sum(_bring(scratch / name, self.src / name) for name in sorted(touched))
            if stale or touched != set(state.touched):
                self._save(State(source.identity, sorted(touched), state.files))
        return changed

    def _sync(self, source: Source, files: dict[str, list[int]], touched: set[str]) -> int:
        """Bring every path that the series leaves alone to the source's content."""
        # Before anything is compiled, files that are older than every object do no harm. Later a
        # changed file needs a time of its own: one that is shared is another flavour's as well.
        link = source.ours and not any(self.obj.iterdir())
        wanted = {name for name in source.files() if _is_leaf(source.directory / name)}
        changed = 0
        for name in leaves(self.src) - wanted - touched:
            changed += _remove(self.src / name, self.src)
            files.pop(name, None)
        for name in sorted(wanted - touched):
            origin = source.directory / name
            if files.get(name) != _signature(origin):
                changed += _bring(origin, self.src / name, link=link)
                files[name] = _signature(origin)
        for name in touched:
            files.pop(name, None)
        return changed

    def _load(self) -> State:
        try:
            return State(**json.loads((self.directory / "state.json").read_bytes()))
        except (OSError, ValueError, TypeError):
            return State()

    def _save(self, state: State) -> None:
        fresh = self.directory / "state.json.new"
        fresh.write_text(json.dumps(asdict(state)))
        fresh.replace(self.directory / "state.json")


def _restore(source: Source, name: str, src: Path) -> int:
    """Give a path that the series no longer touches its content in the source, or no file."""
    if _is_leaf(source.directory / name):
        return _bring(source.directory / name, src / name)
    return _remove(src / name, src)


def _bring(origin: Path, target: Path, *, link: bool = False) -> int:
    """Make ``target`` what ``origin`` is; 1 if it had to change (then with a fresh time), else 0.

    An absent ``origin`` removes ``target``. ``link`` shares the file, and its time, instead of
    copying it.
    """
    if not _is_leaf(origin):
        return _remove(target, target.parent)
    if _is_leaf(target) and _same(origin, target):
        return 0
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(target.name + ".new")
    fresh.unlink(missing_ok=True)
    if origin.is_symlink():
        fresh.symlink_to(origin.readlink())
    elif link:
        os.link(origin, fresh)
    else:
        shutil.copyfile(origin, fresh)
        shutil.copymode(origin, fresh)
    fresh.replace(target)
    return 1


def _remove(path: Path, top: Path) -> int:
    """Unlink ``path`` and the directories below ``top`` that this empties; 1 if it was there."""
    if not _is_leaf(path):
        return 0
    path.unlink()
    parent = path.parent
    while parent != top and not any(parent.iterdir()):
        parent.rmdir()
        parent = parent.parent
    return 1


def _same(one: Path, other: Path) -> bool:
    if one.is_symlink() or other.is_symlink():
        return one.is_symlink() and other.is_symlink() and one.readlink() == other.readlink()
    first, second = one.stat(), other.stat()
    if (first.st_size, first.st_mode & 0o111) != (second.st_size, second.st_mode & 0o111):
        return False
    return os.path.samestat(first, second) or one.read_bytes() == other.read_bytes()


def _is_leaf(path: Path) -> bool:
    return path.is_symlink() or path.is_file()


def _signature(path: Path) -> list[int]:
    status = path.lstat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
