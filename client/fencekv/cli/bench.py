"""`fencekv bench`: how many puts a second this program's own SDK reaches, in a closed loop of tasks.

Invariants:
  * Only what is public of the SDK is used, as a program of the reader's would use it.
  * What completed inside the window counts, and nothing else; failures count wherever they happen.
"""

from __future__ import annotations

import asyncio
import math
import resource
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from fencekv.cli.output import print_json, print_table
from fencekv.cli.run import DONE, UNAVAILABLE, client_options
from fencekv.clock import SystemClock
from fencekv.errors import FenceKVError

if TYPE_CHECKING:
    from fencekv.client import FenceKV, Table


class Puts:
    """The tasks of a run, and what they saw. Times are of `clock`."""

    def __init__(self, table: Table, *, keys: int, value: bytes, clock: Callable[[], float]) -> None:
        self._table, self._keys, self._value, self._clock = table, keys, value, clock
        self._sent = 0
        self.opens = self.closes = 0.0
        self.seconds: list[float] = []
        self.errors: Counter[str] = Counter()

    def opens_in(self, warmup: float, *, seconds: float) -> None:
        """Sets the window: it opens after `warmup` seconds from now."""
        self.opens = self._clock() + warmup
        self.closes = self.opens + seconds

    async def task(self) -> None:
        """Puts in a closed loop until the window has closed."""
        while (began := self._clock()) < self.closes:
            key = f"bench-{self._sent % self._keys:08d}"
            self._sent += 1
            try:
                await self._table.put(key, self._value)
            except FenceKVError as error:
                self.errors[error.name] += 1
                continue
            ended = self._clock()
            if self.opens <= ended < self.closes:
                self.seconds.append(ended - began)


@click.command()
@click.option("--table", required=True, help="An existing table; keys bench-00000000 … are overwritten.")
@click.option("--tasks", type=click.IntRange(1, 10_000), default=64, show_default=True, help="Puts under way.")
@click.option(
    "--seconds", type=click.FloatRange(0.1, 86_400), default=5.0, show_default=True, help="Of the window."
)
@click.option("--warmup", type=click.FloatRange(0, 60), default=1.0, show_default=True, help="Seconds before it.")
@click.option("--keys", type=click.IntRange(1, 100_000_000), default=10_000, show_default=True, help="How many.")
@click.option("--value-bytes", type=click.IntRange(0, 1 << 20), default=256, show_default=True, help="Of a value.")
@client_options
def bench(
    run: Any,
    output: str | None,
    table: str,
    tasks: int,
    seconds: float,
    warmup: float,
    keys: int,
    value_bytes: int,
) -> None:
    """Measure puts through this SDK: tasks of one process, each with one put under way.

    Exit status 3 if any put failed.
    """

    async def act(client: FenceKV) -> int:
        value = bytes(number * 7 % 256 for number in range(value_bytes))
        puts = Puts(client.table(table), keys=keys, value=value, clock=SystemClock().now)
        cpu_seconds = await _measured(puts, tasks=tasks, seconds=seconds, warmup=warmup)
        found = document(puts, seconds=seconds, cpu_seconds=cpu_seconds)
        if output == "json":
            print_json({"table": table, "tasks": tasks, **found})
        else:
            latency = found["latency_ms"]
            cells = [f"{found['per_second']:,.0f}", *(f"{latency[name]:.2f}" for name in ("p50", "p99", "max"))]
            print_table(["PUTS/S", "P50 MS", "P99 MS", "MAX MS", "ERRORS"], [[*cells, sum(puts.errors.values())]])
        return UNAVAILABLE if puts.errors else DONE

    run(act)


async def _measured(puts: Puts, *, tasks: int, seconds: float, warmup: float) -> float:
    """Runs the tasks; gives the processor time that this process took in the window."""
    puts.opens_in(warmup, seconds=seconds)
    running = asyncio.gather(*(puts.task() for _ in range(tasks)))
    await asyncio.sleep(warmup)
    before = _cpu_seconds()
    await running
    return _cpu_seconds() - before


def document(puts: Puts, *, seconds: float, cpu_seconds: float) -> dict[str, Any]:
    """What came of a run."""
    ordered = sorted(puts.seconds)
    latency = {f"p{share}": _percentile(ordered, share) * 1e3 for share in (50, 99, 100)}
    return {
        "operations": len(ordered),
        "per_second": len(ordered) / seconds,
        "seconds": seconds,
        "latency_ms": {"p50": latency["p50"], "p99": latency["p99"], "max": latency["p100"]},
        "errors": dict(puts.errors),
        "cpu_seconds": cpu_seconds,
    }


def _percentile(ordered: list[float], share: int) -> float:
    """The nearest-rank percentile; 0 where nothing completed."""
    return ordered[max(0, math.ceil(share / 100 * len(ordered)) - 1)] if ordered else 0.0


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
