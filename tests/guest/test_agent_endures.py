# SPDX-License-Identifier: Apache-2.0
"""apply and agent where much happens at a time, or where they are killed: the soak, in short."""

from __future__ import annotations

import pytest

from tests.guest import churn, killing

pytestmark = pytest.mark.flavours("plain")


def test_cgroups_come_and_go_in_numbers_while_ooms_happen() -> None:
    """A hundred; `./run soak churn` has two thousand."""
    facts = churn.run(cgroups=100)
    assert facts["ooms"] > 0 and facts["attached"] > 0
    assert (facts["failed"], facts["left"]) == ([], [])


def test_killed_at_random_points() -> None:
    """Three times each; `./run soak killing` has fifty."""
    facts = killing.run(times=3)
    assert facts["apply"] == facts["agent"] == 3
