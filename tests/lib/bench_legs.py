"""Runs of the benchmarks, made up."""

from __future__ import annotations

from bench.figures import Leg


def leg(system: str, number: int, puts: float, *, measure: str = "puts-64", p50: float = 1.0) -> Leg:
    return Leg(
        measure=measure,
        system=system,
        round=number,
        per_second=puts,
        p50_ms=p50,
        p99_ms=2 * p50,
        max_ms=3 * p50,
        server_cores=None,
        loader_cores=0.5,
        others_cores=0.1,
    )
