# SPDX-License-Identifier: Apache-2.0
"""The typed result of OOMs that were watched: runs, and the document that holds several.

Everything that shows or stores an outcome uses these types; ``as_dict`` is their one JSON form,
described in docs/schemas/result.schema.json, and a result file is that. Paths of cgroups are those
of one run throughout: below the parent of a scenario's tree, or from the root of the hierarchy.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bpfoom.errors import NotThereError, ResultFileError
from bpfoom.files import write_whole
from bpfoom.observe import typed
from bpfoom.observe.records import Decision

VERSION = 1
# More than any run leaves: what is larger was not written by us.
MAX_FILE = 256 << 20


@dataclass(frozen=True)
class Process:
    """A process of the watched tree and the path of its cgroup."""

    pid: int
    comm: str
    cgroup: str


@dataclass(frozen=True)
class Death:
    """A process that died of an OOM, by what the kernel told when it exited; None where it did not.

    ``time`` is its exit, epoch seconds, memory given back; ``signal`` or ``exit_code`` what it
    ended with. ``peak_rss`` is in bytes, ``cpu_ns`` of all its threads. ``decision`` is the
    sequence number of the record that chose it, ``after_decision_ns`` the time from that handler's
    entry to the exit.
    """

    pid: int
    comm: str
    cgroup: str
    time: float | None
    signal: int | None
    exit_code: int | None
    peak_rss: int | None
    cpu_ns: int | None
    decision: int | None
    after_decision_ns: int | None


@dataclass(frozen=True)
class Recovery:
    """How long after a decision memory.current of the cgroup out of memory was below what it was
    when the handler was entered, ns, by the timeline; None if that was not seen."""

    decision: int
    cgroup: str
    ns: int | None


@dataclass(frozen=True)
class Usage:
    """One cgroup at one time: memory and swap in bytes, stalls in microseconds since it was made.

    ``swap`` is None where the kernel counts none; stalls are memory.pressure's totals, ``max`` is
    memory.max, None for no limit.
    """

    current: int
    swap: int | None
    some_us: int
    full_us: int
    max: int | None = None


@dataclass(frozen=True)
class Sample:
    """The cgroups by path at one time, epoch seconds; one that is gone is not in it."""

    time: float
    cgroups: dict[str, Usage]


@dataclass(frozen=True)
class Limit:
    """``max`` is memory.max in bytes, None for no limit."""

    max: int | None


@dataclass(frozen=True)
class Lost:
    """What came too fast to be read: decision records, and messages about exits."""

    decisions: int = 0
    events: int = 0


@dataclass(frozen=True)
class Run:
    """OOMs that were watched together: one run of a scenario, or all while somebody followed.

    ``name`` is the scenario's, ``handler`` the policy attached to the tree, None for the stock
    killer; ``started`` epoch seconds. ``memory_events`` holds memory.events by cgroup, ``dmesg``
    the kernel's lines about the OOM. ``decisions`` are all records that handlers left, in order:
    while a victim is torn down the OOM is raised again and again, and passed or waited for.
    ``decision`` is the one that mattered: the last that released memory, else the last that
    promised some, else the last. ``kill_ns`` is the time from the kernel's entry into
    out_of_memory() to the first victim being marked, None where it could not be traced.
    ``timeline`` has a sample every ``interval_ms``, ``limits`` is from when it started.
    """

    name: str | None
    handler: str | None
    started: float
    victims: tuple[Process, ...]
    survivors: tuple[Process, ...]
    memory_events: dict[str, dict[str, int]]
    dmesg: tuple[str, ...]
    decisions: tuple[Decision, ...]
    deaths: tuple[Death, ...] = ()
    recovery: tuple[Recovery, ...] = ()
    kill_ns: int | None = None
    timeline: tuple[Sample, ...] = ()
    interval_ms: int = 0
    limits: dict[str, Limit] = field(default_factory=dict)
    lost: Lost = Lost()

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
            "name": self.name,
            "handler": self.handler,
            "started": self.started,
            "victims": [asdict(process) for process in self.victims],
            "survivors": [asdict(process) for process in self.survivors],
            "deaths": [asdict(death) for death in self.deaths],
            "recovery": [asdict(recovery) for recovery in self.recovery],
            "memory_events": self.memory_events,
            "dmesg": list(self.dmesg),
            "decision": decisions[self.decisions.index(chosen)] if chosen else None,
            "decisions": decisions,
            "kill_ns": self.kill_ns,
            "timeline": [asdict(sample) for sample in self.timeline],
            "interval_ms": self.interval_ms,
            "limits": {path: asdict(limit) for path, limit in self.limits.items()},
            "lost": asdict(self.lost),
        }


@dataclass(frozen=True)
class Document:
    """Runs on one machine. ``accelerator`` is "kvm" or "tcg" in our guest, "none" on a host."""

    kernel: str
    accelerator: str
    tree: tuple[str, ...]
    runs: tuple[Run, ...]
    version: int = VERSION

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "version": self.version,
            "kernel": self.kernel,
            "accelerator": self.accelerator,
            "tree": list(self.tree),
            "runs": [run.as_dict() for run in self.runs],
        }


def from_dict(value: Any) -> Document:
    """The document that ``as_dict`` made this of. Raises ValueError for anything else."""
    version = value.get("version") if isinstance(value, dict) else None
    if type(version) is int and version != VERSION:
        raise ValueError(f"version {version}, and this bpfoom reads version {VERSION}")
    return typed.read(Document, value)


def read_file(path: Path) -> Document:
    """The document in a file that ``--result`` wrote.

    Raises NotThereError, and ResultFileError for a file that is half-written or somebody else's.
    """
    try:
        with open(path, "rb") as source:
            raw = source.read(MAX_FILE + 1)
    except OSError as error:
        raise NotThereError(
            f"cannot read result {path}: {error.strerror}",
            hint="`bpfoom demo --result FILE` writes one",
            path=str(path),
            errno=error.errno,
        ) from error
    try:
        if len(raw) > MAX_FILE:
            raise ValueError(f"more than {MAX_FILE >> 20} MiB")
        return from_dict(json.loads(raw))
    except (ValueError, RecursionError) as error:
        raise ResultFileError(
            f"{path} is no result of bpfoom, or not a whole one: {error}",
            hint="`bpfoom demo --result FILE` with this version of bpfoom writes one",
            path=str(path),
        ) from error


def write_file(path: Path, document: Document) -> None:
    """Write a document so that :func:`read_file` sees all of it or none. Raises BpfoomError."""
    write_whole(path, json.dumps(document.as_dict()).encode() + b"\n")
