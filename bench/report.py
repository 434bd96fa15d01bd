"""What a run prints, and the document that it leaves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from bench.figures import CEILING, FENCEKV, Leg, Spread, ratios, rows
from bench.memory import Memory

NOISE_CORES_MAX: Final = 0.25  # what others may take of the machine before the figures say little


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
    for name in ("process", "RSS", "PSS", "aim", "RSS/aim"):
        table.add_column(name, justify="left" if name == "process" else "right")
    for one in memory:
        share = one.rss_mb / one.aim_mb if one.aim_mb else None
        colour = "" if share is None else "green" if share <= 1 else "red"
        table.add_row(
            one.process,
            f"{one.rss_mb:.1f}",
            f"{one.pss_mb:.1f}",
            f"<= {one.aim_mb}" if one.aim_mb else "",
            f"{share:.2f}" if share is not None else "",
            style=colour,
        )
    console.print(table)


def print_puts(console: Console, legs: Sequence[Leg], ceiling: Sequence[Leg]) -> None:
    """The table of puts, with ratios and the loader's own ceiling."""
    table = Table(title="Puts of 256 B, medians (least-most), ratios FenceKV/etcd of paired runs")
    table.add_column("clients", justify="right")
    table.add_column("system")
    for name in ("puts/s", "p50 ms", "p99 ms", "cores: server/loader/others"):
        table.add_column(name, justify="right")
    by_clients = {ratio.clients: ratio for ratio in ratios(legs)}
    for clients in dict.fromkeys(leg.clients for leg in [*legs, *ceiling]):
        for row in rows([leg for leg in [*legs, *ceiling] if leg.clients == clients]):
            cells = [_count(row.puts_per_second), _short(row.p50_ms), _short(row.p99_ms)]
            busy = "/".join(_median(cores) for cores in (row.server_cores, row.loader_cores, row.others_cores))
            style = "bold" if row.system == FENCEKV else "dim" if row.system == CEILING else ""
            table.add_row(str(clients), row.system, *cells, busy, style=style)
        ratio = by_clients.get(clients)
        if ratio is not None:
            cells = [_short(ratio.puts_per_second), _short(ratio.p50_ms), _short(ratio.p99_ms)]
            table.add_row(str(clients), "ratio", *cells, "", style="cyan")
        table.add_section()
    console.print(table)
    noisy = [clients for clients, cores in noise_cores(legs).items() if cores > NOISE_CORES_MAX]
    if noisy:
        console.print(
            f"[yellow]with {', '.join(map(str, noisy))} clients others kept more than {NOISE_CORES_MAX} cores "
            "busy: these figures say little, repeat them on an idle machine[/yellow]",
            highlight=False,
        )


def noise_cores(legs: Sequence[Leg]) -> dict[int, float]:
    """Cores that others kept busy, by number of clients: the median of the system that had more of it.

    Empty: not known. Each number of clients is judged alone, so that quiet runs cannot hide noisy ones.
    """
    noise: dict[int, float] = {}
    for row in rows(legs):
        if row.others_cores is not None:
            noise[row.clients] = max(noise.get(row.clients, 0.0), row.others_cores.median)
    return noise


def document(
    *,
    started: str,
    command: Sequence[str],
    settings: Mapping[str, Any],
    machine: Mapping[str, Any],
    memory: Sequence[Memory],
    legs: Sequence[Leg],
    ceiling: Sequence[Leg],
) -> dict[str, Any]:
    """All of it, for machines: every run and what was made of them."""
    found: dict[str, Any] = _plain(
        {
            "format": 1,
            "started": started,
            "command": list(command),
            "settings": dict(settings),
            "machine": dict(machine),
            "idle_memory": [asdict(one) for one in memory],
            "puts": [asdict(row) for row in rows(legs)],
            "ratios": [asdict(ratio) for ratio in ratios(legs)],
            "noise_cores": noise_cores(legs),
            "ceiling": [asdict(row) for row in rows(ceiling)],
            "runs": [asdict(leg) for leg in [*legs, *ceiling]],
        }
    )
    return found


def _plain(value: Any) -> Any:
    """JSON has no NaN: what is not known is null."""
    if isinstance(value, dict):
        return {name: _plain(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_plain(member) for member in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _count(of: Spread) -> str:
    return f"{of.median:,.0f}" + (f" ({of.least:,.0f}-{of.most:,.0f})" if of.least < of.most else "")


def _short(of: Spread) -> str:
    return f"{of.median:.2f}" + (f" ({of.least:.2f}-{of.most:.2f})" if of.least < of.most else "")


def _median(of: Spread | None) -> str:
    return "?" if of is None else f"{of.median:.2f}"
