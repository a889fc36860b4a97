# SPDX-License-Identifier: Apache-2.0
"""``bpfoom new`` as typed: what it writes compiles and parses, and nothing is written over."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from bpfoom.cli.main import main
from bpfoom.compiler.build import compile_policy
from bpfoom.policy import find, starter
from bpfoom.scenario.parse import parse

KERNEL = Path(__file__).parents[1] / "data" / "kernel.btf"
CHECKOUT = Path(__file__).parents[2]
PAGE = Path(__file__).parents[2] / "docs" / "writing-policies.md"


@pytest.fixture
def typed(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        shown = capsys.readouterr()
        return ended.value.code or 0, shown.out, shown.err

    return run


def test_there_are_starters_of_both_kinds():
    assert starter.kinds() == ["cgroup", "task"]


@pytest.mark.parametrize("kind", starter.kinds())
def test_a_starter_is_a_policy_and_its_scenario(typed, kind):
    code, out, err = typed("new", "my-own-9", "--kind", kind)
    assert (code, err) == (0, "")
    policy, scenario = Path("my-own-9.bpf.c.j2"), Path("my-own-9.toml")
    assert sorted(Path().iterdir()) == [policy, scenario]
    assert out.startswith(f"wrote {policy} and {scenario}; next:\n  bpfoom check {policy}")
    assert "@" not in policy.read_text() + scenario.read_text()
    assert find.read(policy).name == "my-own-9"
    made = compile_policy(str(policy.absolute()), {}, btf=KERNEL)
    assert str(policy.absolute()) in {line.path for line in made.programs[0].lines}
    found = parse(scenario.read_text(), name="mine", file=scenario.absolute())
    (attached,) = found.attachments
    assert (scenario.parent / attached.policy).resolve() == policy.resolve()


@pytest.mark.parametrize("kind", starter.kinds())
def test_a_score_is_about_ten_lines(typed, kind):
    typed("new", "mine", "--kind", kind)
    body = re.search(
        r"{% block score %}\n(.*?){% endblock %}", Path("mine.bpf.c.j2").read_text(), re.S
    )
    assert body and body[1].count("\n") <= 10


def test_the_page_shows_what_is_written(typed):
    typed("new", "calm")
    (shown,) = re.findall(
        r"^```\n({% extends .*?{% endblock %}\n)```$", PAGE.read_text(), re.S | re.M
    )
    assert Path("calm.bpf.c.j2").read_text().endswith(shown)


def test_a_task_is_what_is_chosen_by_default(typed):
    typed("new", "mine")
    assert 'extends "include/tasks.bpf.c.j2"' in Path("mine.bpf.c.j2").read_text()


def test_another_directory(typed):
    assert typed("new", "mine", "-o", "there")[0] == 4
    Path("there").mkdir()
    code, out, _ = typed("new", "mine", "-o", "there")
    assert code == 0 and "bpfoom scenario run there/mine.toml" in out
    assert tomllib.loads(Path("there/mine.toml").read_text())["summary"]


@pytest.mark.parametrize("there", ["mine.bpf.c.j2", "mine.toml"])
def test_nothing_is_written_over(typed, there):
    Path(there).write_text("my work")
    code, out, err = typed("new", "mine")
    assert (code, out) == (1, "")
    assert err.startswith(f"bpfoom: cannot write {there}: File exists\nhint: choose another name")
    assert Path(there).read_text() == "my work" and list(Path().iterdir()) == [Path(there)]


@pytest.mark.parametrize("name", ["", "Mine", "a/b", "../mine", "-mine", "a_b", "x" * 64, "a\n"])
def test_a_name_that_no_policy_can_have(typed, name):
    code, out, err = typed("new", "--", name)
    assert (code, out) == (2, "") and "is no name for a policy" in err
    assert list(Path().iterdir()) == []


def test_the_name_of_a_shipped_policy_is_refused(typed):
    code, _, err = typed("new", "largest-task")
    assert code == 2 and "hint: call it my-largest-task" in err
    assert list(Path().iterdir()) == []


@pytest.mark.skipif(not (CHECKOUT / ".venv" / "stamp").exists(), reason="run has never run here")
def test_run_writes_where_it_was_typed(tmp_path):
    subprocess.run([CHECKOUT / "run", "new", "away"], cwd=tmp_path, check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["away.bpf.c.j2", "away.toml"]
