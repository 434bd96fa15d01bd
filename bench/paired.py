"""Paired runs: the systems of a measure take turns, and what came of each run is kept.

Invariants:
  * Nothing but the system whose turn it is is under load; the others of its set-up are idle.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from bench import machine
from bench.figures import Leg, schedule
from bench.generator import Generator, Job
from bench.table import Measure, Side

Tell = Callable[[str], None]
FILL_CLIENTS: Final = 64
FILL_CLIENTS_BATCHED: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A running system: the address for each loader, and its processes."""

    addresses: Mapping[str, str]
    pids: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long and how often."""

    rounds: int
    seconds: float
    warmup_seconds: float
    ceiling_seconds: float


@dataclass(slots=True, kw_only=True)
class Runs:
    """Makes runs and keeps them."""

    generator: Generator
    timing: Timing
    tell: Tell
    beside: list[int] = field(default_factory=list)  # processes of ours that are not loaded
    legs: list[Leg] = field(default_factory=list)
    ceilings: list[Leg] = field(default_factory=list)

    async def measure(self, measure: Measure, targets: Mapping[str, Target]) -> None:
        """The paired runs of a measure, on those of its systems that run."""
        sides = {side.system: side for side in measure.sides if side.system in targets}
        if measure.op == "get":
            for system, side in sides.items():
                await self.fill(side, targets[system])
        for number, system in schedule(list(sides), self.timing.rounds):
            leg = await self._leg(measure, sides[system], targets[system], number, self.timing.seconds)
            self.legs.append(leg)
            self._say(leg)

    async def ceiling(self, measure: Measure, systems: Collection[str]) -> None:
        """What the generator reaches against stubs that answer at once."""
        for side in measure.sides:
            if side.system not in systems or side.loader in {"sdk", "aiohttp"}:
                continue  # a stub of the latter would show Python's own cost, which their row is about
            async with self.generator.stub(side.loader) as (address, pid):
                target = Target(addresses={side.loader: address}, pids=[pid])
                leg = await self._leg(measure, side, target, 0, self.timing.ceiling_seconds)
            self.ceilings.append(leg)
            self._say(leg, ceiling=True)

    async def fill(self, side: Side, target: Target, *, batch: int = 1) -> None:
        """Puts every key once, in transactions of `batch` puts."""
        job = Job(
            loader=side.loader,
            address=target.addresses[side.loader],
            op="fill",
            clients=FILL_CLIENTS if batch == 1 else FILL_CLIENTS_BATCHED,
            warmup_seconds=0.0,
            seconds=1.0,
            keys=side.keys,
            table=side.table,
            batch=batch,
        )
        found = await self.generator.run(job)
        self.tell(f"  {side.keys:,} keys put into {side.system} in {found.seconds:.1f} s {_errors(found.errors)}")

    async def _leg(self, measure: Measure, side: Side, target: Target, number: int, seconds: float) -> Leg:
        job = Job(
            loader=side.loader,
            address=target.addresses[side.loader],
            op=measure.op,
            clients=measure.clients,
            depth=measure.depth,
            warmup_seconds=self.timing.warmup_seconds,
            seconds=seconds,
            keys=side.keys,
            table=side.table,
        )
        groups = {"server": target.pids, "rest": {os.getpid(), *self.beside} - {*target.pids}}
        before = machine.usage(groups)
        load = await self.generator.run(job)
        after = machine.usage(groups)
        return Leg(
            measure=measure.name,
            system=side.system,
            round=number,
            per_second=load.per_second,
            p50_ms=load.latency_ms["p50"],
            p99_ms=load.latency_ms["p99"],
            max_ms=load.latency_ms["max"],
            errors=load.errors,
            server_cores=machine.cores(before, after, "server"),
            loader_cores=load.cpu_seconds / load.seconds,
            others_cores=machine.others(before, after),
        )

    def _say(self, leg: Leg, *, ceiling: bool = False) -> None:
        who = f"{leg.system} stub" if ceiling else f"{leg.system}, round {leg.round + 1}"
        self.tell(
            f"  {leg.measure:<14} {who:<18} {leg.per_second:>9,.0f}/s  p50 {leg.p50_ms:7.2f} ms  "
            f"p99 {leg.p99_ms:7.2f} ms {_errors(leg.errors)}"
        )


def _errors(errors: Mapping[str, int]) -> str:
    return f" ERRORS {dict(errors)}" if errors else ""
