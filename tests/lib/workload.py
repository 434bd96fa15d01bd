"""Writers and readers that run through a failover, and what must be true of what they saw.

Each key has one writer, which writes 1, 2, 3 …; so an acknowledged number may never be missing afterwards, and a
reader may never see a number fall, nor one that the end does not have.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from fencekv.client import FenceKV, Table
from fencekv.errors import FenceKVError, Unknown
from fencekv.results import Written
from fencekv.token import Version


@dataclass
class KeyLog:
    """What happened to one key."""

    acknowledged: int = 0
    attempted: int = 0
    seen_max: int = 0
    version: Version | None = None
    acknowledgements: list[tuple[float, int]] = field(default_factory=list)  # (time.monotonic, epoch)
    errors: list[str] = field(default_factory=list)


@dataclass
class Workload:
    """Run it with `async with`; then `check()`."""

    client: FenceKV
    table_name: str
    keys: Sequence[str]
    pause_seconds: float = 0.01
    readers: bool = True
    logs: dict[str, KeyLog] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _stopping: bool = False

    async def __aenter__(self) -> Workload:
        table = self.client.table(self.table_name)
        for key in self.keys:
            self.logs[key] = KeyLog()
            self._tasks.append(asyncio.ensure_future(self._write(table, key)))
            if self.readers:
                self._tasks.append(asyncio.ensure_future(self._read(table, key)))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)

    @property
    def acknowledged(self) -> int:
        """Writes acknowledged so far."""
        return sum(len(log.acknowledgements) for log in self.logs.values())

    async def all_written(self, *, seconds: float = 60.0) -> None:
        """Waits until every key had a write acknowledged."""
        async with asyncio.timeout(seconds):
            while not all(log.acknowledgements for log in self.logs.values()):
                await asyncio.sleep(0.01)

    async def taken_over(self, since: float, above: Mapping[str, int], *, seconds: float = 60.0) -> float:
        """Waits until each key of `above` had a write acknowledged under an epoch above the one given.

        Gives the seconds from `since` (time.monotonic) to the last of these first acknowledgements.
        """
        return await self.all_taken_over(since, [([key], epoch) for key, epoch in above.items()], seconds=seconds)

    async def all_taken_over(
        self, since: float, groups: Sequence[tuple[Sequence[str], int]], *, seconds: float = 60.0
    ) -> float:
        """The same for groups of keys, a partition's each: one key of each must have been written."""
        async with asyncio.timeout(seconds):
            while True:
                first = [min(self._first_above(key, epoch) for key in keys) for keys, epoch in groups]
                if max(first) < math.inf:
                    return max(first) - since
                await asyncio.sleep(0.02)

    def _first_above(self, key: str, old: int) -> float:
        return next((at for at, epoch in self.logs[key].acknowledgements if epoch > old), math.inf)

    async def _write(self, table: Table, key: str) -> None:
        log = self.logs[key]
        while not self._stopping:
            log.attempted += 1
            try:
                written = await self._put(table, key, log)
            except FenceKVError as error:
                log.errors.append(f"{error.name}: {error}")
            else:
                log.acknowledged = log.attempted
                log.acknowledgements.append((time.monotonic(), written.version.epoch))
                if log.version is not None and written.version <= log.version:
                    self.problems.append(f"{key}: version {written.version} after {log.version}")
                log.version = written.version
            await asyncio.sleep(self.pause_seconds)

    async def _put(self, table: Table, key: str, log: KeyLog) -> Written:
        """A put that ends in a known outcome.

        One that is Unknown may still be on its way, and land behind a later one: it is repeated with its
        idempotency key until there is an answer.
        """
        number, name = log.attempted, f"{key}-{log.attempted}-{uuid.uuid4()}"
        while True:
            try:
                return await table.put(key, str(number).encode(), idempotency_key=name)
            except Unknown as error:
                log.errors.append(f"{error.name}: {error}")

    async def _read(self, table: Table, key: str) -> None:
        log = self.logs[key]
        while not self._stopping:
            try:
                entry = await table.get(key)
            except FenceKVError:
                continue
            finally:
                await asyncio.sleep(self.pause_seconds)
            number = 0 if entry is None else int(entry.value)
            if number < log.seen_max:
                self.problems.append(f"{key}: read {number} after {log.seen_max}")
            log.seen_max = max(log.seen_max, number)

    async def check(self) -> None:
        """Nothing acknowledged is lost, nothing that was read was taken back, nothing fell."""
        table = self.client.table(self.table_name)
        for key, log in self.logs.items():
            entry = await table.get(key)
            final = 0 if entry is None else int(entry.value)
            if final < log.acknowledged:
                self.problems.append(f"{key}: {log.acknowledged} was acknowledged, {final} is there")
            if final < log.seen_max:
                self.problems.append(f"{key}: {log.seen_max} was read, {final} is there")
            if final > log.attempted:
                self.problems.append(f"{key}: {final} is there, {log.attempted} was the last attempt")
        assert not self.problems, self.problems


class EpochWatch:
    """Watches partition Leases through a whole test: epochs only rise, and each has one holder."""

    def __init__(self) -> None:
        self.holders: dict[tuple[str, int], str] = {}
        self.highest: dict[str, int] = {}
        self.problems: list[str] = []
        self.restored = False  # etcd was put back: the record may show an older epoch again

    def see(self, kind: str, item: dict[str, Any]) -> None:
        if kind == "DELETED" or not (item["spec"] or {}).get("holderIdentity"):
            return
        uid = item["metadata"]["annotations"]["fencekv.io/partition-uid"]
        epoch, holder = int(item["spec"]["leaseTransitions"]), item["spec"]["holderIdentity"]
        known = self.holders.setdefault((uid, epoch), holder)
        if known != holder:
            self.problems.append(f"{uid}: epoch {epoch} has two owners: {known}, {holder}")
        if epoch < self.highest.get(uid, 0) and not self.restored:
            self.problems.append(f"{uid}: epoch fell from {self.highest[uid]} to {epoch}")
        self.highest[uid] = max(epoch, self.highest.get(uid, 0))
