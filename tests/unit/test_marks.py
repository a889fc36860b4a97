# SPDX-License-Identifier: Apache-2.0
"""Marks without a kernel: globs, text forms, whose attributes are believed, what is inherited."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpfoom.cli.marks import glob_documents, parse, tell_glob
from bpfoom.errors import BpfoomError, NotThereError, UsageError
from bpfoom.handler.marks import PREFERENCES, Mark, Rule
from bpfoom.observe import globs, marks, tree
from bpfoom.observe.marks import Effective, Marked
from bpfoom.observe.tree import Node
from tests.schemas import valid

ROOT = Path("/nowhere")


def node(name: str, *, uid: int = 0, watchers: set[int] = frozenset()) -> Node:  # type: ignore[assignment]
    return Node(name, ROOT, 7, uid, frozenset(watchers))


# Globs


@pytest.mark.parametrize(
    ("base", "glob", "matching", "others"),
    [
        ("/", "api", ["/api"], ["/", "/api2", "/shop/api", "/api/x"]),
        ("/", "*", ["/api", "/*"], ["/", "/a/b"]),
        ("/shop", "api", ["/shop/api"], ["/api", "/shop", "/shop/x/api", "/shopping/api"]),
        ("/shop", "/api", ["/api"], ["/shop/api"]),
        ("/shop", "**", ["/shop", "/shop/a", "/shop/a/b"], ["/", "/shops", "/a"]),
        ("/shop", "**/log", ["/shop/log", "/shop/a/b/log"], ["/shop", "/shop/log/a", "/log"]),
        ("/", "/", ["/"], ["/a"]),
        ("/shop", "/**", ["/", "/a", "/a/b"], []),
        ("/", "a/**/b/*", ["/a/b/c", "/a/x/y/b/c"], ["/a/b", "/a/x/b", "/b/c"]),
        ("/", "**/**/a", ["/a", "/x/y/a"], ["/", "/a/x"]),
        ("/", "a*b*c", ["/abc", "/a__b__c", "/abbc", "/abcbc"], ["/ab", "/acb", "/abcd", "/a/b/c"]),
        ("/", "*.service", ["/.service", "/x.service"], ["/x.slice", "/service"]),
        ("/", "ab*ba", ["/abba", "/abxba"], ["/aba"]),
        # Nothing else is special.
        ("/", "[ab]?", ["/[ab]?"], ["/a1", "/ab"]),
        ("/", r"dev\x2dsda", [r"/dev\x2dsda"], ["/dev-sda"]),
        ("/", "a.b", ["/a.b"], ["/axb"]),
        ("/a*", "x", ["/a*/x"], ["/ab/x"]),
        ("/", "\udcff*", ["/\udcff", "/\udcffx"], ["/x"]),
    ],
)
def test_globs(base: str, glob: str, matching: list[str], others: list[str]) -> None:
    checked = globs.check(glob)
    assert [name for name in matching if not globs.matches(base, checked, name)] == []
    assert [name for name in others if globs.matches(base, checked, name)] == []


@pytest.mark.parametrize(
    "glob", ["", "a**", "**b/c", "a/***", ".", "../a", "a/./b", "a\0b", "a\nb", "x" * 4097]
)
def test_what_is_no_glob(glob: str) -> None:
    with pytest.raises(UsageError, match="glob"):
        globs.check(glob)


@pytest.mark.parametrize(("glob", "plain"), [("//a//b/", "/a/b"), ("a/", "a"), ("/", "/")])
def test_slashes_more_or_less(glob: str, plain: str) -> None:
    assert globs.check(glob) == plain


def test_a_hostile_glob_takes_no_longer() -> None:
    """Backtracking would take years."""
    start = time.monotonic()
    assert not globs.matches("/", "*a" * 120 + "b", "/" + "a" * 255)
    assert not globs.matches("/", "/".join(["**", "a"] * 400 + ["b"]), "/a" * 800)
    assert time.monotonic() - start < 30


NAMES = st.text(st.characters(exclude_characters="/\n\0"), min_size=1, max_size=9).filter(
    lambda name: name not in (".", "..") and "**" not in name
)


@given(st.lists(NAMES, min_size=1, max_size=5))
def test_every_path_matches_itself_and_any_depth(names: list[str]) -> None:
    path = "/" + "/".join(names)
    assert globs.matches("/", globs.check(path), path)
    assert globs.matches("/", globs.check("**/" + names[-1]), path)
    assert globs.matches(path, globs.check("**"), path)
    assert not globs.matches(path, globs.check("*"), path)


# Text forms


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("omit", Mark("omit")),
        ("avoid", Mark("avoid")),
        ("protect", Mark("protect")),
        ("normal", Mark("normal")),
        ("priority:-10", Mark(None, -10)),
        ("priority:+2147483647", Mark(None, 2147483647)),
        ("avoid,priority:5", Mark("avoid", 5)),
        ("priority:-2147483648,omit", Mark("omit", -2147483648)),
        ("priority:0", Mark(None, 0)),
        (" omit , priority:1\n", Mark("omit", 1)),
    ],
)
def test_marks_in_words(text: str, mark: Mark) -> None:
    assert Mark.parse(text) == mark
    assert Mark.parse(str(mark)) == mark


@pytest.mark.parametrize(
    "text",
    [
        *("", ",", "none", "OMIT", "omit,avoid", "priority", "priority:", "priority:x"),
        *("priority:2147483648", "priority:-2147483649", "priority:1,priority:2", "omit,"),
        *("omit\0", "om it", "priority:1e3", "priority:\u0661", "x" * 5000),
    ],
)
def test_what_is_no_mark(text: str) -> None:
    with pytest.raises(UsageError, match="cannot be understood"):
        Mark.parse(text)


@given(
    st.one_of(st.none(), st.sampled_from(PREFERENCES)),
    st.one_of(st.none(), st.integers(-(1 << 31), (1 << 31) - 1)),
)
def test_marks_survive_the_map(preference: str | None, priority: int | None) -> None:
    mark = Mark(preference, priority)
    assert len(mark.pack()) == 16
    assert Mark.unpack(mark.pack()) == mark


def test_the_map_of_the_contract() -> None:
    assert Mark("omit", -2).pack() == bytes.fromhex("04000000 01000000 feffffff 00000000")
    assert Mark("normal").pack() == bytes.fromhex("01000000 00000000 00000000 00000000")
    assert Mark.unpack(bytes.fromhex("63000000 00000000 07000000 00000000")) == Mark()


def test_rules_on_the_command_line() -> None:
    assert parse("batch/*=avoid", "/shop") == Rule("/shop", "batch/*", Mark("avoid"))
    assert parse("a=b=omit", "/") == Rule("/", "a=b", Mark("omit"))
    assert parse("a=omit", "/shop").pattern == "/shop/a"
    assert parse("/a=omit", "/shop").pattern == parse("a=omit", "/").pattern == "/a"
    for wrong in ("omit", "=omit", "a=", "a**=omit"):
        with pytest.raises(UsageError):
            parse(wrong, "/")


# Which mark a cgroup gets


def test_a_later_glob_beats_an_earlier_one_each_part_by_itself() -> None:
    rules = (
        Rule("/", "**", Mark("avoid", 1)),
        Rule("/", "api", Mark("omit")),
        Rule("/", "a*", Mark(None, 9)),
    )
    assert marks.wanted(node("/api"), rules) == Marked(Mark("omit", 9), "/api", "/a*")
    assert marks.wanted(node("/b"), rules) == Marked(Mark("avoid", 1), "/**", "/**")
    assert marks.wanted(node("/b"), ()) is None


def test_the_same_glob_again_replaces_and_comes_last() -> None:
    first, second = Rule("/", "a", Mark("omit")), Rule("/a", "b", Mark("omit"))
    again = Rule("/x", "/a", Mark("avoid"))
    assert marks.added([first, second], [again]) == [second, again]
    assert marks.without([first, second], ["/a/b"]) == [first]
    with pytest.raises(NotThereError, match="/c"):
        marks.without([first], ["/c"])


def test_what_a_failed_command_has_added_goes_and_what_it_replaced_comes_back() -> None:
    first, second = Rule("/", "a", Mark("omit")), Rule("/a", "b", Mark("omit"))
    before, more = [first, second], [Rule("/", "a", Mark("avoid")), Rule("/", "c", Mark("avoid"))]
    added = marks.added(before, more)
    assert added == [second, *more]
    assert marks.undone(added, before, more) == before
    assert marks.undone(marks.added(before, [first]), before, [first]) == before
    # It failed before anything was added.
    assert marks.undone(before, before, more) == before


def test_what_others_have_changed_meanwhile_stays() -> None:
    first, second = Rule("/", "a", Mark("omit")), Rule("/a", "b", Mark("omit"))
    before, more = [first, second], [Rule("/", "a", Mark("avoid"))]
    added = marks.added(before, more)
    theirs = Rule("/", "a", Mark("protect"))
    assert marks.undone(marks.added(added, [theirs]), before, more) == [second, theirs]
    assert marks.undone(marks.without(added, ["/a/b"]), before, more) == [first]
    assert marks.undone([], before, more) == []


@pytest.mark.parametrize(
    ("uid", "watchers", "honoured"),
    [
        (0, set(), True),
        (0, {0, 1000}, True),
        (1000, set(), False),
        (1000, {0}, False),
        (1000, {1000}, True),
        (1000, {1000, 0}, False),
        (1000, {1001}, False),
    ],
)
def test_whose_attributes_are_believed(uid: int, watchers: set[int], honoured: bool) -> None:
    assert marks.honours_user_xattrs(node("/a", uid=uid, watchers=watchers)) is honoured


def test_what_owners_ask_for_takes_room_from_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marks.marks, "MARKS", replace(marks.marks.MARKS, max_entries=3))
    ours, theirs = Marked(Mark("omit"), "/a"), Marked(Mark("avoid"), "user.oomd_avoid")
    found = {number: (node(f"/{number}"), theirs) for number in (1, 2, 3, 4)}
    assert list(marks.fitting({}, found)) == [1, 2, 3]
    # Who is there stays, new ones wait.
    assert list(marks.fitting(dict.fromkeys((3, 4), Mark("avoid")), found)) == [3, 4, 1]
    found |= {number: (node(f"/{number}"), ours) for number in (4, 5)}
    assert list(marks.fitting({}, found)) == [4, 5, 1]
    both = Marked(Mark("avoid", 1), "user.oomd_avoid", "/a")
    found |= {number: (node(f"/{number}"), both) for number in (6, 7)}
    with pytest.raises(BpfoomError, match="room for 3 marks, not for 4"):
        marks.fitting({}, found)


@pytest.fixture
def directory() -> Iterator[Path]:
    """Somewhere that takes attributes of users."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        yield Path(name)


@pytest.mark.parametrize(
    ("given_", "mark"),
    [
        ({"user.oomd_avoid": b"1"}, Mark("avoid")),
        ({"user.oomd_omit": b"true\n", "user.oomd_avoid": b"1"}, Mark("omit")),
        ({"user.oomd_omit": b"0", "user.oomd_avoid": b"YES"}, Mark("avoid")),
        ({"user.oomd_omit": b"\xff\x00"}, None),
        ({"user.oomd_omit": b""}, None),
        ({}, None),
    ],
)
def test_attributes(given_: dict[str, bytes], mark: Mark | None, directory: Path) -> None:
    for name, value in given_.items():
        os.setxattr(directory, name, value)
    found = marks.wanted(Node("/a", directory, 7, 0, frozenset()), ())
    assert (found.mark if found else None) == mark
    # Not believed, or overruled.
    assert marks.wanted(Node("/a", directory, 7, 1000, frozenset({0})), ()) is None
    rule = Rule("/", "a", Mark("normal"))
    assert marks.wanted(Node("/a", directory, 7, 0, frozenset()), (rule,)) == Marked(
        Mark("normal"), "/a", None
    )


def test_a_walk_knows_who_watches(tmp_path: Path) -> None:
    """``a/b`` has a handler, and above all this there is one of uid 5."""
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "d").mkdir()
    (tmp_path / "file").touch()
    watched, me = {(tmp_path / "a" / "b").stat().st_ino}, os.getuid()
    walked = list(tree.walk(tmp_path, "/", watched, frozenset({5})))
    found = {node.name: node.watchers for node in walked}
    assert found == {"/": {5}, "/a": {5}, "/a/b": {5, me}, "/a/b/c": {5, me}, "/d": {5}}
    assert list(tree.walk(tmp_path / "gone", "/gone", {})) == []


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({}, Effective("normal", None, 0, None)),
        ({3: Mark("omit")}, Effective("omit", 3, 0, None)),
        ({1: Mark("omit", 5), 3: Mark("avoid")}, Effective("avoid", 3, 5, 1)),
        ({2: Mark(None, 0), 1: Mark("protect", 5)}, Effective("protect", 1, 0, 2)),
        ({3: Mark("normal"), 2: Mark("omit")}, Effective("normal", 3, 0, None)),
        ({4: Mark("omit", 1)}, Effective("normal", None, 0, None)),
    ],
)
def test_the_nearest_mark_holds(found: dict[int, Mark], expected: Effective) -> None:
    assert marks.effective(found, [3, 2, 1]) == expected


def test_following_looks_at_what_has_stirred_once() -> None:
    assert tree.topmost({"/a/b", "/a", "/ab", "/b/c/d", "/b/c"}) == ["/a", "/ab", "/b/c"]
    assert tree.topmost({"/", "/a"}) == ["/"]
    assert list(tree.ancestors("/a/b/c")) == ["/a/b", "/a", "/"]


def test_a_glob_says_which_configuration_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    rules = (Rule("/shop", "*", Mark("avoid"), "/etc/b.toml"), Rule("/", "api", Mark("protect")))
    found = glob_documents(rules)
    valid("marks", {"marks": [], "globs": found, "stale": 0})
    assert [one["by"] for one in found] == ["/etc/b.toml", None]
    for one in found:
        tell_glob(one)
    assert capsys.readouterr().out.splitlines() == [
        "glob /shop/*: avoid (of /etc/b.toml)",
        "glob /api: protect",
    ]
