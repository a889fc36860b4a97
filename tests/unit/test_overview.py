# SPDX-License-Identifier: Apache-2.0
"""The tree of cgroups as it is walked and drawn, without a kernel: directories and made-up links.

::

    /                   15 cgroups below
    ├── idle            a handler, no memory controller
    ├── shed            3 below
    └── shop            a handler of ours, a trigger, 7 below
        ├── api         a dry run
        └── batch       somebody else's handler, memory.oom.group
            └── one     nothing; 1 below
"""

from __future__ import annotations

import inspect
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bpfoom.cli import overview as shown
from bpfoom.handler.describe import Handler
from bpfoom.handler.trigger import Trigger
from bpfoom.mounts import Mount
from bpfoom.observe import cgroupfs, overrides
from bpfoom.observe.cgroupfs import Cgroup
from bpfoom.observe.overview import Attached, Overview, look, oom_groups
from bpfoom.observe.records import Decision
from bpfoom.policy import record
from bpfoom.policy.trigger import Settings, State
from tests.schemas import valid

BELOW = {
    "": 15,
    "idle": 0,
    "shed": 3,
    "shop": 7,
    "shop/api": 0,
    "shop/batch": 2,
    "shop/batch/one": 1,
}


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        top = Path(name).resolve()
        for path, count in BELOW.items():
            (top / path).mkdir(exist_ok=True)
            (top / path / "cgroup.stat").write_text(f"nr_descendants {count}\nnr_dying 9\n")
            if path not in ("", "idle"):
                (top / path / "memory.max").write_text("max\n")
        (top / "shop" / "memory.max").write_text("67108864\n")
        (top / "shop" / "memory.current").write_text("1048576\n")
        (top / "shop" / "memory.events").write_text("oom 3\noom_kill 2\n")
        (top / "shop" / "batch" / "memory.oom.group").write_text("1\n")
        monkeypatch.setattr(cgroupfs, "mount", lambda: Mount(top, top.stat().st_dev))
        monkeypatch.setattr(cgroupfs, "by_id", lambda number: by_id(top, number))
        yield top


def by_id(top: Path, number: int) -> Cgroup | None:
    return next((found for name in BELOW if (found := cgroup(top, name)).id == number), None)


def cgroup(top: Path, name: str) -> Cgroup:
    return cgroupfs.resolve(str(top / name))


def attached(top: Path, **sysctls: int) -> Attached:
    ids = {name: cgroup(top, name).id for name in BELOW}
    counters = {"invocations": 5, "kills": 2}
    shop = Handler(ids["shop"], 11, 12, 13, "0" * 16, "p", 0, counters=counters)
    ours = {
        ids["shop"]: replace(shop, provenance={"policy": "largest-task"}),
        ids["shop/api"]: replace(
            shop,
            cgroup_id=ids["shop/api"],
            link_id=21,
            provenance={"policy": "swap", "dry_run": True},
        ),
        ids["idle"]: replace(shop, cgroup_id=ids["idle"], link_id=31),
    }
    links = {number: handler.link_id for number, handler in ours.items()}
    settings = Settings.parse("full:50ms/1s", "10s")
    triggers = {ids["shop"]: Trigger(ids["shop"], settings, State(fired=3), 51, 52)}
    return Attached(ours, links | {ids["shop/batch"]: 41}, {}, None, sysctls, triggers)


def asked(found: Overview) -> dict[str, list[int]]:
    return {node.cgroup.name: [link.link_id for link in node.chain] for node in found.nodes}


def test_who_is_asked(root: Path) -> None:
    found = look(cgroup(root, ""), attached(root))
    assert asked(found) == {
        "/": [],
        "/idle": [],
        "/shop": [11],
        "/shop/api": [21, 11],
        "/shop/batch": [41, 11],
    }
    assert {node.cgroup.name: node.hidden for node in found.nodes} == {
        "/": 6,
        "/idle": 0,
        "/shop": 3,
        "/shop/api": 0,
        "/shop/batch": 2,
    }
    assert found.cgroups == 16


def test_every_cgroup(root: Path) -> None:
    found = look(cgroup(root, ""), attached(root), everything=True)
    assert list(asked(found)) == [f"/{name}" for name in sorted(BELOW)]
    assert asked(found)["/shop/batch/one"] == [41, 11]
    assert (found.cgroups, {node.hidden for node in found.nodes}) == (len(BELOW), {0})


def test_a_part_of_the_tree_knows_what_is_above_it(root: Path) -> None:
    found = look(cgroup(root, "shop/batch"), attached(root), everything=True)
    assert asked(found) == {"/shop/batch": [41, 11], "/shop/batch/one": [41, 11]}
    assert [node.depth for node in found.nodes] == [0, 1]


def test_more_cgroups_shown_than_counted(root: Path) -> None:
    """They come and go between two looks; nothing is hidden then, and nothing breaks."""
    (root / "shop" / "cgroup.stat").write_text("nr_descendants 1\n")
    (shop,) = [n for n in look(cgroup(root, ""), attached(root)).nodes if n.cgroup.name == "/shop"]
    assert shop.hidden == 0


def test_a_cgroup_that_goes_meanwhile(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroupfs, "by_id", lambda _: Cgroup(root / "gone", "/gone", 77))
    assert list(asked(look(cgroup(root, ""), attached(root)))) == ["/"]


@pytest.mark.parametrize(
    ("sysctls", "everywhere", "at_root"),
    [
        ({}, set(), set()),
        ({"panic_on_oom": 1}, set(), {"vm.panic_on_oom"}),
        ({"panic_on_oom": 2}, {"vm.panic_on_oom"}, {"vm.panic_on_oom"}),
        ({"oom_kill_allocating_task": 1}, set(), {"vm.oom_kill_allocating_task"}),
    ],
)
def test_overrides(
    sysctls: dict[str, int], everywhere: set[str], at_root: set[str], root: Path
) -> None:
    found = look(cgroup(root, ""), attached(root, **sysctls))
    holds = {node.cgroup.name: set(node.overrides) for node in found.nodes}
    assert holds["/"] == at_root
    assert holds["/shop"] == everywhere
    assert holds["/shop/batch"] == everywhere | {overrides.GROUP}
    assert holds["/idle"] == everywhere | {overrides.IDLE}
    document = valid("tree", shown.as_dict(found))
    told = {item["name"]: item["value"] for item in document["overrides"]}
    expected = {f"vm.{name}": value for name, value in sysctls.items()}
    assert told == expected | {overrides.GROUP: None, overrides.IDLE: None}


def test_groups_that_are_killed_as_a_whole(root: Path) -> None:
    assert oom_groups(cgroup(root, "shop")) == ["/shop/batch"]
    assert oom_groups(cgroup(root, "shop/api")) == []


def test_drawn(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown.show(valid("tree", shown.as_dict(look(cgroup(root, ""), attached(root)))))
    lines = capsys.readouterr().out.splitlines()
    at = lines[0].index("ASKED")
    cells = [re.split(r" {2,}", line[at:].strip()) for line in lines]
    assert [lines[0][:at].strip(), *cells[0]] == list(shown.COLUMNS.values())
    drawn = [line[:at].rstrip() for line in lines[1:9]]
    assert drawn == [
        "/",
        "├── idle",
        "├── shop",
        "│   ├── api",
        "│   ├── batch",
        "│   │   └── (2 more)",
        "│   └── (3 more)",
        "└── (6 more)",
    ]
    rows = dict(zip(drawn, cells[1:9], strict=True))
    assert rows["├── shop"] == ["largest-task → kernel", "5", "2", "2", "1.0M", "64M"] + [
        *("-", "full:50ms/1s, 3 declared", "-"),
    ]
    assert rows["│   ├── api"][0] == "swap (dry run) → largest-task of /shop → kernel"
    assert rows["│   ├── batch"][0] == "link 41, not bpfoom's → largest-task of /shop → kernel"
    assert rows["├── idle"][0] == "kernel" and rows["├── idle"][-1] == overrides.IDLE
    assert [line.split(":")[0] for line in lines[9:]] == [overrides.GROUP, overrides.IDLE]


def test_there_is_no_column_of_triggers_where_there_are_none(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = look(cgroup(root, ""), replace(attached(root), triggers={}))
    shown.show(valid("tree", shown.as_dict(found)))
    assert "TRIGGER" not in capsys.readouterr().out


def test_the_last_decision_names_its_policy_while_its_code_is_there(root: Path) -> None:
    present = attached(root)
    shop = present.handlers[cgroup(root, "shop").id]
    provenance = {**shop.provenance, "policy_hash": f"{0xAB:016x}" + "0" * 48}
    handlers = {**present.handlers, shop.cgroup_id: replace(shop, provenance=provenance)}
    for policy_hash, policy in ((0xAB, "largest-task"), (0xAC, None)):
        blank = {field.name: "" if field.type == "comm" else 0 for field in record.FIELDS}
        given = {"handler_cgroup_id": shop.cgroup_id, "policy_hash": policy_hash}
        last = {shop.cgroup_id: Decision({**blank, **given})}
        found = look(cgroup(root, "shop"), replace(present, handlers=handlers, last=last))
        node = valid("tree", shown.as_dict(found))["nodes"][0]
        assert node["last_decision"]["policy"] == policy


def test_drawn_on_a_narrow_terminal(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Branches stay whole, and of what else there is nothing is cut off."""
    for name, value in {"COLUMNS": "100", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    shown.show(shown.as_dict(look(cgroup(root, ""), attached(root))))
    text = capsys.readouterr().out
    assert "\n│   │   └── (2 more)" in text and "\n└── (6 more)" in text
    assert "…" not in text


@pytest.mark.parametrize(
    ("depths", "drawn"),
    [
        ([0], [""]),
        ([0, 1, 1], ["", "├── ", "└── "]),
        ([0, 1, 2, 1], ["", "├── ", "│   └── ", "└── "]),
        ([0, 1, 2, 3, 2, 1], ["", "├── ", "│   ├── ", "│   │   └── ", "│   └── ", "└── "]),
    ],
)
def test_branches(depths: list[int], drawn: list[str]) -> None:
    assert shown.branches(depths) == drawn


def test_a_deep_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has a part of the tree of his own can make it deeper than Python may recurse."""
    depth = 300
    (tmp_path / "/".join(["d"] * depth)).mkdir(parents=True)
    monkeypatch.setattr(cgroupfs, "mount", lambda: Mount(tmp_path, tmp_path.stat().st_dev))
    top, nothing = cgroup(tmp_path, ""), Attached({}, {}, {}, None, {})
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + depth // 2)
    try:
        found = look(top, nothing, everything=True)
        lines = shown.branches([node.depth for node in found.nodes])
    finally:
        sys.setrecursionlimit(limit)
    assert (found.cgroups, lines[-1]) == (depth + 1, "    " * (depth - 1) + "└── ")
