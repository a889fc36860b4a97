# SPDX-License-Identifier: Apache-2.0
"""Trees as data and as drawings, and the typed result: no kernel needed."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

from bpfoom.observe import kmsg
from bpfoom.observe.records import Decision
from bpfoom.observe.result import Document, Process, Run
from bpfoom.policy import record
from bpfoom.scenario import demo, hog
from bpfoom.scenario.tree import MIB, Node, Workload, draw

TREE = Node(
    "top",
    memory_max=64 * MIB,
    children=(
        Node("a", oom_group=True, workloads=(Workload("one", 8 * MIB, oom_score_adj=-1000),)),
        Node("b", workloads=(Workload("two", 8 * MIB, grow=4 * MIB), Workload("three", MIB))),
    ),
)


def decision(**fields: int) -> Decision:
    empty = record.decode(record.VERSION.to_bytes(4, "little") + bytes(record.SIZE - 4))
    return Decision({**empty, **fields})


def run(*decisions: Decision) -> Run:
    victim = Process(7, "one", "top/a")
    return Run("p", (victim,), (), {"top": {"oom": 1}}, ("line",), decisions, None)


def test_walk_names_every_node_parents_first() -> None:
    assert [path for path, _ in TREE.walk()] == ["top", "top/a", "top/b"]


def test_drawing() -> None:
    assert draw(TREE, {"top/b": "largest-task"}) == [
        "top  memory.max=64M",
        "├── a  memory.oom.group=1",
        "│   └── one 8M, oom_score_adj=-1000",
        "└── b  handler=largest-task",
        "    ├── two 8M, grows by 4M",
        "    └── three 1M",
    ]


def test_the_demo_is_what_it_claims() -> None:
    """The service is the largest process, the job the larger cgroup, and it does not fit."""
    api, batch = demo.TREE.children
    (server,) = api.workloads
    job = sum(worker.fill + worker.grow for worker in batch.workloads)
    assert all(worker.fill + worker.grow < server.fill for worker in batch.workloads)
    assert demo.TREE.memory_max is not None
    filled = sum(worker.fill for worker in batch.workloads)
    assert server.fill < filled < demo.TREE.memory_max - server.fill < job
    assert sum(1 for worker in batch.workloads if worker.grow) == 1


def test_the_decision_is_the_one_that_acted() -> None:
    acted, promised, passed = (
        decision(sequence=1, verdict=1, action=1),
        decision(sequence=2, verdict=1, action=3),
        decision(sequence=3),
    )
    assert run(acted, promised, passed).decision is acted
    assert run(promised, passed).decision is promised
    assert run(passed).decision is passed
    assert run().decision is None


def test_the_json_form_of_a_run() -> None:
    document = Document("7.3", "tcg", ("top",), (run(), replace(run(), handler=None)))
    runs = document.as_dict()["runs"]
    assert [item["handler"] for item in runs] == ["p", None]
    assert runs[0]["victims"] == [{"pid": 7, "comm": "one", "cgroup": "top/a"}]
    assert runs[0]["decision"] is None


def test_lines_about_an_oom() -> None:
    lines = ["usb 1-1: new device", "Killed process 7 (one)", "oom_handler=p", "Call Trace:"]
    assert kmsg.about_oom(lines) == lines[1:3]


def test_the_workload_obeys() -> None:
    """The real script: takes a name and memory, answers each, and ends with its input."""
    argv = ["/usr/bin/python3", "-I", "-S", str(Path(hog.__file__))]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(f"name memhog\ntake {8 * MIB}\n".encode())
        assert [child.stdout.readline(), child.stdout.readline()] == [b"done\n"] * 2
        status = Path(f"/proc/{child.pid}/status").read_text()
        fields = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
        assert fields["Name"] == "memhog"
        assert int(fields["RssAnon"].split()[0]) * 1024 > 8 * MIB
    assert child.returncode == 0
