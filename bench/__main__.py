"""`python -m bench`: the table of benchmarks. Progress and tables go to stderr, one JSON document to stdout.

The composition root: environment, clocks and folders are taken here.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console

from bench import experiments, machine, report, stopping
from bench.etcd import etcd
from bench.fencekv import idle_memory, shards
from bench.figures import ETCD, FENCEKV, REDIS, Spread, failures
from bench.generator import ROOT, Generator, LoadFailed, ToolMissing, build
from bench.memory import Memory
from bench.paired import Runs, Target, Timing
from bench.publish import publish
from bench.redis import program, redis
from bench.report import Outcome
from bench.table import KEYS, MEASURES, MEMORY, QUICK_ROWS, ROWS, Measure, Row, chosen, keys_measure
from fencekv import codec
from fencekv_sandbox.controlplane import AssetsMissing, ControlPlaneFailed, find_assets
from fencekv_sandbox.sandbox import NotReady

WIDTH_MIN: Final = 150  # of the tables, where the output is no terminal
CACHE: Final = ROOT / ".cache" / "bench"
KILLS: Final = 3
FILL_BATCH: Final = 1000
MANY_KEYS: Final = 10_000_000
ANCHORED: Final = {measure.name for measure in MEASURES}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a run does."""

    rows: tuple[str, ...]
    timing: Timing
    settle_seconds: float
    keys: int
    quick: bool


@dataclass(slots=True, kw_only=True)
class Found:
    """What came of it, besides the runs."""

    versions: dict[str, str] = field(default_factory=dict)
    memory: list[Memory] = field(default_factory=list)
    experiments: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Spread | None] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)  # stages that could not be measured


class Bench:
    """One run."""

    def __init__(self, console: Console, settings: Settings, generator: Generator, folder: Path) -> None:
        self._console, self._settings, self._folder = console, settings, folder
        self.runs = Runs(generator=generator, timing=settings.timing, tell=self._tell)
        self._generator = generator
        self._redis = None if settings.quick else program()
        self.found = Found()

    async def run(self) -> None:
        """All that was chosen."""
        self.found.versions["fencekv"] = "compiled" if codec.__file__.endswith(".so") else "not compiled"
        wanted = {row.measure for row in ROWS if row.name in self._settings.rows}
        measures = [measure for measure in MEASURES if measure.name in wanted]
        if measures:
            self._tell("the generator alone, against stubs …")
        systems = {ETCD, FENCEKV, *(() if self._redis is None else (REDIS,))}
        for measure in measures:
            await self.runs.ceiling(measure, systems)
        single = [measure for measure in measures if measure.setup == "single"]
        cluster = [measure for measure in measures if measure.setup == "cluster"]
        stages: list[tuple[object, Callable[[], Awaitable[None]]]] = [
            (MEMORY in self._settings.rows, self._memory),
            (single, lambda: self._single(single)),
            (cluster, lambda: self._cluster(cluster)),
            ("keys" in wanted, self._keys),
            ("replay" in wanted, self._replay),
            ("partitions" in wanted, self._partitions),
        ]
        for asked, stage in stages:
            if asked:
                await self._stage(stage)

    async def _stage(self, stage: Callable[[], Awaitable[None]]) -> None:
        """What cannot be measured takes its own rows away, not those of the others."""
        try:
            await stage()
        except (ControlPlaneFailed, LoadFailed, NotReady) as error:
            self.found.broken.append(str(error))
            self._tell(f"FAILED: {error}")

    async def _memory(self) -> None:
        self._tell("idle memory: the sample is started …")
        settle = self._settings.settle_seconds
        self.found.memory = await idle_memory(self._folder / "sample", settle_seconds=settle)

    async def _single(self, measures: list[Measure]) -> None:
        self._tell("etcd, Redis and one shard are started …")
        async with AsyncExitStack() as stack:
            targets = {}
            if self._redis is not None:
                server = await stack.enter_async_context(redis(self._redis, self._folder / "redis"))
                self.found.versions["redis"] = server.version
                targets[REDIS] = Target(addresses={"redis": server.address}, pids=server.pids)
            elif not self._settings.quick:
                self._tell("  redis-server is not on PATH (Debian: redis-server): Redis is left out")
            targets |= await stack.enter_async_context(self._both("single", members=1, standbys=0))
            await self._measured(measures, targets)

    async def _cluster(self, measures: list[Measure]) -> None:
        self._tell("etcd with three members and two shards are started …")
        async with self._both("cluster", members=3, standbys=1) as targets:
            await self._measured(measures, targets)

    @asynccontextmanager
    async def _both(self, name: str, *, members: int, standbys: int) -> AsyncIterator[dict[str, Target]]:
        folder = self._folder / name
        async with (
            etcd(folder / "etcd", members=members) as peer,
            shards(folder / "fencekv", standbys=standbys) as own,
        ):
            self.found.versions["etcd"] = peer.version
            self.runs.beside = own.beside
            yield {
                ETCD: Target(
                    addresses=dict.fromkeys(("etcd", "gateway", "aiohttp"), peer.address), pids=peer.pids
                ),
                FENCEKV: Target(addresses=dict.fromkeys(("frames", "http", "sdk"), own.address), pids=own.pids),
            }

    async def _measured(self, measures: list[Measure], targets: dict[str, Target]) -> None:
        every = [pid for target in targets.values() for pid in target.pids]
        self.runs.beside = [*self.runs.beside, *every]
        for measure in measures:
            await self.runs.measure(measure, targets)

    async def _keys(self) -> None:
        measure = keys_measure(self._settings.keys)
        self._tell(f"one shard with a table of {KEYS:,} keys and one of {self._settings.keys:,} is started …")
        async with shards(self._folder / "keys", tables=[side.table for side in measure.sides]) as own:
            self.runs.beside = own.beside
            targets = {
                side.system: Target(addresses={"frames": own.address}, pids=own.pids) for side in measure.sides
            }
            for side in measure.sides:
                await self.runs.fill(side, targets[side.system], batch=FILL_BATCH)
            await asyncio.sleep(self._settings.settle_seconds)
            await self._measured([measure], targets)

    async def _replay(self) -> None:
        self._tell("replay: one shard is started, and killed at full load …")
        found = await experiments.replay(self._generator, self._folder / "replay", kills=KILLS, tell=self._tell)
        self.found.experiments["replay"] = asdict(found)
        self.found.values["replay"] = found.open_seconds
        if found.open_seconds is None:
            self.found.notes["replay"] = "the shard does not tell"
        else:
            serving = found.serving_seconds.median
            self.found.notes["replay"] = f"serves {serving:.2f} s after the kill, supervisor and grant included"

    async def _partitions(self) -> None:
        self._tell(f"partitions: one shard with {experiments.PARTITIONS:,} of them is started …")
        found = await experiments.partitions(
            self._folder / "partitions",
            count=experiments.PARTITIONS,
            settle_seconds=self._settings.settle_seconds,
            tell=self._tell,
        )
        self.found.experiments["partitions"] = asdict(found)
        values = {"start": found.start_seconds, "memory": found.idle_mb, "idle": found.idle_percent}
        for name, value in values.items():
            self.found.values[f"partitions-{name}"] = None if value is None else Spread(value, value, value)
        self.found.notes["partitions-start"] = f"all open; all served after {found.serving_seconds:.1f} s"

    def outcomes(self) -> list[Outcome]:
        """The rows that were chosen."""
        return [self._outcome(row) for row in ROWS if row.name in self._settings.rows]

    def _outcome(self, row: Row) -> Outcome:
        title = row.title.format(keys=f"{self._settings.keys:,}")
        if row.measure in ANCHORED:
            return report.paired(row, title, self.runs.legs)
        if row.measure == "keys":
            few, many = keys_measure(self._settings.keys).sides
            return report.paired(row, title, self.runs.legs, above=many.system, below=few.system)
        note = self.found.notes.get(row.name, "")
        return Outcome(row=row, title=title, value=self.found.values.get(row.name), note=note)

    def _tell(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)


async def measure(console: Console, settings: Settings, folder: Path) -> tuple[dict[str, Any], list[Outcome], str]:
    """The whole run; gives its document, the outcomes, and what was wrong."""
    started = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
    where = machine.describe(folder)
    report.print_machine(console, where)
    console.print("the load generator is built …")
    bench = Bench(console, settings, await build(CACHE), folder)
    await bench.run()
    outcomes = bench.outcomes()
    if MEMORY in settings.rows:
        report.print_memory(console, bench.found.memory)
    report.print_series(console, bench.runs.legs, bench.runs.ceilings)
    report.print_outcomes(console, outcomes)
    document = report.document(
        started=started,
        command=sys.orig_argv[1:],
        settings=asdict(settings),
        machine={**where, **bench.found.versions},
        memory=bench.found.memory,
        outcomes=outcomes,
        legs=bench.runs.legs,
        ceilings=bench.runs.ceilings,
        experiments=bench.found.experiments,
    )
    failed = failures(bench.runs.legs)
    wrong = [f"{failed} requests failed: their rows are not to be used"] if failed else []
    return document, outcomes, "; ".join([*wrong, *bench.found.broken])


@click.command()
@click.option(
    "--quick/--full", default=lambda: os.environ.get("QUICK") == "1", help="Three rows, under a minute; QUICK=1."
)
@click.option("--rows", "names", default=lambda: os.environ.get("ROWS", ""), help="Rows, by comma; ROWS=.  [all]")
@click.option(
    "--keys",
    type=click.IntRange(KEYS, 100_000_000),
    default=lambda: int(os.environ.get("KEYS") or MANY_KEYS),
    help="Of the large table of the row `keys`; KEYS=.  [10000000]",
)
@click.option("--rounds", type=click.IntRange(1, 50), help="Paired runs of each measure.  [5, quick: 3]")
@click.option(
    "--seconds", type=click.FloatRange(0.2, 600), help="Length of a run, without warm-up.  [3, quick: 1]"
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=CACHE,
    help="Folder for all systems' data, on the disk to measure; emptied at the end.  [.cache/bench]",
)
@click.option("--publish/--no-publish", "publishes", default=True, help="Write docs/ (never with QUICK).")
@click.option("--with-parent", is_flag=True, help="End when the process that started this one ends.")
def main(
    quick: bool,
    names: str,
    keys: int,
    rounds: int | None,
    seconds: float | None,
    data: Path,
    publishes: bool,
    with_parent: bool,
) -> None:
    """FenceKV beside etcd and Redis on the same disk, as a table."""
    if with_parent:
        stopping.end_with_parent()
    try:
        rows = QUICK_ROWS if quick and not names else chosen(names)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="ROWS") from error
    settings = Settings(
        rows=rows,
        timing=Timing(
            rounds=rounds or (3 if quick else 5),
            seconds=seconds or (1.0 if quick else 3.0),
            warmup_seconds=0.3 if quick else 1.0,
            ceiling_seconds=0.5 if quick else 2.0,
        ),
        settle_seconds=2.0 if quick else 10.0,
        keys=keys,
        quick=quick,
    )
    console = Console(stderr=True)
    if not console.is_terminal:
        console = Console(stderr=True, width=WIDTH_MIN)
    document, outcomes, wrong = _measured(console, settings, data)
    results = ROOT / "bench" / "results"
    results.mkdir(exist_ok=True)
    file = results / f"{document['started']}.json"
    file.write_text(json.dumps(document, indent=1) + "\n")
    console.print(f"all figures: {file.relative_to(ROOT)}", highlight=False)
    if publishes and not quick:
        publish(document, ROOT / "docs")
        console.print("published: docs/benchmarks.json, docs/benchmarks.svg, docs/benchmarks.md", highlight=False)
    click.echo(json.dumps({one.title: _median(one) for one in outcomes}, indent=1))
    if wrong:
        console.print(wrong, style="red", markup=False)
        sys.exit(1)


def _measured(console: Console, settings: Settings, data: Path) -> tuple[dict[str, Any], list[Outcome], str]:
    data.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=data))
    try:
        if any(row.measure in ANCHORED for row in ROWS if row.name in settings.rows):
            find_assets(os.environ)  # before anything is started
        machine.check_disk(folder)
        return stopping.run(measure(console, settings, folder))
    except (AssetsMissing, ControlPlaneFailed, LoadFailed, NotReady, ToolMissing, machine.NoDisk) as error:
        raise click.ClickException(str(error)) from error
    except stopping.Stopped:
        sys.exit(stopping.STATUS)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _median(outcome: Outcome) -> float | None:
    return None if outcome.value is None else round(outcome.value.median, 3)


if __name__ == "__main__":
    main()
