# SPDX-License-Identifier: Apache-2.0
"""Result documents made by hand, of OOMs of every kind that a page can be asked to show.

shop 256M ─┬─ api     96M   stock: api-server goes, as the largest process
           └─ batch  112M → 160M   with largest-cgroup: all of batch goes
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from bpfoom.observe.records import Cgroups, Decision
from bpfoom.observe.result import (
    Death,
    Document,
    Limit,
    Lost,
    Process,
    Recovery,
    Run,
    Sample,
    Usage,
)
from bpfoom.policy import record

MIB = 1 << 20
STARTED = 1795450000.25
# Names that anybody can give a cgroup or a process, and what a page must not do with them.
HOSTILE = (
    "<script>document.title='owned'</script>",
    "\"><img src=x onerror=document.title='owned'>",
    "{{ 7 * 7 }}",
    "nul\0and\x1b[31m",
    "\udcff\udc80 no UTF-8",
    "\u202eright to left",
    "$\\frac{a}{b}$ &amp; 日本 😀",
    "long-" * 40,
)

Curve = Callable[[float], float]


def curve(*points: tuple[float, float]) -> Curve:
    """Through (seconds, MiB), straight between."""

    def at(moment: float) -> float:
        for (t0, v0), (t1, v1) in itertools.pairwise(points):
            if t0 <= moment <= t1:
                return v0 + (v1 - v0) * (moment - t0) / max(t1 - t0, 1e-9)
        return points[0][1] if moment < points[0][0] else points[-1][1]

    return at


def timeline(
    leaves: dict[str, Curve], tops: Sequence[str], *, seconds: float, oom: float, step: float = 0.05
) -> tuple[Sample, ...]:
    """Samples of a tree whose inner cgroups hold what is below them; pressure around ``oom``."""
    found, stalled = [], 0.0
    for number in range(round(seconds / step) + 1):
        moment = number * step
        stalled += step * max(0.0, 0.9 - 1.5 * abs(moment - oom))
        held = {path: int(at(moment) * MIB) for path, at in leaves.items()}
        for top in tops:
            inside = [value for path, value in held.items() if path.startswith(f"{top}/")]
            held[top] = sum(inside) + (MIB if inside else 0)
        usage = {
            path: Usage(value, 0, int(stalled * 1e6), int(stalled * 6e5))
            for path, value in sorted(held.items())
        }
        found.append(Sample(STARTED + moment, usage))
    return tuple(found)


def decision(moment: float, cgroups: Cgroups | None = None, **fields: int | str) -> Decision:
    """A record with the given fields, the rest 0 or empty, taken so long after STARTED."""
    blank = {field.name: "" if field.type == "comm" else 0 for field in record.FIELDS}
    known = {"version": record.VERSION, "size": record.SIZE, "policy_hash": 0xBBECC608}
    return Decision({**blank, **known, **fields}, STARTED + moment, cgroups)


def death(who: Process, moment: float | None, by: int | None = None, after: float = 0) -> Death:
    """Killed so long after STARTED; by the decision of that sequence, ``after`` seconds on."""
    when = None if moment is None else STARTED + moment
    after_ns = int(after * 1e9) if by is not None else None
    return Death(
        *(who.pid, who.comm, who.cgroup), when, 9, None, 35 * MIB, 80_000_000, by, after_ns
    )


API = Process(65, "api-server", "shop/api")
WORKERS = tuple(Process(65 + n, f"worker-{n}", "shop/batch") for n in range(1, 5))
_TREE = (
    "shop  memory.max=256M",
    "├── api",
    "│   └── api-server 96M",
    "└── batch",
    "    ├── worker-1 28M",
    "    ├── worker-2 28M",
    "    ├── worker-3 28M",
    "    └── worker-4 28M, grows by 60M",
)
_LIMITS = {"shop": Limit(256 * MIB), "shop/api": Limit(None), "shop/batch": Limit(None)}


def stock() -> Run:
    """The kernel's own killer takes the service, and a worker besides."""
    leaves = {
        "shop/api": curve((0, 98), (1.4, 98), (1.45, 0), (3, 0)),
        "shop/batch": curve((0, 112), (1, 112), (1.4, 157), (1.45, 150), (1.6, 118), (3, 118)),
    }
    return Run(
        name="largest-cgroup/demo",
        handler=None,
        started=STARTED,
        victims=(API, WORKERS[3]),
        survivors=WORKERS[:3],
        memory_events={"shop": {"oom": 2, "oom_kill": 2}, "shop/api": {"oom_kill": 1}},
        dmesg=("Memory cgroup out of memory: Killed process 65 (api-server)",),
        decisions=(),
        deaths=(death(API, 1.42), death(WORKERS[3], 1.6)),
        kill_ns=8_700_000,
        timeline=timeline(leaves, ["shop"], seconds=3, oom=1.4),
        interval_ms=50,
        limits=_LIMITS,
    )


def handled() -> Run:
    """largest-cgroup takes the whole job; then a call that waits for it."""
    leaves = {
        "shop/api": curve((0, 98)),
        "shop/batch": curve((0, 112), (1, 112), (1.4, 157), (1.45, 0), (3, 0)),
    }
    where = Cgroups("shop", "shop", "shop/batch")
    about = {"oom_memcg_id": 22, "alloc_pid": 69, "alloc_comm": "worker-4", "constraint": 3}
    chosen = decision(
        1.4,
        where,
        **about,
        **{"sequence": 7, "duration_ns": 4_500_000, "seen": 2, "action": 2, "verdict": 1},
        **{"best_score": 157 * MIB, "runner_up_score": 98 * MIB, "victim_usage": 157 * MIB},
        victim_cgroup_id=106,
        kfunc_result=4,
    )
    waits = decision(
        1.41,
        Cgroups("shop", "shop", None),
        **about,
        **{"sequence": 8, "duration_ns": 90_000, "action": 3, "verdict": 1, "flags": 4},
        skipped_dying=4,
    )
    return Run(
        name="largest-cgroup/demo",
        handler="largest-cgroup",
        started=STARTED + 10,
        victims=WORKERS,
        survivors=(API,),
        memory_events={
            "shop": {"oom": 1, "oom_kill": 4, "oom_group_kill": 1},
            "shop/batch": {"oom_kill": 4, "oom_group_kill": 1},
        },
        dmesg=tuple(f"Out of memory (bpfoom): Killed process {w.pid} ({w.comm})" for w in WORKERS),
        decisions=(chosen, waits),
        deaths=tuple(death(w, 1.41 + n / 100, 7, 0.01 + n / 100) for n, w in enumerate(WORKERS)),
        recovery=(Recovery(7, "shop", 48_000_000),),
        kill_ns=4_900_000,
        timeline=timeline(leaves, ["shop"], seconds=3, oom=1.4),
        interval_ms=50,
        limits=_LIMITS,
    )


def document(*runs: Run, tree: tuple[str, ...] = _TREE, accelerator: str = "tcg") -> Document:
    return Document("7.3.4-bpfoom", accelerator, tree, runs)


def demo() -> Document:
    """Before and after."""
    return document(stock(), handled())


def single() -> Document:
    """One cgroup with one process, watched on a host; one shot, no runner-up."""
    who = Process(4242, "tail", "/box")
    where = Cgroups("/box", "/box", "/box")
    chosen = decision(
        2.0,
        where,
        **{"sequence": 1, "duration_ns": 850_000, "seen": 1, "action": 1, "verdict": 1},
        **{"best_score": 63 * MIB, "victim_usage": 63 * MIB, "victim_pid": 4242},
        **{"victim_comm": "tail", "alloc_comm": "tail", "alloc_pid": 4242, "oom_memcg_id": 9},
    )
    run = Run(
        name=None,
        handler="largest-task",
        started=STARTED,
        victims=(who,),
        survivors=(),
        memory_events={"/box": {"oom": 1, "oom_kill": 1}},
        dmesg=(),
        decisions=(chosen,),
        deaths=(death(who, 2.02, 1, 0.02),),
        recovery=(Recovery(1, "/box", 30_000_000),),
        timeline=timeline(
            {"/box": curve((0, 2), (2, 64), (2.02, 0), (4, 0))}, [], seconds=4, oom=2
        ),
        interval_ms=50,
        limits={"/box": Limit(64 * MIB)},
    )
    return document(run, tree=(), accelerator="none")


def many(names: Sequence[str] | None = None) -> Document:
    """Forty cgroups below one limit; the one that grows is taken. Records were lost."""
    names = names or [f"job-{number:02}" for number in range(40)]
    leaves = {f"farm/{name}": curve((0, 3 + 2 * n % 17)) for n, name in enumerate(names)}
    grower = f"farm/{names[3]}"
    leaves[grower] = curve((0, 10), (5, 10), (7, 190), (7.1, 0), (12, 0))
    who = [
        Process(300 + n, name if len(name) < 16 else name[:15], f"farm/{name}")
        for n, name in enumerate(names)
    ]
    where = Cgroups("farm", "farm", grower)
    chosen = decision(
        7.0,
        where,
        **{"sequence": 3, "duration_ns": 2_100_000, "seen": 41, "action": 1, "verdict": 1},
        **{"best_score": 190 * MIB, "runner_up_score": 19 * MIB, "victim_usage": 190 * MIB},
        **{"victim_pid": 303, "victim_comm": who[3].comm, "victim_cgroup_id": 77},
        **{"skipped_protected": 5, "skipped_unkillable": 2, "skipped_empty": 12},
        **{"alloc_pid": 303, "alloc_comm": who[3].comm, "oom_memcg_id": 70},
    )
    run = Run(
        name="farm/many",
        handler="protect",
        started=STARTED,
        victims=(who[3],),
        survivors=(*who[:3], *who[4:]),
        memory_events={"farm": {"oom": 1, "oom_kill": 1}},
        dmesg=(),
        decisions=(chosen,),
        deaths=(death(who[3], 7.04, 3, 0.04),),
        recovery=(),
        timeline=timeline(leaves, ["farm"], seconds=12, oom=7, step=0.1),
        interval_ms=100,
        limits={"farm": Limit(640 * MIB)},
        lost=Lost(decisions=2, events=0),
    )
    return document(run, tree=())


def hostile() -> Document:
    """The same with names that are not meant well."""
    names = list(HOSTILE)
    made = many(names)
    return document(*made.runs, tree=tuple(f"├── {name}" for name in names))


def bare() -> Document:
    """Stock killer alone, nothing sampled, nothing timed."""
    run = stock()
    made = Run(
        **{
            **{name: getattr(run, name) for name in ("name", "handler", "started", "victims")},
            **{"survivors": (), "memory_events": {}, "dmesg": (), "decisions": ()},
            "deaths": (death(API, None),),
        }
    )
    return document(made, tree=())
