"""What `kubectl fencekv status` shows, from what the API server holds. Pure.

Invariants:
  * Ownership comes from the partition Lease, which decides it; the custom resources' status fills in the rest.
  * A Lease that is missing or malformed is shown as such, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fencekv import leases

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The objects of one Kubernetes namespace, as they were read."""

    namespaces: Sequence[Object] = field(default_factory=tuple)
    tables: Sequence[Object] = field(default_factory=tuple)
    partitions: Sequence[Object] = field(default_factory=tuple)
    leases: Sequence[Object] = field(default_factory=tuple)


def status(cluster: Cluster, *, name: str = "") -> dict[str, Any] | None:
    """The document that `-o json` prints and the tables are made of.

    `name`: of a KVNamespace, a KVTable or a KVPartition, with all that belongs to it; empty: everything. None:
    there is nothing of that name.
    """
    by_name = {str(lease["metadata"]["name"]): lease for lease in cluster.leases}
    chosen = _chosen(cluster, name)
    if chosen is None:
        return None
    namespaces, tables, partitions = chosen
    partitions.sort(key=lambda item: (item["spec"]["table"], int(item["spec"].get("index") or 0)))
    return {
        "namespaces": [_namespace(item, cluster.leases) for item in namespaces],
        "tables": [_table(item) for item in tables],
        "partitions": [_partition(item, by_name) for item in partitions],
    }


def _chosen(cluster: Cluster, name: str) -> tuple[list[Object], list[Object], list[Object]] | None:
    """The KVNamespaces, KVTables and KVPartitions that `name` stands for."""
    if not name:
        return list(cluster.namespaces), list(cluster.tables), list(cluster.partitions)
    namespaces, tables = _named(cluster.namespaces, name), _named(cluster.tables, name)
    partitions = _named(cluster.partitions, name)
    if not (namespaces or tables or partitions):
        return None
    # A namespace and a table may have the same name: then both are meant, with all that is theirs.
    tables += [t for t in cluster.tables if t not in tables and t["spec"].get("namespace") in _names(namespaces)]
    partitions += [
        p for p in cluster.partitions if p not in partitions and p["spec"].get("table") in _names(tables)
    ]
    above = {item["spec"].get("table") for item in partitions}
    tables += [t for t in cluster.tables if t not in tables and t["metadata"]["name"] in above]
    used = {item["spec"].get("namespace") for item in (*tables, *partitions)}
    namespaces += [n for n in cluster.namespaces if n not in namespaces and n["metadata"]["name"] in used]
    return namespaces, tables, partitions


def _named(items: Sequence[Object], name: str) -> list[Object]:
    return [item for item in items if item["metadata"]["name"] == name]


def _names(items: Sequence[Object]) -> set[str]:
    return {str(item["metadata"]["name"]) for item in items}


def _namespace(item: Object, all_leases: Iterable[Object]) -> dict[str, Any]:
    name = item["metadata"]["name"]
    shards = [_shard(lease) for lease in all_leases if _is_session_of(lease, name)]
    paused = bool((item.get("spec") or {}).get("paused"))
    return {
        "name": name,
        "paused": paused,
        **_conditions(item),
        "shards": sorted(shards, key=lambda shard: str(shard["pod"])),
    }


def _is_session_of(lease: Object, kvns: str) -> bool:
    labels = lease["metadata"].get("labels") or {}
    kind = labels.get(leases.LABEL_KIND)
    return kind == leases.KIND_SESSION and labels.get(leases.LABEL_NAMESPACE) == kvns


def _shard(lease: Object) -> dict[str, Any]:
    name = str(lease["metadata"]["name"])
    try:
        parsed = leases.SessionLease.parse(lease)
    except leases.MalformedLease as error:
        return {
            "pod": name.removeprefix("session-"),
            "state": f"Malformed: {error}",
            "http": None,
            "renewal": None,
        }
    state = "Live"
    if parsed.released == str(parsed.session):
        state = "Released"
    if parsed.fenced == str(parsed.session):
        state = "Fenced"
    return {"pod": parsed.session.pod, "state": state, "http": parsed.http or None, "renewal": parsed.renewal}


def _table(item: Object) -> dict[str, Any]:
    spec, seen = item.get("spec") or {}, item.get("status") or {}
    return {
        "name": item["metadata"]["name"],
        "namespace": spec.get("namespace"),
        "partitions": seen.get("partitions"),
        "serving": seen.get("readyPartitions"),
        "durability": spec.get("durability"),
        "replicas": spec.get("replicas"),
        "paused": bool(spec.get("paused")),
        **_conditions(item),
    }


def _partition(item: Object, by_name: Mapping[str, Object]) -> dict[str, Any]:
    name, seen = str(item["metadata"]["name"]), item.get("status") or {}
    row = {
        "partition": name,
        "table": item["spec"]["table"],
        "index": item["spec"].get("index"),
        "epoch": None,
        "owner": None,
        "inSync": [],
        "token": seen.get("token"),
        "lag": seen.get("lag"),
        "phase": seen.get("phase"),
        "record": "Present",
        **_conditions(item),
    }
    lease = by_name.get(leases.partition_lease_name(name))
    if lease is None:
        return {**row, "record": "Missing"}
    try:
        record = leases.PartitionLease.parse(lease)
    except (leases.MalformedLease, ValueError) as error:
        return {**row, "record": f"Malformed: {error}"}
    owner = record.session.pod if record.session and not record.is_released else None
    pods = sorted({leases.pod_of(member) for member in record.in_sync})
    state = "Released" if record.is_released else "Present"
    return {**row, "epoch": record.epoch, "owner": owner, "inSync": pods, "record": state}


def _conditions(item: Object) -> dict[str, Any]:
    """Whether the object is ready, and the conditions that say what is wrong."""
    conditions = (item.get("status") or {}).get("conditions") or []
    by_type = {str(condition.get("type")): condition for condition in conditions}
    ready = by_type.get("Ready", {})
    wrong = [
        {"type": name, "reason": condition.get("reason"), "message": condition.get("message")}
        for name, condition in by_type.items()
        if name not in {"Ready", "Reconciling"} and condition.get("status") == "True"
    ]
    if ready.get("status") != "True" and ready.get("message"):
        wrong.insert(0, {"type": "NotReady", "reason": ready.get("reason"), "message": ready.get("message")})
    return {"ready": ready.get("status") == "True", "conditions": wrong}
