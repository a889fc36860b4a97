# SPDX-License-Identifier: Apache-2.0
"""What policies do where no scenario can bring them: processes in rare states, limits that the
kernel does not raise, cgroups that share a slot of a policy's map.

What can be staged by a file is in bpf/scenarios, run by test_scenarios.py.
"""

from __future__ import annotations

import errno
import os
import struct
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from bpfoom.btf.types import Btf
from bpfoom.handler import describe, info, maps, pins, syscalls
from bpfoom.handler.raises import RAISES_MAP
from bpfoom.observe import cgroupfs
from bpfoom.observe.cgroupfs import Cgroup
from bpfoom.observe.records import Decision, read_history
from tests.guest.asm import attached, forget_seen, seen
from tests.guest.byhand import DEADLINE_S, ROOT, Trees, cli, cli_json, oom_once, wait_for
from tests.guest.handlers import STARTED, sluggard
from tests.guest.memory import MIB, hog, kills, make, take
from tests.guest.states import dumping_core, in_vfork, without_sys_resource
from tests.schemas import valid

# Compiling takes minutes on a debug kernel.
pytestmark = pytest.mark.flavours("plain")

HOUR_NS = 3600 * 10**9
_RAISES = struct.Struct("<QQQQQ")  # struct raises of bpf/policies/raise-limit.bpf.c.j2


def attach(cgroup: Cgroup, policy: str, **settings: str) -> None:
    sets = [f"--set={name}={value}" for name, value in settings.items()]
    code, _, err = cli("attach", "--cgroup", cgroup.name, "--policy", policy, *sets)
    assert code == 0, err


def counters(cgroup: Cgroup) -> dict[str, int]:
    return dict(cli_json("show", "--cgroup", cgroup.name)["counters"])


def last_decision() -> Decision:
    return read_history(pins.find())[-1]


def limit_of(cgroup: Cgroup) -> int:
    return int(cgroup.value("memory.max"))


# Processes in rare states


@pytest.mark.parametrize("policy", ["largest-task", "largest-cgroup"])
def test_who_dumps_core_can_be_killed(policy: str, trees: Trees) -> None:
    """It has been told to exit like the dying, but keeps its memory until the dump is done."""
    attach(trees.box, policy)
    with hog(trees.box, adj=-1000) as taker, dumping_core(trees.box, 16) as dumper:
        take(taker, 24)
        assert taker.obeyed(DEADLINE_S)
        dumper.wait(DEADLINE_S)
    assert counters(trees.box)["kills"] == kills(trees.box) == 1


@pytest.mark.parametrize("policy", ["largest-task", "largest-cgroup"])
def test_who_has_its_parents_memory_is_no_candidate(policy: str, trees: Trees) -> None:
    """The kernel would refuse to kill it, and the policy would have nobody else::

    top ─┬─ spared   parent 24 (oom_score_adj -1000), its child in vfork
         └─ other    hog 4
    """
    top = make(ROOT / "top", parent=True)
    spared, other = make(top.path / "spared"), make(top.path / "other")
    attach(top, policy)
    with in_vfork(spared, 24) as child, hog(other, 4) as victim:
        found = valid("explain", cli_json("explain", "--cgroup", top.name))
    (link,) = found["chain"]
    reasons = {(c["cgroup"], c["pid"]): c["reason"] for c in link["candidates"]}
    if policy == "largest-task":
        assert reasons[spared.name, child] == "unkillable"
        assert reasons[other.name, victim.pid] == "none"
    else:
        assert reasons == {(spared.name, 0): "unkillable", (other.name, 0): "none"}
    assert (found["outcome"], found["victim_pid"]) == ("handler", victim.pid)


# raise-limit: what the kernel refuses


@pytest.mark.parametrize(
    ("may", "settings", "number"),
    [
        (without_sys_resource, {"step": "8M"}, errno.EPERM),
        # As high as "max", which is no limit.
        (nullcontext, {"step": str((1 << 63) - 4096), "cap": str((1 << 63) - 4096)}, errno.EINVAL),
    ],
    ids=["EPERM", "EINVAL"],
)
def test_a_refused_raise_leaves_it_to_the_inner_policy(
    may: Callable[[], AbstractContextManager[None]],
    settings: dict[str, str],
    number: int,
    trees: Trees,
) -> None:
    """In the same call; and nothing was raised that anybody would have to be told of."""
    with may():
        attach(trees.box, "raise-limit", inner="newest", **settings)
    oom_once(trees.box)
    seen = counters(trees.box)
    assert (seen["kills"], seen["unproven"]) == (kills(trees.box), 0) == (1, 0)
    assert cli("update", "--cgroup", trees.box.name, "--set", "inner.min=1G")[0] == 0
    oom_once(trees.box)
    declined = last_decision()
    assert (declined.verdict, declined.action) == ("PASS", "raise")
    assert declined.fields["kfunc_result"] == -number
    assert limit_of(trees.box) == 32 * MIB
    (gone,) = cli_json("detach", "--cgroup", trees.box.name)
    assert gone["raised"] == []


@pytest.mark.parametrize(
    ("settings", "decision"),
    [({}, ("HANDLED", "kill", 0)), ({"inner.min": "1G"}, ("PASS", "raise", -errno.EAGAIN))],
    ids=["kills", "declines"],
)
def test_a_limit_that_is_being_lowered_is_left_to_its_writer(
    settings: dict[str, str], decision: tuple[str, str, int], trees: Trees, btf: Btf
) -> None:
    """The handler below takes so long that somebody begins to lower the limit, and has to wait
    for the end of this OOM: the kernel refuses the raise, and the inner policy is asked at once."""
    forget_seen()
    above = cgroupfs.resolve(str(ROOT))
    attach(above, "raise-limit", **settings)
    with attached(sluggard(2000), trees.box, btf), hog(trees.box) as taker:
        take(taker, 40)
        wait_for(lambda: seen()[STARTED] == 1, "the handler to be called")
        with subprocess.Popen(["sh", "-c", f"echo 24M > {trees.box.path}/memory.max"]):
            wait_for(lambda: limit_of(trees.box) == 24 * MIB, "the writer")
            assert counters(above)["invocations"] == 0
            wait_for(taker.ended, "a kill")
    history = read_history(pins.find())
    first = next(d for d in history if d.fields["oom_memcg_id"] == trees.box.id)
    assert (first.verdict, first.action, first.fields["kfunc_result"]) == decision
    assert first.fields["seen"] == 1
    assert (limit_of(trees.box), kills(trees.box)) == (24 * MIB, 1)
    (gone,) = cli_json("detach", "--cgroup", above.name)
    assert gone["raised"] == []


def test_a_raise_that_makes_no_room_is_followed_by_a_kill(trees: Trees) -> None:
    """The limit was lowered far below usage, by a writer who does not wait for it to follow."""
    with hog(trees.box, 24) as taker:
        writer = os.open(trees.box.path / "memory.max", os.O_WRONLY | os.O_NONBLOCK)
        os.write(writer, b"8M")
        os.close(writer)
        attach(trees.box, "raise-limit", step="4M")
        take(taker, 1)
        wait_for(taker.ended, "a kill")
    seen = counters(trees.box)
    assert (seen["handled"], seen["unproven"], seen["kills"]) == (1, 0, 1)
    assert (last_decision().action, kills(trees.box)) == ("kill", 1)
    (gone,) = cli_json("detach", "--cgroup", trees.box.name)
    (raised,) = gone["raised"]
    assert (raised["before"], raised["after"]) == (8 * MIB, 12 * MIB)
    assert limit_of(trees.box) == 12 * MIB


# raise-limit: what it remembers


def slot_of(cgroup_id: int) -> int:
    """The same as in bpf/include/common.bpf.c.j2."""
    return (cgroup_id * 0x9E3779B97F4A7C15 & (1 << 64) - 1) >> 58


def of_one_slot(top: Path, number: int) -> list[Cgroup]:
    """So many cgroups, of 8 MiB each, whose ids have the same slot. Ids are never used again."""
    made: list[Path] = []
    top.mkdir()
    while len(made) < number:
        path = top / str(len(made))
        path.mkdir()
        if made and slot_of(path.stat().st_ino) != slot_of(made[0].stat().st_ino):
            path.rmdir()
        else:
            made.append(path)
    # Only now: cgroups without a memory controller are quickly made.
    (top / "cgroup.subtree_control").write_text("+memory")
    for path in made:
        (path / "memory.swap.max").write_text("0")
        (path / "memory.max").write_text("8M")
    return [cgroupfs.resolve(str(path)) for path in made]


def is_raised(cgroup: Cgroup) -> bool:
    """Run it out of memory by 2 MiB, from 8 MiB below its limit: whether nobody had to die."""
    before = limit_of(cgroup), kills(cgroup)
    with hog(cgroup, 1) as taker:
        take(taker, before[0] // MIB + 1)
        wait_for(lambda: limit_of(cgroup) > before[0] or taker.ended(), "a raise or a kill")
        survived = taker.obeyed(DEADLINE_S)
    assert survived == (limit_of(cgroup) > before[0]) == (kills(cgroup) == before[1])
    return survived


def an_hour_ago(handler_of: Cgroup, raised: Cgroup, btf: Btf) -> None:
    """Turn back the hour that a cgroup's raises are counted in: nobody waits for its end."""
    handler = describe.handler_of(handler_of.id, handler_of.name, pins.require(), btf)
    found = maps.find(handler.map_ids, RAISES_MAP)
    assert found is not None
    with found:
        for number in range(info.map_info(found).max_entries):
            slot = number.to_bytes(4, "little")
            memcg, first, last, hour, count = _RAISES.unpack(
                syscalls.map_lookup(found, slot, _RAISES.size)
            )
            if memcg == raised.id:
                hour = (hour - HOUR_NS) % (1 << 64)
                syscalls.map_update(found, slot, _RAISES.pack(memcg, first, last, hour, count))


def test_cgroups_that_share_a_slot_are_told_apart(trees: Trees, btf: Btf) -> None:
    """Four slots are tried; a fifth cgroup has to wait until the hour of one of the others ends."""
    one, two, three, four, five = of_one_slot(ROOT / "top", 5)
    top = cgroupfs.resolve(str(ROOT / "top"))
    attach(top, "raise-limit", step="8M", per_hour="1")
    assert [is_raised(cgroup) for cgroup in (one, two, three, four)] == [True] * 4
    assert not is_raised(five)
    an_hour_ago(top, two, btf)
    # Its slot is free, but not for who has one and has had its raise.
    assert not is_raised(three)
    assert is_raised(five)
    (gone,) = cli_json("detach", "--cgroup", top.name)
    told = {raised["cgroup"]: (raised["before"], raised["after"]) for raised in gone["raised"]}
    assert told == {c.name: (8 * MIB, 16 * MIB) for c in (one, three, four, five)}
    assert limit_of(two) == 16 * MIB
