# SPDX-License-Identifier: Apache-2.0
"""Debian trees made by mmdebstrap, and commands run inside them.

Making a tree and entering it need root and go through sudo for anybody else; the command itself
runs as the caller. Mounts live in a private mount namespace and processes in a private pid
namespace: nothing is left behind, however a run ends. What goes into a tree is the callers' affair.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bpfoom.guest import mirror as mirrors
from bpfoom.guest import process

RELEASE = "trixie"

_ENTER = Path(__file__).with_name("enter.sh")


@dataclass(frozen=True)
class Bind:
    """A directory of the host seen at ``target`` (absolute) inside a chroot."""

    source: Path
    target: str
    read_only: bool = False


def mmdebstrap_command(
    target: Path,
    sources: Path,
    packages: Sequence[str],
    *,
    mirror: mirrors.Mirror,
    variant: str = "apt",
    extra: Sequence[str] = (),
) -> list[str]:
    """The command (root already arranged) that makes ``target`` a trixie tree.

    ``target``'s suffix decides the format as mmdebstrap does (a directory, ``.tar``, ``.ext2``).
    ``sources`` holds the sources list, see :meth:`Mirror.sources`. ``packages`` may name a suite
    as ``bpftool/trixie-backports``. ``extra`` are further options, hooks for one.
    """
    options = [
        "--mode=root",
        f"--variant={variant}",
        f"--architectures={mirrors.ARCHITECTURE}",
        f"--include={','.join(packages)}",
        *mirrors.mmdebstrap_options(mirror),
        *extra,
    ]
    return process.as_root(["mmdebstrap", *options, RELEASE, str(target), str(sources)])


def make_directory(
    target: Path,
    packages: Sequence[str],
    *,
    log: Path | None = None,
    on_line: process.OnLine | None = None,
) -> None:
    """Make a trixie tree in ``target``, an empty or absent directory, and give it to the caller.

    Owned by the caller it can be removed without root; set-user-id programs in it no longer work,
    which a build chroot does not miss. Raises BuildError.
    """
    mirror = mirrors.find()
    target.mkdir(parents=True, exist_ok=True)
    sources = target.with_name(target.name + ".sources.list")
    sources.write_text(mirror.sources())
    argv = mmdebstrap_command(target, sources, packages, mirror=mirror)
    owner = f"{os.getuid()}:{os.getgid()}"
    chown = process.as_root(["chown", "--recursive", "--no-dereference", owner, str(target)])
    try:
        process.must(argv, "mmdebstrap", log=log, on_line=on_line)
        process.must(chown, "giving the chroot to you")
    except BaseException:
        # Half a tree belongs to root: the caller could not remove it.
        process.stream(process.as_root(["rm", "-rf", "--one-file-system", str(target)]))
        raise
    finally:
        sources.unlink()


def command(
    root: Path,
    argv: Sequence[str],
    *,
    binds: Sequence[Bind] = (),
    env: Mapping[str, str] | None = None,
    cwd: str = "/",
) -> list[str]:
    """The command that runs ``argv`` inside ``root`` as the caller, with a clean environment."""
    mounts = [
        word
        for bind in binds
        for word in ("ro" if bind.read_only else "rw", str(bind.source), bind.target)
    ]
    values = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/", "LC_ALL": "C", **(env or {})}
    return process.as_root(
        [
            *("unshare", "--mount", "--propagation=unchanged", "--pid", "--fork", "--kill-child"),
            *("sh", str(_ENTER), str(root), str(len(binds)), *mounts),
            *("chroot", f"--userspec={os.getuid()}:{os.getgid()}", "--groups=", str(root)),
            *("env", "-i", "-C", cwd, *(f"{key}={value}" for key, value in values.items())),
            *argv,
        ]
    )
