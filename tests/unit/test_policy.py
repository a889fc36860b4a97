# SPDX-License-Identifier: Apache-2.0
"""Cards, parameters, and where policies are found."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpfoom.errors import CardError, NotThereError, ParameterError
from bpfoom.policy import card, find, params
from bpfoom.policy.params import ParamSpec

CARD = """{#---
summary = "s"
kills = "k"
declines = "d"
cost = "c"
status = "experimental"
%s
---#}
"""


def spec(kind, **fields):
    return ParamSpec("x", kind, 0, "help", **fields)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("bytes", "512M", 512 << 20),
        ("bytes", "2GiB", 2 << 30),
        ("bytes", "7", 7),
        ("duration", "250ms", 250_000_000),
        ("duration", "2min", 120_000_000_000),
        ("int", "-3", -3),
        ("bool", "on", True),
        ("bool", "false", False),
        ("name-list", "sshd, systemd", ("sshd", "systemd")),
        ("cgroup-list", "a/b,/system.slice", ("a/b", "/system.slice")),
        ("name-list", "", ()),
    ],
)
def test_what_people_type(kind, text, value):
    assert params.parse(spec(kind), text) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("bytes", "512Q"),
        ("bytes", "-1"),
        ("bytes", "99999999999999999999"),
        ("bytes", "8388608T"),
        ("duration", "250"),
        ("duration", "1 fortnight"),
        ("int", "1.5"),
        ("int", "1ULL"),
        ("int", "9999999999999999999"),
        ("bool", "maybe"),
        ("name-list", "a name with spaces"),
        ("name-list", "sixteencharacters"),
        ("cgroup-list", "../../etc"[:2] + "//"),
        ("cgroup-list", 'a"b'),
    ],
)
def test_wrong_type(kind, text):
    with pytest.raises(ParameterError) as caught:
        params.parse(spec(kind), text)
    assert caught.value.data["parameter"] == "x" and caught.value.hint


@pytest.mark.parametrize(
    "injection",
    [
        "1; bpf_oom_kill_process(0, 0, 0)",
        '1"}) /*',
        "1\n#include </etc/shadow>",
        "{{ 7 * 7 }}",
        "0 ? 1 : 2",
        "٣",  # a digit, but no C
    ],
)
@pytest.mark.parametrize("kind", [kind for kind in params.TYPES if kind != "policy"])
def test_a_value_cannot_carry_code(kind, injection):
    fields = {"choices": ("a", "b")} if kind == "enum" else {}
    with pytest.raises(ParameterError):
        params.parse(spec(kind, **fields), injection)


@given(
    st.text(max_size=40),
    st.sampled_from([("name-list", "_.:@+-()[] "), ("cgroup-list", "_.:@+-/")]),
)
def test_accepted_lists_hold_plain_names(text, kind):
    name, more = kind
    try:
        value = params.parse(spec(name), text)
    except ParameterError:
        return
    allowed = set(string.ascii_letters + string.digits + more)
    assert all(set(name) <= allowed for name in value)


def test_names_of_processes_are_as_people_meet_them():
    assert params.parse(spec("name-list"), "(sd-pam), Web Content,[celeryd]") == (
        "(sd-pam)",
        "Web Content",
        "[celeryd]",
    )


@given(st.integers(0, (1 << 63) - 1), st.sampled_from(["bytes", "duration", "int"]))
def test_what_is_shown_can_be_typed(value, kind):
    assert params.parse(spec(kind), params.show(spec(kind), value)) == value


def test_range_is_named():
    ranged = spec("duration", min=10**6, max=5 * 10**9)
    with pytest.raises(ParameterError, match="below the least, 1ms"):
        params.parse(ranged, "10us")
    with pytest.raises(ParameterError, match="above the most, 5s"):
        params.parse(ranged, "1min")


def test_unknown_parameter_has_close_matches():
    with pytest.raises(ParameterError, match="'mni'") as caught:
        params.resolve([ParamSpec("min", "bytes", 0, "h")], {"mni": "1"})
    assert "min" in caught.value.hint


def test_card_is_read():
    text = (
        CARD % '[params.min]\ntype = "bytes"\ndefault = "1M"\nmax = "1G"\nhelp = "h"\nlive = true'
    )
    found = card.parse(text, "p")
    assert found.summary == "s" and found.status == "experimental"
    assert found.params == (ParamSpec("min", "bytes", 1 << 20, "h", True, None, 1 << 30),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int x;", "no card"),
        ("{#--- summary = ---#}", "not TOML"),
        (CARD % "colour = 'red'", "unknown entry 'colour'"),
        (CARD.replace("experimental", "perfect") % "", "status"),
        (CARD.replace('cost = "c"', "") % "", "'cost'"),
        (CARD % '[params.X]\ntype="int"\ndefault=1\nhelp="h"', "lower-case"),
        (CARD % '[params.x]\ntype="float"\ndefault=1\nhelp="h"', "unknown type"),
        (CARD % '[params.x]\ntype="int"\nhelp="h"', "default"),
        (CARD % '[params.x]\ntype="int"\ndefault=9\nmax=5\nhelp="h"', "above the most"),
        (CARD % '[params.x]\ntype="enum"\ndefault="a"\nhelp="h"', "choices"),
        (CARD % '[params.x]\ntype="enum"\nchoices=["a;b"]\ndefault="a;b"\nhelp="h"', "choices"),
        (CARD % '[params.x]\ntype="name-list"\nlive=true\ndefault=""\nhelp="h"', "live"),
    ],
)
def test_wrong_cards(text, message):
    with pytest.raises(CardError, match=message):
        card.parse(text, "p")


PART = '''
[params.first]
type = "int"
default = 1
help = """
min = 3
type = "int"
"""

[params.part]   # the second
  type = "bytes"
  default = "1M"
  help = "h"
%s
'''


@pytest.mark.parametrize(
    ("text", "line", "hint"),
    [
        ("\n" + CARD % "", 1, "bpfoom new"),
        (CARD % ("#" * card.MAX_LENGTH), 1, "a comment of its own"),
        (CARD.replace('"k"', '"k'), 3, ""),
        (CARD % 'help = """', 8, ""),
        (CARD % 'cost = "twice"', 7, ""),
        (CARD % "\n\nsummry = 's'", 9, "did you mean: summary?"),
        (CARD % "[param.x]", 7, "did you mean: params?"),
        (CARD % "colour = 'red'", 7, "a card has summary, kills"),
        (CARD.replace('"c"', "3") % "", 5, ""),
        (CARD.replace('cost = "c"\n', "") % "", 1, ""),
        (CARD.replace("experimental", "perfect") % "", 6, ""),
        (CARD % "params = 3", 7, ""),
        (CARD % (PART % "\nmni = 3"), 21, "did you mean: min?"),
        (CARD % (PART % "max = '4 parsec'"), 20, "part (bytes"),
        (CARD % (PART % "max = '4K'"), 18, "part (bytes"),
        (CARD % (PART % "live = 'true'"), 20, "types"),
        (CARD % (PART % "").replace("bytes", "byte"), 17, "did you mean: bytes?"),
        (CARD % (PART % "").replace('help = "h"', ""), 16, "types"),
        (CARD % 'params.x = { type = "int", default = 1, min = "x", help = "h" }', 7, "x (int"),
        (
            CARD % 'params.x.type = "int"\nparams.x.default = "one"\nparams.x.help = "h"',
            8,
            "x (int",
        ),
        (CARD % (PART % "").replace("part", "Part"), 16, "types"),
    ],
)
def test_a_cards_errors_name_the_line_and_what_is_near(text, line, hint):
    with pytest.raises(CardError) as caught:
        card.parse(text, "p")
    assert caught.value.message.startswith(f"p:{line}: ")
    assert (caught.value.data["path"], caught.value.data["line"]) == ("p", line)
    assert hint in caught.value.hint


def test_a_cards_error_has_its_entry():
    with pytest.raises(CardError) as caught:
        card.parse(CARD % (PART % "max = '4K'"), "p")
    assert caught.value.data == {"path": "p", "line": 18, "entry": "params.part.default"}


def test_after_a_very_long_statement_the_line_is_the_cards():
    """Reading on line by line would take for ever."""
    text = CARD.replace('cost = "c"', "kill = [" + "\n" * 4000 + "]") % ""
    with pytest.raises(CardError, match="p:1: the card has an unknown entry 'kill'"):
        card.parse(text, "p")


def test_a_file_that_is_no_text_names_the_line(tmp_path):
    path = tmp_path / "mine.bpf.c.j2"
    path.write_bytes((CARD % "").encode() + b"\n\xff\n")
    with pytest.raises(CardError, match=r"mine\.bpf\.c\.j2:10: not UTF-8"):
        find.read(path)


def test_shipped_policies_have_cards():
    names = [policy.name for policy in find.find_policies()]
    assert {"largest-cgroup", "largest-task"} <= set(names) and names == sorted(names)


def test_a_users_policy_is_found_by_name_and_by_path(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = tmp_path / "bpfoom" / "policies" / "mine.bpf.c.j2"
    path.parent.mkdir(parents=True)
    path.write_text(CARD % "")
    assert find.find_policy("mine").path == path
    assert find.find_policy(str(path)).name == "mine"
    assert "mine" in [policy.name for policy in find.find_policies()]


def test_unknown_policy_has_close_matches():
    with pytest.raises(NotThereError) as caught:
        find.find_policy("largest-tsk")
    assert "largest-task" in caught.value.hint


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("mine", "a file is named by its path: ./mine.bpf.c.j2"),
        ("mein.bpf.c.j2", "did you mean: mine.bpf.c.j2?"),
        ("./other.bpf.c.j2", "`bpfoom policies`"),
    ],
)
def test_a_file_that_was_meant_is_named(tmp_path, monkeypatch, word, hint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.bpf.c.j2").write_text(CARD % "")
    with pytest.raises(NotThereError) as caught:
        find.find_policy(word)
    assert hint in caught.value.hint


@pytest.mark.parametrize("name", ["Mine", "a_b", "x" * 64, "a.b"])
def test_a_policys_name_fits_the_kernel(tmp_path, name):
    path = tmp_path / f"{name}.bpf.c.j2"
    path.write_text(CARD % "")
    with pytest.raises(CardError, match="name"):
        find.read(path)


def test_a_default_out_of_range_is_told_with_itself():
    fields = {"type": "int", "default": "7", "max": "3", "help": "h"}
    with pytest.raises(ParameterError, match="7 is above the most, 3") as caught:
        params.spec("part", fields)
    assert "default 7" in caught.value.hint


def test_an_entry_that_no_parameter_has_is_named():
    fields = {"type": "int", "defalt": "7", "help": "h"}
    with pytest.raises(ParameterError, match="unknown entry 'defalt'") as caught:
        params.spec("part", fields)
    assert caught.value.hint == "did you mean: default?"
