"""What a KVNamespace's pool of shard pods needs next, put together from what was seen of it. Pure.

Invariants:
  * No pod is restarted while the StatefulSet is not the one that was asked for, or its controller has not seen it.
  * The disruption budget allows nothing while any partition lacks a member, or while pods are restarted here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fencekv_operator import status, volumes
from fencekv_operator.actions import Update
from fencekv_operator.placement import Placed
from fencekv_operator.rollout import Rollout, Shard, needed_pods, rollout
from fencekv_operator.settings import NamespaceSettings

Object = dict[str, Any]

TROUBLES_SHOWN_MAX: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """What is to be done about the pods, and what there is to be said of them."""

    replicas: int  # pods that the StatefulSet shall have now
    unavailable_max: int  # of the disruption budget
    rollout: Rollout
    growth: Sequence[Update]  # of volume claims
    state: status.PoolState


def pool_of(
    kvns: NamespaceSettings,
    *,
    stateful_set: Mapping[str, Any] | None,
    pods: Mapping[str, Mapping[str, Any]],
    claims: Mapping[str, Object],
    partitions: Sequence[Mapping[str, Any]],
    placed: Mapping[str, Placed],
) -> Pool:
    """The pool of a KVNamespace.

    Args:
        kvns: what is wanted.
        stateful_set: as it was last seen; None: there is none.
        pods: of the KVNamespace, by name.
        claims: volume claims of the KVNamespace, by name.
        partitions: of the KVNamespace.
        placed: where each of them is, by name.
    """
    shards = {name: Shard.parse(pod) for name, pod in pods.items() if _is_of(name, kvns.name)}
    spec, seen = (stateful_set or {}).get("spec") or {}, (stateful_set or {}).get("status") or {}
    replicas, scaling = needed_pods(
        wanted=kvns.shards.replicas,
        there=int(spec.get("replicas") or 0),
        shards=shards.keys(),
        partitions=placed,
    )
    current = stateful_set is None or stateful_set["metadata"].get("generation") == seen.get("observedGeneration")
    step = rollout(
        revision=str(seen.get("updateRevision") or "") if current else "",
        pods=kvns.pods,
        shards=shards,
        partitions=placed,
    )
    calm = all(status.condition_status(each, "Degraded") == "False" for each in partitions)
    size = kvns.shards.storage_size
    troubled = [shards[pod] for pod in sorted(shards) if shards[pod].trouble]
    state = status.PoolState(
        wanted=kvns.shards.replicas,
        there=int(seen.get("replicas") or 0),
        ready=int(seen.get("readyReplicas") or 0),
        updated=step.updated if stateful_set is not None else 0,
        rolling=step.message if current else "the StatefulSet's controller has not seen the newest template yet",
        scaling=scaling
        and f"{int(spec['replicas']) - kvns.shards.replicas} shards are to go; waits for {scaling}",
        growing=volumes.growing(claims, pods=kvns.pods, size=size),
        troubles=_shown(troubled),
        hopeless=_shown([shard for shard in troubled if shard.hopeless]),
    )
    return Pool(
        replicas=replicas,
        unavailable_max=1 if calm and step.done else 0,
        rollout=step,
        growth=volumes.growth(claims, pods=kvns.pods, size=size),
        state=state,
    )


def _is_of(pod: str, kvns: str) -> bool:
    """Whether this is a name that the pool's StatefulSet gives."""
    name, _, ordinal = pod.rpartition("-")
    return name == kvns and ordinal.isascii() and ordinal.isdigit()


def _shown(shards: Sequence[Shard]) -> str:
    more = len(shards) - TROUBLES_SHOWN_MAX
    parts = [f"{shard.pod}: {shard.trouble}" for shard in shards[:TROUBLES_SHOWN_MAX]]
    return "; ".join([*parts, *([f"and {more} more"] if more > 0 else [])])
