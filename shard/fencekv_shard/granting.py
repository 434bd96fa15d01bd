"""What a shard does with a grant: it reads it once more, promises the epoch, or gives it back.

Invariants:
  * Nothing is begun under a grant that a quorum read does not show: a watch may lag, and what it shows late may be
    a Lease that was deleted and replaced meanwhile.
  * Nothing is begun under an epoch that is not durably promised here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from fencekv import leases
from fencekv.kube import LEASES, KubeError, KubeNotFound, Unclear
from fencekv.leases import PartitionLease, pod_of
from fencekv_shard.api import Durability
from fencekv_shard.membership import CAS_SECONDS, RETRY_SECONDS
from fencekv_shard.replica import Replica
from fencekv_shard.spec import PartitionSpec
from fencekv_shard.store import CommitFailed, DiskFull, StalePromise
from fencekv_shard.surroundings import Surroundings
from fencekv_shard.turns import LeaseKube

logger = logging.getLogger(__name__)

OPEN_PAUSE_SECONDS: Final = 0.5  # before what a full disk refused is tried again

Object = dict[str, Any]


async def taken(
    grant: PartitionLease,
    *,
    replica: Replica,
    member: str,
    spec: PartitionSpec,
    around: Surroundings,
    wanted: Callable[[], bool],
) -> Object | None:
    """The Lease of a grant whose epoch is promised now, durably. None: `replica` cannot act on it."""
    kube, namespace = around.kube, around.namespace
    while wanted():
        # Beside each other: a promise for a grant that no longer stands refuses lower epochs only, as the report
        # of it does.
        raw, promised = await asyncio.gather(
            current_grant(kube, namespace, grant, wanted=wanted),
            _promised(grant, replica=replica, member=member, name=spec.name, on_fatal=around.on_fatal),
        )
        if raw is None or promised is None:
            return None
        if promised:
            return raw
        target = ""
        if member in grant.in_sync:
            await asyncio.sleep(OPEN_PAUSE_SECONDS)
            target = next((pod_of(other) for other in grant.in_sync if other != member), "")
            if not target or spec.durability is Durability.STANDARD:
                continue  # nobody else holds all that was acknowledged
        await decline(kube, namespace, grant, seq=replica.last.seq, target=target, wanted=wanted)
    return None


async def _promised(
    grant: PartitionLease,
    *,
    replica: Replica,
    member: str,
    name: str,
    on_fatal: Callable[[BaseException], None],
) -> bool | None:
    """Whether the granted epoch is promised here. False: not yet, or not to this replica; None: never."""
    if member not in grant.in_sync:
        logger.error("%s: granted to us, but %s is not in %s", name, member, grant.in_sync)
        return False
    try:
        await replica.promise(grant.epoch)
    except StalePromise as error:
        # The report says which epoch was promised, and the operator grants above it.
        logger.warning("%s: %s", name, error)
        return None
    except CommitFailed as error:
        on_fatal(error)
        return None
    except DiskFull as error:
        logger.warning("%s: epoch %d not promised: %s", name, grant.epoch, error)
        return False
    return True


async def current_grant(
    kube: LeaseKube, namespace: str, grant: PartitionLease, *, wanted: Callable[[], bool]
) -> Object | None:
    """The Lease by quorum read, if it still is the grant that a watch showed; None: it is not, or not `wanted`.

    A watch may lag, and what it shows late may be a Lease that was deleted and replaced meanwhile.
    """
    while wanted():
        try:
            raw = await kube.get(LEASES, namespace, grant.name, timeout=CAS_SECONDS)
            again = PartitionLease.parse(raw)
        except KubeNotFound:
            return None
        except (Unclear, KubeError, leases.MalformedLease) as error:
            logger.warning("%s: grant not confirmed yet: %s", grant.name, error)
            await asyncio.sleep(RETRY_SECONDS)
            continue
        same = (again.uid, again.session, again.epoch) == (grant.uid, grant.session, grant.epoch)
        return raw if same and not again.is_released else None
    return None


async def decline(
    kube: LeaseKube, namespace: str, grant: PartitionLease, *, seq: int, target: str, wanted: Callable[[], bool]
) -> None:
    """Gives back a grant under which nothing was or ever will be begun here."""
    while (raw := await current_grant(kube, namespace, grant, wanted=wanted)) is not None:
        body = leases.released_partition(raw, epoch=grant.epoch, seq=seq, target=target)
        try:
            await kube.replace(LEASES, namespace, body, timeout=CAS_SECONDS)
            return
        except (Unclear, KubeError) as error:
            logger.info("%s: not given back yet: %s", grant.name, error)
        await asyncio.sleep(RETRY_SECONDS)
