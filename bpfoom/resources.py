# SPDX-License-Identifier: Apache-2.0
"""Where the files that are not Python live: ``bpf/``, ``kernel-patches/`` and ``vm/``.

In a checkout they stand beside the package, in a wheel inside it. Everything that needs one of
them asks here, so that both serve alike.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
ROOMS = ("bpf", "kernel-patches", "vm")
# Where the templates that policies share are, as messages name them wherever they really are.
SHARED = "bpf/include/"


def checkout() -> Path | None:
    """The checkout that this package runs from, or None when it was installed from a wheel."""
    root = _PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() and (root / "bpf").is_dir() else None


def room(name: str) -> Path:
    """The directory of one of :data:`ROOMS`."""
    if name not in ROOMS:
        raise ValueError(f"no such room: {name}")
    root = checkout()
    return root / name if root else _PACKAGE / "_data" / name
