# SPDX-License-Identifier: Apache-2.0
"""The patch series as an object: its order, its content, and what it makes of a source tree.

It applies without fuzz, by ``git apply``, to copies of the files it touches and never to the tree
it is given, so a conflict leaves nothing half done. Building the result is the kernel module's.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bpfoom import cache, resources
from bpfoom.errors import KernelPatchError

_HUNK = re.compile(r"^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_FAILED = re.compile(r"^error: patch failed: (?P<file>.+):(?P<line>\d+)$", re.MULTILINE)
_REFUSED = re.compile(r"^error: (?P<file>\S+): (?P<why>.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Hunk:
    """One hunk: its number within the file's part of the patch, first old line, and text."""

    number: int
    old_start: int
    text: str


@dataclass(frozen=True)
class FileChange:
    """What a patch does to one file, by its path in the tree."""

    path: str
    hunks: tuple[Hunk, ...]

    def count(self, sign: str) -> int:
        """Lines added ("+") or removed ("-")."""
        lines = (line for hunk in self.hunks for line in hunk.text.splitlines()[1:])
        return sum(line.startswith(sign) for line in lines)


@dataclass(frozen=True)
class Patch:
    """One patch of the series, as mailed: name of its file, text, and what that parses to."""

    name: str
    text: str
    changes: tuple[FileChange, ...]

    @property
    def subject(self) -> str:
        """The commit's subject, without the ``[PATCH n/m]`` tag."""
        found = re.search(r"^Subject: (.+(?:\n[ \t].+)*)", self.text, re.MULTILINE)
        whole = " ".join(found[1].split()) if found else self.name
        return re.sub(r"^\[PATCH[^]]*\]\s*", "", whole)


@dataclass(frozen=True)
class Series:
    """The patches in the order of the ``series`` file."""

    patches: tuple[Patch, ...]

    @property
    def hash(self) -> str:
        """Identity of names, order and content; 32 hex digits."""
        return cache.key_of(*(part for p in self.patches for part in (p.name, p.text)))

    @property
    def files(self) -> list[str]:
        """Every path the series touches, sorted."""
        return sorted({change.path for patch in self.patches for change in patch.changes})

    def first(self, count: int | None) -> Series:
        """Only the first patches, all of them if None."""
        return Series(self.patches[:count])

    def apply(self, pristine: Path, scratch: Path) -> None:
        """Fill ``scratch``, an empty directory, with the touched files as the series leaves them.

        ``pristine`` is only read. A file that the series removes is absent from ``scratch``.
        Raises KernelPatchError with the patch, the file and the hunk that does not fit.
        """
        for name in self.files:
            source = pristine / name
            if source.is_file():
                (scratch / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, scratch / name)
        for patch in self.patches:
            _apply_one(patch, scratch)


def load(directory: Path | None = None) -> Series:
    """The series in ``directory`` (ours unless given); no ``series`` file is an empty series."""
    directory = directory or resources.room("kernel-patches")
    order = directory / "series"
    if not order.is_file():
        return Series(())
    lines = (line.partition("#")[0].strip() for line in order.read_text().splitlines())
    return Series(tuple(_read(directory, name) for name in lines if name))


def _read(directory: Path, name: str) -> Patch:
    path = directory / name
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise KernelPatchError(
            f"{name} is in the series but cannot be read: {error.strerror}",
            hint=f"correct {directory / 'series'}",
            patch=name,
            path=str(path),
        ) from error
    return Patch(name, text, tuple(parse(text)))


def parse(text: str) -> Iterator[FileChange]:
    """The changes of one patch in git's format, file by file."""
    path, hunks = "", list[Hunk]()
    lines = iter(text.splitlines(keepends=True))
    for line in lines:
        if line.startswith("diff --git "):
            if path:
                yield FileChange(path, tuple(hunks))
            # "a/PATH b/PATH" with the same PATH twice: ours never renames.
            path, hunks = line.rstrip("\n").rpartition(" b/")[2], []
        elif path and (found := _HUNK.match(line)):
            body = _hunk_body(lines, int(found[2] or 1), int(found[4] or 1))
            hunks.append(Hunk(len(hunks) + 1, int(found[1]), line + body))
    if path:
        yield FileChange(path, tuple(hunks))


def _hunk_body(lines: Iterator[str], old: int, new: int) -> str:
    """The lines of a hunk that has ``old`` lines before and ``new`` lines after the change."""
    body = []
    while old > 0 or new > 0:
        line = next(lines, None)
        if line is None:
            break
        body.append(line)
        old -= line[0] in " -\n"
        new -= line[0] in " +\n"
    return "".join(body)


def _apply_one(patch: Patch, scratch: Path) -> None:
    # Only the patch decides: no repository around the scratch directory, nobody's git settings.
    env = {
        **os.environ,
        "LC_ALL": "C",
        "GIT_CEILING_DIRECTORIES": str(scratch.resolve().parent),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
    }
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        env.pop(name, None)
    done = subprocess.run(
        ["git", "apply", "--whitespace=nowarn", "-"],
        input=patch.text.encode(),
        capture_output=True,
        cwd=scratch,
        env=env,
    )
    if done.returncode:
        raise _conflict(patch, done.stderr.decode(errors="replace"))


def _conflict(patch: Patch, said: str) -> KernelPatchError:
    """The error for what ``git apply`` said about ``patch``."""
    failed, refused = _FAILED.search(said), _REFUSED.search(said)
    file, hunk, why = "", None, said.strip()
    if failed:
        file, start = failed["file"], int(failed["line"])
        hunk = _hunk_at(patch, file, start)
        why = f"hunk {hunk.number} (line {start}) does not fit" if hunk else f"line {start}"
    elif refused:
        file, why = refused["file"], refused["why"]
    return KernelPatchError(
        f"{patch.name} does not apply to this tree: {file + ': ' if file else ''}{why}",
        detail=hunk.text if hunk else said,
        hint="the tree is as it was; rebase this patch onto it, or take the source it was made for",
        patch=patch.name,
        file=file,
        hunk=hunk.number if hunk else None,
        line=hunk.old_start if hunk else None,
    )


def _hunk_at(patch: Patch, file: str, start: int) -> Hunk | None:
    for change in patch.changes:
        for hunk in change.hunks:
            if change.path == file and hunk.old_start == start:
                return hunk
    return None
