# SPDX-License-Identifier: Apache-2.0
"""How the tree of cgroups and who is asked in it are printed: drawn, or as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bpfoom.cli import output, view
from bpfoom.observe import overrides
from bpfoom.observe.overview import Asked, Node, Overview

COLUMNS = {
    "tree": "CGROUP",
    "asked": "ASKED",
    "calls": "CALLS",
    "kills": "KILLS",
    "oom_kills": "OOM KILLS",
    "usage": "USAGE",
    "limit": "LIMIT",
    "decision": "LAST DECISION",
    "trigger": "TRIGGER",
    "overrides": "OVERRIDDEN BY",
}
KERNEL = "kernel"


def as_dict(found: Overview) -> dict[str, Any]:
    """The tree, JSON-ready: its nodes from the top down, each before what is below it."""
    handlers = {node.cgroup.id: node.handler for node in found.nodes}
    decided = view.decisions((node.last for node in found.nodes if node.last), handlers.get)
    last = {fields["handler_cgroup_id"]: fields for fields in decided}
    return {
        "cgroups": found.cgroups,
        "overrides": effects(found.sysctls, {name for n in found.nodes for name in n.overrides}),
        "nodes": [_node(node, last.get(node.cgroup.id)) for node in found.nodes],
    }


def effects(sysctls: dict[str, int], names: set[str]) -> list[dict[str, Any]]:
    """What these overrides do; sysctls with their values, those that are set in any case."""
    names = names | {f"vm.{name}" for name in sysctls}
    return [
        {"name": name, "value": sysctls.get(name.removeprefix("vm.")), "effect": effect}
        for name, effect in overrides.EFFECTS.items()
        if name in names
    ]


def show(fields: dict[str, Any]) -> None:
    """Print it drawn as a tree, and below what its overrides mean."""
    rows = _rows(fields["nodes"])
    lines = branches([depth for depth, _ in rows])
    table = [
        {**row, "tree": line + row["tree"]} for line, (_, row) in zip(lines, rows, strict=True)
    ]
    columns = dict(COLUMNS)
    if not any(node["trigger"] for node in fields["nodes"]):
        del columns["trigger"]
    output.emit_table(columns, table, whole="tree")
    show_effects(fields["overrides"])


def show_effects(found: Sequence[dict[str, Any]]) -> None:
    """One line for each override."""
    for item in found:
        value = "" if item["value"] is None else f" = {item['value']}"
        output.say(f"{item['name']}{value}: {item['effect']}")


def branches(depths: Sequence[int]) -> list[str]:
    """The lines that lead to each row of a drawn tree whose rows have these depths."""
    drawn = []
    followed: set[int] = set()  # depths at which more is to come
    for depth in reversed(depths):
        trunks = "".join("│   " if above in followed else "    " for above in range(1, depth))
        twig = "├── " if depth in followed else "└── "
        drawn.append(trunks + twig if depth else "")
        followed = {other for other in followed if other < depth} | {depth}
    return drawn[::-1]


def chain(asked: Sequence[dict[str, Any]], cgroup_id: int) -> str:
    """Who is asked about OOMs of a cgroup, in order: its own handler, those above, the kernel."""
    names = []
    for one in asked:
        name = one["policy"] or f"link {one['link_id']}, not bpfoom's"
        where = "" if one["cgroup_id"] == cgroup_id else f" of {one['cgroup']}"
        names.append(f"{name}{' (dry run)' if one['dry_run'] else ''}{where}")
    return " → ".join([*names, KERNEL])


def _node(node: Node, last: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "cgroup": node.cgroup.name,
        "cgroup_id": node.cgroup.id,
        "depth": node.depth,
        "hidden": node.hidden,
        "chain": asked(node.chain),
        "handler": view.handler(node.handler) if node.handler else None,
        "counters": node.handler.counters if node.handler else None,
        "last_decision": last,
        "trigger": view.trigger(node.trigger) if node.trigger else None,
        "usage": node.usage,
        "limit": node.limit,
        "memory_events": node.memory_events,
        "pinned": list(node.pinned),
        "overrides": list(node.overrides),
    }


def asked(links: Sequence[Asked]) -> list[dict[str, Any]]:
    """A chain, JSON-ready."""
    return [asdict(link) for link in links]


def _rows(nodes: Sequence[dict[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
    """Depth and cells of each row; cgroups that are hidden are counted in a row behind the rest."""
    rows: list[tuple[int, dict[str, Any]]] = []
    waiting: list[tuple[int, int]] = []  # depths and numbers of hidden cgroups
    for node in nodes:
        while waiting and waiting[-1][0] > node["depth"]:
            rows.append(_hidden(*waiting.pop()))
        rows.append((node["depth"], _row(node)))
        if node["hidden"]:
            waiting.append((node["depth"] + 1, node["hidden"]))
    return rows + [_hidden(*left) for left in reversed(waiting)]


def _hidden(depth: int, count: int) -> tuple[int, dict[str, Any]]:
    # Of each nothing is known: not even that there is nothing to say.
    return depth, {**dict.fromkeys(COLUMNS, " "), "tree": f"({count} more)"}


def _row(node: dict[str, Any]) -> dict[str, Any]:
    counters, last = node["counters"] or {}, node["last_decision"]
    name = node["cgroup"].rsplit("/", 1)[-1] if node["depth"] else node["cgroup"]
    return {
        "tree": name,
        "asked": chain(node["chain"], node["cgroup_id"]),
        "calls": counters.get("invocations"),
        "kills": counters.get("kills"),
        "oom_kills": node["memory_events"].get("oom_kill"),
        "usage": None if node["usage"] is None else output.size(node["usage"]),
        "limit": None if node["limit"] is None else output.size(node["limit"]),
        "decision": _decision(last) if last else None,
        "trigger": trigger(node["trigger"]),
        "overrides": ", ".join(node["overrides"]),
    }


def trigger(fields: dict[str, Any] | None) -> str | None:
    """When a cgroup's trigger declares an OOM, and how many it has."""
    return f"{fields['psi']}, {fields['declared']} declared" if fields else None


def _decision(fields: dict[str, Any]) -> str:
    row = view.decision_row(fields)
    parts = (f"#{row['sequence']}", row["verdict"], row["action"], row["victim"])
    return " ".join(str(part) for part in parts if part)
