# SPDX-License-Identifier: Apache-2.0
"""The chroot that compiles kernels: a trixie with a compiler, the same on every host.

One per package list. Its compiler's version is remembered beside it, so that asking costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bpfoom import cache, resources
from bpfoom.guest import chroot, process

_KIND = "chroots"


@dataclass(frozen=True)
class Toolchain:
    """A finished build chroot: its root directory and the first line of ``gcc --version``."""

    root: Path
    compiler: str


def packages() -> list[str]:
    """The Debian packages of the chroot, from ``vm/kernel.packages``."""
    text = (resources.room("vm") / "kernel.packages").read_text()
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def find() -> Toolchain | None:
    """The chroot, if it has been made."""
    entry = _entry()
    try:
        return Toolchain(entry / "root", (entry / "compiler").read_text().strip())
    except OSError:
        return None


def ensure(progress: process.Progress = process.SILENT) -> Toolchain:
    """The chroot, made now if need be (about half a minute and 700 MB). Raises BuildError."""
    if found := find():
        return found
    key = _entry().name
    with cache.lock(_KIND, key):
        if found := find():
            return found
        progress.stage("making the build chroot (trixie, by mmdebstrap)")
        with cache.staged(_KIND, key) as entry:
            root = entry / "root"
            chroot.make_directory(root, packages(), log=entry / "log", on_line=progress.line)
            (entry / "compiler").write_text(_compiler(root) + "\n")
    made = find()
    assert made is not None
    return made


def _entry() -> Path:
    return cache.path_of(_KIND, cache.key_of(chroot.RELEASE, *packages()))


def _compiler(root: Path) -> str:
    # Stdout alone: sudo may have something to say on stderr.
    asked = chroot.command(root, ["gcc", "--version"])
    return process.capture(asked, "asking the build chroot's compiler").splitlines()[0]
