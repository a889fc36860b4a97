# SPDX-License-Identifier: Apache-2.0
"""The kernels that are made of one source: what goes into each, and what a guest of it needs.

Everything that differs between flavours stands here, as data; building and booting know no names.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Flavour:
    """One kernel of a source.

    ``fragments`` are files of ``vm/``; where two name an option, the later one holds. ``patches``
    is how many of the series are applied, all if None. ``memory_mib`` is what a guest gets unless
    it is told.
    """

    name: str
    purpose: str
    fragments: tuple[str, ...]
    patches: int | None = None
    memory_mib: int = 2048


PLAIN = Flavour("plain", "what everything else runs on", ("kernel.config",))
DEBUG = Flavour(
    "debug",
    "KASAN, lockdep, fault injection: slow, and tells what goes wrong",
    ("kernel.config", "kernel-debug.config"),
    memory_mib=3072,
)
BASE = Flavour(
    "base",
    "without the series, to compare with",
    ("kernel.config", "kernel-base.config"),
    patches=0,
)

FLAVOURS = {flavour.name: flavour for flavour in (PLAIN, DEBUG, BASE)}
