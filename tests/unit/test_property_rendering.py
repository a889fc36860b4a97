# SPDX-License-Identifier: Apache-2.0
"""Two values of a parameter render to C that differs in that parameter's slot, and nowhere else.

A slot is a number's constant, a constant string's place in the strings map, or, for a live
parameter, its bytes in the params map. Most of this renders in this process, some in the child
that rendering has in earnest, and that text is compiled by clang.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bpfoom.btf.types import Btf
from bpfoom.compiler import build
from bpfoom.errors import BpfoomError, ParameterError, TemplateError
from bpfoom.policy import card, compose, find, params
from bpfoom.policy.functions import Scope
from bpfoom.policy.render import Template, render
from bpfoom.policy.values import Setting

KERNEL = Path(__file__).parents[1] / "data" / "kernel.btf"
HASH = {"BPFOOM_POLICY_HASH": "1ULL"}
PROBE = """{#---
summary = "uses a parameter of every type, in every place where a number can stand"
kills = "nobody"
declines = "always"
cost = "none"
status = "experimental"
[params.size]
type = "bytes"
default = "1"
help = "h"
[params.span]
type = "duration"
default = "1ns"
help = "h"
[params.count]
type = "int"
default = "1"
help = "h"
[params.flag]
type = "bool"
default = true
help = "h"
[params.mode]
type = "enum"
choices = ["fast", "slow"]
default = "fast"
help = "h"
[params.names]
type = "name-list"
default = ""
help = "h"
[params.paths]
type = "cgroup-list"
default = ""
help = "h"
[params.live_size]
type = "bytes"
default = "1"
live = true
help = "h"
[params.live_count]
type = "int"
default = "1"
live = true
help = "h"
[params.live_flag]
type = "bool"
default = true
live = true
help = "h"
---#}
{{ params_layout() }}
u64 size = {{ param.size }}*2, span = 1-{{ param.span }}, count = 1-{{ param.count }};
u64 flag = {{ param.flag }}, live = {{ param.live_size }} + {{ param.live_count }};
bool on = {{ param.live_flag }};
{% if param.mode == "fast" %}/* fast */{% endif %}
{% for name in param.names %}
same({{ string(name) }});
{% endfor %}
{% for path in param.paths %}
below({{ string(path) }});
{% endfor %}
"""
TOKEN = re.compile(
    r"\(-[0-9]+LL(?: - 1)?\)|(?:0x[0-9a-f]+|[0-9]+)[UL]*|[A-Za-z_]\w*|/\*.*?\*/|\s+|.", re.DOTALL
)
STRING = re.compile(r"0x7f0b00f0([0-9a-f]{8})ULL")
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@functools.cache
def kernel():
    return Btf.from_file(KERNEL)


def rendered(plan):
    """A plan as `build.render_policy` would have its child render it."""
    templates = {name: Template(text, name) for name, text in find.includes().items()}
    scopes = plan.scopes()
    for scope, policy in zip(scopes, plan.policies, strict=True):
        templates[scope.template] = Template(policy.text, str(policy.path))
    return render(templates, scopes, kernel())


@functools.cache
def planned(name, *given):
    """A plan of a shipped policy, from its settings as (name, text) pairs."""
    made = compose.plan(name, dict(given))
    return made, rendered(made)


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    path = tmp_path_factory.mktemp("policies") / "probe.bpf.c.j2"
    path.write_text(PROBE)
    return str(path)


def differences(one, other):
    """Pairs of C tokens at the same place that are not the same."""
    left, right = TOKEN.findall(one.text), TOKEN.findall(other.text)
    assert "".join(left) == one.text and len(left) == len(right)
    return {(a, b) for a, b in zip(left, right, strict=True) if a != b}


def constant(spec, value):
    """What a number is in C: one type per parameter, whatever the value."""
    if spec.type == "bool":
        return str(int(value))
    if spec.type != "int":
        return f"{value}ULL"
    if value == -(1 << 63):
        return f"({value + 1}LL - 1)"
    return f"({value}LL)" if value < 0 else f"{value}LL"


def word(value):
    return (value & (1 << 64) - 1).to_bytes(8, "little").hex()


def carried(found):
    """The texts that the C text points at, in its order."""
    offsets = (int(offset, 16) for offset in STRING.findall(found.text))
    return [found.facts.strings[at:].split(b"\0", 1)[0] for at in offsets]


def check_slot(before, after, name):
    """Two (plan, rendering) pairs that differ in one parameter, by its dotted name."""
    (old_plan, old), (plan, new) = before, after
    (spec,) = [spec for spec in plan.specs if spec.name == name]
    was, value = old_plan.values[name], plan.values[name]
    facts, old_facts = asdict(new.facts), asdict(old.facts)
    assert new.origins == old.origins
    if spec.live:
        assert new.text == old.text
        live = [s.name for s in plan.specs if s.live]
        (made,) = [m for m in facts["maps"] if m["name"] == "bpfoom_params"]
        (old_made,) = [m for m in old_facts["maps"] if m["name"] == "bpfoom_params"]
        at = 16 * live.index(name)
        assert made["initial"][at : at + 16] == word(value)
        made["initial"] = made["initial"][:at] + word(was) + made["initial"][at + 16 :]
        assert made == old_made and facts == old_facts
    elif spec.type in params.SCALARS:
        one = {(constant(spec, was), constant(spec, value))}
        assert differences(old, new) == (one if was != value else set())
        assert facts == old_facts
    else:
        pairs = differences(old, new)
        assert all(STRING.match(a) and STRING.match(b) for a, b in pairs)
        assert carried(new).count(b"") == 0
        facts["strings"] = old_facts["strings"]
        assert facts == old_facts


def numbers(spec):
    low = -(1 << 63) if spec.type == "int" else 0
    high = (1 << 63) - 1
    return st.integers(
        low if spec.min is None else spec.min, high if spec.max is None else spec.max
    )


# Shipped policies

CHAINS = [(policy.name, ()) for policy in find.find_policies()] + [
    ("grace", (("inner", "protect"), ("inner.inner", "largest-task"))),
    ("monitor", (("inner", "raise-limit"), ("inner.inner", "fastest-growing"))),
]
SCALARS = [
    pytest.param(name, given, spec, id=f"{name}-{'-'.join(v for _, v in given)}-{spec.name}")
    for name, given in CHAINS
    for spec in compose.plan(name, dict(given)).specs
    if spec.type in params.SCALARS
]


@pytest.mark.parametrize(("name", "given_settings", "spec"), SCALARS)
def test_a_number_changes_its_slot_only(name, given_settings, spec):
    before = planned(name, *given_settings)

    @settings(patient, max_examples=3)
    @given(st.booleans() if spec.type == "bool" else numbers(spec))
    def check(value):
        setting = {**dict(given_settings), spec.name: params.show(spec, value)}
        plan = compose.plan(name, setting)
        assert plan.values[spec.name] == value
        check_slot(before, (plan, rendered(plan)), spec.name)

    check()


def texts(kind):
    plain = st.text("abzABZ019_.:@+-", min_size=1, max_size=15)
    return plain if kind == "name-list" else st.lists(plain, min_size=1).map("/".join)


@settings(patient, max_examples=10)
@given(
    st.lists(texts("name-list"), min_size=1, max_size=12, unique=True),
    st.sampled_from(["omit", "inner.avoid"]),
)
def test_names_change_the_strings_only(names, parameter):
    name = "protect" if parameter == "omit" else "grace"
    others = (("inner", "protect"),) if name == "grace" else ()
    plain = [f"other-{number}" for number in range(len(names))]
    before = planned(name, *others, (parameter, ",".join(plain)))
    plan = compose.plan(name, {**dict(others), parameter: ",".join(names)})
    after = rendered(plan)
    check_slot(before, (plan, after), parameter)
    message = b"Out of memory (bpfoom)"
    assert [text for text in carried(after) if text != message] == [n.encode() for n in names]
    assert set(after.facts.strings.split(b"\0")) == {b"", message, *(n.encode() for n in names)}


# Every type, and texts that want to be something else

HOSTILE = (
    *('"', "'", "\\", "*/", "/*", "\n", "\0", "\x01a:1\x02", "\x03mem_cgroup\x04", "\udcff", "é"),
    *("{{ 7 * 7 }}", "{% raw %}", "#}", "1; x()", "a" * 4096, "9" * 4096, "\u212a", "1\u212a"),
)


def typed():
    argv = st.binary(max_size=12).map(os.fsdecode)
    number = st.tuples(st.integers(-(1 << 64), 1 << 64).map(str), st.sampled_from(["", "M", "s"]))
    lists = st.lists(texts("name-list") | texts("cgroup-list"), max_size=5).map(",".join)
    piece = st.sampled_from([*HOSTILE, "true", "off", "slow"]) | argv | number.map("".join) | lists
    return st.lists(piece, min_size=1, max_size=3).map(",".join) | piece


def neutral(value):
    """Settings of the probe that take as many slots as the value does."""
    return ",".join(f"n{number}" for number in range(len(value))) if value else ""


@settings(patient, max_examples=150)
@given(st.sampled_from([spec.name for spec in card.parse(PROBE, "p").params]), typed())
def test_what_is_typed_is_refused_or_changes_its_slot_only(probe, name, text):
    try:
        plan = compose.plan(probe, {name: text})
    except ParameterError as error:
        assert error.data["value"] == text
        return
    value = plan.values[name]
    if name == "mode":
        assert rendered(plan).text.count("/* fast */") == (value == "fast")
        return
    plain = {name: neutral(value)} if isinstance(value, tuple) else {}
    old = compose.plan(probe, plain)
    found = rendered(plan)
    check_slot((old, rendered(old)), (plan, found), name)
    if isinstance(value, tuple):
        assert carried(found) == [part.encode() for part in value]
        assert ",".join(part.strip() for part in text.split(",") if part.strip()) == ",".join(value)


@patient
@given(st.text() | st.sampled_from(HOSTILE) | st.text([chr(c) for c in range(0x20, 0x7F)]))
def test_a_text_that_was_never_checked_is_refused_or_carried_exactly(text):
    """The second line of defence: what would be if `params.parse` let everything through."""
    main = Template("{% for n in param.names %}same({{ string(n) }});{% endfor %}", "main.j2")

    def run(given_text):
        setting = Setting("names", "name-list", (given_text,), False)
        return render({"main": main}, [Scope("main", (setting,))], kernel())

    try:
        found = run(text)
    except TemplateError:
        assert not (text.isascii() and text.isprintable())
        return
    assert found.facts.strings == text.encode() + b"\0" and found.text == run("plain").text


@pytest.mark.parametrize("directory", ['a"b', "*", "{{ 7 * 7 }}", "%d; x()", "\\", "é"])
def test_the_path_of_a_policy_is_not_in_its_text(tmp_path, directory):
    path = tmp_path / directory / "mine.bpf.c.j2"
    path.parent.mkdir()
    path.write_text(find.find_policy("largest-task").text)
    shipped = planned("monitor")[1]
    own = rendered(compose.plan("monitor", {"inner": str(path)}))
    assert own.text == shipped.text and own.facts == shipped.facts
    assert str(path) in {place for place, _ in own.origins}


def test_a_wrapper_cannot_write_where_the_inner_policy_is(tmp_path):
    path = tmp_path / "wrap.bpf.c.j2"
    text = find.find_policy("monitor").text
    path.write_text(text + "{% block declarations %}/* {{ param.inner }} */{% endblock %}")
    found = rendered(compose.plan(str(path), {}))
    assert "/* policy 1 */" in found.text and str(tmp_path) not in found.text


# Templates

ATOMS = (
    *("param", "param.size", "param.names", "param.names[0]", "param_0", "x", "none", "0", "-1"),
    *("true", "'text'", "[1]", "{'a': 1}", "range", "cycler", "lipsum", "namespace()", "1 / 0"),
    *(
        '"\\x00"',
        '"\\x01a:1\\x02"',
        '"\\x01"',
        '"\\x03mem_cgroup\\x04"',
        '"\\x03z\\x04"',
        '"\\ud800"',
    ),
    *('"\\r"', '"\\n"', '"mem_cgroup", "oom_group"', '"bpf_task_release"', '"m", "array"'),
    *('"node_stat_item", "NR_SHMEM"', '"m", "array", value_size=8, entries=1', "record_size"),
)
CALLS = (
    *("struct", "kfunc", "constants", "map", "string", "has_kfunc", "has_struct", "has_member"),
    *("params_layout", "record_layout", "fail", "m", "self.b", "super", "range", "dict"),
)
AFTER = (
    *("|upper", "|join", "|string", "|length", "|list", "|tojson", "|default(1)", "[0]", ".size"),
    *(".__class__", ".__init__", "['__globals__']", ".format(1)", ".as_c()", "._text", "()"),
)
CHAOS = (
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "#}",
    "{% raw %}",
    "{% extends 'main' %}",
    "\0",
    "\x01",
    "\r",
)


def expressions():
    return st.recursive(
        st.sampled_from(ATOMS),
        lambda inner: (
            st.tuples(inner, st.sampled_from(AFTER)).map("".join)
            | st.builds("{}({})".format, st.sampled_from(CALLS), inner | st.just(""))
            | st.builds("({} {} {})".format, inner, st.sampled_from("~+-%"), inner)
        ),
        max_leaves=4,
    )


def pieces():
    """Templates that Jinja can parse, for the most part."""
    plain = st.text(st.characters(codec="utf-8", categories=["L", "P", "S"]), max_size=5)
    leaf = plain | st.builds("{{{{ {} }}}}\n".format, expressions())
    leaf |= st.builds("{{% set x = {} %}}".format, expressions())
    leaf |= st.sampled_from(
        ["{% include 'include/marks.bpf.c.j2' %}", "{% include x %}", "{{ x }}"]
    )
    return st.recursive(
        leaf,
        lambda inner: (
            st.builds("{{% if {} %}}{}{{% endif %}}".format, expressions(), inner)
            | st.builds("{{% for x in {} %}}{}{{% endfor %}}".format, expressions(), inner)
            | st.builds("{{% macro m(x) %}}{}{{% endmacro %}}{}".format, inner, inner)
            | st.builds("{{% block b %}}{}{{% endblock %}}".format, inner)
            | st.lists(inner, max_size=3).map("\n".join)
        ),
        max_leaves=6,
    )


@settings(patient, max_examples=300)
@given(pieces(), st.none() | st.sampled_from(CHAOS), st.integers(0, 100))
def test_any_template_is_text_or_a_refusal(text, chaos, at):
    """What renders can be compiled, cached and hashed, and each of its lines has a place."""
    if chaos:
        text = text[:at] + chaos + text[at:]
    settings_ = (Setting("size", "bytes", 5, False), Setting("names", "name-list", ("a",), False))
    templates = {"main": Template(text, "main.j2")}
    templates |= {name: Template(t, name) for name, t in find.includes().items()}
    try:
        found = render(templates, [Scope("main", settings_)], kernel())
    except BpfoomError as error:
        assert error.message and json.dumps(error.as_dict())
        return
    assert len(found.origins) == found.text.count("\n") + 1
    assert all(c in "\t\n" or c >= " " for c in found.text)
    assert found.text.encode().decode() == found.text
    facts = asdict(copy.deepcopy(found.facts)) | {"strings": ""}
    assert json.loads(json.dumps(facts)) == facts


# The child, and clang


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


NAMES = ["0123456789abcde", "-.:@+_-.:@+_-.:", "a"]


def test_the_child_renders_what_is_rendered_here(own_cache):
    given_settings = {"inner": "protect", "inner.omit": ",".join(NAMES), "wait": "5s"}
    found = build.render_policy("grace", given_settings, btf=KERNEL)
    here = rendered(compose.plan("grace", given_settings))
    assert found.text == here.text
    assert found.facts == asdict(here.facts) | {"strings": here.facts.strings.hex()}


def instructions(name, given_settings):
    """The handler's instructions as clang makes them, 8 bytes each, and what they came from."""
    found = build.render_policy(name, given_settings, btf=KERNEL)
    raw = build.compile_text(found.text, found.origins, HASH)["handle_out_of_memory"].insns
    return [raw[at : at + 8] for at in range(0, len(raw), 8)], found


def test_a_number_changes_one_immediate(own_cache):
    one, _ = instructions("largest-task", {"min": "4097"})
    other, _ = instructions("largest-task", {"min": str((1 << 31) - 1)})
    changed = [(a, b) for a, b in zip(one, other, strict=True) if a != b]
    assert changed and all(a[:4] == b[:4] for a, b in changed)
    # LLVM compares with "greater than", so with one less.
    immediates = {tuple(int.from_bytes(insn[4:], "little") for insn in pair) for pair in changed}
    assert immediates <= {(4097, (1 << 31) - 1), (4096, (1 << 31) - 2)}


def test_names_change_the_offsets_of_strings(own_cache):
    one, before = instructions("protect", {"omit": "a,b,c"})
    other, after = instructions("protect", {"omit": ",".join(NAMES)})
    changed = [(at, a, b) for at, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
    offsets = set()
    for at, a, b in changed:
        # The low half of a 64-bit constant whose high half says that it is a string.
        assert a[:4] == b[:4] and one[at + 1] == other[at + 1]
        assert one[at + 1][4:] == (0x7F0B00F0).to_bytes(4, "little")
        offsets.add(tuple(int.from_bytes(insn[4:], "little") for insn in (a, b)))
    strings = [bytes.fromhex(found.facts["strings"]) for found in (before, after)]
    pairs = {tuple(strings[i][at:].split(b"\0")[0] for i, at in enumerate(o)) for o in offsets}
    # The first name is at 0 both times; the kernel's message comes last.
    assert pairs == {(b"b", NAMES[1].encode()), (b"c", NAMES[2].encode())} | {
        (b"Out of memory (bpfoom)",) * 2
    }
