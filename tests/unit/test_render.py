# SPDX-License-Identifier: Apache-2.0
"""Templates to C: what they can ask for, what they cannot do, and how errors name their place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bpfoom.btf.types import Btf
from bpfoom.errors import MissingFeatureError, TemplateError
from bpfoom.policy import record
from bpfoom.policy.functions import Scope
from bpfoom.policy.render import MAX_OUTPUT, Template, render
from bpfoom.policy.values import Setting

KERNEL = Path(__file__).parents[1] / "data" / "kernel.btf"


@pytest.fixture(scope="module")
def btf():
    with Btf.from_file(KERNEL) as opened:
        yield opened


@pytest.fixture
def rendered(btf):
    def run(text, *, settings=(), others=None, dry_run=False):
        templates = {"main": Template(text, "dir/main.j2")}
        templates |= {name: Template(t, f"bpf/{name}") for name, t in (others or {}).items()}
        return render(templates, [Scope("main", tuple(settings))], btf, dry_run=dry_run)

    return run


def test_slice_has_the_members_at_the_kernels_offsets(btf, rendered):
    found = rendered('{{ struct("task_struct", "comm", "tgid") }}')
    assert "char comm[16];" in found.text and "s32 tgid;" in found.text
    assert "signal" not in found.text
    place = btf.place("task_struct", "tgid")
    assert {"struct": "task_struct", "member": "tgid", "offset": place.offset, "size": 32} in [
        {k: v for k, v in access.items() if k != "type"} for access in found.facts.accesses
    ]
    size = btf.size_of(btf.struct_id("task_struct"))
    assert f"_Static_assert(sizeof(struct task_struct) == {size}" in found.text


def test_members_asked_for_later_stand_in_the_first_place(btf, rendered):
    found = rendered('{{ struct("task_struct", "tgid") }}A\n{{ struct("task_struct", "comm") }}B\n')
    first, second = found.text.split("A\n")
    assert "s32 tgid;" in first and "char comm[16];" in first
    assert second == "B\n"
    assert [a["member"] for a in found.facts.accesses] == ["tgid", "comm"]
    assert found.text == rendered('{{ struct("task_struct", "tgid", "comm") }}A\nB\n').text


def test_a_member_that_is_missing_is_named_where_it_was_asked_for(rendered):
    with pytest.raises(MissingFeatureError) as caught:
        rendered('{{ struct("task_struct", "tgid") }}\n\n{{ struct("task_struct", "nosuch") }}')
    assert "dir/main.j2:3" in caught.value.detail


def test_declarations_are_written_once(rendered):
    twice = '{{ kfunc("bpf_task_release") }}{{ constants("node_stat_item", "NR_SHMEM") }}' * 2
    found = rendered(twice)
    assert found.text.count("bpf_task_release") == found.text.count("NR_SHMEM") == 1
    assert len(found.facts.kfuncs) == len(found.facts.enums) == 1


def test_param_means_the_parameters_of_the_template_it_stands_in(btf):
    templates = {
        "outer": Template(
            "{% extends param.inner %}{% block b %}{{ param.x }} {{ super() }}{% endblock %}",
            "o.j2",
        ),
        "inner": Template("{% block b %}{{ param.x }}{% endblock %}{{ outer.param }}", "i.j2"),
    }
    scopes = [
        Scope("outer", (Setting("inner", "policy", "inner", False), Setting("x", "int", 1, True))),
        Scope("inner", (Setting("x", "int", 2, True, "inner."),)),
    ]
    with pytest.raises(TemplateError, match="'outer' is undefined"):
        render(templates, scopes, btf)
    templates["inner"] = Template(
        "{{ params_layout() }}{% block b %}{{ param.x }}{% endblock %}", "i.j2"
    )
    found = render(templates, scopes, btf)
    assert "((s64)call->params->x) ((s64)call->params->inner__x)" in found.text
    assert found.facts.maps[0]["initial"] == "01" + "00" * 7 + "02" + "00" * 7


def test_slice_of_a_nested_member(rendered):
    found = rendered('{{ struct("cgroup_subsys_state", "online_cnt.counter") }}')
    assert re.search(r"struct \{\s+s32 counter;\s+\} online_cnt;", found.text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{{ struct("mem_cgroup", "css") }}', "whole struct cgroup_subsys_state"),
        ('{{ struct("a b") }}', "not an identifier"),
        ('{{ map("Big Name", "array", value_size=8, entries=1) }}', "no name for a map"),
        ('{{ string("über") }}', "printable ASCII"),
        ('{{ fail("not today") }}', "not today"),
        ("{{ nosuch }}", "nosuch"),
        ("{{ param.nosuch }}", "nosuch"),
        ("{{ none }}", "cannot be written as C"),
        ("{{ [1, 2] }}", "cannot be written as C"),
        ('{% include "nosuch" %}', "no template nosuch"),
        ('{% include "/etc/shadow" %}', "no template /etc/shadow"),
        ('{% include "../main" %}', "no template"),
        ("{{ ''.__class__ }}", "unsafe|undefined|SecurityError"),
        ("{{ struct.__self__ }}", "unsafe|undefined|SecurityError"),
        ('{% extends "main" %}', "circle|RecursionError"),
        ("{% for %}", "expected token|Expected"),
        ("{% block x %}", "endblock"),
    ],
)
def test_errors_name_file_and_line(rendered, text, message):
    with pytest.raises(TemplateError, match=message) as caught:
        rendered(f"int a;\nint b;\n{text}\n")
    assert caught.value.message.startswith("dir/main.j2:")
    assert caught.value.data["path"] == "dir/main.j2"
    if "extends" not in text:
        assert caught.value.data["line"] in (3, 4)


def test_error_in_an_included_template_names_that_one(rendered):
    with pytest.raises(TemplateError) as caught:
        rendered('\n{% include "include/x" %}', others={"include/x": "\n\n{{ nosuch }}"})
    assert (caught.value.data["path"], caught.value.data["line"]) == ("bpf/include/x", 3)


def test_a_kernel_without_the_kfunc_is_named(rendered):
    with pytest.raises(MissingFeatureError, match="bpf_oom_teleport") as caught:
        rendered('{{ kfunc("bpf_oom_teleport") }}')
    assert "main.j2:1" in caught.value.detail and caught.value.exit_code == 3


@pytest.mark.parametrize(
    "text",
    [
        "{% for i in range(90000) %}0123456789abcdef\n{% endfor %}",
        "{% for i in range(900) %}{% for j in range(900) %}line\n{% endfor %}{% endfor %}",
    ],
)
def test_endless_output_is_refused(rendered, text):
    with pytest.raises(TemplateError, match=f"more than {MAX_OUTPUT >> 10} KiB"):
        rendered(text)


def test_control_characters_are_refused(rendered):
    with pytest.raises(TemplateError, match="control character") as caught:
        rendered("int a;\n\x01int b;")
    assert caught.value.data["line"] == 2


def test_same_input_same_text(rendered):
    text = '{{ struct("task_struct", "mm", "signal", "comm") }}{{ kfunc("bpf_task_acquire") }}'
    assert rendered(text).text == rendered(text).text
    with pytest.raises(TemplateError):
        rendered("{{ [1, 2, 3] | random }}")


def test_parameters(rendered):
    settings = [
        Setting("min", "bytes", 5 << 30, False),
        Setting("deep", "bool", True, False),
        Setting("mode", "enum", "fast", False),
    ]
    found = rendered(
        "{{ param.min }} {{ param.deep }} {% if param.mode == 'fast' %}F{% endif %}",
        settings=settings,
    )
    assert found.text == f"{5 << 30}ULL 1 F"


@pytest.mark.parametrize(
    "use",
    [
        "{{ n }}",
        "{{ n ~ 'x' }}",
        "{{ n | upper }}",
        "{{ n | string }}",
        "{{ '%s' % n }}",
        "{{ '{}'.format(n) }}",
        "{{ [n] | join }}",
        "{{ n._text }}",
    ],
)
def test_a_parameters_text_cannot_become_code(rendered, use):
    names = Setting("names", "name-list", ("evil",), False)
    with pytest.raises(TemplateError):
        rendered(f"{{% for n in param.names %}}{use}{{% endfor %}}", settings=[names])


def test_a_parameters_text_can_become_a_constant_string(rendered):
    names = Setting("names", "name-list", ("sshd", "init"), False)
    found = rendered("{% for n in param.names %}{{ string(n) }};{% endfor %}", settings=[names])
    assert found.facts.strings == b"sshd\0init\0" and "sshd" not in found.text
    assert re.findall("0x7f0b00f0[0-9a-f]{8}ULL", found.text) == [
        "0x7f0b00f000000000ULL",
        "0x7f0b00f000000005ULL",
    ]


def test_live_parameters_are_read_from_their_map(rendered):
    settings = [
        Setting("min", "bytes", 7, True),
        Setting("bias", "int", -1, True),
        Setting("fixed", "int", 3, False),
    ]
    found = rendered("{{ params_layout() }}{{ param.min }} {{ param.bias }}", settings=settings)
    assert "(call->params->min) ((s64)call->params->bias)" in found.text
    made, chosen = found.facts.maps
    assert (made["name"], made["value_size"], made["max_entries"]) == ("bpfoom_params", 16, 2)
    assert (chosen["name"], chosen["value_size"]) == ("bpfoom_set", 8)
    assert made["initial"] == (7).to_bytes(8, "little").hex() + "f" * 16


@pytest.mark.parametrize(
    "use", ["{% if X %}{% endif %}", "{{ X == 1 }}", "{{ X > 1 }}", "{{ X * 2 }}", "{{ -X }}"]
)
def test_rendering_cannot_depend_on_a_live_value(rendered, use):
    with pytest.raises(TemplateError, match="live|Live"):
        rendered(use.replace("X", "param.min"), settings=[Setting("min", "bytes", 7, True)])


@pytest.mark.parametrize(
    "use",
    [
        "{% if X > 3 %}{% endif %}",
        "{{ 3 - X }}",
        "{{ X | int }}",
        "{{ X | round }}",
        "{% for i in range(X) %}{% endfor %}",
        "{% if 2 in X %}{% endif %}",
    ],
)
def test_a_live_value_is_refused_in_the_authors_words(rendered, use):
    with pytest.raises(TemplateError, match="dir/main.j2:2: a live parameter has no val") as caught:
        rendered("\n" + use.replace("X", "param.min"), settings=[Setting("min", "int", 7, True)])
    assert "in C" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("{{ param.prt }}", "the card has no parameter 'prt'", "did you mean: part?"),
        ("{{ kfnc('x') }}", "'kfnc' is undefined", "did you mean: kfunc"),
        ("{{ parm.part }}", "'parm' is undefined", "did you mean: param?"),
        ("{{ param.part.bytes }}", "a number has no 'bytes'", "correct the template"),
        (
            "{{ map('m', 'array', value_sise=8) }}",
            "map() got an unexpected keyword argument 'value_sise'",
            "what a template can call",
        ),
    ],
)
def test_an_unknown_name_is_said_in_the_authors_words(rendered, text, said, hint):
    with pytest.raises(TemplateError) as caught:
        rendered(f"\n{text}", settings=[Setting("part", "int", 4, False)])
    assert caught.value.message == f"dir/main.j2:2: {said}"
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("call", "hint"),
    [
        ('kfunc("bpf_task_aquire")', "did you mean: bpf_task_acquire"),
        ('struct("signal_strukt")', "did you mean: signal_struct?"),
        ('constants("node_stat_itm", "X")', "did you mean: node_stat_item?"),
        ('constants("node_stat_item", "NR_SHMM")', "did you mean: NR_SHMEM"),
        ('struct("signal_struct", "oom_score_ajd")', "did you mean: oom_score_adj"),
        ('struct("cgroup_subsys_state", "online_cnt.contr")', "did you mean: counter?"),
    ],
)
def test_near_misses_among_a_kernels_types(rendered, call, hint):
    with pytest.raises(MissingFeatureError) as caught:
        rendered(f"{{{{ {call} }}}}")
    assert hint in caught.value.hint and "dir/main.j2:1" in caught.value.detail


def test_what_shared_templates_ask_for_is_no_typo_of_the_author(rendered):
    shared = {"include/x": '{{ kfunc("bpf_task_aquire") }}'}
    with pytest.raises(MissingFeatureError) as caught:
        rendered('{% include "include/x" %}', others=shared)
    assert "did you mean" not in caught.value.hint


BASE = "{{ told is defined }}{% block b %}{% endblock %}{% block must required %}{% endblock %}"
CHILD = '{% extends "base" %}\n{% block must %}x{% endblock %}\n'


@pytest.mark.parametrize(
    ("rest", "line", "said"),
    [
        ("\n\n\tint stray;\n", 5, "outside of every block"),
        ("{{ kfunc('bpf_task_release') }}", 3, "outside of every block"),
        ("{% if dry_run %}\nint stray;\n{% endif %}", 4, "outside of every block"),
        ("{% for i in [1] %}x{% endfor %}", 3, "outside of every block"),
        ("\n{% set tld = 3 %}", 4, "no template reads 'tld'"),
        ("{% block b %}\n{% set y = 3 %}{% endblock %}", 4, "no template reads 'y'"),
        ("{% set a, b = 1, 2 %}{{ a }}", 3, "outside of every block"),
        ("{% set c %}text{% endset %}", 3, "no template reads 'c'"),
    ],
)
def test_what_jinja_would_leave_out_is_refused_where_it_stands(rendered, rest, line, said):
    with pytest.raises(TemplateError, match=said) as caught:
        rendered(CHILD + rest, others={"base": BASE})
    assert (caught.value.data["path"], caught.value.data["line"]) == ("dir/main.j2", line)
    if "tld" in rest:
        assert "did you mean: told?" in caught.value.hint


@pytest.mark.parametrize(
    "rest",
    [
        "\n  \n{# a remark #}\n",
        "{% set told = 1 %}",
        "{% set a = 1 %}{% block b %}{{ a }}{% endblock %}",
        "{% macro m() %}y{% endmacro %}{% block b %}{{ m() }}{% endblock %}",
        "{% if dry_run %}{% set told = 1 %}{% endif %}",
    ],
)
def test_what_is_heard_outside_of_blocks_stays(rendered, rest):
    assert "x" in rendered(CHILD + rest, others={"base": BASE}).text


def test_a_block_that_is_required_is_missed_in_the_authors_file(rendered):
    text = '\n{% extends "ba" ~ "se" %}\n{% block b %}{% endblock %}'
    with pytest.raises(TemplateError, match="dir/main.j2:2: .* needs a block 'must'") as caught:
        rendered(text, others={"base": BASE})
    assert "{% block must %}" in caught.value.hint


def test_kfunc_is_declared_with_the_kernels_prototype(rendered):
    found = rendered('{{ kfunc("bpf_task_release", "bpf_task_acquire") }}')
    assert (
        "static struct task_struct *(*const bpf_task_acquire)(struct task_struct *p) = "
        "(void *)0x7f000002;" in found.text
    )
    assert [k["name"] for k in found.facts.kfuncs] == ["bpf_task_release", "bpf_task_acquire"]


def test_record_layout_follows_the_table(rendered):
    text = rendered("{{ record_layout() }}").text
    assert all(f" {f.name}" in text for f in record.FIELDS)
    assert f"== {record.SIZE}," in text and "#define ACTION_WOULD_KILL_CGROUP 18" in text


def test_every_line_knows_its_origin(rendered):
    base = "one\n{% block b %}{% endblock %}\nlast\n"
    main = '{% extends "base" %}\n{% block b %}\ntwo\n{{ "three\nfour" }}\n{% endblock %}\n'
    found = rendered(main, others={"base": base})
    origin = dict(zip(found.text.split("\n"), found.origins, strict=True))
    assert origin["one"] == ("bpf/base", 1)
    assert origin["two"] == ("dir/main.j2", 3)
    assert origin["three"] == ("dir/main.j2", 4)
    assert origin["last"] == ("bpf/base", 3)
    assert not re.search("[\x01\x02]", found.text)
