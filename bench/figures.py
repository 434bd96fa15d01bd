"""From latencies to figures: percentiles, medians with spread, ratios of paired runs. Pure.

Invariants:
  * Runs are paired: each ratio compares two runs that followed each other.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

FENCEKV: Final = "FenceKV"
ETCD: Final = "etcd"
CEILING: Final = "loader alone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """One run of one system. Cores: how many were busy on average; None: the system does not tell."""

    system: str
    clients: int
    round: int
    puts_per_second: float
    p50_ms: float
    p99_ms: float
    errors: Mapping[str, int] = field(default_factory=dict)
    server_cores: float | None
    loader_cores: float
    others_cores: float | None  # of processes that are none of ours: noise


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of several runs, and their extremes."""

    median: float
    least: float
    most: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """All runs of one system with one number of clients."""

    system: str
    clients: int
    puts_per_second: Spread
    p50_ms: Spread
    p99_ms: Spread
    server_cores: Spread | None
    loader_cores: Spread
    others_cores: Spread | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """FenceKV's figures by etcd's, of paired runs."""

    clients: int
    puts_per_second: Spread
    p50_ms: Spread
    p99_ms: Spread


def schedule(systems: Sequence[str], clients: Sequence[int], rounds: int) -> Iterator[tuple[int, int, str]]:
    """(clients, round, system) in the order of the runs: A B A B … for each number of clients."""
    for count in clients:
        for number in range(rounds):
            for system in systems:
                yield count, number, system


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile; not a number if there are no values."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def spread(values: Sequence[float]) -> Spread:
    """Median and extremes of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def rows(legs: Sequence[Leg]) -> list[Row]:
    """One row for each system and number of clients, in the order of the runs."""
    grouped: dict[tuple[int, str], list[Leg]] = {}
    for leg in legs:
        grouped.setdefault((leg.clients, leg.system), []).append(leg)
    return [
        Row(
            system=system,
            clients=clients,
            puts_per_second=spread([leg.puts_per_second for leg in group]),
            p50_ms=spread([leg.p50_ms for leg in group]),
            p99_ms=spread([leg.p99_ms for leg in group]),
            server_cores=_known([leg.server_cores for leg in group]),
            loader_cores=spread([leg.loader_cores for leg in group]),
            others_cores=_known([leg.others_cores for leg in group]),
        )
        for (clients, system), group in grouped.items()
    ]


def ratios(legs: Sequence[Leg]) -> list[Ratio]:
    """FenceKV by etcd, for each number of clients that both have runs of."""
    found = {(leg.clients, leg.round, leg.system): leg for leg in legs}
    pairs: dict[int, list[tuple[Leg, Leg]]] = {}
    for (clients, number, system), leg in found.items():
        other = found.get((clients, number, ETCD))
        if system == FENCEKV and other is not None:
            pairs.setdefault(clients, []).append((leg, other))
    return [
        Ratio(
            clients=clients,
            puts_per_second=spread([_divided(a.puts_per_second, b.puts_per_second) for a, b in pair]),
            p50_ms=spread([_divided(a.p50_ms, b.p50_ms) for a, b in pair]),
            p99_ms=spread([_divided(a.p99_ms, b.p99_ms) for a, b in pair]),
        )
        for clients, pair in pairs.items()
    ]


def _divided(above: float, below: float) -> float:
    return above / below if below else math.nan


def _known(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return spread(known) if known else None
