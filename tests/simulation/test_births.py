"""Partitions that are made while all is troubled: a first grant that is made with its record breaks nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from simulation.seeds import seeds
from simulation.world import Settings, run

SEEDS = 16
SEEDS_FAST = 3


@pytest.mark.parametrize("seed", seeds(SEEDS, fast=SEEDS_FAST))
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
