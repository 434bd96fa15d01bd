"""Gathers what `kubectl fencekv why` goes by."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from fencekv import leases
from fencekv.cli.observed import Object, Observed
from fencekv.cli.reach import Reach
from fencekv.kube import (
    CLAIMS,
    KV_NAMESPACES,
    KV_OPERATIONS,
    KV_PARTITIONS,
    KV_TABLES,
    LEASES,
    PODS,
    KubeError,
    KubeNotFound,
    Unclear,
)

LOOK_SECONDS: Final = 2.5  # between two looks at the Leases: more than two renewals by default
OPERATOR_LEASE: Final = "fencekv-operator"
VOLUME: Final = "data"  # of the claims of a shard's StatefulSet: <volume>-<pod>

Items = list[dict[str, Any]]


async def observe(cluster: Reach, name: str, *, operator_namespace: str) -> Observed | None:
    """All there is to see of a partition at one look; None: there is no such KVPartition."""
    partition = await cluster.get(KV_PARTITIONS, name)
    if partition is None:
        return None
    spec = partition["spec"]
    kvns = str(spec.get("namespace") or "")
    labels = f"{leases.LABEL_NAMESPACE}={kvns}"
    table, namespace, operator = await asyncio.gather(
        cluster.get(KV_TABLES, str(spec.get("table"))),
        cluster.get(KV_NAMESPACES, kvns),
        _operator_lease(cluster, operator_namespace),
    )
    lease_items, pods, claims, operations = await asyncio.gather(
        cluster.all_of(LEASES, labels=labels),
        cluster.all_known(PODS, labels=f"{labels},{leases.LABEL_KIND}={leases.KIND_SHARD}"),
        cluster.all_known(CLAIMS),
        cluster.all_known(KV_OPERATIONS),
    )
    sessions = _sessions(lease_items)
    reports = await cluster.shard_reports({pod: _http(sessions[pod]) for pod in sessions})
    record = leases.partition_lease_name(name)
    return Observed(
        partition=partition,
        table=table,
        namespace=namespace,
        record=next((each for each in lease_items if each["metadata"]["name"] == record), None),
        sessions=sessions,
        pods={str(pod["metadata"]["name"]): pod for pod in pods},
        claims=_claims_by_pod(
            claims, [str(pod["metadata"]["name"]) for pod in pods], list(spec.get("replicas") or ())
        ),
        operator=operator,
        operations=operations,
        reports=reports,
    )


async def look_again(cluster: Reach, first: Observed, *, operator_namespace: str) -> Observed:
    """The same a while later; now it shows who renewed in between."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    await asyncio.sleep(LOOK_SECONDS)
    second = await observe(cluster, first.name, operator_namespace=operator_namespace)
    if second is None:
        return first
    return replace(second, renewed=_renewed(first, second), looked_seconds=loop.time() - began)


def _renewed(first: Observed, second: Observed) -> frozenset[str]:
    """The Leases that changed; one that is new counts as renewed."""
    before, after = _versions(first), _versions(second)
    return frozenset(name for name, version in after.items() if before.get(name) != version)


def _versions(seen: Observed) -> dict[str, tuple[str, str]]:
    found = [*seen.sessions.values(), *([seen.operator] if seen.operator is not None else [])]
    return {
        each["metadata"]["name"]: (each["metadata"]["uid"], each["metadata"]["resourceVersion"]) for each in found
    }


async def _operator_lease(cluster: Reach, namespace: str) -> Object | None:
    # Where the operator runs is its own matter; in a sandbox it is where everything else is.
    for place in dict.fromkeys((namespace, cluster.namespace)):
        try:
            return await cluster.kube.get(LEASES, place, OPERATOR_LEASE)
        except (KubeNotFound, KubeError, Unclear):
            continue
    return None


def _sessions(items: Items) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for item in items:
        metadata = item["metadata"]
        if (metadata.get("labels") or {}).get(leases.LABEL_KIND) == leases.KIND_SESSION:
            found[str(metadata["name"]).removeprefix("session-")] = item
    return found


def _http(lease: Mapping[str, Any]) -> str:
    return str((lease["metadata"].get("annotations") or {}).get(leases.HTTP, ""))


def _claims_by_pod(claims: Items, pods: list[str], replicas: list[str]) -> dict[str, Object]:
    names = {str(claim["metadata"]["name"]): claim for claim in claims}
    return {pod: names[f"{VOLUME}-{pod}"] for pod in {*pods, *replicas} if f"{VOLUME}-{pod}" in names}
