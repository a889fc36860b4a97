# SPDX-License-Identifier: Apache-2.0
"""A scenario's cgroup tree as lines of text, with who is in it and what is attached."""

from __future__ import annotations

from collections.abc import Iterator

from bpfoom.policy import params
from bpfoom.policy.params import ParamSpec
from bpfoom.scenario import model
from bpfoom.scenario.model import Cgroup, Growth, Lowering, Scenario, Take, Workload

_BYTES = ParamSpec("size", "bytes", 0, "")


def draw(scenario: Scenario) -> list[str]:
    """The trees, one below the other."""
    lines = [f"/  {_policy(a)}" for a in scenario.attachments if a.cgroup == model.ROOT]
    for cgroup in scenario.cgroups:
        if not cgroup.parent:
            lines += _lines(scenario, cgroup, "", "")
    return lines


def size(number: int) -> str:
    """Bytes as they are written in a scenario; "all" for all that there is."""
    return "all" if number == model.ALL else params.show(_BYTES, number)


def _lines(scenario: Scenario, cgroup: Cgroup, first: str, rest: str) -> Iterator[str]:
    yield first + cgroup.name + "".join(f"  {note}" for note in _notes(scenario, cgroup))
    children = [c for c in scenario.cgroups if c.parent == cgroup.path]
    texts = [_workload(scenario, w) for w in scenario.workloads if w.cgroup == cgroup.path]
    for number, text in enumerate(texts):
        last = number == len(texts) - 1 and not children
        yield rest + ("└── " if last else "├── ") + text
    for child in children:
        last = child is children[-1]
        corner, line = ("└── ", "    ") if last else ("├── ", "│   ")
        yield from _lines(scenario, child, rest + corner, rest + line)


def _notes(scenario: Scenario, cgroup: Cgroup) -> Iterator[str]:
    for file, value in cgroup.files.items():
        yield f"{file}={size(int(value)) if value.isdecimal() and int(value) > 1 else value}"
    for attachment in scenario.attachments:
        if attachment.cgroup == cgroup.path:
            yield _policy(attachment)
    for trigger in scenario.triggers:
        if isinstance(trigger, Lowering) and trigger.cgroup == cgroup.path:
            yield f"memory.max lowered to {size(trigger.memory_max)}"


def _policy(attachment: model.Attachment) -> str:
    settings = "".join(f" {name}={value}" for name, value in attachment.settings.items())
    dry = " (dry run)" if attachment.dry_run else ""
    return f"handler={attachment.policy}{settings}{dry}"


def _workload(scenario: Scenario, workload: Workload) -> str:
    parts = [f"{workload.name} {_take(workload.fill)}".rstrip()]
    for trigger in scenario.triggers:
        if isinstance(trigger, Growth) and trigger.workload == workload.name:
            later = f" after a {trigger.after}" if trigger.after else ""
            if trigger.gives_back:
                parts.append(f"gives back{later}")
            else:
                parts.append(f"grows by {_take(trigger.take)}{later}")
    if workload.maps:
        parts.append(f"maps {workload.maps}'s tmpfs")
    if workload.moves_to:
        parts.append(f"moves to {workload.moves_to}")
    if workload.headless:
        parts.append("headless")
    if workload.exit_ms:
        parts.append(f"exits in {workload.exit_ms}ms")
    if workload.oom_score_adj:
        parts.append(f"oom_score_adj={workload.oom_score_adj}")
    return ", ".join(parts)


def _take(take: Take) -> str:
    """Anonymous memory is what is usual."""
    texts = []
    for kind, amount in take.kinds():
        if kind == "children":
            texts.append("forks for ever" if amount == model.ALL else f"{amount} children")
        else:
            texts.append(size(amount) + ("" if kind == "anon" else f" {kind}"))
    return " + ".join(texts)
