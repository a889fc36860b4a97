# SPDX-License-Identifier: Apache-2.0
"""Stages and their times, in a process of their own each: the recorder belongs to the process."""

from __future__ import annotations

import json
import subprocess
import sys

from bpfoom.cli.timings import tell
from bpfoom.timings import stage

ASK = """
import json, os, time
from bpfoom import timings
def spin(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
%s
stages = timings.report()
age = time.clock_gettime(time.CLOCK_BOOTTIME) - timings._process_start()
print(json.dumps([age, [[s.name, s.seconds, s.cpu, s.note] for s in stages]]))
"""


def reported(code: str) -> tuple[float, dict[str, tuple[float, float, str]]]:
    """The age of the process that ran the code, and its stages."""
    done = subprocess.run([sys.executable, "-c", ASK % code], capture_output=True, check=True)
    age, stages = json.loads(done.stdout)
    return age, {name: (seconds, cpu, note) for name, seconds, cpu, note in stages}


def test_all_of_the_processes_time_is_in_some_stage() -> None:
    age, stages = reported("with timings.stage('sleep'): time.sleep(0.2)")
    assert list(stages) == ["Python and imports", "sleep", "other"]
    assert stages["sleep"][0] >= 0.2 and stages["sleep"][1] < 0.2
    assert stages["Python and imports"][0] > 0
    # The start of a process is known to a clock tick only.
    assert abs(sum(seconds for seconds, _, _ in stages.values()) - age) < 0.1


def test_an_inner_stage_is_not_counted_twice() -> None:
    _, stages = reported(
        "with timings.stage('outer'):\n"
        "    with timings.stage('inner'): time.sleep(0.3)\n"
        "    timings.note('cached')\n"
    )
    assert stages["inner"][0] >= 0.3 > stages["outer"][0]
    assert (stages["outer"][2], stages["inner"][2]) == ("cached", "")


def test_runs_of_one_stage_add_up() -> None:
    code = "for _ in range(3):\n    with timings.stage('part'): time.sleep(0.1)"
    assert reported(code)[1]["part"][0] >= 0.3


def test_a_stage_that_fails_ends() -> None:
    _, stages = reported(
        "try:\n    with timings.stage('fails'): raise ValueError\nexcept ValueError: pass\n"
        "with timings.stage('later'): time.sleep(0.2)"
    )
    assert stages["later"][0] >= 0.2 > stages["fails"][0]


def test_the_cpu_time_of_children_counts() -> None:
    code = (
        "with timings.stage('child'):\n"
        "    child = os.fork()\n"
        "    if not child: spin(0.2); os._exit(0)\n"
        "    os.waitpid(child, 0)\n"
    )
    assert reported(code)[1]["child"][1] >= 0.2


def test_what_is_told(capsys) -> None:
    with stage("a stage of its own"):
        pass
    tell()
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    assert shown.out == "" and lines[0].split() == ["stage", "seconds", "cpu"]
    assert lines[1].startswith("Python and imports ") and lines[-1].startswith("total ")
    assert any(line.startswith("a stage of its own ") for line in lines)
