"""What a KVPartition tells a shard. The API server has checked the object; this reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from fencekv.partitioning import Partitioning, parse_partitioning
from fencekv_shard import limits
from fencekv_shard.api import Durability


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionSpec:
    """A KVPartition's identity and `spec`."""

    uid: str
    name: str
    table: str
    index: int
    partitioning: Partitioning
    durability: Durability
    min_in_sync: int  # standbys
    unshipped_seconds_max: float
    replicas: tuple[str, ...]  # pods
    value_bytes_max: int
    key_pattern: str
    history_seconds: float  # how long the journal and old versions are kept; 0: for ever
    keep_data: bool  # when the partition is deleted

    @classmethod
    def parse(cls, partition: Mapping[str, Any]) -> Self:
        """Reads a KVPartition object."""
        spec = partition["spec"]
        table_limits = spec.get("limits") or {}
        replicas = tuple(spec.get("replicas") or ())
        return cls(
            uid=partition["metadata"]["uid"],
            name=partition["metadata"]["name"],
            table=spec["table"],
            index=int(spec["index"]),
            partitioning=parse_partitioning(spec.get("partitioning") or {}),
            durability=Durability(spec.get("durability", "replicated")),
            min_in_sync=min(int(spec.get("minInSync", 1)), max(0, len(replicas) - 1)),
            unshipped_seconds_max=float(spec.get("maxUnshippedSeconds", 1)),
            replicas=replicas,
            value_bytes_max=int(table_limits.get("valueBytesMax", limits.VALUE_BYTES_MAX)),
            key_pattern=table_limits.get("keyPattern", ""),
            history_seconds=float((spec.get("history") or {}).get("windowSeconds", 0)),
            keep_data=spec.get("deletionPolicy", "Retain") == "Retain",
        )
