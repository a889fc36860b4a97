# SPDX-License-Identifier: Apache-2.0
"""The cache: an entry is there or not, whenever its maker dies; what he leaves is cleaned up."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bpfoom import cache, files
from bpfoom.cli.main import main
from bpfoom.compiler import store
from bpfoom.errors import BpfoomError

KIND, KEY = "things", "0123"
FILES = 20
ROUNDS = 40


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def kind() -> Path:
    return cache.root() / KIND


def make_directory(text: str, begun: Callable[[], object] = lambda: None) -> None:
    with cache.staged(KIND, KEY) as work:
        for number in range(FILES):
            (work / str(number)).write_text(text)
            begun()


def directory_is(*texts: str) -> None:
    """It is whole, and one of these."""
    files = sorted(cache.path_of(KIND, KEY).iterdir())
    assert len(files) == FILES
    assert {path.read_text() for path in files} <= set(texts)
    assert len({path.read_text() for path in files}) == 1


def file_is(*texts: str) -> None:
    assert cache.path_of(KIND, KEY).read_text() in texts


def _make_again_and_again(begun: multiprocessing.synchronize.Event, *, directory: bool) -> None:
    number = 0
    while True:
        number += 1
        text = str(number % 2)
        if directory:
            make_directory(text, begun.set)
        else:
            cache.write_file(KIND, KEY, (text * 100_000).encode())
            begun.set()


@pytest.mark.parametrize("directory", [True, False])
def test_killed_anywhere_the_entry_is_whole_or_not_there(directory: bool) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    context = multiprocessing.get_context("fork")
    absent = 0
    for _ in range(ROUNDS):
        begun = context.Event()
        maker = context.Process(
            target=_make_again_and_again, args=(begun,), kwargs={"directory": directory}
        )
        maker.start()
        assert begun.wait(60)
        time.sleep(chance.uniform(0, 0.01))
        maker.kill()
        maker.join()
        assert maker.exitcode == -signal.SIGKILL
        if not cache.path_of(KIND, KEY).exists():
            absent += 1
        elif directory:
            directory_is("0", "1")
        else:
            file_is("0" * 100_000, "1" * 100_000)
        assert len(list(kind().glob(".*"))) <= 2, "the next one cleans up"
    assert absent < ROUNDS
    make_directory("2") if directory else cache.write_file(KIND, KEY, b"2")
    directory_is("2") if directory else file_is("2")
    assert list(kind().glob(".*")) == []


def test_what_somebody_is_making_is_left_to_him() -> None:
    with cache.staged(KIND, "other") as work:
        (work / "half").write_text("")
        cache.write_file(KIND, KEY, b"whole")
        assert cache.sweep(kind()) == []
        assert (work / "half").exists()
    assert {entry.key for entry in cache.entries()} == {"other", KEY}


def test_a_place_that_was_cleaned_up_too_early_is_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between making it and holding it."""
    flock, swept = files.fcntl.flock, []

    def late(descriptor: int, how: int) -> None:
        if not swept:
            swept.append(True)
            assert len(cache.sweep(kind())) == 1
        flock(descriptor, how)

    monkeypatch.setattr(files.fcntl, "flock", late)
    cache.write_file(KIND, KEY, b"whole")
    file_is("whole")


@pytest.mark.parametrize("name", [f".{KEY}.abcdefgh", ".fifo", ".link"])
def test_clear_removes_what_was_left_half_made(name: str, capsys: object) -> None:
    cache.write_file(KIND, KEY, b"whole")
    path = kind() / name
    if name == ".fifo":
        os.mkfifo(path)
    elif name == ".link":
        path.symlink_to("/nowhere")
    else:
        path.mkdir()
        (path / "half").write_text("")
    with pytest.raises(SystemExit) as ended:
        main(["cache", "clear", KIND])
    assert not ended.value.code
    left = [".link"] if name == ".link" else []
    assert [entry.name for entry in kind().iterdir()] == left


def test_who_writes_a_file_again_sweeps_what_he_left_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    editors = tmp_path / ".result.json.swp"
    editors.write_text("somebody edits it")
    (tmp_path / ".result.json.bpfoom-abcdefgh").write_text("half")
    files.write_whole(path, b"whole")
    assert sorted(tmp_path.iterdir()) == [editors, path]
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"whole", 0o644)


def test_where_nothing_can_be_locked_it_is_made_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "")

    monkeypatch.setattr(files.fcntl, "flock", unsupported)
    with files.making(tmp_path, ".x.", directory=True) as (work, _):
        assert files.sweep(tmp_path, ".x.") == []
        assert work.is_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="files of two users take root")
def test_what_others_left_is_theirs_to_sweep(tmp_path: Path) -> None:
    theirs, ours = tmp_path / ".x.theirs", tmp_path / ".x.ours"
    for path in (theirs, ours):
        path.write_text("")
    os.chown(theirs, 12345, 12345)
    assert files.sweep(tmp_path, ".x.") == [ours]
    assert theirs.exists()


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    with pytest.raises(BpfoomError, match="54321 has no home") as raised:
        cache.root()
    assert "XDG_CACHE_HOME" in raised.value.hint


@pytest.mark.parametrize("name", ["x" * 300, "x/y"])
def test_a_file_that_cannot_be_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(BpfoomError, match="cannot write"):
        files.write_whole(tmp_path / name, b"")


def test_a_directory_in_place_of_a_file_is_replaced() -> None:
    (cache.path_of("objects", KEY) / "deep").mkdir(parents=True)
    assert store.load("objects", KEY) is None
    store.save("objects", KEY, {"a": 1})
    assert store.load("objects", KEY) == {"a": 1}


def test_every_half_of_an_entry_is_as_good_as_none() -> None:
    store.save("objects", KEY, {"insns": "00" * 50, "numbers": [[1, 2]]})
    path = cache.path_of("objects", KEY)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert store.load("objects", KEY) is None
    path.write_bytes(whole)
    assert store.load("objects", KEY) is not None
