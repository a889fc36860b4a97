# SPDX-License-Identifier: Apache-2.0
"""The commands that deal with handlers, as a user meets them where nothing is attached."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_btf import kernel

from bpfoom.btf import types
from bpfoom.cli import events, main, marks, output, update, view
from bpfoom.cli.options import parse_settings
from bpfoom.errors import BpfoomError, UsageError
from bpfoom.mounts import Mount
from bpfoom.observe import cgroupfs
from bpfoom.observe.marks import Synced

HEAVY = (
    *("pyroute2", "bcc", "rich", "jinja2", "qemu", "inotify_simple"),
    *("click_man", "matplotlib", "prometheus_client"),
)


def run(*args: str) -> int:
    """The exit code of a command line, run in this process."""
    with pytest.raises(SystemExit) as ended:
        main.main(list(args))
    code = ended.value.code
    assert isinstance(code, int)
    return code


@pytest.fixture
def old_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with a cgroup2 mount whose kernel has no OOM handlers."""
    (tmp_path / "btf").write_bytes(kernel())
    monkeypatch.setattr(types, "RUNNING", tmp_path / "btf")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:  # not on the file system of /
        root = Path(name)
        monkeypatch.setattr(cgroupfs, "mount", lambda: Mount(root, root.stat().st_dev))
        yield


@pytest.mark.parametrize(
    "args",
    [
        *(("--help",), ("list",), ("attach", "--help"), ("status",), ("update", "--help")),
        *(("marks", "list"), ("marks", "show", "/"), ("completion", "bash")),
        *(("list", "--tree"), ("show", "--cgroup", "/"), ("doctor", "--help"), ("man", "--help")),
        *(("apply", "--help"), ("agent", "--help")),
    ],
)
def test_start_up_stays_cheap(args: tuple[str, ...]) -> None:
    code = (
        "import sys\n"
        "from bpfoom.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit:\n    pass\n"
        "print('LOADED', *sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    asked = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, check=True
    )
    loaded = asked.stdout.splitlines()[-1].split()
    assert loaded[0] == "LOADED" and "click" in loaded
    assert not set(HEAVY) & set(loaded)


@pytest.mark.usefixtures("old_kernel")
def test_attach_without_kernel_support_offers_the_guest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("attach", "--cgroup", "/", "--policy", "largest-task") == 3
    shown = capsys.readouterr().err
    assert "bpf_oom_ops" in shown
    hint = shown.splitlines()[-1]
    assert hint.startswith("hint: ") and "`bpfoom vm shell`" in hint and "`./run demo`" in hint


@pytest.mark.usefixtures("old_kernel")
@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("--cgroup", "/nope", "--policy", "largest-task"), 4, "no cgroup /nope"),
        (("--cgroup", "/proc", "--policy", "largest-task"), 2, "not on cgroup2"),
        (("--cgroup", "/", "--policy", "nope"), 4, "nope"),
        (("--cgroup", "/", "--policy", "largest-task", "--set", "nope=1"), 2, "nope"),
        (("--cgroup", "/", "--policy", "largest-task", "--set", "nope"), 2, "NAME=VALUE"),
        (("--policy", "largest-task"), 2, "--cgroup"),
    ],
)
def test_what_the_user_got_wrong_comes_before_what_the_kernel_lacks(
    args: tuple[str, ...], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("attach", *args) == code
    assert says in capsys.readouterr().err


@pytest.mark.usefixtures("old_kernel")
def test_status_says_what_the_kernel_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("status", "--json") == 0
    status = json.loads(capsys.readouterr().out)
    assert status["kernel"]["supported"] is False
    assert "bpf_oom_ops" in status["kernel"]["summary"]
    assert status["handlers"] == [] and status["decisions"] == []


@pytest.mark.usefixtures("old_kernel")
def test_doctor_exits_3_and_names_each_kfunc(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor", "--json") == 3
    document = json.loads(capsys.readouterr().out)
    findings = {finding["name"]: finding for finding in document["findings"]}
    assert document["ok"] is False
    assert findings["struct bpf_oom_ops"]["status"] == "missing"
    assert findings["kfunc bpf_oom_kill_process"]["status"] == "ok"
    assert findings["kfunc bpf_oom_kill_cgroup"]["status"] == "warn"


def test_detach_wants_one_of_two() -> None:
    assert run("detach") == 2
    assert run("detach", "--all", "--cgroup", "/") == 2


@pytest.mark.parametrize(
    "args",
    [
        *(("--psi", "full:50ms/1s"), ("--off",), ("--cgroup", "/", "--psi", "")),
        *(("--cgroup", "/", "--off", "--psi", "full:50ms/1s"), ("--cgroup", "/", "--repeat")),
        *(("--cgroup", "", "--off"), ("--cgroup", ""), ("--cooldown", "5s")),
    ],
)
@pytest.mark.usefixtures("old_kernel")
def test_what_no_trigger_can_be_meant_by(args: tuple[str, ...]) -> None:
    assert run("trigger", *args) == 2


def test_errors_are_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("detach", "--json") == 2
    assert json.loads(capsys.readouterr().err)["error"] == "UsageError"


def test_settings() -> None:
    assert parse_settings(("a=1", "b=x=y", "c=")) == {"a": "1", "b": "x=y", "c": ""}
    for wrong in (("a",), ("=1",), ("a=1", "a=2")):
        with pytest.raises(UsageError):
            parse_settings(wrong)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", 910.0),
        ("10m", 400.0),
        ("1970-01-01T00:00:07+00:00", 7.0),
        ("9" * 400 + "s", 1e3 - 1e12),
    ],
)
def test_since(text: str, expected: float) -> None:
    assert events.parse_since(text, 1000.0) == expected


@pytest.mark.parametrize("text", ["", "soon", "10", "10y", "2026-13-01"])
def test_since_refuses(text: str) -> None:
    with pytest.raises(UsageError):
        events.parse_since(text, 1000.0)


def test_tables_off_a_terminal_are_plain(capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = [{"a": "x" * 200, "b": None}, {"a": True, "b": 3}]
    output.emit_table({"a": "FIRST", "b": "SECOND"}, rows)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["FIRST" + " " * 197 + "SECOND", "x" * 200 + "  -", "yes" + " " * 199 + "3"]


def test_names_cannot_write_lines_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\x1b[2J\n9  b\u202e\udcff"
    escaped = r"a\x1b[2J\n9  b\u202e\xff"
    output.emit_table({"a": "NAME"}, [{"a": name}])
    output.emit_line({"a": "NAME"}, {"a": name})
    output.emit_fields({"name": name})
    output.say(f"gone: {name}")
    main.report(BpfoomError(name, hint=name), as_json=False)
    told = capsys.readouterr()
    assert told.out.splitlines() == [
        "NAME", escaped, escaped, f"name: {escaped}", f"gone: {escaped}"
    ]  # fmt: skip
    assert told.err.splitlines() == [f"bpfoom: {escaped}", f"hint: {escaped}"]


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    argv = [sys.executable, "-m", "bpfoom.cli.main"]
    into = str(tmp_path / "file" / "man")
    asked = subprocess.run([*argv, "man", "-o", into], capture_output=True, text=True)
    assert (asked.returncode, asked.stderr) == (1, f"bpfoom: {into}: Not a directory\n")
    with open("/dev/full", "w") as full:
        asked = subprocess.run([*argv, "policies"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (asked.returncode, asked.stderr) == (1, "bpfoom: No space left on device\n")


def test_units() -> None:
    assert [output.size(n) for n in (0, 1023, 1536, 20 << 20, 3 << 50)] == [
        "0",
        "1023",
        "1.5K",
        "20M",
        "3072T",
    ]
    assert [output.duration(n) for n in (5, 1500, 20_000_000, 90_000_000_000)] == [
        "5ns",
        "1.5us",
        "20ms",
        "90s",
    ]


@pytest.mark.parametrize(
    ("fields", "victim"),
    [
        ({"victim_pid": 7, "victim_comm": "hog", "victim_cgroup": "/a"}, "hog[7] in /a"),
        ({"victim_pid": 0, "victim_comm": "", "victim_cgroup": "/a"}, "/a"),
        ({"victim_pid": 0, "victim_comm": "", "victim_cgroup": None}, None),
    ],
)
def test_a_victim_is_named(fields: dict[str, object], victim: str | None) -> None:
    row = view.decision_row(
        {
            **fields,
            "action": "none",
            "kfunc_result": 0,
            "time": 0.0,
            "handler_cgroup": "/",
            "oom_cgroup": "/a",
            "victim_usage": 0,
            "duration_ns": 10,
            "flags": 0,
        }
    )
    assert row["victim"] == victim


@pytest.mark.parametrize(
    ("result", "shown"),
    [(0, "raise"), (3, "raise"), (-11, "raise: EAGAIN"), (-4095, "raise: -4095")],
)
def test_what_the_kernel_refused_is_no_action(result: int, shown: str) -> None:
    assert view.action({"action": "raise", "kfunc_result": result}) == shown


@pytest.mark.usefixtures("old_kernel")
def test_nobody_is_told_to_make_a_cgroup_in_order_to_detach(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("detach", "--cgroup", "nosuch") == 4
    assert "mkdir" not in capsys.readouterr().err


def test_an_update_that_leaves_a_dry_run_says_so() -> None:
    document = {
        "changed": [],
        "cgroup": "/shop",
        "how": update.PROGRAM,
        "policy": "swap",
        "policy_before": "largest-task",
        "dry_run": True,
        "dry_run_before": True,
    }
    assert "it still only records" in update._sentence(document)
    acts = {**document, "dry_run": False, "dry_run_before": False}
    assert "records" not in update._sentence(acts)


def test_marks_are_counted_in_english(capsys: pytest.CaptureFixture[str]) -> None:
    one: Any = Synced([], {1: None})  # type: ignore[dict-item]
    marks._report(one, as_json=False)
    assert capsys.readouterr().out == "nothing to change: 1 cgroup marked\n"
