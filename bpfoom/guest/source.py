# SPDX-License-Identifier: Apache-2.0
"""Where the kernel source comes from: Debian's newest ``linux-source``, or a git checkout.

A source is a directory that is only ever read, with an identity that changes when its content
does. Copying it into a build tree and patching the copy is the tree module's affair.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from bpfoom import cache
from bpfoom.errors import BuildError, InfrastructureError, UsageError
from bpfoom.guest import mirror, process

# The base that the patch series is written for.
BASE = (7, 3)
PREFIX = "linux-source-"
# The mirror is asked for a newer revision once a day.
CHECK_AFTER_S = 24 * 3600

_KIND = "sources"
_CURRENT = "current"
_MAKE_FIELD = re.compile(r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION) *= *(\S*)$", re.MULTILINE)


@dataclass(frozen=True)
class Source:
    """A kernel source tree, only read.

    ``name`` says where it is from, ``version`` is the kernel's, ``identity`` stands for the
    content. ``ours`` means that the directory is in our cache and may share its files by links.
    """

    directory: Path
    name: str
    version: str
    identity: str
    ours: bool

    def files(self) -> set[str]:
        """The paths of its files: of a checkout those that git tracks or would."""
        if self.ours:
            return leaves(self.directory)
        listed = _git(
            self.directory, "ls-files", "-z", "--cached", "--others", "--exclude-standard"
        )
        return set(filter(None, listed.split("\0")))


@dataclass(frozen=True)
class Release:
    """A Debian source package and when the mirror was last asked for it (epoch seconds)."""

    package: str
    version: str
    checked: float


def checkout(directory: Path) -> Source:
    """The git checkout ``directory`` as it stands, uncommitted changes and new files included.

    Raises UsageError when it is no checkout of a kernel.
    """
    makefile = directory / "Makefile"
    if not (directory / ".git").exists() or not (directory / "Kbuild").is_file():
        raise UsageError(
            f"{directory} is not a git checkout of the kernel",
            hint="name the top directory of a clone, for example of bpf-next",
            path=str(directory),
        )
    directory = directory.resolve()
    digest = hashlib.sha256()
    digest.update(_git(directory, "rev-parse", "HEAD^{tree}").encode())
    digest.update(os.fsencode(_git(directory, "diff", "--binary", "--no-ext-diff", "HEAD")))
    new = _git(directory, "ls-files", "-z", "--others", "--exclude-standard")
    for name in filter(None, sorted(new.split("\0"))):
        digest.update(os.fsencode(name) + b"\0" + _content_id(directory / name))
    return Source(
        directory,
        name=str(directory),
        version=make_version(makefile.read_text()),
        identity=digest.hexdigest()[:32],
        ours=False,
    )


def debian(progress: process.Progress = process.SILENT) -> Source:
    """The newest Debian source, downloaded and unpacked if it is not here yet."""
    release = _release(progress)
    if not _tree_of(release).is_dir():
        with cache.lock(_KIND, release.version):
            if not _tree_of(release).is_dir():
                _fetch(release, progress)
    return _debian_source(release)


def known_debian() -> Source | None:
    """The Debian source as last chosen, if it is unpacked; asks nobody."""
    release = _current()
    return _debian_source(release) if release and _tree_of(release).is_dir() else None


def fresh() -> bool:
    """Whether the Debian source is here and the mirror was asked about it within a day."""
    known = _current()
    return (
        known is not None
        and time.time() - known.checked < CHECK_AFTER_S
        and _tree_of(known).is_dir()
    )


def choose(names: list[str]) -> str:
    """The package for :data:`BASE`, or the nearest newer one. BuildError when there is none."""
    found = {
        tuple(int(n) for n in name.removeprefix(PREFIX).split(".")): name
        for name in names
        if re.fullmatch(re.escape(PREFIX) + r"\d+(\.\d+)+", name)
    }
    usable = sorted(version for version in found if version >= BASE)
    if not usable:
        raise BuildError(
            f"the mirror has no {_wanted()} and nothing newer",
            detail="it has: " + (", ".join(found[v] for v in sorted(found)) or "no linux-source"),
            hint="name a checkout of the kernel with --source DIR",
        )
    return found[usable[0]]


def make_version(makefile: str) -> str:
    """The kernel version that a top-level Makefile states, "7.3.4" for example."""
    fields: dict[str, str] = dict(_MAKE_FIELD.findall(makefile))
    numbers = (fields.get(key, "") for key in ("VERSION", "PATCHLEVEL", "SUBLEVEL"))
    return ".".join(n for n in numbers if n) + fields.get("EXTRAVERSION", "")


def _wanted() -> str:
    return PREFIX + ".".join(str(n) for n in BASE)


def _release(progress: process.Progress) -> Release:
    """The release to use; the mirror is asked when the last answer is a day old or of no use."""
    known = _current()
    if known and fresh():
        return known
    try:
        found = _ask(progress)
    except InfrastructureError as error:
        if known is None or not _tree_of(known).is_dir():
            raise
        progress.stage(f"{error.message}; going on with {known.package} {known.version}")
        return known
    cache.write_file(_KIND, _CURRENT, json.dumps(asdict(found)).encode())
    return found


def _ask(progress: process.Progress) -> Release:
    progress.stage("asking the Debian mirror for the newest kernel source")
    archive = mirror.Archive(mirror.find())
    archive.update(progress.line)
    names = archive.names(PREFIX)
    package = choose(names)
    if package != _wanted():
        has = ", ".join(name.removeprefix(PREFIX) for name in names)
        progress.stage(f"the mirror has no {_wanted()} any more (it has {has}): trying {package}")
    return Release(package, archive.versions(package)[0], time.time())


def _current() -> Release | None:
    try:
        return Release(**json.loads(cache.path_of(_KIND, _CURRENT).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _tree_of(release: Release) -> Path:
    return cache.path_of(_KIND, release.version)


def _debian_source(release: Release) -> Source:
    tree = _tree_of(release)
    return Source(
        tree,
        name=f"{release.package} {release.version}",
        version=make_version((tree / "Makefile").read_text()),
        identity=f"debian:{release.version}",
        ours=True,
    )


def _fetch(release: Release, progress: process.Progress) -> None:
    """Download, unpack the package, unpack the tarball inside, and make that the entry."""
    with cache.staged(_KIND, release.version) as tree:
        progress.stage(f"downloading {release.package} {release.version}")
        aside = tree / ".package"
        aside.mkdir()
        archive = mirror.Archive(mirror.find())
        package = archive.download(release.package, release.version, aside, progress.line)
        progress.stage(f"unpacking {release.package}")
        process.must(["dpkg-deb", "--extract", str(package), str(aside)], "unpacking the package")
        tarball = next(aside.glob(f"usr/src/{PREFIX}*.tar.*"))
        process.must(
            ["tar", "-xf", str(tarball), "-C", str(tree), "--strip-components=1"],
            "unpacking the kernel source",
        )
        shutil.rmtree(aside)


def leaves(top: Path) -> set[str]:
    """Paths of all files and symbolic links below ``top``, links to directories included."""
    found: set[str] = set()
    for directory, below, names in os.walk(top):
        prefix = os.path.relpath(directory, top)
        links = [name for name in below if os.path.islink(os.path.join(directory, name))]
        found.update(os.path.normpath(os.path.join(prefix, name)) for name in (*names, *links))
    return found


def _git(directory: Path, *arguments: str) -> str:
    # A foreign repository's settings must not start a monitor, nor may reading refresh its index.
    options = ["--no-optional-locks", "-c", "core.fsmonitor=false", "-C", str(directory)]
    return process.capture(["git", *options, *arguments], f"git {arguments[0]} in {directory}")


def _content_id(path: Path) -> bytes:
    if path.is_symlink():
        return str(path.readlink()).encode()
    return hashlib.sha256(path.read_bytes()).digest()
