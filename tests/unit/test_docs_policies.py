# SPDX-License-Identifier: Apache-2.0
"""docs/policies.md says what is so: its tables beside cards, templates, functions and records."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bpfoom.btf.types import Btf
from bpfoom.compiler import lint, source
from bpfoom.compiler.build import compile_policy
from bpfoom.policy import card, find, params, record, starter
from bpfoom.policy.functions import Functions
from bpfoom.scenario.parse import parse

ROOT = Path(__file__).parents[2]
KERNEL = ROOT / "tests" / "data" / "kernel.btf"
PAGE = (ROOT / "docs" / "policies.md").read_text()
WRITING = (ROOT / "docs" / "writing-policies.md").read_text()


def section(title):
    """The text below a heading, up to the next of its level."""
    _, _, rest = PAGE.partition(f"\n## {title}\n")
    assert rest, title
    return rest.partition("\n## ")[0]


def rows(text, first):
    """The cells of each row of the table whose heading starts with this cell."""
    lines = text[text.index(f"| {first} |") :].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines[2:]]


def named(cell):
    return re.findall(r"`([^`]+)`", cell)


def test_the_library_is_what_is_shipped():
    shipped = sorted((ROOT / "bpf" / "policies").glob(f"*{find.SUFFIX}"))
    listed = {named(row[0])[0]: row[2] for row in rows(section("The library"), "policy")}
    assert sorted(listed) == [path.name.removesuffix(find.SUFFIX) for path in shipped]
    for path in shipped:
        policy = find.read(path)
        shown = [
            f"`{p.name}={params.show(p, p.default)}`" + "*" * p.live for p in policy.card.params
        ]
        assert listed[policy.name] == ", ".join(shown), policy.name


def blocks(*files):
    text = "".join((ROOT / "bpf" / "include" / f"{file}.bpf.c.j2").read_text() for file in files)
    return set(re.findall(r"\{% block (\w+)", text))


def test_the_blocks_are_those_of_the_bases():
    text = section("Bases and blocks")
    listed = [named(row[0])[0] for row in rows(text, "block")]
    own = named(re.findall(r"The blocks (.*) are the bases' own", text)[0])
    for base in ("tasks", "cgroups"):
        known = blocks("base", base)
        assert set(listed) <= known <= {*listed, *own}, base
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize(("column", "base"), [(2, "tasks"), (3, "cgroups")])
def test_blocks_see_the_parameters_of_the_function_whose_body_they_are(column, base):
    text = "".join(
        (ROOT / "bpf" / "include" / f"{file}.bpf.c.j2").read_text() for file in ("base", base)
    )
    for row in rows(section("Bases and blocks"), "block"):
        (block,) = named(row[0])
        before = re.split(rf"\{{% block {block}\b", text)[0]
        parameters = before.rpartition("static ")[2].partition(")")[0]
        seen = re.findall(r"(\w+)(?:,|$)", parameters)
        if block != "declarations":
            assert set(named(row[column])) == set(seen) - {"call"}, block


def test_what_templates_set_before_they_extend():
    listed = set(re.findall(r"`\{% set (\w+) = true %\}`", PAGE))
    asked = "".join(p.read_text() for p in (ROOT / "bpf" / "include").glob("*.j2"))
    assert listed - {"dry_run"} == set(re.findall(r"\{% set (\w+) = \1 is defined", asked))


def test_types_and_entries_of_parameters():
    text = section("Parameters")
    assert {named(row[0])[0] for row in rows(text, "type")} == set(params.TYPES)
    assert {name for row in rows(text, "entry") for name in named(row[0])} == {
        *("type", "default", "help", "min", "max", "choices", "live")
    }
    assert f"at most {card.MAX_LENGTH >> 10} KiB" in PAGE


def test_what_a_template_can_call():
    text = section("What a template can call")
    listed = {name.partition("(")[0] for row in rows(text, "call") for name in named(row[0])}
    with Btf.from_file(KERNEL) as btf:
        names = Functions(btf, []).names()
    assert listed == {name for name, what in names.items() if callable(what)}


def test_records_have_these_fields_at_these_offsets():
    text = section("The decision record")
    assert f"Version {record.VERSION}: one per call, {record.SIZE} bytes" in text
    found = re.findall(r"(\d+) \| `(\w+)` (\w+)", text)
    listed = {(int(at), name, kind) for at, name, kind in found}
    for fields in (record.FIELDS, record.CANDIDATE_FIELDS):
        at = record.offsets(fields)
        wanted = {(at[f.name], f.name, f.type) for f in fields}
        assert wanted <= listed, wanted - listed
        listed -= wanted
    assert not listed
    codes = {"action": record.ACTIONS, "verdict": record.VERDICTS}
    codes |= {"reason": record.REASONS, "flags": record.FLAGS}
    for name, known in codes.items():
        assert f"| `{name}` | {', '.join(f'{k} {v}' for k, v in known.items())} |" in text


def test_the_rules_of_the_lint():
    listed = {
        name
        for row in rows(section("What bcc gets silently wrong"), "rule")
        for name in named(row[0])
    }
    code = "".join(Path(module.__file__).read_text() for module in (lint, source))
    known = set(re.findall(r'Finding\(\s*"([a-z-]+)"', code))
    assert listed == known | set(re.findall(r'findings=\[\["([a-z]+)"', code))


def test_the_policy_that_is_written_compiles_and_its_scenarios_can_be_read(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path, _ = starter.write("private", "task", tmp_path)
    head, _, _ = path.read_text().partition("{% extends")
    own = re.sub(r"\[params.part\].*?\n(?=---#\})", "", head, flags=re.DOTALL)
    (body,) = re.findall(r"```jinja\n(\{% extends.*?)```", WRITING, re.DOTALL)
    path.write_text(own + body)
    assert [p.name for p in compile_policy(str(path), {}, btf=KERNEL).parameters] == ["min"]
    (text,) = re.findall(r"```toml\n(# viewer.*?)```", WRITING, re.DOTALL)
    assert parse(text, name="private", file=path).expect.victims == ("worker",)
    (end,) = re.findall(r"```\n(\[expect\].*?)```", WRITING, re.DOTALL)
    other = text.partition("[expect]")[0] + end
    assert parse(other, name="private", file=path).expect.decided_by == ("kernel",)


@pytest.mark.parametrize("text", [PAGE, WRITING], ids=["policies", "writing-policies"])
def test_links_lead_somewhere(text):
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert (ROOT / "docs" / target).exists(), target
