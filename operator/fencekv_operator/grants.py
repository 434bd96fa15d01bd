"""Carrying out what was decided: the writes of the failover loop, each a compare-and-swap on what was read.

Invariants:
  * A session Lease is fenced, and a partition Lease granted, only by a write that carries the UID and the
    resourceVersion of the very reading that the decision rests on. An absent Lease is made, never overwritten.
  * After an unclear outcome the object is read again and everything is decided anew: an earlier write of ours that
    landed shows there, and one that is still on its way can only land if nothing else did.
  * Nothing is kept between these steps: an operator that dies at any of them leaves what its successor needs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from fencekv.clock import Clock
from fencekv.kube import (
    KV_PARTITIONS,
    LEASES,
    PODS,
    Kube,
    KubeAlreadyExists,
    KubeConflict,
    KubeError,
    KubeNotFound,
    Unclear,
)
from fencekv.leases import (
    MalformedLease,
    PartitionLease,
    Session,
    SessionLease,
    fenced_session,
    granted,
    new_partition_lease,
    new_session_lease,
    partition_lease_name,
    session_lease_name,
    with_release_asked,
)
from fencekv_operator.facts import Reason
from fencekv_operator.ownership import Decision, Grant, Partition, View, Wait, decide
from fencekv_operator.resources import owner_reference
from fencekv_operator.sessions import Track, proves_death

logger = logging.getLogger(__name__)

Object = dict[str, Any]

STEP_SECONDS: Final = 1.0
STATUSES_AT_ONCE: Final = 4  # that are raised: further grants go first
ATTEMPTS_MAX: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What came of looking at one partition."""

    decision: Decision
    lease: PartitionLease | None  # as it stands now, as far as is known
    raw: Object | None  # the same, as the API server gave it
    before: PartitionLease | None  # as it stood when it was granted; None: it was absent, or nothing was granted.
    is_granted: bool  # whether the decision is a grant and was carried out


class Writer:
    """The reads and writes of one decision at a time; remembers none."""

    def __init__(self, *, kube: Kube, clock: Clock, leading: Callable[[], bool]) -> None:
        self._kube, self._clock, self._leading = kube, clock, leading
        self._statuses = asyncio.Semaphore(STATUSES_AT_ONCE)

    async def has_died(self, namespace: str, session: Session) -> bool:
        """Proof (b), by a quorum read of the pod."""
        try:
            pod = await self._kube.get(PODS, namespace, session.pod, timeout=STEP_SECONDS)
        except (KubeError, Unclear):
            return False
        return proves_death(pod, session)

    async def is_pod_gone(self, namespace: str, pod: str) -> bool:
        """Whether a quorum read finds no pod of that name."""
        try:
            await self._kube.get(PODS, namespace, pod, timeout=STEP_SECONDS)
        except KubeNotFound:
            return True
        except (KubeError, Unclear):
            return False
        return False

    async def fence_dead(self, namespace: str, session: Session, *, kvns: str) -> bool:
        """Fences a session whose process is dead; whether it is over now.

        Its Lease may be read afresh: a dead process renews no more, whatever it wrote last.
        """
        try:
            raw = await self._kube.get(LEASES, namespace, session_lease_name(session.pod), timeout=STEP_SECONDS)
        except KubeNotFound:
            return await self._create_fenced(namespace, session, kvns=kvns, valid_seconds=1)
        except (KubeError, Unclear):
            return False
        try:
            lease = SessionLease.parse(raw)
        except MalformedLease:
            return False
        # Taken over: its renewals have been refused since, and its process is dead. Nothing is left to fence.
        if lease.session != session or lease.over(session):
            return True
        return await self._swap(namespace, fenced_session(raw, session))

    async def fence_silent(self, namespace: str, track: Track, *, raw: Object | None) -> bool:
        """Fences a session that was heard silent for long enough; whether it is over now.

        Args:
            namespace: the Kubernetes namespace.
            track: what was heard.
            raw: the session Lease of the last reading that was heard; None: it showed none.
        """
        session = track.session
        if raw is None:
            valid = max(1, int(track.heard.valid_seconds))
            return await self._create_fenced(namespace, session, kvns=track.kvns, valid_seconds=valid)
        if not track.held:
            # Taken over by a newer session of its pod: each renewal of the old one has failed since, because it is
            # a CAS on a version that is gone and it never takes a Lease twice. Only the time that it still
            # trusted was left, and that has been heard. A fence here would only break the successor's renewal.
            return True
        return await self._swap(namespace, fenced_session(raw, session))

    async def settle(
        self,
        partition: Partition,
        see: Callable[[PartitionLease | None], View],
        *,
        shown: Object | None,
        is_new: bool = False,
        on_read: Callable[[PartitionLease | None], None],
    ) -> Settled:
        """Decides on the partition Lease, and grants if that is the decision.

        `shown`: the Lease as a watch showed it, to be granted on. If it has changed since, the CAS says so, and
        then it is read by quorum, as it is where nothing was shown, unless the partition `is_new`: then there is
        none, or making it will fail. `on_read` is told what a reading gave.
        """
        tried: tuple[Grant, PartitionLease | None] | None = None  # None: nothing was written yet.
        reads = shown is None and not is_new
        for _ in range(ATTEMPTS_MAX):
            try:
                if reads:
                    raw, lease = await self._read(partition)
                    on_read(lease)
                else:
                    raw, lease = shown, PartitionLease.parse(shown) if shown is not None else None
                reads = True
            except (KubeError, Unclear) as error:
                return _unsettled(f"its Lease could not be read: {error}")
            except MalformedLease as error:
                return _unsettled(f"its Lease is not one of ours: {error}")
            if tried is not None and _shows(lease, tried[0]):
                return Settled(decision=tried[0], lease=lease, raw=raw, before=tried[1], is_granted=True)
            decision = decide(see(lease))
            if not isinstance(decision, Grant) or not self._leading():
                return Settled(decision=decision, lease=lease, raw=raw, before=None, is_granted=False)
            tried = (decision, lease)
            written = await self._write_grant(partition, raw, decision)
            if written is not None:
                after = PartitionLease.parse(written)
                return Settled(decision=decision, lease=after, raw=written, before=lease, is_granted=True)
        return _unsettled("its Lease keeps changing, or the API server does not answer")

    async def ask_release(self, partition: Partition, *, epoch: int, target: str) -> bool:
        """Asks the owner of `epoch`, by its Lease, to release the partition to a pod; whether that stands there.

        An owner that is alone may be out of the operator's reach as well, and still hear the API server.
        """
        try:
            raw, lease = await self._read(partition)
            if raw is None or lease is None or lease.epoch != epoch or lease.is_released or not self._leading():
                return False
            if lease.asked_target != target:
                body = with_release_asked(raw, epoch=epoch, target=target)
                await self._kube.replace(LEASES, partition.namespace, body, timeout=STEP_SECONDS)
        except (KubeError, Unclear, MalformedLease) as error:
            logger.info("%s: its owner could not be asked to let go: %s", partition.name, error)
            return False
        return True

    async def raise_status(self, partition: Partition, epoch: int, *, wanted: Callable[[], bool]) -> None:
        """Leaves the epoch in the KVPartition's status, as a floor for when its Lease is lost. Best effort."""
        body = {"status": {"epoch": epoch}}
        try:
            async with self._statuses:
                if not wanted():
                    return
                await self._kube.patch(
                    KV_PARTITIONS, partition.namespace, partition.name, body, subresource="status"
                )
        except (KubeError, Unclear) as error:
            logger.info("status of %s not raised to epoch %d: %s", partition.name, epoch, error)

    async def collect(self, namespace: str, lease: SessionLease) -> None:
        """Deletes a session Lease, as it was read."""
        preconditions = {"uid": lease.uid, "resourceVersion": lease.resource_version}
        try:
            await self._kube.delete(LEASES, namespace, lease.name, options={"preconditions": preconditions})
        except (KubeError, Unclear) as error:
            logger.info("session Lease %s not collected: %s", lease.name, error)

    async def _read(self, partition: Partition) -> tuple[Object | None, PartitionLease | None]:
        try:
            raw = await self._kube.get(
                LEASES, partition.namespace, partition_lease_name(partition.name), timeout=STEP_SECONDS
            )
        except KubeNotFound:
            return None, None
        return raw, PartitionLease.parse(raw)

    async def _write_grant(self, partition: Partition, raw: Object | None, grant: Grant) -> Object | None:
        """The CAS of a grant on `raw`; None: it did not succeed, or nobody knows."""
        body = granted(
            _fresh_record(partition) if raw is None else raw,
            session=grant.session,
            epoch=grant.epoch,
            in_sync=grant.in_sync,
            set_version=grant.set_version,
            http=grant.http,
            peer=grant.peer,
            unix_seconds=self._clock.unix(),
            accepted_loss=partition.accepted_loss if grant.reason is Reason.LOSS_ACCEPTED else None,
        )
        try:
            if raw is None:
                return await self._kube.create(LEASES, partition.namespace, body, timeout=STEP_SECONDS)
            return await self._kube.replace(LEASES, partition.namespace, body, timeout=STEP_SECONDS)
        except (KubeError, Unclear) as error:
            logger.info("grant of %s with epoch %d: %s", partition.name, grant.epoch, error)
            return None

    async def _swap(self, namespace: str, body: Object) -> bool:
        if not self._leading():
            return False
        try:
            await self._kube.replace(LEASES, namespace, body, timeout=STEP_SECONDS)
        except (KubeError, Unclear) as error:
            logger.info("fence of %s: %s", body["metadata"]["name"], error)
            return False
        return True

    async def _create_fenced(self, namespace: str, session: Session, *, kvns: str, valid_seconds: int) -> bool:
        if not self._leading():
            return False
        body = new_session_lease(
            session=session,
            kvns=kvns,
            namespace=namespace,
            valid_seconds=valid_seconds,
            # Lower than the pod remembers, so that its next session still notices that its Lease was lost.
            renewal=0,
            http="",
            peer="",
            unix_seconds=self._clock.unix(),
        )
        try:
            await self._kube.create(LEASES, namespace, fenced_session(body, session), timeout=STEP_SECONDS)
        except (KubeAlreadyExists, KubeConflict):
            return await self._is_taken_over(namespace, session)
        except (KubeError, Unclear) as error:
            logger.info("fence of %s: %s", session, error)
            return False
        return True

    async def _is_taken_over(self, namespace: str, session: Session) -> bool:
        try:
            raw = await self._kube.get(LEASES, namespace, session_lease_name(session.pod), timeout=STEP_SECONDS)
        except (KubeError, Unclear):
            return False
        holder = _holder(raw)
        return holder is not None and holder != session


def _fresh_record(partition: Partition) -> Object:
    return new_partition_lease(
        partition=partition.name,
        partition_uid=partition.uid,
        table=partition.table,
        kvns=partition.kvns,
        namespace=partition.namespace,
        owner=owner_reference(KV_PARTITIONS, name=partition.name, uid=partition.uid),
    )


def _holder(raw: Object) -> Session | None:
    try:
        return SessionLease.parse(raw).session
    except MalformedLease:
        return None


def _shows(lease: PartitionLease | None, grant: Grant) -> bool:
    return lease is not None and lease.session == grant.session and lease.epoch == grant.epoch


def _unsettled(detail: str) -> Settled:
    return Settled(decision=Wait(detail=detail), lease=None, raw=None, before=None, is_granted=False)
