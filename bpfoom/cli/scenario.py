# SPDX-License-Identifier: Apache-2.0
"""``bpfoom scenario``: OOMs with a known answer, run in the guest or on this machine."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bpfoom.cli import complete
from bpfoom.cli.output import emit_json, emit_json_line, emit_table, say
from bpfoom.errors import CommandError, InfrastructureError, PermissionDeniedError

if TYPE_CHECKING:
    from bpfoom.scenario.model import Scenario
    from bpfoom.scenario.suite import Result

_COLUMNS = {
    "scenario": "SCENARIO",
    "policy": "POLICY",
    "victims": "VICTIMS",
    "decided_by": "DECIDED BY",
    "verdict": "VERDICT",
    "result": "RESULT",
}
_LISTED = {"name": "SCENARIO", "policies": "POLICIES", "summary": "SUMMARY"}


@click.group("scenario")
def scenario_command() -> None:
    """Run out of memory on purpose, in trees whose right victim is known.

    \b
    Examples:
      bpfoom scenario run largest-task
      bpfoom scenario list
    """


@scenario_command.command("run")
@click.argument("scenarios", nargs=-1, metavar="[FILE|DIR|NAME]...")
@click.option("--here", is_flag=True, help="On this machine's kernel, as root; no guest.")
@click.option("--accel", type=click.Choice(["auto", "kvm", "tcg"]), default="auto")
@click.option("--system-wide", is_flag=True, help="With --here: those that risk any process, too.")
@click.option(
    "--policy",
    metavar="NAME|FILE",
    shell_complete=complete.policies,
    help="Attach this one instead of the scenario's.",
)
@click.option("--repeat", type=click.IntRange(min=1), default=1, help="Run each so often.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--junit", type=click.Path(path_type=Path), help="Write the results there, too.")
@click.option(
    "--result", type=click.Path(path_type=Path), help="Write what was seen there, for report."
)
def run_command(
    scenarios: tuple[str, ...],
    here: bool,
    accel: str,
    system_wide: bool,
    policy: str | None,
    repeat: int,
    as_json: bool,
    junit: Path | None,
    result: Path | None,
) -> None:
    """Run scenarios, by default the whole library, in the guest.

    \b
    Examples:
      bpfoom scenario run                       # all that are shipped
      bpfoom scenario run largest-task          # those of one area
      bpfoom scenario run mine.toml --here      # a file, on this machine's kernel
      bpfoom scenario run swap --result swap.json && bpfoom report swap.json
    """
    from bpfoom.policy import compose
    from bpfoom.scenario.library import check_policies, find_scenarios

    for place in (junit, result):
        if place:
            _check_place(place)
    found = find_scenarios(scenarios)
    if policy is not None:
        policy = _absolute(policy)
        compose.plan(policy, {})
        found = [scenario.with_policy(policy) for scenario in found]
    else:
        check_policies(found)
    document = (
        _here(found, repeat, system_wide) if here else _in_guest(found, policy, repeat, accel)
    )
    if as_json:
        emit_json(document)
    else:
        _print(document)
    # After printing: what cannot be written is not lost.
    if junit:
        from bpfoom.scenario import junit as writer

        writer.write(document, junit)
    if result:
        from bpfoom.observe.result import write_file
        from bpfoom.scenario.suite import result_of

        write_file(result, result_of(document))
    sys.exit(_status(document))


@scenario_command.command("list")
@click.argument("scenarios", nargs=-1, metavar="[FILE|DIR|NAME]...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def list_command(scenarios: tuple[str, ...], as_json: bool) -> None:
    """List scenarios, by default those that are shipped.

    \b
    Examples:
      bpfoom scenario list
      bpfoom scenario list largest-task
    """
    from bpfoom.scenario.library import find_scenarios

    rows: list[dict[str, Any]] = [
        {
            "name": scenario.name,
            "file": str(scenario.file),
            "summary": scenario.summary,
            "policies": sorted({attachment.policy for attachment in scenario.attachments}),
            "system_wide": scenario.system_wide,
        }
        for scenario in find_scenarios(scenarios)
    ]
    if as_json:
        emit_json(rows)
    else:
        emit_table(_LISTED, [{**row, "policies": _names(row["policies"])} for row in rows])


@scenario_command.command("play", hidden=True)
@click.option("--repeat", type=int, default=1)
def play_command(repeat: int) -> None:
    """In the guest: run the bundle on stdin, its results as JSON on stdout."""
    from bpfoom.scenario.library import Bundle

    with tempfile.TemporaryDirectory() as directory:
        bundle = Bundle.from_dict(json.load(sys.stdin))
        document = _here(bundle.unpack(Path(directory)), repeat, system_wide=True)
        emit_json_line(bundle.as_written(document, Path(directory)))


def _here(scenarios: Sequence[Scenario], repeat: int, system_wide: bool) -> dict[str, Any]:
    if os.geteuid() != 0:
        raise PermissionDeniedError("scenarios make cgroups, which needs root", hint="sudo")
    from bpfoom.scenario import suite
    from bpfoom.scenario.run import Machine

    with Machine(system_wide=system_wide) as machine:
        return suite.run(scenarios, machine, repeat, _tell)


def _tell(result: Result) -> None:
    word = "PASS" if result.passed else "FAIL"
    click.echo(f"{word}  {result.scenario.name}  {result.seconds:.1f} s", err=True)


def _in_guest(
    scenarios: Sequence[Scenario], policy: str | None, repeat: int, accel: str
) -> dict[str, Any]:
    """One boot for all of them; what only the host knows is added."""
    from dataclasses import asdict

    from bpfoom.cli.progress import progress
    from bpfoom.guest.session import Session, prepared
    from bpfoom.scenario.library import Bundle

    bundle = json.dumps(asdict(Bundle.of(scenarios, policy))).encode()
    with progress() as shown:
        kernel, image = prepared(shown)
    with Session(kernel, image, accelerator=accel) as guest:
        argv = ["bpfoom", "scenario", "play", "--repeat", str(repeat)]
        result = guest.run(argv, stdin=bundle, on_output=_echo)
        accelerator = guest.info.accelerator
    splats = [splat.title for splat in result.splats]
    if result.exit_status:
        raise CommandError(
            f"the scenarios failed in the guest with status {result.exit_status}",
            detail=result.stderr.decode("utf-8", "replace"),
            splats=splats,
        )
    document: dict[str, Any] = json.loads(result.stdout)
    passed = document["passed"] and not splats
    return {**document, "accelerator": accelerator, "splats": splats, "passed": passed}


def _echo(stream: str, data: bytes) -> None:
    """What the guest says meanwhile."""
    if stream == "stderr":
        click.echo(data.decode("utf-8", "replace"), err=True, nl=False)


def _check_place(file: Path) -> None:
    """Raise what writing a file there would raise after all the work."""
    was_there = file.exists()
    with open(file, "ab"):
        pass
    if not was_there:
        file.unlink()


def _absolute(policy: str) -> str:
    return str(Path(policy).absolute()) if "/" in policy or policy.endswith(".j2") else policy


def _status(document: dict[str, Any]) -> int:
    if document["splats"] or any(result["infrastructure"] for result in document["results"]):
        return InfrastructureError.exit_code
    return 0 if document["passed"] else 1


def _print(document: dict[str, Any]) -> None:
    click.echo(f"kernel {document['kernel']}, accelerator {document['accelerator']}\n")
    emit_table(_COLUMNS, [_row(result) for result in document["results"]])
    for line in _complaints(document):
        say(line)


def _row(result: dict[str, Any]) -> dict[str, Any]:
    """A table's row: the last repetition's outcome."""
    last = result["outcomes"][-1] if result["outcomes"] else None
    decision = last["run"]["decision"] if last else None
    times = f" x{len(result['outcomes'])}" if len(result["outcomes"]) > 1 else ""
    return {
        "scenario": result["scenario"],
        "policy": _names(a["policy"] for a in result["policies"]),
        "victims": _names(p["comm"] for p in last["run"]["victims"]) if last else "",
        "decided_by": _names(last["decided_by"]) if last else "",
        "verdict": decision["verdict"] if decision else "",
        "result": ("PASS" if result["passed"] else "FAIL") + times,
    }


def _complaints(document: dict[str, Any]) -> Iterator[str]:
    """What did not hold, below the table."""
    for result in document["results"]:
        if result["passed"]:
            continue
        yield ""
        yield f"{result['scenario']}: {result['summary']} ({result['file']})"
        yield from (f"    {line}" for line in result["tree"])
        for failure in result["failures"]:
            yield f"  {failure['key']}: expected {failure['expected']}, seen {failure['seen']}"
        if error := result["error"]:
            yield f"  {error['error']}: {error['message']}"
            yield from (f"    {line}" for line in error["detail"].splitlines())
            if error["hint"]:
                yield f"  hint: {error['hint']}"
    for splat in document["splats"]:
        yield ""
        yield f"kernel splat: {splat}"


def _names(names: Sequence[str] | Iterator[str]) -> str:
    return ", ".join(Path(name).name.removesuffix(".bpf.c.j2") or name for name in names)
