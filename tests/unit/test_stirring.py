# SPDX-License-Identifier: Apache-2.0
"""The watcher on directories that are no cgroups: inotify is the same."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfoom.mounts import Mount
from bpfoom.observe import cgroupfs
from bpfoom.observe.stirring import Watcher
from tests import deep

DEADLINE_S = 30.0


@pytest.fixture
def watcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watcher]:
    """``/a/b`` and ``/c``, watched."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "c").mkdir()
    (tmp_path / "a" / "cgroup.subtree_control").touch()
    monkeypatch.setattr(cgroupfs, "mount", lambda: Mount(tmp_path, tmp_path.stat().st_dev))
    with Watcher() as made:
        made.look("/", ())
        yield made


def names(watcher: Watcher, top: str) -> list[str]:
    return sorted(node.name for node in watcher.look(top, ()).nodes)


def watches(watcher: Watcher) -> int:
    return Path(f"/proc/self/fdinfo/{watcher.fileno()}").read_text().count("inotify wd:")


def test_what_stirs_is_looked_at_with_what_is_below_it(watcher: Watcher, tmp_path: Path) -> None:
    os.makedirs(tmp_path / "a" / "b" / "x" / "y")
    assert watcher.stirred(DEADLINE_S) == ["/a/b/x"]
    assert names(watcher, "/a/b/x") == ["/a/b/x", "/a/b/x/y"]
    (tmp_path / "a" / "b" / "x" / "y" / "z").mkdir()
    (tmp_path / "c").chmod(0o700)
    assert set(watcher.stirred(DEADLINE_S)) == {"/a/b/x/y/z", "/c"}
    (tmp_path / "c" / "file").touch()
    (tmp_path / "c" / "file").chmod(0o600)
    assert watcher.stirred(0) == []


def test_what_is_nested_too_deep_for_a_path_is_passed_over(
    watcher: Watcher, tmp_path: Path
) -> None:
    with deep.nested(tmp_path / "a" / "b"):
        while tops := watcher.stirred(0):
            for top in tops:
                watcher.look(top, ())
        assert len(names(watcher, "/")) < 4 + 18
        (tmp_path / "c" / "new").mkdir()
        assert watcher.stirred(DEADLINE_S) == ["/c/new"]
    watcher.look("/", ())
    assert watches(watcher) == 5


def test_what_goes_is_told_once_and_its_watches_go(watcher: Watcher, tmp_path: Path) -> None:
    assert watches(watcher) == 4
    gone = {(tmp_path / name).stat().st_ino for name in ("a", "a/b")}
    (tmp_path / "a" / "cgroup.subtree_control").unlink()
    (tmp_path / "a" / "b").rmdir()
    (tmp_path / "a").rmdir()
    assert watcher.stirred(DEADLINE_S) == ["/a"]
    look = watcher.look("/a", ())
    assert (look.nodes, look.gone) == ([], gone)
    assert watcher.look("/a", ()).gone == set()
    assert watches(watcher) == 2


def test_another_one_of_the_same_name(watcher: Watcher, tmp_path: Path) -> None:
    before = (tmp_path / "c").stat().st_ino
    (tmp_path / "new").mkdir()
    (tmp_path / "c").rmdir()
    (tmp_path / "new").rename(tmp_path / "c")
    look = watcher.look("/c", ())
    assert [node.name for node in look.nodes] == ["/c"] and look.gone == {before}
    watcher.stirred(0)
    (tmp_path / "c" / "below").mkdir()
    assert watcher.stirred(DEADLINE_S) == ["/c/below"]


def test_controllers_stir_only_who_waits_for_them(watcher: Watcher, tmp_path: Path) -> None:
    file = tmp_path / "a" / "cgroup.subtree_control"
    file.write_text("+memory")
    assert watcher.stirred(0) == []
    watcher.await_controllers("/a/b")
    # A look at the one above does not forget that somebody waits.
    names(watcher, "/a")
    file.write_text("+memory")
    assert watcher.stirred(DEADLINE_S) == ["/a"]
    names(watcher, "/a")
    file.write_text("+memory")
    assert watcher.stirred(0) == []


def test_an_overflow_makes_everything_stir(watcher: Watcher, tmp_path: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    for _ in range(limit // 2 + 1):
        (tmp_path / "a").chmod(0o755)
        (tmp_path / "c").chmod(0o755)  # in turns, or the same events would count once
    assert watcher.stirred(DEADLINE_S) == ["/"]
