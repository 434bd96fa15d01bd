"""A shard without engine: `api.Node` and `api.Partition` in memory, scripted, remembering what they were asked.

Both ways of a partition are the same here: what is scripted for one meets the other, and an event in the script
makes `begin` take a write and answer it once the event is set.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from fencekv.errors import FenceKVError, Invalid, NotOwner
from fencekv.partitioning import HashPartitioning, Partitioning
from fencekv.token import Token, Version
from fencekv_shard import api
from fencekv_shard.faults import Cuts
from fencekv_shard.server import Running, start_server
from fencekv_shard.transaction import Put, Record, Transaction, evaluate


@dataclass(slots=True)
class FakePartition:
    """A partition in memory; `script` holds errors to raise, or events to wait for, one a call."""

    name: str
    epoch: int = 1
    owned: bool = True
    seq: int = -1
    txid: int = 0
    page_items_max: int = 1000
    state: dict[str, Record] = field(default_factory=dict)
    changes: dict[str, list[api.Change]] = field(default_factory=dict)
    done: dict[bytes, tuple[bytes, api.Committed]] = field(default_factory=dict)
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    script: list[Exception | asyncio.Event | None] = field(default_factory=list)
    refusals: list[FenceKVError] = field(default_factory=list)  # of writes that `begin` has taken
    waiting: list[asyncio.Future[Any]] = field(default_factory=list)
    durability: api.Durability = api.Durability.STANDARD

    @property
    def token(self) -> Token:
        return Token(self.epoch, self.txid)

    def committed_token(self) -> Token:
        return self.token

    def _next(self, *call: Any) -> asyncio.Event | None:
        self.calls.append(call)
        step = self.script.pop(0) if self.script else None
        if step is None or isinstance(step, asyncio.Event):
            return step
        raise step

    async def _step(self, *call: Any) -> None:
        event = self._next(*call)
        if event is not None:
            await event.wait()

    def begin(self, transaction: Transaction, options: api.Options, waiter: api.Waiter) -> None:
        if not self.owned:
            raise not_owner()
        event = self._next("submit", transaction, options)
        if event is None:
            asyncio.get_running_loop().call_soon(self._end, transaction, waiter)
        else:
            task = asyncio.ensure_future(event.wait())
            task.add_done_callback(lambda _: self._end(transaction, waiter))
            self.waiting.append(task)

    def _end(self, transaction: Transaction, waiter: api.Waiter) -> None:
        try:
            if self.refusals:
                raise self.refusals.pop(0)
            committed = self._commit(transaction)
        except FenceKVError as error:
            waiter.refused(error)
        else:
            waiter.committed(committed)

    def read_now(self, key: str, options: api.Options) -> api.ReadAnswer:
        if not self.owned and options.consistency is api.Consistency.PRIMARY:
            raise not_owner()
        if self.script and isinstance(self.script[0], asyncio.Event):
            raise api.MustWait  # `read` waits for it
        self._next("read", key, options)
        return api.ReadAnswer(record=self.state.get(key), token=self.token)

    async def submit(self, transaction: Transaction, options: api.Options) -> api.Committed:
        await self._step("submit", transaction, options)
        return self._commit(transaction)

    def _commit(self, transaction: Transaction) -> api.Committed:
        key = transaction.idempotency_key
        if key and key in self.done:
            before, committed = self.done[key]
            if before != transaction.fingerprint():
                raise Invalid("Idempotency-Key: was used for another request", field="Idempotency-Key")
            return committed
        effect = evaluate(transaction, self.state.get)
        version = None
        self.txid += 1
        if effect.writes:
            self.seq += 1
            version = Version(self.epoch, self.seq)
            for write in effect.writes:
                value = write.value if isinstance(write, Put) else None
                self.changes.setdefault(write.key, []).insert(0, api.Change(version, value))
                if value is None:
                    self.state.pop(write.key, None)
                else:
                    self.state[write.key] = Record(value, version)
        committed = api.Committed(effect=effect, version=version, token=self.token)
        if key:
            self.done[key] = transaction.fingerprint(), committed
        return committed

    async def read(self, key: str, options: api.Options) -> api.ReadAnswer:
        await self._step("read", key, options)
        return api.ReadAnswer(record=self.state.get(key), token=self.token)

    async def scan(self, span: api.Range, options: api.Options) -> api.Page:
        await self._step("scan", span, options)
        keys = sorted(self.state, key=str.encode)
        keys = [key for key in keys if key.encode() >= span.start.encode()]
        keys = [key for key in keys if not span.end or key.encode() < span.end.encode()]
        keys = [key for key in keys if key.encode() > span.after.encode()]
        limit = min(span.limit, self.page_items_max)
        items = [api.Item(key, self.state[key]) for key in keys[:limit]]
        return api.Page(items=items, more=len(keys) > limit, token=self.token, seq=max(self.seq, 0))

    async def history(self, key: str, *, before: int | None, limit: int, options: api.Options) -> api.HistoryPage:
        await self._step("history", key, before, limit, options)
        changes = [c for c in self.changes.get(key, []) if before is None or c.version.number < before]
        return api.HistoryPage(changes=changes[:limit], more=len(changes) > limit, token=self.token)


@dataclass(slots=True)
class FakeNode:
    """A shard in memory. `owned` are the partitions that it owns, `replicas` all that it holds."""

    pod: str = "sample-0"
    kvns: str = "sample"
    tables: dict[str, api.Table] = field(default_factory=dict)
    routes: dict[tuple[str, int], api.Route] = field(default_factory=dict)
    replicas: dict[tuple[str, int], FakePartition] = field(default_factory=dict)
    holds: list[tuple[str, int]] = field(default_factory=list)
    on_hold: Any = None  # called with the node by each hold
    more: dict[str, object] = field(default_factory=dict)  # of the report
    more_of_replicas: dict[str, object] = field(default_factory=dict)
    is_live: bool = True
    is_ready: bool = True
    chains: dict[tuple[str, int], str] = field(default_factory=dict)
    releases: list[tuple[str, int, str]] = field(default_factory=list)

    def add_table(
        self,
        name: str = "orders",
        *,
        partitioning: Partitioning | None = None,
        durability: api.Durability = api.Durability.STANDARD,
        value_bytes_max: int = 1 << 20,
        key_pattern: str = "",
        owned: bool = True,
    ) -> None:
        split = partitioning or HashPartitioning(1)
        names = [f"{name}-{index}" for index in range(split.count)]
        self.tables[name] = api.Table(
            name=name,
            partitioning=split,
            durability=durability,
            value_bytes_max=value_bytes_max,
            key_pattern=key_pattern,
            partitions=names,
        )
        for index in range(split.count):
            if owned:
                self.own(name, index)
            else:
                self.point(name, index, owner="", http="")

    def own(self, table: str, index: int, *, epoch: int = 1) -> FakePartition:
        replica = self.replicas.setdefault((table, index), FakePartition(f"{table}-{index}", epoch=epoch))
        replica.durability = self.tables[table].durability
        self.point(table, index, owner=self.pod, http="", epoch=epoch, local=True)
        return replica

    def point(self, table: str, index: int, *, owner: str, http: str, epoch: int = 1, local: bool = False) -> None:
        self.routes[table, index] = api.Route(
            partition=f"{table}-{index}", index=index, epoch=epoch, owner=owner, http=http, local=local
        )
        if (table, index) in self.replicas:
            self.replicas[table, index].owned = local

    @property
    def calls(self) -> list[tuple[Any, ...]]:
        return [call for replica in self.replicas.values() for call in replica.calls]

    def table(self, name: str) -> api.Table:
        if name not in self.tables:
            raise Invalid(f"table: no table {name!r} in {self.kvns}", status=404, field="table")
        return self.tables[name]

    def route(self, table: str, index: int) -> api.Route:
        return self.routes[table, index]

    def local(self, table: str, index: int) -> api.Partition | None:
        return self.replicas.get((table, index))

    def holding(self, table: str, index: int) -> bool:
        return self.on_hold is not None

    async def hold(self, table: str, index: int) -> None:
        self.holds.append((table, index))
        if self.on_hold is not None:
            await self.on_hold(self)

    def report(self) -> dict[str, object]:
        replicas = [
            {
                "uid": f"uid-{replica.name}",
                "partition": replica.name,
                "role": "owner",
                "epoch": replica.epoch,
                "lastSeq": replica.seq,
                "commitSeq": replica.seq,
                "appliedSeq": replica.seq,
                "serving": True,
                **self.more_of_replicas,
            }
            for replica in self.replicas.values()
        ]
        session = f"{self.pod}/u/n"
        told = {"session": session, "pod": self.pod, "ready": True, "renewal": 7, "replicas": replicas}
        return {**told, **self.more}

    def chain(self, uid: str, seq: int) -> str | None:
        return self.chains.get((uid, seq))

    async def release(self, uid: str, epoch: int, target: str) -> bool:
        self.releases.append((uid, epoch, target))
        return epoch == 4

    def live(self) -> bool:
        return self.is_live

    def ready(self) -> bool:
        return self.is_ready


@contextlib.asynccontextmanager
async def serving(*nodes: FakeNode, cuts: Cuts | None = None) -> AsyncIterator[list[Running]]:
    """Real listeners for the nodes, on free ports of 127.0.0.1. `cuts`: in the first one's connections."""
    running: list[Running] = []
    try:
        for node in nodes:
            cut = cuts if not running else None
            running.append(await start_server(node, host="127.0.0.1", port=0, cuts=cut))
        yield running
    finally:
        for one in running:
            await one.close()


def not_owner(**extra: Any) -> FenceKVError:
    """What a replica raises that lost its ownership a moment ago."""
    return NotOwner("not the owner any more", **extra)


def later(shard: Running, seconds: float) -> None:
    """What the shard does about its connections when so much time has gone by."""
    shard.frames.tick(asyncio.get_running_loop().time() + seconds)
