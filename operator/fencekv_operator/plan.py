"""What is to be done, decided from what is wanted and what is there. Nothing is done here.

Invariants:
  * Level-based: a plan depends on what is seen now, never on what happened before. Planning again after any part
    of a plan was carried out, in its order, leads to the same end.
  * Whatever is as it should be gets no action, so that a settled world plans nothing.
  * Order carries safety: the finalizer is set before the first thing that it guards is made, and taken away after
    the last one is gone; a partition's record is made before its status says that there is one.
  * The record of a partition whose status has an epoch is never made here: if it is absent, it was lost.
  * A pod that partitions still need is not scaled away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from fencekv.kube import (
    CLAIMS,
    KV_NAMESPACES,
    KV_PARTITIONS,
    KV_TABLES,
    LEASES,
    STATEFUL_SETS,
    Resource,
)
from fencekv.leases import GROUP, KIND_SESSION, LABEL_KIND, LABEL_NAMESPACE
from fencekv_operator import resources, status
from fencekv_operator.actions import (
    Action,
    Create,
    Delete,
    DeleteAll,
    DeleteOrphan,
    DropLease,
    Emit,
    MakeLease,
    PatchStatus,
    RestartPod,
    Update,
)
from fencekv_operator.compare import matches, merge_patch
from fencekv_operator.events import condition_notices, notice
from fencekv_operator.facts import PartitionFacts
from fencekv_operator.placing import Steps, placed, places, steps
from fencekv_operator.pool import Pool, pool_of
from fencekv_operator.rules import TablePlacement
from fencekv_operator.settings import (
    DELETE,
    FINALIZER,
    STANDARD,
    Identity,
    NamespaceSettings,
    OperatorSettings,
    TableSettings,
    partition_count,
)

Object = dict[str, Any]

# How long a new partition's record may take to be seen before it is made here: whoever was to make it is gone.
RECORD_SECONDS: Final = 2.0
# How long a new partition may take to be granted before its status tells that it is not yet.
MAKING_SECONDS: Final = 10.0
# "<UID of the table>/<count>": all partitions of that very table were made once. The UID keeps a copy of the
# manifest from carrying the mark into another table.
PARTITIONS_MADE: Final = f"{GROUP}/partitions-made"


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceSeen:
    """Everything there is of a KVNamespace. Values are objects as the API server gave them."""

    kvns: Object | None  # None: it does not exist, but something of it may.
    owned: Mapping[tuple[str, str], Object]  # by plural and name
    tables: Sequence[Object] = ()
    partitions: Sequence[Object] = ()
    pods: Mapping[str, Object] = field(default_factory=dict)  # by name
    claims: Mapping[str, Object] = field(default_factory=dict)  # volume claims, by name
    error: str = ""  # why the last attempt was refused; empty: it was not.


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSeen:
    """Everything there is of a KVTable, and what it shares its KVNamespace with."""

    name: str
    table: Object | None  # None: it does not exist, but partitions of it may.
    kvns: Object | None  # None: its KVNamespace does not exist.
    tables: Sequence[Object] = ()  # of the KVNamespace, this one included
    partitions: Sequence[Object] = ()  # of this table's name
    others: Sequence[Object] = ()  # partitions of the KVNamespace's other tables
    pods: Mapping[str, Object] = field(default_factory=dict)  # of the KVNamespace, by name
    nodes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # labels, by the name of the node
    away: frozenset[str] = frozenset()  # pods whose replicas are to be made anew elsewhere
    settling: bool = False  # the pool is so young that pods without a node may yet get one
    error: str = ""  # why the last attempt was refused; empty: it was not.


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionSeen:
    """Everything there is of a partition."""

    name: str
    namespace: str
    partition: Object | None  # None: it does not exist, but its Lease may.
    table_gone: bool = False  # its KVTable is not among those that are known
    facts: PartitionFacts | None = None  # None: the failover loop knows nothing of it yet.
    failover: status.Failover | None = None  # None: none that the status does not show already.
    age_seconds: float = math.inf
    refresh: bool = False  # token and lag alone are reason enough to write


def plan_namespace(seen: NamespaceSeen, operator: OperatorSettings, *, now: str) -> list[Action]:
    """What is to be done for a KVNamespace."""
    if seen.kvns is None:
        return _orphans(seen.owned)
    kvns = NamespaceSettings.parse(seen.kvns, operator)
    if kvns.identity.deleting and not kvns.paused:
        return _namespace_deletion(kvns, seen)
    pool = pool_of(
        kvns,
        stateful_set=seen.owned.get((STATEFUL_SETS.plural, kvns.name)),
        pods=seen.pods,
        claims=seen.claims,
        partitions=seen.partitions,
        placed={each["metadata"]["name"]: placed(each) for each in seen.partitions},
    )
    actions, state = ([], pool.state) if kvns.paused else _namespace_actions(kvns, seen, operator, pool)
    patch = status.namespace_status(
        seen.kvns,
        state,
        tables=len(seen.tables),
        partitions=seen.partitions,
        paused=kvns.paused,
        error="" if kvns.paused else seen.error,
        now=now,
    )
    return actions + status_actions(KV_NAMESPACES, seen.kvns, patch)


def _namespace_actions(
    kvns: NamespaceSettings, seen: NamespaceSeen, operator: OperatorSettings, pool: Pool
) -> tuple[list[Action], status.PoolState]:
    """Objects, then the restart of a pod, and last the volumes, whose growth may be refused for good."""
    assert seen.kvns is not None
    actions = finalizer_action(KV_NAMESPACES, kvns.identity, wanted=kvns.deletion_policy == DELETE)
    wanted = resources.namespace_objects(
        kvns, operator, replicas=pool.replicas, unavailable_max=pool.unavailable_max
    )
    as_asked = False
    for resource, body in wanted:
        steps = ensure(resource, body, seen.owned.get((resource.plural, body["metadata"]["name"])))
        actions += steps
        as_asked = not steps  # of the StatefulSet, which is the last
    # What an earlier namesake left behind stands in the way of ours.
    actions += _orphans({key: each for key, each in seen.owned.items() if owner_uid(each) != kvns.identity.uid})
    if pool.rollout.restart is not None and as_asked:
        shard = pool.rollout.restart.shard
        text = f"restarts {shard.pod}: {pool.rollout.updated} of {pool.rollout.wanted} shards are updated"
        told = notice(seen.kvns, warning=False, reason="RestartingShard", message=text, once=shard.uid)
        namespace = kvns.identity.namespace
        actions.append(RestartPod(namespace=namespace, kvns=kvns.name, restart=pool.rollout.restart, notice=told))
    # What was seen of the pods is of the template before: nobody shall take it for the end of this change.
    state = pool.state if as_asked else replace(pool.state, rolling="the StatefulSet is being changed")
    return [*actions, *pool.growth], state


def plan_table(seen: TableSeen, operator: OperatorSettings, *, now: str) -> list[Action]:
    """What is to be done for a KVTable: its partitions, where they are, and its status."""
    if seen.table is None:
        return _orphans({(KV_PARTITIONS.plural, each["metadata"]["name"]): each for each in seen.partitions})
    identity = Identity.parse(seen.table)
    paused = _is_paused(seen.table, seen.kvns)
    mine = {each["spec"]["index"]: each for each in seen.partitions if owner_uid(each) == identity.uid}
    policy = seen.table["spec"].get("deletionPolicy")
    if identity.deleting and not paused:
        return _table_deletion(identity, policy, mine)
    actions: list[Action] = []
    if not paused:
        actions += finalizer_action(KV_TABLES, identity, wanted=policy == DELETE)
        strangers = [each for each in seen.partitions if owner_uid(each) != identity.uid]
        actions += _orphans({(KV_PARTITIONS.plural, each["metadata"]["name"]): each for each in strangers})
    obstacle = _obstacle(seen, operator, mine)
    stalled = obstacle
    if seen.error and obstacle is None:
        stalled = status.Condition(type="Stalled", status=True, reason="Refused", message=seen.error)
    short, unprotected, going = "", False, None
    if seen.kvns is not None:
        kvns = NamespaceSettings.parse(seen.kvns, operator)
        table = TableSettings.parse(seen.table, kvns)
        unprotected = table.durability == STANDARD and table.standbys == 0
        if table.size > len(kvns.pods):
            short = f"{table.size} replicas are wanted, there are {len(kvns.pods)} shards"
        if obstacle is None and not paused:
            more, going = _partition_actions(seen, kvns, table, mine)
            actions += more
    patch = status.table_status(
        seen.table,
        list(mine.values()),
        wanted=partition_count(seen.table),
        unprotected=unprotected,
        stalled=stalled,
        short=short,
        placing=going,
        paused=paused,
        now=now,
    )
    return actions + status_actions(KV_TABLES, seen.table, patch)


def _is_paused(table: Mapping[str, Any], kvns: Mapping[str, Any] | None) -> bool:
    return any((each.get("spec") or {}).get("paused", False) for each in (table, kvns or {}))


def plan_partition(seen: PartitionSeen, *, now: str) -> list[Action]:
    """What is to be done for a partition: its record, once, and its status."""
    partition = seen.partition
    if partition is None:
        return [DropLease(namespace=seen.namespace, partition=seen.name)]
    actions: list[Action] = []
    has_epoch = "epoch" in (partition.get("status") or {})
    if "deletionTimestamp" not in partition["metadata"]:
        if seen.table_gone:
            actions += _orphans({(KV_PARTITIONS.plural, seen.name): partition})
        is_recorded = seen.facts is not None and (seen.facts.lease is not None or seen.facts.is_new)
        if not has_epoch and not is_recorded and seen.age_seconds >= RECORD_SECONDS:
            actions.append(MakeLease(partition=partition))
    patch = status.partition_status(partition, seen.facts, seen.failover, now=now, refresh=seen.refresh)
    if not has_epoch and seen.age_seconds < MAKING_SECONDS and not _is_granted(seen.facts):
        return actions  # Its record and its first owner are on their way: one status, when they are there.
    return actions + status_actions(KV_PARTITIONS, partition, patch)


def _is_granted(facts: PartitionFacts | None) -> bool:
    return facts is not None and facts.lease is not None and facts.lease.session is not None


def finalizer_action(resource: Resource, identity: Identity, *, wanted: bool) -> list[Action]:
    """Sets or takes away our finalizer. A compare-and-swap: a merge patch replaces the whole list."""
    if wanted == (FINALIZER in identity.finalizers):
        return []
    others = [each for each in identity.finalizers if each != FINALIZER]
    finalizers = [*others, FINALIZER] if wanted else others
    meta = {"finalizers": finalizers, "resourceVersion": identity.resource_version}
    return [Update(resource=resource, namespace=identity.namespace, name=identity.name, patch={"metadata": meta})]


def ensure(resource: Resource, body: Object, seen: Object | None) -> list[Action]:
    """Makes an object, or brings our fields of it up to date."""
    namespace, name = body["metadata"]["namespace"], body["metadata"]["name"]
    if seen is None:
        return [Create(resource=resource, namespace=namespace, body=body)]
    if owner_uid(seen) == "":
        # Somebody else's, whom we do not rob. The server refuses, and the status shows that the name is taken.
        return [Create(resource=resource, namespace=namespace, body=body)]
    if "deletionTimestamp" in seen["metadata"] or owner_uid(seen) != owner_uid(body):
        return []  # It goes first; its deletion brings us back here.
    ours = _mutable(resource, body)
    marks = [each["metadata"].get("annotations", {}).get(resources.SPEC_HASH) for each in (body, seen)]
    if marks[0] == marks[1] and matches(ours, seen):
        return []
    patch = {**merge_patch(ours, seen), "apiVersion": body["apiVersion"], "kind": body["kind"]}
    patch["metadata"] = {
        "resourceVersion": seen["metadata"]["resourceVersion"],
        "labels": body["metadata"]["labels"],
        "annotations": body["metadata"]["annotations"],
    }
    return [Update(resource=resource, namespace=namespace, name=name, patch=patch)]


def status_actions(resource: Resource, obj: Object, patch: Object | None) -> list[Action]:
    """Writes a status and reports the conditions that it changes."""
    if patch is None:
        return []
    meta = obj["metadata"]
    write = PatchStatus(resource=resource, namespace=meta["namespace"], name=meta["name"], status=patch)
    return [write, *(Emit(notice=each) for each in condition_notices(obj, patch["conditions"]))]


def owner_uid(obj: Mapping[str, Any]) -> str:
    """UID of an object's controlling owner; empty if it has none."""
    return str((_controller(obj) or {}).get("uid", ""))


def _namespace_deletion(kvns: NamespaceSettings, seen: NamespaceSeen) -> list[Action]:
    """Tables, then pods, then volumes, then our finalizer. Under Retain nothing holds the deletion up."""
    identity = kvns.identity
    release = finalizer_action(KV_NAMESPACES, identity, wanted=False)
    if kvns.deletion_policy != DELETE or not release:
        return release
    if seen.tables or seen.partitions:
        return [_delete(KV_TABLES, each) for each in seen.tables if "deletionTimestamp" not in each["metadata"]]
    pool = seen.owned.get((STATEFUL_SETS.plural, kvns.name))
    if pool is not None:
        # Its absence, once seen, brings us back for the rest.
        return [] if "deletionTimestamp" in pool["metadata"] else [_delete(STATEFUL_SETS, pool)]
    sessions = f"{LABEL_NAMESPACE}={kvns.name},{LABEL_KIND}={KIND_SESSION}"
    return [
        DeleteAll(resource=CLAIMS, namespace=identity.namespace, labels=f"{LABEL_NAMESPACE}={kvns.name}"),
        DeleteAll(resource=LEASES, namespace=identity.namespace, labels=sessions),
        *release,
    ]


def _table_deletion(identity: Identity, policy: str | None, mine: Mapping[int, Object]) -> list[Action]:
    """Under Delete the partitions go before our finalizer does; under Retain nothing holds the deletion up."""
    release = finalizer_action(KV_TABLES, identity, wanted=False)
    if not release:
        return []
    actions: list[Action] = []
    for each in mine.values():
        # The policy that holds at the end, because a shard reads it from the last it sees of the partition.
        actions += _partition_update(each, {"deletionPolicy": policy})
    if policy != DELETE:
        return actions + release
    if not mine:
        return release
    going = [each for each in mine.values() if "deletionTimestamp" not in each["metadata"]]
    return [*actions, *(_delete(KV_PARTITIONS, each) for each in going)]


def _obstacle(seen: TableSeen, operator: OperatorSettings, mine: Mapping[int, Object]) -> status.Condition | None:
    """Why nothing can be made of a table; None: nothing is in the way."""

    def stalled(reason: str, message: str) -> status.Condition:
        return status.Condition(type="Stalled", status=True, reason=reason, message=message)

    assert seen.table is not None
    if seen.kvns is None:
        return stalled("NamespaceNotFound", f"KVNamespace {seen.table['spec']['namespace']} does not exist")
    kvns = NamespaceSettings.parse(seen.kvns, operator)
    if kvns.identity.deleting:
        return stalled("NamespaceDeleting", f"KVNamespace {kvns.name} is being deleted")
    over = _over_quota(seen, kvns)
    if over:
        return stalled("QuotaExceeded", over)
    count = partition_count(seen.table)
    lost = [resources.partition_name(seen.name, index) for index in range(count) if index not in mine]
    if lost and (seen.table["metadata"].get("annotations") or {}).get(PARTITIONS_MADE) == _made(seen.table):
        return stalled(
            "PartitionMissing",
            f"deleted by somebody: {', '.join(lost[:5])}. To have it made anew, empty, remove the annotation "
            f"{PARTITIONS_MADE} from the table",
        )
    return None


def _made(table: Mapping[str, Any]) -> str:
    return f"{table['metadata']['uid']}/{partition_count(table)}"


def _over_quota(seen: TableSeen, kvns: NamespaceSettings) -> str:
    """Which quota a table would exceed; empty: none. Older tables go first, and what was made stays."""
    started = {owner_uid(each) for each in (*seen.partitions, *seen.others)}

    def age(table: Object) -> tuple[bool, str, str]:
        meta = table["metadata"]
        return meta["uid"] not in started, meta.get("creationTimestamp", ""), meta["name"]

    tables = partitions = 0
    for table in sorted(seen.tables, key=age):
        count, stands = partition_count(table), table["metadata"]["uid"] in started
        over = ""
        if not stands and kvns.tables_max is not None and tables >= kvns.tables_max:
            over = f"tables: the quota of {kvns.tables_max} is used up"
        elif not stands and kvns.partitions_max is not None and partitions + count > kvns.partitions_max:
            over = (
                f"partitions: {count} more would exceed the quota of {kvns.partitions_max}, {partitions} are used"
            )
        if table["metadata"]["name"] == seen.name:
            return over
        if not over:
            tables, partitions = tables + 1, partitions + count
    return ""


def _partition_actions(
    seen: TableSeen, kvns: NamespaceSettings, table: TableSettings, mine: Mapping[int, Object]
) -> tuple[list[Action], status.Placing]:
    spots = places(kvns.pods, seen.pods, nodes=seen.nodes, away=seen.away)
    going = steps(table, mine, seen.others, spots)
    actions: list[Action] = []
    for index, replicas in going.replicas.items():
        actions += _partition_update(mine[index], resources.partition_spec(table, index=index, replicas=replicas))
    # A placement stands for good, so it waits a moment for the nodes to be known.
    chooses = len(spots) > table.size or table.placement != TablePlacement()
    if not (seen.settling and chooses and not all(spot.node for spot in spots)):
        for index, replicas in going.made.items():
            body = resources.partition_object(table, index=index, replicas=replicas)
            actions.append(Create(resource=KV_PARTITIONS, namespace=table.identity.namespace, body=body))
    notes = (seen.table or {})["metadata"].get("annotations") or {}
    if len(mine) == table.partitions and notes.get(PARTITIONS_MADE) != _made(seen.table or {}):
        patch = {"metadata": {"annotations": {PARTITIONS_MADE: _made(seen.table or {})}}}
        actions.append(
            Update(resource=KV_TABLES, namespace=table.identity.namespace, name=table.name, patch=patch)
        )
    return actions, _placing(table, going)


def _placing(table: TableSettings, going: Steps) -> status.Placing:
    pending = tuple(resources.partition_name(table.name, index) for index in going.pending)
    return status.Placing(pending=pending, missing=going.missing, size=table.size)


def _partition_update(partition: Mapping[str, Any], spec: Mapping[str, Any]) -> list[Action]:
    changed = {key: value for key, value in spec.items() if not matches(value, partition["spec"].get(key))}
    meta = partition["metadata"]
    if not changed or "deletionTimestamp" in meta:
        return []
    patch = {"metadata": {"resourceVersion": meta["resourceVersion"]}, "spec": changed}
    return [Update(resource=KV_PARTITIONS, namespace=meta["namespace"], name=meta["name"], patch=patch)]


def _delete(resource: Resource, obj: Mapping[str, Any]) -> Delete:
    meta = obj["metadata"]
    return Delete(resource=resource, namespace=meta["namespace"], name=meta["name"], uid=meta["uid"])


def _orphans(objects: Mapping[tuple[str, str], Object]) -> list[Action]:
    """Deletes what a gone owner left behind. On most clusters the garbage collector was faster."""
    by_plural = {resource.plural: resource for resource in (*resources.OWNED, KV_PARTITIONS)}
    by_kind = {resource.kind: resource for resource in (KV_NAMESPACES, KV_TABLES)}
    actions: list[Action] = []
    for (plural, name), obj in objects.items():
        owner = _controller(obj)
        if owner is None or owner["kind"] not in by_kind or "deletionTimestamp" in obj["metadata"]:
            continue
        actions.append(
            DeleteOrphan(
                resource=by_plural[plural],
                namespace=obj["metadata"]["namespace"],
                name=name,
                uid=obj["metadata"]["uid"],
                owner_resource=by_kind[owner["kind"]],
                owner_name=owner["name"],
                owner_uid=owner["uid"],
            )
        )
    return actions


def _controller(obj: Mapping[str, Any]) -> Object | None:
    owners = obj["metadata"].get("ownerReferences") or ()
    return next((owner for owner in owners if owner.get("controller")), None)


def _mutable(resource: Resource, body: Object) -> Object:
    """Our fields that may still change once the object is there."""
    ours = {key: value for key, value in body.items() if key not in {"metadata", "apiVersion", "kind", "roleRef"}}
    if resource is STATEFUL_SETS:
        fixed = resources.STATEFUL_SET_FIXED
        ours["spec"] = {key: value for key, value in ours["spec"].items() if key not in fixed}
    return ours
