# SPDX-License-Identifier: Apache-2.0
"""Which cgroups are marked, and why: globs that were given, and extended attributes.

The map of marks is made from these two and nothing else, so making it again is always right: new
cgroups get their marks, cgroups that are gone lose them, and what nobody asked for goes. A glob
beats an attribute, a later glob an earlier one; each of preference and priority by itself.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bpfoom.errors import NotThereError
from bpfoom.handler import marks
from bpfoom.handler.marks import Mark, Rule
from bpfoom.handler.pins import Pins
from bpfoom.handler.syscalls import Fd
from bpfoom.observe import globs
from bpfoom.observe.tree import Node, everything

# systemd's and oomd's names, the one that decides first. Those that begin with "user." can be
# written by a cgroup's owner.
XATTRS = (
    ("trusted.oomd_omit", "omit"),
    ("user.oomd_omit", "omit"),
    ("trusted.oomd_avoid", "avoid"),
    ("user.oomd_avoid", "avoid"),
)
_TRUE = frozenset((b"1", b"yes", b"y", b"true", b"t", b"on"))
# Without such an attribute, gone meanwhile, or a file system that has none.
_NO_XATTR = (errno.ENODATA, errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class Marked:
    """What a cgroup is to be marked with, and what each part comes from: a glob's pattern, or the
    name of an extended attribute."""

    mark: Mark
    preference_from: str | None = None
    priority_from: str | None = None


@dataclass(frozen=True)
class Change:
    """A cgroup whose mark is another one now; None is no mark. ``name`` is "" if it is gone."""

    cgroup_id: int
    name: str
    before: Mark | None
    after: Mark | None


def wanted(node: Node, rules: Sequence[Rule]) -> Marked | None:
    """What a cgroup is to be marked with; None if nothing says so."""
    found = _by_xattr(node)
    for rule in rules:
        if not globs.matches(rule.base, rule.glob, node.name):
            continue
        found = Marked(
            rule.mark.over(found.mark),
            rule.pattern if rule.mark.preference else found.preference_from,
            found.priority_from if rule.mark.priority is None else rule.pattern,
        )
    return found if found.mark != Mark() else None


def honours_user_xattrs(node: Node) -> bool:
    """Whether attributes that the cgroup's owner can write are believed.

    systemd's rule: the owner is root, or is the owner of the cgroup that is watched. The map has
    one mark for all who watch, so all of them have to be that owner's.
    """
    return node.uid == 0 or node.watchers == {node.uid}


def _by_xattr(node: Node) -> Marked:
    for name, preference in XATTRS:
        if name.startswith("user.") and not honours_user_xattrs(node):
            continue
        if _xattr(node.path, name).strip().lower() in _TRUE:
            return Marked(Mark(preference), name)
    return Marked(Mark())


def _xattr(path: Path, name: str) -> bytes:
    try:
        return os.getxattr(path, name)
    except OSError as error:
        if error.errno in _NO_XATTR:
            return b""
        raise


def survey(where: Pins, rules: Sequence[Rule]) -> dict[int, tuple[Node, Marked]]:
    """What every cgroup is to be marked with now, by id."""
    return marked(everything(frozenset(where.cgroup_ids())), rules)


def marked(nodes: Iterable[Node], rules: Sequence[Rule]) -> dict[int, tuple[Node, Marked]]:
    """Those of the nodes that are to be marked, by id."""
    pairs = ((node, wanted(node, rules)) for node in nodes)
    return {node.id: (node, found) for node, found in pairs if found is not None}


@dataclass(frozen=True)
class Synced:
    """What a synchronisation has changed, and all that is marked now, by id."""

    changes: list[Change]
    marked: dict[int, tuple[Node, Marked]]


def sync(where: Pins, edit: Callable[[tuple[Rule, ...]], Sequence[Rule]] | None = None) -> Synced:
    """Make the map what globs and attributes say.

    ``edit`` is given the globs and returns those that are to hold from now on. Without it, and
    where there is no map yet, nobody looks at marks and nothing is done. Raises
    PermissionDeniedError, and BpfoomError where there is no room.
    """
    shared = marks.open_marks(where) if edit is None else marks.make_marks(where)
    if shared is None:
        return Synced([], {})
    with shared, where.writing():
        present = marks.read_rules(where)
        rules = present if edit is None else tuple(edit(present))
        before, found = marks.read_all(shared), survey(where, rules)
        fitting(before, found)
        if rules != present:
            marks.write_rules(where, rules)
        return Synced(apply(shared, before, found), found)


def preview(where: Pins, edit: Callable[[tuple[Rule, ...]], Sequence[Rule]] | None) -> Synced:
    """What :func:`sync` would change. Raises as it does."""
    shared = marks.open_marks(where)
    if shared is None and edit is None:
        return Synced([], {})
    before = {}
    if shared is not None:
        with shared:
            before = marks.read_all(shared)
    present = marks.read_rules(where)
    found = survey(where, present if edit is None else edit(present))
    return Synced(differences(before, found), found)


def apply(
    shared: Fd, before: Mapping[int, Mark], found: Mapping[int, tuple[Node, Marked]]
) -> list[Change]:
    """Write what differs between the marks that there are and those that are to be.

    Raises BpfoomError where there is no room, as :func:`fitting` does.
    """
    changes = differences(before, found)
    for change in changes:
        marks.write(shared, change.cgroup_id, change.after)
    return changes


def differences(
    before: Mapping[int, Mark], found: Mapping[int, tuple[Node, Marked]]
) -> list[Change]:
    """What differs, in the order in which it has to be written. Raises as :func:`fitting` does."""
    kept = fitting(before, found)
    names = {number: node.name for number, (node, _) in found.items()}
    # Marks that go make room.
    changes = [
        Change(number, names.get(number, ""), before[number], None)
        for number in sorted(before.keys() - kept.keys())
    ]
    changes += [
        Change(number, names[number], before.get(number), mark)
        for number, mark in kept.items()
        if before.get(number) != mark
    ]
    return changes


def fitting(
    before: Mapping[int, Mark], found: Mapping[int, tuple[Node, Marked]]
) -> dict[int, Mark]:
    """The marks that are to be, as far as there is room.

    Those that any owner of a cgroup can ask for are left out first, and those of them that are
    there last: nobody's mark may be at the mercy of somebody who makes many cgroups. Raises
    BpfoomError where there is no room for the others.
    """
    kept = {number: why.mark for number, (_, why) in found.items() if not _is_users(why)}
    room = marks.MARKS.max_entries - len(kept)
    if room < 0:
        raise marks.no_room(len(kept))
    users = [number for number in found if number not in kept]
    users.sort(key=lambda number: number not in before)
    return kept | {number: found[number][1].mark for number in users[:room]}


def _is_users(why: Marked) -> bool:
    return (why.preference_from or "").startswith("user.") and why.priority_from is None


def added(rules: Sequence[Rule], more: Sequence[Rule]) -> list[Rule]:
    """The rules, and behind them more; one of the same name is replaced."""
    fresh = {rule.pattern for rule in more}
    return [rule for rule in rules if rule.pattern not in fresh] + list(more)


def undone(present: Sequence[Rule], before: Sequence[Rule], more: Sequence[Rule]) -> list[Rule]:
    """The rules as they were before more were added to them, but for what others have changed."""
    replaced = {rule.pattern for rule in present if rule in more}
    kept = [rule for rule in present if rule not in more]
    back = [rule for rule in before if rule in kept or rule.pattern in replaced]
    return back + [rule for rule in kept if rule not in before]


def without(rules: Sequence[Rule], patterns: Sequence[str]) -> list[Rule]:
    """The rules but those. Raises NotThereError for a pattern that there is none of."""
    known = [rule.pattern for rule in rules]
    for pattern in patterns:
        if pattern not in known:
            raise NotThereError(
                f"no mark was set for {pattern}",
                hint=f"there are: {', '.join(known) or 'none'}",
                object=pattern,
            )
    return [rule for rule in rules if rule.pattern not in patterns]


@dataclass(frozen=True)
class Effective:
    """What holds for a cgroup, each part from the nearest cgroup that is marked with it.

    ``preference_from`` and ``priority_from`` are that one's id; None where nobody is.
    """

    preference: str
    preference_from: int | None
    priority: int
    priority_from: int | None


def effective(found: Mapping[int, Mark], lineage: Sequence[int]) -> Effective:
    """What handlers find for a cgroup; ``lineage`` has its id and those of all above, upwards."""
    preference = next((n for n in lineage if n in found and found[n].preference), None)
    priority = next((n for n in lineage if n in found and found[n].priority is not None), None)
    return Effective(
        (found[preference].preference if preference else None) or marks.PREFERENCES[0],
        preference,
        (found[priority].priority if priority else None) or 0,
        priority,
    )
