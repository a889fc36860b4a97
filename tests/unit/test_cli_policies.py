# SPDX-License-Identifier: Apache-2.0
"""``policies``, ``render``, ``check`` and ``cache`` as typed: output, JSON, exit codes, hints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bpfoom.cli.main import main

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
    assert "largest-task    Kills the process" in out


def test_a_card_shows_its_parameters(typed):
    code, out, _ = typed("policies", "largest-cgroup")
    assert code == 0 and "--set min=" in out and "experimental" in out


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


def test_check(typed):
    code, out, _ = typed("check", "largest-task", "--btf", KERNEL, "--json")
    made = json.loads(out)
    assert code == 0 and made["policy"] == "largest-task" and made["bcc_version"]
    assert made["parameters"] == [{"name": "min", "type": "bytes", "value": "0", "live": False}]
    assert made["verifier"].startswith("not asked")


@pytest.mark.parametrize(
    ("words", "code", "message", "hint"),
    [
        (["policies", "largest-tsk"], 4, "no policy named 'largest-tsk'", "largest-task"),
        (["check", "/nosuch.bpf.c.j2"], 4, "cannot read policy", "bpfoom policies"),
        (["render", "largest-task", "--set", "mni=1"], 2, "unknown parameter 'mni'", "min"),
        (["render", "largest-task", "--set", "min=-1"], 2, "expected bytes", "bytes"),
        (["render", "largest-task", "--set", "min=0);x("], 2, "expected bytes", "bytes"),
        (["render", "largest-task", "--set", "min"], 2, "NAME=VALUE", ""),
        (["render", "largest-task", "--btf", "/nosuch"], 3, "/nosuch", "--btf"),
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
