# SPDX-License-Identifier: Apache-2.0
"""Run the races for long: ``python -m tests.soak [--rounds N] [--minutes M] [RACE...]``.

Each race goes on for N rounds or M minutes, whatever is over first, in one guest; a guest that is
lost is booted anew for the next race. One line a race, with what it did; a splat fails the race in
which it appeared. The races themselves, and what they hold the kernel to, are in
tests/guest/races.py.

Further parts: ``scenarios`` runs each scenario of the library twenty times: the same victims twenty
times, or it failed. ``churn`` has an agent follow two thousand cgroups that come and go,
``killing`` kills apply and agent fifty times each.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from bpfoom.errors import BpfoomError, LostVMError
from bpfoom.guest import accel, session
from bpfoom.guest.flavour import FLAVOURS
from bpfoom.guest.process import Progress
from bpfoom.guest.running import CommandResult, Guest
from bpfoom.scenario.library import Bundle, find_scenarios, shipped
from tests import helpers, objects
from tests.guest.races import RACES

SCENARIOS = "scenarios"
# Modules of tests/guest that print the facts, and what is asked of them.
PARTS = {"churn": "2000", "killing": "50"}
_REPEAT = 20


def main(argv: list[str]) -> int:
    """Soak; the exit status is 0 only if every race held."""
    options = _parse(argv)
    waiting = list(options.races or (*RACES, *PARTS, SCENARIOS))
    races = len([name for name in waiting if name in RACES])
    print(
        f"{races} races, each of {options.rounds} rounds or {options.minutes:g} minutes", flush=True
    )
    failed = 0
    try:
        progress = Progress(stage=lambda text: print(text, flush=True))
        helpers.ensure(progress)
        objects.ensure()
        flavour = FLAVOURS[options.flavour]
        booted = session.prepared(progress, flavour)
        accelerator = accel.choose(booted[0], options.accel, progress)
        while waiting:
            chosen = session.Session(
                *booted, memory_mib=flavour.memory_mib, accelerator=accelerator
            )
            failed += _soak(chosen, waiting, options)
    except BpfoomError as error:
        return _fail("infrastructure lost", f"{error.message}\n{error.detail}")
    return 1 if failed else 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./run soak", description="Run the races for long.")
    parser.add_argument("--rounds", type=int, default=5000, help="of each race (5000)")
    parser.add_argument("--minutes", type=float, default=10, help="at most for each race (10)")
    parser.add_argument("--flavour", choices=("plain", "debug"), default="plain")
    parser.add_argument("--accel", choices=accel.CHOICES, default="auto")
    parser.add_argument(
        "--area", action="append", choices=_areas(), help="of the scenarios; again for more (all)"
    )
    known = (*RACES, *PARTS, SCENARIOS)
    parser.add_argument("races", nargs="*", metavar="RACE", help=f"all, or of: {', '.join(known)}")
    options = parser.parse_args(argv)
    if unknown := set(options.races) - set(known):
        parser.error(f"no such race: {', '.join(sorted(unknown))}")
    return options


def _soak(chosen: session.Session, waiting: list[str], options: argparse.Namespace) -> int:
    """Run waiting races in one guest until none is left or the guest is lost; how many failed."""
    failed = 0
    with chosen as guest:
        print(f"guest: {guest.info.accelerator}, {guest.info.cpus} CPUs", flush=True)
        while waiting:
            name = waiting.pop(0)
            try:
                if name == SCENARIOS:
                    failed += sum(_area(guest, area) for area in options.area or _areas())
                elif name in PARTS:
                    failed += _part(guest, name)
                else:
                    failed += _race(guest, name, options.rounds, options.minutes)
            except LostVMError as error:
                return failed + _fail(name, f"{error.message}\n{error.detail}")
    return failed


def _part(guest: Guest, name: str) -> int:
    """Run one of the parts and print its line; 1 if it failed."""
    result = guest.run(["python3", "-m", f"tests.guest.{name}", PARTS[name]])
    complaints = _complaints(result)
    facts = {} if complaints else json.loads(result.stdout)
    complaints += [*facts.get("failed", ()), *facts.get("left", ())]
    if complaints:
        return _fail(name, "\n".join(complaints))
    said = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in facts.items() if value)
    print(f"PASS  {name}: {said}", flush=True)
    return 0


def _complaints(result: CommandResult) -> list[str]:
    """The splats of a command, and what it said if it failed."""
    found = [line for splat in result.splats for line in ("kernel splat:", *splat.lines)]
    if result.exit_status:
        found.append((result.stdout + result.stderr).decode("utf-8", "replace"))
    return found


def _race(guest: Guest, name: str, rounds: int, minutes: float) -> int:
    """Run one race and print its line; 1 if it failed."""
    argv = ["python3", "-m", "tests.guest.races", name, str(rounds), str(minutes)]
    result = guest.run(argv)
    if complaints := _complaints(result):
        return _fail(name, "\n".join(complaints))
    print(f"PASS  {name}: {_summary(json.loads(result.stdout), result)}", flush=True)
    return 0


def _areas() -> list[str]:
    return sorted({scenario.name.partition("/")[0] for scenario in shipped()})


def _area(guest: Guest, area: str) -> int:
    """Run each scenario of one area again and again; how many failed."""
    bundle = json.dumps(asdict(Bundle.of(find_scenarios([area]), None))).encode()
    argv = ["bpfoom", "scenario", "play", "--repeat", str(_REPEAT)]
    result = guest.run(argv, stdin=bundle)
    said = [line for splat in result.splats for line in ("kernel splat:", *splat.lines)]
    if result.exit_status or said:
        return _fail(area, "\n".join(said) or result.stderr.decode("utf-8", "replace"))
    return sum(_repeated(one) for one in json.loads(result.stdout)["results"])


def _repeated(one: dict[str, Any]) -> int:
    """Print the line of a scenario; 1 if it failed."""
    name, times = one["scenario"], len(one["outcomes"])
    if not one["passed"]:
        return _fail(f"{name}, the {times}th time", _what_happened(one))
    victims = ", ".join(sorted(p["comm"] for p in one["outcomes"][0]["run"]["victims"]))
    print(f"PASS  {name}: {times} times {victims or 'nobody'}, {one['seconds']:.0f} s", flush=True)
    return 0


def _what_happened(one: dict[str, Any]) -> str:
    """Of a scenario that failed: what was expected, and all that was decided and died."""
    said = [f"{f['key']}: expected {f['expected']}, seen {f['seen']}" for f in one["failures"]]
    if one["error"]:
        said.append(str(one["error"]))
    if one["outcomes"]:
        run = one["outcomes"][-1]["run"]
        said += [json.dumps({key: part}) for key, part in run.items()]
    return "\n".join(said)


def _summary(tally: dict[str, Any], result: CommandResult) -> str:
    minutes = result.seconds / 60
    facts = ", ".join(f"{name} {number}" for name, number in tally["facts"].items() if number)
    return (
        f"{tally['rounds']} rounds in {minutes:.1f} min, {tally['hits']} hits, "
        f"longest {tally['longest_s']:.2f} s; {facts}"
    )


def _fail(what: str, text: str) -> int:
    print(f"FAIL  {what}", flush=True)
    for line in text.splitlines():
        print(f"      {line}", flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
