# SPDX-License-Identifier: Apache-2.0
"""What handlers and decisions are called on the command line: ids become names, codes words.

One dictionary per thing, printed as a table row or as JSON by every command alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from bpfoom.cli import output
from bpfoom.handler.describe import Handler
from bpfoom.observe import cgroupfs
from bpfoom.observe.records import Decision
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


def decision(seen: Decision) -> dict[str, Any]:
    """One decision, JSON-ready: the record and the names of its cgroups."""
    fields = seen.as_dict()
    oom, victim = fields["oom_memcg_id"], fields["victim_cgroup_id"]
    return {
        **fields,
        "handler_cgroup": cgroup_name(fields["handler_cgroup_id"]),
        "oom_cgroup": cgroup_name(oom) if oom else "system",
        "victim_cgroup": cgroup_name(victim) if victim else None,
    }


def decision_row(fields: dict[str, Any]) -> dict[str, Any]:
    """The same for a table."""
    return {
        **fields,
        "when": output.clock(fields["time"]),
        "handler": fields["handler_cgroup"],
        "oom": fields["oom_cgroup"] + (" (declared)" if fields["flags"] & FLAG_DECLARED else ""),
        "victim": _victim(fields),
        "usage": output.size(fields["victim_usage"]) if fields["victim_usage"] else None,
        "took": output.duration(fields["duration_ns"]),
    }


def _victim(fields: dict[str, Any]) -> str | None:
    """The task and its cgroup, or the cgroup when all of it went."""
    if not fields["victim_pid"]:
        return str(fields["victim_cgroup"]) if fields["victim_cgroup"] else None
    where = f" in {fields['victim_cgroup']}" if fields["victim_cgroup"] else ""
    return f"{fields['victim_comm']}[{fields['victim_pid']}]{where}"
