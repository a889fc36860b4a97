# SPDX-License-Identifier: Apache-2.0
"""What --json prints is what docs/schemas says, as far as that shows without a patched kernel.

The rest is in tests/guest/test_json.py, where handlers are attached, and tests/host/test_json.py.
"""

from __future__ import annotations

import ast
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from bpfoom import cache, errors
from bpfoom.cli import output, view
from bpfoom.cli.main import main
from bpfoom.observe.records import Decision
from bpfoom.observe.result import Death, Document, Process, Run
from bpfoom.policy import record
from tests.schemas import SCHEMAS, problems, valid

REPOSITORY = Path(__file__).parents[2]
KERNEL = str(REPOSITORY / "tests" / "data" / "kernel.btf")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def typed(capsys):
    def run(*words, code=0):
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        shown = capsys.readouterr()
        assert (ended.value.code or 0) == code, shown.err
        return shown.err if code else shown.out

    return run


@pytest.fixture
def document(typed):
    return lambda *words: json.loads(typed(*words, "--json"))


def a_decision(**fields: int) -> Decision:
    """A record with the given numbers, the rest zero, decoded as the history's are."""
    formats = {"u32": "<I", "s32": "<i", "u64": "<Q", "comm": "<16s"}
    raw = bytearray(record.SIZE)
    for name, value in {"version": record.VERSION, "size": record.SIZE, **fields}.items():
        kind = next(field.type for field in record.FIELDS if field.name == name)
        struct.pack_into(formats[kind], raw, record.offsets()[name], value)
    return Decision(record.decode(bytes(raw)))


# The schemas themselves


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_are_schemas(name):
    Draft202012Validator.check_schema(SCHEMAS[name])
    assert SCHEMAS[name]["$schema"] == Draft202012Validator.META_SCHEMA["$id"]


def objects(schema: object) -> Iterator[dict[str, object]]:
    """Every schema of an object inside a schema."""
    if isinstance(schema, dict):
        if "properties" in schema:
            yield schema
        for inner in schema.values():
            yield from objects(inner)
    if isinstance(schema, list):
        for inner in schema:
            yield from objects(inner)


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_field_is_described(name):
    for found in objects(SCHEMAS[name]):
        bare = [key for key, field in found["properties"].items() if not field.get("description")]
        assert bare == []
        assert set(found["required"]) <= set(found["properties"])


def test_the_decision_schema_is_the_record():
    """Same fields, same words; what the decoder adds is all that comes on top."""
    described = {
        key: field["description"]
        for key, field in SCHEMAS["decision"]["$defs"]["record"]["properties"].items()
    }
    fields = {field.name: field.doc for field in record.FIELDS}
    assert {key: described[key] for key in fields} == fields
    assert set(described) - set(fields) == {"time", "dry_run"}


def examples() -> list[tuple[str, object]]:
    """The documents shown in docs/json.md, each with the schema that is named above it."""
    page = (REPOSITORY / "docs" / "json.md").read_text()
    found = re.findall(r"^<!-- (\S+) -->\n```json\n(.*?)\n```$", page, re.M | re.S)
    return [(name, json.loads(text)) for name, text in found]


def test_the_page_links_every_schema_and_shows_an_example():
    page = (REPOSITORY / "docs" / "json.md").read_text()
    assert set(re.findall(r"\(schemas/([a-z-]+)\.schema\.json\)", page)) == set(SCHEMAS)
    shown = {name.partition("#")[0] for name, _ in examples()}
    # A list of cards shows a card, a gap in the events a number, kernel status its kernel.
    assert set(SCHEMAS) - shown == {"policies", "lost", "kernel-status"}


@pytest.mark.parametrize(("name", "document"), examples())
def test_examples_hold_and_not_a_field_more_or_less(name, document):
    valid(name, document)
    inner, wrap = (document[0], lambda d: [d]) if isinstance(document, list) else (document, dict)
    assert problems(name, wrap({**inner, "surplus": 1}))
    for field in inner:
        assert problems(name, wrap({key: inner[key] for key in inner if key != field}))


# Documents


def view_of(seen: Decision) -> dict[str, object]:
    """A line of events as the view makes it, with cgroup names that need no kernel."""
    return {
        **seen.as_dict(),
        "policy": None,
        "handler_cgroup": "/a",
        "oom_cgroup": "id:9",
        "victim_cgroup": None,
    }


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"verdict": 1, "action": 1, "constraint": 3}, ("HANDLED", "kill", "memcg")),
        ({"verdict": 0, "action": 18, "flags": 1}, ("PASS", "would-kill-cgroup", "none")),
        ({"verdict": -7, "action": 99, "constraint": 9}, ("-7", "99", "9")),
        ({"policy_hash": (1 << 64) - 1, "best_score": (1 << 64) - 1}, ("PASS", "none", "none")),
    ],
)
def test_decisions(fields, shown):
    line = valid("decision", view_of(a_decision(sequence=1, **fields)))
    assert (line["verdict"], line["action"], line["constraint"]) == shown


def test_the_hash_is_hex_as_in_the_provenance():
    assert a_decision(policy_hash=0xAB).as_dict()["policy_hash"] == "00000000000000ab"


def test_result():
    who = Process(7, "hog", "shop/api")
    seen = a_decision(sequence=3, verdict=1, victim_pid=7).named(lambda number: f"id:{number}")
    nobody_knows = Death(7, "hog", "shop/api", *[None] * 7)
    runs = (
        Run(None, None, 1.5, (who,), (), {"shop": {"oom_kill": 1}}, ("Killed process 7",), ()),
        Run("a/b", "largest-task", 2, (), (who,), {}, (), (seen,), (nobody_knows,)),
    )
    shown = valid("result", json.loads(json.dumps(Document("7.3", "tcg", (), runs).as_dict())))
    assert shown["runs"][1]["decision"]["policy_hash"] == "0" * 16


def test_doctor(typed, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--json"])
    shown = valid("doctor", json.loads(capsys.readouterr().out))
    assert shown["ok"] is (ended.value.code == 0)


def test_status(document):
    valid("status", document("status"))


def test_policies(document, typed):
    listed = valid("policies", document("policies"))
    table = [line.split("  ", 1) for line in typed("policies").splitlines()]
    assert [[name, text.strip()] for name, text in table] == [
        [policy["name"], policy["summary"]] for policy in listed
    ]
    for policy in listed:
        one = valid("policy", document("policies", policy["name"]))
        card = typed("policies", policy["name"])
        shown = {key: value for key, value in one.items() if key != "parameters"}
        assert all(value in card for value in shown.values())
        assert all(f"--set {given['name']}=" in card for given in one["parameters"])


def test_check(document, typed):
    words = ("check", "largest-task", "--btf", KERNEL, "--set", "min=1M")
    made = valid("check", document(*words))
    assert made["parameters"][0]["value"] == "1M"
    fields, table = typed(*words).split("\n\n")
    lines = dict(line.strip().split(":", 1) for line in fields.splitlines()[1:])
    shown = {key: value for key, value in made.items() if key not in ("policy", "programs")}
    assert list(lines) == [key.replace("_", " ") for key in shown]
    assert lines["bcc version"].strip() == made["bcc_version"]
    assert [row.split()[0] for row in table.splitlines()[1:]] == [
        program["name"] for program in made["programs"]
    ]


def test_render(document, typed):
    words = ("render", "largest-task", "--btf", KERNEL, "--set", "min=1M")
    shown = valid("render", document(*words))
    assert "".join(line["text"] + "\n" for line in shown["lines"]) == typed(*words)


def test_cache(document, typed):
    cache.write_file("objects", "some-key", b"x" * 5000)
    listed = valid("cache", document("cache"))
    (entry,) = listed["entries"]
    line, total = typed("cache").splitlines()
    kind, key, kib, unit = line.split()[:4]
    assert (kind, key, int(kib), unit) == ("objects", "some-key", entry["bytes"] >> 10, "KiB")
    assert total.endswith(listed["root"])


def test_kernel_patches(document, typed):
    patches = valid("kernel-patches", document("kernel", "patches"))
    head, *lines = typed("kernel", "patches").splitlines()
    assert head.split() == ["PATCH", "+", "-", "SUBJECT"]
    assert [line.split(maxsplit=3) for line in lines] == [
        [row["name"], str(row["added"]), str(row["removed"]), row["subject"]] for row in patches
    ]


def test_kernel_status_before_the_first_build(document, typed):
    status = valid("kernel-status", document("kernel", "status"))
    assert {row["state"] for row in status["flavours"]} == {"not built"}
    assert {row["kernel"] for row in status["flavours"]} == {None}
    lines = typed("kernel", "status").splitlines()
    fields = [key for key in status if key != "flavours"]
    assert [line.split(":", 1)[0] for line in lines[: len(fields)]] == fields
    title, *rows, hint = lines[len(fields) :]
    assert title.split() == ["FLAVOUR", "STATE", "RELEASE", "PATH"]
    assert [row.split()[0] for row in rows] == [row["flavour"] for row in status["flavours"]]


# Errors


@pytest.mark.parametrize(
    ("words", "code", "kind"),
    [
        (("policies", "largest-tsk"), 4, "NotThereError"),
        (("check", "largest-task", "--set", "min=-1", "--btf", KERNEL), 2, "ParameterError"),
        (("check", "largest-task", "--set", "mni=1", "--btf", KERNEL), 2, "ParameterError"),
        (("check", "largest-task", "--btf", "/nosuch"), 2, "UsageError"),
        (("detach",), 2, "UsageError"),
    ],
)
def test_errors(words, code, kind, typed):
    error = valid("error", json.loads(typed(*words, "--json", code=code)))
    assert error["error"] == kind
    assert getattr(errors, kind).exit_code == code
    spoken = typed(*words, code=code)
    assert error["message"] in spoken and error["hint"] in spoken


def test_every_error_and_its_facts_are_in_the_schema():
    """Found in the source: exceptions whose facts come as keywords, and helpers that make them."""
    kinds = {
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.BpfoomError)
    }
    assert set(SCHEMAS["error"]["properties"]["error"]["enum"]) == kinds
    given = set()
    for path in (REPOSITORY / "bpfoom").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and _called(node) in {*kinds, "_stale", "fail", "_check"}:
                given |= {word.arg for word in node.keywords if word.arg}
    facts = set(SCHEMAS["error"]["properties"]["data"]["properties"])
    assert given - {"hint", "detail", "shown"} - facts == set()


def _called(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")


# Tables


def test_tables_of_handlers_and_decisions_show_fields_of_the_schemas(capsys):
    """The columns that are no field themselves are made of fields; without them no row is made."""
    handler = {
        "cgroup": "/a", "cgroup_id": 7, "policy": "p", "name": "p", "dry_run": False,
        "attached_at": None, "updated_at": None, "link_id": 1, "map_id": 2, "prog_id": 3,
    }  # fmt: skip
    valid("handler", handler)
    times = {"since": "attached_at", "updated": "updated_at"}
    assert set(view.handler_row(handler)) - set(handler) == set(times)
    assert set(view.HANDLER_COLUMNS) == {*handler, *times} - set(times.values())
    output.emit_table(view.HANDLER_COLUMNS, [view.handler_row(handler)])
    assert capsys.readouterr().out.splitlines()[1].split() == [
        *("/a", "7", "p", "p", "no", "-", "-", "1", "2", "3")
    ]
    decision = view_of(a_decision(sequence=1))
    made = {"when", "handler", "oom", "victim", "usage", "took"}
    assert set(view.decision_row(decision)) - set(decision) == made
    assert set(view.DECISION_COLUMNS) <= {*decision, *made}
