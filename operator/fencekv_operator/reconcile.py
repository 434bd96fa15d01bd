"""Brings the cluster to what the custom resources ask for: one queue of keys, one plan at a time for each.

Nothing here decides. `plan` does, purely; this module gathers what a plan needs, carries it out in order, and
comes back when something changed, something failed, or a minute passed.

Invariants:
  * It acts only while this operator leads. Who begins to lead lists everything first.
  * A plan is carried out in its order and given up at the first action that fails. Only the partitions of a table,
    of which none waits for another one, are made side by side.
  * A key is worked on by one worker at a time, and so are all tables of a KVNamespace, which share its quota and
    its pods.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from fencekv.clock import Chance, Clock
from fencekv.kube import (
    CLAIMS,
    KV_NAMESPACES,
    KV_PARTITIONS,
    KV_TABLES,
    PODS,
    STATEFUL_SETS,
    Kube,
    KubeAlreadyExists,
    KubeBusy,
    KubeConflict,
    KubeError,
    KubeNotFound,
    Resource,
    Unclear,
)
from fencekv.leases import KIND_SHARD, LABEL_KIND, LABEL_NAMESPACE
from fencekv_operator import plan, resources
from fencekv_operator.absence import LOOK_SECONDS
from fencekv_operator.actions import Action, Create, Delete, Emit, MakeLease, PatchStatus, Update
from fencekv_operator.cache import Cache, kvns_of
from fencekv_operator.events import Notice, transition_notice
from fencekv_operator.facts import PartitionFacts, Transition
from fencekv_operator.nodes import Nodes
from fencekv_operator.perform import Performer
from fencekv_operator.pool_looks import PoolLooks
from fencekv_operator.preferences import Preferences
from fencekv_operator.settings import NamespaceSettings, OperatorSettings
from fencekv_operator.status import Failover, condition_status, is_failover, timestamp
from fencekv_operator.workqueue import WorkQueue

Object = dict[str, Any]
Key = tuple[str, str, str]  # sort, Kubernetes namespace, name
log = logging.getLogger(__name__)

NAMESPACE: Final = "namespace"
TABLE: Final = "table"
PARTITION: Final = "partition"

WORKERS: Final = 8
CREATIONS_AT_ONCE: Final = 16
RESYNC_SECONDS: Final = 60.0
LEAD_POLL_SECONDS: Final = 0.25
LIST_SECONDS: Final = 10.0
# Many partitions change at once; their table and namespace are worked out once for a handful of changes.
TABLE_DELAY_SECONDS: Final = 0.05
NAMESPACE_DELAY_SECONDS: Final = 0.2
# The more there are, the longer: to plan a table takes some 30 us a partition of its namespace.
DELAY_SECONDS_PER_PARTITION: Final = 0.0005
# What a partition shows changes several times while it changes hands, and who takes it over needs the API server
# meanwhile: once, and after that, is enough; of very many, later still.
SHOW_SECONDS_MIN: Final = 0.25
SHOW_SECONDS_PER_PARTITION: Final = 0.002
DELAY_SECONDS_MAX: Final = 2.0
# How long a new pool's pods may take to get nodes before partitions are placed without knowing them.
SETTLING_SECONDS: Final = 30.0
# What is not ready is looked at again, because the failover loop tells us of what it did, not of all it waits for.
UNREADY_SECONDS: Final = 1.0
CROWDED_SECONDS: Final = 0.5
# A refusal that may be a race is shown in the status only when it repeats.
RACES_MAX: Final = 3

WATCHED: Final[tuple[tuple[Resource, str], ...]] = (
    (KV_NAMESPACES, ""),
    (KV_TABLES, ""),
    (STATEFUL_SETS, LABEL_NAMESPACE),
    (PODS, f"{LABEL_KIND}={KIND_SHARD}"),
)
RELISTED: Final = (
    *WATCHED,
    (KV_PARTITIONS, ""),  # which the failover loop watches
    *((resource, LABEL_NAMESPACE) for resource in resources.OWNED if resource is not STATEFUL_SETS),
    (CLAIMS, LABEL_NAMESPACE),
)


class Reconciler:
    """The work queue, the cache and the periodic list."""

    def __init__(
        self,
        *,
        kube: Kube,
        clock: Clock,
        chance: Chance,
        operator: OperatorSettings,
        facts: Callable[[str, str], PartitionFacts | None],
        leading: Callable[[], bool],
        post: Callable[[Notice], None],
        kube_namespace: str | None = None,
        resync_seconds: float = RESYNC_SECONDS,
        answered_at: Callable[[], float] | None = None,
        born: Callable[[Object], bool] = lambda _: False,
        crowded: Callable[[], bool] = lambda: False,
    ) -> None:
        """`facts` of a partition, by Kubernetes namespace and name. `kube_namespace` None: all of them.

        `born` is told of each KVPartition that was made; whether the failover loop makes its record.
        `crowded`: whether so many change hands that what partitions show is to wait.
        `answered_at`: when the API server last answered a quorum read, by `clock`; None: it always does.
        """
        self.cache = Cache()
        self.queue: WorkQueue[Key] = WorkQueue(chance=chance)
        self.performed = self.failed = 0
        self._kube, self._clock, self._operator = kube, clock, operator
        self._facts, self._leading, self._post, self._crowded = facts, leading, post, crowded
        self._kube_namespace, self._resync_seconds = kube_namespace, resync_seconds
        self._performer = Performer(kube=kube, learn=self._learn, post=post, born=born)
        self._errors: dict[Key, str] = {}
        self._failovers: dict[str, Failover] = {}  # by partition UID, until a status shows it
        self._refresh: set[Key] = set()
        self._pools = PoolLooks(
            cache=self.cache,
            kube=kube,
            clock=clock,
            look=self._performer.look,
            learn=self._learn,
            answered_at=answered_at or clock.now,
        )
        self._nodes = Nodes(kube, clock)
        self.preferences = Preferences(
            cache=self.cache,
            operator=operator,
            nodes=lambda: self._nodes.labels,
            away=self._pools.away,
        )
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}
        self._synced = False

    def observe(self, resource: Resource, change: str, obj: Object) -> None:
        """Takes a change that a watch or a write showed, and queues whom it concerns."""
        meta = obj["metadata"]
        namespace = meta.get("namespace", "")
        if change == "DELETED":
            if self.cache.drop(resource, namespace, meta["name"], uid=meta["uid"]) is not None:
                self._concerned(resource, obj, gone=True)
        elif self.cache.put(resource, obj):
            if resource is PODS:
                self._pools.observe(namespace, kvns_of(obj), obj)
            self._concerned(resource, obj)

    def on_change(self, namespace: str, partition: str) -> None:
        """The failover loop knows something new of a partition."""
        seen = self.cache.get(KV_PARTITIONS, namespace, partition)
        others = self.cache.count_of_kvns(KV_PARTITIONS, namespace, kvns_of(seen)) if seen is not None else 0
        delay = min(DELAY_SECONDS_MAX, max(SHOW_SECONDS_MIN, SHOW_SECONDS_PER_PARTITION * others))
        self.queue.add((PARTITION, namespace, partition), delay_seconds=delay)

    def on_transition(self, namespace: str, transition: Transition) -> None:
        """The failover loop carried out an owner change."""
        partition = self.cache.get(KV_PARTITIONS, namespace, transition.partition)
        if is_failover(transition):
            when = timestamp(self._clock.unix())
            self._failovers[transition.partition_uid] = Failover(transition=transition, when=when)
        told = transition_notice(partition, transition) if partition is not None else None
        if told is not None:
            self._post(told)
        self.on_change(namespace, transition.partition)

    async def run(self) -> None:
        """Works until it is cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._lead(), name="reconcile-lead")
                for number in range(WORKERS):
                    group.create_task(self._work(), name=f"reconcile-{number}")
        finally:
            self.queue.close()

    async def resync(self) -> None:
        """Lists everything and queues everything."""
        for resource, labels in RELISTED:
            since = self.cache.tick
            listing = await self._kube.list(resource, self._kube_namespace, labels=labels, timeout=LIST_SECONDS)
            self.cache.relisted(resource, listing.items, since=since, namespace=self._kube_namespace)
        self._synced = True
        for resource, sort in ((KV_NAMESPACES, NAMESPACE), (KV_TABLES, TABLE), (KV_PARTITIONS, PARTITION)):
            for obj in self.cache.all(resource):
                key = (sort, obj["metadata"]["namespace"], obj["metadata"]["name"])
                self._refresh.add(key)
                self.queue.add(key)
        for resource in (*resources.OWNED, KV_PARTITIONS):
            for obj in self.cache.all(resource):
                self._concerned(resource, obj)

    async def process(self, key: Key) -> None:
        """Plans and acts for one key, once.

        Raises:
            KubeError: an action was refused. Unclear: one may have been carried out.
        """
        sort, namespace, name = key
        if sort == PARTITION and self._is_shown(namespace, name) and self._crowded():
            self.queue.add(key, delay_seconds=CROWDED_SECONDS)
            return
        if sort == NAMESPACE:
            await self._look_at_pool(key)
        if sort != TABLE:
            await self._act(key)
            if sort == NAMESPACE and self._is_unsettled(namespace, name):
                self.queue.add(key, delay_seconds=UNREADY_SECONDS)
            return
        table = self.cache.get(KV_TABLES, namespace, name)
        kvns = kvns_of(table) if table is not None else ""
        if table is not None and "placement" in table["spec"]:
            pods = self.cache.of_kvns(PODS, namespace, kvns)
            await self._nodes.learn([(pod.get("spec") or {}).get("nodeName", "") for pod in pods])
        async with self._locks.setdefault((namespace, kvns), asyncio.Lock()):
            await self._act(key)

    def _is_shown(self, namespace: str, name: str) -> bool:
        """Whether a partition is there and its status tells an epoch: all that is left is to show what changed."""
        partition = self.cache.get(KV_PARTITIONS, namespace, name)
        return partition is not None and "epoch" in (partition.get("status") or {})

    async def _act(self, key: Key) -> None:
        for actions in _batches(self._plan(key)):
            done = await asyncio.gather(*map(self._performer.perform, actions), return_exceptions=True)
            for action, error in zip(actions, done, strict=True):
                if isinstance(error, KubeError | Unclear):
                    await self._failed(key, action, error)
                self.performed += error is None and not isinstance(action, Emit)
            for error in filter(None, done):
                raise error
        if self._errors.pop(key, ""):
            self.queue.add(key)  # The status still shows the error.

    async def _failed(self, key: Key, action: Action, error: KubeError | Unclear) -> None:
        """Learns what became of the object, and shows a refusal that time will not heal."""
        if isinstance(error, KubeConflict | KubeNotFound | KubeAlreadyExists):
            match action:
                case Create(resource=resource, namespace=namespace, body=body):
                    await self._performer.look(resource, namespace, body["metadata"]["name"])
                case Update(resource=resource, namespace=namespace, name=name):
                    await self._performer.look(resource, namespace, name)
                case Delete(resource=resource, namespace=namespace, name=name):
                    await self._performer.look(resource, namespace, name)
                case PatchStatus(resource=resource, namespace=namespace, name=name):
                    await self._performer.look(resource, namespace, name)
            if self.queue.failures(key) < RACES_MAX:
                return
        if isinstance(error, Unclear | KubeBusy):
            return
        self._errors[key] = str(error)
        for shown in self._plan(key):
            # A partition's status says that it has a record: not when that could not be made.
            if isinstance(shown, PatchStatus | Emit) and shown != action and not isinstance(action, MakeLease):
                await self._performer.perform(shown)

    async def _work(self) -> None:
        while True:
            key = await self.queue.get()
            if not (self._leading() and self._synced):
                self.queue.done(key)  # Who begins to lead queues everything.
                continue
            try:
                await self.process(key)
            except (KubeError, Unclear) as error:
                log.info("%s %s/%s: %s; trying again", *key, error)
            except Exception:
                # A bug met on one object must not end the care for all others.
                log.exception("%s %s/%s: unexpected", *key)
            else:
                self.queue.done(key)
                continue
            self.failed += 1
            self.queue.failed(key)

    async def _lead(self) -> None:
        due = self._clock.now()
        while True:
            if not self._leading():
                self._synced, due = False, self._clock.now()
                self._pools.forget()
            elif self._clock.now() >= due:
                try:
                    await self.resync()
                    due = self._clock.now() + self._resync_seconds
                except (KubeError, Unclear) as error:
                    log.warning("listing failed: %s", error)
                    due = self._clock.now() + 1.0
            await asyncio.sleep(LEAD_POLL_SECONDS)

    def _plan(self, key: Key) -> list[Action]:
        sort, namespace, name = key
        now = timestamp(self._clock.unix())
        if sort == NAMESPACE:
            return plan.plan_namespace(self._namespace_seen(key), self._operator, now=now)
        if sort == TABLE:
            return plan.plan_table(self._table_seen(key), self._operator, now=now)
        return plan.plan_partition(self._partition_seen(namespace, name), now=now)

    def _namespace_seen(self, key: Key) -> plan.NamespaceSeen:
        _, namespace, name = key
        owned = {
            (resource.plural, obj["metadata"]["name"]): obj
            for resource in resources.OWNED
            for obj in self.cache.of_kvns(resource, namespace, name)
        }
        return plan.NamespaceSeen(
            kvns=self.cache.get(KV_NAMESPACES, namespace, name),
            owned=owned,
            tables=self.cache.of_kvns(KV_TABLES, namespace, name),
            partitions=self.cache.of_kvns(KV_PARTITIONS, namespace, name),
            pods=self._by_name(PODS, namespace, name),
            claims=self._by_name(CLAIMS, namespace, name),
            error=self._errors.get(key, ""),
        )

    def _by_name(self, resource: Resource, namespace: str, kvns: str) -> dict[str, Object]:
        return {each["metadata"]["name"]: each for each in self.cache.of_kvns(resource, namespace, kvns)}

    def _is_unsettled(self, namespace: str, name: str) -> bool:
        """Whether a KVNamespace is to be looked at again soon: what it waits for need not be told of."""
        kvns = self.cache.get(KV_NAMESPACES, namespace, name)
        return kvns is not None and "True" in (condition_status(kvns, each) for each in ("Reconciling", "Stalled"))

    async def _look_at_pool(self, key: Key) -> None:
        _, namespace, name = key
        kvns = self.cache.get(KV_NAMESPACES, namespace, name)
        if kvns is None:
            self._pools.forget((namespace, name))
            return
        looked = await self._pools.look(namespace, NamespaceSettings.parse(kvns, self._operator))
        if looked.again:
            self.queue.add(key, delay_seconds=LOOK_SECONDS)
        if looked.changed:
            away = ", ".join(sorted(self._pools.away(namespace, name)))
            log.info("%s/%s: away for too long: %s", namespace, name, away or "none any more")
            self._queue_tables(namespace, name)

    def _table_seen(self, key: Key) -> plan.TableSeen:
        _, namespace, name = key
        table = self.cache.get(KV_TABLES, namespace, name)
        if table is None:
            orphans = [each for each in self.cache.all(KV_PARTITIONS) if _is_of(each, namespace, name)]
            return plan.TableSeen(name=name, table=None, kvns=None, partitions=orphans)
        kvns_name = kvns_of(table)
        kvns = self.cache.get(KV_NAMESPACES, namespace, kvns_name)
        partitions = self.cache.of_kvns(KV_PARTITIONS, namespace, kvns_name)
        age = self._age_seconds(kvns)
        if 0 <= age < SETTLING_SECONDS:
            self.queue.add(key, delay_seconds=SETTLING_SECONDS - age)
        return plan.TableSeen(
            name=name,
            table=table,
            kvns=kvns,
            tables=self.cache.of_kvns(KV_TABLES, namespace, kvns_name),
            partitions=[each for each in partitions if _is_of(each, namespace, name)],
            others=[each for each in partitions if not _is_of(each, namespace, name)],
            pods=self._by_name(PODS, namespace, kvns_name),
            nodes=self._nodes.labels,
            away=self._pools.away(namespace, kvns_name),
            settling=0 <= age < SETTLING_SECONDS,
            error=self._errors.get(key, ""),
        )

    def _partition_seen(self, namespace: str, name: str) -> plan.PartitionSeen:
        partition = self.cache.get(KV_PARTITIONS, namespace, name)
        key = (PARTITION, namespace, name)
        refresh = key in self._refresh
        self._refresh.discard(key)
        if partition is None:
            return plan.PartitionSeen(name=name, namespace=namespace, partition=None)
        uid = partition["metadata"]["uid"]
        if (partition.get("status") or {}).get("phase") != "Ready":
            self.queue.add(key, delay_seconds=UNREADY_SECONDS)
        failover = self._failovers.get(uid)
        shown = ((partition.get("status") or {}).get("lastFailover") or {}).get("toEpoch", 0)
        if failover is not None and failover.transition.to_epoch <= shown:
            failover = None
            del self._failovers[uid]
        table = self.cache.get(KV_TABLES, namespace, partition["spec"]["table"])
        facts = self._facts(namespace, name)
        return plan.PartitionSeen(
            name=name,
            namespace=namespace,
            partition=partition,
            table_gone=table is None or table["metadata"]["uid"] != plan.owner_uid(partition),
            facts=facts if facts is not None and facts.uid == uid else None,
            failover=failover,
            age_seconds=age if (age := self._age_seconds(partition)) >= 0 else math.inf,
            refresh=refresh,
        )

    def _age_seconds(self, obj: Object | None) -> float:
        """How old an object is by the server's wall clock and ours; negative where they disagree."""
        created = (obj or {"metadata": {}})["metadata"].get("creationTimestamp")
        if not created:
            return -1.0
        return self._clock.unix() - datetime.datetime.fromisoformat(created).timestamp()

    def _learn(self, resource: Resource, namespace: str, name: str, obj: Object | None) -> None:
        if not any(resource is each for each, _ in RELISTED):
            return
        if obj is not None:
            self.observe(resource, "MODIFIED", obj)
            return
        gone = self.cache.drop(resource, namespace, name)
        if gone is not None:
            self._concerned(resource, gone, gone=True)

    def _concerned(self, resource: Resource, obj: Object, *, gone: bool = False) -> None:
        """Queues the keys whose plans read this object."""
        meta, kvns = obj["metadata"], kvns_of(obj)
        namespace, name = meta.get("namespace", ""), meta["name"]
        if resource is KV_NAMESPACES:
            self.queue.add((NAMESPACE, namespace, name))
            self._queue_tables(namespace, name)
        elif resource is KV_TABLES:
            self.queue.add((TABLE, namespace, name))
            self.queue.add((NAMESPACE, namespace, kvns), delay_seconds=NAMESPACE_DELAY_SECONDS)
            if gone:
                self._queue_tables(namespace, kvns)  # Its share of the quota is free.
                for each in self.cache.of_kvns(KV_PARTITIONS, namespace, kvns):
                    if _is_of(each, namespace, name):
                        self.queue.add((PARTITION, namespace, each["metadata"]["name"]))
        elif resource is KV_PARTITIONS:
            self.queue.add((PARTITION, namespace, name))
            more = DELAY_SECONDS_PER_PARTITION * self.cache.count_of_kvns(KV_PARTITIONS, namespace, kvns)
            table = (TABLE, namespace, obj["spec"]["table"])
            self.queue.add(table, delay_seconds=min(DELAY_SECONDS_MAX, TABLE_DELAY_SECONDS + more))
            whole = (NAMESPACE, namespace, kvns)
            self.queue.add(whole, delay_seconds=min(DELAY_SECONDS_MAX, NAMESPACE_DELAY_SECONDS + more))
        elif resource is PODS:
            self._queue_tables(namespace, kvns)
            self.queue.add((NAMESPACE, namespace, kvns), delay_seconds=NAMESPACE_DELAY_SECONDS)
        else:
            self.queue.add((NAMESPACE, namespace, kvns))

    def _queue_tables(self, namespace: str, kvns: str) -> None:
        for table in self.cache.of_kvns(KV_TABLES, namespace, kvns):
            key = (TABLE, namespace, table["metadata"]["name"])
            self.queue.add(key, delay_seconds=TABLE_DELAY_SECONDS)


def _batches(actions: Iterable[Action]) -> Iterator[list[Action]]:
    """One action each, but for runs of new partitions."""
    batch: list[Action] = []
    for action in actions:
        creates = isinstance(action, Create) and action.resource is KV_PARTITIONS
        if batch and (not creates or len(batch) == CREATIONS_AT_ONCE):
            yield batch
            batch = []
        if creates:
            batch.append(action)
        else:
            yield [action]
    if batch:
        yield batch


def _is_of(partition: Mapping[str, Any], namespace: str, table: str) -> bool:
    return bool(partition["metadata"]["namespace"] == namespace and partition["spec"]["table"] == table)
