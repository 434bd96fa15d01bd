"""`python -m bench.soak`: one shard at full load for minutes. Is its memory flat, are its renewals on time?

Judged is the memory of the process itself (anonymous pages). Mapped pages of the LMDB file count as resident too,
but are the page cache's: they grow with the file and are given back when memory is needed. Both are shown.

The composition root: clocks and folders are taken here.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console

from bench import machine, plot, stopping
from bench.fencekv import Shards, shards, total
from bench.figures import plain
from bench.generator import ROOT, Generator, Job, Load, LoadFailed, ToolMissing, build, parsed
from bench.memory import resident
from fencekv_sandbox.controlplane import ControlPlaneFailed
from fencekv_sandbox.sandbox import NotReady

CACHE: Final = ROOT / ".cache" / "bench"
CLIENTS: Final = 256
SAMPLE_SECONDS: Final = 1.0
END_SECONDS_MAX: Final = 60.0
GROWTH_MAX: Final = 1.10  # of the last quarter's median over the second quarter's
LATENESS_SECONDS_MAX: Final = 0.050
LATENESS: Final = "fencekv_session_renewal_lateness_seconds"
COMMIT_SEQ: Final = "fencekv_partition_commit_seq"
OVERLAY: Final = "fencekv_partition_overlay_entries"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """How the shard stood at a second of the run. None: not told."""

    second: float
    own_mb: float | None
    mapped_mb: float | None
    commit_seq: float | None
    overlay_entries: float | None
    renewals: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is made of a run. None: not told by the shard or the machine."""

    puts_per_second: float
    p99_ms: float
    max_ms: float
    errors: Mapping[str, int]
    leases_lost: int
    growth: float | None
    renewals: int | None
    lateness_p99_seconds_at_most: float | None

    @property
    def failings(self) -> list[str]:
        """What is not as it should be."""
        found = []
        if self.errors:
            found.append(f"requests failed: {dict(self.errors)}")
        if self.leases_lost:
            found.append(f"the session ended {self.leases_lost} times")
        if self.growth is None or self.growth > GROWTH_MAX:
            found.append(f"memory grew: {_told(self.growth)} (at most {GROWTH_MAX:g})")
        late = self.lateness_p99_seconds_at_most
        if late is None or late > LATENESS_SECONDS_MAX:
            found.append(f"renewals are late: p99 up to {_told(late)} s (at most {LATENESS_SECONDS_MAX:g})")
        return found


def growth(samples: Sequence[Sample]) -> float | None:
    """The last quarter's median of the process's own memory by the second quarter's. Pure.

    None: too few samples.
    """
    own = [sample.own_mb for sample in samples if sample.own_mb is not None]
    quarter = len(own) // 4
    if quarter < 1:
        return None
    return statistics.median(own[-quarter:]) / statistics.median(own[quarter : 2 * quarter])


def quantile_at_most(
    before: Mapping[str, float], after: Mapping[str, float], name: str, share: float
) -> float | None:
    """The upper bound of a histogram's bucket that a quantile lies in, of what was added between. Pure.

    None: nothing was added, or the shard does not tell.
    """
    prefix = f'{name}_bucket{{le="'
    bounds = {
        float(series[len(prefix) :].partition('"')[0]): value - before.get(series, 0.0)
        for series, value in after.items()
        if series.startswith(prefix)
    }
    if not bounds or bounds[max(bounds)] <= 0:
        return None
    rank = math.ceil(share * bounds[max(bounds)])
    return next(bound for bound in sorted(bounds) if bounds[bound] >= rank)


async def run(
    generator: Generator, folder: Path, *, seconds: float, console: Console
) -> tuple[Verdict, list[Sample]]:
    """The whole run."""
    async with shards(folder) as peer:
        pid, session = peer.process(), (await peer.sandbox.session_lease(peer.pod)).session
        epoch = (await peer.sandbox.partition_lease("bench-0")).epoch
        job = Job(
            loader="frames", address=peer.address, op="put", clients=CLIENTS, warmup_seconds=1.0, seconds=seconds
        )
        before = await peer.metrics()
        samples: list[Sample] = []
        async with generator.running(job) as process:
            assert process.stdout is not None
            output = asyncio.ensure_future(process.stdout.read())
            await _sample(peer, pid, samples, seconds=seconds, ended=output, console=console)
            async with asyncio.timeout(END_SECONDS_MAX):
                load = parsed((await output).decode())
        after = await peer.metrics()
        lost = int((await peer.sandbox.session_lease(peer.pod)).session != session)
        lost += (await peer.sandbox.partition_lease("bench-0")).epoch - epoch
    return verdict(load, samples, before, after, leases_lost=lost), samples


def verdict(
    load: Load,
    samples: Sequence[Sample],
    before: Mapping[str, float],
    after: Mapping[str, float],
    *,
    leases_lost: int,
) -> Verdict:
    """What is made of it. Pure."""
    renewals = total(after, f"{LATENESS}_count")
    return Verdict(
        puts_per_second=load.per_second,
        p99_ms=load.latency_ms["p99"],
        max_ms=load.latency_ms["max"],
        errors=load.errors,
        leases_lost=leases_lost,
        growth=growth(samples),
        renewals=None if renewals is None else int(renewals - (total(before, f"{LATENESS}_count") or 0)),
        lateness_p99_seconds_at_most=quantile_at_most(before, after, LATENESS, 0.99),
    )


async def _sample(
    peer: Shards,
    pid: int,
    samples: list[Sample],
    *,
    seconds: float,
    ended: asyncio.Future[bytes],
    console: Console,
) -> None:
    began = time.monotonic()
    while not ended.done() and time.monotonic() - began < seconds:
        metrics = await peer.metrics()
        memory = resident(pid)
        samples.append(
            Sample(
                second=round(time.monotonic() - began, 2),
                own_mb=None if memory is None else memory.own_mb,
                mapped_mb=None if memory is None else memory.mapped_mb,
                commit_seq=total(metrics, COMMIT_SEQ),
                overlay_entries=total(metrics, OVERLAY),
                renewals=total(metrics, f"{LATENESS}_count"),
            )
        )
        if len(samples) % 30 == 1:
            last = samples[-1]
            console.print(
                f"  {last.second:6.0f} s  {_told(last.own_mb)} MB, seq {_told(last.commit_seq)}", highlight=False
            )
        await asyncio.wait({ended}, timeout=SAMPLE_SECONDS)


def drawn(samples: Sequence[Sample], found: Verdict, *, caption: str) -> str:
    """The curves. Pure."""
    pairs = [(one, two) for one, two in itertools.pairwise(samples) if two.second > one.second]
    rate = [
        (two.second, (two.commit_seq - one.commit_seq) / (two.second - one.second))
        for one, two in pairs
        if one.commit_seq is not None and two.commit_seq is not None
    ]
    wanted: list[tuple[str, str, Sequence[tuple[float, float | None]]]] = [
        ("Puts", "a second", rate),
        ("The process's own memory", "MB", [(one.second, one.own_mb) for one in samples]),
        ("Mapped pages of its files", "MB", [(one.second, one.mapped_mb) for one in samples]),
        ("Journal entries not yet applied", "overlay", [(one.second, one.overlay_entries) for one in samples]),
    ]
    shown = [
        plot.Curve(
            title=title,
            unit=unit,
            points=[(second, value) for second, value in points if value is not None],
        )
        for title, unit, points in wanted
    ]
    late = _told(found.lateness_p99_seconds_at_most)
    title = (
        f"{CLIENTS} clients at full load: renewals late by at most {late} s (p99), {found.leases_lost} leases lost"
    )
    return plot.curves(title, [curve for curve in shown if curve.points], caption=caption)


@click.command()
@click.option("--seconds", type=click.FloatRange(2, 86_400), default=600.0, show_default=True, help="Of load.")
@click.option("--publish/--no-publish", "publishes", default=True, help="Write docs/soak.json and docs/soak.svg.")
@click.option("--with-parent", is_flag=True, help="End when the process that started this one ends.")
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=CACHE,
    help="Folder for the shard's data, on the disk to measure; emptied at the end.  [.cache/bench]",
)
def main(seconds: float, publishes: bool, data: Path, with_parent: bool) -> None:
    """One shard at full load: memory, renewals, leases. Exit status 1 if something is not as it should be."""
    if with_parent:
        stopping.end_with_parent()
    console = Console(stderr=True)
    data.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="soak-", dir=data))
    try:
        machine.check_disk(folder)
        where = machine.describe(folder)
        console.print(f"{CLIENTS} clients for {seconds:g} s …", highlight=False)
        found, samples = stopping.run(_built_and_run(folder, seconds=seconds, console=console))
    except (ControlPlaneFailed, LoadFailed, NotReady, ToolMissing, machine.NoDisk) as error:
        raise click.ClickException(str(error)) from error
    except stopping.Stopped:
        sys.exit(stopping.STATUS)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    document = {
        "started": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "seconds": seconds,
        "clients": CLIENTS,
        "machine": where,
        "verdict": {**asdict(found), "failings": found.failings},
        "samples": [asdict(sample) for sample in samples],
    }
    if publishes:
        _publish(document, samples, found)
    click.echo(json.dumps(plain(document["verdict"]), indent=1))
    sys.exit(1 if found.failings else 0)


async def _built_and_run(folder: Path, *, seconds: float, console: Console) -> tuple[Verdict, list[Sample]]:
    return await run(await build(CACHE), folder, seconds=seconds, console=console)


def _publish(document: dict[str, Any], samples: Sequence[Sample], found: Verdict) -> None:
    where = document["machine"]
    caption = (
        f"{document['started'][:10]}: {where['cores']} cores ({where['processor']}), {where['system']}, "
        f"{where['filesystem']}, Python {where['python']}"
    )
    (ROOT / "docs" / "soak.json").write_text(json.dumps(plain(document), indent=1) + "\n")
    (ROOT / "docs" / "soak.svg").write_text(drawn(samples, found, caption=caption))


def _told(value: float | None) -> str:
    return "unknown" if value is None else f"{value:g}"


if __name__ == "__main__":
    main()
