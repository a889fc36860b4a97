# SPDX-License-Identifier: Apache-2.0
"""From a scenario's TOML to its types, strictly: what is not known, or names nothing, is refused.

Every complaint is a UsageError that names the file and the key ("workloads.api.anon"), in ``data``
too. docs/scenarios.md is the format.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bpfoom.errors import UsageError
from bpfoom.handler.marks import Mark
from bpfoom.observe.records import Cgroups
from bpfoom.policy import record
from bpfoom.policy.table import Table
from bpfoom.scenario import model
from bpfoom.scenario.draw import size
from bpfoom.scenario.model import (
    Attachment,
    Cgroup,
    Condition,
    Conditions,
    Expect,
    Growth,
    Lowering,
    Scenario,
    Take,
    Trigger,
    Workload,
)

_LIMITS = ("memory.max", "memory.high", "memory.low", "memory.min", "memory.swap.max")
_SWITCHES = ("memory.oom.group",)
_PART = r"[A-Za-z0-9_:@-][A-Za-z0-9_.:@-]*"
_PATH = re.compile(rf"{_PART}(/{_PART})*\Z")
_COMM = re.compile(r"[A-Za-z0-9_.:@+()\[\]-]{1,15}\Z")
_CONDITION = re.compile(r"(>=|<=|==|>|<)?\s*(\d+)([KMG]?)\Z")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_AFTER = ("others", "promise", "sample")
KERNEL = "kernel"

# The kernel's: of a handler's link, and of memory.events.
_COUNTERS = (
    *("invocations", "handled", "passed", "kernel", "unproven", "invalid", "promised"),
    *("promises_broken", "kills", "slow", "last_ns", "max_ns"),
)
_EVENTS = ("low", "high", "max", "oom", "oom_kill", "oom_group_kill", "sock_throttled")
_DECISION = (
    *(field.name for field in record.FIELDS),
    *(field.name for field in fields(Cgroups)),
    *("time", "dry_run", "policy"),
)


def parse(text: str, *, name: str, file: Path) -> Scenario:
    """The scenario in a file's text. Raises UsageError."""
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise _wrong(file)("", str(error)) from error
    top = Table(document, "", _wrong(file))
    summary = top.string("summary")
    system_wide = top.boolean("system_wide")
    cgroups = tuple(_cgroup(path, table) for path, table in top.tables("cgroups"))
    workloads = tuple(_workload(comm, table) for comm, table in top.tables("workloads"))
    attachments = tuple(_attachment(table) for table in top.list_of_tables("attach"))
    marks = top.strings("marks")
    triggers = tuple(_trigger(table) for table in top.list_of_tables("trigger"))
    expect = _expect(top.table("expect"), workloads)
    top.end()
    found = Scenario(
        name, summary, cgroups, workloads, triggers, expect, attachments, marks, system_wide, file
    )
    _Check(found, top.wrong).everything()
    return found


def _wrong(file: Path) -> Callable[[str, str], UsageError]:
    def wrong(key: str, what: str) -> UsageError:
        place = f"{file}: {key}: " if key else f"{file}: "
        return UsageError(
            f"{place}{what}", hint="the format is in docs/scenarios.md", path=str(file), key=key
        )

    return wrong


def _cgroup(path: str, table: Table) -> Cgroup:
    if not _PATH.match(path):
        raise table.error("", "a cgroup's path is like shop/api")
    files = {}
    for key, value in table.flat():
        if key in _LIMITS:
            files[key] = "max" if value == "max" else str(table.as_bytes(key, value))
        elif key in _SWITCHES:
            files[key] = str(int(table.as_boolean(key, value)))
        else:
            raise table.error(key, f"no such file; there are {', '.join(_LIMITS + _SWITCHES)}")
    return Cgroup(path, files)


def _take(table: Table) -> Take:
    sizes = [field.name for field in fields(Take) if field.name != "children"]
    found = {kind: table.bytes_or_all(kind) for kind in sizes}
    return Take(**found, children=table.number_or_all("children"))


def _workload(comm: str, table: Table) -> Workload:
    if not _COMM.match(comm):
        raise table.error("", "a workload's name is a process's: 15 of A-Z a-z 0-9 _.:@+-()[]")
    workload = Workload(
        comm,
        table.string("cgroup"),
        _take(table),
        table.number("oom_score_adj", 0, low=-1000, high=1000),
        table.string("maps", ""),
        table.milliseconds("exit_delay"),
        table.boolean("headless"),
        table.string("moves_to", ""),
    )
    table.end()
    if workload.headless and workload.exit_ms:
        raise table.error("exit_delay", "only a leader can be held at its exit, not headless")
    if model.ALL in (amount for _, amount in workload.fill.kinds()):
        raise table.error("", 'only a trigger takes "all"')
    return workload


def _attachment(table: Table) -> Attachment:
    found = Attachment(
        table.string("cgroup"),
        table.string("policy"),
        table.settings("set"),
        table.boolean("dry_run"),
    )
    table.end()
    return found


def _trigger(table: Table) -> Trigger:
    found: Trigger
    if table.has("cgroup"):
        found = Lowering(table.string("cgroup"), table.size("memory_max"))
    else:
        after = table.string("after", "")
        if after and after not in _AFTER:
            raise table.error("after", f"expected one of {', '.join(_AFTER)}")
        found = Growth(table.string("workload"), _take(table), table.boolean("gives_back"), after)
        if not any(found.take.kinds()) and not found.gives_back:
            raise table.error("", f"takes nothing: expected one of {', '.join(model.KINDS)}")
    table.end()
    return found


def _expect(table: Table, workloads: Iterable[Workload]) -> Expect:
    victims = table.names("victims")
    forkers = {workload.name for workload in workloads if workload.fill.children}
    if not table.has("kills") and forkers & set(victims):
        raise table.error("kills", "is needed: victims with children are more than one process")
    kills = _condition(table, "kills", table.take("kills", len(victims)))
    found = Expect(
        victims=victims,
        survivors=table.names("survivors", ()),
        decided_by=table.names("decided_by"),
        kills=kills,
        refused=table.names("refused", ()),
        verdict=table.string("verdict", ""),
        action=table.string("action", ""),
        counters=_conditions(table, "counters"),
        memory_events=_conditions(table, "memory_events"),
        decisions=_conditions(table, "decisions"),
    )
    table.end()
    return found


def _conditions(table: Table, key: str) -> dict[str, Conditions]:
    return {
        path: {name: _condition(inner, name, value) for name, value in inner.flat()}
        for path, inner in table.tables(key)
    }


def _condition(table: Table, key: str, value: Any) -> Condition:
    """An integer, text such as ">=2" or ">20M", or a word."""
    if isinstance(value, int) and not isinstance(value, bool):
        return Condition("==", value)
    if not isinstance(value, str) or not value:
        raise table.error(key, 'expected a number, a comparison such as ">=2", or a word')
    found = _CONDITION.match(value)
    if found:
        return Condition(found[1] or "==", int(found[2]) * _UNITS[found[3]])
    if value[0] in "<>=":
        raise table.error(key, f"{value!r} compares with no number")
    return Condition("==", value)


class _Check:
    """What one table alone cannot know: that names name something, that the tree can be."""

    def __init__(self, scenario: Scenario, wrong: Callable[[str, str], UsageError]) -> None:
        self._it = scenario
        self._wrong = wrong
        self._paths = {cgroup.path for cgroup in scenario.cgroups}
        self._names = {workload.name for workload in scenario.workloads}

    def everything(self) -> None:
        if not self._it.triggers:
            raise self._wrong("trigger", "nothing would run out of memory")
        self._tree()
        self._workloads()
        self._handlers()
        self._triggers()
        self._expectations()

    def _tree(self) -> None:
        for cgroup in self._it.cgroups:
            if cgroup.parent:
                self._cgroup(f"cgroups.{cgroup.path}", cgroup.parent)
            limit = cgroup.files.get("memory.max", "max")
            takes = [workload.fill for workload in self._it.inside(cgroup.path)]
            filled = sum(take.anon + take.shared + take.file + take.tmpfs for take in takes)
            if limit != "max" and filled > int(limit):
                raise self._wrong(
                    f"cgroups.{cgroup.path}.memory.max",
                    f"{size(int(limit))}, but it is filled with {size(filled)} before any trigger",
                )

    def _workloads(self) -> None:
        parents = {cgroup.parent for cgroup in self._it.cgroups} - {""}
        for workload in self._it.workloads:
            key = f"workloads.{workload.name}"
            for end in ("cgroup", "moves_to"):
                if path := getattr(workload, end):
                    self._cgroup(f"{key}.{end}", path)
                if path in parents:
                    raise self._wrong(f"{key}.{end}", "a cgroup with children holds no processes")
            if workload.maps:
                self._workload(f"{key}.maps", workload.maps)
                if not self._it.workload(workload.maps).fill.tmpfs:
                    raise self._wrong(f"{key}.maps", f"{workload.maps} has no tmpfs to be mapped")

    def _handlers(self) -> None:
        attached = [attachment.cgroup for attachment in self._it.attachments]
        for number, path in enumerate(attached):
            self._cgroup(f"attach[{number}].cgroup", path, root=True)
            if path in attached[:number]:
                raise self._wrong(f"attach[{number}].cgroup", f"{path} has a handler already")
        if model.ROOT in attached:
            self._needs_system_wide("attach", "a handler at / is asked by every OOM of the machine")
        for glob, text in self._it.marks.items():
            try:
                Mark.parse(text)
            except UsageError as error:
                raise self._wrong(f"marks.{glob}", f"{error.message}: {error.hint}") from error
            if not any(fnmatchcase(path, glob) for path in self._paths):
                raise self._wrong(f"marks.{glob}", "matches no cgroup of the scenario")

    def _triggers(self) -> None:
        for number, trigger in enumerate(self._it.triggers):
            key = f"trigger[{number}]"
            if isinstance(trigger, Lowering):
                self._cgroup(f"{key}.cgroup", trigger.cgroup)
                continue
            self._workload(f"{key}.workload", trigger.workload)
            if trigger.take.anon == model.ALL:
                self._needs_system_wide(f"{key}.anon", '"all" is the memory of the whole machine')

    def _expectations(self) -> None:
        expect = self._it.expect
        for key in ("victims", "survivors", "refused"):
            for name in getattr(expect, key):
                self._workload(f"expect.{key}", name)
        for path in expect.decided_by:
            if path != KERNEL:
                self._handler("expect.decided_by", path)
        for key in ("counters", "decisions"):
            for path in getattr(expect, key):
                self._handler(f"expect.{key}", path)
        for path in expect.memory_events:
            self._cgroup("expect.memory_events", path)
        self._words()

    def _words(self) -> None:
        """That expectations are about something that there is."""
        expect = self._it.expect
        for key, known in (("verdict", record.VERDICTS), ("action", record.ACTIONS)):
            if word := getattr(expect, key):
                self._one_of(f"expect.{key}", word, known.values())
        names = {"counters": _COUNTERS, "memory_events": _EVENTS, "decisions": _DECISION}
        for key, there in names.items():
            for path, conditions in getattr(expect, key).items():
                for name in conditions:
                    self._one_of(f"expect.{key}.{path}", name, there)

    def _one_of(self, key: str, word: str, known: Iterable[str]) -> None:
        if word not in known:
            raise self._wrong(key, f"there is no {word!r}; there are {', '.join(known)}")

    def _cgroup(self, key: str, path: str, *, root: bool = False) -> None:
        if path not in self._paths and not (root and path == model.ROOT):
            raise self._wrong(key, f"there is no cgroup {path!r}")

    def _workload(self, key: str, name: str) -> None:
        if name not in self._names:
            raise self._wrong(key, f"there is no workload {name!r}")

    def _handler(self, key: str, path: str) -> None:
        if path not in [attachment.cgroup for attachment in self._it.attachments]:
            raise self._wrong(key, f"no policy is attached to {path!r}")

    def _needs_system_wide(self, key: str, why: str) -> None:
        if not self._it.system_wide:
            raise self._wrong(key, f"needs system_wide = true: {why}")
