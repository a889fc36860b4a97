# SPDX-License-Identifier: Apache-2.0
"""The configuration: which cgroups are to have which policy, how set, and who is marked.

Read strictly from one TOML file; docs/agent.md is the format. Every complaint is a UsageError that
names the file and the key. Nothing here looks at the machine's cgroups.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bpfoom.errors import BpfoomError, NotThereError, UsageError
from bpfoom.handler.marks import Mark, Rule
from bpfoom.handler.wanted import Wanted
from bpfoom.observe import globs, units
from bpfoom.policy.compose import settled
from bpfoom.policy.find import is_path
from bpfoom.policy.table import Table
from bpfoom.policy.trigger import COOLDOWN, Settings

Wrong = Callable[[str, str], UsageError]


@dataclass(frozen=True)
class Entry:
    """One ``[[attach]]``: the globs and units of the cgroups that it is for, and what they get.

    ``place`` is its name in the file, such as "attach[2]". With ``marked`` it has marks of its own,
    so its policy has to look at them. ``trigger`` is when an OOM is declared early, None for never.
    """

    place: str
    globs: tuple[str, ...]
    units: tuple[str, ...]
    wanted: Wanted
    marked: bool = False
    trigger: Settings | None = None

    def matching(self, name: str, in_units: Mapping[str, str]) -> Iterator[str]:
        """Those of its globs and units that mean a cgroup. ``in_units`` has units' cgroups."""
        yield from (glob for glob in self.globs if globs.matches("/", glob, name))
        yield from (unit for unit in self.units if in_units.get(unit) == name)

    @property
    def patterns(self) -> tuple[str, ...]:
        """Its globs and units."""
        return self.globs + self.units

    def names(self, name: str) -> bool:
        """Whether it means a cgroup by its very name, not by a glob that others match, too."""
        return name in self.globs or not self.globs


@dataclass(frozen=True)
class Config:
    """``owner`` is what handlers and marks are said to be by: the file's path, as a rule."""

    owner: str
    entries: tuple[Entry, ...]
    rules: tuple[Rule, ...] = ()


def read(path: Path) -> Config:
    """The configuration in a file. Raises NotThereError, and UsageError for what is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise NotThereError(
            f"cannot read {path}: {error.strerror}",
            hint="docs/agent.md says how to write one",
            path=str(path),
            errno=error.errno,
        ) from error
    except UnicodeDecodeError as error:
        raise _wrong(path)("", "is not UTF-8 text") from error
    return parse(text, path.absolute())


def parse(text: str, path: Path) -> Config:
    """The configuration in a file's text; ``path`` is absolute. Raises UsageError."""
    wrong = _wrong(path)
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise wrong("", str(error)) from error
    top = Table(document, "", wrong)
    rules = _marks(top, ("/",), str(path))
    entries = []
    for number, table in enumerate(top.list_of_tables("attach")):
        entry = _entry(table, f"attach[{number}]", path.parent)
        bases = (*entry.globs, *(f"/**/{unit}" for unit in entry.units))
        marks = _marks(table, bases, str(path))
        table.end()
        rules += marks
        entries.append(replace(entry, marked=bool(marks)))
    top.end()
    return Config(str(path), tuple(entries), tuple(rules))


def _entry(table: Table, place: str, directory: Path) -> Entry:
    given, named = table.names("cgroup", ()), table.names("unit", ())
    try:
        patterns = tuple(_from_root(globs.check(glob)) for glob in given)
        services = tuple(units.full_name(unit) for unit in named)
    except UsageError as error:
        raise table.error("", error.message) from error
    if not patterns and not services:
        raise table.error("cgroup", "is missing: a glob or several; or name a unit")
    trigger = _trigger(table)
    return Entry(place, patterns, services, _wanted(table, directory), trigger=trigger)


def _trigger(table: Table) -> Settings | None:
    if not table.has("trigger"):
        return None
    psi, cooldown = table.string("trigger"), table.string("cooldown", COOLDOWN)
    try:
        return Settings.parse(psi, cooldown, table.boolean("repeat"))
    except UsageError as error:
        raise table.error("trigger", f"{error.message}: {error.hint}") from error


def _wanted(table: Table, directory: Path) -> Wanted:
    """What is to be attached. Relative paths begin where the file is."""
    policy, file = table.string("policy", ""), table.string("object", "")
    if bool(policy) == bool(file):
        raise table.error("", "name a policy, or an object")
    if "\0" in file:
        raise table.error("object", "no file has such a name")
    if policy and is_path(policy):
        policy = str(directory / policy)
    settings, dry_run = table.settings("set"), table.boolean("dry_run")
    try:
        if policy:
            settings = settled(policy, settings, directory)
        wanted = Wanted.of(
            policy or None, directory / file if file else None, settings, dry_run or None
        )
        if policy:
            wanted.check()
    except BpfoomError as error:
        raise table.error("", f"{error.message}: {error.hint}") from error
    return wanted


def _marks(table: Table, bases: tuple[str, ...], owner: str) -> list[Rule]:
    """The globs of a table of marks, each from the root on; those given are below the bases."""
    found = []
    for glob, text in table.strings("marks").items():
        try:
            checked, mark = globs.check(glob), Mark.parse(text)
        except UsageError as error:
            raise table.error("marks", f"{error.message}: {error.hint}") from error
        if checked.startswith("/"):
            found.append(Rule("/", checked, mark, owner))
            continue
        found += [Rule("/", f"{base.rstrip('/')}/{checked}", mark, owner) for base in bases]
    return found


def _from_root(glob: str) -> str:
    return glob if glob.startswith("/") else f"/{glob}"


def _wrong(path: Path) -> Wrong:
    def wrong(key: str, what: str) -> UsageError:
        place = f"{path}: {key}: " if key else f"{path}: "
        return UsageError(
            f"{place}{what}", hint="the format is in docs/agent.md", path=str(path), key=key
        )

    return wrong
