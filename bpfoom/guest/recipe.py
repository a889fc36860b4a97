# SPDX-License-Identifier: Apache-2.0
"""The root file systems that a guest can have: what goes into each, and how it starts.

Everything that differs between them stands here, as data; making and booting know no names.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """One root file system.

    ``packages`` (lists) and ``overlays`` (directories that go over the tree, a later one over an
    earlier) are of ``vm/``, and so is ``setup``, a script that runs in the finished tree.
    ``parameters`` are what the kernel's command line says of the start. A guest may write to a
    ``writable`` one; what it writes ends with it.
    """

    name: str
    purpose: str
    packages: tuple[str, ...]
    overlays: tuple[str, ...]
    parameters: str
    setup: str | None = None
    writable: bool = False


PLAIN = Recipe(
    "plain",
    "what everything else runs on: one script, then the guest agent",
    ("rootfs.packages",),
    ("overlay", "overlay-plain"),
    # After -- come init's own arguments.
    "init=/usr/bin/tini -- /usr/local/sbin/bpfoom-init",
)
SYSTEMD = Recipe(
    "systemd",
    "systemd as PID 1, for units and whatever runs as one",
    ("rootfs.packages", "rootfs-systemd.packages"),
    ("overlay", "overlay-systemd"),
    "init=/usr/lib/systemd/systemd",
    setup="systemd-setup",
    # Units are enabled and configured as on any machine.
    writable=True,
)

RECIPES = {recipe.name: recipe for recipe in (PLAIN, SYSTEMD)}
