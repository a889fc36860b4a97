# SPDX-License-Identifier: Apache-2.0
"""The cgroup tree as handlers divide it: who is asked where, what it did, what overrides it.

By default only cgroups that matter are looked at: those with a handler, and the way to them. How
many others there are each cgroup knows by itself, so a large tree costs no more than a small one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from bpfoom.btf.types import Btf
from bpfoom.errors import ForeignPinError
from bpfoom.handler import describe, links, pins
from bpfoom.handler.describe import Handler
from bpfoom.handler.pins import Pins
from bpfoom.handler.trigger import Trigger, triggers
from bpfoom.observe import cgroupfs, overrides, records
from bpfoom.observe.cgroupfs import Cgroup
from bpfoom.observe.records import Decision

# Names from the top down; () is the top itself.
_Parts = tuple[str, ...]


@dataclass(frozen=True)
class Asked:
    """A handler that OOMs of a cgroup come to. ``policy`` is "" if bpfoom did not attach it."""

    cgroup: str
    cgroup_id: int
    link_id: int
    policy: str
    dry_run: bool


@dataclass(frozen=True)
class Node:
    """A cgroup. ``chain`` is who is asked about its OOMs, nearest first; the kernel comes last.

    ``depth`` counts from the top that was looked at. ``hidden`` is the number of cgroups below it
    that are neither nodes nor below a node below it. ``usage`` and ``limit`` are bytes, None where
    there is none; ``pinned`` the names of our pins, ``overrides`` names in overrides.EFFECTS.
    """

    cgroup: Cgroup
    depth: int
    chain: tuple[Asked, ...]
    handler: Handler | None
    last: Decision | None
    hidden: int
    usage: int | None
    limit: int | None
    memory_events: dict[str, int]
    pinned: tuple[str, ...]
    overrides: tuple[str, ...]
    trigger: Trigger | None


@dataclass(frozen=True)
class Overview:
    """``nodes`` are in the order of a drawn tree, ``cgroups`` is how many there are in all."""

    nodes: tuple[Node, ...]
    cgroups: int
    sysctls: dict[str, int]


@dataclass(frozen=True)
class Attached:
    """All that is attached, by cgroup id, and the last decision that each handler took.

    ``links`` are everybody's; handlers and triggers ours.
    """

    handlers: Mapping[int, Handler]
    links: Mapping[int, int]
    last: Mapping[int, Decision]
    where: Pins | None
    sysctls: dict[str, int] = field(default_factory=overrides.sysctls)
    triggers: Mapping[int, Trigger] = field(default_factory=dict)

    @classmethod
    def now(cls, btf: Btf, where: Pins | None) -> Attached:
        """Ask the kernel. Raises PermissionDeniedError."""
        found = describe.handlers(where, btf) if where else []
        decisions = records.history_if_readable(where)
        return cls(
            handlers={handler.cgroup_id: handler for handler in found},
            links=links.attached(),
            last={int(seen.fields["handler_cgroup_id"]): seen for seen in decisions},
            where=where,
            triggers={found.cgroup_id: found for found in triggers(where)} if where else {},
        )

    def asked(self, cgroup: Cgroup, above: tuple[Asked, ...]) -> tuple[Asked, ...]:
        """The chain of a cgroup; ``above`` is its parent's."""
        link_id = self.links.get(cgroup.id)
        if link_id is None or not _has_memory(cgroup):
            return above
        handler = self.handlers.get(cgroup.id)
        policy, dry_run = (handler.policy, handler.dry_run) if handler else ("", False)
        return (Asked(cgroup.name, cgroup.id, link_id, policy, dry_run), *above)

    def pinned(self, cgroup: Cgroup) -> tuple[str, ...]:
        """What is pinned for a cgroup in our place, by name; also if it is none of ours."""
        if self.where is None:
            return ()
        with suppress(ForeignPinError):
            return tuple(pins.names_in(self.where.directory(cgroup.id)))
        return ()


def look(top: Cgroup, attached: Attached, *, everything: bool = False) -> Overview:
    """The tree from ``top`` down: what matters in it, or every cgroup. Raises NotThereError."""
    chains: dict[_Parts, tuple[Asked, ...]] = {(): chain_of(top, attached)}
    seen: dict[_Parts, Cgroup] = {(): top}
    for parts in sorted(_below(top) if everything else _ways(top, attached)):
        cgroup = _cgroup(top, parts)
        # Gone meanwhile, it or what it was in: nothing to be shown.
        if cgroup is not None and parts and parts[:-1] in chains:
            chains[parts] = attached.asked(cgroup, chains[parts[:-1]])
            seen[parts] = cgroup
    hidden, total = ({}, len(seen)) if everything else _others(seen)
    nodes = [
        _node(len(parts), cgroup, attached, chains[parts], hidden.get(parts, 0))
        for parts, cgroup in seen.items()
    ]
    return Overview(tuple(nodes), total, attached.sysctls)


def chain_of(target: Cgroup, attached: Attached) -> tuple[Asked, ...]:
    """Who is asked about OOMs of one cgroup, nearest first."""
    found: tuple[Asked, ...] = ()
    for cgroup in reversed(cgroupfs.lineage(target)):
        found = attached.asked(cgroup, found)
    return found


def oom_groups(top: Cgroup) -> list[str]:
    """The cgroups from ``top`` down that are killed as a whole, by memory.oom.group."""
    cgroups = (_cgroup(top, parts) for parts in sorted(_below(top)))
    return [cgroup.name for cgroup in cgroups if cgroup and _value(cgroup, overrides.GROUP) == "1"]


def _node(
    depth: int, cgroup: Cgroup, attached: Attached, chain: tuple[Asked, ...], hidden: int
) -> Node:
    holds = overrides.of_cgroup(
        is_root=cgroup.is_root,
        oom_group=_value(cgroup, overrides.GROUP) == "1",
        idle=cgroup.id in attached.links and not _has_memory(cgroup),
        set_to=attached.sysctls,
    )
    return Node(
        cgroup=cgroup,
        depth=depth,
        chain=chain,
        handler=attached.handlers.get(cgroup.id),
        last=attached.last.get(cgroup.id),
        hidden=hidden,
        usage=_number(cgroup, "memory.current"),
        limit=_number(cgroup, "memory.max"),
        memory_events=cgroupfs.parse_counters(_value(cgroup, "memory.events")),
        pinned=attached.pinned(cgroup),
        overrides=tuple(holds),
        trigger=attached.triggers.get(cgroup.id),
    )


def _others(seen: Mapping[_Parts, Cgroup]) -> tuple[dict[_Parts, int], int]:
    """How many cgroups below each of those seen are not seen, those below others of them left to
    these; and how many there are in all."""
    below = {parts: _descendants(cgroup) for parts, cgroup in seen.items()}
    hidden = dict(below)
    for parts, count in below.items():
        if parts:
            hidden[parts[:-1]] -= 1 + count
    # Cgroups come and go between two looks.
    return {parts: max(0, count) for parts, count in hidden.items()}, 1 + below[()]


def _ways(top: Cgroup, attached: Attached) -> set[_Parts]:
    """The cgroups at or below the top that have a handler or a pin, and all between."""
    ids = {*attached.links, *(attached.where.cgroup_ids() if attached.where else ())}
    wanted: set[_Parts] = set()
    for number in ids:
        found = cgroupfs.by_id(number)
        if found is not None and found.path.is_relative_to(top.path):
            parts = found.path.relative_to(top.path).parts
            wanted.update(parts[:length] for length in range(len(parts) + 1))
    return wanted


def _below(top: Cgroup) -> Iterator[_Parts]:
    """Every cgroup at and below the top; those that go meanwhile may be among them."""
    waiting: list[_Parts] = [()]
    while waiting:
        parts = waiting.pop()
        yield parts
        try:
            with os.scandir(os.path.join(top.path, *parts)) as entries:
                waiting += [(*parts, entry.name) for entry in entries if entry.is_dir()]
        except OSError:
            continue


def _cgroup(top: Cgroup, parts: _Parts) -> Cgroup | None:
    """One of them; None if it is gone."""
    path = os.path.join(top.path, *parts)
    try:
        number = os.stat(path).st_ino
    except OSError:
        return None
    return Cgroup(Path(path), "/".join((top.name.rstrip("/"), *parts)) or "/", number)


def _has_memory(cgroup: Cgroup) -> bool:
    # A file that only a memory controller makes; the root has it always, and not this file.
    return cgroup.is_root or bool(_value(cgroup, "memory.max"))


def _descendants(cgroup: Cgroup) -> int:
    return cgroupfs.parse_counters(_value(cgroup, "cgroup.stat")).get("nr_descendants", 0)


def _number(cgroup: Cgroup, file: str) -> int | None:
    text = _value(cgroup, file)
    return int(text) if text.isdecimal() else None


def _value(cgroup: Cgroup, file: str) -> str:
    """The file's text; "" if it, or the cgroup meanwhile, is not there."""
    try:
        # Thousands of times: without pathlib that takes half as long.
        with open(os.path.join(cgroup.path, file)) as opened:
            return opened.read().strip()
    except OSError:
        return ""
