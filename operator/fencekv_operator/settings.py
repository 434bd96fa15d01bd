"""What the custom resources ask for, as values with every default filled in.

Invariants:
  * Only this module knows the shape of the specs of KVNamespace and KVTable. The API server has validated them;
    what may be absent is an optional field, never a required one.
  * A table's own word goes before its namespace's default, and `minInSync` never exceeds the standbys there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from fencekv.partitioning import parse_partitioning
from fencekv_operator.rules import TablePlacement

Object = dict[str, Any]

FINALIZER: Final = "fencekv.io/data"
DELETE: Final = "Delete"
RETAIN: Final = "Retain"
STANDARD: Final = "standard"
REPLICATED: Final = "replicated"

VALUE_BYTES_MAX: Final = 1_048_576
REPLACE_AFTER_SECONDS: Final = 600
HTTP_PORT: Final = 7070
PEER_PORT: Final = 7071

DEFAULT_REQUESTS: Final = {"requests": {"cpu": "100m", "memory": "128Mi"}}
DEFAULT_SPREAD: Final = {
    "topologyKey": "kubernetes.io/hostname",
    "maxSkew": 1,
    "whenUnsatisfiable": "ScheduleAnyway",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSettings:
    """What the operator was told when it was started."""

    image: str  # of the shards of a KVNamespace that names none
    namespace: str  # the Kubernetes namespace that the operator itself runs in
    priority_class: str = ""  # of the shards; empty: the cluster's default


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What is the same for every kind of custom resource."""

    namespace: str
    name: str
    uid: str
    resource_version: str
    generation: int
    deleting: bool
    finalizers: tuple[str, ...]

    @classmethod
    def parse(cls, obj: Mapping[str, Any]) -> Self:
        """Reads an object's metadata."""
        meta = obj["metadata"]
        return cls(
            namespace=meta["namespace"],
            name=meta["name"],
            uid=meta["uid"],
            resource_version=meta["resourceVersion"],
            generation=int(meta.get("generation") or 1),
            deleting="deletionTimestamp" in meta,
            finalizers=tuple(meta.get("finalizers") or ()),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSettings:
    """The pool of shard pods."""

    replicas: int
    image: str
    image_pull_policy: str
    resources: Object
    storage_size: str | int
    storage_class: str  # empty: the cluster's default
    node_selector: Mapping[str, str]
    tolerations: tuple[Object, ...]
    topology_spread: tuple[Object, ...]

    @classmethod
    def parse(cls, spec: Mapping[str, Any], operator: OperatorSettings) -> Self:
        """Reads `spec.shards`."""
        storage = spec.get("storage") or {}
        return cls(
            replicas=int(spec.get("replicas", 3)),
            image=spec.get("image") or operator.image,
            image_pull_policy=spec.get("imagePullPolicy", "IfNotPresent"),
            resources=spec.get("resources", DEFAULT_REQUESTS),
            storage_size=storage.get("size", "1Gi"),
            storage_class=storage.get("storageClassName", ""),
            node_selector=spec.get("nodeSelector") or {},
            tolerations=tuple(spec.get("tolerations") or ()),
            topology_spread=tuple(spec.get("topologySpread", (DEFAULT_SPREAD,))),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceSettings:
    """A KVNamespace."""

    identity: Identity
    shards: ShardSettings
    durability: str
    standbys: int
    min_in_sync: int
    tables_max: int | None  # None: no limit.
    partitions_max: int | None  # None: no limit.
    deletion_policy: str
    replace_after_seconds: int  # 0: a pod that is away is waited for without end
    paused: bool

    @property
    def name(self) -> str:
        """Name of the KVNamespace, of its StatefulSet and of its Service."""
        return self.identity.name

    @property
    def pods(self) -> tuple[str, ...]:
        """Names of the wanted shard pods, by ordinal."""
        return tuple(f"{self.name}-{ordinal}" for ordinal in range(self.shards.replicas))

    @classmethod
    def parse(cls, obj: Mapping[str, Any], operator: OperatorSettings) -> Self:
        """Reads a KVNamespace."""
        spec = obj.get("spec") or {}
        defaults, quota = spec.get("defaults") or {}, spec.get("quota") or {}
        return cls(
            identity=Identity.parse(obj),
            shards=ShardSettings.parse(spec.get("shards") or {}, operator),
            durability=defaults.get("durability", REPLICATED),
            standbys=int(defaults.get("replicas", 2)),
            min_in_sync=int(defaults.get("minInSync", 1)),
            tables_max=quota.get("tables"),
            partitions_max=quota.get("partitions"),
            deletion_policy=spec.get("deletionPolicy", RETAIN),
            replace_after_seconds=int(spec.get("replaceAfterSeconds", REPLACE_AFTER_SECONDS)),
            paused=bool(spec.get("paused", False)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSettings:
    """A KVTable, with the defaults of its KVNamespace filled in."""

    identity: Identity
    kvns: str
    partitioning: Object
    partitions: int
    durability: str
    standbys: int
    min_in_sync: int
    max_unshipped_seconds: int
    history_seconds: int  # 0: everything is kept
    limits: Object
    placement: TablePlacement
    deletion_policy: str
    paused: bool  # by its own word or its namespace's

    @property
    def name(self) -> str:
        """Name of the KVTable."""
        return self.identity.name

    @property
    def size(self) -> int:
        """Replicas of a partition, the owner counted."""
        return self.standbys + 1

    @classmethod
    def parse(cls, obj: Mapping[str, Any], kvns: NamespaceSettings) -> Self:
        """Reads a KVTable of `kvns`."""
        spec = obj["spec"]
        standbys = int(spec.get("replicas", kvns.standbys))
        return cls(
            identity=Identity.parse(obj),
            kvns=spec["namespace"],
            partitioning=dict(spec.get("partitioning") or {"strategy": "hash", "count": 1}),
            partitions=partition_count(obj),
            durability=spec.get("durability", kvns.durability),
            standbys=standbys,
            min_in_sync=min(int(spec.get("minInSync", kvns.min_in_sync)), standbys),
            max_unshipped_seconds=int(spec.get("maxUnshippedSeconds", 1)),
            history_seconds=int((spec.get("history") or {}).get("windowSeconds", 0)),
            limits={"valueBytesMax": VALUE_BYTES_MAX, "keyPattern": "", **(spec.get("limits") or {})},
            placement=TablePlacement.parse(spec.get("placement")),
            deletion_policy=spec.get("deletionPolicy", RETAIN),
            paused=kvns.paused or bool(spec.get("paused", False)),
        )


def partition_count(table: Mapping[str, Any]) -> int:
    """How many partitions a KVTable asks for."""
    return parse_partitioning(table["spec"].get("partitioning") or {}).count


def ordinal_of(pod: str) -> int:
    """A shard pod's ordinal, from its name."""
    return int(pod.rpartition("-")[2])
