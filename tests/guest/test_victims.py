# SPDX-License-Identifier: Apache-2.0
"""Who dies: each policy on trees whose right victim is known, and the decision that was recorded.

Sizes in MiB; * marks the process that grows; -> what each tree must lead to.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from bpfoom.btf.types import Btf
from bpfoom.compiler.build import compile_policy
from bpfoom.observe.result import Run
from bpfoom.scenario.run import play
from bpfoom.scenario.tree import MIB, Node, Workload, draw

# What a policy does about a victim that is on its way out already.
WAITS = ("none", "promise", "would-promise")


def hog(comm: str, fill: int, *, grow: int = 0, adj: int = 0) -> Workload:
    return Workload(comm, fill * MIB, grow * MIB, adj)


def node(name: str, *inside: Node | Workload, limit: int = 0, group: bool = False) -> Node:
    return Node(
        name,
        memory_max=limit * MIB or None,
        oom_group=group,
        workloads=tuple(item for item in inside if isinstance(item, Workload)),
        children=tuple(item for item in inside if isinstance(item, Node)),
    )


@dataclass(frozen=True)
class Case:
    """``handlers``: path -> policy, " dry" after it for a dry run. ``verdicts``: verdict and action
    of each record, in order, without those that only waited for a victim to be gone."""

    name: str
    tree: Node
    handlers: dict[str, str]
    victims: set[str]
    verdicts: list[tuple[str, str]]
    events: dict[str, dict[str, int]] = field(default_factory=dict)


# box 144 ── small 20, large 60, *medium 30+40                        -> large
FLAT = node("box", hog("small", 20), hog("large", 60), hog("medium", 30, grow=40), limit=144)

# top 200 ─┬─ left  ── a 20, *b 40+60
#          └─ right ─┬─ inner ── c 70                                 -> c, two levels down
#                    └─ other ── d 30
DEEP = node(
    "top",
    node("left", hog("a", 20), hog("b", 40, grow=60)),
    node("right", node("inner", hog("c", 70)), node("other", hog("d", 30))),
    limit=200,
)

# shop 224 ─┬─ api   ── server 80              largest task
#           └─ batch ── w1 30, w2 30, *w3 30+50  largest leaf         -> w1 w2 w3
SHOP = node(
    "shop",
    node("api", hog("server", 80)),
    node("batch", hog("w1", 30), hog("w2", 30), hog("w3", 30, grow=50)),
    limit=224,
)

# top 224 ─┬─ job (memory.oom.group) ─┬─ x ── x1 60                   -> x1, y1: together the
#          │                          └─ y ── y1 60                      largest, alone not
#          └─ big ── *z1 60+80
GROUP = node(
    "top",
    node("job", node("x", hog("x1", 60)), node("y", hog("y1", 60)), group=True),
    node("big", hog("z1", 60, grow=80)),
    limit=224,
)

# box 160 (memory.oom.group) ── one 40, two 60, *three 20+60          -> all three
WHOLE = node(
    "box", hog("one", 40), hog("two", 60), hog("three", 20, grow=60), limit=160, group=True
)

# box 160 ── spared 80 (-1000), next 40, *last 10+40                  -> next
SPARED = node(
    "box", hog("spared", 80, adj=-1000), hog("next", 40), hog("last", 10, grow=40), limit=160
)

# outer ── inner 128 ── p 70, *q 20+60: the OOM is inner's, inner passes, outer decides -> p
NESTED = node("outer", node("inner", hog("p", 70), hog("q", 20, grow=60), limit=128), limit=512)

CASES = (
    Case("largest task of a leaf", FLAT, {"box": "largest-task"}, {"large"}, [("HANDLED", "kill")]),
    Case("largest task of a subtree", DEEP, {"top": "largest-task"}, {"c"}, [("HANDLED", "kill")]),
    Case(
        "largest leaf, all of it",
        SHOP,
        {"shop": "largest-cgroup"},
        {"w1", "w2", "w3"},
        [("HANDLED", "kill-cgroup")],
        {"shop": {"oom_kill": 3}, "shop/batch": {"oom_group_kill": 1}},
    ),
    Case(
        "a group before a larger leaf",
        GROUP,
        {"top": "largest-cgroup"},
        {"x1", "y1"},
        [("HANDLED", "kill-cgroup")],
        {"top/job": {"oom_group_kill": 1, "oom_kill": 2}},
    ),
    Case(
        "the largest task's whole group",
        WHOLE,
        {"box": "largest-task"},
        {"one", "two", "three"},
        [("HANDLED", "kill")],
        {"box": {"oom_group_kill": 1}},  # the kernel may count the first victim twice
    ),
    Case(
        "oom_score_adj -1000 is spared by largest-task",
        SPARED,
        {"box": "largest-task"},
        {"next"},
        [("HANDLED", "kill")],
    ),
    Case(
        "oom_score_adj -1000 is spared by largest-cgroup",
        SPARED,
        {"box": "largest-cgroup"},
        {"next", "last"},
        [("HANDLED", "kill-cgroup")],
    ),
    Case(
        "hand-over to the parent's handler",
        NESTED,
        {"outer/inner": "largest-task dry", "outer": "largest-task"},
        {"p"},
        [("PASS", "would-kill"), ("HANDLED", "kill")],
    ),
    Case(
        "the nearest handler decides alone",
        NESTED,
        {"outer/inner": "largest-task", "outer": "largest-cgroup"},
        {"p"},
        [("HANDLED", "kill")],
    ),
    Case(
        "an ancestor's handler, bounded by the OOM",
        NESTED,
        {"outer": "largest-cgroup"},
        {"p", "q"},
        [("HANDLED", "kill-cgroup")],
    ),
)


def run(case: Case) -> Run:
    objects = {
        path: compile_policy(policy.removesuffix(" dry"), {}, dry_run=policy.endswith(" dry"))
        for path, policy in case.handlers.items()
    }
    with Btf.from_file() as btf:
        return play(case.tree, objects, btf)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_victims(case: Case) -> None:
    seen = run(case)
    drawn = "\n".join([*draw(case.tree, case.handlers), *seen.dmesg])
    assert {process.comm for process in seen.victims} == case.victims, drawn
    chosen = [d for d in seen.decisions if d.action not in WAITS]
    assert [(d.verdict, d.action) for d in chosen] == case.verdicts, seen.decisions
    # Whatever else was asked came after the kill, and waited for the victim.
    assert seen.decisions[: len(chosen)] == tuple(chosen)
    for path, counters in case.events.items():
        assert counters.items() <= seen.memory_events[path].items(), path


def test_no_handler_the_kernels_choice() -> None:
    """The largest process. It may go on to another while that one is torn down: not our doing."""
    seen = run(Case("", SHOP, {}, set(), []))
    assert "server" in {process.comm for process in seen.victims}
    assert "(server)" in next(line for line in seen.dmesg if "Killed process" in line)
    assert seen.decisions == ()


def test_decision_record_of_a_task() -> None:
    """The record agrees with what happened, field by field."""
    seen = run(CASES[0])
    (victim,) = seen.victims
    assert seen.decision is not None
    fields = seen.decision.fields
    assert (fields["victim_pid"], fields["victim_comm"]) == (victim.pid, "large")
    assert fields["victim_cgroup_id"] == fields["handler_cgroup_id"] == fields["oom_memcg_id"]
    assert 60 * MIB <= fields["victim_usage"] <= 128 * MIB
    assert fields["best_score"] > fields["runner_up_score"] > 0
    assert (fields["seen"], seen.decision.constraint) == (3, "memcg")
    assert (fields["alloc_comm"], fields["kfunc_result"], fields["flags"]) == ("medium", 0, 0)
    assert 0 < fields["duration_ns"] < 60e9
    assert any("oom_handler=largest-task" in line for line in seen.dmesg)


@pytest.mark.guest_memory(512)
def test_root_handler_on_a_system_wide_oom() -> None:
    """No limit but the machine's: the root's handler is asked, with no memcg. -> a, b

    ::

        loose ─┬─ one ── a 90, *b 60+400
               └─ two ── c 70
    """
    tree = node(
        "loose", node("one", hog("a", 90), hog("b", 60, grow=400)), node("two", hog("c", 70))
    )
    seen = run(Case("", tree, {"/": "largest-cgroup"}, set(), []))
    assert {process.comm for process in seen.victims} == {"a", "b"}
    assert seen.decision is not None
    assert (seen.decision.verdict, seen.decision.action) == ("HANDLED", "kill-cgroup")
    assert seen.decision.fields["oom_memcg_id"] == 0
    assert seen.decision.constraint == "none"
