# SPDX-License-Identifier: Apache-2.0
"""``bpfoom explain``: who would die if a cgroup ran out of memory now, and why."""

from __future__ import annotations

from typing import Any

import click

from bpfoom.cli import output, view
from bpfoom.cli.options import CGROUP_OPTION
from bpfoom.observe import cgroupfs, overrides

CANDIDATE_COLUMNS = {
    "place": "RANK",
    "who": "CANDIDATE",
    "preference": "PREFERENCE",
    "tier": "TIER",
    "score": "SCORE",
    "tie": "TIE",
    "usage": "USAGE",
    "skipped": "SKIPPED",
}
_OUTCOMES = {
    "kernel": "no handler would act: the kernel's killer would choose {kernel}",
    "handler": "{handler} would act: {action}",
    "promise": "{handler} would promise memory, and the OOM would wait up to {promise_ms} ms",
    "join": "nobody would be asked: the OOM would wait for memory that is promised already",
    "victims": "{handler} would pass, and the OOM would wait for victims on their way out",
}


@click.command(name="explain")
@CGROUP_OPTION
@click.option(
    "--order",
    type=click.IntRange(0, 30),
    default=0,
    show_default=True,
    help="Of the allocation that would fail.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Candidates to print for each handler; --json has all.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def explain_command(cgroup: str, order: int, limit: int, as_json: bool) -> None:
    """Ask the kernel who would be chosen now, and why. Nothing is killed.

    The handlers from PATH up to the root are asked in a dry run of the kernel, each for its ranked
    candidates; beside them stands the choice of the kernel's own killer.

    \b
    Examples:
      bpfoom explain --cgroup shop
      bpfoom explain --cgroup / --json
    """
    from bpfoom.btf.types import Btf
    from bpfoom.handler import pins
    from bpfoom.observe.explain import explain

    target = cgroupfs.resolve(cgroup)
    cgroupfs.require_memory(target)
    with Btf.from_file() as btf:
        found = explain(target, cgroupfs.lineage(target), order, btf, pins.require())
    fields = found.as_dict()
    for link in fields["chain"]:
        for candidate in link["candidates"]:
            candidate["cgroup"] = view.cgroup_name(candidate["cgroup_id"])
    if as_json:
        output.emit_json(fields)
    else:
        _print(fields, limit)


def _print(fields: dict[str, Any], limit: int) -> None:
    what = "the whole system" if fields["cgroup"] == "/" else fields["cgroup"]
    output.say(f"{what}, order {fields['order']}: {_outcome(fields)}")
    output.say(f"the kernel's own killer: {_kernel(fields)}")
    for name, value in fields["sysctls"].items():
        click.echo(f"overridden by vm.{name} = {value}: {overrides.SYSCTLS[name]}")
    if not fields["chain"]:
        click.echo("no handler is attached here or above")
    for number, link in enumerate(fields["chain"], 1):
        click.echo()
        output.say(f"handler {number}: {_handler(link)}")
        _print_candidates(link["candidates"], limit, not fields["lost"])
    if fields["lost"]:
        click.echo(f"\n({fields['lost']} more candidates, for which there was no room)")


def _outcome(fields: dict[str, Any]) -> str:
    names = {link["cgroup_id"]: link["cgroup"] for link in fields["chain"]}
    where = names.get(fields["cgroup_id"], f"id:{fields['cgroup_id']}")
    text = _OUTCOMES.get(fields["outcome"], str(fields["outcome"]))
    return text.format(
        kernel=_kernel(fields),
        handler=f"the handler of {where}",
        action=_action(fields),
        promise_ms=fields["promise_ms"],
    )


def _action(fields: dict[str, Any]) -> str:
    """What the handler would do, as the kernel has recorded it."""
    parts = []
    if fields["nr_kills"]:
        killed = "1 process" if fields["nr_kills"] == 1 else f"{fields['nr_kills']} processes"
        victim = f", first {_process(fields['victim_pid'])}" if fields["victim_pid"] else ""
        where = f" in {view.cgroup_name(fields['victim_memcg_id'])}"
        parts.append(f"kill {killed}{victim}{where if fields['victim_memcg_id'] else ''}")
    if fields["raised_max"]:
        parts.append(f"raise memory.max to {output.size(fields['raised_max'])}")
    return ", ".join(parts) or "release memory"


def _process(pid: int) -> str:
    from bpfoom.observe.explain import comm_of

    return f"{comm_of(pid) or 'pid'}[{pid}]"


def _kernel(fields: dict[str, Any]) -> str:
    pid = fields["kernel_pid"]
    if pid > 0:
        return _process(pid)
    return "would wait for a victim on its way out" if pid < 0 else "nobody"


def _handler(link: dict[str, Any]) -> str:
    text = f"{link['policy'] or 'not attached by bpfoom'} on {link['cgroup']}"
    decision = link["decision"]
    if decision is None:
        asked = "tells nothing" if not link["policy"] else "not asked"
        return f"{text}: {asked}"
    victim = ""
    if decision["victim_pid"]:
        victim = f" {decision['victim_comm']}[{decision['victim_pid']}]"
    elif decision["victim_cgroup_id"]:
        victim = f" {view.cgroup_name(decision['victim_cgroup_id'])}"
    seen = "1 candidate" if decision["seen"] == 1 else f"{decision['seen']} candidates"
    return f"{text}: {decision['verdict']}, {view.action(decision)}{victim}, {seen}"


def _print_candidates(candidates: list[dict[str, Any]], limit: int, complete: bool) -> None:
    if not candidates:
        return
    shown = candidates[:limit]
    rows = [_row(number, candidate, complete) for number, candidate in enumerate(shown, 1)]
    output.emit_table(CANDIDATE_COLUMNS, rows)
    if len(candidates) > limit:
        click.echo(f"({len(candidates) - limit} more: --limit, --json)")


def _row(number: int, candidate: dict[str, Any], complete: bool) -> dict[str, Any]:
    """A candidate's row; without a rank where others, perhaps before it, are missing."""
    skipped = candidate["reason"] != "none"
    where = candidate["cgroup"]
    process = f"{candidate['comm']}[{candidate['pid']}] in {where}"
    return {
        **candidate,
        "place": number if complete and not skipped else None,
        "who": process if candidate["pid"] else where,
        "score": None if skipped else candidate["score"],
        "tie": candidate["tie"] or None,
        "usage": output.size(candidate["usage"]),
        "skipped": candidate["reason"] if skipped else None,
    }
