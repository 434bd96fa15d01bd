"""Asks owners to hand partitions over: what placement wants of itself, and what a person orders.

Invariants:
  * It only asks. Whoever owns decides whether it lets go; the failover loop grants what was released, and a grant
    rests on the Lease alone.
  * What is remembered here keeps requests few and calm. Whoever starts with none of it asks for the same, later.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from fencekv.clock import Clock
from fencekv.leases import PartitionLease, Session
from fencekv_operator.facts import Trouble
from fencekv_operator.knowledge import Key, Knowledge
from fencekv_operator.moves import Asked, Candidate, Space, next_moves
from fencekv_operator.ownership import Partition
from fencekv_operator.placing import Preference
from fencekv_operator.shards import ShardClient

logger = logging.getLogger(__name__)

ROUND_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Calm:
    """Since when a partition could be moved, between the same sessions."""

    epoch: int
    owner: Session
    target: Session
    since: float


class Mover:
    """The moves of one operator process."""

    def __init__(
        self,
        *,
        knows: Knowledge,
        shards: ShardClient,
        clock: Clock,
        leading: Callable[[], bool],
        preference: Callable[[str, str], Preference],
    ) -> None:
        """`preference` of a partition, by Kubernetes namespace and name."""
        self._knows, self._shards, self._clock = knows, shards, clock
        self._leading, self._preference = leading, preference
        self._asked: dict[str, Asked] = {}  # by partition UID
        self._calm: dict[str, _Calm] = {}  # by partition UID
        self.asked_total = 0

    async def run(self) -> None:
        """Looks once a second, while it leads."""
        while True:
            if self._leading():
                try:
                    await self.round()
                except Exception:
                    logger.exception("failed: a look for owners to be moved")
            await asyncio.sleep(ROUND_SECONDS)

    async def round(self) -> None:
        """Asks for the moves that are due."""
        candidates = self._candidates()
        alive = {partition.uid for partition in self._knows.partitions.values()}
        self._asked = {uid: one for uid, one in self._asked.items() if uid in alive}
        epochs = {lease.partition_uid: lease.epoch for lease in self._knows.leases.values()}
        chosen = next_moves(
            candidates, owned=self._owned(), asked=self._asked, epochs=epochs, now=self._clock.now()
        )
        await asyncio.gather(*(self._ask(one) for one in chosen))

    async def order(self, namespace: str, name: str, target: str = "") -> str:
        """Asks the owner of a partition to hand it over to `target`, now (empty: to the best pod).

        Gives why it was not asked or did not agree; empty: it agreed. Its end shows as a higher epoch.
        """
        key = (namespace, name)
        partition, lease = self._knows.partitions.get(key), self._knows.leases.get(key)
        if partition is None or lease is None or lease.session is None or lease.partition_uid != partition.uid:
            return "nobody owns it"
        pods = [target] if target else [pod for pod in partition.replicas if pod != lease.session.pod]
        reasons = {pod: self.refusal(key, pod) for pod in pods}
        able = next((pod for pod in pods if not reasons[pod]), "")
        if not able:
            return "; ".join(f"{pod}: {reason}" for pod, reason in reasons.items()) or "it has no standby"
        order = self._candidate(key, partition, lease, able, Preference.REQUIRED, 0.0)
        return "" if await self._ask(order) else f"{lease.session.pod} did not agree to let it go"

    def refusal(self, key: Key, target: str) -> str:
        """Why a partition cannot be moved to a pod now; empty: it can."""
        partition, lease = self._knows.partitions.get(key), self._knows.leases.get(key)
        if partition is None or partition.deleting:
            return "the partition is going"
        if lease is None or lease.session is None or lease.partition_uid != partition.uid or lease.is_released:
            return "nobody owns it"
        if self._knows.troubles.get(partition.uid, (Trouble.NONE, ""))[0] is not Trouble.NONE:
            return self._knows.troubles[partition.uid][1]
        if target == lease.session.pod:
            return "it owns the partition already"
        if self._heard(key[0], lease.session.pod) != lease.session:
            return f"the owner, {lease.session.pod}, is not heard"
        session = self._heard(key[0], target)
        report = self._knows.reports.get((key[0], target))
        if session is None or report is None or report.session != session:
            return "it is not heard"
        replica = report.replicas.get(partition.uid)
        if replica is None or f"{target}/{replica.replica}" not in lease.in_sync:
            return "it is not in sync"
        return ""

    def _candidates(self) -> list[Candidate]:
        now, found = self._clock.now(), list[Candidate]()
        calm: dict[str, _Calm] = {}
        for key, partition in self._knows.partitions.items():
            lease, target = self._knows.leases.get(key), partition.replicas[0]
            if lease is None or lease.session is None or lease.session.pod == target:
                continue
            session = self._heard(key[0], target)
            if session is None or self.refusal(key, target):
                continue
            was = self._calm.get(partition.uid)
            one = _Calm(epoch=lease.epoch, owner=lease.session, target=session, since=now)
            if was is not None and replace(one, since=was.since) == was:
                one = was
            calm[partition.uid] = one
            wish = self._preference(*key)
            if wish is not Preference.NONE:
                found.append(self._candidate(key, partition, lease, target, wish, now - one.since))
        self._calm = calm
        return found

    @staticmethod
    def _candidate(
        key: Key, partition: Partition, lease: PartitionLease, target: str, wish: Preference, calm: float
    ) -> Candidate:
        assert lease.session is not None, lease
        return Candidate(
            namespace=key[0],
            name=key[1],
            uid=partition.uid,
            kvns=partition.kvns,
            owner=lease.session.pod,
            target=target,
            epoch=lease.epoch,
            http=lease.owner_http,
            preference=wish,
            calm_seconds=calm,
        )

    def _owned(self) -> dict[Space, dict[str, int]]:
        owned: dict[Space, dict[str, int]] = {}
        for key, partition in self._knows.partitions.items():
            lease = self._knows.leases.get(key)
            if lease is not None and lease.session is not None:
                pods = owned.setdefault((key[0], partition.kvns), {})
                pods[lease.session.pod] = pods.get(lease.session.pod, 0) + 1
        return owned

    def _heard(self, namespace: str, pod: str) -> Session | None:
        """The session of a pod that is alive and not doubted."""
        book = self._knows.book(namespace)
        seen = book.live(pod)
        track = book.tracks.get(seen.lease.session) if seen is not None else None
        return None if seen is None or track is None or track.doubted else seen.lease.session

    async def _ask(self, one: Candidate) -> bool:
        self._asked[one.uid] = Asked(
            space=one.space, epoch=one.epoch, at=self._clock.now(), owner=one.owner, target=one.target
        )
        self.asked_total += 1
        agreed = await self._shards.release(one.http, one.uid, one.epoch, one.target)
        what = "agreed" if agreed else "did not agree"
        why = one.preference.name.lower()
        logger.info("%s: %s %s to hand it over to %s (%s)", one.name, one.owner, what, one.target, why)
        return agreed
