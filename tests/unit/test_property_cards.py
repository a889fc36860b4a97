# SPDX-License-Identifier: Apache-2.0
"""Whatever is typed or written in a card: a checked value, or a refusal that names it."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bpfoom.errors import BpfoomError, CardError, ParameterError
from bpfoom.policy import card, find, params
from bpfoom.policy.params import ParamSpec

KERNEL = str(Path(__file__).parents[1] / "data" / "kernel.btf")
CHOICES = ("cgroup", "task", "a-b")
# What might end a string, a comment, a line or a template early, or is no text at all.
HOSTILE = (
    *('"', "'", "\\", "\\0", "*/", "/*", "//", "\n", "\r\n", "\t", "\0", "\x01", "\x7f"),
    *("{{ 7 * 7 }}", "{% include 'main' %}", "{#", "#}", "%}", ";", "#include <x>", "??/"),
    *("a" * 4096, "9" * 4096, "{{" * 2048, "\u212a", "٣", "\u2028", "\ufeff", "\udcff", "é", "😀"),
    *("-", "--5", "+", "0x10", "1e3", "1ULL", "inf", "None", "true", ",", ",,", " ", ""),
)

# No test fails for being slow.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def numbers(kind):
    return st.integers(-(1 << 63) if kind == "int" else 0, (1 << 63) - 1)


@st.composite
def specs(draw):
    """A parameter of any type, with a range or not."""
    kind = draw(st.sampled_from(params.TYPES))
    low, high = None, None
    if kind in ("bytes", "duration", "int"):
        ends = [draw(st.none() | numbers(kind)), draw(st.none() | numbers(kind))]
        low, high = sorted(ends) if None not in ends else ends
    choices = CHOICES if kind == "enum" else ()
    return ParamSpec("x", kind, 0, "help", False, low, high, choices)


def values(spec):
    """What the parameter may be."""
    plain = "abzABZ019_.:@+-"
    comms = st.text(f"{plain}()[] ", max_size=15)
    paths = st.lists(st.text(plain, min_size=1, max_size=15), min_size=1, max_size=4).map("/".join)
    printable = st.text(min_size=1, max_size=60).filter(lambda text: text.isprintable())
    if spec.type in ("bytes", "duration", "int"):
        least = -(1 << 63) if spec.type == "int" else 0
        low = least if spec.min is None else spec.min
        return st.integers(low, (1 << 63) - 1 if spec.max is None else spec.max)
    return {
        "bool": st.booleans(),
        "enum": st.sampled_from(CHOICES),
        "policy": printable.map(str.strip).filter(bool),
        "name-list": st.lists(comms.map(str.strip).filter(bool), max_size=8).map(tuple),
        "cgroup-list": st.lists(paths, max_size=8).map(tuple),
    }[spec.type]


def typed():
    """What a person, or a script gone wrong, might write after the equals sign."""
    number = st.integers(-(1 << 66), 1 << 66).map(str)
    unit = st.sampled_from(["", "K", "m", "GiB", "T", "ns", "ms", "s", "min", "h", " s", "µs"])
    argv = st.binary(max_size=20).map(os.fsdecode)  # as click delivers what is no UTF-8
    pieces = st.sampled_from(HOSTILE) | st.text(max_size=20) | argv | number
    return st.one_of(
        pieces,
        st.tuples(number, unit).map("".join),
        st.lists(pieces, max_size=4).map("".join),
        st.lists(pieces, max_size=4).map(",".join),
    )


def check_value(spec, value):
    """What every accepted value is, whatever it was made from."""
    if spec.type in ("bytes", "duration", "int"):
        assert type(value) is int and -(1 << 63) <= value < 1 << 63
        assert spec.min is None or value >= spec.min
        assert spec.max is None or value <= spec.max
        assert spec.type == "int" or value >= 0
    elif spec.type == "bool":
        assert type(value) is bool
    elif spec.type == "enum":
        assert value in spec.choices
    elif spec.type == "policy":
        assert value.isprintable() and value.strip() == value and 0 < len(value) <= 4096
    else:
        assert all(text.isascii() and text.isprintable() and text == text.strip() for text in value)
        assert spec.type == "name-list" or not any(" " in text for text in value)


@patient
@given(specs().flatmap(lambda spec: st.tuples(st.just(spec), values(spec))))
def test_what_is_shown_can_be_typed(given_value):
    spec, value = given_value
    assert params.parse(spec, params.show(spec, value)) == value


@settings(patient, max_examples=400)
@given(specs(), typed())
def test_what_is_typed_is_a_value_or_refused(spec, text):
    try:
        value = params.parse(spec, text)
    except ParameterError as error:
        assert error.data["parameter"] == "x" and error.data["value"] == text
        json.dumps(error.as_dict())
        return
    check_value(spec, value)
    assert params.parse(spec, params.show(spec, value)) == value


@pytest.mark.parametrize("kind", params.TYPES)
@pytest.mark.parametrize("text", HOSTILE)
def test_each_hostile_text_is_a_value_or_refused(kind, text):
    spec = ParamSpec("x", kind, 0, "help", choices=CHOICES if kind == "enum" else ())
    try:
        check_value(spec, params.parse(spec, text))
    except ParameterError as error:
        assert error.data["value"] == text


@patient
@given(st.lists(specs(), max_size=4), typed(), typed())
def test_unknown_names_are_refused(known, name, text):
    named = [replace(spec, name=f"p{number}") for number, spec in enumerate(known)]
    with pytest.raises(ParameterError, match="unknown parameter") as caught:
        params.resolve(named, {name: text})
    assert caught.value.data["known"] == [spec.name for spec in named]


# Cards

GOOD = {
    "summary": "s",
    "kills": "k",
    "declines": "d",
    "cost": "c",
    "status": "stable",
    "params": {"x": {"type": "int", "default": 1, "help": "h"}},
}


def junk():
    """Any TOML value."""
    huge = st.sampled_from([1 << 64, -(1 << 70)])
    day = st.just(datetime.date(2026, 11, 23))
    plain = typed() | st.integers() | huge | st.booleans() | st.floats() | day
    return st.recursive(
        plain,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys(), inner, max_size=3),
    )


def keys():
    known = ("type", "default", "help", "live", "min", "max", "choices")
    return st.sampled_from([*known, *GOOD, "x", "", "X", "a" * 40, "_"]) | st.text(max_size=5)


def toml(value):
    """A value as TOML; keys and texts are written as they are, valid there or not."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)


def card_text(table):
    return "{#---\n" + "".join(f"{toml(k)} = {toml(v)}\n" for k, v in table.items()) + "---#}\n"


def read_card(text):
    """The card's parameters all have values that can be typed; anything else is a CardError."""
    try:
        found = card.parse(text, "p")
    except CardError as error:
        json.dumps(error.as_dict())
        return None
    for spec in found.params:
        check_value(spec, spec.default)
        assert params.parse(spec, params.show(spec, spec.default)) == spec.default
        assert params.describe(spec)
    return found


def test_the_card_that_the_others_are_made_of_is_one():
    assert read_card(card_text(GOOD)).params[0].default == 1


@patient
@given(st.dictionaries(keys(), junk(), min_size=1, max_size=3))
def test_a_card_with_other_entries(changes):
    read_card(card_text({**GOOD, **changes}))


@settings(patient, max_examples=300)
@given(
    st.sampled_from([*params.TYPES, "float"]) | junk(),
    st.dictionaries(keys(), junk() | typed(), max_size=4),
    st.sampled_from([(), ("a", "b"), ("task",)]),
)
def test_a_parameter_with_other_fields(kind, changes, choices):
    fields = {"type": kind, "default": "1", "help": "h", **changes}
    if choices:
        fields |= {"choices": list(choices), "default": choices[0]}
    read_card(card_text({**GOOD, "params": {"x": fields}}))


@patient
@given(st.text("{}#-=\"'[]\n x1.\\\u212a\udcff", max_size=60))
def test_a_card_of_any_text(text):
    read_card("{#---" + text)
    read_card("{#---" + text + "---#}")


@pytest.mark.parametrize(
    "text",
    [
        "{#" + "-" * 100_000,
        "{#---" + "#" * 100_000,
        "{#---" + "-#" * 50_000 + "}",
        "{#---\nx = " + "[" * 100_000 + "\n---#}",
        "{#---\nx = " + "9" * 100_000 + "\n---#}",
        "{#---\nx = 0x" + "f" * 100_000 + "\n---#}",
        "{#---\n" + "a." * 100_000 + "a = 1\n---#}",
        "{#---\n" + "a." * 5_000 + "a = 1\n---#}",
        card_text(GOOD).replace('"default" = 1', '"default" = 0x' + "f" * 8000),
        card_text(GOOD).replace('"int"', "0x" + "f" * 8000),
    ],
    ids=["dashes", "hashes", "both", "nested", "digits", "hex", "long", "dotted", "value", "type"],
)
def test_a_card_that_would_take_for_ever(text):
    assert read_card(text) is None


def test_a_comment_ends_where_jinja_ends_it():
    """Else the rest of the card would be C."""
    text = card_text({**GOOD, "summary": "ends #} here"})
    with pytest.raises(CardError):
        card.parse(text, "p")


@patient
@given(st.binary(max_size=200), st.booleans())
def test_a_file_of_any_bytes(raw, with_card):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "mine.bpf.c.j2"
        path.write_bytes((card_text(GOOD).encode() if with_card else b"") + raw)
        try:
            policy = find.read(path)
        except CardError as error:
            assert error.data["path"] == str(path)
            return
    assert policy.text.encode().startswith(b"{#-") and policy.card.params


@patient
@given(typed())
def test_a_policy_of_any_name(name):
    try:
        found = find.find_policy(name)
    except BpfoomError as error:
        json.dumps(error.as_dict())
    else:
        assert str(found.path).isprintable()


# As the kernel hands them over: bytes, most of which are no UTF-8.


@pytest.fixture
def strange(tmp_path):
    """A policy in a directory whose name ends a comment, a string and a line, and is no UTF-8."""
    directory = tmp_path / os.fsdecode(b'*\\"\xff;\n{{ x }}')
    directory.mkdir()
    path = directory / "mine.bpf.c.j2"
    path.write_bytes(find.find_policy("largest-task").text.encode())
    return path


def command(*words):
    ran = subprocess.run(
        [sys.executable, "-m", "bpfoom.cli.main", *words], capture_output=True, timeout=600
    )
    assert b"Traceback" not in ran.stderr, ran.stderr
    return ran


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ((b"render", b"largest-task", b"--btf", KERNEL, b"--set", b"min=1\xff"), 2),
        ((b"render", b"largest-task", b"--btf", KERNEL, b"--set", b"\xff\n=1"), 2),
        ((b"render", b"protect", b"--btf", KERNEL, b"--set", b"omit=a\xc0\x80b"), 2),
        ((b"render", b"monitor", b"--btf", KERNEL, b"--set", b"inner=\xff/x.bpf.c.j2"), 2),
        ((b"policies", b"\xff\"*"), 4),
    ],
)  # fmt: skip
def test_arguments_that_are_no_text(words, status):
    ran = command(*words)
    assert ran.returncode == status and ran.stderr


@pytest.mark.parametrize("verb", [["policies"], ["render", "--btf", KERNEL]])
def test_a_path_that_nobody_could_print(strange, verb):
    ran = command(*verb, strange)
    assert ran.returncode == 1 and b"cannot be printed" in ran.stderr


@pytest.mark.parametrize("raw", [b"\xff\xfe", b"{#---\xff---#}", b"{#---\0---#}", b""])
def test_a_policy_that_is_no_text(tmp_path, raw):
    path = tmp_path / "mine.bpf.c.j2"
    path.write_bytes(raw)
    ran = command("render", path)
    assert ran.returncode == 1 and b"mine.bpf.c.j2" in ran.stderr
