"""Asks the shards what a comparison of replicas needs, and compares.

Invariants:
  * A shard that does not answer is missing, never taken to agree.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from fencekv.kube import LEASES, Kube, KubeNotFound
from fencekv.leases import MalformedLease, SessionLease, session_lease_name
from fencekv_operator import verify
from fencekv_operator.reports import Report

PARTITIONS_AT_ONCE: Final = 16


class Shards(Protocol):
    """What is asked of shards."""

    async def report(self, http_address: str) -> Report | None:
        """What the shard says of itself; None: no proper answer."""
        ...

    async def chain(self, http_address: str, uid: str, seq: int) -> str | None:
        """The chain hash of a journal entry; None: no answer, or it does not have that entry."""
        ...


async def verify_replicas(
    kube: Kube, shards: Shards, namespace: str, partitions: Sequence[Mapping[str, Any]]
) -> list[verify.Compared]:
    """Compares the replicas of each of these KVPartitions.

    Raises:
        KubeError, Unclear: where the shards are could not be read.
    """
    pods = sorted({pod for each in partitions for pod in each["spec"]["replicas"]})
    found = await asyncio.gather(*(_address(kube, namespace, pod) for pod in pods))
    addresses = dict(zip(pods, found, strict=True))
    told = await asyncio.gather(*(_report(shards, address) for address in found))
    reports = dict(zip(pods, told, strict=True))
    gate = asyncio.Semaphore(PARTITIONS_AT_ONCE)

    async def compared(partition: Mapping[str, Any]) -> verify.Compared:
        uid, wanted = partition["metadata"]["uid"], partition["spec"]["replicas"]
        replicas = {}
        for pod in wanted:
            report = reports[pod]
            if report is not None and uid in report.replicas:
                replicas[pod] = report.replicas[uid]

        async def chain(pod: str, seq: int) -> str | None:
            return await shards.chain(addresses[pod], uid, seq)

        async with gate:
            return await verify.compare(partition["metadata"]["name"], replicas, wanted=wanted, chain=chain)

    return await asyncio.gather(*map(compared, partitions))


async def _report(shards: Shards, address: str) -> Report | None:
    return await shards.report(address) if address else None


async def _address(kube: Kube, namespace: str, pod: str) -> str:
    try:
        return SessionLease.parse(await kube.get(LEASES, namespace, session_lease_name(pod))).http
    except (KubeNotFound, MalformedLease):
        return ""
