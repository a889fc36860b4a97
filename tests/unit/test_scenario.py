# SPDX-License-Identifier: Apache-2.0
"""Scenario files read, refused and drawn, and what the workloads do: no kernel of ours needed."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bpfoom.errors import NotThereError, UsageError
from bpfoom.observe import kmsg
from bpfoom.policy import compose
from bpfoom.scenario import demo, library, model
from bpfoom.scenario.draw import draw
from bpfoom.scenario.library import Bundle, find_scenarios
from bpfoom.scenario.model import MIB, Condition, Growth, Lowering, Scenario, Take
from bpfoom.scenario.parse import parse
from bpfoom.scenario.workers import Hog, Nursery

FULL = """
summary = "All that there is"
system_wide = true

[cgroups.top]
memory.max = "64M"
memory.swap.max = "8M"
[cgroups."top/a"]
memory.oom.group = true
[cgroups."top/b"]
memory.min = "4M"

[workloads.one]
cgroup = "top/a"
anon = "8M"
swap = "1M"
oom_score_adj = -1000
exit_delay = "250ms"

[workloads]
two = { cgroup = "top/b", shared = "2M", tmpfs = "3M", moves_to = "top/a" }
three = { cgroup = "top/b", file = "4M", children = 5, maps = "two" }
four = { cgroup = "top/b", headless = true }

[marks]
"top/*" = "avoid"

[[attach]]
cgroup = "top"
policy = "protect"
set = { inner = "largest-task", "inner.min" = "1M", live = true, count = 3 }

[[attach]]
cgroup = "/"
policy = "largest-cgroup"
dry_run = true

[[trigger]]
workload = "three"
anon = "all"

[[trigger]]
workload = "two"
gives_back = true
after = "promise"

[[trigger]]
cgroup = "top/b"
memory_max = "2M"

[expect]
victims = ["one", "three"]
kills = ">=2"
refused = ["four"]
survivors = ["two"]
decided_by = ["top", "kernel"]
verdict = "HANDLED"
action = "kill"
counters.top = { kills = 1, promised = ">0" }
memory_events."top/a" = { oom_group_kill = 0 }
decisions."/" = { victim_comm = "one", best_score = ">=8M" }
"""

SMALL = """
summary = "The least that a scenario says"
[cgroups.box]
memory.max = "8M"
[workloads]
eater = { cgroup = "box", anon = "1M" }
[[attach]]
cgroup = "box"
policy = "largest-task"
[[trigger]]
workload = "eater"
anon = "20M"
[expect]
victims = ["eater"]
decided_by = "box"
"""


def read(text: str) -> Scenario:
    return parse(text, name="area/it", file=Path("area/it.toml"))


def test_everything_that_a_file_can_say() -> None:
    it = read(FULL)
    assert (it.name, it.summary, it.system_wide) == ("area/it", "All that there is", True)
    assert [c.path for c in it.cgroups] == ["top", "top/a", "top/b"]
    assert it.cgroups[0].files == {"memory.max": str(64 * MIB), "memory.swap.max": str(8 * MIB)}
    assert it.cgroups[1].files == {"memory.oom.group": "1"}
    one, two, three, four = it.workloads
    assert one.fill == Take(anon=8 * MIB, swap=MIB)
    assert (one.oom_score_adj, one.exit_ms) == (-1000, 250)
    assert (two.fill, two.home) == (Take(shared=2 * MIB, tmpfs=3 * MIB), "top/a")
    assert (three.fill, three.maps) == (Take(file=4 * MIB, children=5), "two")
    assert four.headless and four.fill == Take() and four.home == "top/b"
    assert it.marks == {"top/*": "avoid"}
    protect, dry = it.attachments
    assert protect.settings == {
        "inner": "largest-task", "inner.min": "1M", "live": "true", "count": "3"
    }  # fmt: skip
    assert (dry.cgroup, dry.dry_run, protect.dry_run) == ("/", True, False)
    assert it.triggers == (
        Growth("three", Take(anon=model.ALL)),
        Growth("two", gives_back=True, after="promise"),
        Lowering("top/b", 2 * MIB),
    )
    assert it.expect.kills == Condition(">=", 2)
    assert it.expect.decided_by == ("top", "kernel")
    assert it.expect.decisions["/"] == {
        "victim_comm": Condition("==", "one"), "best_score": Condition(">=", 8 * MIB)
    }  # fmt: skip
    assert it.takes == {"anon", "swap", "shared", "file", "tmpfs", "children"}


def test_the_least_that_a_file_must_say() -> None:
    it = read(SMALL)
    assert it.expect.kills == Condition("==", 1)
    assert it.expect.decided_by == ("box",)
    assert not it.system_wide and it.takes == {"anon"}


# What is wrong in a small file -> the key that is named, and a part of what is said of it.
WRONG = {
    "no TOML": ("[", "", "Invalid"),
    "nested too deep": (f"x = {'[' * 100_000}", "", "recursion"),
    "a number too long": (f"x = {'9' * 5000}", "", "limit"),
    "an unknown key": (SMALL + 'colour = "red"', "expect.colour", "no such key"),
    "an unknown table": (SMALL + "[limits]", "limits", "no such key"),
    "an unknown file of a cgroup": (
        SMALL.replace("memory.max", "memory.most"), "cgroups.box.memory.most", "memory.swap.max"
    ),
    "a number for a size": (SMALL.replace('"8M"', "8"), "cgroups.box.memory.max", "bytes"),
    "text for a switch": (
        SMALL.replace('memory.max = "8M"', 'memory.oom.group = "yes"'),
        "cgroups.box.memory.oom.group", "true or false",
    ),
    "a size without sense": (SMALL.replace('"1M"', '"1 apple"'), "workloads.eater.anon", "bytes"),
    "no summary": (SMALL.replace("summary", "#"), "summary", "is missing"),
    "no victims": (SMALL.replace("victims", "#"), "expect.victims", "is missing"),
    "nobody decides": (SMALL.replace("decided_by", "#"), "expect.decided_by", "is missing"),
    "a mistyped table": (
        SMALL.replace("[cgroups.box]", "[cgroup.box]\nmemory.max = 1\n[cgroups.box]"),
        "cgroup",
        "no such key; did you mean: cgroups?",
    ),
    "a mistyped key": (SMALL.replace("victims", "victim"), "expect.victims", "there is 'victim'"),
    "no trigger": (SMALL.replace("[[trigger]]", "[[other]]"), "other", "no such key"),
    "a trigger of nothing": (SMALL.replace('anon = "20M"', ""), "trigger[0]", "takes nothing"),
    "a table of triggers": (SMALL.replace("[[trigger]]", "[trigger]"), "trigger", "[[trigger]]"),
    "a cgroup that is not there": (
        SMALL.replace('cgroup = "box", anon', 'cgroup = "bix", anon'),
        "workloads.eater.cgroup", "'bix'",
    ),
    "a parent that is not there": (
        SMALL.replace("[cgroups.box]", '[cgroups."top/box"]'), "cgroups.top/box", "'top'"
    ),
    "a path that leads out": (SMALL.replace("[cgroups.box]", '[cgroups."../box"]'),
        'cgroups."../box"', "shop/api"),
    "a victim that is not there": (
        SMALL.replace('victims = ["eater"]', 'victims = ["drinker"]'), "expect.victims", "'drinker'"
    ),
    "a grower that is not there": (
        SMALL.replace('workload = "eater"', 'workload = "x"'), "trigger[0].workload", "'x'"
    ),
    "a decider with no policy": (
        SMALL.replace('decided_by = "box"', 'decided_by = "/"'), "expect.decided_by", "'/'"
    ),
    "a policy where there is no cgroup": (
        SMALL.replace('cgroup = "box"\npolicy', 'cgroup = "bax"\npolicy'), "attach[0].cgroup", "bax"
    ),
    "two policies at one cgroup": (
        SMALL.replace("[[trigger]]", '[[attach]]\ncgroup = "box"\npolicy = "x"\n[[trigger]]'),
        "attach[1].cgroup", "already",
    ),
    "counters of nobody": (
        SMALL + "counters.bax = { kills = 1 }", "expect.counters", "'bax'"
    ),
    "events of nowhere": (SMALL + "memory_events.bax = { oom = 1 }", "expect.memory_events", "bax"),
    "a comparison with no number": (
        SMALL + 'counters.box = { kills = ">=many" }', "expect.counters.box.kills", "compares"
    ),
    "a condition of another type": (
        SMALL + "counters.box = { kills = 1.5 }", "expect.counters.box.kills", "a number"
    ),
    "processes in an inner cgroup": (
        SMALL.replace("[workloads]", '[cgroups."box/a"]\n[workloads]'),
        "workloads.eater.cgroup", "children",
    ),
    "a name too long for a process": (
        SMALL.replace("eater", "a-very-long-name-of-one"), "workloads.a-very-long-name-of-one", "15"
    ),
    "an oom_score_adj out of range": (
        SMALL.replace('"1M" }', '"1M", oom_score_adj = -1001 }'),
        "workloads.eater.oom_score_adj", "-1000 to 1000",
    ),
    "a map of what is no file": (
        SMALL.replace('"1M" }', '"1M", maps = "eater" }'), "workloads.eater.maps", "no tmpfs"
    ),
    "a fill without end": (SMALL.replace('"1M"', '"all"'), "workloads.eater", "trigger"),
    "the whole machine unasked": (
        SMALL.replace('"20M"', '"all"'), "trigger[0].anon", "system_wide"
    ),
    "the root unasked": (
        SMALL.replace('cgroup = "box"\npolicy', 'cgroup = "/"\npolicy')
        .replace('decided_by = "box"', 'decided_by = "kernel"'), "attach", "system_wide",
    ),
    "forkers as victims, uncounted": (
        SMALL.replace('"1M" }', '"1M", children = 3 }'), "expect.kills", "is needed"
    ),
    "a mark of nothing": (SMALL + '[marks]\n"bax/*" = "omit"', "marks.bax/*", "no cgroup"),
    "a mark that is none": (SMALL + '[marks]\nbox = "love"', "marks.box", "avoid"),
    "a wait for who knows what": (
        SMALL.replace('anon = "20M"', 'anon = "20M"\nafter = "tea"'), "trigger[0].after", "promise"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_refused_with_file_and_key(what: str) -> None:
    text, key, said = WRONG[what]
    with pytest.raises(UsageError) as caught:
        read(text)
    assert caught.value.data == {"path": "area/it.toml", "key": key}
    assert caught.value.message.startswith("area/it.toml: " + (f"{key}: " if key else ""))
    assert said in caught.value.message


def test_drawing() -> None:
    assert draw(read(FULL)) == [
        "/  handler=largest-cgroup (dry run)",
        "top  memory.max=64M  memory.swap.max=8M"
        "  handler=protect inner=largest-task inner.min=1M live=true count=3",
        "├── a  memory.oom.group=1",
        "│   └── one 8M + 1M swap, exits in 250ms, oom_score_adj=-1000",
        "└── b  memory.min=4M  memory.max lowered to 2M",
        "    ├── two 2M shared + 3M tmpfs, gives back after a promise, moves to top/a",
        "    ├── three 4M file + 5 children, grows by all, maps two's tmpfs",
        "    └── four, headless",
    ]


# The library


def test_every_shipped_scenario_is_right_and_has_its_place() -> None:
    known = library.shipped()
    assert {s.name for s in known} >= {demo.NAME, "across/hand-over"}
    assert all(s.name == f"{s.file.parent.name}/{s.file.stem}" for s in known)


def policies_with_scenarios() -> list[str]:
    """The areas that are policies' own."""
    room = library.shipped()[0].file.parents[1]
    policies = {path.name.partition(".")[0] for path in (room.parent / "policies").glob("*.j2")}
    return sorted({s.name.partition("/")[0] for s in library.shipped()} & policies)


@pytest.mark.parametrize("policy", policies_with_scenarios())
def test_a_policy_has_three_scenarios_and_declines_in_one(policy: str) -> None:
    own = find_scenarios([policy])
    assert len(own) >= 3
    assert all(policy in {a.policy for a in s.attachments} for s in own)
    assert any(s.name == f"{policy}/declines" and s.expect.decided_by in ((), ("kernel",))
               for s in own)  # fmt: skip


def test_scenarios_by_name_area_file_and_directory(tmp_path: Path) -> None:
    assert find_scenarios([]) == library.shipped()
    (one,) = find_scenarios(["largest-task/leaf"])
    assert one in find_scenarios(["largest-task"])
    assert find_scenarios([str(one.file)]) == [one]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "it.toml").write_text(SMALL)
    (found,) = find_scenarios([str(mine)])
    assert found.name == "mine/it"
    with pytest.raises(NotThereError, match="no scenario named"):
        find_scenarios(["largest-tusk/leaf"])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(NotThereError, match="holds no"):
        find_scenarios([str(empty)])
    with pytest.raises(NotThereError, match="cannot read"):
        find_scenarios(["none.toml"])
    (tmp_path / "alone.toml").write_text(SMALL)
    with pytest.raises(NotThereError, match="no scenario named") as refused:
        find_scenarios([str(tmp_path / "alone")])
    assert refused.value.hint == f"a file is named by its path: {tmp_path}/alone.toml"


def test_a_policy_file_is_beside_its_scenario(tmp_path: Path) -> None:
    (tmp_path / "it.toml").write_text(SMALL.replace('"largest-task"', '"./own.bpf.c.j2"'))
    (tmp_path / "own.bpf.c.j2").write_text("text")
    (found,) = find_scenarios([str(tmp_path / "it.toml")])
    assert Path(found.attachments[0].policy).samefile(tmp_path / "own.bpf.c.j2")


@pytest.mark.parametrize(
    ("written", "instead", "key"),
    [
        ('"largest-task"', '"largest-tsk"', "attach[0].policy: no policy named 'largest-tsk'"),
        ('"largest-task"', '"./no.bpf.c.j2"', "attach[0].policy: cannot read policy "),
        ('"largest-task"', '"largest-task"\nset = { prt = 1 }', "attach[0].set.prt: unknown "),
        (
            '"largest-task"',
            '"grace"\nset.inner = "./no"',
            "attach[0].set.inner: cannot read policy ",
        ),
    ],
)
def test_a_policy_or_parameter_that_there_is_not(
    tmp_path: Path, written: str, instead: str, key: str
) -> None:
    file = tmp_path / "it.toml"
    file.write_text(SMALL.replace(written, instead))
    with pytest.raises(UsageError) as refused:
        library.check_policies(find_scenarios([str(file)]))
    assert refused.value.message.startswith(f"{file}: {key}")


WRAPPER = """[params.next]
type = "policy"
default = "./least.bpf.c.j2"
help = "h"
"""


def policy(file: Path, params: str = "") -> str:
    """The path of a policy that is a card alone; what it is is its summary."""
    file.parent.mkdir(exist_ok=True)
    texts = {"kills": "k", "declines": "d", "cost": "c", "status": "stable", "summary": file.name}
    card = "".join(f'{name} = "{text}"\n' for name, text in texts.items())
    file.write_text(f"{{#---\n{card}{params}---#}}\n")
    return str(file)


@pytest.fixture
def wrapping(tmp_path: Path) -> Path:
    """A scenario of grace > outer, beside it > least, which outer's card names beside itself."""
    file = tmp_path / "it.toml"
    attached = '"grace"\nset = { inner = "./own/outer.bpf.c.j2", rounds = 1 }'
    file.write_text(SMALL.replace('"largest-task"', attached))
    policy(tmp_path / "own" / "outer.bpf.c.j2", WRAPPER)
    policy(tmp_path / "own" / "least.bpf.c.j2")
    return file


def test_wrapped_policies_are_beside_the_scenario_and_beside_their_wrapper(wrapping: Path) -> None:
    """Wherever it is run from."""
    scenarios = find_scenarios([str(wrapping)])
    library.check_policies(scenarios)
    (attachment,) = scenarios[0].attachments
    own = wrapping.parent / "own"
    assert compose.plan(attachment.policy, attachment.settings).files == {
        "inner": str(own / "outer.bpf.c.j2"),
        "inner.next": str(own / "least.bpf.c.j2"),
    }
    assert attachment.settings["rounds"] == "1"


@pytest.mark.parametrize("instead", [False, True])
def test_a_bundle_carries_what_its_policies_wrap(
    wrapping: Path, instead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As deep as it goes, where nothing is left of the author's files."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(wrapping.parent))
    own = wrapping.parent / "own"
    outer = str(own / "outer.bpf.c.j2") if instead else None
    scenarios = find_scenarios([str(wrapping)])
    if outer:
        scenarios = [scenario.with_policy(outer) for scenario in scenarios]
    bundle = Bundle.from_dict(json.loads(json.dumps(asdict(Bundle.of(scenarios, outer)))))
    own.rename(own.with_name("gone"))
    there = wrapping.parent / "there"
    there.mkdir()
    (attachment,) = bundle.unpack(there)[0].attachments
    found = compose.plan(attachment.policy, attachment.settings)
    names = ["outer", "least"] if instead else ["grace", "outer", "least"]
    assert [it.name for it in found.policies] == names
    assert all(path.startswith(f"{there}/") for path in found.files.values())
    assert bundle.as_written([*found.files.values()], there)[-1] == str(own / "least.bpf.c.j2")


def test_the_policies_of_every_shipped_scenario_are_there() -> None:
    library.check_policies(library.shipped())


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ("counters.box = { kils = 1 }", "expect.counters.box: there is no 'kils'"),
        (
            "memory_events.box = { oom_kils = 1 }",
            "expect.memory_events.box: there is no 'oom_kils'",
        ),
        ('decisions.box = { action_ = "x" }', "expect.decisions.box: there is no 'action_'"),
        ('verdict = "HANDELD"', "expect.verdict: there is no 'HANDELD'"),
        ('action = "killed"', "expect.action: there is no 'killed'"),
    ],
)
def test_expectations_of_what_there_is_not(more: str, key: str) -> None:
    with pytest.raises(UsageError, match=re.escape(key)):
        read(f"{SMALL.rstrip()}\n{more}\n")


def test_a_tree_that_does_not_hold_what_fills_it() -> None:
    with pytest.raises(UsageError, match=r"cgroups.box.memory.max: .* is filled with 1025M before"):
        read(SMALL.replace("[workloads]", '[workloads]\nmore = { cgroup = "box", anon = "1G" }'))


def test_a_bundle_carries_what_the_guest_has_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through JSON, as it goes; the policies of the user's own directory keep their names."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    own = tmp_path / "config" / "bpfoom" / "policies"
    own.mkdir(parents=True)
    (own / "mine.bpf.c.j2").write_text("named")
    (tmp_path / "it.toml").write_text(SMALL.replace('"largest-task"', '"./own.bpf.c.j2"'))
    beside = Path(policy(tmp_path / "own.bpf.c.j2")).read_text()
    found = find_scenarios([str(tmp_path / "it.toml")])
    bundle = json.loads(json.dumps(asdict(Bundle.of(found, None))))
    there = tmp_path / "there"
    there.mkdir()
    (unpacked,) = Bundle.from_dict(bundle).unpack(there)
    placed = Path(unpacked.attachments[0].policy)
    assert placed.is_relative_to(there) and placed.read_text() == beside
    assert Path(os.environ["XDG_CONFIG_HOME"]) == there
    assert (there / "bpfoom" / "policies" / "mine.bpf.c.j2").read_text() == "named"
    assert replace(unpacked, attachments=()) == replace(found[0], attachments=())
    # What is said of them names the author's files.
    seen = {"tree": [f"box handler={placed}"], "error": f"{there}/bpfoom/policies/mine.bpf.c.j2:3"}
    assert Bundle.from_dict(bundle).as_written(seen, there) == {
        "tree": [f"box handler={tmp_path}/own.bpf.c.j2"],
        "error": f"{own}/mine.bpf.c.j2:3",
    }


def test_a_bundle_with_another_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    found = [s.with_policy("largest-task") for s in find_scenarios([demo.NAME])]
    assert Bundle.of(found, "largest-task").unpack(tmp_path / "there") == found


def test_the_demo_is_what_it_claims() -> None:
    """The service is the largest process, the job the larger cgroup, and it does not fit."""
    (it,) = find_scenarios([demo.NAME])
    server, *workers = it.workloads
    (growth,) = it.triggers
    assert isinstance(growth, Growth)
    filled = sum(worker.fill.anon for worker in workers)
    limit = int(it.cgroups[0].files["memory.max"])
    assert all(worker.fill.anon < server.fill.anon for worker in workers)
    room = limit - server.fill.anon - filled
    assert workers[-1].fill.anon + room < server.fill.anon < filled < limit - server.fill.anon
    assert room < growth.take.anon


# The workloads


@pytest.fixture
def nursery(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nursery]:
    # Only root may spare a process.
    monkeypatch.setattr("bpfoom.scenario.workers._set_adj", lambda pid, adj: None)
    with Nursery() as running:
        yield running


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t") for line in lines if ":\t" in line)


def test_workloads_obey_and_end(nursery: Nursery) -> None:
    """Real processes: each takes a name and memory, answers, and ends when it is told to."""
    hogs = [Hog(nursery, f"hog-{number}", "box") for number in range(3)]
    for hog in hogs:
        hog.order("take", str(8 * MIB))
        assert hog.obeyed(20) and hog.obeyed(20)
        fields = status(hog.pid)
        assert fields["Name"] == hog.comm
        assert int(fields["RssAnon"].split()[0]) * 1024 > 8 * MIB
    hogs[1].end()
    assert [hogs[0].ended(), hogs[2].ended()] == [False, False]
    hogs[0].end()
    hogs[2].end()


def test_files_children_and_giving_back(nursery: Nursery, tmp_path: Path) -> None:
    hog = Hog(nursery, "hog", "box")
    deadline = time.monotonic() + 20
    hog.expect(deadline)
    file = tmp_path / "file"
    for order in (("write", str(file), str(3 * MIB)), ("map", str(file)), ("fork", "4")):
        hog.order(*order)
        hog.expect(deadline)
    assert file.stat().st_size == 3 * MIB
    (shell,) = Path(f"/proc/{hog.pid}/task/{hog.pid}/children").read_text().split()
    assert len(Path(f"/proc/{shell}/task/{shell}/children").read_text().split()) == 4
    hog.order("give_back")
    hog.expect(deadline)
    assert str(file) not in Path(f"/proc/{hog.pid}/maps").read_text()
    os.kill(int(shell), 9)
    hog.end()


def test_a_headless_process_goes_on(nursery: Nursery) -> None:
    hog = Hog(nursery, "hog", "box")
    deadline = time.monotonic() + 60
    for order in (("behead",), ("take", str(MIB))):
        hog.expect(deadline)
        hog.order(*order)
    hog.expect(deadline)
    # The leader is on its way out while the other thread already obeys.
    while not status(hog.pid)["State"].startswith("Z"):
        assert time.monotonic() < deadline
    assert len(os.listdir(f"/proc/{hog.pid}/task")) == 2
    hog.end()


def test_lines_about_an_oom() -> None:
    lines = ["usb 1-1: new device", "Killed process 7 (one)", "oom_handler=p", "Call Trace:"]
    assert kmsg.about_oom(lines) == lines[1:3]
