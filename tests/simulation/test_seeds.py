"""Whole worlds under seeded trouble: what is promised holds in each of them.

A failing seed prints the command that replays it. `FENCEKV_SEED` runs one seed alone, `FENCEKV_SEEDS` that many
instead of the usual number, and `FENCEKV_TRACE` names a folder for the traces.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from simulation.seeds import seeds
from simulation.world import Settings, run

SEEDS = 50
SEEDS_FAST = 5  # run by `make check` too
ONLY = os.environ.get("FENCEKV_SEED")


def wanted() -> list[Any]:
    """The seeds to run."""
    if ONLY is not None:
        return [int(ONLY)]
    return seeds(int(os.environ.get("FENCEKV_SEEDS", SEEDS)), fast=SEEDS_FAST)


def settings_of(seed: int) -> Settings:
    """Worlds differ: shards that own and follow at once, operators that all act, a single standby."""
    return Settings(
        partitions=2 if seed % 3 == 0 else 1,
        everyone_leads=seed % 4 == 0,
        shards=2 if seed % 10 == 5 else 3,
        gap_seconds_max=10.0 if seed % 2 == 0 else 3.0,
        trouble_seconds=30.0 if seed % 2 == 0 else 20.0,
    )


@pytest.mark.parametrize("seed", wanted())
def test_nothing_promised_is_broken(seed: int) -> None:
    result = run(seed, settings_of(seed))
    folder = os.environ.get("FENCEKV_TRACE")
    if folder:
        Path(folder, f"seed-{seed}.txt").write_text("\n".join(result.trace) + "\n")
    replay = f"FENCEKV_SEED={seed} FENCEKV_TRACE=. python -m pytest tests/simulation/test_seeds.py"
    assert not result.findings, "\n".join([f"replay: {replay}", *result.findings])
    assert result.acknowledged > 10, f"hardly anything was acknowledged; replay: {replay}"


@pytest.mark.slow
@pytest.mark.skipif(ONLY is not None, reason="one seed was asked for")
def test_a_replay_gives_the_same_trace_byte_for_byte() -> None:
    first, second = run(11), run(11)
    assert first.trace == second.trace
    assert len(first.trace) > 200


@pytest.mark.slow
@pytest.mark.skipif(ONLY is not None, reason="one seed was asked for")
def test_a_replay_does_not_depend_on_the_hash_seed() -> None:
    program = "from simulation.world import run; print('\\n'.join(run(12).trace))"
    traces = []
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        traces.append(done.stdout)
    assert traces[0] == traces[1]
    assert len(traces[0]) > 10_000
