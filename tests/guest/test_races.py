# SPDX-License-Identifier: Apache-2.0
"""The races of races.py in brief. `./run soak` is the same for long."""

from __future__ import annotations

import pytest

from tests.guest.arena import Pace
from tests.guest.races import RACES, run

# Where a round is short, a hit is luck, or each round is a command with an OOM before and after.
ROUNDS = {"attach": 200, "migrate": 50, "killed": 10}


# Compiling takes minutes on a debug kernel.
COMPILES = {"exchange", "killed"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.flavours("plain") if name in COMPILES else ())
        for name in RACES
    ],
)
def test_section_3_and_4_race(name: str) -> None:
    """Whatever changes during an OOM, the machine gets on, and nothing is left behind."""
    print(run(name, Pace(ROUNDS.get(name, 20), minutes=1)))
