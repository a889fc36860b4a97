# SPDX-License-Identifier: Apache-2.0
"""Many scenarios, each once or again and again, on one machine, and their results as one document.

A scenario that cannot be run is a result, too: the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpfoom.errors import BpfoomError, InfrastructureError
from bpfoom.observe.result import VERSION, Document, from_dict
from bpfoom.scenario.draw import draw
from bpfoom.scenario.model import Scenario
from bpfoom.scenario.outcome import Failure, Outcome, judge
from bpfoom.scenario.run import Machine


@dataclass(frozen=True)
class Result:
    """What came of a scenario: its outcomes, one a repetition, and what did not hold in them.

    ``error`` is what kept it from being run to its end, None if nothing did.
    """

    scenario: Scenario
    outcomes: tuple[Outcome, ...]
    failures: tuple[Failure, ...]
    error: BpfoomError | None
    seconds: float

    @property
    def passed(self) -> bool:
        return not self.failures and self.error is None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        scenario = self.scenario
        return {
            "scenario": scenario.name,
            "file": str(scenario.file),
            "summary": scenario.summary,
            "tree": draw(scenario),
            "policies": [
                {
                    "cgroup": attachment.cgroup,
                    "policy": attachment.policy,
                    "settings": attachment.settings,
                    "dry_run": attachment.dry_run,
                }
                for attachment in scenario.attachments
            ],
            "passed": self.passed,
            "failures": [failure.as_dict() for failure in self.failures],
            "error": self.error.as_dict() if self.error else None,
            "infrastructure": isinstance(self.error, InfrastructureError),
            "seconds": round(self.seconds, 3),
            "outcomes": [outcome.as_dict() for outcome in self.outcomes],
        }


def run(
    scenarios: Sequence[Scenario],
    machine: Machine,
    repeat: int = 1,
    told: Callable[[Result], None] = lambda _: None,
) -> dict[str, Any]:
    """Run the scenarios, each ``repeat`` times; the document of docs/schemas/scenario-run."""
    machine.policies.want(scenarios)
    results = []
    for scenario in scenarios:
        results.append(run_one(scenario, machine, repeat))
        told(results[-1])
    return {
        "kernel": Path("/proc/sys/kernel/osrelease").read_text().strip(),
        "accelerator": "none",
        "passed": all(result.passed for result in results),
        "splats": [],
        "results": [result.as_dict() for result in results],
    }


def run_one(scenario: Scenario, machine: Machine, repeat: int = 1) -> Result:
    """One scenario, until a repetition fails."""
    began = time.monotonic()
    outcomes: list[Outcome] = []
    failures: tuple[Failure, ...] = ()
    error = None
    try:
        while len(outcomes) < repeat and not failures:
            # Only the last one's timeline is looked at, and a thousand of them would not fit.
            outcomes[-1:] = [outcome.without_timeline() for outcome in outcomes[-1:]]
            outcomes.append(machine.play(scenario))
            failures = judge(scenario.expect, outcomes[-1])
    except BpfoomError as caught:
        error = caught
    return Result(scenario, tuple(outcomes), failures, error, time.monotonic() - began)


def result_of(document: Mapping[str, Any]) -> Document:
    """All runs of a suite's document as one result, their trees one below the other."""
    lines = []
    for result in document["results"]:
        lines += [f"{result['scenario']}:", *(f"    {line}" for line in result["tree"])]
    runs = [outcome["run"] for result in document["results"] for outcome in result["outcomes"]]
    facts = {key: document[key] for key in ("kernel", "accelerator")}
    return from_dict({**facts, "version": VERSION, "tree": lines, "runs": runs})
