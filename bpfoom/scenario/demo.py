# SPDX-License-Identifier: Apache-2.0
"""The demo's tree, where the stock killer's choice is plainly the wrong one.

The service that people care about is the largest process, and behaves. A batch job of four small
workers is what fills the memory, but no single one of them is larger than the service.
"""

from __future__ import annotations

from pathlib import Path

from bpfoom.btf.types import Btf
from bpfoom.compiler.build import compile_policy
from bpfoom.observe.result import Document
from bpfoom.scenario.run import play
from bpfoom.scenario.tree import MIB, Node, Workload, draw

POLICY = "largest-cgroup"

_WORKERS = tuple(Workload(f"worker-{n}", fill=28 * MIB) for n in (1, 2, 3))

TREE = Node(
    "shop",
    memory_max=256 * MIB,
    children=(
        Node("api", workloads=(Workload("api-server", fill=96 * MIB),)),
        Node("batch", workloads=(*_WORKERS, Workload("worker-4", fill=28 * MIB, grow=50 * MIB))),
    ),
)


def run() -> Document:
    """Both runs on this machine's kernel: the stock killer, then the policy at the tree's top.

    Raises MissingFeatureError on a kernel without bpf_oom_ops.
    """
    handler = compile_policy(POLICY, {})
    with Btf.from_file() as btf:
        runs = (play(TREE, {}, btf), play(TREE, {TREE.name: handler}, btf))
    return Document(
        kernel=Path("/proc/sys/kernel/osrelease").read_text().strip(),
        accelerator="none",
        tree=tuple(draw(TREE, {})),
        runs=runs,
    )
