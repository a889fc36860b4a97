# SPDX-License-Identifier: Apache-2.0
"""``list --tree``, ``show`` and ``status`` on the real kernel: what they say is what is done.

The tree is byhand's, with a handler on bpfoom-test and one on box; both let pass what comes.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpfoom.btf.types import Btf
from bpfoom.handler import pins
from bpfoom.handler.attach import attach
from bpfoom.handler.describe import Handler
from bpfoom.observe import cgroupfs, overrides
from bpfoom.observe.cgroupfs import Cgroup
from tests.guest.byhand import (
    ROOT,
    Trees,
    cli,
    cli_json,
    handler_object,
    oom_once,
    ops_map,
    remove_tree,
    returns,
)
from tests.guest.test_attach_errors import link, opened
from tests.schemas import valid

TOP = f"/{ROOT.name}"
MANY = 400


@pytest.fixture
def handlers(trees: Trees, btf: Btf) -> dict[str, Handler]:
    """Handlers of ours, by the names of their cgroups."""
    return {
        cgroup.name: attach(
            handler_object(returns(0), name=cgroup.path.name),
            cgroup.path, btf, pins.require(), name=cgroup.name,
        )
        for cgroup in (cgroupfs.resolve(TOP), trees.box)
    }  # fmt: skip


def tree(*more: str) -> dict[str, dict[str, Any]]:
    """The nodes of list --tree by their cgroups, the whole document under ""."""
    document = valid("tree", cli_json("list", "--tree", *more))
    return {"": document} | {node["cgroup"]: node for node in document["nodes"]}


def chain(node: dict[str, Any]) -> list[str]:
    return [one["cgroup"] for one in node["chain"]]


def calls(nodes: dict[str, dict[str, Any]], name: str) -> int:
    return int(nodes[name]["counters"]["invocations"])


def bpftool(kind: str, number: int) -> dict[str, Any]:
    asked = ["bpftool", "-j", kind, "show", "id", str(number)]
    # It exits with 255 for a link that it has shown.
    found = json.loads(subprocess.run(asked, capture_output=True).stdout)
    assert isinstance(found, dict)
    return found


def test_bpftool_agrees(handlers: dict[str, Handler], trees: Trees) -> None:
    nodes = tree()
    asked = subprocess.run(["bpftool", "-j", "link", "show"], capture_output=True, check=True)
    theirs = {one["id"] for one in json.loads(asked.stdout) if one["type"] == "struct_ops"}
    ours = {node["handler"]["link_id"]: node for node in nodes[""]["nodes"] if node["handler"]}
    assert set(ours) == theirs == {handler.link_id for handler in handlers.values()}
    for link_id, node in ours.items():
        handler = node["handler"]
        assert bpftool("link", link_id)["map_id"] == handler["map_id"]
        assert bpftool("map", handler["map_id"])["type"] == "struct_ops"
        program = bpftool("prog", handler["prog_id"])
        shown = valid("show", cli_json("show", "--cgroup", node["cgroup"]))
        assert (program["type"], program["tag"]) == ("struct_ops", shown["prog_tag"])
        assert [one["link_id"] for one in shown["chain"]] == [c["link_id"] for c in node["chain"]]
        assert node["chain"][0]["link_id"] == link_id
        assert node["cgroup_id"] == Path(f"/sys/fs/cgroup{node['cgroup']}").stat().st_ino


def test_those_in_the_chain_are_asked_and_no_others(
    handlers: dict[str, Handler], trees: Trees
) -> None:
    nodes = tree("--all")
    box, child = trees.box.name, trees.child.name
    assert chain(nodes["/"]) == []
    assert chain(nodes[box]) == [box, TOP]
    assert chain(nodes[TOP]) == chain(nodes[child]) == chain(nodes[f"{TOP}/bare"]) == [TOP]
    oom_once(trees.box)
    after = tree()
    assert calls(after, box) > calls(nodes, box) == 0
    assert calls(after, TOP) == calls(after, box)
    assert after[box]["memory_events"]["oom_kill"] == 1
    (ROOT / "memory.max").write_text("32M")
    (ROOT / "memory.swap.max").write_text("0")
    # Without a memory controller of its own it is TOP that is out of memory.
    oom_once(trees.child)
    last = tree()
    assert calls(last, TOP) > calls(after, TOP)
    assert calls(last, box) == calls(after, box)


def test_a_handler_whose_controller_is_switched_off(
    handlers: dict[str, Handler], trees: Trees
) -> None:
    (ROOT / "cgroup.subtree_control").write_text("-memory")
    try:
        node = tree()[trees.box.name]
        assert (node["overrides"], chain(node)) == ([overrides.IDLE], [TOP])
        assert node["handler"]["link_id"] == handlers[trees.box.name].link_id
        (ROOT / "memory.max").write_text("32M")
        (ROOT / "memory.swap.max").write_text("0")
        oom_once(trees.box)
        assert calls(tree(), TOP) > 0 == calls(tree(), trees.box.name)
    finally:
        (ROOT / "cgroup.subtree_control").write_text("+memory")
    assert tree()[trees.box.name]["overrides"] == []


def test_a_handler_of_somebody_else(trees: Trees, btf: Btf) -> None:
    with ops_map(btf) as ops, opened(trees.box.path) as target, link(btf, ops, target):
        node = tree()[trees.box.name]
        assert node["handler"] is None and [one["policy"] for one in node["chain"]] == [""]
        assert "not bpfoom's" in cli("list", "--tree")[1]
        code, _, err = cli("show", "--cgroup", trees.box.name)
        assert code == 4 and "not bpfoom's" in err
    assert trees.box.name not in tree()


def test_a_cgroup_without_a_handler_says_who_is_asked(
    handlers: dict[str, Handler], trees: Trees
) -> None:
    code, _, err = cli("show", "--cgroup", trees.child.name)
    assert code == 4
    assert f"asked about its OOMs: {ROOT.name} of {TOP} → kernel" in err
    assert f"`bpfoom show --cgroup {TOP}`" in err


@pytest.fixture
def allocating() -> Iterator[Path]:
    """The sysctl is set; no test runs out of memory system-wide meanwhile."""
    path = Path("/proc/sys/vm/oom_kill_allocating_task")
    path.write_text("1")
    yield path
    path.write_text("0")


def test_what_overrides(handlers: dict[str, Handler], trees: Trees, allocating: Path) -> None:
    (trees.box.path / "memory.oom.group").write_text("1")
    nodes = tree()
    name = f"vm.{allocating.name}"
    assert (nodes["/"]["overrides"], nodes[TOP]["overrides"]) == ([name], [])
    assert nodes[trees.box.name]["overrides"] == [overrides.GROUP]
    assert {item["name"]: item["value"] for item in nodes[""]["overrides"]} == {
        name: 1,
        overrides.GROUP: None,
    }
    shown = cli_json("show", "--cgroup", TOP)
    assert shown["oom_groups"] == [trees.box.name]
    for verb in (["list", "--tree"], ["show", "--cgroup", TOP], ["status"]):
        code, out, _ = cli(*verb)
        assert code == 0 and f"{name} = 1: " in out and f"{overrides.GROUP}: " in out


def test_the_root_and_what_nobody_decides(trees: Trees, btf: Btf) -> None:
    root = cgroupfs.resolve("/")
    attach(handler_object(returns(0)), root.path, btf, pins.require(), name="/")
    nodes = tree("--all")
    assert {tuple(chain(node)) for name, node in nodes.items() if name} == {("/",)}


@pytest.fixture
def many(trees: Trees) -> Iterator[list[Cgroup]]:
    """Many cgroups, in twenty."""
    made = []
    for group in range(20):
        for number in range(MANY // 20):
            path = ROOT / "box" / f"g{group}" / f"c{number}"
            path.mkdir(parents=True)
            made.append(path)
    yield [cgroupfs.resolve(str(path)) for path in (made[0], made[-1])]
    remove_tree(ROOT / "box")
    (ROOT / "box").mkdir()


def test_many_cgroups(handlers: dict[str, Handler], many: list[Cgroup], trees: Trees) -> None:
    document = tree()[""]
    assert document["cgroups"] > MANY
    assert [node["cgroup"] for node in document["nodes"]] == ["/", TOP, trees.box.name]
    assert document["nodes"][-1]["hidden"] == MANY + 20
    lines = cli("list", "--tree")[1].splitlines()
    assert f"({MANY + 20} more)" in "".join(lines) and len(lines) < 12
    every = tree("--all", "--cgroup", trees.box.name)
    assert every[""]["cgroups"] == len(every[""]["nodes"]) == 1 + MANY + 20
    for cgroup in many:
        assert every[cgroup.name]["cgroup_id"] == cgroup.id
        assert chain(every[cgroup.name]) == [trees.box.name, TOP]
