# SPDX-License-Identifier: Apache-2.0
"""The C helpers of ``vm/helpers``, compiled for the guest: ``python -m tests.helpers`` builds them.

The build chroot's compiler makes them, static, once per content. They lie below ``.venv``, the one
place for made things that the guest sees too. In the guest :func:`path` finds them.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from bpfoom import cache, resources
from bpfoom.errors import NotThereError
from bpfoom.guest import chroot, process, toolchain

CHECKOUT = Path(__file__).resolve().parents[1]

_BUILT = CHECKOUT / ".venv" / "helpers"
_FLAGS = (
    *("-std=gnu17", "-D_GNU_SOURCE", "-O2", "-static", "-pthread"),
    *("-Wall", "-Wextra", "-Werror"),
)


def path(name: str) -> Path:
    """A helper that is built from the sources of today. Raises NotThereError."""
    built = _directory() / name
    if not built.exists():
        raise NotThereError(
            f"the helper {name} is not built",
            hint="on the host: .venv/bin/python -m tests.helpers",
            path=str(built),
        )
    return built


def ensure(progress: process.Progress = process.SILENT) -> None:
    """Build what is not built yet (seconds; the chroot too, if it is missing). BuildError."""
    target = _directory()
    if target.exists():
        return
    tools = toolchain.ensure(progress)
    with cache.lock("helpers", target.name):
        if not target.exists():
            progress.stage("compiling the helpers")
            _build(tools.root, target)


def _build(root: Path, target: Path) -> None:
    work = target.with_name(f".{target.name}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    for source in sorted(_sources().glob("*.c")):
        _compile(root, source.name, work)
    work.rename(target)


def _compile(root: Path, source: str, target: Path) -> None:
    binds = [
        chroot.Bind(_sources(), "/src", read_only=True),
        chroot.Bind(target, "/obj"),
    ]
    output = f"/obj/{Path(source).stem}"
    argv = ["gcc", *_FLAGS, "-o", output, f"/src/{source}"]
    process.must(chroot.command(root, argv, binds=binds), f"compiling {source}")


def _sources() -> Path:
    return resources.room("vm") / "helpers"


def _directory() -> Path:
    """Where today's sources, flags and compiler packages put the programs."""
    ingredients: list[str | bytes] = [chroot.RELEASE, *toolchain.packages(), *_FLAGS]
    for file in sorted(_sources().iterdir()):
        ingredients += [file.name, file.read_bytes()]
    return _BUILT / cache.key_of(*ingredients)


if __name__ == "__main__":
    ensure(process.Progress(stage=lambda text: print(text, file=sys.stderr)))
