# SPDX-License-Identifier: Apache-2.0
"""What handlers and decisions are called on the command line: ids become names, codes words.

One dictionary per thing, printed as a table row or as JSON by every command alike.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import cache
from typing import Any

from bpfoom.cli import output
from bpfoom.handler.describe import Handler
from bpfoom.handler.trigger import Trigger
from bpfoom.observe import cgroupfs
from bpfoom.observe.records import Decision, boot_offset
from bpfoom.policy.record import FLAG_DECLARED

HANDLER_COLUMNS = {
    "cgroup": "CGROUP",
    "cgroup_id": "ID",
    "policy": "POLICY",
    "name": "NAME",
    "dry_run": "DRY RUN",
    "since": "SINCE",
    "updated": "UPDATED",
    "link_id": "LINK",
    "map_id": "MAP",
    "prog_id": "PROGRAM",
}
DECISION_COLUMNS = {
    "sequence": "SEQ",
    "when": "TIME",
    "handler": "HANDLER",
    "policy": "POLICY",
    "oom": "OUT OF MEMORY",
    "verdict": "VERDICT",
    "action": "ACTION",
    "victim": "VICTIM",
    "usage": "USAGE",
    "seen": "SEEN",
    "took": "TOOK",
}


def cgroup_name(cgroup_id: int) -> str:
    """A cgroup's path below the mount, or "id:N" once it is gone."""
    found = cgroupfs.by_id(cgroup_id)
    return found.name if found else f"id:{cgroup_id}"


def handler(attached: Handler) -> dict[str, Any]:
    """One handler, JSON-ready."""
    return {
        "cgroup": cgroup_name(attached.cgroup_id),
        "cgroup_id": attached.cgroup_id,
        "policy": attached.policy,
        "name": attached.name,
        "dry_run": attached.dry_run,
        "attached_at": attached.attached_at,
        "updated_at": attached.updated_at,
        "link_id": attached.link_id,
        "map_id": attached.map_id,
        "prog_id": attached.prog_id,
    }


def handler_row(fields: dict[str, Any]) -> dict[str, Any]:
    """The same for a table."""
    times = {"since": fields["attached_at"], "updated": fields["updated_at"]}
    return {**fields, **{key: output.clock(at) for key, at in times.items()}}


def parameters(compiled: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Parameters as they are set, JSON-ready: without the place of live ones in their map."""
    shown = ("name", "type", "value", "live")
    return [{key: parameter[key] for key in shown} for parameter in compiled]


def present_parameters(attached: Handler) -> list[dict[str, Any]]:
    """The same of a handler, as they are now."""
    return parameters(
        {**asdict(parameter), "value": attached.values[parameter.name]}
        for parameter in attached.parameters
    )


def trigger(found: Trigger) -> dict[str, Any]:
    """One trigger, JSON-ready."""
    settings, state = found.settings, found.state

    def epoch(microseconds: int) -> float | None:
        return round(boot_offset() + microseconds / 1e6, 3) if microseconds else None

    return {
        "cgroup": cgroup_name(found.cgroup_id),
        "cgroup_id": found.cgroup_id,
        "psi": settings.psi,
        "cooldown_us": settings.cooldown_us,
        "repeat": settings.repeat,
        "set_at": found.provenance.get("attached_at"),
        "armed": state.armed,
        "looks": state.looks,
        "looked_at": epoch(state.looked_us),
        "stall_us": state.stall_us,
        "declared": state.fired,
        "relieved": state.relieved,
        "declared_at": epoch(state.fired_us),
        "result": state.result,
        "link_id": found.link_id,
        "prog_id": found.prog_id,
    }


def decisions(
    found: Iterable[Decision], handler_of: Callable[[int], Handler | None]
) -> list[dict[str, Any]]:
    """Decisions, JSON-ready: the records and the names in them, each looked up once.

    ``handler_of`` answers with the handler that a cgroup has now.
    """
    name_of = cache(cgroup_name)
    return [seen.named(name_of, handler_of).as_dict() for seen in found]


def decision_row(fields: dict[str, Any]) -> dict[str, Any]:
    """The same for a table."""
    return {
        **fields,
        "when": output.clock(fields["time"]),
        "handler": fields["handler_cgroup"],
        "oom": fields["oom_cgroup"] + (" (declared)" if fields["flags"] & FLAG_DECLARED else ""),
        "action": action(fields),
        "victim": _victim(fields),
        "usage": output.size(fields["victim_usage"]) if fields["victim_usage"] else None,
        "took": output.duration(fields["duration_ns"]),
    }


def action(fields: Mapping[str, Any]) -> str:
    """A decision's action; with the errno where the kernel refused it, so that it was none."""
    result = fields["kfunc_result"]
    refused = f": {errno.errorcode.get(-result, str(result))}" if result < 0 else ""
    return f"{fields['action']}{refused}"


def _victim(fields: dict[str, Any]) -> str | None:
    """The task and its cgroup, or the cgroup when all of it went."""
    if not fields["victim_pid"]:
        return str(fields["victim_cgroup"]) if fields["victim_cgroup"] else None
    where = f" in {fields['victim_cgroup']}" if fields["victim_cgroup"] else ""
    return f"{fields['victim_comm']}[{fields['victim_pid']}]{where}"
