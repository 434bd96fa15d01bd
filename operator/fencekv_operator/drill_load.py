"""The load of a drill: writers that keep a rate, and everything that they were told.

Each key has one writer, which has one request on its way at a time; every so often it reads the next writer's key.

Invariants:
  * Each put writes a value of its own and carries an idempotency key, so that its one outcome can be told.
  * No more than OPERATIONS_MAX operations are recorded; then nothing more is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Final, Protocol

from fencekv.drill_history import DrillHistory
from fencekv.errors import Denied, FenceKVError, Invalid, Lost, TooLarge, Unknown
from fencekv.linearizable import Kind, Operation, Outcome, Value
from fencekv.partitioning import HashPartitioning, Partitioning
from fencekv.results import Deleted, Entry, HistoryPage, Written
from fencekv.token import Version

WRITERS: Final = 16
READ_EACH: Final = 10  # puts of a writer between two of its reads
OPERATIONS_MAX: Final = 60_000
KEY_ATTEMPTS_MAX: Final = 100_000
PREFIX: Final = "fencekv-drill"


class Table(Protocol):
    """What a drill asks of the SDK's table."""

    async def put(self, key: str, value: bytes, *, durability: str, idempotency_key: str) -> Written:
        """Sets a key."""
        ...

    async def get(self, key: str) -> Entry | None:
        """Reads a key."""
        ...

    async def delete(self, key: str) -> Deleted:
        """Removes a key."""
        ...

    async def history_page(self, key: str, *, limit: int, cursor: str) -> HistoryPage:
        """Reads versions of a key."""
        ...


class NoKey(Exception):
    """No key of ours lies in the partition."""


class Refused(Exception):
    """The table does not take what a drill writes; the message says why."""


def keys_in(partitioning: Partitioning, index: int, *, drill: str, wanted: int) -> list[str]:
    """Keys that lie in a partition, `drill` in each of them.

    Raises:
        NoKey: there are no such keys, because the range is too narrow.
    """
    start = ""
    if not isinstance(partitioning, HashPartitioning) and index > 0:
        start = partitioning.split_points[index - 1]
    for lead in (start, f"{start}!"):
        found: list[str] = []
        for number in range(KEY_ATTEMPTS_MAX):
            key = f"{lead}{PREFIX}/{drill}/{number}"
            if partitioning.partition_of(key) == index:
                found.append(key)
                if len(found) == wanted:
                    return found
            elif not isinstance(partitioning, HashPartitioning):
                break
    raise NoKey(f"no key that begins with {start + PREFIX!r} lies in partition {index}")


class Load:
    """Writers and readers on `keys`; run it as a task. `now` gives seconds since the drill began."""

    def __init__(
        self,
        table: Table,
        keys: Sequence[str],
        drill: DrillHistory,
        *,
        name: str,
        puts_per_second: int,
        now: Callable[[], float],
    ) -> None:
        self.first: dict[int, float] = {}  # by epoch: when the first write was acknowledged under it
        self._table, self._keys, self._history = table, keys, drill.history
        self._name, self._now = name, now
        self._gap_seconds = len(keys) / puts_per_second
        self._numbers = count(1)
        self._stopping = False
        self._written: set[str] = set()
        self.all_written = asyncio.Event()
        self.refused: Refused | None = None  # why the table does not take these writes; None: it does

    async def run(self) -> None:
        """Writes until it is told to stop, and the last answers are there.

        Raises:
            Refused: the table does not take these writes.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for place in range(len(self._keys)):
                    group.create_task(self._write(place))
        except* Refused as refused:
            self.refused = Refused(str(refused.exceptions[0]))
            raise self.refused from refused

    def stop(self) -> None:
        """Nothing more is sent."""
        self._stopping = True

    def value(self) -> bytes:
        """A value that nobody wrote."""
        return str(next(self._numbers)).encode()

    async def _write(self, place: int) -> None:
        key, puts = self._keys[place], 0
        # Spread over the first gap, and then on a grid, so that the rate does not sink with the latency.
        due = self._now() + self._gap_seconds * place / len(self._keys)
        while not self._stopping and len(self._history.operations) < OPERATIONS_MAX:
            await asyncio.sleep(max(0.0, due - self._now()))
            due = max(due + self._gap_seconds, self._now())
            await self._put(f"writer-{place}", key)
            puts += 1
            if puts % READ_EACH == 0:
                await self._get(f"writer-{place}", self._keys[(place + 1) % len(self._keys)])

    async def _put(self, client: str, key: str) -> None:
        value = self.value()
        operation = self._history.call(
            Operation(client=client, kind=Kind.PUT, key=key, value=value, time=self._now())
        )
        version: Version | None = None

        async def send() -> None:
            nonlocal version
            told = await self._table.put(
                key, value, durability="replicated", idempotency_key=f"{self._name}-{value.decode()}"
            )
            version = told.version

        outcome = await self._told(send)
        if version is not None:
            operation.version = (version.epoch, version.number)
            self.first.setdefault(version.epoch, self._now())
            self._written.add(key)
            if len(self._written) == len(self._keys):
                self.all_written.set()
        self._close(operation, outcome)

    async def _get(self, client: str, key: str) -> None:
        operation = self._history.call(Operation(client=client, kind=Kind.GET, key=key, time=self._now()))
        entry: Entry | None = None

        async def send() -> None:
            nonlocal entry
            entry = await self._table.get(key)

        outcome = await self._told(send)
        if outcome is Outcome.UNKNOWN:
            outcome = Outcome.REFUSED  # a read without an answer tells nothing
        if entry is not None:
            operation.value = entry.value
            operation.version = (entry.version.epoch, entry.version.number)
        self._close(operation, outcome)

    async def _told(self, send: Callable[[], Awaitable[None]]) -> Outcome:
        try:
            await send()
        except Unknown:
            return Outcome.UNKNOWN
        except (Invalid, TooLarge, Denied) as error:
            raise Refused(f"the table refuses the drill's writes: {error.detail}") from error
        except Lost as error:
            self._history.oddities.append(f"a token was lost under replicated: {error.detail}"[:200])
            return Outcome.REFUSED
        except FenceKVError:
            return Outcome.REFUSED  # every error but Unknown says that nothing was done
        return Outcome.OK

    def _close(self, operation: Operation, outcome: Outcome) -> None:
        operation.seconds = max(0.0, self._now() - operation.time)
        self._history.answer(operation, outcome)


async def read_back(table: Table, keys: Sequence[str]) -> dict[str, list[tuple[tuple[int, int], Value]]]:
    """All versions of the keys that the table holds, newest first. Raises FenceKVError."""
    left: dict[str, list[tuple[tuple[int, int], Value]]] = {}
    for key in keys:
        versions = left[key] = []
        cursor: str | None = ""
        while cursor is not None:
            page = await table.history_page(key, limit=1000, cursor=cursor)
            versions += [((one.version.epoch, one.version.number), one.value) for one in page.changes]
            cursor = page.cursor
    return left
