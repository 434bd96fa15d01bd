"""Partitions take turns at the API server.

When a pod dies, every partition of the other shards wants to write its Lease in the same moment. All at once they
would hold each connection for longer than a request may take, and the renewal of the session, which must not be
late, would wait behind them: one dead pod would cost the others their leases.

Invariants:
  * At most `LEASE_READS_MAX` reads, `LEASE_WRITES_MAX` writes and `LEASE_RELEASES_MAX` releases of partitions are
    under way; the session's never wait for them. Nor do reads or releases for other writes: a partition that is
    being opened or given away is served by nobody.
  * A request's time begins with its turn, and a write that its turn finds needless is not sent: who was missing
    when it was asked for may be back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from fencekv.kube import REQUEST_SECONDS, Resource
from fencekv_shard import limits

Object = dict[str, Any]


class LeaseKube(Protocol):
    """What partitions ask of an API server; any `Kube` is one."""

    async def get(
        self, resource: Resource, namespace: str | None, name: str, *, timeout: float = REQUEST_SECONDS
    ) -> Object:
        """Quorum read of one object."""
        ...

    async def replace(
        self, resource: Resource, namespace: str | None, body: Object, *, timeout: float = REQUEST_SECONDS
    ) -> Object:
        """PUT, as a compare-and-swap."""
        ...


class NotWanted(Exception):
    """A write had become needless before its turn came, and was not sent."""


class Turns:
    """Lets so many requests through to an API server at a time, in the order in which they came."""

    def __init__(
        self, kube: LeaseKube, *, reads: int = limits.LEASE_READS_MAX, writes: int = limits.LEASE_WRITES_MAX
    ) -> None:
        self._kube, self._reads, self._writes = kube, asyncio.Semaphore(reads), asyncio.Semaphore(writes)
        self._releases = asyncio.Semaphore(limits.LEASE_RELEASES_MAX)
        self._reading = 0

    @property
    def reading(self) -> bool:
        """Whether a read is under way or waits for its turn: a grant that is to be taken."""
        return self._reading > 0

    async def get(
        self, resource: Resource, namespace: str | None, name: str, *, timeout: float = REQUEST_SECONDS
    ) -> Object:
        """Quorum read of one object."""
        self._reading += 1
        try:
            async with self._reads:
                return await self._kube.get(resource, namespace, name, timeout=timeout)
        finally:
            self._reading -= 1

    async def replace(
        self,
        resource: Resource,
        namespace: str | None,
        body: Object,
        *,
        timeout: float = REQUEST_SECONDS,
        wanted: Callable[[], bool] = lambda: True,
        releases: bool = False,
    ) -> Object:
        """PUT, as a compare-and-swap. `releases`: what it writes is the end of an epoch.

        Raises:
            NotWanted: it was not `wanted` any more when its turn came; nothing was sent.
        """
        async with self._releases if releases else self._writes:
            if not wanted():
                raise NotWanted
            return await self._kube.replace(resource, namespace, body, timeout=timeout)
