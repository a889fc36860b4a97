# SPDX-License-Identifier: Apache-2.0
"""The guest's root file systems: Debian trees with bcc and the lock's Python packages, as ext4.

They hold no code of bpfoom (that comes over 9p) but the guest's start, ``vm/init``. An image is
made once per content of its ingredients; asking for it again needs neither network nor root. What
makes one differ from another stands in recipe.py.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from bpfoom import cache, resources
from bpfoom.guest import chroot, mirror, process, pydeps
from bpfoom.guest.recipe import PLAIN, Recipe

# Raised when this module's own steps change what comes out.
STEPS = "2"
KIND = "images"

DIST_PACKAGES = f"/usr/local/lib/python{pydeps.GUEST_PYTHON}/dist-packages"
PACKAGE_LIST = "/usr/share/bpfoom-packages"

# Nobody reads them in the guest.
_EXCLUDED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*")

# Run inside the new tree. Bytecode goes to one place of its own: with PYTHONPYCACHEPREFIX set
# Python looks nowhere else, and the checkout's bytecode (a share mounted below it) needs the
# prefix because the checkout is read-only. The files of the image never change under their
# bytecode, hence unchecked. A wheel may have lost the executable bits.
_FINISH = f"""
chmod 755 /usr/local/sbin/* /usr/local/bin/* /usr/sbin/shutdown
mkdir -p /bpfoom/bpfoom /pycache/bpfoom
find /usr -name __pycache__ -prune -exec rm -rf {{}} +
PYTHONPYCACHEPREFIX=/pycache python3 -m compileall -q --invalidation-mode unchecked-hash \\
    /usr/lib/python{pydeps.GUEST_PYTHON} /usr/lib/python3/dist-packages {DIST_PACKAGES}
dpkg-query --show >{PACKAGE_LIST}
rm -rf /var/cache/apt /var/cache/debconf /var/lib/apt/lists
: >/etc/machine-id
"""


@dataclass(frozen=True)
class Image:
    """A root file system that is made, or would be: what it is made by, the ext4 file, its cache
    key, and the list of its packages."""

    recipe: Recipe
    path: Path
    key: str
    packages: Path


def parse_packages(text: str) -> list[str]:
    """The packages of a list in ``vm/``: one a line, the rest of a line is the reason."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def packages(recipe: Recipe) -> list[str]:
    """The Debian packages of an image."""
    vm = resources.room("vm")
    return [name for file in recipe.packages for name in parse_packages((vm / file).read_text())]


def key(recipe: Recipe = PLAIN) -> str:
    """The content key of the image that the files of today make."""
    vm = resources.room("vm")
    tops = (vm / overlay for overlay in recipe.overlays)
    files = [(p, p.relative_to(top)) for top in tops for p in sorted(top.rglob("*")) if p.is_file()]
    return cache.key_of(
        STEPS,
        _FINISH,
        *_EXCLUDED,
        *packages(recipe),
        (vm / "init").read_bytes(),
        (vm / recipe.setup).read_bytes() if recipe.setup else b"",
        *(part for p, name in files for part in (str(name), p.read_bytes())),
        pydeps.guest_requirements(pydeps.lock_file().read_text()),
    )


def find(recipe: Recipe = PLAIN) -> Image | None:
    """The root file system, if the cache has it."""
    made = _image(recipe)
    return made if made.path.exists() else None


def ensure(progress: process.Progress = process.SILENT, recipe: Recipe = PLAIN) -> Image:
    """The root file system, made now if need be (a minute or two). Raises BuildError."""
    if found := find(recipe):
        return found
    made = _image(recipe)
    with cache.lock(KIND, made.key):
        if not made.path.exists():
            with cache.staged(KIND, made.key) as work:
                _build(recipe, work, progress)
    return made


def _image(recipe: Recipe) -> Image:
    wanted = key(recipe)
    directory = cache.path_of(KIND, wanted)
    return Image(recipe, directory / "rootfs.ext4", wanted, directory / "packages")


def _build(recipe: Recipe, work: Path, progress: process.Progress) -> None:
    # Outside the entry: it must outlive a failure, which removes the staged directory.
    log = cache.root() / f"rootfs-{recipe.name}-build.log"
    log.unlink(missing_ok=True)
    python = work / "dist-packages"
    tree = work / "tree"
    progress.stage("installing the guest's Python packages")
    pydeps.install(python, log=log, on_line=progress.line)
    try:
        progress.stage(f"making the guest's {recipe.name} root file system (trixie, by mmdebstrap)")
        argv = _debootstrap(recipe, tree, python)
        process.must(argv, "mmdebstrap", log=log, on_line=progress.line)
        _pack(tree, work / "rootfs.ext4", log)
        (work / "packages").write_bytes((tree / PACKAGE_LIST.lstrip("/")).read_bytes())
    finally:
        # The tree belongs to root; what else was staged is ours.
        subprocess.run(process.as_root(["rm", "-rf", "--", str(tree), str(python)]), check=False)
        for leftover in work.glob("*.requirements"):
            leftover.unlink()
        (work / "sources.list").unlink(missing_ok=True)


def _debootstrap(recipe: Recipe, tree: Path, python: Path) -> list[str]:
    """The command that makes the tree, with the Python packages and our files put into it."""
    found = mirror.find()
    sources = tree.with_name("sources.list")
    sources.write_text(found.sources())
    return chroot.mmdebstrap_command(
        tree,
        sources,
        packages(recipe),
        mirror=found,
        extra=[
            '--aptopt=APT::Install-Recommends "false"',
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in _EXCLUDED),
            *(f"--customize-hook={hook}" for hook in _hooks(recipe, python)),
        ],
    )


def _hooks(recipe: Recipe, python: Path) -> list[str]:
    """What is done to the tree once its packages are there: shell, as root, the tree is $1."""
    vm = resources.room("vm")
    hooks = [
        f'mkdir -p "$1{DIST_PACKAGES}"',
        f'cp -r {quote(str(python))}/. "$1{DIST_PACKAGES}"',
        *(f'cp -r {quote(str(vm / overlay))}/. "$1"' for overlay in recipe.overlays),
        f'install -m 755 {quote(str(vm / "init"))} "$1/usr/local/sbin/bpfoom-init"',
        f'chroot "$1" sh -euc {quote(_FINISH)}',
    ]
    if recipe.setup:
        hooks.append(f'chroot "$1" sh -eu <{quote(str(vm / recipe.setup))}')
    return hooks


def _pack(tree: Path, target: Path, log: Path) -> None:
    """Turn the tree into an ext4 file that belongs to the caller."""
    used = process.capture(
        process.as_root(["du", "--summarize", "--block-size=1M", str(tree)]), "measuring the tree"
    )
    mebibytes = int(used.split()[0])
    # Made beforehand: mke2fs, as root, keeps the owner of a file that is there.
    target.touch()
    process.must(
        process.as_root(
            # Never written to, so neither a journal nor room for root or for growth.
            ["/usr/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal,^resize_inode"]
            + ["-m", "0", "-d", str(tree), str(target), f"{mebibytes + mebibytes // 8 + 32}M"]
        ),
        "mke2fs",
        log=log,
    )
