"""What came of a run: outcomes of the rows, as a table for people and as a document for machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from bench.figures import ETCD, FENCEKV, Leg, Spread, failures, plain, ratio, series
from bench.memory import Memory
from bench.table import Row

NOISE_CORES_MAX: Final = 0.25  # what others may take of the machine before the figures say little
FORMAT: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A row with its value. None: there is none, and `note` says why."""

    row: Row
    title: str
    value: Spread | None
    note: str = ""
    failed: int = 0  # requests: with any, the value is not to be used

    @property
    def verdict(self) -> str:
        """How the value stands to what is wanted."""
        if self.value is None:
            return "-"
        if self.row.meets(self.value.median, self.row.aim):
            return "aim"
        return "enough" if self.row.meets(self.value.median, self.row.least) else "SHORT"


def paired(row: Row, title: str, legs: Sequence[Leg], *, above: str = FENCEKV, below: str = ETCD) -> Outcome:
    """The outcome of a row that compares two systems."""
    own = [leg for leg in legs if leg.measure == row.measure]
    value = ratio(own, measure=row.measure, above=above, below=below, figure=row.figure)
    notes = []
    failed = failures([leg for leg in own if leg.system in {above, below}])
    if failed:
        notes.append(f"{failed} requests failed: not to be used")
    noise = max((one.others_cores.median for one in series(own) if one.others_cores), default=0.0)
    if noise > NOISE_CORES_MAX:
        notes.append(f"others kept {noise:.2f} cores busy: says little")
    if value is None:
        notes.append("no pair of runs")
    return Outcome(row=row, title=title, value=value, note="; ".join(notes), failed=failed)


def print_machine(console: Console, machine: Mapping[str, Any]) -> None:
    """Where the figures come from."""
    sync = machine["sync_ms"]
    console.print(
        f"{machine['cores']} cores ({machine['processor']}), {machine['system']}, Python {machine['python']}, "
        f"{machine['filesystem'] or 'unknown filesystem'}: fsync of 4 KiB p50 {sync['p50']} ms, "
        f"p99 {sync['p99']} ms; load average before {machine['load_average_before']}",
        highlight=False,
    )


def print_memory(console: Console, memory: Sequence[Memory]) -> None:
    """Idle memory beside its aims."""
    if not memory:
        console.print("idle memory: not known on this system (no smaps_rollup)")
        return
    table = Table(title="Idle memory with the sample Ready (MB = 10^6 bytes)")
    for name in ("process", "RSS", "PSS", "aim"):
        table.add_column(name, justify="left" if name == "process" else "right")
    for one in memory:
        aim = f"<= {one.aim_mb}" if one.aim_mb else ""
        table.add_row(one.process, f"{one.rss_mb:.1f}", f"{one.pss_mb:.1f}", aim)
    console.print(table)


def print_series(console: Console, legs: Sequence[Leg], ceilings: Sequence[Leg]) -> None:
    """The figures behind the ratios, with what the generator alone reaches."""
    if not legs:
        return
    table = Table(title="Medians (least-most)")
    for name in ("measure", "system", "a second", "p50 ms", "p99 ms", "cores server/loader/others", "stub"):
        table.add_column(name, justify="left" if name in {"measure", "system"} else "right")
    for line in series_lines(legs, ceilings):
        table.add_row(*line)
    console.print(table)


def series_lines(legs: Sequence[Leg], ceilings: Sequence[Leg]) -> list[list[str]]:
    """Their cells."""
    alone = {(leg.measure, leg.system): leg.per_second for leg in ceilings}
    lines = []
    for one in series(legs):
        stub = alone.get((one.measure, one.system))
        cores = (one.server_cores, one.loader_cores, one.others_cores)
        lines.append(
            [
                one.measure,
                one.system,
                _spread(one.per_second, ",.0f"),
                _spread(one.p50_ms, ".2f"),
                _spread(one.p99_ms, ".2f"),
                "/".join("?" if each is None else f"{each.median:.2f}" for each in cores),
                "" if stub is None else f"{stub:,.0f}",
            ]
        )
    return lines


def print_outcomes(console: Console, outcomes: Sequence[Outcome]) -> None:
    """The table."""
    table = Table(title="What it shows")
    for name in ("row", "anchor", "at least", "aim", "measured", "", "note"):
        table.add_column(name, justify="left" if name in {"row", "anchor", "note"} else "right")
    for one in outcomes:
        colour = {"SHORT": "red", "enough": "yellow", "aim": "green"}.get(one.verdict, "dim")
        table.add_row(one.title, one.row.anchor, *wanted(one.row), value(one), one.verdict, one.note, style=colour)
    console.print(table)


def wanted(row: Row) -> tuple[str, str]:
    """At least, and the aim."""
    sign = "<= " if row.lower else ""
    space = "" if row.unit == "x" else " "
    return f"{sign}{row.least:g}{space}{row.unit}", f"{sign}{row.aim:g}{space}{row.unit}"


def value(outcome: Outcome) -> str:
    """The median, with the extremes where there were several runs."""
    if outcome.value is None:
        return "-"
    space = "" if outcome.row.unit == "x" else " "
    return _spread(outcome.value, ".3g" if outcome.row.unit != "x" else ".2f") + space + outcome.row.unit


def document(
    *,
    started: str,
    command: Sequence[str],
    settings: Mapping[str, Any],
    machine: Mapping[str, Any],
    memory: Sequence[Memory],
    outcomes: Sequence[Outcome],
    legs: Sequence[Leg],
    ceilings: Sequence[Leg],
    experiments: Mapping[str, Any],
) -> dict[str, Any]:
    """All of it, for machines: every run and what was made of it."""
    found: dict[str, Any] = plain(
        {
            "format": FORMAT,
            "started": started,
            "command": list(command),
            "settings": dict(settings),
            "machine": dict(machine),
            "rows": [row_document(one) for one in outcomes],
            "series": [asdict(one) for one in series(legs)],
            "ceilings": [asdict(leg) for leg in ceilings],
            "experiments": dict(experiments),
            "idle_memory": [asdict(one) for one in memory],
            "runs": [asdict(leg) for leg in legs],
        }
    )
    return found


def row_document(outcome: Outcome) -> dict[str, Any]:
    """A row, for machines."""
    row = outcome.row
    return {
        "name": row.name,
        "title": outcome.title,
        "anchor": row.anchor,
        "unit": row.unit,
        "less_is_better": row.lower,
        "at_least": row.least,
        "aim": row.aim,
        "value": None if outcome.value is None else asdict(outcome.value),
        "verdict": outcome.verdict,
        "note": outcome.note,
        "failed_requests": outcome.failed,
    }


def _spread(of: Spread, form: str) -> str:
    text = format(of.median, form)
    return f"{text} ({of.least:{form}}-{of.most:{form}})" if of.least < of.most else text
