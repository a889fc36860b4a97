# SPDX-License-Identifier: Apache-2.0
"""Policies before the real verifier, and the reduced BTF of tests/data against the real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpfoom.btf.types import Btf
from bpfoom.cli.main import main
from bpfoom.compiler.build import compile_policy
from bpfoom.handler import compare
from bpfoom.policy.find import find_policies

# The verifier's answers, which are the same; compiling each policy takes minutes there.
pytestmark = pytest.mark.flavours("plain")

REDUCED = Path(__file__).parents[1] / "data" / "kernel.btf"
NAMES = [policy.name for policy in find_policies()]

CARD = """{#---
summary = "s"
kills = "k"
declines = "d"
cost = "c"
status = "experimental"
%s
---#}
"""
LIVE = '[params.least]\ntype = "bytes"\ndefault = "1M"\nhelp = "h"\nlive = true'

ACCEPTED = {
    "live-parameter": CARD % LIVE
    + """{% extends "include/tasks.bpf.c.j2" %}
{% block score %}
	u64 bytes = memory_of(mm);

	return bytes > {{ param.least }} ? bytes : 0;
{% endblock %}
""",
    "filtered-cgroups": CARD % ""
    + """{% extends "include/cgroups.bpf.c.j2" %}
{% block filter %}
	return memcg->css.cgroup->level > 1;
{% endblock %}
{% block score %}
	return usage_without_cache(memcg);
{% endblock %}
""",
}
LONG = (
    CARD % ""
    + """{% extends "include/tasks.bpf.c.j2" %}
{% block score %}
	volatile u64 n = task->tgid;
	for (volatile u64 i = 0; i < n; i++)
		;
	return n;
{% endblock %}
"""
)
REFUSED = (
    CARD % ""
    + """{% extends "include/tasks.bpf.c.j2" %}
{% block score %}
	return *(u64 *)(u64)task->tgid;
{% endblock %}
"""
)


def check(policy: str, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["check", policy, *more])
    shown = capsys.readouterr()
    return int(ended.value.code or 0), shown.out, shown.err


@pytest.mark.parametrize("name", NAMES)
def test_shipped_policies_pass_the_verifier(name, capsys):
    code, out, err = check(name, capsys)
    assert code == 0 and "accepts it" in out, err


def test_a_dry_run_passes_the_verifier(capsys):
    code, out, err = check("largest-cgroup", capsys, "--dry-run")
    assert code == 0 and "accepts it" in out, err


@pytest.mark.parametrize("name", ACCEPTED)
def test_policies_that_use_what_the_bases_offer(name, tmp_path, capsys):
    path = tmp_path / f"{name}.bpf.c.j2"
    path.write_text(ACCEPTED[name])
    code, out, err = check(str(path), capsys)
    assert code == 0 and "accepts it" in out, err


def test_a_refused_policy_shows_the_verifiers_whole_explanation(tmp_path, capsys):
    path = tmp_path / "wild.bpf.c.j2"
    path.write_text(REFUSED)
    code, out, err = check(str(path), capsys)
    assert (code, out) == (1, "")
    _, first, *log, last = err.rstrip("\n").split("\n")
    assert first.startswith(f"bpfoom: {path}:11: the kernel's verifier refused ")
    assert any("invalid mem access 'scalar'" in line for line in log)
    assert any(line.startswith("processed ") for line in log)
    assert last.startswith("hint: ")


def test_a_loop_that_the_verifier_gives_up_on_is_named(tmp_path, capsys):
    """It names no place itself, after a million instructions."""
    path = tmp_path / "long.bpf.c.j2"
    path.write_text(LONG)
    code, _, err = check(str(path), capsys)
    assert code == 1
    assert f"bpfoom: {path}:12: the kernel's verifier refused " in err and "too large" in err
    assert err.rstrip("\n").split("\n")[-1].startswith("hint: a loop needs a bound")


@pytest.mark.parametrize("name", NAMES)
def test_the_reduced_btf_says_what_the_kernel_says(name):
    with Btf.from_file() as running:
        compare.check(compile_policy(name, {}, btf=REDUCED), running)
