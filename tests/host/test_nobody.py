# SPDX-License-Identifier: Apache-2.0
"""Somebody who is not root, on a machine without our kernel: what needs neither works all the same,
and what needs both says so. Inside the guest, where something is attached: tests/guest/test_nobody.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

CHECKOUT = Path(__file__).parents[2]
BTF = str(CHECKOUT / "tests" / "data" / "kernel.btf")
NOBODY = 65534


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory of nobody's."""
    with TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        path = Path(name) / "home"
        path.mkdir()
        if os.geteuid() == 0:
            os.chown(path, NOBODY, NOBODY)
        yield path


def typed(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The outcome of a command line; typed by oneself where one is not root."""
    less = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    return subprocess.run(
        [sys.executable, "-m", "bpfoom.cli.main", *words],
        cwd=home, capture_output=True, text=True,
        env={"HOME": str(home), "PATH": os.environ["PATH"], "PYTHONPATH": str(CHECKOUT)},
        **less,
    )  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        ("policies",),
        ("policies", "largest-cgroup"),
        ("render", "largest-task", "--btf", BTF),
        ("check", "largest-task", "--btf", BTF),
        ("compile", "largest-task", "--btf", BTF, "-o", "largest.bpfoom"),
        ("new", "mine"),
        ("man", "-o", "man1"),
        ("completion", "fish"),
        ("cache",),
        ("kernel", "patches"),
        ("kernel", "status"),
        ("scenario", "list"),
    ],
    ids=" ".join,
)
def test_what_needs_no_root(words: tuple[str, ...], home: Path) -> None:
    done = typed(home, *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


@pytest.mark.parametrize(
    "words", [("demo", "--here"), ("scenario", "run", "--here", "largest-task")], ids=" ".join
)
def test_what_makes_cgroups_here(words: tuple[str, ...], home: Path) -> None:
    done = typed(home, *words)
    assert done.returncode == 5
    assert "root" in done.stderr


def test_doctor_names_the_rights_among_the_rest(home: Path) -> None:
    done = typed(home, "doctor")
    assert done.returncode in (3, 5)
    last = done.stdout.splitlines()[-1]
    assert last.startswith("attach cannot work here: ") and "capabilities" in last
