# SPDX-License-Identifier: Apache-2.0
"""The demo: one scenario of the library, first without its handler, then with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bpfoom.observe.result import Document
from bpfoom.scenario.draw import draw
from bpfoom.scenario.library import find_scenarios
from bpfoom.scenario.run import Machine

NAME = "largest-cgroup/demo"


def run() -> Document:
    """Both runs on this machine's kernel: the stock killer, then the policy at the tree's top.

    Raises MissingFeatureError on a kernel without bpf_oom_ops.
    """
    (scenario,) = find_scenarios([NAME])
    stock = replace(scenario, attachments=())
    with Machine() as machine:
        machine.policies.of(scenario)  # first, as the compiler takes its time
        runs = tuple(machine.play(it, timed=True).run for it in (stock, scenario))
    return Document(
        kernel=Path("/proc/sys/kernel/osrelease").read_text().strip(),
        accelerator="none",
        tree=tuple(draw(stock)),
        runs=runs,
    )
