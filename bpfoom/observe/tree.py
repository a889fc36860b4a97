# SPDX-License-Identifier: Apache-2.0
"""The tree of cgroups as it is walked: each with its id and owner, and whose handlers are above.

Names are paths below the cgroup2 mount, "/" the root. What a name means to anybody is left to them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bpfoom.observe import cgroupfs


@dataclass(frozen=True)
class Node:
    """A cgroup that was come across: its path below the mount, its owner, and the owners of the
    cgroups above it, and of itself, that have a handler of ours."""

    name: str
    path: Path
    id: int
    uid: int
    watchers: frozenset[int]


def everything(watched: Container[int]) -> Iterator[Node]:
    """Every cgroup there is; ``watched`` has the ids of those that have a handler."""
    return walk(cgroupfs.mount().path, "/", watched)


def walk(
    top: Path,
    name: str,
    watched: Container[int],
    above: frozenset[int] = frozenset(),
    enter: Callable[[str], object] = lambda _: None,
) -> Iterator[Node]:
    """A cgroup and all below it, each before its children; those that vanish are left out.

    ``watched`` has the ids of cgroups that have a handler; ``above`` the owners of those above the
    top. ``enter`` is called with a cgroup's name before its children are looked for.
    """
    waiting = [(top, name, above)]
    while waiting:
        path, name, above = waiting.pop()
        enter(name)
        try:
            status = os.stat(path)
            with os.scandir(path) as entries:
                children = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            continue
        here = above | {status.st_uid} if status.st_ino in watched else above
        yield Node(name, path, status.st_ino, status.st_uid, here)
        waiting += [(path / child.name, joined(name, child.name), here) for child in children]


def joined(name: str, child: str) -> str:
    """The name of what is below a cgroup."""
    return f"{name.rstrip('/')}/{child}"


def parent(name: str) -> str:
    """The name of the cgroup above one; the root is above itself."""
    return name.rpartition("/")[0] or "/"


def ancestors(name: str) -> Iterator[str]:
    """The names of the cgroups above one, upwards."""
    while name != "/":
        name = parent(name)
        yield name


def topmost(names: Iterable[str]) -> list[str]:
    """The names without those that are below another of them."""
    given = set(names)
    return sorted(name for name in given if not any(up in given for up in ancestors(name)))
