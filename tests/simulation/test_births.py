"""Partitions that are made while all is troubled: a first grant that is made with its record breaks nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from simulation.world import Settings, run

SEEDS = 16
SEEDS_FAST = 3


def seeds() -> list[Any]:
    slow = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(SEEDS_FAST + 1, SEEDS + 1)]
    return [*range(1, SEEDS_FAST + 1), *slow]


@pytest.mark.parametrize("seed", seeds())
def test_partitions_that_are_born_in_trouble_have_one_owner(seed: int) -> None:
    settings = replace(
        Settings(),
        born_in_trouble=True,
        partitions=1 + seed % 3,
        everyone_leads=seed % 2 == 0,
        gap_seconds_max=10.0 if seed % 3 == 0 else 3.0,
    )
    result = run(3000 + seed, settings)
    assert result.findings == []
    assert result.acknowledged > 0
    born = [line for line in result.trace if "born" in line]
    assert len(born) >= 1 + seed % 3, born
