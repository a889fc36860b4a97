# SPDX-License-Identifier: Apache-2.0
"""The JSON of a handler that is attached and has decided, against docs/schemas and the tables.

::

    /sys/fs/cgroup
    └── bpfoom-json     memory.max 32M, no swap, largest-task; one task ate it and was killed
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpfoom.cli import output, view
from bpfoom.errors import BpfoomError
from bpfoom.observe import cgroupfs
from tests.guest.byhand import DEADLINE_S, cli, cli_json, oom_once, remove_tree
from tests.schemas import valid

# Documents for people: each takes seconds of Python, and minutes on a debug kernel.
pytestmark = pytest.mark.flavours("plain")

BOX = Path("/sys/fs/cgroup/bpfoom-json")
NAME = f"/{BOX.name}"


@pytest.fixture(scope="module")
def made() -> Iterator[dict[str, Any]]:
    """What attach printed, after the OOM that the handler decided."""
    BOX.mkdir()
    (BOX / "memory.max").write_text("32M")
    (BOX / "memory.swap.max").write_text("0")
    printed = cli_json("attach", "--cgroup", NAME, "--policy", "largest-task", "--set", "min=1M")
    oom_once(cgroupfs.resolve(NAME))
    assert valid("attached", printed)["raised"] == []
    yield {key: value for key, value in printed.items() if key != "raised"}
    cli("detach", "--cgroup", NAME)
    remove_tree(BOX)


def events() -> list[dict[str, Any]]:
    code, out, err = cli("events", "--json")
    assert code == 0, err
    found = [json.loads(line) for line in out.splitlines()]
    return [valid("lost" if "lost" in one else "decision", one) for one in found]


def table(text: str) -> list[list[str]]:
    """The cells of a plain table, its titles first: columns are at least two spaces apart."""
    return [re.split(r" {2,}", line) for line in text.splitlines()]


def cells(columns: dict[str, str], row: dict[str, Any]) -> list[str]:
    return [output.text(row[key]) for key in columns]


def test_attach_and_list(made: dict[str, Any]) -> None:
    valid("handler", made)
    listed = valid("handlers", cli_json("list"))
    assert listed == [made]
    titles, *rows = table(cli("list")[1])
    assert titles == list(view.HANDLER_COLUMNS.values())
    assert rows == [cells(view.HANDLER_COLUMNS, view.handler_row(made))]


def test_show(made: dict[str, Any]) -> None:
    shown = valid("show", cli_json("show", "--cgroup", NAME))
    assert {key: shown[key] for key in made} == made
    assert shown["parameters"][0]["value"] == "1M"
    assert shown["last_decision"]["policy_hash"] == shown["provenance"]["policy_hash"][:16]
    text = cli("show", "--cgroup", NAME)[1]
    fields = dict(line.split(":", 1) for line in text.splitlines()[:-3] if ":" in line)
    lines = {key: value.strip() for key, value in fields.items()}
    for group, prefix in (("provenance", ""), ("memory_events", "memory.events ")):
        for key, value in shown[group].items():
            title = prefix + (key.replace("_", " ") if not prefix else key)
            assert lines[title] == output.text(value)
    assert lines["program tag"] == shown["prog_tag"]
    assert lines["set min"] == "1M"


def test_events(made: dict[str, Any]) -> None:
    found = [one for one in events() if "lost" not in one]
    (kill,) = [one for one in found if one["oom_cgroup"] == NAME and one["victim_pid"]]
    assert (kill["verdict"], kill["action"], kill["constraint"]) == ("HANDLED", "kill", "memcg")
    assert kill["handler_cgroup_id"] == made["cgroup_id"]
    titles, *rows = table(cli("events")[1])
    assert titles == list(view.DECISION_COLUMNS.values())
    # "when" follows the present clock, whose offset may move by a microsecond between two reads.
    expected = [cells(view.DECISION_COLUMNS, view.decision_row(one)) for one in found]
    assert [row[:1] + row[2:] for row in rows] == [row[:1] + row[2:] for row in expected]


def test_status(made: dict[str, Any]) -> None:
    status = valid("status", cli_json("status"))
    assert status["handlers"] == [made]
    assert [one["sequence"] for one in status["decisions"]] == [
        one["sequence"] for one in events()[-5:]
    ]
    text = cli("status")[1]
    assert text.splitlines()[0] == status["kernel"]["summary"]
    assert f"\n{'CGROUP'}" in text and "last decisions:" in text


def test_doctor() -> None:
    document = valid("doctor", cli_json("doctor"))
    titles, *rows = table(cli("doctor")[1].rsplit("\n", 2)[0])
    assert titles == ["STATUS", "WHAT", "SEEN", "WHAT TO DO"]
    assert rows == [
        [output.text(found[key]) for key in ("status", "name", "seen", "advice")]
        for found in document["findings"]
    ]


def test_check() -> None:
    assert valid("check", cli_json("check", "largest-task"))["verifier"] == "accepts it"


def test_errors_of_the_kernel_side(made: dict[str, Any]) -> None:
    code, _, err = cli("attach", "--cgroup", NAME, "--policy", "largest-task", "--json")
    error = valid("error", json.loads(err))
    assert (code, error["error"]) == (BpfoomError.exit_code, "BpfoomError")
    assert error["data"]["errno"] == 17 and error["data"]["cgroup_id"] == made["cgroup_id"]
    code, _, err = cli("show", "--cgroup", "/", "--json")
    assert (code, valid("error", json.loads(err))["error"]) == (4, "NotThereError")


def test_demo() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bpfoom.cli.main", "demo", "--here", "--json"],
        capture_output=True, text=True, timeout=10 * DEADLINE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = valid("result", json.loads(done.stdout))
    stock, ours = document["runs"]
    assert stock["handler"] is None and stock["decision"] is None
    assert ours["decision"] in ours["decisions"]
    assert ours["decision"]["verdict"] == "HANDLED"


def test_detach(made: dict[str, Any]) -> None:
    """The last one: it takes away what the others look at."""
    gone = valid("detached", cli_json("detach", "--cgroup", NAME))
    (one,) = gone
    assert (one["cgroup_id"], one["handler"], one["raised"]) == (made["cgroup_id"], True, [])
    assert valid("handlers", cli_json("list")) == []
