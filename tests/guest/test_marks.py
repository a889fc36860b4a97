# SPDX-License-Identifier: Apache-2.0
"""Marks on the guest's cgroups: by globs, by attributes, as cgroups come and go, and as handlers
see them.

::

    /sys/fs/cgroup
    └── bpfoom-marks            memory controller on for the children, theirs too
        ├── shop
        │   ├── api
        │   └── batch
        └── user                owned by uid 1000
            └── app             owned by uid 1000
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bpfoom.btf.types import Btf
from bpfoom.cli.marks import marked_for, parse
from bpfoom.handler import marks, pins
from bpfoom.handler.attach import attach
from bpfoom.handler.marks import Mark, Rule
from bpfoom.observe import cgroupfs
from bpfoom.observe import marks as observed
from bpfoom.observe.cgroupfs import Cgroup
from tests.guest.byhand import (
    DEADLINE_S,
    cli,
    cli_json,
    handler_object,
    remove_tree,
    returns,
    wait_for,
)
from tests.schemas import valid

# Commands and Python on them: minutes on a debug kernel, which would check nothing more.
pytestmark = pytest.mark.flavours("plain")

ROOT = Path("/sys/fs/cgroup/bpfoom-marks")
NAME = f"/{ROOT.name}"
PATHS = ("shop", "shop/api", "shop/batch", "user", "user/app")
OWNER = 1000


@pytest.fixture
def tree() -> Iterator[None]:
    for path in (ROOT, *(ROOT / path for path in PATHS)):
        path.mkdir()
        if path.name not in ("api", "batch", "app"):
            (path / "cgroup.subtree_control").write_text("+memory")
    for path in (ROOT / "user", ROOT / "user" / "app"):
        os.chown(path, OWNER, OWNER)
    yield
    cli("detach", "--all")
    remove_tree(ROOT)
    cli("marks", "clear", "--all")
    for name in (marks.MARKS.name, marks.RULES_MAP):
        pins.require().shared_path(name).unlink(missing_ok=True)


def cgroup(path: str) -> Cgroup:
    return cgroupfs.resolve(f"{ROOT}/{path}")


def present() -> dict[str, str]:
    """What the map holds, by path below the tree's root."""
    shared = marks.open_marks(pins.require())
    assert shared is not None
    with shared:
        found = marks.read_all(shared)
    names = {number: cgroupfs.by_id(number) for number in found}
    return {
        (known.name.removeprefix(f"{NAME}/") if known else f"id:{number}"): str(found[number])
        for number, known in names.items()
    }


def set_marks(*given: str) -> Any:
    return valid("mark-changes", cli_json("marks", "set", *given, "--cgroup", NAME))


@pytest.mark.usefixtures("tree")
def test_globs() -> None:
    done = set_marks("shop/*=avoid,priority:-5", f"{NAME}/shop/api=omit")
    assert {change["cgroup"]: change["after"] for change in done["changes"]} == {
        f"{NAME}/shop/api": "omit,priority:-5",
        f"{NAME}/shop/batch": "avoid,priority:-5",
    }
    assert present() == {"shop/api": "omit,priority:-5", "shop/batch": "avoid,priority:-5"}
    listed = valid("marks", cli_json("marks", "list"))
    assert listed["stale"] == 0
    assert [item["glob"] for item in listed["globs"]] == [f"{NAME}/shop/*", f"{NAME}/shop/api"]
    api = listed["marks"][0]
    assert (api["preference_from"], api["priority_from"]) == (
        f"{NAME}/shop/api",
        f"{NAME}/shop/*",
    )
    titles = cli("marks", "list")[1].splitlines()[0].split()
    assert titles == ["CGROUP", "PREFERENCE", "FROM", "PRIORITY", "FROM"]

    cli_json("marks", "clear", "shop/api", "--cgroup", NAME)
    assert present() == {"shop/api": "avoid,priority:-5", "shop/batch": "avoid,priority:-5"}
    assert cli("marks", "clear", "nope")[0] == 4
    assert cli_json("marks", "clear", "--all")["marked"] == 0
    assert present() == {}
    assert not pins.require().shared_path(marks.RULES_MAP).exists()


@pytest.mark.usefixtures("tree")
def test_cgroups_that_come_later_and_go() -> None:
    code, out, _ = cli("marks", "set", "shop/new/**=protect", "--cgroup", NAME)
    assert (code, "no cgroup matches" in out) == (0, True)
    (ROOT / "shop" / "new").mkdir()
    assert cli_json("marks", "list")["stale"] == 1
    done = valid("mark-changes", cli_json("marks", "sync"))
    assert [change["after"] for change in done["changes"]] == ["protect"]
    first = cgroup("shop/new").id
    (ROOT / "shop" / "new").rmdir()
    (ROOT / "shop" / "new").mkdir()
    assert cgroup("shop/new").id != first
    changes = {c["cgroup_id"]: c["after"] for c in cli_json("marks", "sync")["changes"]}
    assert changes == {first: None, cgroup("shop/new").id: "protect"}
    (ROOT / "shop" / "new").rmdir()
    # Whatever command writes next sweeps.
    assert cli_json("detach", "--all") == []
    assert present() == {}


@pytest.mark.usefixtures("tree")
def test_what_holds_is_the_nearest_mark() -> None:
    set_marks("shop=avoid,priority:7", "shop/api=priority:-1", "**=protect")
    cli_json("marks", "clear", "**", "--cgroup", NAME)
    shown = valid("mark", cli_json("marks", "show", f"{NAME}/shop/api"))
    assert (shown["preference"], shown["preference_from"]) == ("avoid", f"{NAME}/shop")
    assert (shown["priority"], shown["priority_from"]) == (-1, f"{NAME}/shop/api")
    bare = valid("mark", cli_json("marks", "show", NAME))
    assert (bare["preference"], bare["preference_from"]) == ("normal", None)
    assert (bare["priority"], bare["priority_from"]) == (0, None)
    # Without a memory controller it is its parent for the kernel, whatever it is marked with.
    (ROOT / "shop" / "api" / "inner").mkdir()
    set_marks("shop/api/inner=omit")
    assert cli_json("marks", "show", f"{NAME}/shop/api/inner")["preference"] == "avoid"


# Attributes


def xattr(path: str, name: str, value: bytes = b"1") -> None:
    os.setxattr(ROOT / path, name, value)


@pytest.mark.usefixtures("tree")
def test_attributes_of_root() -> None:
    xattr("shop/api", "trusted.oomd_omit")
    xattr("shop/batch", "user.oomd_avoid")
    xattr("user/app", "trusted.oomd_avoid", b"yes")
    xattr("shop", "trusted.oomd_omit", b"0")
    set_marks("shop/b*=priority:3")
    assert present() == {
        "shop/api": "omit", "shop/batch": "avoid,priority:3", "user/app": "avoid",
    }  # fmt: skip
    rows = {row["cgroup"]: row for row in cli_json("marks", "list")["marks"]}
    assert rows[f"{NAME}/shop/batch"]["preference_from"] == "user.oomd_avoid"
    set_marks("**=normal")
    assert set(present().values()) == {"normal", "normal,priority:3"}
    cli_json("marks", "clear", "--all")
    os.removexattr(ROOT / "shop" / "api", "trusted.oomd_omit")
    cli_json("marks", "sync")
    assert present() == {"shop/batch": "avoid", "user/app": "avoid"}


@pytest.mark.usefixtures("tree")
def test_attributes_of_others_are_believed_where_only_they_watch(btf: Btf) -> None:
    """As systemd has it: their own handler may heed them, one that others attached may not."""
    set_marks("nothing=omit")
    xattr("user/app", "user.oomd_omit")
    obj, where = handler_object(returns(0)), pins.require()
    for watched, believed in ((None, False), ("user", True), ("shop", True), (".", False)):
        if watched is not None:
            target = cgroup(watched)
            attach(obj, target.path, btf, where, name=target.name)
        cli_json("marks", "sync")
        assert present() == ({"user/app": "omit"} if believed else {})
    cli_json("detach", "--cgroup", NAME)
    assert present() == {"user/app": "omit"}
    cli_json("detach", "--cgroup", f"{NAME}/user")
    assert present() == {}


@pytest.mark.usefixtures("tree")
def test_when_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for too much gets nothing; what owners write takes room from nobody."""
    few = replace(marks.MARKS, name="bpfoom_few", max_entries=2)
    monkeypatch.setattr(marks, "MARKS", few)
    try:
        code, _, err = cli("marks", "set", "**=avoid", "--cgroup", NAME)
        assert (code, "room for 2 marks, not for 6" in err) == (1, True)
        assert cli_json("marks", "list") == {"marks": [], "globs": [], "stale": 0}
        for path in ("shop", "shop/api", "shop/batch"):
            xattr(path, "user.oomd_avoid")
        set_marks("user*=omit")
        found = present()
        assert len(found) == 2 and found["user"] == "omit"
        set_marks("user/app=omit")
        assert present() == {"user": "omit", "user/app": "omit"}
        assert cli_json("marks", "list")["stale"] == 3
    finally:
        pins.require().shared_path(few.name).unlink(missing_ok=True)


@pytest.mark.usefixtures("tree")
def test_a_name_that_is_no_text() -> None:
    strange = os.fsencode(ROOT) + b"/shop/\xff [x]?"
    os.mkdir(strange)
    done = set_marks("shop/*?=omit")
    assert [os.fsencode(change["cgroup"]) for change in done["changes"]] == [
        os.fsencode(f"{NAME}/shop/") + b"\xff [x]?"
    ]
    listed = subprocess.run(
        [sys.executable, "-m", "bpfoom.cli.main", "marks", "list"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "\\xff [x]?" in listed.stdout


# Follow


@contextmanager
def following() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "bpfoom.cli.main", "marks", "sync", "--follow", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE_S) == 0
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> tuple[str, str | None]:
    stream = process.stdout
    assert stream is not None
    change = valid("mark-change", json.loads(stream.readline()))
    return change["cgroup"].removeprefix(NAME), change["after"]


def watches(process: subprocess.Popen[str]) -> int:
    found = 0
    for path in Path(f"/proc/{process.pid}/fdinfo").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found += path.read_text().count("inotify wd:")
    return found


def cgroups() -> int:
    return sum(1 for _ in os.walk("/sys/fs/cgroup"))


@pytest.mark.usefixtures("tree")
def test_follow(btf: Btf) -> None:
    set_marks("shop/**/job*=avoid")
    with following() as process:
        wait_for(lambda: watches(process) == cgroups(), "every cgroup to be watched")
        os.makedirs(ROOT / "shop" / "a" / "b" / "job1" / "job2")
        assert sorted(line(process) for _ in range(2)) == [
            ("/shop/a/b/job1", "avoid"), ("/shop/a/b/job1/job2", "avoid"),
        ]  # fmt: skip
        xattr("shop/api", "trusted.oomd_omit")
        assert line(process) == ("/shop/api", "omit")
        os.removexattr(ROOT / "shop" / "api", "trusted.oomd_omit")
        assert line(process) == ("/shop/api", None)
        gone = cgroup("shop/a/b/job1/job2").id
        (ROOT / "shop" / "a" / "b" / "job1" / "job2").rmdir()
        assert line(process) == (f"id:{gone}", None)
        (ROOT / "shop" / "a" / "b" / "job1").rmdir()
        assert line(process)[1] is None
        # By another command, which marks by itself; what comes afterwards goes by the new globs.
        set_marks("shop/late=omit")
        (ROOT / "shop" / "late").mkdir()
        assert line(process) == ("/shop/late", "omit")
        # So fast that most are gone, or another of the same name is there, before it looks.
        for number in range(200):
            path = ROOT / "shop" / f"job{number % 3}"
            path.mkdir()
            if number < 197:
                path.rmdir()
        wait_for(lambda: {"shop/job0", "shop/job1", "shop/job2", "shop/late"} == set(present()),
                 "the last of them to be marked, and no other")  # fmt: skip
        wait_for(lambda: watches(process) == cgroups(), "watches to go with their cgroups")
    assert cli_json("marks", "list")["stale"] == 0


# What handlers see


@contextmanager
def somebody_in(cgroups: list[Cgroup]) -> Iterator[None]:
    """A process in each of the cgroups."""
    with ExitStack() as stack:
        for target in cgroups:
            script = f"echo 0 > {target.path}/cgroup.procs && exec sleep 10000"
            process = stack.enter_context(subprocess.Popen(["sh", "-c", script]))
            stack.callback(process.kill)
        for target in cgroups:
            wait_for(lambda t=target: t.value("cgroup.procs") != "", "the process")  # type: ignore[misc]
        yield


@pytest.mark.usefixtures("tree")
def test_handlers_find_what_marks_show_says() -> None:
    """By the kernel's dry run, which tells each candidate's preference and priority."""
    where = pins.require()
    chosen = random.Random(4)
    leaves = [cgroup(path) for path in ("shop/api", "shop/batch", "user/app")]
    cli_json(
        *("attach", "--cgroup", NAME, "--policy", "protect", "--set", "inner=priority"),
        *("--set", "inner.unit=task"),
    )
    seen = set()
    with somebody_in(leaves):
        for _ in range(20):
            rules = [
                Rule(NAME, path, Mark(*parts))
                for path in PATHS
                if (parts := (chosen.choice([None, *marks.PREFERENCES]),
                              chosen.choice([None, -(1 << 31), -1, 0, 5, (1 << 31) - 1])))
                != (None, None)
            ]  # fmt: skip
            observed.sync(where, lambda _, rules=rules: rules)  # type: ignore[misc]
            (link,) = cli_json("explain", "--cgroup", NAME)["chain"]
            assert len(link["candidates"]) == len(leaves)
            for candidate in link["candidates"]:
                path = cgroupfs.by_id(candidate["cgroup_id"])
                assert path is not None
                holds = cli_json("marks", "show", path.name)
                seen.add(holds["preference"])
                if holds["preference"] == "omit":
                    assert candidate["reason"] == "protected"
                    continue
                assert candidate["preference"] == holds["preference"]
                assert candidate["tier"] == min(-holds["priority"], (1 << 31) - 1)
    assert seen == set(marks.PREFERENCES)


@pytest.mark.usefixtures("tree")
def test_marks_are_there_when_the_handler_is() -> None:
    refused = ("attach", "--cgroup", f"{NAME}/shop", "--policy", "largest-task", "--mark")
    code, _, err = cli(*refused, "api=omit")
    assert (code, "largest-task does not look at marks" in err) == (2, True)
    attach_it = ("attach", "--cgroup", f"{NAME}/shop", "--policy", "priority", "--mark")
    assert cli(*attach_it, "api=worst")[0] == 2
    cli_json(*attach_it, "api=priority:-3", "--mark", "/bpfoom-marks/user=omit")
    assert present() == {"shop/api": "priority:-3", "user": "omit"}
    # The cgroup has a handler: nothing is attached, nothing is marked.
    code, _, err = cli(*attach_it, "batch=omit")
    assert (code, "--replace" in err) == (1, True)
    assert present() == {"shop/api": "priority:-3", "user": "omit"}
    cli_json(*attach_it, "batch=omit", "--replace")
    assert present()["shop/batch"] == "omit"


@pytest.mark.usefixtures("tree")
def test_a_command_that_fails_leaves_globs_and_marks_as_they_were() -> None:
    set_marks("shop/api=omit", "user=avoid")
    globs, before = cli_json("marks", "list")["globs"], present()
    obj = replace(handler_object(returns(0)), maps=(marks.MARKS,))
    more = [parse(text, NAME) for text in ("shop/api=avoid", "shop/batch=priority:3")]
    with pytest.raises(KeyboardInterrupt), marked_for(obj, more, pins.require()):
        assert present() == {"shop/api": "avoid", "shop/batch": "priority:3", "user": "avoid"}
        raise KeyboardInterrupt
    assert cli_json("marks", "list")["globs"] == globs
    assert present() == before
