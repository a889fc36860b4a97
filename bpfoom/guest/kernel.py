# SPDX-License-Identifier: Apache-2.0
"""Build the guest's kernel and keep the results: image, BTF, config, log.

A kernel is named by what it is made of (source, series, config, compiler, flags), so asking for one
that is built costs nothing. Source, patches, tree and chroot each have a module of their own; what
makes a debug kernel of it or an unpatched one stands in flavour.py.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bpfoom import cache, resources
from bpfoom.errors import BuildError
from bpfoom.guest import chroot, elf, kconfig, preflight, process, series, source, toolchain
from bpfoom.guest.flavour import PLAIN, Flavour
from bpfoom.guest.tree import BuildTree

_KIND = "kernels"

# Fixed names of the build, so that equal input gives equal output.
_STAMP = {
    "KBUILD_BUILD_TIMESTAMP": "Thu Jan 1 00:00:00 UTC 1970",
    "KBUILD_BUILD_USER": "bpfoom",
    "KBUILD_BUILD_HOST": "bpfoom",
    "KBUILD_BUILD_VERSION": "1",
}

# Where each variable lives at each instruction is a quarter of the compiler's work, and only pahole
# asks for it: to leave out functions that the compiler changed. Those have a name of their own
# (.isra, .constprop), and without optimized_func pahole leaves them out by that.
_DEBUG_INFO = (
    "KCFLAGS=-fno-var-tracking",
    "PAHOLE_FLAGS=-j --btf_features=encode_force,var,float,enum64,decl_tag,type_tag"
    ",reproducible_build",
)


@dataclass(frozen=True)
class Facts:
    """What a built kernel is made of, kept beside it as ``kernel.json``."""

    release: str
    source: str
    source_identity: str
    series: str
    patches: list[str]
    config: str
    compiler: str


@dataclass(frozen=True)
class Kernel:
    """A built kernel: one cache entry."""

    path: Path
    facts: Facts

    @property
    def image(self) -> Path:
        """The bzImage."""
        return self.path / "bzImage"

    @property
    def btf(self) -> Path:
        """Its types: the raw content of vmlinux's .BTF section."""
        return self.path / "btf"


@dataclass(frozen=True)
class Plan:
    """Everything that decides what the kernel will be."""

    flavour: Flavour
    source: source.Source
    series: series.Series
    fragment: str
    toolchain: toolchain.Toolchain

    @property
    def key(self) -> str:
        """The name of the result in the cache."""
        made_of = (self.source.identity, self.series.hash, self.config, self.toolchain.compiler)
        return cache.key_of(*made_of, *_DEBUG_INFO)

    @property
    def config(self) -> str:
        """Identity of the options asked for; a reworded reason changes nothing."""
        return cache.key_of(json.dumps(kconfig.parse(self.fragment), sort_keys=True))

    @property
    def tree(self) -> BuildTree:
        """Each flavour has its own: going back to one compiles nothing again."""
        return BuildTree.of(self.source, self.flavour.name)

    def find(self) -> Kernel | None:
        """The kernel, if it is built."""
        path = cache.path_of(_KIND, self.key)
        try:
            return Kernel(path, Facts(**json.loads((path / "kernel.json").read_bytes())))
        except (OSError, ValueError, TypeError):
            return None


def fragment(flavour: Flavour) -> str:
    """The text of a flavour's config fragments, as one."""
    room = resources.room("vm")
    return "\n".join((room / name).read_text() for name in flavour.fragments)


def patches(flavour: Flavour) -> series.Series:
    """The series as a flavour applies it."""
    return series.load().first(flavour.patches)


def known_plan(checkout: Path | None = None, flavour: Flavour = PLAIN) -> Plan | None:
    """The plan as far as this machine knows it, asking nobody; None before the first build."""
    origin = source.checkout(checkout) if checkout else source.known_debian()
    tools = toolchain.find()
    if not origin or not tools:
        return None
    return Plan(flavour, origin, patches(flavour), fragment(flavour), tools)


def plan(
    checkout: Path | None = None,
    progress: process.Progress = process.SILENT,
    flavour: Flavour = PLAIN,
) -> Plan:
    """The plan, with source and build chroot fetched and made if they are not here."""
    # First, so that a series that cannot be read fails before the download.
    applied = patches(flavour)
    origin = source.checkout(checkout) if checkout else source.debian(progress)
    return Plan(flavour, origin, applied, fragment(flavour), toolchain.ensure(progress))


def build(
    checkout: Path | None = None,
    progress: process.Progress = process.SILENT,
    flavour: Flavour = PLAIN,
) -> Kernel:
    """The kernel of Debian's source, or of ``checkout``, in a flavour; built if it is not yet.

    Raises PreflightError when this machine cannot build, KernelPatchError when the series does not
    apply, BuildError when the build fails.
    """
    known = known_plan(checkout, flavour)
    built = known.find() if known else None
    if built and (checkout or source.fresh()):
        return built
    if not built:
        preflight.check(preflight.BUILD_TOOLS)
    wanted = plan(checkout, progress, flavour)
    if found := wanted.find():
        return found
    progress.stage("taking the build tree")
    with cache.lock("trees", wanted.tree.key):
        return wanted.find() or _build(wanted, progress)


def commands(wanted: Plan) -> list[list[str]]:
    """The whole commands that a build runs in the chroot, in order: configure, compile."""
    configure = ["KCONFIG_ALLCONFIG=/obj/fragment.config", "allnoconfig"]
    return [_make(wanted, configure), _make(wanted, [*_DEBUG_INFO, "bzImage"])]


def _make(wanted: Plan, arguments: Sequence[str]) -> list[str]:
    """Make ``arguments``, at places that never change: or every object would be compiled again."""
    tree = wanted.tree
    jobs = len(os.sched_getaffinity(0))
    return chroot.command(
        wanted.toolchain.root,
        ["make", "-C", "/src", "O=/obj", f"-j{jobs}", *arguments],
        binds=[chroot.Bind(tree.src, "/src", read_only=True), chroot.Bind(tree.obj, "/obj")],
        env=_STAMP,
    )


def _build(wanted: Plan, progress: process.Progress) -> Kernel:
    tree = wanted.tree
    progress.stage(f"applying {len(wanted.series.patches)} patches to {wanted.source.name}")
    tree.update(wanted.source, wanted.series)
    _check_still(wanted.source)
    tree.log.write_text("")
    configure, compile_ = commands(wanted)
    progress.stage("configuring the kernel")
    (tree.obj / "fragment.config").write_text(wanted.fragment)
    process.must(configure, "configuring the kernel", log=tree.log, on_line=progress.line)
    kconfig.verify(wanted.fragment, (tree.obj / ".config").read_text())
    progress.stage("compiling the kernel")
    process.must(compile_, "compiling the kernel", log=tree.log, on_line=progress.line)
    return _keep(wanted)


def _check_still(origin: source.Source) -> None:
    """A checkout edited while it was copied would give a kernel under a wrong name."""
    if not origin.ours and source.checkout(origin.directory).identity != origin.identity:
        raise BuildError(
            f"{origin.directory} changed while it was being copied",
            hint="run the same command again",
            path=str(origin.directory),
        )


def _keep(wanted: Plan) -> Kernel:
    """Make the cache entry from the finished object directory."""
    tree = wanted.tree
    with cache.staged(_KIND, wanted.key) as entry:
        (entry / "btf").write_bytes(elf.section(tree.obj / "vmlinux", ".BTF"))
        shutil.copyfile(tree.obj / "arch/x86/boot/bzImage", entry / "bzImage")
        shutil.copyfile(tree.obj / ".config", entry / "config")
        shutil.copyfile(tree.log, entry / "log")
        facts = Facts(
            release=(tree.obj / "include/config/kernel.release").read_text().strip(),
            source=wanted.source.name,
            source_identity=wanted.source.identity,
            series=wanted.series.hash,
            patches=[patch.name for patch in wanted.series.patches],
            config=wanted.config,
            compiler=wanted.toolchain.compiler,
        )
        (entry / "kernel.json").write_text(json.dumps(asdict(facts), indent=1) + "\n")
    made = wanted.find()
    assert made is not None
    return made
