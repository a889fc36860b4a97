# SPDX-License-Identifier: Apache-2.0
"""What others have pinned where bpfoom pins, and what other versions have left: named, and kept."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bpfoom.btf.types import Btf
from bpfoom.handler import info, links, pins, syscalls
from bpfoom.handler.attach import attach, link_to_cgroup
from bpfoom.handler.load import load
from bpfoom.handler.syscalls import Fd
from bpfoom.observe.records import HISTORY_MAP, STATE_MAP
from bpfoom.policy import record
from tests.guest.byhand import ROOT, Trees, cli, cli_json, handler_object, returns

# Compiling takes minutes on a debug kernel.
pytestmark = pytest.mark.flavours("plain")


def directory(path: Path, *_: object) -> None:
    path.mkdir()


def symbolic_link(path: Path, *_: object) -> None:
    path.symlink_to("/sys/fs/bpf")


def pinned_map(path: Path, *_: object) -> None:
    with syscalls.map_create("array", "mine", 4, 8, 1) as made:
        syscalls.obj_pin(made, str(path))


def pinned_program(path: Path, trees: Trees, btf: Btf) -> None:
    with load(handler_object(returns(0)), btf, pins.require(), note={}) as loaded:
        (program,) = loaded.programs.values()
        syscalls.obj_pin(program, str(path))


def link_elsewhere(path: Path, trees: Trees, btf: Btf) -> None:
    """A handler's, but of another cgroup."""
    with (
        load(handler_object(returns(0)), btf, pins.require(), note={}) as loaded,
        Fd(os.open(ROOT, os.O_RDONLY)) as target,
        link_to_cgroup(loaded, target, btf) as link,
    ):
        syscalls.obj_pin(link, str(path))


def dead_link_elsewhere(path: Path, trees: Trees, btf: Btf) -> None:
    link_elsewhere(path, trees, btf)
    with syscalls.obj_get(str(path)) as link:
        syscalls.link_detach(link)


STRANGERS = {
    "directory": (directory, "a directory"),
    "symbolic link": (symbolic_link, "no BPF object"),
    "map": (pinned_map, "a map, not a link"),
    "program": (pinned_program, "a program, not a link"),
    "link of another cgroup": (link_elsewhere, "a struct_ops link on"),
    "dead link of another cgroup": (dead_link_elsewhere, "a struct_ops link on"),
}


@contextmanager
def kept(path: Path) -> Iterator[None]:
    """What is there stays the same object through the block, and is removed after it."""
    before = os.lstat(path)
    try:
        yield
        assert os.lstat(path).st_ino == before.st_ino, "it is not what it was"
    finally:
        subprocess.run(["rm", "-rf", str(path)], check=True)


def names(err: str, path: Path, what: str) -> bool:
    """Whether an error says where, what, and what next."""
    return all(said in err for said in (str(path), what, "hint:")) and "Traceback" not in err


@pytest.mark.parametrize("kind", STRANGERS)
def test_in_place_of_a_link(kind: str, trees: Trees, btf: Btf) -> None:
    make, what = STRANGERS[kind]
    where = pins.require()
    other = (
        attach(handler_object(returns(0)), trees.box.path.parent, btf, where, name="other")
        if "cgroup" not in kind
        else None
    )
    path = where.link_path(trees.box.id)
    path.parent.mkdir(mode=0o700)
    make(path, trees, btf)
    with kept(path):
        assert [one["link_id"] for one in cli_json("list")] == ([other.link_id] if other else [])
        box = ("--cgroup", trees.box.name)
        for words in (
            ("show", *box),
            ("attach", *box, "--policy", "largest-task"),
            ("attach", *box, "--policy", "largest-task", "--replace"),
            ("update", *box, "--policy", "largest-task"),
            ("update", *box, "--rollback"),
            ("detach", *box),
        ):
            code, _, err = cli(*words)
            assert (code, names(err, path, what)) == (1, True), f"{words}: {err}"
        assert list(links.of(trees.box.id)) == []
        assert cli("status")[0] == 0
        code, _, err = cli("list")
        assert (code, str(path) in err) == (0, True)
        where.sweep()
        # What is ours goes, what is not is named.
        code, out, err = cli("detach", "--all")
        assert (code, names(err, path, what)) == (1, True), err
        assert ("detached" in out) is (other is not None)
    assert cli("detach", "--all")[0] == 0
    assert cli("attach", *box, "--policy", "largest-task")[0] == 0


@pytest.mark.parametrize("name", ["mine", "previous", "sampler-x", "sampler-1", "previous-1"])
def test_beside_a_link(name: str, trees: Trees, btf: Btf) -> None:
    """It is in nobody's way."""
    cli_json("attach", "--cgroup", trees.box.name, "--policy", "largest-task")
    path = pins.require().directory(trees.box.id) / name
    path.mkdir()
    with kept(path):
        cli_json("update", "--cgroup", trees.box.name, "--policy", "swap")
        _, _, err = cli("list")
        assert str(path) in err
        cli_json("detach", "--cgroup", trees.box.name)
        assert list(links.of(trees.box.id)) == []
        pins.require().sweep()
    pins.require().sweep()


def test_in_place_of_what_a_rollback_needs(trees: Trees, btf: Btf) -> None:
    """The code before the one on trial: gone is gone, and said."""
    cli_json("attach", "--cgroup", trees.box.name, "--policy", "largest-task")
    where = pins.require()
    link = where.open_link(trees.box.id)
    assert link is not None
    with link:
        number = info.link_info(link).map_id
    path = where.directory(trees.box.id) / f"previous-{number}"
    pinned_program(path, trees, btf)
    with kept(path):
        assert cli("show", "--cgroup", trees.box.name)[0] == 0
        code, _, err = cli("update", "--cgroup", trees.box.name, "--rollback")
        assert code == 4 and "is settled" in err


@pytest.fixture
def no_shared() -> Iterator[Path]:
    """Nothing shared is pinned; nothing that the test has put there is left."""
    where = pins.require()
    shared = where.shared_path("x").parent
    with where.writing():
        pass

    def clear() -> None:
        subprocess.run(["rm", "-rf", str(shared)], check=True)

    clear()
    shared.mkdir(mode=0o700)
    yield shared
    clear()


def other_shape(path: Path, *_: object) -> None:
    """The history of a version whose record was longer."""
    with syscalls.map_create("array", HISTORY_MAP, 4, record.SIZE + 8, 16) as made:
        syscalls.obj_pin(made, str(path))


def nonsense(path: Path, *_: object) -> None:
    """Ours by its shape, but not by what is in it."""
    where, first = pins.require(), (1).to_bytes(8, "little")
    written = b"\xff" * 8 + first + b"\xff" * (record.SIZE - 16)
    for name, value in ((HISTORY_MAP, written), (STATE_MAP, first)):
        shape = pins.SHAPES[name]
        with syscalls.map_create("array", name, *shape[1:]) as made:
            syscalls.map_update(made, bytes(4), value)
            syscalls.obj_pin(made, str(where.shared_path(name)))


@pytest.mark.parametrize(
    ("make", "says", "can_attach"),
    [
        (directory, "a directory", False),
        (pinned_map, "called 'mine'", False),
        (pinned_program, "a program, not a map", False),
        (other_shape, "has another shape", False),
        (nonsense, "version 4294967295", True),
    ],
)
def test_in_place_of_the_history(
    make: Callable[..., None], says: str, can_attach: bool, no_shared: Path, trees: Trees, btf: Btf
) -> None:
    path = pins.require().shared_path(HISTORY_MAP)
    attach(handler_object(returns(0)), trees.box.path, btf, pins.require(), name=trees.box.name)
    make(path, trees, btf)
    with kept(path):
        code, _, err = cli("events")
        assert (code, says in err, "hint:" in err) == (1, True, True), err
        # Who only wants to know what is attached is told.
        for verb in ("list", "status", "show"):
            words = ("--cgroup", trees.box.name) if verb == "show" else ()
            code, out, err = cli(verb, *words)
            assert (code, "by-hand" in out) == (0, True), f"{verb}: {err}"
        words = ("--cgroup", trees.box.name, "--policy", "largest-task", "--replace")
        code, _, err = cli("attach", *words)
        assert (code == 0) is can_attach, err
        if not can_attach:
            assert str(path.name) in err and "hint:" in err
        cli_json("detach", "--all")


def test_only_a_history_of_another_version(no_shared: Path, trees: Trees) -> None:
    newer = no_shared / f"v{record.VERSION + 1}-{HISTORY_MAP}"
    other_shape(newer)
    with kept(newer):
        code, _, err = cli("events")
        assert (code, str(newer) in err, "hint:" in err) == (1, True, True), err
        assert cli("status")[0] == 0
        # It is in nobody's way.
        cli_json("attach", "--cgroup", trees.box.name, "--policy", "largest-task")
        assert cli("events")[0] == 0


@pytest.mark.parametrize("make", [symbolic_link, pinned_map])
def test_in_place_of_the_base_directory(make: Callable[..., None], trees: Trees, btf: Btf) -> None:
    base = pins.require().base
    aside = base.with_name("bpfoom-aside")
    base.rename(aside)
    try:
        make(base, trees, btf)
        with kept(base):
            for words in (
                ("list",),
                ("attach", "--cgroup", trees.box.name, "--policy", "largest-task"),
                ("detach", "--all"),
                ("marks", "set", "x=avoid"),
            ):
                code, _, err = cli(*words)
                assert (code, names(err, base, "not bpfoom's")) == (1, True), f"{words}: {err}"
    finally:
        aside.rename(base)
