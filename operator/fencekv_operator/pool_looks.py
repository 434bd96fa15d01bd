"""What is looked up of a pool of shards before it is planned: who is away for good, and how large its volumes are.

Watches do not tell these: time passes without an event, and volume claims are not watched.

Invariants:
  * A pod counts as away for good only after a quorum read, because the cache may lag by as much as a watch that
    died silently.
  * What is remembered of a KVNamespace goes with it, and all of it with the lead.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from fencekv.clock import Clock
from fencekv.kube import CLAIMS, PODS, Kube, Resource
from fencekv.leases import LABEL_NAMESPACE
from fencekv_operator import volumes
from fencekv_operator.absence import LOOK_SECONDS, Absences, replaceable
from fencekv_operator.cache import Cache
from fencekv_operator.rollout import Shard
from fencekv_operator.settings import NamespaceSettings

Object = dict[str, Any]
Key = tuple[str, str]  # Kubernetes namespace, KVNamespace


@dataclass(slots=True)
class _Remembered:
    absences: Absences = field(default_factory=Absences)
    away: frozenset[str] = frozenset()
    claims_listed_at: float = float("-inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """What a look at a pool found."""

    changed: bool  # whether other pods are away for good than before
    again: bool  # whether it is to be looked at again in LOOK_SECONDS


class PoolLooks:
    """Looks at pools. `look` reads an object by quorum into the cache; `learn` takes an object into it."""

    def __init__(
        self,
        *,
        cache: Cache,
        kube: Kube,
        clock: Clock,
        look: Callable[[Resource, str, str], Awaitable[Object | None]],
        learn: Callable[[Resource, str, str, Object | None], None],
        answered_at: Callable[[], float],
    ) -> None:
        self._cache, self._kube, self._clock = cache, kube, clock
        self._look, self._learn, self._answered_at = look, learn, answered_at
        self._pools: dict[Key, _Remembered] = {}

    def away(self, namespace: str, kvns: str) -> frozenset[str]:
        """The pods of a KVNamespace whose replicas are to be made anew elsewhere."""
        pool = self._pools.get((namespace, kvns))
        return pool.away if pool is not None else frozenset()

    def forget(self, key: Key | None = None) -> None:
        """A KVNamespace is gone; None: another operator leads, or led."""
        if key is None:
            self._pools.clear()
        else:
            self._pools.pop(key, None)

    async def look(self, namespace: str, kvns: NamespaceSettings) -> Looked:
        """Looks at the pool of a KVNamespace.

        Raises:
            KubeError: a read was refused.
            Unclear: a read was not answered.
        """
        pool = self._pools.setdefault((namespace, kvns.name), _Remembered())
        heard = {pod: self._heard(pool, namespace, pod) for pod in kvns.pods}
        for pod in sorted(replaceable(heard, after_seconds=kvns.replace_after_seconds) - pool.away):
            await self._look(PODS, namespace, pod)
            heard[pod] = self._heard(pool, namespace, pod)
        before, pool.away = pool.away, replaceable(heard, after_seconds=kvns.replace_after_seconds)
        await self._look_at_claims(pool, namespace, kvns)
        again = any(seconds is not None for seconds in heard.values())
        return Looked(changed=pool.away != before, again=again)

    def observe(self, namespace: str, kvns: str, pod: Object) -> None:
        """Takes a change of a pod: one that was back between two looks was not away all the time."""
        pool = self._pools.get((namespace, kvns))
        if pool is not None and Shard.parse(pod).ready:
            pool.absences.end(pod["metadata"]["name"])

    def _heard(self, pool: _Remembered, namespace: str, pod: str) -> float | None:
        seen = self._cache.get(PODS, namespace, pod)
        return pool.absences.look(
            pod,
            away=seen is None or not Shard.parse(seen).ready,
            now=self._clock.now(),
            answered_at=self._answered_at(),
        )

    async def _look_at_claims(self, pool: _Remembered, namespace: str, kvns: NamespaceSettings) -> None:
        """Lists the volume claims while one is unknown, or has less room than is asked for."""
        if self._clock.now() < pool.claims_listed_at + LOOK_SECONDS:
            return
        pods = [pod for pod in kvns.pods if self._cache.get(PODS, namespace, pod) is not None]
        claims = {each["metadata"]["name"]: each for each in self._cache.of_kvns(CLAIMS, namespace, kvns.name)}
        known = all(volumes.claim_name(pod) in claims for pod in pods)
        if known and not volumes.growing(claims, pods=pods, size=kvns.shards.storage_size):
            return
        pool.claims_listed_at = self._clock.now()
        listing = await self._kube.list(CLAIMS, namespace, labels=f"{LABEL_NAMESPACE}={kvns.name}")
        for claim in listing.items:
            self._learn(CLAIMS, namespace, claim["metadata"]["name"], claim)
