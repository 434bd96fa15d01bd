"""From runs to figures: medians with spread, ratios of paired runs. Pure.

Invariants:
  * Runs are paired: each ratio compares two runs that followed each other.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

FENCEKV: Final = "FenceKV"
ETCD: Final = "etcd"
REDIS: Final = "Redis"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """One run of one system. Cores: how many were busy on average; None: the machine does not tell."""

    measure: str
    system: str
    round: int
    per_second: float
    p50_ms: float
    p99_ms: float
    max_ms: float
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
class Series:
    """All runs of one system in one measure."""

    measure: str
    system: str
    per_second: Spread
    p50_ms: Spread
    p99_ms: Spread
    server_cores: Spread | None
    loader_cores: Spread
    others_cores: Spread | None


def schedule(systems: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """(round, system) in the order of the runs: A B, B A, A B … so that neither is always the one that follows."""
    for number in range(rounds):
        for system in systems if number % 2 == 0 else reversed(systems):
            yield number, system


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile; not a number if there are no values."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def spread(values: Sequence[float]) -> Spread:
    """Median and extremes of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def series(legs: Sequence[Leg]) -> list[Series]:
    """One for each measure and system, in the order of the runs."""
    grouped: dict[tuple[str, str], list[Leg]] = {}
    for leg in legs:
        grouped.setdefault((leg.measure, leg.system), []).append(leg)
    return [
        Series(
            measure=measure,
            system=system,
            per_second=spread([leg.per_second for leg in group]),
            p50_ms=spread([leg.p50_ms for leg in group]),
            p99_ms=spread([leg.p99_ms for leg in group]),
            server_cores=_known([leg.server_cores for leg in group]),
            loader_cores=spread([leg.loader_cores for leg in group]),
            others_cores=_known([leg.others_cores for leg in group]),
        )
        for (measure, system), group in grouped.items()
    ]


def ratio(legs: Sequence[Leg], *, measure: str, above: str, below: str, figure: str) -> Spread | None:
    """One system's figure by another's, of the paired runs of a measure; None: there is no pair."""
    found = {(leg.round, leg.system): leg for leg in legs if leg.measure == measure}
    pairs = [
        (leg, found[number, below])
        for (number, system), leg in found.items()
        if system == above and (number, below) in found
    ]
    if not pairs:
        return None
    return spread([_divided(_figure(one, figure), _figure(other, figure)) for one, other in pairs])


def failures(legs: Sequence[Leg]) -> int:
    """How many requests failed."""
    return sum(sum(leg.errors.values()) for leg in legs)


def plain(value: Any) -> Any:
    """JSON has no NaN: what is not known is null; figures are rounded to what they are worth."""
    if isinstance(value, Mapping):
        return {name: plain(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [plain(member) for member in value]
    if isinstance(value, float):
        return None if math.isnan(value) or math.isinf(value) else float(f"{value:.5g}")
    return value


def _figure(leg: Leg, name: str) -> float:
    value = getattr(leg, name)
    assert isinstance(value, float), (name, value)
    return value


def _divided(above: float, below: float) -> float:
    return above / below if below else math.nan


def _known(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return spread(known) if known else None
