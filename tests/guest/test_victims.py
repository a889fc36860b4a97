# SPDX-License-Identifier: Apache-2.0
"""The decision record agrees with what happened, field by field, and the stock killer leaves none.

Who dies by which policy is in the scenarios of bpf/scenarios, run by test_scenarios.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from bpfoom.scenario import demo
from bpfoom.scenario.library import find_scenarios
from bpfoom.scenario.model import MIB
from bpfoom.scenario.run import Machine


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine() as running:
        yield running


def test_no_handler_the_kernels_choice(machine: Machine) -> None:
    """The largest process. It may go on to another while that one is torn down: not our doing."""
    (it,) = find_scenarios([demo.NAME])
    seen = machine.play(replace(it, attachments=())).run
    assert "api-server" in {process.comm for process in seen.victims}
    assert "(api-server)" in next(line for line in seen.dmesg if "Killed process" in line)
    assert seen.decisions == ()


def test_decision_record_of_a_task(machine: Machine) -> None:
    (it,) = find_scenarios(["largest-task/leaf"])
    seen = machine.play(it).run
    (victim,) = seen.victims
    assert seen.decision is not None
    fields = seen.decision.fields
    assert (fields["victim_pid"], fields["victim_comm"]) == (victim.pid, "large")
    assert fields["victim_cgroup_id"] == fields["handler_cgroup_id"] == fields["oom_memcg_id"]
    assert 40 * MIB <= fields["victim_usage"] <= 72 * MIB
    assert fields["best_score"] > fields["runner_up_score"] > 0
    assert (fields["seen"], seen.decision.constraint) == (3, "memcg")
    assert (fields["alloc_comm"], fields["kfunc_result"], fields["flags"]) == ("medium", 0, 0)
    assert 0 < fields["duration_ns"] < 60e9
    assert any("oom_handler=largest-task" in line for line in seen.dmesg)
