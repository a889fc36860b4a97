# SPDX-License-Identifier: Apache-2.0
"""The typed result of an OOM that was watched: one run, and the document that holds several.

Everything that shows or stores an outcome uses these types; ``as_dict`` is their one JSON form.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from bpfoom.observe.records import Decision


@dataclass(frozen=True)
class Process:
    """A process of the watched tree; ``cgroup`` is its path below the tree's parent."""

    pid: int
    comm: str
    cgroup: str


@dataclass(frozen=True)
class Run:
    """One OOM. ``handler`` is the policy attached to the tree, None for the stock killer.

    ``memory_events`` holds memory.events by cgroup path, ``dmesg`` the kernel's lines about the
    OOM. ``decisions`` are all records that handlers left, in order: while a victim is torn down
    the OOM is raised again and again, and passed or waited for. ``decision`` is the one that
    mattered: the last that released memory, else the last that promised some, else the last.
    ``kill_ns`` is the time from the kernel's entry into out_of_memory() to the first victim being
    marked, None where it could not be traced.
    """

    handler: str | None
    victims: tuple[Process, ...]
    survivors: tuple[Process, ...]
    memory_events: dict[str, dict[str, int]]
    dmesg: tuple[str, ...]
    decisions: tuple[Decision, ...]
    kill_ns: int | None

    @property
    def decision(self) -> Decision | None:
        accepted = [decision for decision in self.decisions if decision.verdict == "HANDLED"]
        released = [decision for decision in accepted if decision.action != "promise"]
        found = released or accepted or self.decisions
        return found[-1] if found else None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        decisions = [decision.as_dict() for decision in self.decisions]
        chosen = self.decision
        return {
            "handler": self.handler,
            "victims": [asdict(process) for process in self.victims],
            "survivors": [asdict(process) for process in self.survivors],
            "memory_events": self.memory_events,
            "dmesg": list(self.dmesg),
            "decision": decisions[self.decisions.index(chosen)] if chosen else None,
            "decisions": decisions,
            "kill_ns": self.kill_ns,
        }


@dataclass(frozen=True)
class Document:
    """Runs on one machine. ``accelerator`` is "kvm" or "tcg" in our guest, "none" on a host."""

    kernel: str
    accelerator: str
    tree: tuple[str, ...]
    runs: tuple[Run, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "kernel": self.kernel,
            "accelerator": self.accelerator,
            "tree": list(self.tree),
            "runs": [run.as_dict() for run in self.runs],
        }
