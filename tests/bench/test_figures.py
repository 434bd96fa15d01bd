"""From runs to figures."""

from __future__ import annotations

import json
import math
from dataclasses import replace

from bench.figures import ETCD, FENCEKV, REDIS, Spread, failures, percentile, plain, ratio, schedule, series
from bench.memory import parsed
from bench.report import paired, value
from bench.table import ROWS
from bench_legs import leg

ROW = {row.name: row for row in ROWS}


def test_the_systems_take_turns_and_none_is_always_first() -> None:
    assert list(schedule(["a", "b"], 3)) == [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b")]


def test_a_percentile_is_a_value_that_was_measured() -> None:
    assert percentile([30.0, 10.0, 20.0], 0.5) == 20.0
    assert percentile([float(number) for number in range(1, 101)], 0.99) == 99.0
    assert percentile([7.0], 0.99) == 7.0
    assert math.isnan(percentile([], 0.5))


def test_a_series_has_the_median_and_the_extremes() -> None:
    [one] = series([leg(ETCD, number, puts) for number, puts in enumerate((300.0, 100.0, 200.0))])
    assert one.per_second == Spread(200.0, 100.0, 300.0)
    assert one.server_cores is None


def test_a_ratio_compares_the_runs_of_one_round() -> None:
    # The machine was half as fast in round 1: the ratio of the pairs does not show it.
    legs = [leg(ETCD, 0, 100.0), leg(FENCEKV, 0, 50.0), leg(ETCD, 1, 50.0), leg(FENCEKV, 1, 25.0, p50=3.0)]
    legs += [leg(REDIS, 0, 1.0), leg(FENCEKV, 0, 9.0, measure="puts-1")]
    asked = {"measure": "puts-64", "above": FENCEKV, "below": ETCD}
    assert ratio(legs, **asked, figure="per_second") == Spread(0.5, 0.5, 0.5)
    assert ratio(legs, **asked, figure="p99_ms") == Spread(2.0, 1.0, 3.0)


def test_without_a_pair_there_is_no_ratio() -> None:
    found = paired(ROW["puts-64"], "puts", [leg(FENCEKV, 0, 50.0)])
    assert found.value is None
    assert (found.verdict, value(found)) == ("-", "-")


def test_a_row_says_how_it_stands() -> None:
    def verdict(name: str, ours: float, theirs: float, p50: float = 1.0) -> str:
        return paired(ROW[name], name, [leg(ETCD, 0, theirs), leg(FENCEKV, 0, ours, p50=p50)]).verdict

    assert [verdict("puts-64", ours, 100.0) for ours in (149.0, 150.0, 250.0)] == ["SHORT", "enough", "aim"]
    # Of latencies less is better.
    assert [verdict("p99-64", 1.0, 1.0, p50) for p50 in (0.9, 0.8, 0.5)] == ["SHORT", "enough", "aim"]


def test_failed_requests_and_a_busy_machine_are_told() -> None:
    legs = [leg(ETCD, 0, 1.0), replace(leg(FENCEKV, 0, 3.0), errors={"Exhausted": 2})]
    assert failures(legs) == 2
    assert "2 requests failed" in paired(ROW["puts-64"], "puts", legs).note
    quiet = [leg(system, number, 1.0) for system in (ETCD, FENCEKV) for number in range(3)]
    assert paired(ROW["puts-64"], "puts", quiet).note == ""
    busy = [replace(one, others_cores=0.6) if one.system == FENCEKV else one for one in quiet]
    assert "0.60 cores busy" in paired(ROW["puts-64"], "puts", busy).note


def test_what_is_not_known_is_null_in_a_document() -> None:
    assert json.dumps(plain({"a": (math.nan, math.inf, 1.23456789)})) == '{"a": [null, null, 1.2346]}'


def test_memory_is_read_in_bytes() -> None:
    text = "55d0-7ffe ---p 00000000 00:00 0   [rollup]\nRss:             80000 kB\nPss:             41000 kB\n"
    assert parsed(text) == {"Rss": 80000 * 1024, "Pss": 41000 * 1024}
