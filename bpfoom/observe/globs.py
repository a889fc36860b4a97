# SPDX-License-Identifier: Apache-2.0
"""Globs of cgroup paths: ``*`` is anything within a name, ``**`` any number of whole names.

Nothing else is special, for names of cgroups hold brackets, question marks and backslashes. The
time that a match takes is bounded by the lengths of glob and path.
"""

from __future__ import annotations

from collections.abc import Iterable

from bpfoom.errors import UsageError

MAX = 4096  # characters; PATH_MAX
ANY_DEPTH = "**"


def check(glob: str) -> str:
    """The glob without what means nothing in it. Raises UsageError for what is none."""
    names = [name for name in glob.split("/") if name]
    wrong = ""
    if not names and not glob.startswith("/"):
        wrong = "is empty"
    elif len(glob) > MAX:
        wrong = f"is longer than {MAX} characters"
    elif "\0" in glob or "\n" in glob:
        wrong = "holds a character that no cgroup's name can hold"
    elif {".", ".."} & set(names):
        wrong = "has . or .. for a name"
    elif any(ANY_DEPTH in name and name != ANY_DEPTH for name in names):
        wrong = "has ** beside something else: it stands for whole names"
    if wrong:
        raise UsageError(
            f"the glob {glob[:80]!r} {wrong}",
            hint="such as api, batch/*, **/cache, or /shop/api from the root",
        )
    return ("/" if glob.startswith("/") else "") + "/".join(names)


def matches(base: str, glob: str, path: str) -> bool:
    """Whether the glob, taken below ``base`` unless it begins with a slash, matches the path.

    Paths begin at the cgroup2 mount, with a slash; the root is "/". ``glob`` has passed check.
    """
    names = _names(path)
    if not glob.startswith("/"):
        above = _names(base)
        if names[: len(above)] != above:
            return False
        names = names[len(above) :]
    wanted = _names(glob)
    reached = _past_any_depth(wanted, {0})
    for name in names:
        after = {at for at in reached if at < len(wanted) and wanted[at] == ANY_DEPTH}
        after |= {at + 1 for at in reached if at < len(wanted) and _fits(wanted[at], name)}
        reached = _past_any_depth(wanted, after)
    return len(wanted) in reached


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name]


def _past_any_depth(wanted: list[str], reached: Iterable[int]) -> set[int]:
    """The same places, and those behind each ``**``, which may stand for nothing."""
    found = set()
    for at in reached:
        found.add(at)
        while at < len(wanted) and wanted[at] == ANY_DEPTH:
            at += 1
            found.add(at)
    return found


def _fits(wanted: str, name: str) -> bool:
    """Whether a name is what is wanted, ``*`` being anything in it."""
    first, *rest = wanted.split("*")
    if not rest:
        return name == first
    *middle, last = rest
    if not name.startswith(first):
        return False
    at = len(first)
    for part in middle:
        at = name.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return len(name) - at >= len(last) and name.endswith(last)
