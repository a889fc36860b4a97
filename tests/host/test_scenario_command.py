# SPDX-License-Identifier: Apache-2.0
"""``bpfoom scenario run`` from the host: a user's own file and policy reach the guest."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from junitparser import JUnitXml

from bpfoom import resources
from bpfoom.observe import result
from tests.host.test_vm_command import BPFOOM, own_directories  # noqa: F401 - a fixture
from tests.schemas import valid
from tests.unit.test_scenario import SMALL

pytestmark = pytest.mark.usefixtures("own_directories")


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Two scenarios with a policy beside them; the second expects what does not come."""
    policy = resources.room("bpf") / "policies" / "largest-task.bpf.c.j2"
    shutil.copy(policy, tmp_path / "mine.bpf.c.j2")
    text = SMALL.replace('"largest-task"', '"./mine.bpf.c.j2"')
    (tmp_path / "a-right.toml").write_text(text)
    (tmp_path / "b-wrong.toml").write_text(text.replace("victims", 'verdict = "PASS"\nvictims'))
    return tmp_path


def test_own_files_in_the_guest(mine: Path) -> None:
    junit = mine / "results.xml"
    file = mine / "result.json"
    argv = [*BPFOOM, "scenario", "run", mine, "--json", "--junit", junit, "--result", file]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    document = valid("scenario-run", json.loads(done.stdout))
    assert document["accelerator"] in ("kvm", "tcg") and document["splats"] == []
    right, wrong = document["results"]
    assert right["passed"] and right["failures"] == []
    assert right["outcomes"][0]["decided_by"] == ["box"]
    assert wrong["failures"] == [{"key": "verdict", "expected": "PASS", "seen": "HANDLED"}]
    assert "PASS  " in done.stderr and "FAIL  " in done.stderr
    seen = result.read_file(file)
    assert seen.accelerator == document["accelerator"]
    assert [run.name for run in seen.runs] == [right["scenario"], wrong["scenario"]]
    assert all(run.deaths and run.timeline for run in seen.runs)
    (suite,) = JUnitXml.fromfile(str(junit))
    assert (suite.tests, suite.failures, suite.errors) == (2, 1, 0)
