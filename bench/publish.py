"""What a run leaves in docs/: the document, the plot and the table of benchmarks.md.

Invariants:
  * A row stands there with the machine and the time of its own run; rows that a run left out keep theirs.
  * What came of a measure in which a request failed is not published.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench import plot
from bench.report import FORMAT
from bench.table import MEASURES, ROWS

DOCUMENT: Final = "benchmarks.json"
PLOT: Final = "benchmarks.svg"
PAGE: Final = "benchmarks.md"
BEGIN: Final = "<!-- figures: written by make bench -->"
END: Final = "<!-- end of figures -->"


def merged(before: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """The published document after a run. Pure."""
    if before.get("format") != FORMAT:
        before = {}
    started = run["started"]
    rows = {row["name"]: row for row in before.get("rows", [])}
    good = [row for row in run["rows"] if row["value"] is not None and not row["failed_requests"]]
    rows |= {row["name"]: {**row, "started": started} for row in good}
    broken = {leg["measure"] for leg in run["runs"] if leg["errors"]}
    new = [one for one in run["series"] if one["measure"] not in broken]
    known = [row.name for row in ROWS]
    kept = {row["started"] for row in rows.values()}
    runs = {**before.get("runs", {}), started: {"machine": run["machine"], "settings": run["settings"]}}
    found = {
        "format": FORMAT,
        "rows": [rows[name] for name in known if name in rows],
        "series": _replaced(before.get("series", []), new, started),
        "ceilings": _replaced(before.get("ceilings", []), run["ceilings"], started),
        "experiments": {**before.get("experiments", {}), **run["experiments"]},
        "idle_memory": run["idle_memory"] or before.get("idle_memory", []),
    }
    series = {one["started"] for one in found["series"]}
    found["runs"] = {name: member for name, member in runs.items() if name in kept | series | {started}}
    return found


def publish(run: Mapping[str, Any], docs: Path) -> None:
    """Writes the three files."""
    file = docs / DOCUMENT
    found = merged(json.loads(file.read_text()) if file.exists() else {}, run)
    file.write_text(json.dumps(found, indent=1) + "\n")
    (docs / PLOT).write_text(drawn(found))
    page = docs / PAGE
    page.write_text(with_figures(page.read_text(), markdown(found)))


def with_figures(page: str, figures: str) -> str:
    """The page with new figures between its marks. Pure."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    assert rest, f"{PAGE} has no {BEGIN}"
    return f"{before}{BEGIN}\n\n{figures}\n\n{END}{after}"


def drawn(found: Mapping[str, Any]) -> str:
    """The plot. Pure."""
    bars = [
        plot.Bar(
            label=row["title"],
            median=row["value"]["median"],
            least=row["value"]["least"],
            most=row["value"]["most"],
            wanted=row["at_least"],
            aim=row["aim"],
            lower=row["less_is_better"],
        )
        for row in found["rows"]
        if row["unit"] == "x"
    ]
    groups: dict[str, dict[str, tuple[float, float, float]]] = {}
    named = {measure.name for measure in MEASURES}
    for one in found["series"]:
        if one["measure"] in named:
            figure = one["per_second"]
            place = groups.setdefault(one["measure"], {})
            place[one["system"]] = (figure["median"], figure["least"], figure["most"])
    drawn_groups = [plot.Group(label=name, systems=systems) for name, systems in groups.items()]
    return plot.benchmarks(bars, drawn_groups, caption=_machines(found)[-1])


def markdown(found: Mapping[str, Any]) -> str:
    """The tables of the page. Pure."""
    parts = [
        _table(
            ["", "anchor", "at least", "aim", "measured", "note"],
            [_row(row) for row in found["rows"]],
        ),
        "The figures behind them (medians, in brackets the least and the most):",
        _table(
            [
                "measure",
                "system",
                "a second",
                "p50 ms",
                "p99 ms",
                "cores: server / loader / others",
                "generator alone",
            ],
            [_series(one, found["ceilings"]) for one in found["series"]],
        ),
    ]
    if found["idle_memory"]:
        lines = [
            [one["process"], f"{one['rss_mb']:.1f}", f"<= {one['aim_mb']}" if one["aim_mb"] else ""]
            for one in found["idle_memory"]
        ]
        parts += ["Idle memory with the sample Ready:", _table(["process", "RSS, MB", "aim"], lines)]
    parts.append("Measured on: " + "; ".join(_machines(found)) + ".")
    return "\n\n".join(parts)


def _row(row: Mapping[str, Any]) -> list[str]:
    unit = row["unit"] if row["unit"] == "x" else f" {row['unit']}"
    sign = "<= " if row["less_is_better"] else ""
    cells = [f"{sign}{row[name]:g}{unit}" for name in ("at_least", "aim")]
    return [row["title"], row["anchor"], *cells, f"**{_spread(row['value'], '.3g')}{unit}**", row["note"]]


def _series(one: Mapping[str, Any], ceilings: Sequence[Mapping[str, Any]]) -> list[str]:
    alone = [
        leg["per_second"] for leg in ceilings if (leg["measure"], leg["system"]) == (one["measure"], one["system"])
    ]
    cores = [one[name] for name in ("server_cores", "loader_cores", "others_cores")]
    return [
        one["measure"],
        one["system"],
        _spread(one["per_second"], ",.0f"),
        _spread(one["p50_ms"], ".2f"),
        _spread(one["p99_ms"], ".2f"),
        " / ".join("?" if each is None else f"{each['median']:.2f}" for each in cores),
        f"{alone[0]:,.0f}" if alone else "",
    ]


def _machines(found: Mapping[str, Any]) -> list[str]:
    lines = []
    for started, run in found["runs"].items():
        machine = run["machine"]
        versions = ", ".join(
            f"{name} {machine[name]}" for name in ("etcd", "redis", "fencekv") if machine.get(name)
        )
        lines.append(
            f"{started[:10]}: {machine['cores']} cores ({machine['processor']}), {machine['system']}, "
            f"{machine['filesystem']}, fsync p50 {machine['sync_ms']['p50']} ms, Python {machine['python']}"
            + (f", {versions}" if versions else "")
        )
    return list(dict.fromkeys(lines))


def _replaced(
    before: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]], started: str
) -> list[dict[str, Any]]:
    measures = {one["measure"] for one in new}
    kept = [dict(one) for one in before if one["measure"] not in measures]
    every = [*kept, *({**one, "started": started} for one in new)]
    order = [*(measure.name for measure in MEASURES), "keys"]
    return sorted(every, key=lambda one: order.index(one["measure"]))


def _spread(of: Mapping[str, float], form: str) -> str:
    text = format(of["median"], form)
    return f"{text} ({of['least']:{form}}-{of['most']:{form}})" if of["least"] < of["most"] else text


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    every = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in every)
