# SPDX-License-Identifier: Apache-2.0
"""The lock's Python packages for the guest's Python: which ones, and their wheels unpacked.

The guest gets exactly the versions of ``requirements.lock``, checked by hash. Tools that only a
developer's machine runs are left out. Where the packages go in the image is rootfs' affair.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from bpfoom import resources
from bpfoom.errors import BuildError
from bpfoom.guest import process

GUEST_PYTHON = "3.13"

# Builders, linters and type checkers, what draws reports and looks at them, each with what only it
# needs. uv and ruff alone are 60 MB.
HOST_ONLY = frozenset(
    {
        *("ast-serialize", "librt", "mypy", "mypy-extensions", "pathspec"),
        *("build", "editables", "hatchling", "pyproject-hooks", "tomlkit", "trove-classifiers"),
        *("click-man", "ruff", "uv"),
        *("contourpy", "cycler", "fonttools", "kiwisolver", "matplotlib", "numpy", "pillow"),
        *("pyparsing", "python-dateutil", "tzdata"),
        *("certifi", "cffi", "h11", "idna", "outcome", "pycparser", "pysocks", "selenium"),
        *("sniffio", "trio", "trio-websocket", "urllib3", "websocket-client", "wsproto"),
    }
)

# Published as source alone: a wheel for the guest is made here, which pure Python allows.
SOURCE_ONLY = ("sdnotify",)


def lock_file() -> Path:
    """``requirements.lock``: it stands beside the rooms, in a checkout and in a wheel."""
    return resources.room("vm").parent / "requirements.lock"


def guest_requirements(lock: str) -> str:
    """The part of a lock's text that the guest needs: its requirements with their hashes.

    Raises BuildError for a requirement that depends on the Python version: pip would decide that
    by the host's Python, not by the guest's.
    """
    kept = []
    for block in re.split(r"\n(?=[A-Za-z0-9])", "\n" + lock):
        found = re.match(r"([A-Za-z0-9][\w.-]*)==\S+(.*)", block)
        if not found or found[1].lower() in HOST_ONLY:
            continue
        if "python_version" in found[2] or "python_full_version" in found[2]:
            raise BuildError(
                f"requirements.lock: {found[1]} is wanted for some Python versions only",
                hint="lock it for every Python version, or add it to HOST_ONLY in pydeps.py",
            )
        kept.append(block.rstrip("\n") + "\n")
    return "".join(kept)


def install(
    target: Path, *, log: Path | None = None, on_line: process.OnLine | None = None
) -> None:
    """Unpack the guest's packages into ``target``, a directory to be on its sys.path."""
    wanted = target.with_name(target.name + ".requirements")
    wanted.write_text(guest_requirements(lock_file().read_text()))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # --python-version makes pip pick wheels for the guest; it can only do so without building.
    picks = ["--python-version", GUEST_PYTHON, "--only-binary=:all:", "--no-deps"]
    picks += [f"--no-binary={','.join(SOURCE_ONLY)}", "--use-pep517"]
    process.must(
        [*pip, *picks, "--require-hashes", "--no-compile", f"--target={target}", f"-r{wanted}"],
        "installing Python packages for the guest",
        log=log,
        on_line=on_line,
    )
