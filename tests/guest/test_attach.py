# SPDX-License-Identifier: Apache-2.0
"""Attach, read back, detach on the real kernel, by hand-made handlers where no policy is needed."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

import pytest

from bpfoom.btf.types import Btf
from bpfoom.compiler.object import HandlerObject, Program
from bpfoom.errors import BpfoomError, MissingFeatureError, VerifierError
from bpfoom.handler import links, pins, syscalls
from bpfoom.handler.attach import attach, detach, link_to_cgroup
from bpfoom.handler.describe import Handler, handlers
from bpfoom.handler.load import load
from bpfoom.handler.syscalls import Fd
from bpfoom.observe import cgroupfs
from bpfoom.observe.cgroupfs import Cgroup
from tests.guest.byhand import (
    DEADLINE_S,
    EXIT,
    ROOT,
    Trees,
    cli,
    cli_json,
    handler_object,
    oom_once,
    returns,
    wait_for,
)


def attached_ids(cgroup: Cgroup) -> list[int]:
    return list(links.of(cgroup.id))


def test_attach_read_back_detach(trees: Trees, btf: Btf) -> None:
    where = pins.require()
    made = attach(handler_object(returns(0)), trees.box.path, btf, where, name=trees.box.name)
    assert made.policy == made.name == "by-hand"
    assert made.cgroup_id == trees.box.id
    assert made.dry_run is False
    assert attached_ids(trees.box) == [made.link_id]
    assert where.link_path(trees.box.id).parent.stat().st_mode & 0o777 == 0o700
    assert [found.link_id for found in handlers(where, btf)] == [made.link_id]
    assert detach(trees.box.id, where) is True
    assert attached_ids(trees.box) == []
    assert not where.link_path(trees.box.id).parent.exists()
    assert detach(trees.box.id, where) is False


def test_bpftool_sees_the_same(trees: Trees, btf: Btf) -> None:
    made = attach(handler_object(returns(0)), trees.box.path, btf, pins.require(), name="/box")
    asked = subprocess.run(
        ["bpftool", "-j", "link", "show", "id", str(made.link_id)],
        capture_output=True, text=True,
    )  # fmt: skip
    link = json.loads(asked.stdout)
    assert (link["id"], link["type"], link["map_id"]) == (made.link_id, "struct_ops", made.map_id)


@pytest.mark.parametrize("verdict", [0, 1, 2, -1, 77])
def test_whatever_an_idle_handler_says_the_kernel_acts(
    verdict: int, trees: Trees, btf: Btf
) -> None:
    attach(handler_object(returns(verdict)), trees.box.path, btf, pins.require(), name="/box")
    before = trees.box.memory_events()["oom_kill"]
    oom_once(trees.box)
    assert trees.box.memory_events()["oom_kill"] == before + 1


def test_a_second_handler_is_refused_by_name(trees: Trees, btf: Btf) -> None:
    where = pins.require()
    first = attach(handler_object(returns(0)), trees.box.path, btf, where, name="/box")
    with pytest.raises(BpfoomError, match="by-hand") as raised:
        attach(handler_object(returns(1)), trees.box.path, btf, where, name="/box")
    assert str(first.link_id) in raised.value.message
    assert raised.value.data["errno"] == 17
    assert "bpfoom detach" in raised.value.hint
    assert attached_ids(trees.box) == [first.link_id]


def test_a_handler_of_somebody_else_is_named_by_its_link(trees: Trees, btf: Btf) -> None:
    where = pins.require()
    with (
        load(handler_object(returns(0)), btf, where, note={}) as loaded,
        Fd(os.open(trees.box.path, os.O_RDONLY)) as target,
        link_to_cgroup(loaded, target, btf),
    ):
        (link_id,) = attached_ids(trees.box)
        with pytest.raises(BpfoomError, match=f"link {link_id}, not pinned by bpfoom"):
            attach(handler_object(returns(0)), trees.box.path, btf, where, name="/box")


def test_a_link_detached_behind_our_back_does_not_block(trees: Trees, btf: Btf) -> None:
    where = pins.require()
    attach(handler_object(returns(0)), trees.box.path, btf, where, name="/box")
    link = where.open_link(trees.box.id)
    assert link is not None
    with link:
        syscalls.link_detach(link)
        assert handlers(where, btf) == []
        second = attach(handler_object(returns(0)), trees.box.path, btf, where, name="/box")
    assert attached_ids(trees.box) == [second.link_id]


def test_the_root_takes_a_handler(trees: Trees, btf: Btf) -> None:
    root = cgroupfs.resolve("/")
    attach(handler_object(returns(0)), root.path, btf, pins.require(), name=root.name)
    assert [entry["cgroup"] for entry in cli_json("list")] == ["/"]
    (gone,) = cli_json("detach", "--cgroup", "/")
    assert (gone["cgroup"], gone["cgroup_id"], gone["handler"]) == ("/", root.id, True)


def test_of_many_at_once_one_wins(trees: Trees) -> None:
    children = [fork(lambda: attach_by_hand(trees.box)) for _ in range(4)]
    codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
    assert codes == [0, 1, 1, 1]
    assert len(attached_ids(trees.box)) == 1


def test_no_memory_controller_says_how_to_get_it(trees: Trees, btf: Btf) -> None:
    code, _, err = cli("attach", "--cgroup", trees.child.name, "--policy", "largest-task")
    assert code == 3
    assert f"echo +memory > {trees.child.path.parent}/cgroup.subtree_control" in err
    # The kernel itself refuses as well, should the check before it be fooled.
    with pytest.raises(MissingFeatureError, match="no memory controller"):
        attach(handler_object(returns(0)), trees.child.path, btf, pins.require(), name="/child")
    assert pins.require().cgroup_ids() == []


def test_rmdir_while_attached(trees: Trees, btf: Btf) -> None:
    where = pins.require()
    attach(handler_object(returns(0)), trees.box.path, btf, where, name="/box")
    trees.box.path.rmdir()
    wait_for(lambda: handlers(where, btf) == [], "the handler to go with its cgroup")
    assert cli_json("list") == []
    assert where.sweep() == [trees.box.id]
    assert where.cgroup_ids() == []


def test_the_next_writer_sweeps_what_is_left(trees: Trees, btf: Btf) -> None:
    where = pins.require()
    (where.base / "123456789").mkdir(mode=0o700)
    attach(handler_object(returns(0)), trees.box.path, btf, where, name="/box")
    assert where.cgroup_ids() == [trees.box.id]


def test_what_the_verifier_rejects_is_explained_whole(trees: Trees, btf: Btf) -> None:
    with pytest.raises(VerifierError, match="[Uu]nreadable register") as raised:
        attach(handler_object(EXIT), trees.box.path, btf, pins.require(), name="/box")
    assert "R0" in raised.value.detail and "processed" in raised.value.detail
    assert pins.require().cgroup_ids() == []
    assert attached_ids(trees.box) == []


def test_a_program_that_is_not_sleepable_is_refused(trees: Trees, btf: Btf) -> None:
    obj = handler_object(returns(0))
    awake = Program("awake", "struct_ops", "handle_out_of_memory", False, returns(0), ())
    with pytest.raises(BpfoomError):
        attach(
            HandlerObject((awake,), (), (), (), (), (), obj.provenance),
            trees.box.path, btf, pins.require(), name="/box",
        )  # fmt: skip
    assert attached_ids(trees.box) == []


# Killed with -9


def fork(work: Callable[[], object]) -> int:
    """Run ``work`` in a child; it ends 0, or 1 for a BpfoomError."""
    child = os.fork()
    if child:
        return child
    code = 2
    try:
        work()
        code = 0
    except BpfoomError:
        code = 1
    finally:
        os._exit(code)


def attach_by_hand(cgroup: Cgroup) -> Handler:
    with Btf.from_file() as btf:
        obj = handler_object(returns(0), with_map=True)
        return attach(obj, cgroup.path, btf, pins.require(), name=cgroup.name)


def attach_killed_after(cgroup: Cgroup, calls: int) -> None:
    """Attach, but die by SIGKILL once ``calls`` bpf(2) calls have been made."""
    check = syscalls._check
    made = 0

    def counting(call: str, result: int, **facts: Any) -> int:
        nonlocal made
        made += 1
        if made > calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return check(call, result, **facts)

    syscalls._check = counting
    attach_by_hand(cgroup)


def has_links(cgroup: Cgroup, number: int) -> bool:
    return len(attached_ids(cgroup)) == number


def test_killed_anywhere_it_is_attached_or_not(trees: Trees, btf: Btf) -> None:
    where = pins.require()
    outcomes = []
    for calls in range(60):
        where.shared_path("test_map").unlink(missing_ok=True)
        child = fork(partial(attach_killed_after, trees.box, calls))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        attached = len(handlers(where, btf)) == 1
        # A link without a pin goes with its process, a little later.
        wait_for(partial(has_links, trees.box, int(attached)), "the link to settle")
        outcomes.append(attached)
        if not attached:
            attach_by_hand(trees.box)
        assert detach(trees.box.id, where)
        assert where.cgroup_ids() == []
        if code == 0:
            break
        assert code == -signal.SIGKILL
    else:
        pytest.fail("it never came to its end")
    assert outcomes == sorted(outcomes), "once attached, always attached"
    assert outcomes[0] is False and outcomes[-1] is True
    where.shared_path("test_map").unlink(missing_ok=True)


# Through the command line, with real policies


def choices(cgroup: Cgroup) -> list[dict[str, Any]]:
    """The decisions on one cgroup that chose a victim.

    Others may follow: until the victim is gone, every further OOM asks the handler again, which
    then passes.
    """
    code, out, err = cli("events", "--json", "--since", "10m")
    assert code == 0, err
    found = [json.loads(line) for line in out.splitlines() if "lost" not in json.loads(line)]
    return [one for one in found if one["oom_memcg_id"] == cgroup.id and one["victim_pid"]]


def test_who_is_there_is_told_before_anything_is_compiled(
    trees: Trees, btf: Btf, tmp_path: Path
) -> None:
    first = attach_by_hand(trees.box)
    (tmp_path / "broken.bpf.c.j2").write_text(CARD + BROKEN)
    name = trees.box.name
    code, _, err = cli("attach", "--cgroup", name, "--policy", str(tmp_path / "broken.bpf.c.j2"))
    assert code == 1 and f"{name} already has a handler" in err
    assert attached_ids(trees.box) == [first.link_id]


def test_a_policy_decides_and_tells(trees: Trees) -> None:
    made = cli_json("attach", "--cgroup", trees.box.name, "--policy", "largest-task")
    assert made["policy"] == "largest-task" and made["cgroup"] == trees.box.name
    assert [entry["link_id"] for entry in cli_json("list")] == [made["link_id"]]
    victim = oom_once(trees.box)
    (kill,) = choices(trees.box)
    assert kill["handler_cgroup"] == kill["oom_cgroup"] == trees.box.name
    assert (kill["verdict"], kill["action"], kill["victim_pid"]) == ("HANDLED", "kill", victim.pid)
    assert kill["policy"] == "largest-task"
    shown = cli_json("show", "--cgroup", trees.box.name)
    assert shown["last_decision"]["sequence"] >= kill["sequence"]
    assert shown["provenance"]["policy_hash"]
    assert shown["memory_events"]["oom_kill"] == 1
    status = cli_json("status")
    assert status["kernel"]["supported"] is True
    assert status["decisions"][-1]["sequence"] >= kill["sequence"]
    for args in (["list"], ["show", "--cgroup", trees.box.name], ["events"], ["status"]):
        code, out, _ = cli(*args)
        assert code == 0 and "largest-task" in out


def test_a_dry_run_only_records(trees: Trees) -> None:
    made = cli_json("attach", "--cgroup", trees.box.name, "--policy", "largest-task", "--dry-run")
    assert made["dry_run"] is True
    oom_once(trees.box)
    (would_be,) = choices(trees.box)
    assert (would_be["action"], would_be["dry_run"]) == ("would-kill", True)
    assert trees.box.memory_events()["oom_kill"] == 1


def test_events_follow(trees: Trees) -> None:
    cli_json("attach", "--cgroup", trees.box.name, "--policy", "largest-task")
    follower = subprocess.Popen(
        [sys.executable, "-m", "bpfoom.cli.main", "events", "--follow", "--json"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        victim = oom_once(trees.box)
        assert follower.stdout is not None
        assert victim.pid in followed_victims(follower.stdout)
        follower.send_signal(signal.SIGINT)
        assert follower.wait(DEADLINE_S) == 0
    finally:
        follower.kill()
        follower.communicate()


def followed_victims(stream: IO[bytes]) -> Iterator[int]:
    """The victims of a followed stream of decisions, as they come, until the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    rest = b""
    while select.select([stream], [], [], max(0.0, deadline - time.monotonic()))[0]:
        *lines, rest = (rest + os.read(stream.fileno(), 1 << 16)).split(b"\n")
        yield from (json.loads(line).get("victim_pid", 0) for line in lines)


CARD = """\
{#---
summary = "A test's"
kills = "nobody"
declines = "always"
cost = "nothing"
status = "experimental"
---#}
{% extends "include/tasks.bpf.c.j2" %}
"""
# A number is no address, whatever C thinks of it.
REJECTED = "{% block score %} return *(volatile u64 *)(u64)task->tgid; {% endblock %}\n"
BROKEN = "{% block score %}\n{% if %}\n{% endblock %}\n"


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("--cgroup", "/nope", "--policy", "largest-task"), 4, "/nope"),
        (("--cgroup", "/tmp", "--policy", "largest-task"), 2, "not on cgroup2"),
        (("--cgroup", "{box}", "--policy", "nope"), 4, "nope"),
        (("--cgroup", "{box}", "--policy", "largest-task", "--set", "nope=1"), 2, "nope"),
        (("--cgroup", "{box}", "--policy", "largest-task", "--set", "min=-1"), 2, "min"),
        (("--cgroup", "{box}", "--policy", "largest-task", "--set", "min=0; }} x"), 2, "min"),
        (("--cgroup", "{box}", "--policy", "{rejected}"), 1, "invalid mem access 'scalar'"),
        (("--cgroup", "{box}", "--policy", "{broken}"), 1, "broken.bpf.c.j2:10"),
    ],
)
def test_bad_input_leaves_nothing(
    args: tuple[str, ...], code: int, says: str, trees: Trees, tmp_path: Path
) -> None:
    names = {"box": trees.box.name}
    for name, body in (("rejected", REJECTED), ("broken", BROKEN)):
        path = tmp_path / f"{name}.bpf.c.j2"
        path.write_text(CARD + body)
        names[name] = str(path)
    got, _, err = cli("attach", *(arg.format(**names) for arg in args))
    assert got == code
    assert says in err
    assert attached_ids(trees.box) == []
    assert pins.require().cgroup_ids() == []


@pytest.mark.parametrize(
    "args",
    [
        ("list",),
        ("show", "--cgroup", "/"),
        ("events",),
        ("detach", "--all"),
        ("attach", "--cgroup", "/", "--policy", "largest-task"),
    ],
)
def test_without_root(args: tuple[str, ...], trees: Trees) -> None:
    asked = subprocess.run(
        [sys.executable, "-m", "bpfoom.cli.main", *args],
        user=65534, group=65534, extra_groups=[], capture_output=True, text=True,
    )  # fmt: skip
    assert asked.returncode == 5, asked.stderr
    assert "root" in asked.stderr


def test_doctor_is_content() -> None:
    document = cli_json("doctor")
    assert document["ok"] is True
    assert not [found for found in document["findings"] if found["status"] == "missing"]


def test_detach_all(trees: Trees, btf: Btf) -> None:
    where = pins.require()
    (ROOT / "second").mkdir()
    second = cgroupfs.resolve(f"{ROOT}/second")
    for cgroup in (trees.box, second):
        attach(handler_object(returns(0)), cgroup.path, btf, where, name=cgroup.name)
    gone = cli_json("detach", "--all")
    assert {entry["cgroup"] for entry in gone} == {trees.box.name, second.name}
    assert cli_json("list") == []
