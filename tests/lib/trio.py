"""Three shards in one process: real nodes, real LMDB, real TCP on loopback, an API server in memory.

The operator's part is played by the test: it makes partitions, and grants.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memory_kube import MemoryKube

from fencekv import leases
from fencekv.clock import SystemClock
from fencekv.kube import KV_NAMESPACES, KV_PARTITIONS, LEASES
from fencekv.leases import PartitionLease, Session, SessionLease
from fencekv_shard.api import Options
from fencekv_shard.executor import WriterThreads
from fencekv_shard.fence import Role
from fencekv_shard.node import Node, NodeConfig
from fencekv_shard.partition import Partition
from fencekv_shard.peer import TcpTransport
from fencekv_shard.transaction import Put, Transaction

PODS = ("sample-0", "sample-1", "sample-2")
NAMESPACE = "default"
_TAKEN = itertools.count()
KVNS = "sample"


def put(key: str, value: bytes, **options: Any) -> Transaction:
    return Transaction(then=(Put(key, value),), **options)


def free_ports(pairs: int) -> list[int]:
    """Ports of 127.0.0.1, each with the one behind it free.

    From below those that the system gives to outgoing connections, and by process, so that nobody else takes one
    between here and its use.
    """
    found: list[int] = []
    while len(found) < 2 * pairs:
        port = 12_000 + (os.getpid() * 512 + 2 * next(_TAKEN)) % 20_000
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
        found += [port, port + 1]
    return found


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Waits until a condition of in-process state holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


@dataclass
class Running:
    node: Node
    task: asyncio.Task[None]
    fatal: list[BaseException]


@dataclass
class Trio:
    folder: Path
    kube: MemoryKube = field(default_factory=MemoryKube)
    clock: SystemClock = field(default_factory=SystemClock)
    shards: dict[str, Running] = field(default_factory=dict)
    threads: WriterThreads = field(default_factory=lambda: WriterThreads(clock=SystemClock().now))
    _ids: Any = field(default_factory=lambda: itertools.count(1))

    async def namespace(self, **lease: int) -> None:
        body = {
            "apiVersion": "fencekv.io/v1alpha1",
            "kind": "KVNamespace",
            "metadata": {"name": KVNS, "namespace": NAMESPACE},
            "spec": {"lease": {"durationSeconds": 6, "validSeconds": 4, "renewSeconds": 1, **lease}},
        }
        await self.kube.create(KV_NAMESPACES, NAMESPACE, body)

    async def start(self, pod: str, *, port: int) -> Node:
        session = Session(pod, f"uid-{pod}", f"{next(self._ids):016x}")
        fatal: list[BaseException] = []
        node = Node(
            NodeConfig(
                kvns=KVNS,
                namespace=NAMESPACE,
                session=session,
                data=self.folder / pod,
                http=f"127.0.0.1:{port}",
                peer=f"127.0.0.1:{port + 1}",
            ),
            kube=self.kube,
            clock=self.clock,
            transport=TcpTransport(),
            executor=self.threads,
            new_id=lambda: f"{next(self._ids):016x}",
            on_fatal=fatal.append,
        )
        await node.start()
        self.shards[pod] = Running(node, asyncio.ensure_future(node.run()), fatal)
        return node

    async def stop(self, pod: str, *, release: bool = False) -> None:
        running = self.shards.pop(pod)
        running.task.cancel()
        await asyncio.gather(running.task, return_exceptions=True)
        await running.node.stop(release=release)

    async def close(self) -> None:
        for pod in list(self.shards):
            await self.stop(pod)
        self.threads.close()

    async def partition(self, name: str = "orders-0", **spec: Any) -> str:
        table, _, index = name.rpartition("-")
        body = {
            "apiVersion": "fencekv.io/v1alpha1",
            "kind": "KVPartition",
            "metadata": {
                "name": name,
                "namespace": NAMESPACE,
                "labels": {leases.LABEL_NAMESPACE: KVNS, leases.LABEL_TABLE: table},
            },
            "spec": {
                "namespace": KVNS,
                "table": table,
                "tableUID": "t",
                "index": int(index),
                "partitioning": {"strategy": "hash", "count": 1},
                "durability": "replicated",
                "minInSync": 1,
                "maxUnshippedSeconds": 1,
                "replicas": list(PODS),
                "limits": {"valueBytesMax": 1 << 20},
                **spec,
            },
        }
        made = await self.kube.create(KV_PARTITIONS, NAMESPACE, body)
        uid: str = made["metadata"]["uid"]
        lease = leases.new_partition_lease(
            partition=name, partition_uid=uid, table=table, kvns=KVNS, namespace=NAMESPACE
        )
        await self.kube.create(LEASES, NAMESPACE, lease)
        return uid

    async def lease(self, name: str = "orders-0") -> PartitionLease:
        return PartitionLease.parse(await self.kube.get(LEASES, NAMESPACE, leases.partition_lease_name(name)))

    def held(self, pod: str, uid: str) -> Partition | None:
        return self.shards[pod].node._partitions.get(uid)

    async def grant(self, pod: str, uid: str, name: str = "orders-0", **changes: Any) -> int:
        """Grants the partition to a pod's session, as an operator would."""
        await until(lambda: self.held(pod, uid))
        partition = self.held(pod, uid)
        assert partition is not None
        lease = await self.kube.get(LEASES, NAMESPACE, leases.partition_lease_name(name))
        seen = PartitionLease.parse(lease)
        session = SessionLease.parse(await self.kube.get(LEASES, NAMESPACE, leases.session_lease_name(pod)))
        members = changes.get("in_sync", seen.in_sync or (partition.member,))
        body = leases.granted(
            lease,
            session=session.session,
            epoch=changes.get("epoch", seen.epoch + 1),
            in_sync=tuple(members),
            set_version=seen.set_version + 1,
            http=session.http,
            peer=session.peer,
            unix_seconds=0.0,
        )
        await self.kube.replace(LEASES, NAMESPACE, body)
        return seen.epoch + 1

    async def owner(self, pod: str, uid: str) -> Partition:
        await until(lambda: (held := self.held(pod, uid)) and held.fence.role is Role.OWNER)
        partition = self.held(pod, uid)
        assert partition is not None
        return partition

    async def in_sync(self, pod: str, uid: str, count: int) -> Partition:
        """The owner, once `count` members are in sync and counted so."""
        partition = await self.owner(pod, uid)
        await until(lambda: partition.owned and len(partition.owned.membership.members) == count)
        await until(lambda: partition.owned and partition.owned.engine.standbys_in_set == count - 1)
        await until(lambda: partition.owned and not partition.owned.engine.relaxing)
        return partition


OPTIONS = Options()


@contextlib.asynccontextmanager
async def running_trio(folder: Path, ports: Sequence[int]) -> AsyncIterator[Trio]:
    """All three, each at every other port; none of them may have come to an error that ends its process."""
    three = Trio(folder)
    await three.namespace()
    for pod, port in zip(PODS, ports[:6:2], strict=True):
        await three.start(pod, port=port)
    yield three
    fatal = [error for running in three.shards.values() for error in running.fatal]
    await three.close()
    assert not fatal


def held(trio: Trio, pod: str, uid: str) -> Partition:
    """The partition on a shard that is known to hold it."""
    found = trio.held(pod, uid)
    assert found is not None
    return found
