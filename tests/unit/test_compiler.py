# SPDX-License-Identifier: Apache-2.0
"""The front door: policies to handler objects, the confined child, and the cache."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bpfoom import cache
from bpfoom.compiler import build, child, source, store, tools
from bpfoom.compiler.object import HandlerObject
from bpfoom.errors import (
    BpfoomError,
    CompileError,
    LintError,
    MissingFeatureError,
    ParameterError,
    TemplateError,
    UsageError,
)
from bpfoom.policy import record, starter

KERNEL = Path(__file__).parents[1] / "data" / "kernel.btf"
CARD = """{#---
summary = "s"
kills = "k"
declines = "d"
cost = "c"
status = "experimental"
---#}
"""
SCORE = (
    CARD
    + """{% extends "include/tasks.bpf.c.j2" %}
{% block score %}
BODY
{% endblock %}
"""
)


@pytest.fixture(scope="module")
def warm_cache(tmp_path_factory):
    """A cache that has the shipped policies: most tests are about what comes after."""
    root = tmp_path_factory.mktemp("warm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root))
        compiled("largest-task")
        compiled("largest-cgroup")
    return root


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def warm(own_cache, warm_cache, tmp_path):
    shutil.copytree(warm_cache, tmp_path / "cache")


@pytest.fixture
def policy(tmp_path):
    def write(text, name="mine"):
        path = tmp_path / f"{name}.bpf.c.j2"
        path.write_text(text)
        return str(path)

    return write


def compiled(path, settings=None, **options):
    return build.compile_policy(path, settings or {}, btf=KERNEL, **options)


@pytest.mark.parametrize("name", ["largest-task", "largest-cgroup"])
@pytest.mark.parametrize("dry_run", [False, True])
def test_shipped_policies_compile(name, dry_run):
    made = compiled(name, dry_run=dry_run)
    (program,) = made.programs
    assert (program.name, program.type, program.member, program.sleepable) == (
        "handle_out_of_memory",
        "struct_ops",
        "handle_out_of_memory",
        True,
    )
    kfuncs = {kfunc.name for kfunc in made.kfuncs}
    killers = {"bpf_oom_kill_process", "bpf_oom_kill_cgroup"}
    assert bool(kfuncs & killers) is not dry_run
    assert {r.target for r in program.relocations if r.kind == "kfunc"} == kfuncs
    maps = {spec.name: spec for spec in made.maps}
    assert maps["bpfoom_history"].value_size == record.SIZE and maps["bpfoom_history"].shared
    assert ("bpfoom_strings" in maps) is not dry_run
    assert any(a.struct == "oom_control" and a.member == "memcg" for a in made.accesses)
    assert HandlerObject.from_bytes(made.to_bytes()) == made


def test_a_policy_with_a_new_score_is_ten_lines(policy):
    made = compiled(policy(SCORE.replace("BODY", "\treturn task->tgid;")))
    assert made.provenance.policy == "mine" and made.provenance.bcc_version


def test_the_documented_policy_compiles(policy):
    page = (Path(__file__).parents[2] / "docs" / "policies.md").read_text()
    (text,) = re.findall(r"```\n(\{#---.*?)```", page, re.DOTALL)
    assert compiled(policy(text)).programs


def test_live_parameters_are_in_the_object(policy):
    card = '\n[params.%s]\ntype = "%s"\ndefault = "%s"\nhelp = "h"\nlive = true\n---#}'
    text = SCORE.replace("---#}", card % ("least", "bytes", "1M"), 1)
    made = compiled(
        policy(text.replace("BODY", "\treturn memory_of(mm) > {{ param.least }};")),
        {"least": "3M"},
    )
    (parameter,) = made.parameters
    assert (parameter.value, parameter.live, parameter.offset) == ("3M", True, 0)
    (params,) = [spec for spec in made.maps if spec.name == "bpfoom_params"]
    assert params.initial == (3 << 20).to_bytes(8, "little")
    assert "bpfoom_params" in {r.target for r in made.programs[0].relocations}


# Errors


def test_clangs_errors_name_the_policys_line(policy):
    path = policy(SCORE.replace("BODY", "\treturn task->nosuch;"))
    with pytest.raises(CompileError, match="no member named 'nosuch'") as caught:
        compiled(path)
    assert f"{path}:10: error" in caught.value.message
    assert (caught.value.data["path"], caught.value.data["line"]) == (path, 10)
    assert "/virtual" not in caught.value.detail and "rendered.c" not in caught.value.detail


@pytest.mark.parametrize(
    ("body", "said", "line"),
    [
        ("\tu64 bytes = memory_of(mm);\n\tbytes++;", "does not return a value", 11),
        ("\tif (task->tgid)\n\t\treturn 1;\n", "does not return a value", 11),
        ("\treturn mm;", "pointer to integer conversion", 10),
        ("\tu64 a;\n\n\tif (task->tgid)\n\t\ta = 1;\n\treturn a;", "uninitialized", 12),
        ("\treturn task->tgid / 0;", "division by zero", 10),
        ("\tstruct mm_struct *m = task;\n\treturn memory_of(m);", "incompatible pointer", 10),
    ],
)
def test_what_would_decide_wrongly_is_refused_at_the_policys_line(policy, body, said, line):
    path = policy(SCORE.replace("BODY", body))
    with pytest.raises(CompileError, match=said) as caught:
        compiled(path)
    assert (caught.value.data["path"], caught.value.data["line"]) == (path, line)
    assert f":{line}: error:" not in caught.value.detail, "the message has it already"


@pytest.mark.parametrize("kind", ["task", "cgroup"])
def test_starters_compile(tmp_path, kind):
    made, _ = starter.write("mine", kind, tmp_path)
    assert compiled(str(made)).programs


@pytest.mark.parametrize(
    ("instead", "where", "hint"),
    [
        ("", "9: a block 'score' in a policy that extends no base", "include/tasks.bpf.c.j2"),
        ('{% extends "include/task.bpf.c.j2" %}', "8: no template", "mean: include/tasks.bpf.c.j2"),
    ],
)
def test_a_base_that_is_missed_is_named(policy, instead, where, hint):
    path = policy(SCORE.replace('{% extends "include/tasks.bpf.c.j2" %}', instead))
    with pytest.raises(TemplateError) as caught:
        compiled(path)
    assert caught.value.message.startswith(f"{path}:{where}")
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("body", "line", "what"),
    [
        ("\tif (mm) {\n\t\tif (task) {\n\t\t}\n\treturn 1;", 10, "a { that nothing closes"),
        ("\tchar open = '{'; /* { */\n\treturn open; }", 11, "a } that closes nothing"),
        ("\treturn 1;\n\t/* and so on", 11, "a comment that nothing ends"),
    ],
)
def test_what_a_block_leaves_open_is_told_there(policy, body, line, what):
    """clang's own words are of the base's next lines."""
    path = policy(SCORE.replace("BODY", body))
    with pytest.raises(CompileError) as caught:
        compiled(path)
    assert caught.value.message == f"{path}:{line}: error: {what}"
    assert caught.value.detail.startswith("bpf/include/")


def test_a_block_that_no_base_has_is_refused_where_it_stands(policy):
    path = policy(SCORE.replace("block score", "block scor"))
    with pytest.raises(TemplateError, match="no base has a block 'scor'") as caught:
        compiled(path)
    assert (caught.value.data["path"], caught.value.data["line"]) == (path, 9)
    assert "score" in caught.value.hint


def test_a_stack_too_large_is_told_with_the_way_out(policy):
    body = (
        "\tchar a[600];\n\n\tread_kernel_str(a, 600, task->group_leader->comm);\n"
        "\treturn a[task->tgid & 511];"
    )
    with pytest.raises(CompileError, match="512 bytes of stack") as caught:
        compiled(policy(SCORE.replace("BODY", body)))
    assert "percpu_array" in caught.value.hint
    assert "path" not in caught.value.data and "WARNING" not in caught.value.detail


@pytest.mark.parametrize(
    ("body", "way"),
    [
        ("\treturn bpf_mem_cgroup_usage(mm);", '{{ kfunc("bpf_mem_cgroup_usage") }}'),
        ("\treturn NR_SHMEM;", '{{ constants("ENUM", "NR_SHMEM") }}'),
        ("\treturn task->nice;", '{{ struct("task_struct", "nice") }}'),
        ("\treturn place->memcg;", "--show-line-map"),  # ours
        ("\treturn memory_of(mm) * 1.5;", "no floating point"),
        (
            "\tu64 n = memory_of(mm), sum = 0;\n\tfor (u64 i = 0; i < n; i++)\n"
            "\t\tsum += i * i;\n\treturn sum;",
            "128-bit",
        ),
    ],
)
def test_what_is_not_there_is_told_with_the_way_out(policy, body, way):
    path = policy(SCORE.replace("BODY", body))
    with pytest.raises(CompileError, match=rf"\A{re.escape(str(path))}:1\d: ") as caught:
        compiled(path)
    assert way in caught.value.hint


def test_assembly_is_refused_with_a_hint_of_its_own(policy):
    with pytest.raises(CompileError, match="assembly is refused") as caught:
        compiled(policy(SCORE.replace("BODY", '\tasm("x");')))
    assert "in C" in caught.value.hint


def test_a_btf_that_is_not_there_is_the_callers_mistake(tmp_path):
    with pytest.raises(UsageError, match="no.btf: No such file") as caught:
        build.compile_policy("largest-task", {}, btf=tmp_path / "no.btf")
    assert caught.value.exit_code == 2


def test_clangs_errors_name_the_included_files_line():
    origins = [("a.j2", 4), ("b.j2", 9)]
    with pytest.raises(CompileError) as caught:
        build.compile_text("int x;\nint f(u64 *ctx) { return 1 + ; }", origins, {})
    assert caught.value.message.startswith("b.j2:9: error: expected expression")


def test_lines_that_clang_quotes_have_the_templates_numbers():
    said = (
        "/virtual/main.c:102:9: error: no member named 'x'\n"
        "  102 |         return task->x;\n      |                ^\n"
        "/virtual/main.c:1:1: note: declared here\n    1 | struct task_struct;\n"
    )
    origins = [("p.j2", 8)] * 101 + [("p.j2", 9)]
    assert source.translate(said, origins) == (
        "p.j2:9: error: no member named 'x'\n"
        "    9 |         return task->x;\n      |                ^\n"
        "p.j2:8: note: declared here\n    8 | struct task_struct;\n"
    )


def test_late_errors_name_the_line_too():
    """bcc compiles its own rewriting of the text, whose lines are shifted."""
    text = (
        "\n\nint f(u64 *ctx)\n{\n\tchar a[64];\n\n"
        "\t__builtin_memset(a, 0, ctx[0] & 63);\n\treturn a[ctx[1] & 63];\n}"
    )
    origins = [("p.j2", n) for n in range(1, 10)]
    with pytest.raises((CompileError, LintError)) as caught:
        build.compile_text(text, origins, {})
        raise LintError("newer LLVM calls into nowhere; the lint finds it, see test_lint")
    if isinstance(caught.value, CompileError):
        assert "p.j2:7" in caught.value.message


def test_a_literal_in_a_policy_is_a_lint_error(policy):
    body = '\tchar *names = "abcdefgh";\n\n\treturn names[task->tgid & 7];'
    with pytest.raises(LintError, match="string literal"):
        compiled(policy(SCORE.replace("BODY", body)))


def test_a_policy_without_the_entry_is_refused(policy):
    with pytest.raises(LintError, match="handle_out_of_memory"):
        compiled(policy(CARD + "int other(u64 *ctx) { return 0; }"))


def test_an_unpatched_kernel_is_missing_the_ops(tmp_path):
    from bpfoom.btf.reduce import Reducer
    from bpfoom.btf.types import Btf, Kind

    with Btf.from_file(KERNEL) as btf:
        reducer = Reducer(btf, ["task_struct"])
        reducer.keep(btf.find("task_struct", Kind.STRUCT))
    other = tmp_path / "other.btf"
    other.write_bytes(reducer.to_bytes())
    with pytest.raises(MissingFeatureError, match="no struct bpf_oom_ops") as caught:
        build.compile_policy("largest-task", {}, btf=other)
    assert "bpfoom kernel build" in caught.value.hint


def test_unknown_parameter_before_any_child():
    with pytest.raises(ParameterError):
        compiled("largest-task", {"nosuch": "1"})


@pytest.mark.parametrize(
    "line",
    [
        "#include </etc/shadow>",
        '  #  include "/etc/shadow"',
        '#/* */include "/etc/shadow"',
        '/* */#include "/etc/shadow"',
        '%:include "/etc/shadow"',
        '??=include "/etc/shadow"',
        '#inc\\\nlude "/etc/shadow"',
        '#\\\n include "/etc/shadow"',
        '/*\\\n*/ #include "/etc/shadow"',
        '#define NAME "/etc/shadow"\n#include NAME',
        "#include_next <x.h>",
        '#import "x.h"',
        '#embed "/etc/shadow"',
        '#pragma GCC dependency "/etc/shadow"',
        '_Pragma("once")',
        "#if __has_include(</etc/shadow>)\n#endif",
        "#if __has_\\\ninclude(</etc/shadow>)\n#endif",
        "#define CAT(a, b) a##b",
        '#line 1 "/etc/shadow"',
        'asm(".incbin \\"/etc/shadow\\"");',
        'static void f(void) { asm volatile("" ".include \\"x\\""); }',
        '__asm__ (".include \\"/etc/shadow\\"");',
        "#define A asm\n",
        "// a comment\\\n\n#include <x.h>",
        "char c = '\"'; /* \" */\n#include <x.h>",
    ],
)
def test_reading_a_file_is_refused_with_its_line(line):
    text = f"int a;\nint b;\n{line}\nint f(u64 *ctx) {{ return 0; }}"
    origins = [("p.j2", n) for n in range(1, text.count("\n") + 2)]
    with pytest.raises(CompileError, match="is refused") as caught:
        source.check(text, origins)
    assert caught.value.data["path"] == "p.j2"
    assert 3 <= caught.value.data["line"] <= 5


@pytest.mark.parametrize(
    "text",
    [
        "/* #include <x.h> */",
        "// #include <x.h>",
        'char *s = "#include /*"; int include;',
        '#define barrier() asm volatile("" ::: "memory")',
        "#ifdef X\n#elif defined(Y)\n#else\n#endif\n#\n",
        "#pragma unroll\n#pragma clang loop unroll(full)",
        "int x = 5 ? 1 : 2; /* don't */ int y; // it's\n",
    ],
)
def test_what_reads_no_file_passes(text):
    source.check(text, [])


# The child


def test_the_child_sees_no_file_even_past_the_source_check():
    """The second line of defence, with the first one out of the way."""
    request = {"text": '#include "/etc/passwd"\nint f(u64 *ctx) { return 0; }', "cflags": []}
    reply = child.ask(child.COMPILE, request)
    assert "failed" in reply.answer
    if os.geteuid() == 0 or subprocess.run(["unshare", "--user", "true"]).returncode == 0:
        assert "file not found" in reply.diagnostics
        assert "root:" not in reply.diagnostics


def _compile_for_long(begun: multiprocessing.synchronize.Event) -> None:
    with child._directory():
        begun.set()
        time.sleep(600)


def test_what_a_killed_compile_leaves_the_next_one_sweeps(tmp_path, monkeypatch):
    monkeypatch.setattr(child.tempfile, "tempdir", str(tmp_path))
    context = multiprocessing.get_context("fork")
    begun = context.Event()
    other = context.Process(target=_compile_for_long, args=(begun,))
    other.start()
    assert begun.wait(60)
    (made,) = tmp_path.iterdir()
    (tmp_path / "somebody-elses").mkdir()
    with child._directory() as directory:
        assert made.exists(), "somebody is at work in it"
        assert (Path(directory) / "stubs").is_dir()
    other.kill()
    other.join()
    with child._directory():
        assert not made.exists()
    assert [left.name for left in tmp_path.iterdir()] == ["somebody-elses"]


def test_no_room_for_the_child_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(child.tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(BpfoomError, match="no directory can be made for the compiler"):
        child.ask(child.COMPILE, {"text": "", "cflags": []})


PROBE = """
import json, os, sys
from bpfoom.compiler.jail import Limits, lock_down
status = open("/proc/self/status")
lock_down(sys.argv[1], Limits(5, 1 << 30))
fields = {line.partition(":")[0]: line.partition(":")[2].strip() for line in status}
found = {k: fields[k] for k in ("Uid", "CapEff", "CapPrm", "CapBnd", "NoNewPrivs")}
found["groups"] = os.getgroups()
found["files"] = os.listdir("/")
try:
    open("/new", "w")
except OSError as error:
    found["write"] = type(error).__name__
print(json.dumps(found))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="identity and capabilities are root's to lose")
def test_what_root_loses(tmp_path):
    (tmp_path / "stubs").mkdir()
    tmp_path.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    found = json.loads(done.stdout)
    assert set(found["Uid"].split()) == {"65534"} and found["groups"] == []
    assert {int(found[k], 16) for k in ("CapEff", "CapPrm", "CapBnd")} == {0}
    assert found["NoNewPrivs"] == "1"
    assert found["files"] == ["stubs"] and found["write"] == "PermissionError"


@pytest.mark.parametrize(
    "loop",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% set x = 'a' * 1000000000 * 1000 %}",
        "{% set ns = namespace(x='a') %}"
        "{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    ],
)
def test_a_template_without_end_is_refused(policy, loop, monkeypatch):
    quick = child.Mode("render", 1, 512 << 20, 30.0, TemplateError)
    monkeypatch.setattr(child, "RENDER", quick)
    path = policy(CARD + "int a;\n" + loop)
    with pytest.raises(TemplateError, match=f"{path}:9: rendering takes too"):
        compiled(path)


def test_a_template_stuck_in_one_operation_is_killed(policy, monkeypatch):
    quick = child.Mode("render", 1, 512 << 20, 30.0, TemplateError)
    monkeypatch.setattr(child, "RENDER", quick)
    with pytest.raises(TemplateError, match="was killed|takes too"):
        compiled(policy(CARD + "{% set n = 9 ** 99999999 %}"))


def test_a_late_child_is_killed(policy, monkeypatch):
    late = child.Mode("render", 60, 512 << 20, 0.01, TemplateError)
    monkeypatch.setattr(child, "RENDER", late)
    with pytest.raises(TemplateError, match="did not answer"):
        compiled(policy(CARD))


def test_a_compiler_that_is_killed_says_so(monkeypatch):
    small = child.Mode("compile", 10, 64 << 20, 60.0, CompileError)
    monkeypatch.setattr(child, "COMPILE", small)
    with pytest.raises(CompileError, match="compile child") as caught:
        build.compile_text("int f(u64 *ctx) { return 0; }", [], {})
    assert "more than 64 MiB" in caught.value.hint


@pytest.mark.parametrize(
    ("status", "last_words", "cause"),
    [
        (-signal.SIGXCPU, "", "more than 30 s of CPU: look for a loop"),
        (-signal.SIGKILL, "", "dmesg"),
        (1, "MemoryError", "more than 1024 MiB"),
        (-signal.SIGSEGV, "", "its last words"),
    ],
)
def test_a_child_that_died_is_told_by_how_it_died(status, last_words, cause):
    error = child._died(child.RENDER, status, last_words)
    assert isinstance(error, TemplateError) and cause in error.hint


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("\twhile (1)\n\t\t;\n\treturn 0;", 10),
        ("\tvolatile u64 n = 0;\n\n\tfor (;;) {\n\t\tn++;\n\t}\n\treturn n;", 12),
        ("\tif (!mm)\n\t\treturn 0;\nagain:\n\tgoto again;", 13),
    ],
)
def test_a_loop_without_an_end_is_told_with_its_line(policy, body, line):
    """Without the verifier, which would need such a kernel, and root."""
    path = policy(SCORE.replace("BODY", body))
    with pytest.raises(LintError, match="a loop without an end") as caught:
        compiled(path)
    assert (caught.value.data["path"], caught.value.data["line"]) == (str(path), line)


# The cache


def entries(kind=build.OBJECTS):
    return [entry for entry in cache.entries() if entry.kind == kind]


@pytest.fixture
def no_child(monkeypatch):
    """A child is a failure."""

    def never(mode, *_):
        raise AssertionError(f"a {mode.name} child")

    monkeypatch.setattr(child, "ask", never)


def test_a_known_policy_needs_no_child(warm, no_child):
    assert compiled("largest-task").programs
    with pytest.raises(AssertionError, match="render"):
        compiled("largest-task", {"min": "1M"})


def test_another_kernel_is_rendered_anew(warm, no_child, tmp_path):
    other = tmp_path / "other.btf"
    other.write_bytes(KERNEL.read_bytes() + b"\0")
    with pytest.raises(AssertionError, match="render"):
        build.compile_policy("largest-task", {}, btf=other)


def test_another_compiler_compiles_anew(warm, no_child, monkeypatch):
    monkeypatch.setattr(tools, "find", lambda: tools.Tools("0.99", "99"))
    with pytest.raises(AssertionError, match="compile"):
        compiled("largest-task")


@pytest.mark.parametrize("kind", [build.OBJECTS, build.RENDERS])
@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b"\xff", None])
def test_a_damaged_entry_is_not_taken(warm, kind, damage):
    entry = entries(kind)[0]
    sound = entry.path.read_bytes()
    assert store.load(kind, entry.key) is not None
    entry.path.write_bytes(sound.replace(b"00", b"01", 1) if damage is None else damage)
    assert store.load(kind, entry.key) is None


def test_a_damaged_entry_is_made_anew(warm):
    before = {entry.path: entry.path.read_bytes() for entry in cache.entries()}
    for path in before:
        path.write_bytes(b"damage")
    assert compiled("largest-task").programs and compiled("largest-cgroup").programs
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("kind", [build.OBJECTS, build.RENDERS])
def test_an_entry_under_another_name_is_not_taken(warm, kind):
    one, two = entries(kind)
    one.path.write_bytes(two.path.read_bytes())
    assert store.load(kind, one.key) is None and store.load(kind, two.key) is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root refuses others' entries")
@pytest.mark.parametrize(("owner", "mode"), [(65534, 0o600), (0, 0o666)])
def test_root_takes_no_entry_that_somebody_else_can_write(warm, owner, mode):
    for kind in (build.OBJECTS, build.RENDERS):
        entry = entries(kind)[0]
        os.chown(entry.path, owner, owner)
        entry.path.chmod(mode)
        assert store.load(kind, entry.key) is None


def test_a_full_disk_costs_only_the_cache(monkeypatch):
    """/dev/full is the disk: every write to it fails with ENOSPC."""

    def no_space(descriptor, mode):
        os.close(descriptor)
        return open("/dev/full", mode, buffering=0)

    monkeypatch.setattr(cache.os, "fdopen", no_space)
    assert compiled("largest-task").programs
    assert entries() == entries(build.RENDERS) == []
    for kind in (build.OBJECTS, build.RENDERS):
        assert list((cache.root() / kind).iterdir()) == []


def test_the_versions_are_those_of_the_libraries_that_are_loaded():
    import ctypes

    ctypes.CDLL(tools.SONAME)
    loaded = Path("/proc/self/maps").read_text()
    found = tools.find()
    assert f"libbcc.so.{found.bcc}" in loaded
    assert re.search(rf"libLLVM[-.](so\.)?{re.escape(found.llvm)}", loaded)
