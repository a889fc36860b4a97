# SPDX-License-Identifier: Apache-2.0
"""Which template line each instruction is from: of text compiled by the real bcc, and of policies.

The guest's suite runs the same file, there against a much newer bcc and LLVM.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from bpfoom.compiler import build, decode, lineinfo
from bpfoom.compiler.object import Line, line_of
from bpfoom.errors import LintError

KERNEL = Path(__file__).parents[1] / "data" / "kernel.btf"
POLICY = """{#---
summary = "s"
kills = "k"
declines = "d"
cost = "c"
status = "experimental"
---#}
{%% extends "include/tasks.bpf.c.j2" %%}
{%% block score %%}
%s
{%% endblock %%}
"""

TEXT = """
typedef unsigned long long word;

static inline __attribute__((always_inline)) word
inner(u64 *ctx)
{
	word x = ctx[0];

	return x > 5 ? ctx[1] : 0;
}

int one(u64 *ctx)
{
	word r = inner(ctx);

	if (r > 3)
		r += ctx[2];
	return r;
}

#define twice(x) \\
	((x) + \\
	(x))

int two(u64 *ctx)
{
	/* A comment
	with { braces }; */
	word r = twice(ctx[0]);

	r *= ctx[1];
	return inner(ctx)
		+ r;
}
"""
ORIGINS = [("p.j2", 100 + number) for number in range(1, TEXT.count("\n") + 2)]


@pytest.fixture(scope="module")
def compiled() -> dict[str, build.Compiled]:
    return build.compile_text(TEXT, ORIGINS, {})


def starts(program: build.Compiled) -> list[int]:
    return [insn.index for insn in decode.instructions(program.insns)]


def lines_of(program: build.Compiled) -> tuple[Line, ...]:
    return lineinfo.located(program.numbers, TEXT, ORIGINS, starts(program))


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("one", {"if (r > 3)", "r += ctx[2];", "return r;"}),
        ("two", {"word r = twice(ctx[0]);", "r *= ctx[1];", "return inner(ctx)", "+ r;"}),
    ],
)
def test_every_program_has_the_lines_that_it_was_written_on(
    compiled: dict[str, build.Compiled], name: str, own: set[str]
) -> None:
    lines = lines_of(compiled[name])
    inlined = {"word x = ctx[0];", "return x > 5 ? ctx[1] : 0;"}
    texts = {line.text for line in lines}
    # Which statement a merged or moved instruction counts to, is LLVM's to say; no other line is.
    assert len(texts & own) >= 2 and texts & inlined
    assert texts <= own | inlined | {"{", "}", "word r = inner(ctx);"}
    for line in lines:
        assert line.path == "p.j2" and TEXT.split("\n")[line.line - 101].strip() == line.text


def test_lines_are_as_the_kernel_wants_them(compiled: dict[str, build.Compiled]) -> None:
    for program in compiled.values():
        lines = lines_of(program)
        assert lines[0].insn == 0
        assert all(one.insn < other.insn for one, other in pairwise(lines))
        assert {line.insn for line in lines} <= set(starts(program))


def test_the_first_instruction_gets_the_first_line() -> None:
    found = lineinfo.located([(2, 2), (5, 1), (6, 2)], "a\n b", [("p", 1), ("q", 2)], [0, 2, 4, 6])
    assert found == (Line(0, "q", 2, "b"), Line(6, "q", 2, "b"))
    assert lineinfo.located([(0, 3)], "a\nb", [("p", 1)], [0]) == ()


def test_what_clang_says_stands_apart() -> None:
    said = "warning: x // Line 3\n; y // Line 4\n"
    dump = (
        "Disassembly of function f\n"
        "; u64 a; // Line 7 // Line  12\n"
        "   0:\tb7 00 00 00 00 00 00 00\tr0 = 0\n"
        "   1:\t18 01 00 00 03 00 00 00\tr1 = 9154130223376105475 ll\n"
        ";  // Line 4096\n"
        "   3:\t95 00 00 00 00 00 00 00\texit\n"
        "\n"
    )
    other = "Disassembly of function g\n   0:\t95 00 00 00 00 00 00 00\texit\n"
    assert lineinfo.split(said + dump + other + "later\n") == (
        said + "later\n",
        {"f": [(0, 12), (3, 4096)], "g": []},
    )


def test_the_line_of_an_instruction() -> None:
    one, two = Line(0, "p", 1, "a"), Line(4, "p", 2, "b")
    assert [line_of([one, two], insn) for insn in (0, 3, 4, 99)] == [one, one, two, two]
    assert line_of([], 0) is None


def test_a_policys_own_block_and_the_shared_text_both_have_lines(tmp_path: Path) -> None:
    policy = tmp_path / "mine.bpf.c.j2"
    score = "\tif (task->tgid == {{ 4 * 4 }})\n\t\treturn task->pid + 7;\n\treturn 0;"
    policy.write_text(POLICY % score)
    (program,) = build.compile_policy(str(policy), {}, btf=KERNEL).programs
    assert "bpf/include/base.bpf.c.j2" in {line.path for line in program.lines}
    own = {line.line: line.text for line in program.lines if line.path == str(policy)}
    assert own[10] == "if (task->tgid == 16)" and own[11] == "return task->pid + 7;"


def test_the_cache_keeps_the_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = build.compile_policy("largest-task", {}, btf=KERNEL)
    monkeypatch.setattr(build.child, "ask", None)
    assert build.compile_policy("largest-task", {}, btf=KERNEL) == made


def test_the_lint_names_the_templates_line(tmp_path: Path) -> None:
    policy = tmp_path / "mine.bpf.c.j2"
    policy.write_text(POLICY % '\tchar *names = "abcdefgh";\n\n\treturn names[task->tgid & 7];')
    with pytest.raises(LintError, match="string literal") as caught:
        build.compile_policy(str(policy), {}, btf=KERNEL)
    assert caught.value.message.startswith(f"{policy}:12: handle_out_of_memory: ")
    assert (caught.value.data["path"], caught.value.data["line"]) == (str(policy), 12)
