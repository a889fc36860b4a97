# SPDX-License-Identifier: Apache-2.0
"""Where a trigger would look at nothing: said before one is set."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpfoom.errors import MissingFeatureError
from bpfoom.handler import samplers, trigger


@pytest.fixture
def psi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's pressure."""
    path = tmp_path / "memory"
    path.write_text("some avg10=0.00\n")
    monkeypatch.setattr(samplers, "_PRESSURE", path)
    return path


def test_a_cgroup_whose_pressure_nobody_watches(psi: Path, tmp_path: Path) -> None:
    file = tmp_path / "cgroup.pressure"
    trigger.require_pressure(tmp_path, "/shop")
    file.write_text("1\n")
    trigger.require_pressure(tmp_path, "/shop")
    file.write_text("0\n")
    with pytest.raises(MissingFeatureError, match="/shop is not watched") as raised:
        trigger.require_pressure(tmp_path, "/shop")
    assert raised.value.hint == f"echo 1 > {file}"


def test_a_machine_whose_pressure_nobody_watches(psi: Path, tmp_path: Path) -> None:
    psi.unlink()
    with pytest.raises(MissingFeatureError, match="PSI is off"):
        trigger.require_pressure(tmp_path, "/shop")
