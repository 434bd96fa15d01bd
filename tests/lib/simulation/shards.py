"""A shard process of a simulation: the real node, put together as `fencekv_shard.serve` does, and its requests.

Instead of HTTP it answers maps; what a request means is decided by the real node and partition all the same.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fencekv.errors import FenceKVError, Unavailable
from fencekv.leases import Session
from fencekv.partitioning import Partitioning
from fencekv.token import Token, Version
from fencekv_operator.reports import MalformedReport, Report
from fencekv_shard import api
from fencekv_shard.api import Consistency, Options, Range
from fencekv_shard.node import Node, NodeConfig
from fencekv_shard.partition import Partition
from fencekv_shard.serve import until_stopped
from fencekv_shard.session import SessionOver
from fencekv_shard.store import CommitFailed
from fencekv_shard.transaction import Compare, Put, Relation, Target, Transaction
from simulation.checker import Acknowledgement
from simulation.disk import Disks, SimExecutor
from simulation.kube import ApiHost
from simulation.loop import Process, ProcessClock, SimulationLoop
from simulation.network import Network, NoAnswer, NotSent

TABLE: Final = "orders"
KVNS: Final = "sample"
NAMESPACE: Final = "default"
REPORT_SECONDS: Final = 1.0

Answer = dict[str, Any]


@dataclass(slots=True, kw_only=True)
class Shard:
    """One shard process."""

    loop: SimulationLoop
    network: Network
    api: ApiHost
    process: Process
    session: Session
    data: Path
    clock: ProcessClock
    disks: Disks
    stopping: asyncio.Event
    acknowledgements: list[Acknowledgement]  # of all shards
    node: Node | None = None  # None: not put together yet.

    @property
    def http(self) -> str:
        """Where it answers."""
        return f"{self.process.host}:7070"

    async def main(self) -> None:
        """Serves until it is told to stop, or its session is over; ends the process with the real statuses."""
        ids = self.loop.rng(f"ids-{self.session}")
        executor = SimExecutor(self.loop, str(self.session), self.disks)
        self.node = Node(
            NodeConfig(
                kvns=KVNS,
                namespace=NAMESPACE,
                session=self.session,
                data=self.data,
                http=self.http,
                peer=f"{self.process.host}:7071",
            ),
            kube=self.api.kube(self.process),
            clock=self.clock,
            transport=self.network.transport(self.process),
            executor=executor,
            new_id=lambda: f"{ids.getrandbits(64):016x}",
            on_fatal=self._fatal,
        )
        self.network.serve(self.process, self.http, self._answer)
        try:
            drained = await until_stopped(self.node, self.stopping)
        except SessionOver as error:
            self.loop.trace(f"session over: {error}")
            raise SystemExit(70) from error
        await self.node.stop(release=drained)
        raise SystemExit(0)

    def _fatal(self, error: BaseException) -> None:
        if not self.process.alive:
            return  # its coroutines are being closed, which no dead process sees
        self.loop.trace(f"fatal {type(error).__name__}")
        if not isinstance(error, CommitFailed):
            self.loop.errors.append(f"{self.process.name}: fatal: {error!r}")
        self.process.exit(74)

    # Requests

    async def _answer(self, request: Answer) -> Answer:
        assert self.node is not None, "it answers once it is put together"
        if request["op"] == "report":
            return dict(self.node.report())
        if request["op"] == "release":
            done = await self.node.release(request["uid"], request["epoch"], request["target"])
            return {"done": done}
        try:
            return await self._carry_out(self.node, request)
        except FenceKVError as error:
            return {"error": error.name, "http": self._owner_http(self.node, request), "detail": error.detail}

    def _owner_http(self, node: Node, request: Answer) -> str:
        try:
            index = node.table(TABLE).partitioning.partition_of(request["key"])
        except FenceKVError:
            return ""
        return node.route(TABLE, index).http

    async def _carry_out(self, node: Node, request: Answer) -> Answer:
        table = node.table(TABLE)
        index = table.partitioning.partition_of(request["key"])
        await node.hold(TABLE, index)
        partition = node.local(TABLE, index)
        if partition is None:
            raise Unavailable("no replica here")
        cached = bool(request.get("cached"))
        options = Options(
            consistency=Consistency.CACHED if cached else Consistency.PRIMARY,
            epoch=request["epoch"],
            min_token=Token.parse(request["token"], field="token") if request["token"] else None,
        )
        if request["op"] == "get":
            read = await partition.read(request["key"], options)
            record = read.record
            version = [record.version.epoch, record.version.number] if record else None
            value = record.value if record else None
            return {"pod": node.pod, "value": value, "version": version, "token": str(read.token)}
        if request["op"] == "list":
            return {"pod": node.pod, **await _listed(partition, request, table.partitioning, options)}
        if request["op"] == "history":
            return {"pod": node.pod, **await _history(partition, request["key"], options)}
        assert isinstance(partition, Partition), partition
        epoch = partition.fence.epoch
        committed = await partition.submit(_transaction(request), options)
        self.acknowledgements.append(
            Acknowledgement(
                partition=partition.spec.uid, epoch=epoch, pod=node.pod, time=self.loop.settled_at(committed)
            )
        )
        written = committed.version
        return {
            "pod": node.pod,
            "done": committed.effect.succeeded,
            "version": [written.epoch, written.number] if written else None,
            "token": str(committed.token),
        }


async def _listed(
    partition: api.Partition, request: Answer, partitioning: Partitioning, options: Options
) -> Answer:
    """All keys of the partition that were asked about, page by page at one state."""
    own = [
        key
        for key in request["keys"]
        if partitioning.partition_of(key) == partitioning.partition_of(request["key"])
    ]
    items: Answer = {key: {"value": None, "version": None} for key in own}
    page = await partition.scan(Range(limit=1), options)
    token = str(page.token)
    while True:
        items.update({item.key: _shown(item.record.value, item.record.version) for item in page.items})
        if not page.more:
            return {"items": items, "token": token}
        page = await partition.scan(Range(limit=1, after=page.items[-1].key, at=page.seq), options)


async def _history(partition: api.Partition, key: str, options: Options) -> Answer:
    """The newest versions of a key, in two pages."""
    page = await partition.history(key, before=None, limit=2, options=options)
    changes, token = [*page.changes], str(page.token)
    if page.more:
        page = await partition.history(key, before=changes[-1].version.number, limit=8, options=options)
        changes += page.changes
    return {"changes": [_shown(change.value, change.version) for change in changes], "token": token}


def _shown(value: bytes | None, version: Version) -> Answer:
    return {"value": value, "version": [version.epoch, version.number]}


def _transaction(request: Answer) -> Transaction:
    key = request["key"]
    compare: tuple[Compare, ...] = ()
    if request["op"] == "cas":
        expected = request["expected"]
        condition = (
            Compare(key, Target.EXISTS, Relation.EQUAL, False)
            if expected is None
            else Compare(key, Target.VALUE, Relation.EQUAL, expected)
        )
        compare = (condition,)
    then = (Put(key, request["value"]),)
    return Transaction(compare=compare, then=then, actor="client", idempotency_key=request["idempotency"])


class SimShardClient:
    """`fencekv_operator.shards.ShardClient` over the simulated network."""

    def __init__(self, network: Network) -> None:
        self._network = network

    async def report(self, http_address: str) -> Report | None:
        """What a shard says of itself; None: no proper answer."""
        try:
            answer = await self._network.request(http_address, {"op": "report"}, timeout=REPORT_SECONDS)
            return Report.parse(answer)
        except (NotSent, NoAnswer):
            return None
        except MalformedReport as error:
            self._network.loop.errors.append(f"malformed report: {error}")
            return None

    async def release(self, http_address: str, uid: str, epoch: int, target: str) -> bool:
        """Asks the owner to release a partition."""
        request = {"op": "release", "uid": uid, "epoch": epoch, "target": target}
        try:
            answer = await self._network.request(http_address, request, timeout=REPORT_SECONDS)
        except (NotSent, NoAnswer):
            return False
        return bool(answer["done"])
