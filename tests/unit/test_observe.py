# SPDX-License-Identifier: Apache-2.0
"""Cgroup paths and files, and the history reader's sequence, on given directories and slots."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpfoom import mounts
from bpfoom.errors import BpfoomError, MissingFeatureError, NotThereError, UsageError
from bpfoom.handler.describe import Handler
from bpfoom.mounts import Mount
from bpfoom.observe import cgroupfs, explain
from bpfoom.observe.records import Decision, History
from bpfoom.policy import record


@pytest.fixture
def top() -> Iterator[Mount]:
    """A stand-in for the mount: a directory on a file system of its own, apart from /."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        path = Path(name)
        for child, controllers in (("a", "cpu memory"), ("a/b", "cpu memory"), ("plain", "cpu")):
            (path / child).mkdir()
            (path / child / "cgroup.controllers").write_text(f"{controllers}\n")
        yield Mount(path, path.stat().st_dev)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("/", "/"),
        ("a", "/a"),
        ("/a", "/a"),
        ("/a/b/", "/a/b"),
        ("a/../a/b", "/a/b"),
        ("{top}/a", "/a"),
        ("{top}", "/"),
    ],
)
def test_paths_on_cgroup2_stand_and_others_are_relative(top: Mount, text: str, name: str) -> None:
    found = cgroupfs.resolve(text.format(top=top.path), top)
    assert found.name == name
    assert found.id == found.path.stat().st_ino


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("/nope", NotThereError),
        ("a/nope", NotThereError),
        ("/proc", UsageError),
        ("../../nope", NotThereError),
        ("", UsageError),
        ("a\0b", UsageError),
        ("{top}/plain/cgroup.controllers", UsageError),
        ("a" * 5000, NotThereError),
    ],
)
def test_what_is_no_cgroup_is_refused(top: Mount, text: str, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        cgroupfs.resolve(text.format(top=top.path), top)


MOUNTINFO = (
    b"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
    b"30 22 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    b"31 22 0:28 / /sys/fs/cgroup\\040two rw shared:4 - cgroup2 cgroup2 rw\n"
)


@pytest.mark.parametrize(
    "name",
    [b"/home/u/\xff", b"/home/u/a\x0cb", b"/home/u/a\r", b"/home/u/a\x1cb", "/a\u2028b".encode()],
)
def test_mounts_are_read_whatever_somebody_calls_his(name: bytes, tmp_path: Path) -> None:
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_bytes(b"29 22 0:50 / %s rw - fuse.x x rw,user_id=1000\n" % name + MOUNTINFO)
    assert mounts.of_type("cgroup2", mountinfo) == [Mount(Path("/sys/fs/cgroup two"), 28)]
    (found,) = mounts.of_type("fuse.x", mountinfo)
    assert os.fsencode(found.path) == name


def test_a_process_may_have_any_name() -> None:
    """One that is no text does not keep anybody from looking."""
    code = "open('/proc/self/comm', 'wb').write(b'\\xff\\x0c'); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as child:
        comm = Path("/proc", str(child.pid), "comm")
        while comm.read_bytes() != b"\xff\x0c\n":
            time.sleep(0.01)
        assert explain.comm_of(child.pid) == "\N{REPLACEMENT CHARACTER}\x0c"
        child.kill()


def test_what_is_gone_is_not_found_by_its_id(top: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says "(deleted)" of what is gone; anybody may call a cgroup that."""
    monkeypatch.setattr(cgroupfs, "mount", lambda: top)
    for name in ("x", "x (deleted)"):
        (top.path / name).mkdir()
    ids = {name: (top.path / name).stat().st_ino for name in ("x", "x (deleted)")}
    fds = {number: os.open(top.path / name, os.O_RDONLY) for name, number in ids.items()}
    monkeypatch.setattr(cgroupfs, "_open_by_id", lambda _, number: fds[number])
    (top.path / "x").rmdir()
    assert cgroupfs.by_id(ids["x"]) is None
    found = cgroupfs.by_id(ids["x (deleted)"])
    assert found is not None and found.name == "/x (deleted)"


def test_files_of_a_cgroup(top: Mount) -> None:
    cgroup = cgroupfs.resolve("/a", top)
    (cgroup.path / "memory.events").write_text("low 0\noom 2\noom_kill 1\n")
    (cgroup.path / "memory.max").write_text("1048576\n")
    assert cgroup.memory_events() == {"low": 0, "oom": 2, "oom_kill": 1}
    assert cgroup.value("memory.max") == "1048576"
    assert cgroup.value("memory.peak") == ""
    cgroupfs.require_memory(cgroup)


def test_a_cgroup_without_memory_controller_is_told_how_to_get_it(top: Mount) -> None:
    with pytest.raises(MissingFeatureError, match="/plain") as raised:
        cgroupfs.require_memory(cgroupfs.resolve("/plain", top))
    assert raised.value.hint == f"echo +memory > {top.path}/cgroup.subtree_control"


def test_a_cgroup_removed_meanwhile_is_not_there(top: Mount) -> None:
    cgroup = cgroupfs.resolve("/plain", top)
    (cgroup.path / "cgroup.controllers").unlink()
    cgroup.path.rmdir()
    with pytest.raises(NotThereError):
        cgroup.memory_events()


# Decisions

_AT = record.offsets()


def raw(sequence: int, **fields: int) -> bytes:
    """A record with the given number fields, the rest zero."""
    formats = {"u32": "<I", "s32": "<i", "u64": "<Q"}
    types = {field.name: field.type for field in record.FIELDS}
    buffer = bytearray(record.SIZE)
    values = {"version": record.VERSION, "size": record.SIZE, "sequence": sequence, **fields}
    for name, value in values.items():
        struct.pack_into(formats[types[name]], buffer, _AT[name], value)
    return bytes(buffer)


def reader(slots: list[bytes], last: int, **state: Any) -> History:
    return History(lambda number: slots[number], lambda: last, len(slots), **state)


EMPTY = bytes(record.SIZE)


@pytest.mark.parametrize(
    ("slots", "last", "start", "sequences", "lost"),
    [
        ([EMPTY] * 4, 0, 1, [], 0),
        ([raw(1), raw(2), EMPTY, EMPTY], 2, 1, [1, 2], 0),
        ([raw(5), raw(2), raw(3), raw(4)], 5, 3, [3, 4, 5], 0),
        ([raw(9), raw(10), raw(7), raw(8)], 10, 3, [7, 8, 9, 10], 4),
        ([raw(9), EMPTY, raw(7), raw(8)], 9, 9, [9], 0),
        # 10 is being written over 6, which nobody has read, and 9 has gone over 5 just now.
        ([raw(9), EMPTY, raw(7), raw(8)], 8, 5, [7, 8], 2),
        # The number is counted before it is written down: it will be.
        ([raw(1), EMPTY, EMPTY, EMPTY], 2, 1, [1], 0),
        # The machine's history was never that long: somebody else has written to it.
        ([raw(1), raw(7), EMPTY, EMPTY], 3, 1, [1], 1),
    ],
)
def test_history_is_read_in_order_and_gaps_are_counted(
    slots: list[bytes], last: int, start: int, sequences: list[int], lost: int
) -> None:
    history = reader(slots, last, next=start)
    assert [decision.sequence for decision in history.read()] == sequences
    assert history.lost == lost


def test_history_goes_on_where_it_was() -> None:
    slots, last = [raw(1), EMPTY], 1
    history = History(lambda number: slots[number], lambda: last, 2)
    assert len(history.read()) == 1
    assert history.read() == []
    slots[1], slots[0], last = raw(2), raw(3), 3
    assert [decision.sequence for decision in history.read()] == [2, 3]
    slots[0], slots[1], last = raw(7), raw(6), 7
    assert [decision.sequence for decision in history.read()] == [6, 7]
    assert history.lost == 2


def test_what_was_not_written_yet_is_read_the_next_time() -> None:
    slots = [raw(1), EMPTY]
    history = reader(slots, 2)
    assert [decision.sequence for decision in history.read()] == [1]
    slots[1] = raw(2)
    assert [decision.sequence for decision in history.read()] == [2]
    assert history.lost == 0


def test_a_record_that_is_being_written_is_read_again() -> None:
    answers = iter([raw(4, seen=1), raw(4, seen=2), raw(4, seen=2)])
    history = History(lambda _number: next(answers), lambda: 4, 1, next=4)
    assert [decision.fields["seen"] for decision in history.read()] == [2]


def test_a_history_of_another_version_is_named() -> None:
    with pytest.raises(BpfoomError, match="version 2, expected 1"):
        reader([raw(1, version=2)], 1).read()


def test_who_read_it_all_twice_or_late_has_seen_the_same() -> None:
    """A writer that is always ahead: each reader has seen or counted every number once."""
    slots = [EMPTY] * 8
    last = 0
    readers = [History(lambda number: slots[number], lambda: last, 8) for _ in range(2)]
    seen: list[list[int]] = [[], []]
    for number in range(1, 100):
        last = number
        slots[(number - 1) % 8] = raw(number)
        for which, pace in enumerate((1, 5)):
            if number % pace == 0:
                seen[which] += [decision.sequence for decision in readers[which].read()]
    assert seen[0] == list(range(1, 100)) and readers[0].lost == 0
    assert seen[1] == list(range(1, 96)) and readers[1].lost == 0


def test_a_decision_in_words() -> None:
    decision = Decision(
        record.decode(raw(1, verdict=1, action=17, constraint=3, flags=record.FLAG_DRY_RUN))
    )
    shown = decision.as_dict()
    assert shown["verdict"] == "HANDLED"
    assert shown["action"] == "would-kill"
    assert shown["constraint"] == "memcg"
    assert shown["dry_run"] is True
    assert Decision(record.decode(raw(1, verdict=7))).verdict == "7"


@pytest.mark.parametrize("fields", [{}, {"verdict": -7, "action": 99}, {"victim_cgroup_id": 5}])
def test_a_decision_comes_back_from_its_json(fields: dict[str, int]) -> None:
    plain = Decision(record.decode(raw(3, oom_memcg_id=9, policy_hash=0xAB, **fields)))
    handler = Handler(
        0, 1, 2, 3, "", "p", 0, provenance={"policy": "p", "policy_hash": f"{0xAB:016x}{7:048x}"}
    )
    named = plain.named(lambda number: f"/{number}", lambda _: handler)
    assert named.policy == "p"
    again = Decision.from_dict(json.loads(json.dumps(named.as_dict())))
    assert again.fields == named.fields and again.cgroups == named.cgroups
    assert again.as_dict() == named.as_dict()
    assert Decision.from_dict(plain.as_dict()).cgroups is None
    with pytest.raises(ValueError, match="policy"):
        Decision.from_dict({**named.as_dict(), "policy": 7})
