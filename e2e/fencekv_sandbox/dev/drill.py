"""A failover drill: write without a pause, kill the owner, see who takes over and whether anything was lost.

Invariants:
  * Counted as acknowledged is what the client was told is written, nothing else.
  * Lost is every acknowledged write that a linearizable read afterwards does not give back as it was written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

from fencekv.client import Table
from fencekv.errors import FenceKVError
from fencekv_sandbox.sandbox import Owner, Sandbox

WRITERS: Final = 2
PAUSE_SECONDS: Final = 0.01
BEFORE_SECONDS: Final = 0.5
AFTER_SECONDS: Final = 0.5
FAILOVER_SECONDS_MAX: Final = 30.0
READERS: Final = 8


class NoFailover(Exception):
    """Nobody took over in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the drill showed."""

    ready_seconds: float
    failover_seconds: float
    epoch_before: int
    epoch_after: int
    owner_before: str
    owner_after: str
    acknowledged: int
    lost: int

    @property
    def is_good(self) -> bool:
        """Whether there was a failover and nothing was lost."""
        return self.lost == 0 and self.epoch_after > self.epoch_before

    def document(self) -> dict[str, Any]:
        """As a JSON document."""
        return asdict(self)


class Writers:
    """Writes new keys into one partition, all the time."""

    def __init__(self, table: Table, *, prefix: str, clock: Callable[[], float]) -> None:
        self._table, self._prefix, self._clock = table, prefix, clock
        self.acknowledged: dict[str, bytes] = {}
        self.epochs: dict[int, float] = {}  # when the first write of an epoch was acknowledged
        self._arrived = asyncio.Event()

    async def run(self, number: int) -> None:
        """Writes until cancelled."""
        count = 0
        while True:
            key, value = f"{self._prefix}/{number}-{count}", f"{number}-{count}".encode()
            count += 1
            try:
                written = await self._table.put(key, value)
            except FenceKVError:
                # Not acknowledged: it may be there or not, and is not counted.
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            self.acknowledged[key] = value
            self.epochs.setdefault(written.version.epoch, self._clock())
            self._arrived.set()
            await asyncio.sleep(PAUSE_SECONDS)

    async def first_above(self, epoch: int) -> float:
        """When a write was first acknowledged under a higher epoch; waits for it."""
        while True:
            found = [moment for reached, moment in self.epochs.items() if reached > epoch]
            if found:
                return min(found)
            self._arrived.clear()
            await self._arrived.wait()


async def drill(sandbox: Sandbox, table: Table, *, run: str, ready_seconds: float) -> Outcome:
    """Kills the owner of a partition with -9 under load; `run` makes the drill's keys its own."""
    clock = asyncio.get_running_loop().time
    prefix = f"{{drill-{run}}}"
    partition = await sandbox.partition_of(table.name, f"{prefix}/")
    writers = Writers(table, prefix=prefix, clock=clock)
    tasks = [asyncio.create_task(writers.run(number)) for number in range(WRITERS)]
    try:
        await asyncio.sleep(BEFORE_SECONDS)
        killed = clock()
        before = await sandbox.kill_owner(partition)
        try:
            async with asyncio.timeout(FAILOVER_SECONDS_MAX):
                again = await writers.first_above(before.epoch)
        except TimeoutError as error:
            text = (
                f"{partition}: no write was acknowledged {FAILOVER_SECONDS_MAX:g} s after {before.pod} was killed"
            )
            raise NoFailover(text) from error
        await asyncio.sleep(AFTER_SECONDS)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    after = await _owner(sandbox, partition)
    return Outcome(
        ready_seconds=round(ready_seconds, 3),
        failover_seconds=round(again - killed, 3),
        epoch_before=before.epoch,
        epoch_after=after.epoch,
        owner_before=before.pod,
        owner_after=after.pod,
        acknowledged=len(writers.acknowledged),
        lost=len(await missing(table, writers.acknowledged)),
    )


async def missing(table: Table, acknowledged: dict[str, bytes]) -> list[str]:
    """The keys whose value is not what was acknowledged."""
    waiting, found = iter(acknowledged.items()), []

    async def read() -> None:
        for key, value in waiting:
            entry = await table.get(key)
            if entry is None or entry.value != value:
                found.append(key)

    await asyncio.gather(*(read() for _ in range(READERS)))
    return found


async def _owner(sandbox: Sandbox, partition: str) -> Owner:
    owner = await sandbox.owner_of(partition)
    assert owner is not None, partition
    return owner
