"""Choosing rows, what a run leaves in docs/, and what a soak is judged by."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from xml.dom import minidom

import pytest
from bench import publish, soak
from bench.fencekv import series_of, total
from bench.figures import ETCD, FENCEKV
from bench.generator import LoadFailed, parsed
from bench.publish import BEGIN, END, merged
from bench.report import document, paired
from bench.soak import Sample
from bench.table import QUICK_ROWS, ROWS, chosen
from bench_legs import leg

MACHINE = {
    "cores": 2,
    "processor": "a <processor>",
    "system": "Linux",
    "filesystem": "ext4",
    "python": "3.11",
    "sync_ms": {"p50": 0.2},
}


def run(name: str, ours: float, *, started: str, errors: dict[str, int] | None = None) -> dict[str, Any]:
    row = next(row for row in ROWS if row.name == name)
    legs = [leg(ETCD, 0, 100.0, measure=row.measure), leg(FENCEKV, 0, ours, measure=row.measure)]
    legs = [replace(one, errors=errors or {}) for one in legs]
    return document(
        started=started,
        command=[],
        settings={},
        machine=MACHINE,
        memory=[],
        outcomes=[paired(row, row.title, legs)],
        legs=legs,
        ceilings=legs[:1],
        experiments={},
    )


def test_rows_are_chosen_by_their_name_or_their_measure() -> None:
    assert chosen("keys,replay") == ("keys", "replay")
    assert chosen("partitions") == ("partitions-start", "partitions-memory", "partitions-idle")
    assert set(chosen("")) == {*(row.name for row in ROWS), "memory"}
    with pytest.raises(ValueError, match="no row 'nonsense'"):
        chosen("nonsense")


def test_the_quick_rows_are_the_first_third_and_seventh() -> None:
    assert tuple(ROWS[at].name for at in (0, 2, 6)) == QUICK_ROWS


def test_a_row_that_was_left_out_keeps_its_figures() -> None:
    first = merged({}, run("puts-64", 200.0, started="2026-01-01"))
    second = merged(first, run("puts-1", 50.0, started="2026-01-02"))
    assert [(row["name"], row["started"], row["value"]["median"]) for row in second["rows"]] == [
        ("puts-64", "2026-01-01", 2.0),
        ("puts-1", "2026-01-02", 0.5),
    ]
    assert set(second["runs"]) == {"2026-01-01", "2026-01-02"}
    # Measured again, it replaces what stood there, and the machine that nothing comes from any more goes.
    third = merged(second, run("puts-64", 300.0, started="2026-01-03"))
    assert third["rows"][0]["value"]["median"] == 3.0
    assert [one["started"] for one in third["series"]] == ["2026-01-03", "2026-01-03", "2026-01-02", "2026-01-02"]
    assert set(third["runs"]) == {"2026-01-02", "2026-01-03"}


def test_figures_with_failed_requests_are_not_published() -> None:
    first = merged({}, run("puts-64", 200.0, started="2026-01-01"))
    second = merged(first, run("puts-64", 900.0, started="2026-01-02", errors={"Exhausted": 1}))
    assert second["rows"] == first["rows"]
    assert second["series"] == first["series"]


def test_the_page_keeps_its_text_around_the_figures() -> None:
    found = merged({}, run("puts-64", 200.0, started="2026-01-01"))
    page = publish.with_figures(f"before\n{BEGIN}\nold\n{END}\nafter\n", publish.markdown(found))
    assert page.startswith("before\n")
    assert page.endswith(f"{END}\nafter\n")
    assert "old" not in page
    assert "| puts, frames, 64 clients | etcd gRPC | 1.5x | 2.5x | **2x** |  |" in page


def test_the_plot_is_well_formed_and_shows_the_ratio() -> None:
    text = publish.drawn(merged({}, run("p99-64", 200.0, started="2026-01-01")))
    drawn = [node.firstChild.data for node in minidom.parseString(text).getElementsByTagName("text")]  # type: ignore[union-attr]
    assert "p99 of puts at 64 clients" in drawn
    assert any("a <processor>" in one for one in drawn)


def test_metrics_are_summed_over_their_labels() -> None:
    found = series_of('# TYPE a gauge\na{p="x"} 1\na{p="y"} 2.5\nab 7\n')
    assert (total(found, "a"), total(found, "ab"), total(found, "b")) == (3.5, 7.0, None)


def test_lateness_is_judged_by_what_the_run_added() -> None:
    def histogram(*counts: int) -> dict[str, float]:
        bounds = ("0.01", "0.05", "+Inf")
        return {f'late_bucket{{le="{bound}"}}': float(n) for bound, n in zip(bounds, counts, strict=True)}

    before = histogram(0, 0, 50)  # the bad ones of before do not count
    assert soak.quantile_at_most(before, histogram(99, 100, 150), "late", 0.99) == 0.01
    assert soak.quantile_at_most(before, histogram(98, 100, 150), "late", 0.99) == 0.05
    assert soak.quantile_at_most({}, histogram(98, 98, 100), "late", 0.99) == float("inf")
    assert soak.quantile_at_most(before, before, "late", 0.99) is None
    assert soak.quantile_at_most({}, {}, "late", 0.99) is None


def sample(second: float, own_mb: float) -> Sample:
    return Sample(
        second=second, own_mb=own_mb, mapped_mb=1.0, commit_seq=second, overlay_entries=None, renewals=None
    )


def test_memory_that_grows_is_found_and_a_start_is_forgiven() -> None:
    flat = [sample(second, 80.0 if second > 9 else 20.0 + second) for second in range(40)]
    assert soak.growth(flat) == 1.0
    growing = [sample(second, 80.0 + second) for second in range(40)]
    assert (found := soak.growth(growing)) is not None
    assert found > soak.GROWTH_MAX
    assert soak.growth(flat[:3]) is None


def test_a_run_that_lost_its_lease_or_says_nothing_of_lateness_fails() -> None:
    load = parsed(
        '{"operations": 1, "per_second": 1, "seconds": 1, "latency_ms": {"p99": 1, "max": 1}, '
        '"errors": {}, "cpu_seconds": 1}'
    )
    flat = [sample(second, 80.0) for second in range(8)]
    found = soak.verdict(load, flat, {}, {}, leases_lost=1)
    assert [text.split(":")[0] for text in found.failings] == ["the session ended 1 times", "renewals are late"]
    minidom.parseString(soak.drawn(flat, found, caption="here & there"))


def test_what_is_no_document_of_a_load_is_refused() -> None:
    with pytest.raises(LoadFailed, match="printed"):
        parsed("nothing")
