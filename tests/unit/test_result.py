# SPDX-License-Identifier: Apache-2.0
"""Result files: written whole, read back as they were, and anything else named for what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bpfoom.errors import BpfoomError, NotThereError, ResultFileError
from bpfoom.observe import result
from bpfoom.policy import record
from tests.schemas import SCHEMAS, valid

SAMPLE = Path(__file__).parents[1] / "data" / "result.json"


def test_the_sample_is_what_the_schema_says_and_what_is_read() -> None:
    document = result.read_file(SAMPLE)
    assert document.as_dict() == valid("result", json.loads(SAMPLE.read_text()))
    stock, ours = document.runs
    assert stock.decision is None and ours.decision is not None
    assert ours.decision.verdict == "HANDLED" and ours.decision.at == ours.decision.time
    assert {death.decision for death in ours.deaths} == {ours.decision.sequence}


def test_the_page_describes_every_field_of_a_record_and_of_a_run() -> None:
    page = (Path(__file__).parents[2] / "docs" / "results.md").read_text()
    for field in record.FIELDS:
        assert f"| `{field.name}` | {field.doc} |" in page
    for name in SCHEMAS["result"]["$defs"]["run"]["properties"]:
        assert f"`{name}`" in page


def test_written_and_read_again(tmp_path: Path) -> None:
    document = result.read_file(SAMPLE)
    path = tmp_path / "result.json"
    path.write_text("before")
    result.write_file(path, document)
    assert result.read_file(path) == document
    assert [left.name for left in tmp_path.iterdir()] == ["result.json"]


def test_codes_of_a_later_version_are_kept(tmp_path: Path) -> None:
    sample = json.loads(SAMPLE.read_text())
    record = sample["runs"][1]["decisions"][0]
    record.update(action="77", verdict="-3", later="?")
    sample["runs"][1]["later"] = 1
    path = tmp_path / "later.json"
    path.write_text(json.dumps(sample))
    read = result.read_file(path).runs[1].decisions[0]
    assert (read.action, read.verdict, read.fields["action"]) == ("77", "-3", 77)


def without(*keys: str | int) -> str:
    """The sample without the value at that place."""
    sample = inner = json.loads(SAMPLE.read_text())
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    return json.dumps(sample)


def with_value(value: Any, *keys: str | int) -> str:
    """The sample with another value at that place."""
    sample = inner = json.loads(SAMPLE.read_text())
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return json.dumps(sample)


FOREIGN = {
    "nothing": ("", "Expecting value"),
    "half": (SAMPLE.read_text()[: SAMPLE.stat().st_size // 2], "not a whole one"),
    "binary": (b"\x7fELF\xff\xfe\x00", "no result of bpfoom"),
    "deep": ("[" * 100_000, "recursion"),
    "a list": ("[]", "the document is not an object"),
    "another program's": ('{"name": "x"}', "the document has no kernel"),
    "another version's": ('{"version": 2}', "version 2, and this bpfoom reads version 1"),
    "no victims": (without("runs", 0, "victims"), r"the document.runs\[0\] has no victims"),
    "half a decision": (without("runs", 1, "decisions", 0, "action"), r"decisions\[0\]: 'action'"),
    "a word for a number": (with_value("9", "runs", 0, "started"), "started is not a number"),
    "true for a number": (with_value(True, "runs", 0, "deaths", 0, "pid"), "pid is not a whole"),
    "a decision's word": (
        with_value("x", "runs", 1, "decisions", 0, "seen"),
        "seen is not a whole number",
    ),
    "null for a list": (with_value(None, "tree"), "tree is not a list"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_what_is_no_result_is_named(what: str, tmp_path: Path) -> None:
    content, message = FOREIGN[what]
    path = tmp_path / "foreign"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ResultFileError, match=message) as raised:
        result.read_file(path)
    assert str(path) in raised.value.message and raised.value.hint


def test_every_prefix_of_a_result_is_a_half_one(tmp_path: Path) -> None:
    whole = SAMPLE.read_bytes().rstrip()
    path = tmp_path / "half"
    for size in range(0, len(whole), 997):
        path.write_bytes(whole[:size])
        with pytest.raises(ResultFileError):
            result.read_file(path)


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(NotThereError):
            result.read_file(path)


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    document = result.read_file(SAMPLE)
    for path in (tmp_path / "nowhere" / "result.json", tmp_path, Path("/dev/null")):
        with pytest.raises(BpfoomError):
            result.write_file(path, document)
    assert list(tmp_path.iterdir()) == [] and not Path("/dev/null").is_file()
