# SPDX-License-Identifier: Apache-2.0
"""The races by name: each pits OOMs against something that changes what they rely on.

A race takes an arena and a pace and returns a tally; what must hold it asserts itself. That it was
one is asserted here, by its hits. The suite runs all of them briefly, ``./run soak`` for long:
``python3 -m tests.guest.races RACE ROUNDS MINUTES`` in the guest prints the tally as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

from tests.guest import change_races, link_races, task_races
from tests.guest.arena import Arena, Pace, Tally, arena


@dataclass(frozen=True)
class Race:
    """A race, and how many hits a round it must have at least: a tenth of what is usual, about."""

    run: Callable[[Arena, Pace], Tally]
    hits: float


RACES = {
    "detach": Race(link_races.detach, 0.1),
    "update": Race(link_races.update, 0.1),
    "rmdir-attached": Race(link_races.rmdir_attached, 0.05),
    "rmdir-dying": Race(link_races.rmdir_dying, 0.1),
    "attach": Race(link_races.attach, 0.01),
    "ten": Race(task_races.ten, 0.1),
    "forks": Race(task_races.forks, 0.1),
    "migrate": Race(task_races.migrate, 0.02),
    "controller": Race(task_races.controller, 0.1),
    "promise": Race(task_races.promise, 0.5),
    "exchange": Race(change_races.exchange, 0.1),
    "killed": Race(change_races.killed, 0.1),
}


def run(name: str, pace: Pace) -> Tally:
    """Run one race from an empty tree to an empty tree, and be sure that it was one."""
    race = RACES[name]
    with arena() as it:
        tally = race.run(it, pace)
    assert tally.hits >= race.hits * tally.rounds > 0, f"the race was hardly one: {tally}"
    return tally


if __name__ == "__main__":
    print(json.dumps(asdict(run(sys.argv[1], Pace(int(sys.argv[2]), float(sys.argv[3]))))))
