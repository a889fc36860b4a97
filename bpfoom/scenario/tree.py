# SPDX-License-Identifier: Apache-2.0
"""A cgroup tree with workloads, as plain data, and its drawing. Nothing here touches cgroupfs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True)
class Workload:
    """A process that fills ``fill`` bytes of anonymous memory and, when triggered, ``grow`` more.

    ``comm`` is its name (at most 15 bytes). Exactly one workload of a tree grows: that growth is
    what runs out of memory.
    """

    comm: str
    fill: int
    grow: int = 0
    oom_score_adj: int = 0


@dataclass(frozen=True)
class Node:
    """A cgroup: its limit in bytes (None: no limit), and either workloads or children."""

    name: str
    memory_max: int | None = None
    oom_group: bool = False
    workloads: tuple[Workload, ...] = ()
    children: tuple[Node, ...] = ()

    def walk(self, above: str = "") -> Iterator[tuple[str, Node]]:
        """Every node with its path below the tree's parent ("shop", "shop/api"), parents first."""
        path = f"{above}/{self.name}" if above else self.name
        yield path, self
        for child in self.children:
            yield from child.walk(path)


def draw(node: Node, handlers: dict[str, str]) -> list[str]:
    """The tree as lines of text; ``handlers`` names the policy attached at a path."""
    return list(_lines(node, handlers, "", "", ""))


def _lines(
    node: Node, handlers: dict[str, str], above: str, first: str, rest: str
) -> Iterator[str]:
    path = f"{above}/{node.name}" if above else node.name
    yield first + node.name + "".join(f"  {note}" for note in _notes(node, handlers.get(path)))
    below = [_describe(workload) for workload in node.workloads]
    for number, text in enumerate(below):
        last = number == len(below) - 1 and not node.children
        yield rest + ("└── " if last else "├── ") + text
    for child in node.children:
        last = child is node.children[-1]
        yield from _lines(
            child,
            handlers,
            path,
            rest + ("└── " if last else "├── "),
            rest + ("    " if last else "│   "),
        )


def _notes(node: Node, policy: str | None) -> Iterator[str]:
    if node.memory_max is not None:
        yield f"memory.max={node.memory_max // MIB}M"
    if node.oom_group:
        yield "memory.oom.group=1"
    if policy is not None:
        yield f"handler={policy}"


def _describe(workload: Workload) -> str:
    text = f"{workload.comm} {workload.fill // MIB}M"
    if workload.grow:
        text += f", grows by {workload.grow // MIB}M"
    if workload.oom_score_adj:
        text += f", oom_score_adj={workload.oom_score_adj}"
    return text
