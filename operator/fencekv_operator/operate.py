"""Carries out KVOperations: one queue of them, a step at a time, drills and comparisons as tasks beside it.

Invariants:
  * It acts only while this operator leads; a task that runs when that ends is cancelled, and takes its order back.
  * An operation begins by a compare-and-swap on its status: it begins once, whoever leads.
  * There is never more than one drill at a time in a KVNamespace.
  * A drill whose operator is gone is Failed by the next one, which takes its order back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from fencekv.clock import Chance, Clock
from fencekv.informer import Informer
from fencekv.kube import (
    CONFIG_MAPS,
    KV_OPERATIONS,
    KV_TABLES,
    Kube,
    KubeAlreadyExists,
    KubeConflict,
    KubeError,
    KubeNotFound,
    Unclear,
)
from fencekv.leases import HOLD_FAILOVER, MalformedLease, Session
from fencekv_operator import drill_schedule, operations, switchovers, verify
from fencekv_operator.drill import Drill, Ended, Place, Surroundings, take_back
from fencekv_operator.drill_records import choose, history_object
from fencekv_operator.events import Notice, notice
from fencekv_operator.facts import PartitionFacts
from fencekv_operator.operations import Kind, Operation, Phase, Progress, failed, running, waiting
from fencekv_operator.verify_run import Shards, verify_replicas
from fencekv_operator.workqueue import WorkQueue

Object = dict[str, Any]
Key = tuple[str, str]
log = logging.getLogger(__name__)

LEAD_POLL_SECONDS: Final = 0.25
SCHEDULE_SECONDS: Final = 5.0
AGAIN_SECONDS: Final = 1.0  # an operation that waits for something is looked at again
SWITCH_AGAIN_SECONDS: Final = 0.1
HEALTHY_SECONDS_MAX: Final = 30.0  # that a drill waits for its partition to be healthy
ASK_SECONDS: Final = 5.0  # between two requests to let the same partition go


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What the rest of the operator knows and can do, by Kubernetes namespace and name.

    `partition` and `tables` give objects as they were last seen; `order` asks an owner to hand a partition over to
    a pod (empty: the best) and says why not; `prefer` puts a pod first in a partition's placement.
    """

    facts: Callable[[str, str], PartitionFacts | None]
    partition: Callable[[str, str], Object | None]
    partitions_of: Callable[[str, str], Sequence[Object]]
    tables: Callable[[], Sequence[Object]]
    order: Callable[[str, str, str], Coroutine[Any, Any, str]]
    prefer: Callable[[Object, str], Coroutine[Any, Any, None]]


class Operations:
    """The KVOperations of one operator process. Run it as a task of its own."""

    def __init__(
        self,
        *,
        kube: Kube,
        shards: Shards,
        cluster: Cluster,
        around: Surroundings,
        chance: Chance,
        runner: str,
        namespace: str | None,
        leading: Callable[[], bool],
        post: Callable[[Notice], None],
    ) -> None:
        """`runner` names this process and no other one, not even a later one of the same pod."""
        self._kube, self._shards, self._cluster, self._around = kube, shards, cluster, around
        self._clock: Clock = around.clock
        self._runner, self._leading, self._post = runner, leading, post
        self._queue: WorkQueue[Key] = WorkQueue(chance=chance)
        self._informer = Informer(kube, KV_OPERATIONS, namespace, on_change=self._changed)
        self._tasks: dict[str, asyncio.Task[None]] = {}  # by UID of the operation
        self._asked_at: dict[str, float] = {}  # by UID: when an owner was last asked
        self._bad_schedules: set[tuple[str, str]] = set()  # table UID and schedule: what was told once

    def objects(self) -> list[Object]:
        """Every KVOperation as it was last seen."""
        return list(self._informer.items.values())

    async def run(self) -> None:
        """Works until it is cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep())
                group.create_task(self._lead())
                group.create_task(self._work())
        finally:
            self._queue.close()
            await self._cancel_all()

    async def process(self, key: Key) -> None:
        """Takes one operation a step further.

        Raises:
            KubeError, Unclear: a request of it; it comes back.
        """
        item = self._informer.items.get(key)
        if item is None or item["metadata"].get("deletionTimestamp"):
            return
        operation = Operation.parse(item)
        if operation.is_final:
            await self._finished(operation)
        elif operation.kind is Kind.SWITCHOVER:
            await self._switch(operation)
        elif operation.phase is Phase.PENDING:
            await self._begin(operation)
        elif operation.uid not in self._tasks:
            await self._taken_up(operation)

    async def schedule(self) -> None:
        """Makes the drills that are due, and says which schedules cannot be read."""
        for table in self._cluster.tables():
            for body in drill_schedule.due(table, now_unix=self._clock.unix()):
                key = body["metadata"]["namespace"], body["metadata"]["name"]
                if key not in self._informer.items:
                    with contextlib.suppress(KubeAlreadyExists):
                        self._informer.seen(await self._kube.create(KV_OPERATIONS, key[0], body))
            for schedule in drill_schedule.unreadable(table):
                told = f"drills: {schedule!r} is no schedule that cron knows; it is left out"
                if (table["metadata"]["uid"], schedule) not in self._bad_schedules:
                    self._bad_schedules.add((table["metadata"]["uid"], schedule))
                    self._post(notice(_kinded(table), warning=True, reason="BadSchedule", message=told, once=told))

    # Steps

    async def _switch(self, operation: Operation) -> None:
        namespace, name = operation.namespace, operation.partition
        partition = self._cluster.partition(namespace, name)
        if partition is None or partition["spec"]["table"] != operation.table:
            if self._waited(operation) < switchovers.FACTS_SECONDS_MAX:
                self._queue.add(operation.key, delay_seconds=AGAIN_SECONDS)
                return
            told = f"partition: table {operation.table} has no partition {name!r}"
            await self._progress(operation, failed("NoSuchPartition", told))
            return
        held = (partition["metadata"].get("annotations") or {}).get(HOLD_FAILOVER)
        facts = self._cluster.facts(namespace, name)
        step = switchovers.next_step(operation, facts, held=held, now_unix=self._clock.unix())
        progress = step if isinstance(step, Progress) else await self._ask(operation, partition, step.target)
        if progress is not None:
            await self._progress(operation, progress)
        self._queue.add(operation.key, delay_seconds=SWITCH_AGAIN_SECONDS)

    async def _ask(self, operation: Operation, partition: Object, target: str) -> Progress | None:
        now = self._clock.now()
        if now < self._asked_at.get(operation.uid, float("-inf")) + ASK_SECONDS:
            return None
        self._asked_at[operation.uid] = now
        if target and target in partition["spec"]["replicas"]:
            # So that the new owner stays: placement moves owners to the first pod.
            await self._cluster.prefer(partition, target)
        refusal = await self._cluster.order(operation.namespace, operation.partition, target)
        return running("Asking", f"not yet: {refusal}" if refusal else "the owner hands it over")

    async def _begin(self, operation: Operation) -> None:
        table = await self._table(operation)
        if table is None:
            await self._progress(
                operation, failed("NoSuchTable", f"table: there is no KVTable {operation.table!r}")
            )
            return
        if operation.kind is Kind.VERIFY:
            claimed = await self._progress(operation, running("Comparing", runner=self._runner))
            self._spawn(claimed, self._verify(claimed))
            return
        partitions = self._cluster.partitions_of(operation.namespace, operation.table)
        place, why = choose(operation, table, partitions, facts=self._cluster.facts)
        if place is None:
            if self._waited(operation) < HEALTHY_SECONDS_MAX:
                await self._progress(operation, waiting("Waiting", why))
                self._queue.add(operation.key, delay_seconds=AGAIN_SECONDS)
            else:
                await self._progress(operation, failed("Refused", why, {"verdict": "Refused"}))
            return
        other = self._drilling(operation, place.kvns)
        if other:
            await self._progress(operation, waiting("Waiting", f"{other} is the drill that runs now"))
            self._queue.add(operation.key, delay_seconds=AGAIN_SECONDS)
            return
        await self._begin_drill(operation, place)

    async def _begin_drill(self, operation: Operation, place: Place) -> None:
        facts = self._cluster.facts(operation.namespace, place.partition)
        assert facts is not None, place
        assert facts.lease is not None, facts
        fields = {
            "runner": self._runner,
            "partition": place.partition,
            "session": str(facts.lease.session),
            "epoch": facts.lease.epoch,
        }
        claimed = await self._progress(operation, running("Beginning", f"a drill of {place.partition}", **fields))
        self._spawn(claimed, self._drill(claimed, place))

    async def _taken_up(self, operation: Operation) -> None:
        """It runs, and not here: its operator is gone, or did not lead for a while."""
        if operation.kind is Kind.VERIFY:
            claimed = await self._progress(operation, running("Comparing", runner=self._runner))
            self._spawn(claimed, self._verify(claimed))
            return
        with contextlib.suppress(MalformedLease):
            session = Session.parse(str(operation.status.get("session") or ""))
            await take_back(self._kube, operation.namespace, session.pod)
        told = f"its operator ended at step {operation.status.get('step')}; the fault was undone"
        await self._progress(operation, failed("Aborted", told, {"verdict": "Aborted"}))

    async def _finished(self, operation: Operation) -> None:
        if operation.scheduled_by:
            await self._keep_result(operation)
        left = operation.expires_unix - self._clock.unix()
        if left > 0:
            self._queue.add(operation.key, delay_seconds=left)
            return
        options = {"preconditions": {"uid": operation.uid}, "propagationPolicy": "Background"}
        with contextlib.suppress(KubeNotFound):
            await self._kube.delete(KV_OPERATIONS, operation.namespace, operation.name, options=options)

    async def _keep_result(self, operation: Operation) -> None:
        try:
            table = await self._kube.get(KV_TABLES, operation.namespace, operation.scheduled_by)
        except KubeNotFound:
            return
        results = drill_schedule.with_result((table.get("status") or {}).get("drills") or [], operation)
        if results is None:
            return
        version = {"resourceVersion": table["metadata"]["resourceVersion"]}
        patch = {"metadata": version, "status": {"drills": results}}
        await self._kube.patch(KV_TABLES, operation.namespace, operation.scheduled_by, patch, subresource="status")
        if operation.phase is Phase.FAILED:
            told = f"{operation.name}: {operation.status.get('message')}"
            self._post(
                notice(_kinded(table), warning=True, reason="DrillFailed", message=told, once=operation.name)
            )

    # Tasks

    async def _drill(self, operation: Operation, place: Place) -> None:
        latest = operation

        async def tell(step: str, message: str) -> None:
            nonlocal latest
            latest = await self._persist(latest, running(step, message))

        try:
            ended = await Drill(operation, place, self._around, tell=tell).run()
        except (KubeError, Unclear) as error:
            told = f"the API server refused, or did not answer: {error}"
            ended = Ended(progress=failed("Aborted", told, {"verdict": "Aborted"}), history=None)
        fields = {}
        if ended.history is not None:
            body = history_object(operation, ended.history)
            await self._create_history(operation.namespace, body)
            fields = {"history": body["metadata"]["name"]}
        progress = replace(ended.progress, fields={**ended.progress.fields, **fields})
        await self._persist(latest, progress)

    async def _create_history(self, namespace: str, body: Object) -> None:
        while True:
            try:
                with contextlib.suppress(KubeAlreadyExists):
                    await self._kube.create(CONFIG_MAPS, namespace, body)
                return
            except Unclear as error:
                log.warning("the history of a drill is not kept yet: %s", error)
                await asyncio.sleep(AGAIN_SECONDS)

    async def _verify(self, operation: Operation) -> None:
        chosen = [
            each
            for each in self._cluster.partitions_of(operation.namespace, operation.table)
            if not operation.partition or each["metadata"]["name"] == operation.partition
        ]
        found = await verify_replicas(self._kube, self._shards, operation.namespace, chosen)
        result, told = verify.result(found), verify.summary(found)
        if result["verdict"] == verify.SAME:
            progress = operations.succeeded(told, result)
        else:
            progress = failed(result["verdict"], told, result)
        await self._persist(operation, progress)

    # What it rests on

    def _drilling(self, operation: Operation, kvns: str) -> str:
        """The drill that runs in a KVNamespace now; empty: this one may begin."""
        tables = {
            each["metadata"]["name"]: each["spec"]["namespace"]
            for each in self._cluster.tables()
            if each["metadata"]["namespace"] == operation.namespace
        }
        for item in self._informer.items.values():
            other = Operation.parse(item)
            if other.kind is not Kind.DRILL or other.is_final or other.uid == operation.uid:
                continue
            runs = other.phase is Phase.RUNNING or other.uid in self._tasks
            if runs and other.namespace == operation.namespace and tables.get(other.table) == kvns:
                return other.name
        return ""

    async def _table(self, operation: Operation) -> Object | None:
        try:
            return await self._kube.get(KV_TABLES, operation.namespace, operation.table)
        except KubeNotFound:
            return None

    def _waited(self, operation: Operation) -> float:
        return self._clock.unix() - operation.created_unix

    async def _progress(self, operation: Operation, progress: Progress) -> Operation:
        """Writes how an operation stands, on exactly what was seen of it; gives it as it is then.

        Raises:
            KubeConflict: it has changed. KubeError, Unclear.
        """
        status = operations.new_status(operation, progress, now_unix=self._clock.unix())
        if status is None:
            return operation
        version = {"resourceVersion": operation.raw["metadata"]["resourceVersion"]}
        item = await self._kube.patch(
            KV_OPERATIONS,
            operation.namespace,
            operation.name,
            {"metadata": version, "status": status},
            subresource="status",
        )
        self._informer.seen(item)
        told = operations.end_notice(operation, progress)
        if told is not None:
            self._post(told)
        return Operation.parse(item)

    async def _persist(self, operation: Operation, progress: Progress) -> Operation:
        """Writes it until it is written, also where somebody else has changed the object; a result is dear.

        Raises:
            KubeError: the operation is gone, or is not this process's any more.
        """
        while True:
            try:
                return await self._progress(operation, progress)
            except (KubeConflict, Unclear) as error:
                log.info("%s: not written yet: %s", operation.name, error)
                await asyncio.sleep(LEAD_POLL_SECONDS)
            with contextlib.suppress(Unclear):
                item = await self._kube.get(KV_OPERATIONS, operation.namespace, operation.name)
                fresh = Operation.parse(item)
                if fresh.uid != operation.uid or fresh.runner != self._runner or fresh.is_final:
                    raise KubeNotFound(404, "NotFound", f"{operation.name} is not carried out here any more")
                operation = fresh

    def _spawn(self, operation: Operation, work: Coroutine[Any, Any, None]) -> None:
        assert operation.uid not in self._tasks, operation.name
        task = asyncio.get_running_loop().create_task(work, name=f"operation-{operation.name}")
        self._tasks[operation.uid] = task

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.pop(operation.uid, None)
            if not task.cancelled() and task.exception() is not None:
                log.error("%s failed", operation.name, exc_info=task.exception())
            self._queue.add(operation.key)  # What is left of it is aborted.

        task.add_done_callback(done)

    async def _cancel_all(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Loops

    def _changed(self, kind: str, item: Object) -> None:
        if kind == "DELETED":
            uid = item["metadata"]["uid"]
            self._asked_at.pop(uid, None)
            if uid in self._tasks:
                self._tasks[uid].cancel()
            return
        self._queue.add((item["metadata"]["namespace"], item["metadata"]["name"]))

    async def _keep(self) -> None:
        while True:
            try:
                await self._informer.run()
            except Exception:
                log.exception("failed: an informer")
            await asyncio.sleep(AGAIN_SECONDS)

    async def _lead(self) -> None:
        led, due = False, self._clock.now()
        while True:
            leads = self._leading()
            if leads and not led:
                for key in self._informer.items:
                    self._queue.add(key)
            elif led and not leads:
                await self._cancel_all()
            led = leads
            if leads and self._informer.synced.is_set() and self._clock.now() >= due:
                due = self._clock.now() + SCHEDULE_SECONDS
                try:
                    await self.schedule()
                except (KubeError, Unclear) as error:
                    log.info("a drill that is due is not made yet: %s", error)
                except Exception:
                    log.exception("failed: the schedules")
            await asyncio.sleep(LEAD_POLL_SECONDS)

    async def _work(self) -> None:
        while True:
            key = await self._queue.get()
            if not self._leading():
                self._queue.done(key)  # Who begins to lead queues everything.
                continue
            try:
                await self.process(key)
            except KubeConflict:
                self._queue.done(key)
                self._queue.add(key, delay_seconds=LEAD_POLL_SECONDS)  # The watch shows what it is now.
            except (KubeError, Unclear) as error:
                log.info("operation %s/%s: %s; trying again", *key, error)
                self._queue.failed(key)
            except Exception:
                log.exception("operation %s/%s: unexpected", *key)
                self._queue.failed(key)
            else:
                self._queue.done(key)


def _kinded(table: Mapping[str, Any]) -> Object:
    return {"apiVersion": KV_TABLES.api_version, "kind": KV_TABLES.kind, **table}
