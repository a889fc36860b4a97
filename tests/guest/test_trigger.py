# SPDX-License-Identifier: Apache-2.0
"""Triggers on real pressure: OOMs that are declared before any limit is hit.

::

    /sys/fs/cgroup/bpfoom-test
    └── pressed         no limit; memory.high 1M once its processes are there, and so they stall

Who wants more than memory.high allows is held up at each charge: that is pressure, and no OOM.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from bpfoom.btf.types import Btf
from bpfoom.handler import pins, syscalls, trigger
from bpfoom.observe import cgroupfs, records
from bpfoom.observe.cgroupfs import Cgroup
from bpfoom.observe.records import Decision
from bpfoom.policy.record import FLAG_DECLARED
from tests import objects
from tests.guest.byhand import ROOT, Trees, cli, cli_json, wait_for
from tests.guest.memory import Hog, hog, kills, make, take
from tests.schemas import valid

# Compiling takes minutes on a debug kernel.
pytestmark = pytest.mark.flavours("plain")

PSI = "full:100ms/1s"


@pytest.fixture
def pressed(trees: Trees) -> Cgroup:
    return make(ROOT / "pressed")


@contextmanager
def stalled(cgroup: Cgroup, *fill: int) -> Iterator[list[Hog]]:
    """Processes that hold so many MiB each, and stall for as long as they live."""
    high = cgroup.path / "memory.high"
    with ExitStack() as owned:
        hogs = [owned.enter_context(hog(cgroup, size)) for size in fill]
        high.write_text("1M")
        for one in hogs:
            take(one, 100)
        yield hogs
        high.write_text("max")


def of(cgroup: Cgroup) -> dict[str, Any]:
    """Its trigger, as people get it."""
    (found,) = valid("triggers", cli_json("trigger", "--cgroup", cgroup.name))
    assert isinstance(found, dict)
    return found


def decisions(cgroup: Cgroup) -> list[Decision]:
    history = records.read_history(pins.find())
    return [one for one in history if one.fields["oom_memcg_id"] == cgroup.id]


def set_trigger(cgroup: Cgroup, *options: str, psi: str = PSI) -> None:
    code, _, err = cli("trigger", "--cgroup", cgroup.name, "--psi", psi, *options)
    assert code == 0, err


def _armed_while_busy(cgroup: Cgroup, worker: Hog) -> bool:
    """A cgroup that is idle is not looked at."""
    take(worker, 1)
    return bool(of(cgroup)["armed"])


def unset(cgroup: Cgroup) -> None:
    assert cli("trigger", "--cgroup", cgroup.name, "--off")[0] == 0


def test_the_policy_chooses_before_any_limit_is_hit(pressed: Cgroup) -> None:
    """Set by a command that has ended, and removed by detach; the record says it was declared."""
    command = [sys.executable, "-m", "bpfoom.cli.main"]
    attach = ["attach", "--cgroup", pressed.name, "--object", str(objects.path())]
    psi = ["trigger", "--cgroup", pressed.name, "--psi", PSI]
    for words in (attach, psi):
        done = subprocess.run([*command, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    with stalled(pressed, 2, 12) as (small, large):
        wait_for(large.ended, "the policy's victim to die")
        assert not small.ended()
        events = pressed.memory_events()
        assert (events["oom_kill"], events["max"], events["oom"]) == (1, 0, 0)
        wait_for(lambda: of(pressed)["relieved"] == 1, "the trigger to know of it")
        (decision,) = decisions(pressed)
        assert decision.fields["flags"] & FLAG_DECLARED
        assert decision.fields["victim_pid"] == large.pid
        assert decision.fields["handler_cgroup_id"] == pressed.id
        assert f"{pressed.name} (declared)" in cli("events")[1]
        nodes = valid("tree", cli_json("list", "--tree"))["nodes"]
        (shown,) = [n["trigger"] for n in nodes if n["cgroup"] == pressed.name]
        assert (shown["psi"], shown["declared"], shown["link_id"]) == (
            *(PSI, 1, of(pressed)["link_id"]),
        )
        assert f"{PSI}, 1 declared" in cli("list", "--tree")[1]
        assert valid("show", cli_json("show", "--cgroup", pressed.name))["trigger"]["psi"] == PSI
    (gone,) = valid("detached", cli_json("detach", "--cgroup", pressed.name))
    assert gone["trigger"] == PSI
    assert pins.require().cgroup_ids() == []


def test_without_a_handler_the_kernel_chooses(pressed: Cgroup) -> None:
    set_trigger(pressed, psi="some:100ms/1s")
    with stalled(pressed, 12) as (large,):
        wait_for(large.ended, "the kernel's victim to die")
    assert kills(pressed) == 1
    unset(pressed)


def test_once_until_the_pressure_falls(pressed: Cgroup) -> None:
    """Two stall: one dies, the other stalls on, is spared, and is next once pressure has fallen."""
    set_trigger(pressed, "--cooldown", "1s")
    with stalled(pressed, 12, 24) as (second, first):
        wait_for(first.ended, "the first victim to die")
        looks = of(pressed)["looks"]
        wait_for(lambda: of(pressed)["looks"] >= looks + 3, "three more looks at the pressure")
        found = of(pressed)
        assert not second.ended()
        assert (found["declared"], found["armed"]) == (1, False)
        assert found["stall_us"] > 100_000
        (pressed.path / "memory.high").write_text("max")
        wait_for(lambda: _armed_while_busy(pressed, second), "the trigger to be armed again")
        (pressed.path / "memory.high").write_text("1M")
        take(second, 100)
        wait_for(second.ended, "the second victim to die")
    unset(pressed)


def test_again_and_again_but_not_before_it_has_cooled_down(pressed: Cgroup) -> None:
    set_trigger(pressed, "--cooldown", "5s", "--repeat")
    with stalled(pressed, 4, 12, 24) as hogs:
        times = []
        for victim in reversed(hogs[1:]):
            wait_for(victim.ended, "a victim to die")
            wait_for(lambda: of(pressed)["relieved"] == len(times) + 1, "it to be counted")
            times.append(of(pressed)["declared_at"])
        assert times[1] - times[0] >= 4.99
    unset(pressed)


def test_set_anew_it_remembers_what_it_declared(pressed: Cgroup) -> None:
    set_trigger(pressed)
    with stalled(pressed, 12) as (victim,):
        wait_for(victim.ended, "the victim to die")
    wait_for(lambda: of(pressed)["relieved"] == 1, "it to be counted")
    before = of(pressed)
    set_trigger(pressed, "--cooldown", "1min", psi="some:1s/1s")
    after = of(pressed)
    assert (after["psi"], after["cooldown_us"]) == ("some:1s/1s", 60_000_000)
    assert after["declared"] == 1
    assert after["declared_at"] == pytest.approx(before["declared_at"], abs=0.01)
    assert after["prog_id"] != before["prog_id"]
    unset(pressed)


def test_nothing_of_it_stays(pressed: Cgroup) -> None:
    """Off, and of a removed cgroup with the next trigger that is set."""
    links = set(syscalls.link_ids())
    set_trigger(pressed)
    gone = make(ROOT / "gone")
    set_trigger(gone)
    assert len(set(syscalls.link_ids()) - links) == 2
    gone.path.rmdir()
    set_trigger(pressed)
    assert pins.require().cgroup_ids() == [pressed.id]
    unset(pressed)
    wait_for(lambda: set(syscalls.link_ids()) == links, "its links to be gone")
    assert pins.require().cgroup_ids() == []
    assert cli("trigger")[1] == "no triggers set\n"
    code, _, err = cli("trigger", "--cgroup", pressed.name, "--off")
    assert code == 4 and "has no trigger" in err


def test_where_pressure_is_not_watched(pressed: Cgroup) -> None:
    (pressed.path / "cgroup.pressure").write_text("0")
    code, _, err = cli("trigger", "--cgroup", pressed.name, "--psi", PSI)
    assert code == 3 and "not watched" in err
    (pressed.path / "cgroup.pressure").write_text("1")


def test_what_is_not_ours_is_left_and_keeps_no_other_trigger_from_being_set(
    pressed: Cgroup,
) -> None:
    other = make(ROOT / "other")
    place = pins.require().directory(other.id)
    place.mkdir(mode=0o700)
    (place / "trigger-work").mkdir()
    set_trigger(pressed)
    code, _, err = cli("trigger", "--cgroup", other.name, "--psi", PSI)
    assert code == 1 and str(place / "trigger-work") in err and "hint:" in err
    assert [found["cgroup"] for found in cli_json("trigger")] == [pressed.name]
    (place / "trigger-work").rmdir()
    set_trigger(other)
    unset(other)
    other.path.rmdir()
    unset(pressed)


def test_the_root_looks_at_the_whole_system(trees: Trees, btf: Btf) -> None:
    root = cgroupfs.resolve("/")
    set_trigger(root, psi="full:1s/1s")
    wait_for(lambda: of(root)["looks"] >= 2, "two looks at the system's pressure")
    assert of(root)["declared"] == 0
    unset(root)


def test_an_object_is_as_good(pressed: Cgroup, tmp_path: Any) -> None:
    """And one of a policy is no trigger."""
    path = tmp_path / "trigger.o"
    template = "bpf/triggers/pressure.bpf.c.j2"
    assert cli("compile", template, "-o", str(path))[0] == 0
    set_trigger(pressed, "--object", str(path))
    assert trigger.trigger_of(pressed.id, pins.require()) is not None
    unset(pressed)
    words = ("trigger", "--cgroup", pressed.name, "--psi", PSI, "--object", str(objects.path()))
    code, _, err = cli(*words)
    assert code == 1 and "largest-task is no trigger" in err
