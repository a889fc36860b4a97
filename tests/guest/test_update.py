# SPDX-License-Identifier: Apache-2.0
"""Handlers changed while attached: live parameters under fire, exchanged programs, what stays.

The policies here notice themselves: in each call they compare two live parameters that are always
set alike, with time enough in between for an update, or two, to come in the way.
"""

from __future__ import annotations

import os
import signal
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bpfoom.btf.types import Btf
from bpfoom.compiler.build import compile_policy
from bpfoom.errors import BpfoomError, NotThereError
from bpfoom.handler import describe, info, maps, pins, syscalls, update
from bpfoom.handler.attach import attach
from bpfoom.handler.describe import Handler
from bpfoom.handler.params import LiveSets
from bpfoom.observe.cgroupfs import Cgroup
from tests.guest.asm import loaded_program
from tests.guest.byhand import (
    Trees,
    cli,
    cli_json,
    eat,
    handler_object,
    oom_once,
    returns,
    wait_for,
)
from tests.guest.callers import context, run, trial
from tests.schemas import valid

# Compiling takes minutes on a debug kernel.
pytestmark = pytest.mark.flavours("plain")

FLIPS = 2000

CARD = """\
{#---
summary = "s"
kills = "k"
declines = "d"
cost = "c"
status = "experimental"
[params.one]
type = "int"
default = "1"
max = "1000000"
help = "always the same as two"
live = true
[params.two]
type = "int"
default = "1"
help = "always the same as one"
live = true
[params.fixed]
type = "bytes"
default = "1M"
help = "compiled in"
---#}
{% extends "include/tasks.bpf.c.j2" %}
{% block declarations %}
{{ super() }}
{{ kfunc("bpf_iter_num_new", "bpf_iter_num_next", "bpf_iter_num_destroy") }}
{{ map("looks_at", "array", value_size=32, entries=1) }}
struct noticed {
	u64 looks;
	u64 mixes;
	u64 changes;
	s64 last;
};

static __always_inline void take_your_time(void)
{
	struct bpf_iter_num it;	/* declared by the guest's bcc */

	bpf_iter_num_new(&it, 0, %turns);
	while (bpf_iter_num_next(&it))
		barrier();
	bpf_iter_num_destroy(&it);
}

static __always_inline void notice(s64 one, s64 two)
{
	struct noticed *seen = map_value(looks_at, 0);

	if (!seen)
		return;
	seen->looks++;
	if (one != two)
		seen->mixes++;
	if (one != seen->last)
		seen->changes++;
	seen->last = one;
}
{% endblock %}
{% block score %}
%score
	return {{ param.fixed }} ? memory_of(mm) : 0;
{% endblock %}
"""
BY_THE_BASE = """\
	s64 one = {{ param.one }};
	take_your_time();
	notice(one, {{ param.two }});
"""
# Looks at the number of the set in force once per parameter, as nobody should.
TWICE = """\
	u64 *set = map_value(bpfoom_set, 0);
	struct params *before = map_value(bpfoom_params, set ? *set & 1 : 0), *after;
	s64 one = before ? before->one : 0;
	take_your_time();
	after = map_value(bpfoom_params, set ? *set & 1 : 0);
	notice(one, after ? after->two : 0);
"""


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One directory for all: a policy of the same place and text is compiled once."""
    return tmp_path_factory.mktemp("policies")


@dataclass(frozen=True)
class Noticed:
    """What such a handler has seen: looks at its parameters, mixes, changes since the last look."""

    looks: int
    mixes: int
    changes: int


def policy(
    directory: Path, score: str = BY_THE_BASE, name: str = "watchful", turns: int = 20_000
) -> str:
    """The file of such a policy; under TCG 100,000 turns are about a millisecond."""
    path = directory / f"{name}.bpf.c.j2"
    path.write_text(CARD.replace("%score", score).replace("%turns", str(turns)))
    return str(path)


def noticed(handler: Handler) -> Noticed:
    found = maps.find(handler.map_ids, "looks_at")
    assert found is not None
    with found:
        return Noticed(*struct.unpack_from("<QQQ", syscalls.map_lookup(found, bytes(4), 32)))


def attached(path: str, cgroup: Cgroup, btf: Btf) -> Handler:
    obj = compile_policy(path, {})
    return attach(obj, cgroup.path, btf, pins.require(), name=cgroup.name)


@contextmanager
def repeated(work: Callable[[], object]) -> Iterator[None]:
    """A child that does the same again and again until the end of the block."""
    child = os.fork()
    if not child:
        try:
            while True:
                work()
        finally:
            os._exit(1)
    try:
        yield
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the child did not last"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@contextmanager
def somebody(cgroup: Cgroup) -> Iterator[None]:
    """A small process in the cgroup: without a candidate nothing is scored."""
    script = f"echo 0 > {cgroup.path}/cgroup.procs && exec sleep 10000"
    process = subprocess.Popen(["sh", "-c", script])
    wait_for(lambda: cgroup.value("cgroup.procs") != "", "the process to be there")
    try:
        yield
    finally:
        process.kill()
        process.wait()


def under_fire(handler: Handler, trees: Trees, btf: Btf, flips: int) -> Noticed:
    """Change both parameters so often while OOMs, and dry runs of them, come one after another."""
    sets = LiveSets.of_program(handler.map_ids)
    assert sets is not None
    where = pins.require()
    with (
        sets,
        loaded_program(trial(btf), btf) as program,
        somebody(trees.box),
        repeated(lambda: run(program, context(trees.box) + bytes(256))),
        repeated(lambda: eat(trees.box).wait()),
    ):
        for number in range(flips):
            with where.writing():
                sets.write(struct.pack("<qq", number, number))
        wait_for(lambda: trees.box.memory_events()["oom_kill"] > 0, "an OOM that is none of ours")
    seen = noticed(handler)
    print(f"{flips} flips: {seen}")
    return seen


def test_an_oom_sees_one_set_or_the_other(trees: Trees, btf: Btf, policies: Path) -> None:
    handler = attached(policy(policies), trees.box, btf)
    seen = under_fire(handler, trees, btf, FLIPS)
    assert seen.mixes == 0
    assert seen.changes > FLIPS // 20
    now = describe.handler_of(trees.box.id, "/box", pins.require(), btf)
    assert now.prog_id == handler.prog_id
    assert (now.values["one"], now.values["two"]) == (str(FLIPS - 1),) * 2


def test_a_handler_that_looks_twice_sees_a_mix(trees: Trees, btf: Btf, policies: Path) -> None:
    """So the handler above could have seen one."""
    handler = attached(policy(policies, TWICE), trees.box, btf)
    assert under_fire(handler, trees, btf, FLIPS).mixes > 0


def test_a_writer_that_does_not_wait_makes_a_mix(
    trees: Trees, btf: Btf, policies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two updates within one call write what it is reading."""
    monkeypatch.setattr(LiveSets, "_wait_for_calls", lambda _: None)
    handler = attached(policy(policies, turns=300_000), trees.box, btf)
    assert under_fire(handler, trees, btf, FLIPS).mixes > 0


def test_live_parameters_by_command(trees: Trees, btf: Btf, policies: Path) -> None:
    before = attached(policy(policies), trees.box, btf)
    name = trees.box.name
    said = valid("update", cli_json("update", "--cgroup", name, "--set", "one=7"))
    assert said["how"] == "live"
    assert said["changed"] == [{"name": "one", "before": "1", "after": "7"}]
    assert (said["prog_id"], said["updated_at"]) == (before.prog_id, None)
    shown = valid("show", cli_json("show", "--cgroup", name))
    values = {item["name"]: item["value"] for item in shown["parameters"]}
    assert values == {"one": "7", "two": "1", "fixed": "1M"}
    code, out, _ = cli("update", "--cgroup", name, "--set", "one=8", "--set", "two=9")
    assert (code, out) == (0, f"updated watchful of {name}: one 7 -> 8, two 1 -> 9\n")
    again = cli_json("update", "--cgroup", name, "--set", "one=8")
    assert (again["how"], again["changed"]) == ("nothing", [])


def test_the_program_is_exchanged_and_goes_on(trees: Trees, btf: Btf, policies: Path) -> None:
    """What it has counted and remembered stays, and so do parameters that are not named."""
    first = attached(policy(policies), trees.box, btf)
    cli_json("update", "--cgroup", trees.box.name, "--set", "one=7")
    oom_once(trees.box)
    seen, kills = noticed(first), first_kills(trees, btf)
    assert seen.looks > 0 and kills == 1

    said = valid("update", cli_json("update", "--cgroup", trees.box.name, "--set", "fixed=2M"))
    assert said["how"] == "program"
    assert said["changed"] == [{"name": "fixed", "before": "1M", "after": "2M"}]
    assert said["updated_at"] > said["attached_at"] == first.attached_at
    assert said["link_id"] == first.link_id and said["prog_id"] != first.prog_id
    now = describe.handler_of(trees.box.id, "/box", pins.require(), btf)
    assert now.values == {"one": "7", "two": "1", "fixed": "2M"}
    assert noticed(now) == seen
    oom_once(trees.box)
    assert noticed(now).looks > seen.looks
    assert first_kills(trees, btf) == 2


def first_kills(trees: Trees, btf: Btf) -> int:
    """What the kernel has counted since the handler was attached."""
    return describe.handler_of(trees.box.id, "/box", pins.require(), btf).counters["kills"]


def test_another_policy_remembers_nothing_but_counts_on(
    trees: Trees, btf: Btf, policies: Path
) -> None:
    first = attached(policy(policies), trees.box, btf)
    oom_once(trees.box)
    # Its program and what only that has are gone soon after.
    assert noticed(first).looks > 0 and counted(first) == 1
    other = policy(policies, name="other")
    said = cli_json("update", "--cgroup", trees.box.name, "--policy", other, "--set", "one=3")
    assert (said["policy_before"], said["policy"], said["name"]) == ("watchful", "other", "other")
    now = describe.handler_of(trees.box.id, "/box", pins.require(), btf)
    assert noticed(now).looks == 0
    assert now.values == {"one": "3", "two": "1", "fixed": "1M"}
    assert counted(now) == 1


def counted(handler: Handler) -> int:
    """The calls that the policies' base has counted."""
    found = maps.find(handler.map_ids, maps.COUNTERS)
    assert found is not None
    with found:
        raw = syscalls.map_lookup(found, bytes(4), info.map_info(found).value_size)
    return int.from_bytes(raw[:8], "little")


def test_from_a_dry_run_to_acting(trees: Trees, btf: Btf) -> None:
    name = trees.box.name
    cli_json("attach", "--cgroup", name, "--policy", "largest-task", "--dry-run")
    said = valid("update", cli_json("update", "--cgroup", name, "--no-dry-run"))
    assert (said["dry_run_before"], said["dry_run"], said["how"]) == (True, False, "program")
    oom_once(trees.box)
    assert first_kills(trees, btf) == 1
    # What is not named stays.
    assert cli_json("update", "--cgroup", name, "--set", "min=1M")["dry_run"] is False


def test_an_object_is_attached_set_and_exchanged(
    trees: Trees, policies: Path, tmp_path: Path
) -> None:
    acts, looks = tmp_path / "acts", tmp_path / "looks"
    acts.write_bytes(compile_policy(policy(policies), {}).to_bytes())
    looks.write_bytes(compile_policy(policy(policies), {}, dry_run=True).to_bytes())
    where = ("--cgroup", trees.box.name)
    assert cli("attach", *where, "--object", str(acts), "--dry-run")[0] == 2
    code, _, err = cli("attach", *where, "--object", str(acts), "--set", "fixed=2M")
    assert (code, "fixed is not live" in err) == (2, True)

    made = cli_json("attach", *where, "--object", str(acts), "--set", "two=5")
    assert made["policy"] == "watchful"
    assert cli_json("update", *where, "--set", "one=6")["how"] == "live"
    shown = cli_json("show", *where)["parameters"]
    assert [item["value"] for item in shown] == ["6", "5", "1M"]
    code, _, err = cli("update", *where, "--set", "fixed=2M")
    assert (code, "attached as an object" in err) == (2, True)
    assert cli_json("update", *where, "--object", str(looks))["dry_run"] is True
    code, _, err = cli("update", *where, "--object", str(looks), "--no-dry-run")
    assert (code, "compiled for a dry run" in err) == (2, True)


def test_attach_replaces_only_when_told(trees: Trees) -> None:
    where = ("--cgroup", trees.box.name, "--policy", "largest-task")
    fresh = cli_json("attach", *where, "--replace")
    code, _, err = cli("attach", *where)
    assert (code, "--replace" in err) == (1, True)
    second = cli_json("attach", *where, "--set", "min=1M", "--replace")
    assert second["link_id"] == fresh["link_id"] and second["prog_id"] != fresh["prog_id"]


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ((), 2, "nothing to change"),
        (("--set", "one=1000001"), 2, "above the most, 1000000"),
        (("--set", "none=1"), 2, "did you mean: one"),
        (("--policy", "nope"), 4, "nope"),
        (("--policy", "swap", "--object", "x"), 2, "--object"),
        (("--object", "/nope"), 4, "/nope"),
    ],
)
def test_what_cannot_be_updated(
    args: tuple[str, ...], code: int, says: str, trees: Trees, btf: Btf, policies: Path
) -> None:
    before = attached(policy(policies), trees.box, btf)
    got, _, err = cli("update", "--cgroup", trees.box.name, *args)
    assert (got, says in err) == (code, True), err
    assert describe.handler_of(trees.box.id, "/box", pins.require(), btf) == before


def test_nothing_attached(trees: Trees) -> None:
    code, _, err = cli("update", "--cgroup", trees.box.name, "--set", "one=1")
    assert (code, "no handler of ours" in err) == (4, True)


def test_a_cgroup_that_is_gone(trees: Trees, btf: Btf) -> None:
    obj, where = handler_object(returns(0)), pins.require()
    before = attach(obj, trees.box.path, btf, where, name="/box")
    trees.box.path.rmdir()
    with pytest.raises(NotThereError):
        update.exchange(obj, before, trees.box.path, btf, where, note={})
    wait_for(lambda: where.sweep() == [trees.box.id], "the handler to go with its cgroup")


def test_of_two_who_change_the_same_the_second_is_told(
    trees: Trees, btf: Btf, policies: Path
) -> None:
    obj, where = compile_policy(policy(policies), {}), pins.require()
    before = attach(obj, trees.box.path, btf, where, name="/box")
    live = update.set_live(before, {"one": "2"}, btf, where)
    with pytest.raises(BpfoomError, match="changed meanwhile"):
        update.exchange(obj, before, trees.box.path, btf, where, note={})
    after = update.exchange(obj, live, trees.box.path, btf, where, note={})
    with pytest.raises(BpfoomError, match="changed meanwhile"):
        update.exchange(obj, live, trees.box.path, btf, where, note={})
    assert describe.handler_of(trees.box.id, "/box", where, btf) == after


def test_every_oom_finds_a_handler(trees: Trees, btf: Btf) -> None:
    """Programs are exchanged all the while: an OOM without one would be the kernel's to decide."""
    where = pins.require()
    kill = compile_policy("largest-task", {})
    handler = attach(kill, trees.box.path, btf, where, name="/box")
    with repeated(lambda: eat(trees.box).wait()):
        for _ in range(50):
            handler = update.exchange(kill, handler, trees.box.path, btf, where, note={})
        enough = 10
        wait_for(lambda: trees.box.memory_events()["oom_kill"] >= enough, "so many OOMs")
    wait_for(lambda: "populated 0" in trees.box.value("cgroup.events"), "the last one to die")
    killed = trees.box.memory_events()["oom_kill"]
    assert first_kills(trees, btf) == killed
