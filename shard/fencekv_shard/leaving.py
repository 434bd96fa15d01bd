"""Replicas that were moved away from this pod: when their files may go.

Invariants:
  * What goes is no member of the in-sync set by a quorum read, and the same read shows an owner elsewhere and as
    many members as writes need.
  * The record that says so is no older than what the replica itself knows: a record that was put back from a copy
    could take the last good replica for surplus.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, Final

from fencekv import leases
from fencekv.kube import LEASES, Kube, KubeError, Unclear
from fencekv.leases import MalformedLease, PartitionLease, pod_of
from fencekv_shard.spec import PartitionSpec

logger = logging.getLogger(__name__)

LEAVE_SECONDS: Final = 5.0  # between two looks, and at least from the first look to the end of the files


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What this pod holds of a partition, and what it saw last of the partition's record."""

    spec: PartitionSpec
    lease: PartitionLease | None  # None: none was seen
    known_epoch: int
    set_version: int
    members: tuple[str, ...]
    suspect: bool  # this pod has reason to doubt the record


def may_leave(pod: str, held: Held) -> bool:
    """Whether a replica on `pod` may be removed, as far as this spec and this record say."""
    spec, lease = held.spec, held.lease
    if pod in spec.replicas or held.suspect:
        return False
    if lease is None or lease.partition_uid != spec.uid or lease.session is None or lease.is_released:
        return False
    pods = {pod_of(member) for member in lease.in_sync}
    if pod in pods or lease.session.pod == pod or lease.session.pod not in pods:
        return False
    if len(pods) < 1 + spec.min_in_sync:
        return False
    is_member = any(pod_of(member) == pod for member in held.members)
    newer = lease.set_version > held.set_version if is_member else lease.set_version >= held.set_version
    return lease.epoch >= held.known_epoch and newer


class Leaver:
    """Removes what may go, one look after another."""

    def __init__(
        self,
        *,
        kube: Kube,
        namespace: str,
        pod: str,
        held: Callable[[str], Held | None],
        discard: Callable[[str], Awaitable[None]],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        """`held` gives what there is of a partition (UID), None for nothing; `discard` removes it."""
        self._kube, self._namespace, self._pod = kube, namespace, pod
        self._held, self._discard, self._spawn = held, discard, spawn
        self._going: set[str] = set()

    def consider(self, uid: str) -> None:
        """Looks after a partition that is not to be here, until it is gone or is to be here again."""
        held = self._held(uid)
        if held is not None and self._pod not in held.spec.replicas and uid not in self._going:
            self._going.add(uid)
            self._spawn(self._leave(uid))

    async def _leave(self, uid: str) -> None:
        try:
            while True:
                await asyncio.sleep(LEAVE_SECONDS)
                held = self._held(uid)
                if held is None or self._pod in held.spec.replicas:
                    return
                if may_leave(self._pod, held) and await self._confirmed(held):
                    logger.info("%s: moved away from here, removed", held.spec.name)
                    await self._discard(uid)
                    return
        finally:
            self._going.discard(uid)

    async def _confirmed(self, held: Held) -> bool:
        """Asks for the record by quorum. A spec that the watch shows late costs a new copy at most."""
        name = held.spec.name
        try:
            item = await self._kube.get(LEASES, self._namespace, leases.partition_lease_name(name))
            lease = PartitionLease.parse(item)
        except (KubeError, Unclear, MalformedLease) as error:
            logger.info("%s: not removed yet: %s", name, error)
            return False
        now = self._held(held.spec.uid)
        return now is not None and may_leave(self._pod, replace(now, lease=lease))
