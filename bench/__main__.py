"""`python -m bench`: durable puts of FenceKV beside etcd on the same disk, and idle memory.

The composition root: clocks and chance are taken here and in `loader`.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console

from bench import machine, report
from bench.etcd import etcd
from bench.fencekv import idle_memory, one_shard
from bench.figures import CEILING, ETCD, FENCEKV, Leg, percentile, schedule
from bench.loader import Job, Load
from bench.requests import Kind, build
from bench.responder import responder
from bench.workers import ROOT, LoadFailed, Workers, workers
from fencekv_sandbox.controlplane import HOST, AssetsMissing, ControlPlaneFailed, find_assets
from fencekv_sandbox.sandbox import NotReady

WIDTH_MIN: Final = 132  # of the table, where the output is no terminal
SEED: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a run does."""

    clients: tuple[int, ...]
    rounds: int
    seconds: float
    warmup_seconds: float
    ceiling_seconds: float
    settle_seconds: float
    processes: int
    with_etcd: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A system to load."""

    system: str
    kind: Kind
    host: str
    port: int
    pids: Sequence[int]  # none: it runs in this process


class Run:
    """Loads systems, and keeps what came of it."""

    def __init__(self, console: Console, settings: Settings, crew: Workers) -> None:
        self._console, self._settings, self._crew = console, settings, crew
        self._known: list[int] = []
        self.legs: list[Leg] = []
        self.ceiling: list[Leg] = []

    async def puts(self, folder: Path) -> str:
        """The paired runs; gives etcd's version, empty without it."""
        settings, version = self._settings, ""
        async with AsyncExitStack() as stack:
            targets: dict[str, Target] = {}
            if settings.with_etcd:
                peer = await stack.enter_async_context(etcd(folder / "etcd"))
                version = peer.version
                targets[ETCD] = Target(system=ETCD, kind="etcd", host=HOST, port=peer.port, pids=[peer.pid])
            shard = await stack.enter_async_context(one_shard(folder / "fencekv"))
            targets[FENCEKV] = Target(
                system=FENCEKV, kind="fencekv", host=shard.host, port=shard.port, pids=shard.pids
            )
            self._known = [*shard.beside, *(pid for target in targets.values() for pid in target.pids)]
            for clients, number, system in schedule(list(targets), settings.clients, settings.rounds):
                leg = await self._leg(targets[system], clients, number, settings.seconds)
                self.legs.append(leg)
                self._tell(leg)
        return version

    async def own_ceiling(self) -> None:
        """What the load processes reach against a server that does nothing."""

        def size(port: int) -> int:
            return len(build("fencekv", host=f"{HOST}:{port}", seed=SEED, keys=1)[0])

        async with responder(size) as port:
            target = Target(system=CEILING, kind="fencekv", host=HOST, port=port, pids=[])
            for clients in self._settings.clients:
                leg = await self._leg(target, clients, 0, self._settings.ceiling_seconds)
                self.ceiling.append(leg)
                self._tell(leg)

    async def _leg(self, target: Target, clients: int, number: int, seconds: float) -> Leg:
        job = Job(
            kind=target.kind,
            host=target.host,
            port=target.port,
            clients=clients,
            warmup_seconds=self._settings.warmup_seconds,
            seconds=seconds,
            seed=SEED,
        )
        server = target.pids or [os.getpid()]
        rest = {os.getpid(), *self._known, *self._crew.pids} - {*server}
        groups = {"server": server, "rest": rest}
        before = machine.usage(groups)
        load = await self._crew.run(job)
        after = machine.usage(groups)
        return _leg(
            load,
            Leg(
                system=target.system,
                clients=clients,
                round=number,
                puts_per_second=0.0,
                p50_ms=0.0,
                p99_ms=0.0,
                server_cores=machine.cores(before, after, "server"),
                loader_cores=0.0,
                others_cores=machine.others(before, after),
            ),
        )

    def _tell(self, leg: Leg) -> None:
        errors = f"  [red]errors {dict(leg.errors)}[/red]" if leg.errors else ""
        self._console.print(
            f"  {leg.clients:>4} clients, round {leg.round + 1}, {leg.system:<12} "
            f"{leg.puts_per_second:>9,.0f} puts/s  p50 {leg.p50_ms:7.2f} ms  p99 {leg.p99_ms:7.2f} ms{errors}",
            highlight=False,
        )


def _leg(load: Load, leg: Leg) -> Leg:
    latencies = sorted(load.latencies_us)
    return replace(
        leg,
        puts_per_second=len(latencies) / load.seconds,
        p50_ms=percentile(latencies, 0.5) / 1e3,
        p99_ms=percentile(latencies, 0.99) / 1e3,
        errors=load.errors,
        loader_cores=load.cpu_seconds / load.seconds,
    )


async def measure(console: Console, settings: Settings, folder: Path) -> dict[str, Any]:
    """The whole run; gives its document."""
    started = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
    where = machine.describe(folder)
    report.print_machine(console, where)
    console.print("idle memory: the sample is started …")
    memory = await idle_memory(folder / "sample", settle_seconds=settings.settle_seconds)
    report.print_memory(console, memory)
    async with workers(settings.processes) as crew:
        run = Run(console, settings, crew)
        console.print("the load processes' own ceiling …")
        await run.own_ceiling()
        console.print("puts: etcd and one shard are started …" if settings.with_etcd else "puts: one shard …")
        version = await run.puts(folder)
    report.print_puts(console, run.legs, run.ceiling)
    return report.document(
        started=started,
        command=sys.orig_argv[1:],
        settings=asdict(settings),
        machine={**where, "etcd": version or None},
        memory=memory,
        legs=run.legs,
        ceiling=run.ceiling,
    )


async def _until_done(console: Console, settings: Settings, folder: Path) -> dict[str, Any]:
    task = asyncio.current_task()
    assert task is not None
    # So that SIGTERM too leaves nothing behind.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await measure(console, settings, folder)


@click.command()
@click.option(
    "--quick/--full", default=lambda: os.environ.get("QUICK") == "1", help="Under a minute; QUICK=1 does it too."
)
@click.option("--clients", default="1,16,64,256", show_default=True, help="Numbers of clients.")
@click.option(
    "--rounds", type=click.IntRange(1, 50), help="Pairs of runs for each number of clients.  [5, quick: 2]"
)
@click.option("--seconds", type=click.FloatRange(0.2, 60), help="Length of a run, without warm-up.  [4, quick: 1]")
@click.option("--processes", type=click.IntRange(1, 16), default=1, show_default=True, help="Load processes.")
@click.option("--without-etcd", is_flag=True, help="FenceKV alone: no ratios.")
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=ROOT / ".cache" / "bench",
    help="Folder for both systems' data, on the disk to measure; emptied at the end.  [.cache/bench]",
)
def main(
    quick: bool,
    clients: str,
    rounds: int | None,
    seconds: float | None,
    processes: int,
    without_etcd: bool,
    data: Path,
) -> None:
    """Durable puts of FenceKV beside etcd on the same disk, and idle memory."""
    settings = Settings(
        clients=_numbers(clients),
        rounds=rounds or (2 if quick else 5),
        seconds=seconds or (1.0 if quick else 4.0),
        warmup_seconds=0.5 if quick else 1.0,
        ceiling_seconds=0.5 if quick else 2.0,
        settle_seconds=2.0 if quick else 10.0,
        processes=processes,
        with_etcd=not without_etcd,
    )
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_MIN)
    data.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=data))
    try:
        if settings.with_etcd:
            find_assets(os.environ)  # before anything is started
        machine.check_disk(folder)
        found = asyncio.run(_until_done(console, settings, folder))
    except AssetsMissing as error:
        raise click.ClickException(f"{error} Or measure FenceKV alone: --without-etcd.") from error
    except (ControlPlaneFailed, LoadFailed, NotReady, machine.NoDisk) as error:
        raise click.ClickException(str(error)) from error
    except asyncio.CancelledError:
        sys.exit(130)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(_finish(console, found))


def _finish(console: Console, found: dict[str, Any]) -> int:
    results = ROOT / "bench" / "results"
    results.mkdir(exist_ok=True)
    file = results / f"{found['started']}.json"
    file.write_text(json.dumps(found, indent=1) + "\n")
    console.print(f"all figures: {file.relative_to(ROOT)}", highlight=False)
    failed = sum(sum(run["errors"].values()) for run in found["runs"])
    if failed:
        console.print(f"[red]{failed} requests failed: these figures are not to be used[/red]")
    return 1 if failed else 0


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(0 < number <= 1000 for number in numbers):
        raise click.BadParameter("want numbers from 1 to 1000, separated by commas", param_hint="--clients")
    return numbers


if __name__ == "__main__":
    main()
