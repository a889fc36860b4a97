# SPDX-License-Identifier: Apache-2.0
"""The races of races.py in brief. `./run soak` is the same for long."""

from __future__ import annotations

import pytest

from tests.guest.arena import Pace
from tests.guest.races import RACES, run

# Where a round is short, or a hit is luck.
ROUNDS = {"attach": 200, "migrate": 50}


@pytest.mark.parametrize("name", RACES)
def test_section_3_and_4_race(name: str) -> None:
    """Whatever changes during an OOM, the machine gets on, and nothing is left behind."""
    print(run(name, Pace(ROUNDS.get(name, 20), minutes=1)))
