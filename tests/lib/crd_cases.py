"""What the custom resources refuse and what they let through: a table of cases, as data.

A case is a valid object with some fields set or removed by their dotted path, and the field that the refusal must
name. A number in a path indexes a list.

Invariants:
  * The object that a case starts from is accepted, so a refusal is due to what the case changed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

Object = dict[str, Any]

ABSENT: Final = object()
NAME: Final = "metadata.name"

VALID: Final[dict[str, Object]] = {
    "KVNamespace": {"metadata": {"name": "tenant"}, "spec": {}},
    "KVTable": {"metadata": {"name": "orders"}, "spec": {"namespace": "tenant"}},
    "KVPartition": {
        "metadata": {"name": "orders-3"},
        "spec": {
            "namespace": "tenant",
            "table": "orders",
            "tableUID": "5f0c7e3e-0000-4000-8000-000000000001",
            "index": 3,
            "partitioning": {"strategy": "hash", "count": 8},
            "durability": "replicated",
            "minInSync": 1,
            "maxUnshippedSeconds": 1,
            "replicas": ["tenant-0", "tenant-1", "tenant-2"],
            "limits": {"valueBytesMax": 1048576, "keyPattern": ""},
            "deletionPolicy": "Retain",
        },
    },
    "KVOperation": {
        "metadata": {"name": "move-1"},
        "spec": {"type": "switchover", "table": "orders", "partition": "orders-3"},
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An object with `changes`; where it is refused, naming `field`, with `words` in the message."""

    kind: str
    changes: Mapping[str, Any]
    field: str = ""
    words: str = ""

    @property
    def id(self) -> str:
        """Name of the test."""
        changed = ",".join(f"{path}={_brief(value)}" for path, value in self.changes.items())
        return f"{self.kind}:{changed}"


def valid(kind: str, changes: Mapping[str, Any] | None = None) -> Object:
    """The valid object of `kind`, with `changes`."""
    made = {"apiVersion": "fencekv.io/v1alpha1", "kind": kind, **copy.deepcopy(VALID[kind])}
    for path, value in (changes or {}).items():
        _put(made, path.split("."), value)
    return made


def _put(target: Any, path: list[str], value: Any) -> None:
    *parents, last = path
    for step in parents:
        target = target[int(step)] if isinstance(target, list) else target.setdefault(step, {})
    if value is ABSENT:
        del target[last]
    elif isinstance(target, list):
        target[int(last)] = value
    else:
        target[last] = value


def _brief(value: Any) -> str:
    text = "absent" if value is ABSENT else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _namespace(changes: Mapping[str, Any], field: str = "", words: str = "") -> Case:
    return Case(kind="KVNamespace", changes=changes, field=field, words=words)


def _table(changes: Mapping[str, Any], field: str = "", words: str = "") -> Case:
    return Case(kind="KVTable", changes=changes, field=field, words=words)


def _partition(changes: Mapping[str, Any], field: str = "", words: str = "") -> Case:
    return Case(kind="KVPartition", changes=changes, field=field, words=words)


def _operation(changes: Mapping[str, Any], field: str = "", words: str = "") -> Case:
    return Case(kind="KVOperation", changes=changes, field=field, words=words)


def _drill(drill: Any, field: str = "", words: str = "") -> Case:
    return _operation({"spec.type": "drill", "spec.drill": drill}, field, words)


def _placed(entry: Mapping[str, Any], field: str = "", words: str = "", **more: Any) -> Case:
    """A table of eight partitions, with one entry in its placement."""
    placement = {"partitions": [entry], **more}
    return _table({"spec.partitioning": {"count": 8}, "spec.placement": placement}, field, words)


def _range(points: list[str]) -> Mapping[str, Any]:
    return {"spec.partitioning": {"strategy": "range", "splitPoints": points}}


BAD_NAMESPACES: Final = [
    _namespace({NAME: "n" * 41}, NAME, "at most 40"),
    _namespace({NAME: "route"}, NAME, "HTTP interface"),
    _namespace({NAME: "9lives"}, NAME, "first a letter"),
    _namespace({NAME: "a.b"}, NAME, "lower case"),
    _namespace({"spec": []}, "spec", "object"),
    _namespace({"spec.shards.replicas": 0}, "spec.shards.replicas", "greater than or equal to 1"),
    _namespace({"spec.shards.replicas": 1001}, "spec.shards.replicas", "less than or equal to 1000"),
    _namespace({"spec.shards.replicas": "3"}, "spec.shards.replicas", "integer"),
    _namespace({"spec.shards.replicas": 2.5}, "spec.shards.replicas", "integer"),
    _namespace({"spec.shards.image": ""}, "spec.shards.image"),
    _namespace({"spec.shards.image": "two words"}, "spec.shards.image"),
    _namespace({"spec.shards.imagePullPolicy": "Sometimes"}, "spec.shards.imagePullPolicy", "IfNotPresent"),
    _namespace({"spec.replaceAfterSeconds": 9}, "spec.replaceAfterSeconds", "or at least 10"),
    _namespace({"spec.replaceAfterSeconds": -1}, "spec.replaceAfterSeconds"),
    _namespace({"spec.paused": "yes"}, "spec.paused"),
    _table({"spec.paused": "yes"}, "spec.paused"),
    _namespace({"spec.shards.storage": {"size": "lots"}}, "spec.shards.storage.size"),
    _namespace({"spec.shards.storage": {"size": "0"}}, "spec.shards.storage.size"),
    _namespace({"spec.shards.storage": {"size": 0}}, "spec.shards.storage.size"),
    _namespace({"spec.shards.storage": {"size": True}}, "spec.shards.storage.size"),
    _namespace({"spec.shards.storage": {"storageClassName": "Fast_One"}}, "spec.shards.storage.storageClassName"),
    _namespace({"spec.shards.resources": {"limits": {"memory": "much"}}}, "spec.shards.resources.limits.memory"),
    _namespace({"spec.shards.resources": {"requests": {"cpu": -1}}}, "spec.shards.resources.requests.cpu"),
    _namespace({"spec.shards.nodeSelector": {"disk": 1}}, "spec.shards.nodeSelector.disk", "string"),
    _namespace(
        {"spec.shards.tolerations": [{"operator": "Equal"}]}, "spec.shards.tolerations[0].operator", "Exists"
    ),
    _namespace(
        {"spec.shards.tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]},
        "spec.shards.tolerations[0].value",
        "no value",
    ),
    _namespace(
        {"spec.shards.tolerations": [{"key": "a", "tolerationSeconds": 5}]},
        "spec.shards.tolerations[0].tolerationSeconds",
        "NoExecute",
    ),
    _namespace(
        {"spec.shards.tolerations": [{"key": "a", "effect": "Never"}]}, "spec.shards.tolerations[0].effect"
    ),
    _namespace(
        {"spec.shards.topologySpread": [{"maxSkew": 1}]}, "spec.shards.topologySpread[0].topologyKey", "Required"
    ),
    _namespace(
        {"spec.shards.topologySpread": [{"topologyKey": "zone", "maxSkew": 0}]},
        "spec.shards.topologySpread[0].maxSkew",
    ),
    _namespace(
        {"spec.shards.topologySpread": [{"topologyKey": "zone"}, {"topologyKey": "zone"}]},
        "spec.shards.topologySpread[1]",
        "Duplicate",
    ),
    _namespace({"spec.lease": {"durationSeconds": 5}}, "spec.lease.durationSeconds", "1.5 times"),
    _namespace({"spec.lease": {"validSeconds": 5}}, "spec.lease.durationSeconds", "1.5 times"),
    _namespace({"spec.lease": {"renewSeconds": 4}}, "spec.lease.renewSeconds", "less than validSeconds"),
    _namespace({"spec.lease": {"renewSeconds": 0}}, "spec.lease.renewSeconds"),
    _namespace({"spec.lease": {"validSeconds": 1}}, "spec.lease.validSeconds"),
    _namespace({"spec.lease": {"durationSeconds": 121}}, "spec.lease.durationSeconds"),
    _namespace({"spec.defaults": {"durability": "durable"}}, "spec.defaults.durability", "Unsupported value"),
    _namespace({"spec.defaults": {"replicas": 0}}, "spec.defaults.replicas"),
    _namespace({"spec.defaults": {"replicas": 1, "minInSync": 2}}, "spec.defaults.minInSync", "must not exceed"),
    _namespace({"spec.quota": {"tables": -1}}, "spec.quota.tables"),
    _namespace({"spec.quota": {"partitions": "many"}}, "spec.quota.partitions", "integer"),
    _namespace({"spec.deletionPolicy": "Orphan"}, "spec.deletionPolicy", "Retain"),
]

BAD_TABLES: Final = [
    _table({NAME: "t" * 53}, NAME, "at most 52"),
    _table({NAME: "a.b"}, NAME, "lower case"),
    _table({"spec": ABSENT}, "spec", "Required"),
    _table({"spec.namespace": ABSENT}, "spec.namespace", "Required"),
    _table({"spec.namespace": ""}, "spec.namespace"),
    _table({"spec.namespace": "n" * 41}, "spec.namespace", "40"),
    _table({"spec.namespace": "Tenant"}, "spec.namespace"),
    _table({"spec.durability": "durable"}, "spec.durability", "Unsupported value"),
    _table({"spec.replicas": -1}, "spec.replicas"),
    _table({"spec.replicas": 7}, "spec.replicas", "less than or equal to 6"),
    _table({"spec.replicas": 0}, "spec.replicas", "needs durability: standard"),
    _table({"spec.replicas": 0, "spec.durability": "replicated"}, "spec.replicas", "needs a standby"),
    _table({"spec.minInSync": 0}, "spec.minInSync"),
    _table({"spec.minInSync": 2}, "spec.minInSync", "set beside it"),
    _table({"spec.replicas": 1, "spec.minInSync": 2}, "spec.minInSync", "must not exceed replicas"),
    _table({"spec.maxUnshippedSeconds": 0}, "spec.maxUnshippedSeconds"),
    _table({"spec.history": {}}, "spec.history.windowSeconds", "Required"),
    _table({"spec.history": {"windowSeconds": -1}}, "spec.history.windowSeconds"),
    _table({"spec.history": {"windowSeconds": 315360001}}, "spec.history.windowSeconds", "315360000"),
    _table({"spec.history": {"windowSeconds": "1h"}}, "spec.history.windowSeconds", "integer"),
    _table({"spec.limits": {"valueBytesMax": 1048577}}, "spec.limits.valueBytesMax", "1048576"),
    _table({"spec.limits": {"valueBytesMax": 0}}, "spec.limits.valueBytesMax"),
    *(
        _table({"spec.limits": {"keyPattern": pattern}}, "spec.limits.keyPattern", "must be plain")
        for pattern in (
            r"(a)\1",
            r"\bkey",
            "[[:alpha:]]+",
            "(?i)key",
            "a(?=b)",
            "(a+)+",
            "(a|b){9}",
            r"\pL",
            "a**",
            "a{2}+",
        )
    ),
    _table({"spec.limits": {"keyPattern": "["}}, "spec.limits.keyPattern"),
    _table({"spec.limits": {"keyPattern": "k" * 257}}, "spec.limits.keyPattern", "256"),
    _table({"spec.deletionPolicy": "retain"}, "spec.deletionPolicy", "Retain"),
    _table({"spec.partitioning": {"strategy": "random"}}, "spec.partitioning.strategy", "range"),
    _table({"spec.partitioning": {"count": 0}}, "spec.partitioning.count"),
    _table({"spec.partitioning": {"count": 1025}}, "spec.partitioning.count", "1024"),
    _table({"spec.partitioning": {"strategy": "hash"}}, "spec.partitioning.count", "needs count"),
    _table(
        {"spec.partitioning": {"count": 2, "splitPoints": ["m"]}},
        "spec.partitioning.splitPoints",
        "takes no splitPoints",
    ),
    _table({"spec.partitioning": {"strategy": "range"}}, "spec.partitioning.splitPoints", "needs splitPoints"),
    _table(
        {"spec.partitioning": {"strategy": "range", "count": 2, "splitPoints": ["m"]}},
        "spec.partitioning.count",
        "takes no count",
    ),
    _table(_range([]), "spec.partitioning.splitPoints", "at least 1"),
    _table(_range(["m", "c"]), "spec.partitioning.splitPoints", "sorted"),
    _table(_range(["a", "Z"]), "spec.partitioning.splitPoints", "sorted"),
    _table(_range(["c", "c"]), "spec.partitioning.splitPoints[1]", "Duplicate"),
    _table(_range(["", "c"]), "spec.partitioning.splitPoints[0]"),
    _table(_range(["a\x00b"]), "spec.partitioning.splitPoints[0]"),
    _table(_range(["k" * 257]), "spec.partitioning.splitPoints[0]", "256"),
    _table(_range([f"{i:03}" for i in range(256)]), "spec.partitioning.splitPoints", "at most 255"),
    _table({"spec.placement": {"spread": {"zone": "DoNotSchedule"}}}, "spec.placement.spread.zone", "Required"),
    _table({"spec.placement": {"spread": {"node": "required"}}}, "spec.placement.spread.node", "Required"),
    _table({"spec.placement": {"nodeSelector": {}}}, "spec.placement.nodeSelector", "at least 1"),
    _table({"spec.placement": {"nodeSelector": {"disk": 1}}}, "spec.placement.nodeSelector.disk", "string"),
    _table({"spec.placement": {"excludePods": ["tenant"]}}, "spec.placement.excludePods[0]"),
    _table(
        {"spec.placement": {"excludePods": ["tenant-0", "tenant-0"]}}, "spec.placement.excludePods[1]", "Duplicate"
    ),
    _table({"spec.placement": {"excludeZones": []}}, "spec.placement.excludeZones", "at least 1"),
    _placed({"index": 8, "required": {"owner": "tenant-0"}}, "spec.placement.partitions", "does not have"),
    _placed(
        {"range": {"first": 0, "last": 8}, "preferred": {"zones": ["a"]}},
        "spec.placement.partitions",
        "does not have",
    ),
    _placed(
        {"range": {"first": 3, "last": 2}, "preferred": {"zones": ["a"]}},
        "spec.placement.partitions[0].range.first",
        "must not be after last",
    ),
    _placed({"required": {"owner": "tenant-0"}}, "spec.placement.partitions[0].index", "either index or range"),
    _placed(
        {"index": 0, "range": {"first": 0, "last": 1}, "required": {"owner": "tenant-0"}},
        "spec.placement.partitions[0].index",
        "either index or range",
    ),
    _placed({"index": 0}, "spec.placement.partitions[0]", "needs required or preferred"),
    _placed({"index": 0, "required": {}}, "spec.placement.partitions[0].required", "at least 1"),
    _placed({"index": -1, "required": {"owner": "tenant-0"}}, "spec.placement.partitions[0].index"),
    _placed({"index": 0, "required": {"owner": "Tenant-0"}}, "spec.placement.partitions[0].required.owner"),
    _placed(
        {"index": 0, "preferred": {"owner": "tenant-0", "pods": ["tenant-1"]}},
        "spec.placement.partitions[0].preferred.owner",
        "one of the pods",
    ),
    _placed(
        {"index": 0, "required": {"owner": "tenant-0"}},
        "spec.placement.partitions",
        "must not be among excludePods",
        excludePods=["tenant-0"],
    ),
    _placed(
        {"index": 0, "required": {"zones": ["a", "b"]}},
        "spec.placement.partitions",
        "must not all be among excludeZones",
        excludeZones=["b", "a"],
    ),
]

BAD_PARTITIONS: Final = [
    *(
        _partition({f"spec.{name}": ABSENT}, f"spec.{name}", "Required")
        for name in VALID["KVPartition"]["spec"]
        if name != "deletionPolicy"  # which has a default
    ),
    _partition({NAME: "orders-4"}, NAME, "spec.index"),
    _partition({NAME: "orders-03"}, NAME, "spec.index"),
    _partition({NAME: "other-3"}, NAME, "spec.table"),
    _partition({"spec.index": -1, NAME: "orders--1"}, "spec.index"),
    _partition({"spec.index": 8, NAME: "orders-8"}, "spec.index", "less than partitioning.count"),
    _partition(_range(["b", "m"]), "spec.index", "splitPoints"),
    _partition({"spec.partitioning": {"strategy": "hash"}}, "spec.partitioning.count", "needs count"),
    _partition({"spec.partitioning.splitPoints": ["m"]}, "spec.partitioning.splitPoints", "takes no splitPoints"),
    _partition({"spec.partitioning.strategy": "range"}, "spec.partitioning.splitPoints", "needs splitPoints"),
    _partition(
        {**_range(["b", "m", "x"]), "spec.partitioning.count": 8}, "spec.partitioning.count", "takes no count"
    ),
    _partition(_range(["m", "b", "x"]), "spec.partitioning.splitPoints", "sorted"),
    _partition({"spec.durability": "durable"}, "spec.durability", "Unsupported value"),
    _partition({"spec.minInSync": 7}, "spec.minInSync"),
    _partition({"spec.replicas": []}, "spec.replicas", "at least 1"),
    _partition({"spec.replicas": ["a-0", "a-0"]}, "spec.replicas", "twice"),
    _partition({"spec.replicas": ["a_0"]}, "spec.replicas[0]"),
    _partition({"spec.replicas": [f"a-{i}" for i in range(17)]}, "spec.replicas", "at most 16"),
    _partition({"spec.deletionPolicy": "Keep"}, "spec.deletionPolicy", "Retain"),
    _partition({"spec.limits": {}}, "spec.limits.valueBytesMax", "Required"),
    _partition({"spec.history": {}}, "spec.history.windowSeconds", "Required"),
    _partition({"spec.history": {"windowSeconds": -1}}, "spec.history.windowSeconds"),
]

BAD_OPERATIONS: Final = [
    _operation({NAME: "n" * 201}, NAME, "at most 200"),
    _operation({"spec.type": ABSENT}, "spec.type", "Required"),
    _operation({"spec.type": "rewind"}, "spec.type", "switchover"),
    _operation({"spec.table": ABSENT}, "spec.table", "Required"),
    _operation({"spec.table": "Orders"}, "spec.table"),
    _operation({"spec.partition": ABSENT}, "spec.partition", "a switchover needs one"),
    _operation({"spec.partition": "others-3"}, "spec.partition", "one of the table's"),
    _operation({"spec.switchover": {"to": ""}}, "spec.switchover.to"),
    _operation({"spec.type": "verify", "spec.switchover": {}}, "spec.switchover", "only beside type: switchover"),
    _operation({"spec.drill": {"fault": "kill"}}, "spec.drill", "only beside type: drill"),
    _operation({"spec.type": "drill"}, "spec.drill", "needs its fault"),
    _operation({"spec.ttlSecondsAfterFinished": 59}, "spec.ttlSecondsAfterFinished"),
    _drill({}, "spec.drill.fault", "Required"),
    _drill({"fault": "unplug"}, "spec.drill.fault", "cutFromPeers"),
    _drill({"fault": "kill", "putsPerSecond": 501}, "spec.drill.putsPerSecond", "500"),
    _drill({"fault": "kill", "putsPerSecond": 9}, "spec.drill.putsPerSecond", "10"),
    _drill({"fault": "kill", "rtoSecondsMax": 61}, "spec.drill.rtoSecondsMax", "60"),
    _drill({"fault": "kill", "rtoSecondsMax": 0}, "spec.drill.rtoSecondsMax", "1"),
    _table({"spec.drills": [{"fault": "kill"}]}, "spec.drills[0].schedule", "Required"),
    _table({"spec.drills": [{"schedule": "0 3 * * 1"}]}, "spec.drills[0].fault", "Required"),
    _table({"spec.drills": [{"schedule": "every day at 3", "fault": "kill"}]}, "spec.drills[0].schedule"),
    _table({"spec.drills": [{"schedule": "0 3 * * 1", "fault": "kill"}] * 9}, "spec.drills", "8"),
]

BAD: Final = [*BAD_NAMESPACES, *BAD_TABLES, *BAD_PARTITIONS, *BAD_OPERATIONS]

GOOD: Final = [
    _operation({"spec.switchover": {"to": "tenant-1"}}),
    _operation({"spec": {"type": "verify", "table": "orders"}}),
    _drill({"fault": "deletePod", "putsPerSecond": 500, "rtoSecondsMax": 60}),
    _table({"spec.drills": [{"schedule": "*/15 3-5 * * MON,WED", "fault": "freeze", "rtoSecondsMax": 9}]}),
    _namespace({}),
    _namespace({"spec": ABSENT}),
    _namespace({NAME: "n" * 40}),
    _namespace({"spec.shards": {"replicas": 1000, "image": "registry.example:5000/fencekv:1@sha256:00"}}),
    _namespace({"spec.shards.storage": {"size": 1073741824, "storageClassName": "fast"}}),
    _namespace({"spec.shards.storage": {"size": "1.5Ti"}}),
    _namespace({"spec.shards.resources": {"limits": {"cpu": 2, "memory": "1Gi"}}}),
    _namespace({"spec.shards.nodeSelector": {"disk": "ssd"}}),
    _namespace({"spec.shards.tolerations": [{"operator": "Exists"}, {"key": "a", "value": "b"}]}),
    _namespace({"spec.shards.topologySpread": []}),
    _namespace({"spec.lease": {"durationSeconds": 3, "validSeconds": 2}}),
    _namespace({"spec.lease": {"durationSeconds": 120, "validSeconds": 80, "renewSeconds": 40}}),
    _namespace({"spec.defaults": {"durability": "standard", "replicas": 1}}),
    _namespace({"spec.quota": {"tables": 0}}),
    _table({}),
    _table({NAME: "t" * 52}),
    _table({"spec.partitioning": {"count": 1024}}),
    _table(_range(["a"])),
    _table(_range(["A", "a", "b", "ba", "\u00e9", "\U0001f600"])),
    _table(_range([f"{i:03}" + "k" * 253 for i in range(255)])),
    _table({"spec.replicas": 0, "spec.durability": "standard"}),
    _table({"spec.replicas": 6, "spec.minInSync": 6}),
    _table({"spec.minInSync": 1}),
    _table({"spec.placement": {"spread": {"zone": "Required", "node": "Ignored"}}}),
    _placed({"index": 7, "required": {"owner": "tenant-0", "pods": ["tenant-0", "tenant-1", "tenant-2"]}}),
    _placed(
        {"range": {"first": 0, "last": 7}, "preferred": {"zones": ["a", "b"]}},
        nodeSelector={"disk": "fast"},
        excludePods=["tenant-1"],
        excludeZones=["b"],
    ),
    _table(
        {
            **_range(["g", "p"]),
            "spec.placement": {"partitions": [{"index": 2, "preferred": {"owner": "tenant-0"}}]},
        }
    ),
    *(
        _table({"spec.limits": {"keyPattern": pattern}})
        for pattern in (
            "",
            "[a-z]+/[0-9]{1,9}",
            r"order-\d+",
            r"(a|b)?c\.d",
            r"(?:x|y)-.*",
            "é+",
            "a+?b??",
            "[*+]",
            r"\*+",
        )
    ),
    _table({"spec.durability": "standard", "spec.replicas": 1, "spec.minInSync": 2}),
    _partition({}),
    _partition({**_range(["b", "m", "x"])}),
    _partition({"spec.durability": "standard", "spec.minInSync": 0, "spec.replicas": ["tenant-0"]}),
    _partition({NAME: "orders-1023", "spec.index": 1023, "spec.partitioning.count": 1024}),
    _partition({NAME: "a-1-2", "spec.table": "a-1", "spec.index": 2}),
]


CONDITION: Final = {
    "type": "Ready",
    "status": "True",
    "lastTransitionTime": "2026-01-02T03:04:05Z",
    "reason": "OwnerServes",
    "message": "",
}

BAD_STATUSES: Final = [
    _operation({"status.phase": "Done"}, "status.phase", "Succeeded"),
    _operation({"status.result": {"lost": -1}}, "status.result.lost"),
    _partition({"status.epoch": -1}, "status.epoch"),
    _partition({"status.epoch": 2147483648}, "status.epoch"),
    _partition({"status.epoch": "4"}, "status.epoch", "integer"),
    _partition({"status.token": "4"}, "status.token"),
    _partition({"status.lag": -1}, "status.lag"),
    _partition({"status.phase": "failing over"}, "status.phase"),
    _partition({"status.lastFailover": {"when": "yesterday"}}, "status.lastFailover.when", "date-time"),
    _partition({"status.lastFailover": {"seconds": -0.5}}, "status.lastFailover.seconds"),
    _partition({"status.inSync": "tenant-0"}, "status.inSync", "array"),
    _partition({"status.conditions": [{**CONDITION, "status": "Yes"}]}, "status.conditions[0].status", "Unknown"),
    _partition({"status.conditions": [{**CONDITION, "reason": "two words"}]}, "status.conditions[0].reason"),
    _partition({"status.conditions": [{"type": "Ready"}]}, "status.conditions[0].message", "Required"),
    _partition({"status.conditions": [CONDITION, CONDITION]}, "status.conditions[1]", "Duplicate"),
]

# What may never change: the object, what it is changed to, the field that the refusal names.
IMMUTABLE: Final = [
    _operation({"spec.partition": "orders-4"}, "spec", "spec is immutable"),
    _operation({"spec.switchover": {"to": "tenant-1"}}, "spec", "spec is immutable"),
    _namespace({"spec.shards.storage": {"size": "1023Mi"}}, "spec.shards.storage.size", "may only grow"),
    _namespace({"spec.shards.storage": {"size": 1}}, "spec.shards.storage.size", "may only grow"),
    _namespace(
        {"spec.shards.storage": {"storageClassName": "fast"}},
        "spec.shards.storage.storageClassName",
        "storageClassName is immutable",
    ),
    _table({"spec.namespace": "other"}, "spec.namespace", "namespace is immutable"),
    _table({"spec.partitioning.count": 2}, "spec.partitioning", "partitioning is immutable"),
    _partition({"spec.namespace": "other"}, "spec.namespace", "namespace is immutable"),
    _partition({"spec.table": "other"}, "spec.table", "table is immutable"),
    _partition({"spec.tableUID": "5f0c7e3e"}, "spec.tableUID", "tableUID is immutable"),
    _partition({"spec.index": 4}, "spec.index", "index is immutable"),
    _partition({"spec.partitioning.count": 9}, "spec.partitioning", "partitioning is immutable"),
]

MUTABLE: Final = [
    _namespace({"spec.shards.replicas": 5}),
    _namespace({"spec.lease": {"durationSeconds": 3, "validSeconds": 2}}),
    _namespace({"spec.shards.storage": {"size": "1.5Gi"}}),
    _namespace({"spec.shards.storage": {"size": 2147483648}}),
    _namespace({"spec.paused": True}),
    _namespace({"spec.replaceAfterSeconds": 0}),
    _table({"spec.paused": True}),
    _table({"spec.durability": "standard", "spec.replicas": 0}),
    _table({"spec.history": {"windowSeconds": 0}}),
    _table({"spec.placement": {"excludePods": ["tenant-2"]}}),
    _table({"spec.history": {"windowSeconds": 315360000}}),
    _partition({"spec.history": {"windowSeconds": 60}}),
    _partition({"spec.durability": "standard", "spec.replicas": ["tenant-5"], "spec.minInSync": 0}),
    _partition({"spec.deletionPolicy": "Delete", "spec.limits": {"valueBytesMax": 1, "keyPattern": "a"}}),
]

UNKNOWN_FIELDS: Final = [
    _namespace({"spec.objectStore": {"url": "s3://bucket"}}, "spec.objectStore"),
    _namespace({"spec.shards.replica": 3}, "spec.shards.replica"),
    _namespace({"spec.lease.D": 6}, "spec.lease.D"),
    _table({"spec.schema": {"type": "object"}}, "spec.schema"),
    _table({"spec.limits": {"keyBytesMax": 9}}, "spec.limits.keyBytesMax"),
    _partition({"spec.owner": "tenant-0"}, "spec.owner"),
]
