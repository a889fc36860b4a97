# SPDX-License-Identifier: Apache-2.0
"""The systemd units, by systemd's own judgement: that they can be started, and what they expose."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import bpfoom

UNITS = sorted(Path(bpfoom.__file__).with_name("units").glob("*.service"))
# A tenth of what systemd-analyze shows: 2.1 is seen, and 0.1 of that is one line of the unit.
MOST_EXPOSED = 22


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    assert shutil.which("systemd-analyze"), "install systemd: `./run test` does"
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True)


@pytest.fixture(params=UNITS, ids=lambda path: path.stem)
def unit(request: pytest.FixtureRequest) -> Path:
    assert isinstance(request.param, Path)
    return request.param


def test_there_are_both() -> None:
    assert [path.stem for path in UNITS] == ["bpfoom-agent", "bpfoom-apply"]


def test_verify(unit: Path, tmp_path: Path) -> None:
    """As installed: systemd finds the command in its own path only, where no checkout is."""
    command = Path(sys.executable).with_name("bpfoom")
    text = unit.read_text()
    assert "=bpfoom a" in text
    installed = tmp_path / unit.name
    installed.write_text(text.replace("=bpfoom a", f"={command} a"))
    # The manual pages that they name are made from the commands, and tested there.
    done = analyze("verify", "--man=no", str(installed))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_security(unit: Path) -> None:
    done = analyze("security", "--offline=true", f"--threshold={MOST_EXPOSED}", str(unit))
    assert done.returncode == 0, done.stdout
