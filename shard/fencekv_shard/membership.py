"""The partition Lease in its owner's hands: changes of the in-sync set, and the release of the partition.

Every write is a CAS on the Lease as it was granted to this epoch or as this owner last wrote it. So a deposed
owner's change fails, whoever deposed it.

Invariants:
  * A standby is counted before the CAS that adds it is sent, which waits until it has confirmed everything that
    was acknowledged without it; and it is counted after an unclear outcome until a later CAS of this
    owner succeeded.
  * A standby is counted until the CAS that removes it succeeded, and the entry that says so is confirmed by all
    who remain.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from fencekv import leases
from fencekv.errors import FenceKVError
from fencekv.kube import LEASES, KubeError, KubeNotFound, Unclear
from fencekv.leases import PartitionLease, Session
from fencekv_shard.engine import Engine
from fencekv_shard.turns import NotWanted, Turns

logger = logging.getLogger(__name__)

CAS_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 0.1

Object = dict[str, Any]


class NotOurs(Exception):
    """The Lease does not name this session and epoch: nothing more can be written on it."""


class Membership:
    """The owner's handle on its partition Lease.

    Args:
        lease: the Lease object as it was granted.
        on_deposed: called if the Lease turns out to name a newer owner.
    """

    def __init__(
        self,
        *,
        kube: Turns,
        namespace: str,
        session: Session,
        engine: Engine,
        lease: dict[str, Any],
        on_deposed: Callable[[], None],
    ) -> None:
        self._kube, self._namespace, self._session, self._engine = kube, namespace, session, engine
        self._on_deposed = on_deposed
        self._lease = lease
        self.seen = PartitionLease.parse(lease)
        assert self.seen.session == session, (self.seen, session)
        self.unclear = False  # a write of ours may still land
        self._busy = asyncio.Lock()

    @property
    def members(self) -> tuple[str, ...]:
        """The in-sync set as last seen on the Lease."""
        return self.seen.in_sync

    async def change(self, target: tuple[str, ...], *, wanted: Callable[[], bool] = lambda: True) -> bool:
        """Asks for another in-sync set, if it is still `wanted` when its turn comes; whether it stands now."""
        async with self._busy:
            engine = self._engine
            engine.count([member for member in target if member != engine.member])
            if any(
                member not in self.members and engine.confirmed.get(member, -1) < engine.replicated_seq
                for member in target
                if member != engine.member
            ):
                # It counts from here on, so it catches up; what was acknowledged before it counted, it must
                # have before it can be promoted.
                return False
            version = self.seen.set_version + 1
            body = leases.with_in_sync(self._lease, in_sync=target, set_version=version)
            try:
                done = await self._swap(body, wanted=wanted)
            except NotOurs:
                return False
            if not done and self.seen.in_sync != tuple(sorted(target)):
                return False
            await self._stands()
            return True

    async def say_alone(self, *, alone: bool) -> None:
        """Says on the Lease that this owner cannot reach minInSync standbys, or that it can again."""
        async with self._busy:
            if (self.seen.alone_since is not None) == alone:
                return
            body = leases.with_alone_since(self._lease, self._engine.epoch if alone else None)
            try:
                await self._swap(body)
            except NotOurs:
                logger.info("%s: not ours any more", self.seen.name)

    async def release(self, *, seq: int, target: str) -> None:
        """Gives the closed epoch away. Returns when the Lease says so, or is not ours any more."""
        async with self._busy:
            while not self.seen.is_released:
                body = leases.released_partition(self._lease, epoch=self._engine.epoch, seq=seq, target=target)
                try:
                    if not await self._swap(body, releases=True):
                        await asyncio.sleep(RETRY_SECONDS)
                except NotOurs:
                    return

    async def _stands(self) -> None:
        """The set on the Lease is what we asked for: journal it, then count accordingly."""
        engine, members = self._engine, self.seen.in_sync
        standbys = [member for member in members if member != engine.member]
        try:
            seq = await engine.record_set(members, self.seen.set_version)
        except FenceKVError as error:
            logger.info("%s: set change not journaled: %s", self.seen.name, error)
            self.unclear = True  # asked for again: until it is journaled nobody counts on it
            return
        engine.relax(seq=seq, standbys=standbys)
        engine.standbys_in_set = len(standbys)

    async def _swap(
        self, body: dict[str, Any], *, wanted: Callable[[], bool] = lambda: True, releases: bool = False
    ) -> bool:
        """One CAS. False: it did not succeed, or nobody knows; then `seen` shows what a fresh read gave.

        Or it was not `wanted` any more, and nothing was sent.

        Raises:
            NotOurs: a read shows another owner, or no Lease.
        """
        try:
            written = await self._kube.replace(
                LEASES, self._namespace, body, timeout=CAS_SECONDS, wanted=wanted, releases=releases
            )
            self._adopt(written)
            self.unclear = False
            return True
        except NotWanted:
            return False
        except KubeNotFound as error:
            raise NotOurs("the partition Lease is gone") from error
        except Unclear as error:
            self.unclear = True
            logger.info("%s: %s", self.seen.name, error)
        except KubeError as error:
            logger.info("%s: %s", self.seen.name, error)
        try:
            self._adopt(await self._kube.get(LEASES, self._namespace, self.seen.name, timeout=CAS_SECONDS))
        except KubeNotFound as error:
            raise NotOurs("the partition Lease is gone") from error
        except (Unclear, KubeError, leases.MalformedLease) as error:
            logger.info("%s: cannot be read: %s", self.seen.name, error)
        return False

    def _adopt(self, lease: dict[str, Any]) -> None:
        seen = PartitionLease.parse(lease)
        ours = seen.session == self._session and seen.epoch == self._engine.epoch
        if not ours or seen.uid != self.seen.uid:
            # A lower epoch is a Lease that was put back to an earlier copy: it deposes nobody.
            if seen.epoch > self._engine.epoch or (seen.epoch == self._engine.epoch and not ours):
                self._on_deposed()
            raise NotOurs(f"{seen.name} names {seen.session} with epoch {seen.epoch}")
        self._lease, self.seen = lease, seen
