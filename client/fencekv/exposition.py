"""What programs count, and the text form of it that Prometheus reads. The one module that knows its library.

What is counted is plain numbers, in the hands of whoever counts; the text is made of them at each scrape, and only
then. So counting costs an addition, and nothing that a client sends can become a series.

Invariants:
  * A family says by what the number of its series is bounded; docs/metrics.md is made of the families.
  * The counts of a histogram's buckets never fall, and the last one is the number of all.
"""

from __future__ import annotations

import enum
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Kind(enum.StrEnum):
    """What Prometheus does with a number."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One metric: its name as it is scraped (a histogram's without suffixes), and what it means."""

    name: str
    kind: Kind
    text: str
    labels: tuple[str, ...] = ()
    series: str = "1"  # by what their number is bounded, for people


Value = float | Mapping[str, Any]  # the latter: a histogram, as `Histogram.report` gives it
Samples = Mapping[tuple[str, ...], Value]  # by the values of the labels


class Histogram:
    """How often values up to each of some bounds came."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        assert list(bounds) == sorted(set(bounds)), bounds
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Counts one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    @property
    def count(self) -> int:
        """How many came."""
        return sum(self._counts)

    def report(self) -> dict[str, object]:
        """Counts up to each bound, and of all; as JSON carries it."""
        counts = list(accumulate(self._counts))
        buckets = [[bound, count] for bound, count in zip(self._bounds, counts, strict=False)]
        return {"buckets": buckets, "count": counts[-1], "sum": self._sum}


def text(families: Iterable[tuple[Family, Samples]]) -> bytes:
    """The families as Prometheus reads them; one without samples is named all the same."""
    from prometheus_client import generate_latest  # noqa: PLC0415 (takes a tenth of a second; clients never ask)

    return generate_latest(_Collected(families))  # type: ignore[arg-type]


class _Collected:
    """What the library takes for a registry."""

    def __init__(self, families: Iterable[tuple[Family, Samples]]) -> None:
        self._families = families

    def collect(self) -> Iterable[object]:
        """The families in the library's form."""
        return (_metric(family, samples) for family, samples in self._families)


def _metric(family: Family, samples: Samples) -> object:
    from prometheus_client import core  # noqa: PLC0415

    if family.kind is Kind.HISTOGRAM:
        histogram = core.HistogramMetricFamily(family.name, family.text, labels=family.labels)
        for labels, value in samples.items():
            assert isinstance(value, Mapping), (family, value)
            buckets = [(f"{bound:g}", float(count)) for bound, count in value["buckets"]]
            histogram.add_metric(labels, [*buckets, ("+Inf", float(value["count"]))], float(value["sum"]))
        return histogram
    kinds = {Kind.COUNTER: core.CounterMetricFamily, Kind.GAUGE: core.GaugeMetricFamily}
    metric = kinds[family.kind](family.name, family.text, labels=family.labels)
    for labels, value in samples.items():
        assert not isinstance(value, Mapping), (family, value)
        metric.add_metric(labels, float(value))
    return metric
