"""Which partition a drill takes, and the object that keeps its history. Pure."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from fencekv.kube import KV_OPERATIONS
from fencekv.leases import HOLD_FAILOVER
from fencekv.partitioning import parse_partitioning
from fencekv_operator.drill import Place
from fencekv_operator.facts import PartitionFacts
from fencekv_operator.operations import Operation, unhealthy
from fencekv_operator.resources import owner_reference

Object = dict[str, Any]

HISTORY_FILE: Final = "history.cbor.gz"


def choose(
    operation: Operation,
    table: Mapping[str, Any],
    partitions: Sequence[Mapping[str, Any]],
    *,
    facts: Callable[[str, str], PartitionFacts | None],
) -> tuple[Place | None, str]:
    """The partition that a drill takes: the one named, or the first healthy one; or why there is none."""
    why = f"table {operation.table} has no partition {operation.partition}".rstrip()
    for each in partitions:
        name = each["metadata"]["name"]
        if operation.partition and name != operation.partition:
            continue
        held = (each["metadata"].get("annotations") or {}).get(HOLD_FAILOVER)
        reason = "its failover is held" if held is not None else unhealthy(facts(operation.namespace, name))
        if not reason:
            spec = each["spec"]
            place = Place(
                kvns=table["spec"]["namespace"],
                partition=name,
                index=int(spec["index"]),
                partitioning=parse_partitioning(spec["partitioning"]),
            )
            return place, ""
        why = f"{name}: {reason}"
    return None, why


def history_object(operation: Operation, history: bytes) -> Object:
    """The ConfigMap that keeps a drill's history; it goes with its KVOperation."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": f"{operation.name}-{operation.uid[:8]}-history",
            "namespace": operation.namespace,
            "labels": {"app.kubernetes.io/part-of": "fencekv"},
            "ownerReferences": [owner_reference(KV_OPERATIONS, name=operation.name, uid=operation.uid)],
        },
        "binaryData": {HISTORY_FILE: base64.b64encode(history).decode()},
        "immutable": True,
    }
