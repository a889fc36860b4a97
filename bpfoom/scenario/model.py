# SPDX-License-Identifier: Apache-2.0
"""A scenario as plain data: a cgroup tree, what fills it, who decides, what must come of it.

Paths of cgroups are below the scenario's own top ("shop/api"); "/" is the hierarchy's root. Sizes
are bytes. Reading TOML into these types is parse.py's, running them stage.py's and run.py's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

MIB = 1 << 20
ALL = -1
"""Of anonymous memory: more than the machine has. Of children: without end."""

ROOT = "/"


@dataclass(frozen=True)
class Cgroup:
    """A cgroup and the files written to it (``{"memory.max": "67108864"}``)."""

    path: str
    files: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> str:
        """Path of the cgroup above, "" for one of the scenario's tops."""
        return self.path.rpartition("/")[0]


@dataclass(frozen=True)
class Take:
    """Memory of each kind that a process takes, bytes, and children that it forks.

    ``anon`` private, ``swap`` private and swapped out, ``shared`` an anonymous shared mapping,
    ``file`` page cache of a disk, ``tmpfs`` a file in memory that stays when the process dies.
    """

    anon: int = 0
    swap: int = 0
    shared: int = 0
    file: int = 0
    tmpfs: int = 0
    children: int = 0

    def kinds(self) -> Iterator[tuple[str, int]]:
        """Those that are taken at all, by name."""
        for kind in KINDS:
            if amount := getattr(self, kind):
                yield kind, amount


KINDS = ("anon", "swap", "shared", "file", "tmpfs", "children")


@dataclass(frozen=True)
class Workload:
    """A process, in its cgroup; ``name`` is its comm.

    ``maps`` is the workload whose tmpfs file it maps, too. ``exit_ms`` is how long it is held on
    its way out, ``headless`` that the leader of its threads has exited before them. It fills its
    memory in ``cgroup`` and then lives in ``moves_to``, if that is not "".
    """

    name: str
    cgroup: str
    fill: Take = Take()
    oom_score_adj: int = 0
    maps: str = ""
    exit_ms: int = 0
    headless: bool = False
    moves_to: str = ""

    @property
    def home(self) -> str:
        """The cgroup where it lives when it is filled."""
        return self.moves_to or self.cgroup


@dataclass(frozen=True)
class Attachment:
    """A policy at a cgroup: its name or file, its settings as text."""

    cgroup: str
    policy: str
    settings: dict[str, str] = field(default_factory=dict)
    dry_run: bool = False


@dataclass(frozen=True)
class Growth:
    """A trigger: a workload takes more.

    ``after`` is what it waits for: "" nothing, "others" that the triggers before it are over,
    "promise" that a handler has promised memory, "sample" that each sampler has seen each cgroup.
    """

    workload: str
    take: Take = Take()
    gives_back: bool = False
    after: str = ""


@dataclass(frozen=True)
class Lowering:
    """A trigger: somebody outside writes a smaller memory.max, bytes."""

    cgroup: str
    memory_max: int


Trigger = Growth | Lowering


@dataclass(frozen=True)
class Condition:
    """What a number or a word must be: ``operator`` is one of ==, >=, <=, >, <."""

    operator: str
    value: int | str

    def __str__(self) -> str:
        return f"{self.value}" if self.operator == "==" else f"{self.operator}{self.value}"


Conditions = dict[str, Condition]


@dataclass(frozen=True)
class Expect:
    """What must hold. Exactly ``victims`` die, so ``survivors`` need not be complete; ``refused``
    are those whom the kernel refused memory.

    ``kills`` is the number of processes killed, children included. ``decided_by`` holds the
    cgroups whose handlers acted, and "kernel". ``counters``, ``memory_events`` and ``decisions``
    are by cgroup: of the link's fdinfo, of memory.events, and of one of its handler's records.
    """

    victims: tuple[str, ...]
    decided_by: tuple[str, ...]
    kills: Condition
    survivors: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    verdict: str = ""
    action: str = ""
    counters: dict[str, Conditions] = field(default_factory=dict)
    memory_events: dict[str, Conditions] = field(default_factory=dict)
    decisions: dict[str, Conditions] = field(default_factory=dict)


@dataclass(frozen=True)
class Scenario:
    """One OOM, or several at once, with a known answer. ``name`` is "area/name"."""

    name: str
    summary: str
    cgroups: tuple[Cgroup, ...]
    workloads: tuple[Workload, ...]
    triggers: tuple[Trigger, ...]
    expect: Expect
    attachments: tuple[Attachment, ...] = ()
    marks: dict[str, str] = field(default_factory=dict)
    system_wide: bool = False
    file: Path = Path()

    def with_policy(self, policy: str) -> Scenario:
        """The same with another policy, at its defaults, wherever one is attached."""
        others = tuple(replace(a, policy=policy, settings={}) for a in self.attachments)
        return replace(self, attachments=others)

    def workload(self, name: str) -> Workload:
        return next(workload for workload in self.workloads if workload.name == name)

    def inside(self, cgroup: str) -> Iterator[Workload]:
        """The workloads of a cgroup and below."""
        for workload in self.workloads:
            if is_below(workload.cgroup, cgroup):
                yield workload

    @property
    def inhabited(self) -> list[str]:
        """The cgroups in which a workload lives, those above it included."""
        homes = [workload.home for workload in self.workloads]
        return [c.path for c in self.cgroups if any(is_below(home, c.path) for home in homes)]

    @property
    def takes(self) -> frozenset[str]:
        """Every kind of memory that it needs, before or after the trigger."""
        return frozenset(kind for kind, _ in self._amounts())

    @property
    def all_of_it(self) -> frozenset[str]:
        """The kinds that it takes without end."""
        return frozenset(kind for kind, amount in self._amounts() if amount == ALL)

    def _amounts(self) -> Iterator[tuple[str, int]]:
        for workload in self.workloads:
            yield from workload.fill.kinds()
        for trigger in self.triggers:
            if isinstance(trigger, Growth):
                yield from trigger.take.kinds()


def is_below(path: str, cgroup: str) -> bool:
    """Whether a path is that cgroup's or that of one below."""
    return cgroup == ROOT or path == cgroup or path.startswith(f"{cgroup}/")
