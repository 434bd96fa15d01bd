"""From runs to figures."""

from __future__ import annotations

import math
from dataclasses import replace

from bench.figures import ETCD, FENCEKV, Leg, Spread, percentile, ratios, rows, schedule
from bench.loader import Load
from bench.memory import parsed
from bench.report import document, noise_cores
from bench.workers import merged, shares


def leg(system: str, number: int, puts: float, *, clients: int = 16, p50: float = 1.0) -> Leg:
    return Leg(
        system=system,
        clients=clients,
        round=number,
        puts_per_second=puts,
        p50_ms=p50,
        p99_ms=2 * p50,
        server_cores=None,
        loader_cores=0.5,
        others_cores=0.1,
    )


def test_runs_of_the_systems_alternate_within_each_number_of_clients() -> None:
    order = list(schedule(["a", "b"], [1, 16], 2))
    assert [system for _, _, system in order] == ["a", "b"] * 4
    assert [clients for clients, _, _ in order] == [1] * 4 + [16] * 4


def test_a_percentile_is_a_value_that_was_measured() -> None:
    assert percentile([30.0, 10.0, 20.0], 0.5) == 20.0
    assert percentile([float(value) for value in range(1, 101)], 0.99) == 99.0
    assert percentile([7.0], 0.99) == 7.0
    assert math.isnan(percentile([], 0.5))


def test_a_row_has_the_median_and_the_extremes() -> None:
    [row] = rows([leg(ETCD, number, puts) for number, puts in enumerate((300.0, 100.0, 200.0))])
    assert row.puts_per_second == Spread(200.0, 100.0, 300.0)
    assert row.server_cores is None


def test_a_ratio_compares_the_runs_of_one_round() -> None:
    # The machine was half as fast in round 1: the ratio of the pairs does not show it.
    legs = [leg(ETCD, 0, 100.0), leg(FENCEKV, 0, 50.0), leg(ETCD, 1, 50.0), leg(FENCEKV, 1, 25.0, p50=3.0)]
    [ratio] = ratios(legs)
    assert ratio.puts_per_second == Spread(0.5, 0.5, 0.5)
    assert ratio.p50_ms == Spread(2.0, 1.0, 3.0)


def test_without_etcd_there_is_no_ratio() -> None:
    assert ratios([leg(FENCEKV, 0, 50.0)]) == []


def test_a_run_without_any_answer_is_null_in_the_document() -> None:
    found = document(
        started="now",
        command=[],
        settings={},
        machine={},
        memory=[],
        legs=[leg(FENCEKV, 0, 0.0, p50=math.nan)],
        ceiling=[],
    )
    assert found["runs"][0]["p50_ms"] is None
    assert found["puts"][0]["p50_ms"]["median"] is None


def test_quiet_runs_do_not_hide_noisy_ones() -> None:
    quiet = [leg(system, number, 1.0) for system in (ETCD, FENCEKV) for number in range(3)]
    busy = [replace(one, clients=256, others_cores=0.6) for one in quiet if one.system == FENCEKV]
    assert noise_cores([*quiet, *busy]) == {16: 0.1, 256: 0.6}
    assert noise_cores([replace(one, others_cores=None) for one in quiet]) == {}


def test_clients_are_divided_among_processes() -> None:
    assert shares(256, 3) == [86, 85, 85]
    assert shares(1, 4) == [1]


def test_loads_of_processes_add_up() -> None:
    one = Load(seconds=2.0, latencies_us=[1, 2], errors={"503": 1}, cpu_seconds=0.5)
    two = Load(seconds=2.0, latencies_us=[3], errors={"503": 2, "0": 1}, cpu_seconds=0.25)
    assert merged([one, two]) == Load(
        seconds=2.0, latencies_us=[1, 2, 3], errors={"503": 3, "0": 1}, cpu_seconds=0.75
    )


def test_memory_is_read_in_bytes() -> None:
    text = "55d0-7ffe ---p 00000000 00:00 0   [rollup]\nRss:             80000 kB\nPss:             41000 kB\n"
    assert parsed(text) == {"Rss": 80000 * 1024, "Pss": 41000 * 1024}
