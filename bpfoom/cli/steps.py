# SPDX-License-Identifier: Apache-2.0
"""What `apply` and `agent` do to a cgroup, as JSON and as a line for people."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bpfoom.cli import output, raised, trial, view
from bpfoom.observe.marks import Change

if TYPE_CHECKING:
    from bpfoom.agent.converge import Result
    from bpfoom.agent.plan import Broken, Step
    from bpfoom.agent.trials import Ended

COLUMNS = {"action": "DO", "cgroup": "CGROUP", "policy": "POLICY", "what": "WHAT"}


def document(step: Step, result: Result | None = None) -> dict[str, Any]:
    """A step, JSON-ready; without a result it is only planned."""
    error = result.error if result else None
    return {
        "action": step.action,
        "cgroup": step.cgroup,
        "cgroup_id": step.cgroup_id,
        "policy": step.policy,
        "policy_before": step.policy_before,
        "changed": [asdict(setting) for setting in step.changed],
        "why": step.why,
        "outcome": result.outcome if result else None,
        "error": error.as_dict() if error else None,
        "raised": raised.document(result.raised) if result else [],
    }


def mark(change: Change) -> dict[str, Any]:
    """A cgroup whose mark is another one."""
    return {
        "cgroup": change.name or view.cgroup_name(change.cgroup_id),
        "cgroup_id": change.cgroup_id,
        "before": str(change.before) if change.before else None,
        "after": str(change.after) if change.after else None,
    }


def broken(entry: Broken) -> dict[str, Any]:
    """An entry that nothing can be attached for."""
    wanted = entry.entry.wanted
    return {
        "entry": entry.entry.place,
        "policy": str(wanted.policy or wanted.file),
        "cgroups": entry.cgroups,
        "error": entry.error.as_dict(),
    }


def ended(found: Ended) -> dict[str, Any]:
    """A trial that is over, JSON-ready."""
    told = trial.document(found.trial, found.progress, found.outcome, None)
    return {"cgroup": found.cgroup, "cgroup_id": found.cgroup_id, "trial": told}


def trial_row(fields: dict[str, Any]) -> dict[str, Any]:
    """The same for the table."""
    told = fields["trial"]
    what = trial.sentence(told, fields["cgroup"])
    return {"action": told["outcome"], "cgroup": fields["cgroup"], "what": what}


def row(fields: dict[str, Any]) -> dict[str, Any]:
    """A step for a table; what came of it is said unless it is simply done."""
    policy, before = fields["policy"], fields["policy_before"]
    exchanged = policy and before and policy != before
    told = [
        f"{one['name']} {output.text(one['before'])} -> {output.text(one['after'])}"
        for one in fields["changed"]
        if one["before"] is not None or fields["action"] == "trigger"
    ]
    told += [fields["why"]] if fields["why"] else []
    if fields["outcome"] == "failed":
        told.append(f"FAILED: {fields['error']['message']}")
    elif fields["outcome"] == "gone":
        told.append("the cgroup is gone")
    for limit in fields["raised"]:
        sizes = f"{output.size(limit['before'])} to {output.size(limit['after'])}"
        told.append(f"it had raised memory.max of {limit['cgroup']} from {sizes}")
    return {
        **fields,
        "policy": f"{before} -> {policy}" if exchanged else policy or before,
        "what": ", ".join(told),
    }


def mark_row(change: dict[str, Any]) -> dict[str, Any]:
    """A mark for the same table."""
    what = f"{output.text(change['before'])} -> {output.text(change['after'])}"
    return {"action": "mark", "cgroup": change["cgroup"], "what": what}


def broken_row(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry that nothing can be attached for, in the same table."""
    message = f"{entry['entry']}: {entry['error']['message']}"
    cgroups = ", ".join(entry["cgroups"])
    return {"action": "broken", "cgroup": cgroups, "policy": entry["policy"], "what": message}
