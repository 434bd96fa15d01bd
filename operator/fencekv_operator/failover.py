"""The failover loop: sees that a session is over, and gives its partitions to others.

Four tasks beside the informers. `observe` reads the session Leases by quorum, once a second and at each hint, and
never waits for anything else. `act` proves, fences and grants. `poll` asks the shards for what people are
shown, and for reports that contradict a record. It is all outside kopf: kopf's watches can die silently.

Invariants:
  * The order is: proof, fence, then grant; and for a grant: reports, then the CAS on the partition Lease, as a
    watch showed it or a quorum read: that it succeeds proves that the record has not changed since.
  * Only a leader writes, and every write is a CAS (see `grants`): two leaders only waste work.
  * What is kept in memory makes things faster or more careful. Whoever starts with none of it decides the same,
    later.
  * No partition and no shard holds up another one for longer than one time-out; an error in one is logged, and
    the loop goes on.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from fencekv.clock import Chance, Clock
from fencekv.informer import Informer
from fencekv.kube import KV_NAMESPACES, KV_PARTITIONS, LEASES, PODS, Kube, KubeError, Unclear
from fencekv.leases import (
    KIND_PARTITION,
    KIND_SESSION,
    KIND_SHARD,
    LABEL_KIND,
    MalformedLease,
    PartitionLease,
    Session,
    SessionLease,
)
from fencekv_operator.crowd import Crowd
from fencekv_operator.facts import PartitionFacts, Reason, Transition, Trouble
from fencekv_operator.grants import Settled, Writer
from fencekv_operator.knowledge import Key, Knowledge, Reports
from fencekv_operator.mover import Mover
from fencekv_operator.ownership import (
    AskRelease,
    Blocked,
    Decision,
    Degraded,
    Grant,
    Held,
    Nothing,
    Partition,
    View,
    Wait,
    decide,
    trouble_of,
)
from fencekv_operator.phases import Phases
from fencekv_operator.placing import Preference
from fencekv_operator.reporting import MUTE_SECONDS, Reporting, rest_seconds
from fencekv_operator.sessions import terminated_messages
from fencekv_operator.shards import ShardClient
from fencekv_operator.silence import Reading
from fencekv_operator.waiting import bounded, event_within

logger = logging.getLogger(__name__)

Object = dict[str, Any]

TICK_SECONDS: Final = 1.0
READ_SECONDS: Final = 1.0
READ_GAP_SECONDS: Final = 0.02  # between two quorum reads, however many hints come
POLL_SECONDS: Final = 2.0
POLL_SOON_SECONDS: Final = 0.25
LIVELY_SECONDS: Final = 3.0  # after a change of a record: reports are polled as fast as they may be
LEASE_LAG_SECONDS: Final = 1.0
COLLECT_SECONDS: Final = 10.0
RAISE_SECONDS: Final = 0.25
ASK_SECONDS: Final = 30.0  # between two requests that the owner of an epoch release the same partition
SESSIONS_AT_ONCE: Final = 32
PARTITIONS_AT_ONCE: Final = 12  # more are no faster, and whatever else is asked would wait behind them


class Failover:
    """The loop of one operator process. Run it as a task of its own."""

    def __init__(
        self,
        *,
        kube: Kube,
        shards: ShardClient,
        clock: Clock,
        chance: Chance,
        namespace: str | None,
        leading: Callable[[], bool],
        on_transition: Callable[[str, Transition], None],
        on_change: Callable[[str, str], None],
        preference: Callable[[str, str], Preference] = lambda _namespace, _partition: Preference.NONE,
        step_down: Callable[[str], None] = lambda _why: None,
        on_partition: Callable[[str, Object], None] = lambda _change, _item: None,
    ) -> None:
        """Watches over one Kubernetes namespace (None: all of them).

        `on_transition` gets the Kubernetes namespace and what was done; `on_change` the Kubernetes namespace and
        the name of a partition whose facts changed. `preference` says how much a partition, by Kubernetes
        namespace and name, is to be owned by its first pod. `step_down` is told why another one may do better.
        `on_partition` gets each change of a KVPartition: ADDED, MODIFIED or DELETED, and the object.
        """
        self._kube, self._shards, self._clock, self._chance = kube, shards, clock, chance
        self._namespace, self._leading = namespace, leading
        self._on_transition, self._on_change, self._step_down = on_transition, on_change, step_down
        self._on_partition = on_partition
        self._writer = Writer(kube=kube, clock=clock, leading=leading)
        self._knows = Knowledge(clock)
        self.phases = Phases()
        self.crowd = Crowd(clock)
        self.mover = Mover(knows=self._knows, shards=shards, clock=clock, leading=leading, preference=preference)
        self._dead_hints: set[tuple[str, Session]] = set()
        self._asked_at: dict[str, tuple[int, float]] = {}  # by partition UID: the epoch whose owner was, and when
        self._collected_at = self._lively_until = clock.now()
        self._read_soon, self._act_soon, self._poll_soon = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._background: set[asyncio.Task[None]] = set()
        self._reporting = Reporting(
            shards=shards,
            knows=self._knows,
            phases=self.phases,
            clock=clock,
            on_change=on_change,
            on_silence=self._read_soon.set,
        )
        self.ticked_at = clock.now()
        self.quorum_read_at = float("-inf")
        kinds = {kind: f"{LABEL_KIND}={kind}" for kind in (KIND_PARTITION, KIND_SESSION, KIND_SHARD)}
        self._spaces = Informer(kube, KV_NAMESPACES, namespace, on_change=self._knows.space_changed)
        self._partitions = Informer(kube, KV_PARTITIONS, namespace, on_change=self._partition_changed)
        self._leases = Informer(
            kube, LEASES, namespace, labels=kinds[KIND_PARTITION], on_change=self._lease_changed
        )
        self._hints = Informer(
            kube, LEASES, namespace, labels=kinds[KIND_SESSION], on_change=self._session_changed
        )
        self._pods = Informer(kube, PODS, namespace, labels=kinds[KIND_SHARD], on_change=self._pod_changed)

    async def run(self) -> None:
        """Observes until it is cancelled; acts while it leads."""
        async with asyncio.TaskGroup() as group:
            for informer in (self._spaces, self._partitions, self._leases, self._hints, self._pods):
                group.create_task(self._keep(informer))
            group.create_task(self._observe())
            group.create_task(self._act())
            group.create_task(self._poll())
            group.create_task(self.mover.run())

    async def _keep(self, informer: Informer) -> None:
        while True:
            await self._guarded(informer.run(), "an informer")
            await asyncio.sleep(TICK_SECONDS)

    def born(self, item: Object) -> bool:
        """Takes a KVPartition that this process has just made; whether it is granted without more, record and all.

        Only where all pods that it is placed on have sessions now.
        """
        is_known = self._knows.born(Partition.parse(item))
        self._act_soon.set()
        return is_known

    def facts(self, namespace: str, partition: str) -> PartitionFacts | None:
        """What is known of a partition; None: it is not known itself."""
        return self._knows.facts((namespace, partition))

    def session_states(self) -> Mapping[str, int]:
        """How many sessions are live, doubted and over."""
        return self._knows.session_states()

    # Hints: where to look, and when. Never proof.

    def _partition_changed(self, kind: str, item: Object) -> None:
        partition = self._knows.partition_changed(kind, item)
        self._on_partition(kind, item)
        if self._knows.needs_attention((partition.namespace, partition.name)):
            self._act_soon.set()

    def _lease_changed(self, kind: str, item: Object) -> None:
        key, is_owned = self._knows.lease_changed(kind, item)
        if is_owned:
            self.crowd.note()
        self._on_change(*key)
        self._lively_until = self._clock.now() + LIVELY_SECONDS
        self._poll_soon.set()
        if self._knows.needs_attention(key):
            self._act_soon.set()

    def _session_changed(self, kind: str, item: Object) -> None:
        try:
            lease = SessionLease.parse(item)
        except MalformedLease:
            self._read_soon.set()
            return
        book = self._knows.book(item["metadata"].get("namespace", ""))
        seen = book.seen.get(lease.session.pod)
        is_over = lease.over(lease.session) and lease.session not in book.over
        if kind == "DELETED" or is_over or seen is None or seen.lease.session != lease.session:
            self._read_soon.set()

    def _pod_changed(self, kind: str, item: Object) -> None:
        namespace = item["metadata"].get("namespace", "")
        if kind == "DELETED":
            self._read_soon.set()
        for message in terminated_messages(item):
            try:
                session = Session.parse(message)
            except MalformedLease:
                continue
            book = self._knows.book(namespace)
            if session in book.tracks and session not in book.over:
                self._dead_hints.add((namespace, session))
                self._act_soon.set()

    # Observing

    async def _observe(self) -> None:
        while True:
            self._read_soon.clear()
            self.ticked_at = began = self._clock.now()
            await self._guarded(self._read_sessions(), "reading the session Leases")
            self._act_soon.set()
            await asyncio.sleep(READ_GAP_SECONDS)
            regular = began + TICK_SECONDS - self._clock.now()
            # A proof that lacks half a second does not wait for a whole tick.
            await event_within(self._read_soon, min(regular, self._knows.seconds_to_next_proof()))

    async def _read_sessions(self) -> None:
        sent = self._clock.now()
        try:
            listing = await self._kube.list(
                LEASES, self._namespace, labels=f"{LABEL_KIND}={KIND_SESSION}", timeout=READ_SECONDS
            )
        except (KubeError, Unclear) as error:
            logger.warning("session Leases not read: %s", error)
            return
        reading = Reading(sent=sent, answered=self._clock.now())
        self.quorum_read_at = reading.answered
        found: dict[str, list[Object]] = {}
        for item in listing.items:
            found.setdefault(item["metadata"].get("namespace", ""), []).append(item)
        holders, placed = self._knows.holders(), self._knows.placed_pods()
        for namespace in sorted(found.keys() | set(self._knows.namespaces())):
            book = self._knows.book(namespace)
            for session in book.observe(found.get(namespace, []), reading, holders.get(namespace, {})):
                self.phases.over(session, book.over[session], heard_at=reading.answered, at=reading.answered)
                logger.info("session %s is over: %s", session, book.over[session])
            book.watch_pods(sorted(placed.get(namespace, ())), reading)

    # Acting

    async def _act(self) -> None:
        for informer in (self._spaces, self._partitions, self._leases, self._pods):
            await informer.synced.wait()  # D of a namespace, above all, is not to be guessed
        while True:
            await self._act_soon.wait()
            self._act_soon.clear()
            if self._leading():
                await self._guarded(self._round(), "a round of the failover loop")

    async def _round(self) -> None:
        await bounded(SESSIONS_AT_ONCE, (self._fence_again(*undone) for undone in self._undone()))
        await bounded(SESSIONS_AT_ONCE, (self._end_session(*doubted) for doubted in self._doubted()))
        keys = [key for key in sorted(self._knows.partitions) if self._look(key)]
        if keys:
            pods = {(key[0], pod) for key in keys for pod in self._knows.pods_of(self._knows.partitions[key])}
            reports = await self._reporting.fetch(sorted(pods), mute_seconds=MUTE_SECONDS)
            await bounded(PARTITIONS_AT_ONCE, (self._settle(key, reports) for key in keys))
            # The next round takes together what comes meanwhile: each asks for whole reports.
            await asyncio.sleep(rest_seconds(reports))
        if self._clock.now() >= self._collected_at + COLLECT_SECONDS:
            self._collected_at = self._clock.now()
            await self._collect()

    def _undone(self) -> list[tuple[str, Session]]:
        """The sessions whose end their Leases no longer show."""
        return [
            (namespace, one)
            for namespace in self._knows.namespaces()
            for one in self._knows.book(namespace).undone
        ]

    async def _fence_again(self, namespace: str, session: Session) -> None:
        book = self._knows.book(namespace)
        track, seen = book.tracks.get(session), book.seen.get(session.pod)
        if track is not None and seen is not None and seen.lease.session == session:
            logger.warning("session %s is over, but its Lease does not say so: fenced again", session)
            await self._writer.fence_silent(namespace, track, raw=seen.raw)

    def _doubted(self) -> list[tuple[str, Session]]:
        """The sessions that proof is to be looked for."""
        found: list[tuple[str, Session]] = []
        for namespace in self._knows.namespaces():
            book = self._knows.book(namespace)
            found += [
                (namespace, session)
                for session in sorted(book.tracks)
                if session not in book.over
                and (book.tracks[session].doubted or (namespace, session) in self._dead_hints)
            ]
        self._dead_hints.intersection_update(found)
        return found

    async def _end_session(self, namespace: str, session: Session) -> None:
        """Fences a session for proof (b) or (c), if there is one."""
        book, sign = self._knows.book(namespace), self._clock.now()
        if session in book.tracks:
            self.phases.doubted(session, heard_at=book.tracks[session].heard.since, at=sign)
        is_dead = await self._writer.has_died(namespace, session)
        track = book.tracks.get(session)
        if track is None or session in book.over:
            return
        if is_dead:
            if await self._writer.fence_dead(namespace, session, kvns=track.kvns):
                book.mark_over(session, Reason.TERMINATED, sign=sign)
                self.phases.over(session, Reason.TERMINATED, heard_at=track.heard.since, at=self._clock.now())
                logger.info("session %s is over: its container terminated", session)
        elif book.is_due(session, self._knows.duration_seconds(namespace, track.kvns)):
            # Nothing is awaited between this look at what was heard and the departure of the write.
            seen = book.seen.get(session.pod)
            heard = track.heard
            if await self._writer.fence_silent(namespace, track, raw=seen.raw if seen else None):
                book.mark_over(session, Reason.SILENT, sign=heard.since)
                self.phases.over(session, Reason.SILENT, heard_at=heard.since, at=self._clock.now())
                logger.info("session %s is over: silent for %.1f s heard", session, heard.seconds)
            else:
                book.restart(session)

    def _look(self, key: Key) -> bool:
        """Whether a partition needs reports; takes note of a doubted owner on the way."""
        partition, lease = self._knows.partitions[key], self._knows.leases.get(key)
        if self._knows.needs_attention(key):
            if partition.uid not in self._knows.signs and lease is not None and lease.session is not None:
                self.crowd.note()
            since = self._knows.signs.setdefault(partition.uid, self._clock.now())
            # A Lease that no watch shows is most likely on its way: a quorum read can wait.
            lags = lease is None and self._clock.now() < since + LEASE_LAG_SECONDS
            return not lags or self._knows.is_new(partition)
        self._knows.signs.pop(partition.uid, None)
        doubt = self._knows.doubt(partition, lease) if lease is not None else ""
        self._note(partition, Wait(detail=doubt) if doubt else Nothing())
        return False

    async def _settle(self, key: Key, reports: Reports) -> None:
        partition = self._knows.partitions.get(key)
        if partition is None:
            return
        cached, shown = self._knows.leases.get(key), None
        is_new = cached is None and self._knows.is_new(partition)
        if cached is not None or is_new:
            decision = decide(self._knows.view(partition, cached, reports))
            if isinstance(decision, Nothing | Wait | Degraded | Blocked | Held):
                if isinstance(decision, Degraded | Blocked) and self._knows.renews(key[0], decision.missing):
                    self._step_down(f"{partition.name}: {decision.detail}")
                if is_new and trouble_of(decision)[0] is not Trouble.NONE:
                    self._knows.birth_spent(partition)  # more than reports is missing: the careful way
                self._decided(partition, decision)
                return
            if isinstance(decision, Grant) and cached is not None:
                shown = self._leases.items.get((key[0], cached.name))

        def see(lease: PartitionLease | None) -> View:
            view = self._knows.view(partition, lease, reports)
            self._knows.birth_spent(partition)  # one try: what may have landed has made it a partition like others
            return view

        settled = await self._writer.settle(
            partition,
            see,
            shown=shown,
            is_new=is_new,
            on_read=lambda lease: self._knows.lease_read(partition, lease),
        )
        if settled.raw is not None:
            self._leases.seen(settled.raw)
        if isinstance(settled.decision, Grant):
            if settled.is_granted:
                self._granted(partition, settled, settled.decision, reports)
            return
        if isinstance(settled.decision, AskRelease):
            await self._ask_release(partition, settled.decision)
            return
        self._decided(partition, settled.decision)

    def _granted(self, partition: Partition, settled: Settled, grant: Grant, reports: Reports) -> None:
        now, before = self._clock.now(), settled.before
        began = self._knows.signs.get(partition.uid, now)
        if before is not None and before.session is not None and not before.is_released:
            began = min(began, self._knows.book(partition.namespace).signs.get(before.session, began))
        transition = Transition(
            partition=partition.name,
            partition_uid=partition.uid,
            reason=grant.reason,
            from_pod=grant.from_pod,
            to_pod=grant.session.pod,
            from_epoch=before.epoch if before is not None else self._knows.known_epoch(partition),
            to_epoch=grant.epoch,
            seconds=now - began,
        )
        self.phases.granted(
            partition.uid,
            epoch=grant.epoch,
            reason=grant.reason,
            before=before.session if before is not None else None,
            began=began,
            at=now,
        )
        logger.info("%s granted: %s", partition.name, transition)
        self._knows.granted(partition, grant.epoch, reports)
        self._decided(partition, Nothing())
        self._on_transition(partition.namespace, transition)
        self._on_change(partition.namespace, partition.name)
        if grant.reason is not Reason.CREATED:  # of a new one its first status tells the epoch, and comes soon
            task = asyncio.get_running_loop().create_task(self._raise_status(partition, grant.epoch))
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    async def _raise_status(self, partition: Partition, epoch: int) -> None:
        """Later: whoever takes over now needs the API server more. By then the whole status may tell it."""
        await asyncio.sleep(RAISE_SECONDS)
        await self.crowd.passed()
        shows_less = functools.partial(self._knows.shows_less, partition, epoch)
        await self._writer.raise_status(partition, epoch, wanted=shows_less)

    async def _ask_release(self, partition: Partition, ask: AskRelease) -> None:
        now = self._clock.now()
        epoch, at = self._asked_at.get(partition.uid, (0, now))
        if (epoch == ask.epoch and now < at + ASK_SECONDS) or not self._leading():
            detail = (
                f"the owner cannot reach its standbys, but {ask.target} can be reached; it was asked to let go"
            )
            self._decided(partition, Blocked(missing=(ask.target,), detail=detail))
            return
        self._asked_at[partition.uid] = ask.epoch, now
        agreed = bool(ask.http) and await self._shards.release(ask.http, partition.uid, ask.epoch, ask.target)
        if not agreed:
            agreed = await self._writer.ask_release(partition, epoch=ask.epoch, target=ask.target)
            outcome = "is asked by its Lease to release the partition" if agreed else "could not be asked"
        else:
            outcome = "agreed to release the partition"
        detail = f"the owner cannot reach {ask.target} and {outcome} to it"
        self._decided(partition, Blocked(missing=(ask.target,), detail=detail))

    def _decided(self, partition: Partition, decision: Decision) -> None:
        if isinstance(decision, Nothing | Wait):
            self._knows.doubtful.discard(partition.uid)
        self._note(partition, decision)

    def _note(self, partition: Partition, decision: Decision) -> None:
        trouble, detail = trouble_of(decision)
        if self._knows.troubled(partition, trouble, detail):
            if trouble is not Trouble.NONE:
                logger.warning("%s: %s: %s", partition.name, trouble, detail)
            self._on_change(partition.namespace, partition.name)

    async def _collect(self) -> None:
        """Removes session Leases of pods that are gone and that nothing names, and notes of what is gone."""
        known = {partition.uid for partition in self._knows.partitions.values()}
        self._asked_at = {uid: asked for uid, asked in self._asked_at.items() if uid in known}
        holders, placed = self._knows.holders(), self._knows.placed_pods()
        for namespace in self._knows.namespaces():
            book = self._knows.book(namespace)
            for pod, seen in sorted(book.seen.items()):
                session = seen.lease.session
                is_named = pod in placed.get(namespace, ()) or session in holders.get(namespace, {})
                if is_named or (namespace, pod) in self._pods.items:
                    continue
                duration = self._knows.duration_seconds(namespace, seen.kvns)
                silent = session in book.tracks and book.is_due(session, duration)
                if silent and self._leading() and await self._writer.is_pod_gone(namespace, pod):
                    await self._writer.collect(namespace, seen.lease)

    # Reports

    async def _poll(self) -> None:
        await self._partitions.synced.wait()
        while True:
            self._poll_soon.clear()
            if self._leading():
                await self.crowd.passed()  # a round asks for itself, and who shows waits
                await self._guarded(self._reporting.poll(), "asking the shards for reports")
                if self._knows.doubtful:
                    self._act_soon.set()
            await asyncio.sleep(max(POLL_SOON_SECONDS, rest_seconds(self._knows.reports)))
            # Spread out, so that several operators and many shards do not fall into step.
            pause = POLL_SECONDS * (0.75 + self._chance.random() / 2) - POLL_SOON_SECONDS
            if self._clock.now() >= self._lively_until:
                await event_within(self._poll_soon, pause)

    async def _guarded(self, work: Awaitable[object], what: str) -> None:
        """The loop outlives whatever is wrong with one step of it."""
        try:
            await work
        except Exception:
            logger.exception("failed: %s", what)
