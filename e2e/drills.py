"""make drills: does the drills on a cluster, and writes docs/drills.json and docs/drills.md.

    python e2e/drills.py [--runs N] [--fault NAME] [--no-page]

On the cluster of `make kind`, or the one that KUBECONFIG names, whose nodes are left alone. A row that was not
done this time keeps what docs/drills.json has of it. The exit status is 1 if anything did not hold.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import kind
from kubectl import Cluster, say
from rows import ROWS, Row, Run, cannot, run

DOCUMENT: Final = kind.ROOT / "docs/drills.json"
PAGE: Final = kind.ROOT / "docs/drills.md"
MARK: Final = "<!-- made by make drills: the table below -->"


def main(arguments: list[str]) -> int:
    """Does the drills; gives the exit status."""
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(prog="make drills", description="Loses owners under load, and counts.")
    parser.add_argument("--runs", type=int, default=None, help="runs of each row; as the page has it when absent")
    parser.add_argument("--fault", choices=names, action="append", help="this row alone")
    parser.add_argument("--no-page", action="store_true", help="write neither docs/drills.json nor docs/drills.md")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        cluster = find(Path(folder))
        if cluster is None:
            return 3
        kind.install(cluster)
        good = True
        for row in ROWS:
            if asked.fault and row.name not in asked.fault:
                continue
            if why := cannot(row):
                say(f"{row.name} is left out: {why}")
                continue
            result = repeat(cluster, row, asked.runs or row.runs)
            good = good and not result["wrong"]
            if not asked.no_page:
                keep(row.name, result)
    return 0 if good else 1


def find(folder: Path) -> Cluster | None:
    """The cluster; None: there is none."""
    named = os.environ.get("KUBECONFIG", "")
    if why := kind.missing(*(["kubectl"] if named else ["docker", "kind", "kubectl"])):
        say(why)
        return None
    if named:
        return Cluster(Path(named))
    if not kind.exists(kind.NAME):
        say(f"no kind cluster {kind.NAME}: make kind")
        return None
    return Cluster(kind.kubeconfig(kind.NAME, folder))


def repeat(cluster: Cluster, row: Row, runs: int) -> dict[str, Any]:
    """Does a row so many times; gives what stands in the document."""
    done: list[Run] = []
    wrong: list[str] = []
    for number in range(runs):
        try:
            done.append(run(cluster, row, number))
        except (AssertionError, ValueError) as error:
            wrong.append(f"run {number + 1}: {str(error)[:500]}")
            say(f"{row.name} {wrong[-1]}")
            cluster.report()
            continue
        bad = done[-1].wrong(row)
        if bad:
            wrong.append(f"run {number + 1}: {', '.join(bad)}; {'; '.join(done[-1].examples)[:500]}")
            say(f"{row.name} does not hold: {wrong[-1]}")
    seconds = [each.seconds for each in done]
    handovers = [one for each in done for one in each.handovers]
    typical = statistics.median(handovers) if handovers else None
    if row.median_seconds is not None and (typical is None or typical > row.median_seconds):
        wrong.append(
            f"median of the changes of owners {_seconds(typical) or 'not known'}, limit {row.median_seconds:g} s"
        )
    return {
        "title": row.title,
        "limit": row.limit_text,
        "clean": row.is_clean,
        "commit": commit(),
        "at": datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="seconds"),
        "runs": runs,
        "loadPerCore": round(os.getloadavg()[1] / (os.cpu_count() or 1), 1),
        "longestSeconds": round(max(seconds), 3) if seconds else None,
        "medianSeconds": round(statistics.median(seconds), 3) if seconds else None,
        "changesOfOwners": len(handovers),
        "changeMedianSeconds": round(typical, 3) if typical is not None else None,
        "acknowledged": sum(each.verdict.acknowledged for each in done),
        "failed": sum(each.verdict.failed for each in done),
        "unknown": sum(each.verdict.unknown for each in done),
        "lost": sum(each.verdict.lost for each in done),
        "staleAcknowledged": sum(each.verdict.stale for each in done),
        "notInFlight": sum(len(each.strays) for each in done),
        "notes": [f"run {number}: {note}" for number, each in enumerate(done, 1) for note in each.notes],
        "wrong": wrong,
    }


def commit() -> str:
    """The commit that is checked out, with a + if more than these pages has changed since; empty: none is."""
    pages = [f":!{page.relative_to(kind.ROOT)}" for page in (DOCUMENT, PAGE)]
    try:
        name = _git("rev-parse", "--short=10", "HEAD")
        return f"{name}+" if _git("status", "--porcelain", "--", ".", *pages) else name
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(*words: str) -> str:
    command = ["git", "-C", str(kind.ROOT), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603


def keep(name: str, result: dict[str, Any]) -> None:
    """Puts a row into the document, and writes the page anew."""
    rows: dict[str, Any] = {}
    if DOCUMENT.exists():
        rows = json.loads(DOCUMENT.read_text(encoding="utf-8"))["rows"]
    rows[name] = result
    order = [row.name for row in ROWS]
    rows = {each: rows[each] for each in order if each in rows}
    DOCUMENT.write_text(json.dumps({"rows": rows}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    head = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    PAGE.write_text(f"{head}{MARK}\n\n{table(rows)}", encoding="utf-8")


def table(rows: dict[str, Any]) -> str:
    """The rows as Markdown."""
    head = ["fault", "runs", "limit", "longest", "median", "change p50", "acknowledged", "failed", "unknown"]
    head += ["lost", "stale", "holds", "commit"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows.values():
        figures = [_seconds(row.get(f"{field}Seconds")) for field in ("longest", "median", "changeMedian")]
        cells = [row["title"], row["runs"], row["limit"], *figures, row["acknowledged"], row["failed"]]
        cells += [row["unknown"], row["lost"], row["staleAcknowledged"], "no" if row["wrong"] else "yes"]
        lines.append(f"| {' | '.join(str(cell) for cell in cells)} | {row['commit']} |")
    for field, title in (("wrong", "What did not hold:"), ("notes", "What else was seen:")):
        told = [f"- {row['title']}, {text}" for row in rows.values() for text in row.get(field, ())]
        if told:
            lines += ["", title, "", *told]
    return "\n".join(lines) + "\n"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} s"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
