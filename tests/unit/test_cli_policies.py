# SPDX-License-Identifier: Apache-2.0
"""``policies``, ``render``, ``check``, ``compile`` and ``cache`` as typed: output, exit codes."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bpfoom.cli.main import main
from bpfoom.compiler import build
from bpfoom.compiler.object import read_file

KERNEL = str(Path(__file__).parents[1] / "data" / "kernel.btf")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def typed(capsys):
    def run(*words):
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        shown = capsys.readouterr()
        return ended.value.code or 0, shown.out, shown.err

    return run


def test_policies_are_listed_with_their_summaries(typed):
    code, out, _ = typed("policies")
    assert code == 0
    assert re.search(r"^largest-task +Kills the process", out, re.M)


def test_a_card_shows_its_parameters(typed):
    code, out, _ = typed("policies", "largest-cgroup")
    assert code == 0 and "--set min=" in out and "experimental" in out


def test_a_card_cannot_write_to_the_terminal(typed, tmp_path):
    shipped = Path(__file__).parents[2] / "bpf" / "policies" / "largest-task.bpf.c.j2"
    own = tmp_path / "own.bpf.c.j2"
    text = re.sub(
        r'^summary( *)= ".*"', r'summary\1= "\\u001b[2Jgone"', shipped.read_text(), flags=re.M
    )
    own.write_text(text)
    code, out, _ = typed("policies", str(own))
    assert code == 0 and "\x1b" not in out and "[2Jgone" in out


def test_policies_as_json(typed):
    listed = json.loads(typed("policies", "--json")[1])
    one = json.loads(typed("policies", "largest-task", "--json")[1])
    assert one in listed and one["parameters"][0]["name"] == "min"
    assert set(one) == {
        *("name", "path", "summary", "kills", "declines", "cost", "status", "parameters")
    }


def test_render_prints_c(typed):
    code, out, _ = typed("render", "largest-task", "--btf", KERNEL, "--set", "min=1M")
    assert code == 0 and "int handle_out_of_memory(u64 *ctx)" in out and ">= 1048576" in out


def test_the_line_map_is_what_grep_would_print(typed):
    text = typed("render", "largest-task", "--btf", KERNEL)[1]
    code, out, _ = typed("render", "largest-task", "--btf", KERNEL, "--show-line-map")
    fields = [line.split(":", 2) for line in out.rstrip("\n").split("\n")]
    assert code == 0 and "\n".join(words for _, _, words in fields) + "\n" == text
    (policy,) = {path for path, _, words in fields if "return bytes >=" in words}
    (number,) = {line for path, line, words in fields if "return bytes >=" in words}
    assert "return bytes >=" in Path(policy).read_text().split("\n")[int(number) - 1]
    shared = [line for path, line, words in fields if path == "bpf/include/base.bpf.c.j2"]
    assert len(shared) > 50


def test_render_as_json(typed):
    text = typed("render", "largest-task", "--btf", KERNEL)[1]
    shown = json.loads(typed("render", "largest-task", "--btf", KERNEL, "--json")[1])
    whole = "".join(line["text"] + "\n" for line in shown["lines"])
    assert whole == text and shown["policy"] == "largest-task"
    assert hashlib.sha256(whole.encode()).hexdigest() == shown["policy_hash"]


def test_check_as_a_table(typed):
    code, out, _ = typed("check", "largest-task", "--btf", KERNEL)
    first, *fields, _empty, titles, program = out.rstrip("\n").split("\n")
    assert code == 0 and first == "largest-task: renders, compiles and passes the lint"
    assert "  verifier:         not asked: compiled for another kernel" in fields
    assert titles.split()[:3] == ["PROGRAM", "INSNS", "VERIFIED"]
    name, instructions, *unknown = program.split()
    assert name == "handle_out_of_memory" and int(instructions) > 100 and set(unknown) == {"-"}


def test_check(typed):
    code, out, _ = typed("check", "largest-task", "--btf", KERNEL, "--json")
    made = json.loads(out)
    (program,) = made["programs"]
    assert program["instructions"] == made["instructions"]
    assert program["verified_instructions"] is program["jited_bytes"] is None
    assert code == 0 and made["policy"] == "largest-task" and made["bcc_version"]
    assert made["parameters"] == [{"name": "min", "type": "bytes", "value": "0", "live": False}]
    assert made["verifier"].startswith("not asked")


def test_compile_writes_the_object(typed, tmp_path):
    file = tmp_path / "out" / "mine.o"
    words = ["compile", "largest-task", "-o", str(file), "--btf", KERNEL, "--set", "min=1M"]
    code, out, err = typed(*words)
    assert (code, out) == (1, "") and f"cannot write {file}: No such file" in err
    file.parent.mkdir()
    assert typed(*words) == (0, f"{file}: largest-task, for the kernel of {KERNEL}\n", "")
    made = build.compile_policy("largest-task", {"min": "1M"}, btf=Path(KERNEL))
    assert read_file(file) == made
    assert file.stat().st_mode & 0o777 == 0o644 and list(file.parent.iterdir()) == [file]
    assert typed(*words, "--dry-run")[0] == 0
    assert read_file(file).provenance.dry_run


def test_a_broken_policy_leaves_the_object_as_it_was(typed, tmp_path):
    file = tmp_path / "mine.o"
    file.write_text("before")
    broken = tmp_path / "broken.bpf.c.j2"
    broken.write_text("{{")
    code, _, err = typed("compile", str(broken), "-o", str(file), "--btf", KERNEL)
    assert code == 1 and "broken.bpf.c.j2" in err and file.read_text() == "before"


@pytest.mark.parametrize("words", [["check"], ["render"], ["compile", "-o", "object"]])
def test_timings_are_told_on_stderr(words, tmp_path):
    """In a process of its own, as stages count from its start."""
    argv = [sys.executable, "-m", "bpfoom.cli.main", *words, "largest-task", "--btf", KERNEL]

    def run(*more):
        return subprocess.run([*argv, *more], cwd=tmp_path, capture_output=True, text=True)

    cold, warm, plain = run("--timings"), run("--timings"), run()
    assert cold.stdout == warm.stdout == plain.stdout and plain.stderr == ""
    stages = {line.split("  ")[0]: line for line in warm.stderr.splitlines()}
    assert {"Python and imports", "find policy", "render", "total"} <= set(stages)
    assert stages["render"].endswith("cached") and "cached" not in cold.stderr


@pytest.mark.parametrize(
    ("words", "code", "message", "hint"),
    [
        (["policies", "largest-tsk"], 4, "no policy named 'largest-tsk'", "largest-task"),
        (["check", "/nosuch.bpf.c.j2"], 4, "cannot read policy", "bpfoom policies"),
        (["render", "largest-task", "--set", "mni=1"], 2, "unknown parameter 'mni'", "min"),
        (["render", "largest-task", "--set", "min=-1"], 2, "expected bytes", "bytes"),
        (["render", "largest-task", "--set", "min=0);x("], 2, "expected bytes", "bytes"),
        (["render", "largest-task", "--set", "min"], 2, "NAME=VALUE", ""),
        (["render", "largest-task", "--btf", "/nosuch"], 2, "/nosuch", "--btf"),
        (["cache", "clear", "nosuch"], 4, "nothing of kind 'nosuch'", "cached kinds"),
    ],
)
def test_errors(typed, words, code, message, hint):
    ended, out, err = typed(*words)
    assert (ended, out) == (code, "")
    lines = err.rstrip("\n").split("\n")
    assert lines[0].startswith("bpfoom: ") and message in lines[0]
    assert hint in lines[-1]


def test_an_error_in_a_template_has_its_file_and_line(typed, tmp_path):
    path = tmp_path / "broken.bpf.c.j2"
    card = '{#---\nsummary="s"\nkills="k"\ndeclines="d"\ncost="c"\nstatus="stable"\n---#}\n'
    path.write_text(card + "{% block %}\n")
    code, _, err = typed("check", str(path), "--btf", KERNEL)
    assert code == 1 and f"{path}:8: " in err


def test_cache_lists_and_clears_what_render_left(typed):
    typed("render", "largest-task", "--btf", KERNEL)
    listed = json.loads(typed("cache", "--json")[1])
    assert [entry["kind"] for entry in listed["entries"]] == ["renders"]
    assert typed("cache", "clear", "renders")[0] == 0
    assert json.loads(typed("cache", "--json")[1])["entries"] == []
