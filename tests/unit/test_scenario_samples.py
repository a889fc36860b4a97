# SPDX-License-Identifier: Apache-2.0
"""Which cgroups of a scenario a sampler gets to see."""

from __future__ import annotations

from pathlib import Path

from bpfoom.scenario.parse import parse

TREE = """
summary = "Inner nodes, an empty leaf, and one that its writer has left"
[cgroups.top]
[cgroups."top/job"]
[cgroups."top/job/worker"]
[cgroups."top/empty"]
[cgroups."top/left"]
[cgroups.topmost]
memory.max = "8M"
[workloads]
worker = { cgroup = "top/job/worker", anon = "1M" }
writer = { cgroup = "top/left", tmpfs = "1M", moves_to = "topmost" }
[[trigger]]
workload = "writer"
anon = "20M"
[expect]
victims = ["writer"]
decided_by = "kernel"
"""


def test_cgroups_in_which_something_runs_and_those_above() -> None:
    scenario = parse(TREE, name="area/it", file=Path("area/it.toml"))
    assert scenario.inhabited == ["top", "top/job", "top/job/worker", "topmost"]
