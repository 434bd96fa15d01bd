"""Whole worlds whose journals are trimmed while they are troubled: nothing promised is broken by it either."""

from __future__ import annotations

from typing import Any

import pytest
from simulation.seeds import seeds
from simulation.world import Result, Settings, World, run

from fencekv_shard import limits
from fencekv_shard.feed import Feed
from fencekv_shard.folder import Seed

SEEDS = 11
SEEDS_FAST = 2
HISTORY_SECONDS = 3
IDEMPOTENCY_SECONDS = 18.0  # longer than any client goes on asking, by more than wall clocks differ
UNIX_OFFSET_MAX = 1.0


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes a day happens within a run, in small steps."""
    monkeypatch.setattr(limits, "IDEMPOTENCY_SECONDS_MIN", IDEMPOTENCY_SECONDS)
    monkeypatch.setattr(limits, "FOLD_ENTRIES", 8)


def trimming(seed: int, worlds: list[World]) -> Result:
    """A run whose table keeps its history for a few seconds."""
    settings = Settings(
        partitions=2 if seed % 3 == 0 else 1,
        gap_seconds_max=10.0 if seed % 2 == 0 else 3.0,
        trouble_seconds=40.0,
        history_seconds=HISTORY_SECONDS,
        unix_offset_max=UNIX_OFFSET_MAX,
    )
    return run(seed, settings, prepare=worlds.append)


@pytest.mark.parametrize("seed", seeds(SEEDS, fast=SEEDS_FAST))
def test_nothing_promised_is_broken_where_journals_are_trimmed(seed: int) -> None:
    worlds: list[World] = []
    result = trimming(seed, worlds)
    assert not result.findings, "\n".join(result.findings)
    assert result.acknowledged > 10
    assert any(worlds[0].disks.folded.values()), "nothing was trimmed"


@pytest.mark.parametrize("seed", seeds(SEEDS, fast=SEEDS_FAST))
def test_nothing_promised_is_broken_where_standbys_are_seeded(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A standby that follows anew is often sent the base, though entries would have done."""
    worlds: list[World] = []
    completed: list[Seed] = []
    met: list[Feed] = []  # whoever followed anew beside a base
    common, complete = Feed._common, Seed.complete

    async def too_far(self: Feed) -> int | None:
        found = await common(self)
        is_chosen = worlds[0].loop.rng(f"seeds-{self.member}-{self.engine.epoch}").random() < 0.75
        if self.engine.replica.base.seq < 0:
            return found
        met.append(self)
        return None if is_chosen else found

    def counted(self: Seed, *arguments: Any) -> None:
        completed.append(self)
        complete(self, *arguments)

    monkeypatch.setattr(Feed, "_common", too_far)
    monkeypatch.setattr(Seed, "complete", counted)
    result = trimming(seed, worlds)
    assert not result.findings, "\n".join(result.findings)
    assert result.acknowledged > 10
    assert completed or (seed > 1 and not met), "nobody was seeded"
