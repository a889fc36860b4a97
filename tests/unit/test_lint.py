# SPDX-License-Identifier: Apache-2.0
"""Each trap of bcc, compiled by the real bcc, and the rule that refuses what comes out.

Needs python3-bpfcc, no root and no kernel support. The guest's suite runs the same file, there
against a much newer bcc and LLVM.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from bpfoom.btf.types import Btf
from bpfoom.compiler import build, decode, lint
from bpfoom.errors import CompileError, LintError
from bpfoom.policy import magic
from bpfoom.policy.cgen import Declarations

KERNEL = Path(__file__).parents[1] / "data" / "kernel.btf"
KFUNC = "static int (*const kfunc)(const void *p) = (void *)0x7f000001;\n"
MAP = "#define some_map ((void *)0x7f0a00f000000000ULL)\n"


def instructions(text):
    """The one program of ``text``, compiled without the flags that would refuse it earlier."""
    (compiled,) = build.compile_text(text, [], {}, cflags=()).values()
    return decode.instructions(compiled.insns)


def rules(text):
    insns = instructions(text)
    relocations = decode.relocations(insns, ["kfunc"], ["some_map"], "strings", 16)
    return [finding.rule for finding in lint.findings(insns, relocations)]


SOUND = f"""{KFUNC}{MAP}
#define text ((const char *)0x7f0b00f000000008ULL)
static void *(*const lookup)(const void *map, const void *key) = (void *)1;
int f(u64 *ctx)
{{
	u32 zero = 0;
	u64 *value = lookup(some_map, &zero);

	if (!value)
		return 0;
	*value += ctx[0];
	return kfunc(text);
}}
"""


def test_what_is_sound_passes_and_every_constant_is_found():
    insns = instructions(SOUND)
    found = decode.relocations(insns, ["kfunc"], ["some_map"], "strings", 16)
    assert [(r.kind, r.target, r.offset) for r in found] == [
        ("map", "some_map", 0),
        ("string", "strings", 8),
        ("kfunc", "kfunc", 0),
    ]
    assert lint.findings(insns, found) == []


TRAPS = {
    "string literal": (KFUNC + 'int f(u64 *ctx) { return kfunc("hello"); }', "static-data"),
    "second string literal": (
        KFUNC + 'int f(u64 *ctx) { return kfunc(ctx[0] ? "hello" : "good bye"); }',
        "static-data",
    ),
    "global": ("u64 n;\nint f(u64 *ctx) { n += ctx[0]; return n; }", "static-data"),
    "static": ("int f(u64 *ctx) { static u64 n; return n += ctx[0]; }", "static-data"),
    "table": (
        "static const u32 t[5] = {1, 7, 3, 99, 4};\nint f(u64 *ctx) { return t[ctx[0] & 3]; }",
        "static-data",
    ),
    "initialised array": (
        "int f(u64 *ctx) { u64 t[3] = {11, 22, 33}; return t[ctx[0] & 1]; }",
        "static-data",
    ),
    "function that is not inlined": (
        "static __attribute__((noinline)) int g(u64 x) { volatile u64 y = x; return y * 3; }\n"
        "int f(u64 *ctx) { return g(ctx[0]) + g(ctx[1]); }",
        "undeclared-call",
    ),
    "helper that allocates": (
        "static long (*const update)(void *m, void *k, void *v, u64 f) = (void *)2;\n"
        + MAP
        + "int f(u64 *ctx) { u64 v = 1; return update(some_map, &v, &v, 0); }",
        "helper",
    ),
    "helper that bcc writes in by itself": (
        "struct task_struct { u64 first; };\n"
        "int f(u64 *ctx) { return ((struct task_struct *)bpf_get_current_task())->first; }",
        "helper",
    ),
    "kfunc that this rendering did not hand out": (
        "static int (*const k)(void *p) = (void *)0x7f000009;\nint f(u64 *ctx) { return k(ctx); }",
        "magic-left",
    ),
    "kfunc as a value": (KFUNC + "int f(u64 *ctx) { return ctx[0] == (u64)kfunc; }", "magic-left"),
    "map that this rendering did not hand out": (
        KFUNC + "int f(u64 *ctx) { return kfunc((void *)0x7f0a00f000000007ULL); }",
        "magic-left",
    ),
    "string behind the end of the strings": (
        KFUNC + "int f(u64 *ctx) { return kfunc((void *)0x7f0b00f000000010ULL); }",
        "magic-left",
    ),
    "endless loop": (KFUNC + "int f(u64 *ctx) { for (;;) kfunc(ctx); }", "no-exit"),
    "endless loop on one path, and one that ends": (
        KFUNC + "int f(u64 *ctx) { while (1) if (kfunc(ctx)) break; "
        "if (ctx[0]) for (;;) kfunc(ctx); return 1; }",
        "no-exit",
    ),
}


def test_a_loop_that_may_end_is_left_to_the_verifier():
    assert rules(KFUNC + "int f(u64 *ctx) { for (;;) if (kfunc(ctx)) return 1; }") == []


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.replace(" ", "-"))
def test_trap(trap):
    text, rule = TRAPS[trap]
    assert rule in rules(text)


def test_undeclared_function():
    """Older clang only warns, and bcc emits ``call -1``; newer clang refuses it itself."""
    text = "int f(u64 *ctx) { return nothere(ctx[0]); }"
    try:
        assert "undeclared-call" in rules(text)
    except CompileError as error:
        assert "nothere" in error.detail
    with pytest.raises(CompileError, match="nothere"):
        build.compile_text(text, [("p.j2", 7)], {})


def test_a_narrow_result_is_cut():
    """gcc leaves the upper bits of a returned bool as they were, clang relies on them being 0."""
    text = "%s\nint f(u64 *ctx) { return bpf_task_is_oom_victim((void *)*ctx); }"
    with Btf.from_file(KERNEL) as btf:
        declared = Declarations(btf).kfunc("bpf_task_is_oom_victim", magic.kfunc(0))
    insns = instructions(text % declared)
    assert (insns[1].code, insns[1].imm) == (decode.CALL, magic.kfunc(0))
    assert (0x57, 0xFF) in [(insn.code, insn.imm) for insn in insns[2:]]  # and with 0xff

    trusting = "static bool (*const bpf_task_is_oom_victim)(void *) = (void *)0x7f000001;"
    assert 0xFF not in [insn.imm for insn in instructions(text % trusting)]


def test_memset_of_a_variable_size():
    """Kills the process under some LLVMs, emits a call to nowhere under others."""
    text = """int f(u64 *ctx)
    {
        char a[64];
        __builtin_memset(a, 0, ctx[0] & 63);
        return a[ctx[1] & 63];
    }"""
    with pytest.raises((CompileError, LintError), match="memset|undeclared-call|was killed"):
        insns = instructions(text)
        lint.check("f", insns, [])


def test_stack_over_512_bytes():
    text = "int f(u64 *ctx) { volatile char a[600]; a[ctx[0] % 600] = 1; return a[ctx[1] % 600]; }"
    with pytest.raises((CompileError, LintError), match="stack"):
        lint.check("f", instructions(text), [])


@pytest.mark.parametrize(
    "head",
    [
        "struct pt_regs { u64 di, si; };\n"
        "int f(struct pt_regs *ctx, u64 a, u64 b) { return a + b; }",
        "struct pt_regs { u64 di, si; };\nint f(struct pt_regs *ctx) { return ctx->di; }",
        "#define HEAD int f(u64 *ctx)\nHEAD { return 0; }",
        "int f(void) { return 0; }",
    ],
    ids=["three-parameters", "pt_regs", "macro", "none"],
)
def test_entry_functions_that_bcc_would_rewrite(head):
    with pytest.raises(LintError, match=r"int f\(u64 \*ctx\)"):
        instructions(head)


def test_jump_rules_on_bytes():
    """bcc never emits these, a damaged object may hold them."""

    def insn(code, off=0, imm=0, registers=0):
        return struct.pack("<BBhi", code, registers, off, imm)

    def found(raw):
        return [f.rule for f in lint.findings(decode.instructions(raw), [])]

    goto, done, move = 0x05, insn(0x95), insn(0xB7)
    assert found(move + done) == []
    assert found(insn(goto, off=5) + done) == ["jump", "no-exit"]
    lddw = insn(decode.LDDW, imm=1) + insn(0, imm=1)
    into_its_second_half = insn(goto, off=1) + lddw + done
    assert "jump" in found(into_its_second_half)
    assert found(move) == ["no-exit", "runs-off"]
    with pytest.raises(ValueError, match="whole instructions"):
        decode.instructions(b"\x95")
    with pytest.raises(ValueError, match="second half"):
        decode.instructions(insn(decode.LDDW))


def test_stack_rule_on_bytes():
    store = struct.pack("<BBhi", 0x7A, 10, -520, 0) + struct.pack("<BBhi", 0x95, 0, 0, 0)
    assert [f.rule for f in lint.findings(decode.instructions(store), [])] == ["stack"]


def test_an_error_lists_every_finding():
    text = KFUNC + 'int f(u64 *ctx) { kfunc("a"); return bpf_get_current_task(); }'
    insns = instructions(text)
    with pytest.raises(LintError) as caught:
        lint.check("f", insns, decode.relocations(insns, ["kfunc"], [], "strings", 0))
    assert "static-data" in caught.value.detail and "helper" in caught.value.detail
    assert caught.value.hint and caught.value.data["findings"]


def test_helpers_are_those_that_the_kernel_series_allows():
    series = Path(__file__).parents[2] / "kernel-patches"
    cases = re.compile(r"^\+\tcase BPF_FUNC_(\w+):$", re.MULTILINE)
    allowed = {
        name for patch in series.glob("*.patch") for name in cases.findall(patch.read_text())
    }
    assert allowed == set(lint.HELPERS.values())


def test_magic_constants_do_not_collide():
    assert magic.KFUNC_BASE <= magic.kfunc(500) <= magic.KFUNC_LIMIT < magic.MAP_HIGH
    assert magic.map_pointer(3) >> 32 != magic.string_pointer(3) >> 32
