# SPDX-License-Identifier: Apache-2.0
"""Where a trigger would look at nothing, said before one is set; and what samplers are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpfoom.errors import MissingFeatureError, NotThereError
from bpfoom.handler import samplers, trigger
from tests import deep


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


def test_the_newest_cgroup_below_one(tmp_path: Path) -> None:
    """As far as paths lead; who owns a cgroup can nest deeper."""
    with deep.nested(tmp_path):
        reached = [path.stat().st_ino for path in (tmp_path, *tmp_path.glob("*"))]
        assert samplers._newest_below(tmp_path) >= max(reached)


def test_a_cgroup_that_is_gone_meanwhile(tmp_path: Path) -> None:
    with pytest.raises(NotThereError, match="any more"):
        samplers._newest_below(tmp_path / "gone")
