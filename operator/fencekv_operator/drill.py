"""One drill: writes, does a fault to the owner, and finds out whether every promise held.

Steps: Warming, Faulting, TakingOver, Thawing, Probing, ReadingBack. The load and its history live in this process,
so a drill ends with it; the fault ends too, by its own expiry in the pod.

Invariants:
  * However a drill ends, it takes its order back; and an order that nobody takes back expires.
  * The fault is done only to the session that owned the healthy partition a moment before.
  * The verdict is made from the history alone, as `fencekv check-history` makes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol

from fencekv import faults, wire
from fencekv.clock import Clock
from fencekv.drill_history import HISTORY_BYTES_MAX, PROBE, DrillHistory, Verdict, judge, to_bytes
from fencekv.errors import FenceKVError
from fencekv.faults import FAULT, Fault, Order
from fencekv.kube import LEASES, PODS, Kube, KubeError, Unclear
from fencekv.leases import Session, session_lease_name
from fencekv.linearizable import Kind, Operation, Outcome
from fencekv.partitioning import Partitioning
from fencekv_operator.drill_load import WRITERS, Load, NoKey, Refused, Table, keys_in, read_back
from fencekv_operator.facts import PartitionFacts
from fencekv_operator.operations import Operation as Ordered
from fencekv_operator.operations import Progress, failed, succeeded, unhealthy

logger = logging.getLogger(__name__)

WARM_SECONDS: Final = 2.0
WARM_SECONDS_MAX: Final = 15.0
LOOK_SECONDS: Final = 0.02
AFTER_SECONDS: Final = 1.0  # of load under the new owner before the fault is undone
PROBE_SECONDS: Final = 3.0  # after it was undone
PROBE_GAP_SECONDS: Final = 0.2
OVERTIME_SECONDS: Final = 15.0  # beyond rtoSecondsMax, so that a slow failover is told from none
EXPIRY_MARGIN_SECONDS: Final = 10
READ_BACK_SECONDS_MAX: Final = 60.0
UNDO_ATTEMPTS: Final = 5
UNDO_PAUSE_SECONDS: Final = 0.5


class Probe(Protocol):
    """A write to one pod that no other pod may carry out for it."""

    async def __call__(
        self, http: str, path: str, value: bytes, *, epoch: int, key: str
    ) -> tuple[Outcome, tuple[int, int] | None]:
        """Asks the shard at `host:port` under an idempotency key; the version too, if it acknowledged."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a drill needs of the operator."""

    kube: Kube
    clock: Clock
    connect: Callable[[str, str], AbstractAsyncContextManager[Callable[[str], Table]]]
    probe: Probe
    facts: Callable[[str, str], PartitionFacts | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The partition that a drill is about."""

    kvns: str
    partition: str
    index: int
    partitioning: Partitioning


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a drill ended. `history`: the file, or None where there is nothing to tell."""

    progress: Progress
    history: bytes | None


Tell = Callable[[str, str], Awaitable[None]]
"""Takes the step and a sentence."""


class Drill:
    """A drill of one operation, to be run once."""

    def __init__(self, operation: Ordered, place: Place, around: Surroundings, *, tell: Tell) -> None:
        self._operation, self._place, self._around, self._tell = operation, place, around, tell
        self._began = around.clock.now()
        self._history = DrillHistory(head={})
        self._probes_refused = 0

    async def run(self) -> Ended:
        """Does it. Raises KubeError, Unclear."""
        try:
            return await self._run()
        except (Refused, NoKey) as error:
            return self._refused(str(error))
        except FenceKVError as error:
            return self._refused(f"the table cannot be reached: {error.name}: {error.detail}")

    async def _run(self) -> Ended:
        operation, place = self._operation, self._place
        keys = keys_in(place.partitioning, place.index, drill=operation.uid, wanted=WRITERS + 1)
        async with self._around.connect(operation.namespace, place.kvns) as tables:
            table = tables(operation.table)
            load = Load(
                table,
                keys[:WRITERS],
                self._history,
                name=operation.uid,
                puts_per_second=operation.puts_per_second,
                now=self._now,
            )
            async with self._running(load):
                await self._warm(load)
                facts = self._facts()
                reason = unhealthy(facts)
                if reason:
                    return self._refused(reason)
                ended = await self._fault(load, facts, keys[WRITERS])
            await self._tell("ReadingBack", "everything is read back")
            try:
                async with asyncio.timeout(READ_BACK_SECONDS_MAX):
                    self._history.left = await read_back(table, keys)
            except (FenceKVError, TimeoutError) as error:
                told = f"what was written could not be read back: {error!r}"
                return Ended(progress=failed("NotReadBack", told, {"verdict": "Incomplete"}), history=None)
            await self._clean_up(table, keys)
        return await self._judged(*ended)

    async def _clean_up(self, table: Table, keys: Sequence[str]) -> None:
        for key in keys:
            try:
                await table.delete(key)
            except FenceKVError as error:
                logger.info("%s: a key of the drill stays: %s", self._operation.name, error)
                return

    @contextlib.asynccontextmanager
    async def _running(self, load: Load) -> AsyncIterator[None]:
        task = asyncio.ensure_future(load.run())
        try:
            yield
            load.stop()
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _warm(self, load: Load) -> None:
        await self._tell("Warming", f"{self._operation.puts_per_second} writes a second begin")
        until = self._now() + WARM_SECONDS_MAX
        while not load.all_written.is_set() or self._now() < WARM_SECONDS:
            if load.refused is not None:
                raise load.refused
            if self._now() >= until:
                raise Refused(f"its writes are not acknowledged within {WARM_SECONDS_MAX:.0f} s")
            await asyncio.sleep(LOOK_SECONDS)

    async def _fault(self, load: Load, facts: PartitionFacts | None, key: str) -> tuple[int, float, float | None]:
        """Does the fault and undoes it; the epoch before, when, and when a write was acknowledged again."""
        assert facts is not None, self._place
        assert facts.lease is not None, facts
        lease, session = facts.lease, facts.lease.session
        assert session is not None, lease
        fault = self._operation.fault
        assert fault is not None, self._operation
        await self._tell("Faulting", f"{fault}: {session.pod}, which owns it with epoch {lease.epoch}")
        began = self._now()
        probing: asyncio.Task[None] | None = None
        try:
            await self._order(fault, session)
            await self._tell("TakingOver", f"{fault} was ordered; waiting for a new owner")
            again = await self._taken_over(load, lease.epoch, began)
            probing = asyncio.ensure_future(self._probe(lease.owner_http, key, lease.epoch, load))
            await asyncio.sleep(AFTER_SECONDS)
            await self._tell("Thawing", f"the fault is undone; {session.pod} tries to write")
            await self._undo(session)
            await asyncio.sleep(PROBE_SECONDS)
        finally:
            # Also when this task is cancelled, because this operator does not lead any more.
            await asyncio.shield(self._undo(session))
            if probing is not None:
                probing.cancel()
                await asyncio.gather(probing, return_exceptions=True)
        return lease.epoch, began, again

    async def _taken_over(self, load: Load, before: int, began: float) -> float | None:
        until = began + self._operation.rto_seconds_max + OVERTIME_SECONDS
        while self._now() < until:
            again = min((at for epoch, at in load.first.items() if epoch > before), default=None)
            if again is not None:
                return again
            await asyncio.sleep(LOOK_SECONDS)
        return None

    async def _order(self, fault: Fault, session: Session) -> None:
        kube, namespace = self._around.kube, self._operation.namespace
        if fault is Fault.DELETE_POD:
            options = {"gracePeriodSeconds": 0, "preconditions": {"uid": session.pod_uid}}
            await kube.delete(PODS, namespace, session.pod, options=options)
            return
        seconds = self._operation.rto_seconds_max + int(OVERTIME_SECONDS) + EXPIRY_MARGIN_SECONDS
        assert seconds <= faults.EXPIRES_SECONDS_MAX, seconds
        order = Order(fault=fault, session=str(session), seconds=seconds)
        await annotate(kube, namespace, session.pod, order.annotation())

    async def _undo(self, session: Session) -> None:
        if self._operation.fault is not Fault.DELETE_POD:
            await take_back(self._around.kube, self._operation.namespace, session.pod)

    async def _probe(self, http: str, key: str, epoch: int, load: Load) -> None:
        """Asks the deposed owner itself to write, under its old epoch, again and again."""
        asked: set[asyncio.Task[None]] = set()
        try:
            while True:
                task = asyncio.ensure_future(self._probe_once(http, key, epoch, load.value()))
                asked.add(task)
                task.add_done_callback(asked.discard)
                await asyncio.sleep(PROBE_GAP_SECONDS)
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def _probe_once(self, http: str, key: str, epoch: int, value: bytes) -> None:
        history = self._history.history
        operation = history.call(
            Operation(client=PROBE, kind=Kind.PUT, key=key, value=value, time=self._now(), pod=http)
        )
        outcome = Outcome.UNKNOWN
        try:
            place, table = self._place, self._operation.table
            path = f"/v1/{wire.segment(place.kvns)}/{wire.segment(table)}/keys/{wire.segment(key)}"
            once = f"{self._operation.uid}-{value.decode()}"
            outcome, operation.version = await self._around.probe(http, path, value, epoch=epoch, key=once)
        finally:
            operation.seconds = self._now() - operation.time
            history.answer(operation, outcome)
            self._probes_refused += outcome is not Outcome.OK

    async def _judged(self, before: int, began: float, again: float | None) -> Ended:
        operation, facts = self._operation, self._facts()
        lease = facts.lease if facts is not None else None
        head: dict[str, str | int] = {
            "operation": operation.name,
            "namespace": operation.namespace,
            "table": operation.table,
            "partition": self._place.partition,
            "fault": str(operation.fault),
            "epochBefore": before,
            "faultMicroseconds": round(began * 1e6),
        }
        self._history.head.update(head)
        verdict = await asyncio.to_thread(judge, self._history)
        raw = await asyncio.to_thread(to_bytes, self._history)
        result: dict[str, Any] = {
            "epochBefore": before,
            "epochAfter": lease.epoch if lease is not None else before,
            "owner": lease.session.pod if lease is not None and lease.session is not None else "",
            "writesAcknowledged": verdict.acknowledged,
            "unknown": verdict.unknown,
            "refused": verdict.refused,
            "lost": verdict.lost,
            "staleAcknowledged": verdict.stale,
            "probesRefused": self._probes_refused,
        }
        if again is not None:
            result["rtoSeconds"] = round(again - began, 3)
        progress = _progress(operation, verdict, result, again is not None)
        if len(raw) > HISTORY_BYTES_MAX:
            logger.warning("%s: its history has %d bytes and is not kept", operation.name, len(raw))
        return Ended(progress=progress, history=raw if len(raw) <= HISTORY_BYTES_MAX else None)

    def _refused(self, why: str) -> Ended:
        return Ended(progress=failed("Refused", why, {"verdict": "Refused"}), history=None)

    def _facts(self) -> PartitionFacts | None:
        return self._around.facts(self._operation.namespace, self._place.partition)

    def _now(self) -> float:
        return self._around.clock.now() - self._began


def _progress(operation: Ordered, verdict: Verdict, result: dict[str, Any], taken_over: bool) -> Progress:
    if not verdict.good:
        return failed("Broken", verdict.problems[0], {**result, "verdict": "Broken"})
    if not taken_over:
        return failed("NoTakeover", "no write was acknowledged under a new epoch", {**result, "verdict": "Slow"})
    seconds = result["rtoSeconds"]
    if seconds > operation.rto_seconds_max:
        told = f"writes were acknowledged again after {seconds} s, allowed are {operation.rto_seconds_max} s"
        return failed("Slow", told, {**result, "verdict": "Slow"})
    told = f"writes were acknowledged again after {seconds} s; nothing lost, nothing stale acknowledged"
    return succeeded(told, {**result, "verdict": "Passed"})


async def annotate(kube: Kube, namespace: str, pod: str, order: str | None) -> None:
    """Writes an order onto a pod's session Lease, or removes it. Raises KubeError, Unclear."""
    patch = {"metadata": {"annotations": {FAULT: order}}}
    await kube.patch(LEASES, namespace, session_lease_name(pod), patch)


async def take_back(kube: Kube, namespace: str, pod: str) -> None:
    """Removes the order from a pod's session Lease, if one stands there; the fault expires in any case."""
    for _ in range(UNDO_ATTEMPTS):
        try:
            lease = await kube.get(LEASES, namespace, session_lease_name(pod))
            if FAULT in (lease["metadata"].get("annotations") or {}):
                await annotate(kube, namespace, pod, None)
            return
        except (KubeError, Unclear) as error:
            logger.warning("the order at %s is not taken back yet: %s", pod, error)
            await asyncio.sleep(UNDO_PAUSE_SECONDS)
