# SPDX-License-Identifier: Apache-2.0
"""An object for guests that have no compiler of their own: made on the host, for the plain kernel.

It lies beside the helpers, below ``.venv``, which guests see; :func:`path` finds it there.
"""

from __future__ import annotations

from pathlib import Path

from bpfoom.compiler.build import compile_policy
from bpfoom.compiler.object import write_file
from bpfoom.errors import NotThereError

POLICY = "largest-task"

_CHECKOUT = Path(__file__).resolve().parents[1]
_PLAIN_KERNEL = _CHECKOUT / "tests" / "data" / "kernel.btf"
_FILE = _CHECKOUT / ".venv" / "objects" / f"{POLICY}.o"


def path() -> Path:
    """The object. Raises NotThereError where the host has not made it."""
    if not _FILE.exists():
        raise NotThereError(
            "no object was compiled on the host",
            hint="on the host: .venv/bin/python -m tests.guestsuite does it",
            path=str(_FILE),
        )
    return _FILE


def ensure() -> None:
    """Compile it, with today's sources."""
    _FILE.parent.mkdir(parents=True, exist_ok=True)
    write_file(_FILE, compile_policy(POLICY, {}, btf=_PLAIN_KERNEL))
