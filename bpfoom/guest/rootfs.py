# SPDX-License-Identifier: Apache-2.0
"""The guest's root file system: a Debian tree with bcc and the lock's Python packages, as ext4.

It holds no code of bpfoom (that comes over 9p) but the guest's start, ``vm/init``. The image is
made once per content of its ingredients; asking for it again needs neither network nor root.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from bpfoom import cache, resources
from bpfoom.guest import chroot, mirror, process, pydeps

# Raised when this module's own steps change what comes out.
RECIPE = "1"
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
    """A finished root file system: the ext4 file, its cache key, and the list of its packages."""

    path: Path
    key: str
    packages: Path


def parse_packages(text: str) -> list[str]:
    """The packages of ``vm/rootfs.packages``: one a line, the rest of a line is the reason."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def key() -> str:
    """The content key of the image that the files of today make."""
    vm = resources.room("vm")
    overlay = sorted(p for p in (vm / "overlay").rglob("*") if p.is_file())
    return cache.key_of(
        RECIPE,
        _FINISH,
        *_EXCLUDED,
        *parse_packages((vm / "rootfs.packages").read_text()),
        (vm / "init").read_bytes(),
        *(part for p in overlay for part in (str(p.relative_to(vm)), p.read_bytes())),
        pydeps.guest_requirements(pydeps.lock_file().read_text()),
    )


def find() -> Image | None:
    """The root file system, if the cache has it."""
    made = _image()
    return made if made.path.exists() else None


def ensure(progress: process.Progress = process.SILENT) -> Image:
    """The root file system, made now if need be (a minute or two). Raises BuildError."""
    if found := find():
        return found
    made = _image()
    with cache.lock(KIND, made.key):
        if not made.path.exists():
            with cache.staged(KIND, made.key) as work:
                _build(work, progress)
    return made


def _image() -> Image:
    wanted = key()
    directory = cache.path_of(KIND, wanted)
    return Image(directory / "rootfs.ext4", wanted, directory / "packages")


def _build(work: Path, progress: process.Progress) -> None:
    # Outside the entry: it must outlive a failure, which removes the staged directory.
    log = cache.root() / "rootfs-build.log"
    log.unlink(missing_ok=True)
    python = work / "dist-packages"
    tree = work / "tree"
    progress.stage("installing the guest's Python packages")
    pydeps.install(python, log=log, on_line=progress.line)
    try:
        progress.stage("making the guest's root file system (trixie, by mmdebstrap)")
        process.must(_debootstrap(tree, python), "mmdebstrap", log=log, on_line=progress.line)
        _pack(tree, work / "rootfs.ext4", log)
        (work / "packages").write_bytes((tree / PACKAGE_LIST.lstrip("/")).read_bytes())
    finally:
        # The tree belongs to root; what else was staged is ours.
        subprocess.run(process.as_root(["rm", "-rf", "--", str(tree), str(python)]), check=False)
        for leftover in work.glob("*.requirements"):
            leftover.unlink()
        (work / "sources.list").unlink(missing_ok=True)


def _debootstrap(tree: Path, python: Path) -> list[str]:
    """The command that makes the tree, with the Python packages and our files put into it."""
    vm = resources.room("vm")
    found = mirror.find()
    sources = tree.with_name("sources.list")
    sources.write_text(found.sources())
    packages, files, init = (quote(str(p)) for p in (python, vm / "overlay", vm / "init"))
    # Hooks are shell, run as root with the tree as $1.
    hooks = [
        f'mkdir -p "$1{DIST_PACKAGES}"',
        f'cp -r {packages}/. "$1{DIST_PACKAGES}"',
        f'cp -r {files}/. "$1"',
        f'install -m 755 {init} "$1/usr/local/sbin/bpfoom-init"',
        f'chroot "$1" sh -euc {quote(_FINISH)}',
    ]
    return chroot.mmdebstrap_command(
        tree,
        sources,
        parse_packages((vm / "rootfs.packages").read_text()),
        mirror=found,
        extra=[
            '--aptopt=APT::Install-Recommends "false"',
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in _EXCLUDED),
            *(f"--customize-hook={hook}" for hook in hooks),
        ],
    )


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
