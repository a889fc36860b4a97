# SPDX-License-Identifier: Apache-2.0
"""What authors meet: errors in their own lines, from clang and the verifier; what bpftool shows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bpfoom.btf.types import Btf
from bpfoom.compiler.build import compile_policy
from bpfoom.handler import info, pins
from bpfoom.handler.load import load
from bpfoom.policy import starter
from tests.guest.byhand import Trees, cli, cli_json

# The verifier's answers are the same on a debug kernel; compiling each policy takes minutes there.
pytestmark = pytest.mark.flavours("plain")

POLICY = """{#---
summary = "s"
kills = "k"
declines = "d"
cost = "c"
status = "experimental"
---#}
{%% extends "include/tasks.bpf.c.j2" %%}
{%% block score %%}
	u64 bytes = memory_of(mm);

%s
{%% endblock %%}
"""
# Line 12 of each policy is wrong. What is refused, by whom, and whose line that is.
OWN, SHARED = "mine.bpf.c.j2", "bpf/include/"
WRONG = {
    "clang, own block": ("\treturn bytes + task->nosuch;", "no member named 'nosuch'", OWN),
    "clang, open block": ("\tif (bytes) {\n\treturn bytes;", "a { that nothing closes", OWN),
    "clang, shared": ("#define tgid nosuch\n\treturn bytes;", "no member named 'nosuch'", SHARED),
    "verifier, own block": ("\treturn bytes + *(u64 *)(u64)task->tgid;", "verifier refused", OWN),
    "verifier, shared": (
        "\treturn bytes + memory_of((struct mm_struct *)(u64)task->tgid);",
        "verifier refused",
        SHARED,
    ),
}


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / OWN
    path.write_text(POLICY % "\treturn bytes + task->tgid;")
    return path


@pytest.mark.parametrize("case", WRONG)
def test_errors_name_the_templates_line(case: str, mine: Path) -> None:
    body, said, whose = WRONG[case]
    mine.write_text(POLICY % body)
    code, out, err = cli("check", str(mine))
    first = next(line for line in err.splitlines() if line.startswith("bpfoom: "))
    assert (code, out) == (1, "") and said in first
    path, line, _ = first.removeprefix("bpfoom: ").split(":", 2)
    if whose is OWN:
        assert (path, line) == (str(mine), "12")
    else:
        assert path.startswith(SHARED) and int(line) > 1


def test_the_error_has_place_and_log_as_data(mine: Path) -> None:
    mine.write_text(POLICY % WRONG["verifier, own block"][0])
    code, _, err = cli("check", str(mine), "--json")
    error = json.loads(err)
    assert code == 1 and error["error"] == "VerifierError"
    assert (error["data"]["path"], error["data"]["line"]) == (str(mine), 12)
    # The log itself speaks of the template, too.
    assert f" @ {OWN}:12" in error["detail"]


def test_bpftool_names_the_templates_lines(mine: Path, btf: Btf) -> None:
    made = compile_policy(str(mine), {})
    with load(made, btf, pins.require(), note={}) as loaded:
        (program,) = loaded.programs.values()
        number = info.prog_info(program).id
        dump = ["bpftool", "prog", "dump", "xlated", "id", str(number), "linum"]
        shown = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
    assert shown.startswith("int handle_out_of_memory(unsigned long long * ctx):")
    own = f"; return bytes + task->tgid; [file:{mine} line_num:12 line_col:0]"
    assert own in shown.splitlines()
    assert "[file:bpf/include/base.bpf.c.j2 line_num:" in shown


def test_check_tells_how_much_work_each_program_is(mine: Path) -> None:
    made = cli_json("check", str(mine))
    assert made["verifier"] == "accepts it"
    (program,) = made["programs"]
    # The verifier walks loops and branches more than once; the kernel rewrites calls to more.
    assert program["verified_instructions"] > program["instructions"] == made["instructions"]
    assert program["xlated_bytes"] > 4 * program["instructions"]
    assert program["total_states"] > 0 and program["peak_states"] > 0
    assert 0 < program["stack_bytes"] <= 512
    assert program["jited_bytes"] > 0
    _, out, _ = cli("check", str(mine))
    assert str(program["verified_instructions"]) in out.splitlines()[-1]


@pytest.mark.parametrize("kind", starter.kinds())
def test_a_starter_passes_the_verifier_and_its_scenario(kind: str, tmp_path: Path) -> None:
    code, _, err = cli("new", "mine", "--kind", kind, "-o", str(tmp_path))
    assert code == 0, err
    assert cli_json("check", str(tmp_path / "mine.bpf.c.j2"))["verifier"] == "accepts it"
    code, out, err = cli("scenario", "run", str(tmp_path / "mine.toml"), "--here")
    assert code == 0, out + err


def test_a_warm_attach_is_mostly_the_start_of_python(trees: Trees) -> None:
    """In processes of their own, as stages count from the start of one."""
    bpfoom = [sys.executable, "-m", "bpfoom.cli.main"]
    words = ["attach", "--cgroup", trees.box.name, "--policy", "largest-task", "--timings"]
    for _ in range(2):
        told = subprocess.run([*bpfoom, *words], capture_output=True, text=True, check=True).stderr
        cli("detach", "--all")
    rows = [re.split(r" {2,}", line) for line in told.splitlines()[1:]]
    stages = {name: columns for name, *columns in rows}
    total = float(stages.pop("total")[0])
    seconds = {name: float(columns[0]) for name, columns in stages.items()}
    assert stages["render"][-1] == stages["compile"][-1] == "cached"
    assert {"find policy", "compare", "maps", "relocate", "load and verify"} < set(stages)
    assert max(seconds, key=lambda name: seconds[name]) == "Python and imports", told
    # Each is rounded to a millisecond.
    assert abs(sum(seconds.values()) - total) < 0.02
