"""The shard: its session, its partitions, and the loops that keep them going.

It watches KVPartitions (what to hold), partition Leases (who owns what) and its KVNamespace (lease times), and
hands each change to the partition it concerns. Implements `api.Node`.

Invariants:
  * The replicas on disk are opened, and the folder is locked, before the session is taken: what this pod reports
    is what it has.
  * When the session is over, nothing is served and `run` ends; the process must end with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from fencekv import leases
from fencekv.clock import Clock
from fencekv.errors import Invalid, NotOwner, Unavailable
from fencekv.informer import Informer
from fencekv.kube import KV_NAMESPACES, KV_PARTITIONS, LEASES, Kube
from fencekv.leases import PartitionLease, Session
from fencekv_shard import folder, limits
from fencekv_shard.api import Route, Table
from fencekv_shard.catalog import Catalog
from fencekv_shard.executor import Executor, run
from fencekv_shard.feed import Feeds
from fencekv_shard.fence import Role
from fencekv_shard.leaving import Held, Leaver
from fencekv_shard.links import Links
from fencekv_shard.memory import PodMemory
from fencekv_shard.meters import Meters, disk_report
from fencekv_shard.opening import Openings
from fencekv_shard.owned import Owned, Rota
from fencekv_shard.partition import Partition
from fencekv_shard.peer import Listener, Transport
from fencekv_shard.replica import Replica
from fencekv_shard.session import LeaseTimes, SessionKeeper, SessionOver, is_over
from fencekv_shard.spec import PartitionSpec
from fencekv_shard.store import CommitFailed, StorageError
from fencekv_shard.surroundings import Surroundings
from fencekv_shard.tasks import Tasks
from fencekv_shard.turns import Turns

logger = logging.getLogger(__name__)

# Moves that are under way together make each other's pauses longer; one after the other, many would take too long.
MOVES_IN_A_ROW: Final = 8
NEXT_MOVE_SECONDS: Final = 0.5  # the next one does not wait longer for the owner of the last one to serve
MOVING_AT_ONCE_MAX: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """Who this shard is and where it is reached."""

    kvns: str
    namespace: str  # Kubernetes namespace
    session: Session
    data: Path
    http: str  # host:port
    peer: str  # host:port


class Node:
    """A shard."""

    def __init__(
        self,
        config: NodeConfig,
        *,
        kube: Kube,
        clock: Clock,
        transport: Transport,
        executor: Executor,
        new_id: Callable[[], str],
        on_fatal: Callable[[BaseException], None],
        meters: Meters | None = None,
    ) -> None:
        """`meters` None: counts that nobody but this shard's report shows."""
        self.config = config
        self._tasks = Tasks(on_error=self._unexpected)
        self._spawn = self._tasks.spawn
        self.kvns, self.pod = config.kvns, config.session.pod
        self._kube, self._clock, self._transport = kube, clock, transport
        self._on_fatal_outside = on_fatal
        self._meters = meters or Meters()
        self._meters.depths |= self._queues()
        self._folder = config.data / "partitions"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._memory = PodMemory(config.data, epochs=self._known_epochs)
        self.session = SessionKeeper(
            kube=kube,
            clock=clock,
            memory=self._memory,
            session=config.session,
            kvns=config.kvns,
            namespace=config.namespace,
            times=LeaseTimes(),
        )
        self._links = Links(transport=transport, session=config.session, kvns=config.kvns, spawn=self._spawn)
        self._turns = Turns(kube)
        self._rota = Rota(clock, taking_over=lambda: self._turns.reading)
        self._feeds = Feeds(
            kvns=config.kvns,
            session=config.session,
            lookup=self._owned_of,
            expects=lambda uid: uid in self._partitions,
            session_over=partial(is_over, kube, config.namespace),
            spawn=self._spawn,
        )
        self._around = self._shared(executor, new_id)
        self._leaver = Leaver(
            kube=kube,
            namespace=config.namespace,
            pod=self.pod,
            held=self._held,
            discard=self._discard,
            spawn=self._spawn,
        )
        self._catalog = Catalog()  # of all partitions of the namespace
        self._partitions: dict[str, Partition] = {}  # the replicas on this shard, by UID
        self._stored: dict[str, Replica] = {}  # opened at the start, their KVPartition not seen yet
        self._opening: set[str] = set()
        self._openings = Openings(self._folder, executor=executor, new_id=new_id, clock=clock)
        self._listener: Listener | None = None
        self._failed = False
        self._informers = self._watched()
        self._settings = Informer(kube, KV_NAMESPACES, config.namespace, on_change=self._settings_changed)

    def _queues(self) -> dict[str, Callable[[], int]]:
        """How much waits here, by queue: counted when somebody asks."""
        return {
            "held": lambda: sum(each.waiting.count for each in self._partitions.values()),
            "round": lambda: sum(each.engine.waiting_for_round for each in self._owned()),
            "standbys": lambda: sum(each.engine.waiting_for_standbys for each in self._owned()),
        }

    def _shared(self, executor: Executor, new_id: Callable[[], str]) -> Surroundings:
        """What each partition is given."""
        return Surroundings(
            kube=self._turns,
            namespace=self.config.namespace,
            clock=self._clock,
            session=self.session,
            memory=self._memory,
            meters=self._meters,
            rota=self._rota,
            folder=self._folder,
            executor=executor,
            new_id=new_id,
            links=self._links,
            begun=self._feeds.begun,
            spawn=self._spawn,
            on_fatal=self._fatal,
        )

    def _watched(self) -> tuple[Informer, Informer]:
        """What to hold, and who owns what: the KVPartitions and partition Leases of this namespace."""
        kube, namespace = self._kube, self.config.namespace
        labels = f"{leases.LABEL_NAMESPACE}={self.kvns}"
        owned = f"{labels},{leases.LABEL_KIND}={leases.KIND_PARTITION}"
        return (
            Informer(kube, KV_PARTITIONS, namespace, labels=labels, on_change=self._partition_changed),
            Informer(kube, LEASES, namespace, labels=owned, on_change=self._lease_changed),
        )

    # -- life -------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Waits for the data folder, opens what lies there, listens for followers, and takes the session."""
        await self._memory.open(self._clock)
        await asyncio.gather(*(self._open_stored(uid) for uid in folder.uids(self._folder)))
        self._listener = await self._transport.listen(self.config.peer, self._feeds.serve)
        self._spawn(self._settings.run())
        await self._settings.synced.wait()  # V is known before the first renewal carries it
        await self.session.take(http=self.config.http, peer=self.config.peer)

    async def run(self) -> None:
        """Serves until the session is over.

        Raises:
            SessionOver: the process must end.
        """
        # Spawned: one that ends by an error that nobody expected ends the process, and is not missed silently.
        running = (*(informer.run() for informer in self._informers), self._tick(), self._put_away())
        loops = [self._spawn(loop) for loop in running]
        try:
            await self.session.run()
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)

    async def drain(self) -> None:
        """Gives all owned partitions away, in planned moves, as far as DRAIN_SECONDS allow.

        It stays until the new owners serve: they count this replica, and would wait for one that is gone.
        """
        owned = [p for p in self._partitions.values() if p.fence.role in {Role.OWNER, Role.GRANTED}]
        slots = asyncio.Semaphore(min(MOVING_AT_ONCE_MAX, 1 + len(owned) // MOVES_IN_A_ROW))

        async def move(partition: Partition) -> None:
            async with slots:
                epoch = partition.fence.epoch
                if not await partition.move():
                    return
                serves = self._spawn(partition.succeeded(epoch))
                await asyncio.wait([serves], timeout=NEXT_MOVE_SECONDS)
            await serves

        if owned:
            moves = [self._spawn(move(partition)) for partition in owned]
            await asyncio.wait(moves, timeout=limits.DRAIN_SECONDS)

    async def stop(self, *, release: bool) -> None:
        """Serves nothing more; with `release` says so on the session Lease."""
        self.session.end("the shard stops")
        for owned in self._owned():
            owned.stop(NotOwner("the shard stops"))
        if release:
            await self.session.release()
        self._links.close()
        self._feeds.close()
        if self._listener is not None:
            self._listener.close()
        await self._tasks.close()
        try:
            async with asyncio.timeout(limits.CLOSE_SECONDS):
                for partition in list(self._partitions.values()):
                    await partition.close()
                for replica in self._stored.values():
                    await replica.close()
        except TimeoutError:
            logger.error("a disk does not answer: its replicas are left to the end of the process")
        self._memory.close()

    # -- api.Node ---------------------------------------------------------------------------------------------

    def table(self, name: str) -> Table:
        """A table as its partitions describe it."""
        table = self._catalog.table(name)
        if table is not None:
            return table
        if not all(informer.synced.is_set() for informer in self._informers):
            raise Unavailable("this shard has just begun: it does not know the tables yet")
        raise Invalid(f"no table {name!r} in namespace {self.kvns!r}", status=404, field="table")

    def route(self, table: str, index: int) -> Route:
        """Who owns a partition, as far as this shard knows."""
        spec = self._catalog.at(table, index)
        name = f"{table}-{index}"
        if spec is None:
            return Route(partition=name, index=index, epoch=0, owner="", http="", local=False)
        partition = self._partitions.get(spec.uid)
        # What the partition has acted on is ahead of the watch, never behind it.
        seen = (partition.lease if partition else None) or self._catalog.lease(spec.uid)
        if seen is None or seen.session is None:
            return Route(partition=name, index=index, epoch=0, owner="", http="", local=False)
        local = partition is not None and seen.session == self.session.session
        owner = "" if seen.is_released and not local else seen.session.pod
        http = seen.owner_http if owner else ""
        return Route(partition=name, index=index, epoch=seen.epoch, owner=owner, http=http, local=local)

    def local(self, table: str, index: int) -> Partition | None:
        """The replica on this shard."""
        spec = self._catalog.at(table, index)
        return self._partitions.get(spec.uid) if spec else None

    def holding(self, table: str, index: int) -> bool:
        """Whether `hold` would wait."""
        return (partition := self.local(table, index)) is not None and partition.holding

    async def hold(self, table: str, index: int) -> None:
        """Waits while a planned move is under way."""
        if (partition := self.local(table, index)) is not None:
            await partition.hold()

    async def release(self, uid: str, epoch: int, target: str) -> bool:
        """Begins a planned move of a partition owned under `epoch`; False: it is not."""
        partition = self._partitions.get(uid)
        if partition is None or partition.owned is None or partition.fence.epoch != epoch:
            return False
        self._spawn(_ignore_result(partition.move(target)))
        return True

    def report(self) -> dict[str, object]:
        """The body of /peer/v1/report."""
        return {
            "session": str(self.session.session),
            "pod": self.pod,
            "ready": self.ready(),
            "renewal": self.session.number,
            "renewalLateness": self.session.lateness.report(),
            "validSeconds": round(max(0.0, self.session.deadline - self._clock.now()), 3),
            "meters": self._meters.report(),
            **disk_report(self._folder),
            "replicas": [
                {**self._partitions[uid].report(), **self._openings.took[uid]} for uid in sorted(self._partitions)
            ],
        }

    def chain(self, uid: str, seq: int) -> str | None:
        """The chain hash of a journal entry, in hex; None: there is no such replica, or not that entry."""
        partition = self._partitions.get(uid)
        if partition is None or partition.replica.closed or seq > partition.replica.last.seq:
            return None
        return partition.replica.chain_at(seq).hex() or None

    def live(self) -> bool:
        """Nothing fatal happened."""
        return not self._failed

    def ready(self) -> bool:
        """It holds its session and has opened what it should hold."""
        synced = all(informer.synced.is_set() for informer in self._informers)
        return self.live() and synced and not self._opening and self.session.valid()

    # -- changes ----------------------------------------------------------------------------------------------

    def _partition_changed(self, kind: str, item: dict[str, Any]) -> None:
        try:
            spec = PartitionSpec.parse(item)
        except (KeyError, TypeError, ValueError, Invalid) as error:
            logger.error("KVPartition %s: %r", item["metadata"]["name"], error)
            return
        if kind == "DELETED":
            self._forget(spec)
            return
        if not self._catalog.add(spec):
            return  # its status changed, which happens far more often
        partition = self._partitions.get(spec.uid)
        if partition is not None:
            partition.respec(spec)
        elif self.pod in spec.replicas and spec.uid not in self._opening:
            self._opening.add(spec.uid)
            self._spawn(self._open(spec))
        self._leaver.consider(spec.uid)

    def _lease_changed(self, kind: str, item: dict[str, Any]) -> None:
        if kind == "DELETED":
            return  # the record is lost, not the ownership: the operator sees to it
        try:
            seen = PartitionLease.parse(item)
        except leases.MalformedLease as error:
            logger.error("%s: %s", item["metadata"]["name"], error)
            return
        if not self._catalog.see(item, seen):
            return
        partition = self._partitions.get(seen.partition_uid)
        if partition is not None:
            partition.lease_changed(item)
        if seen.asked_target and seen.session == self.session.session:  # by an operator that cannot reach us
            self._spawn(_ignore_result(self.release(seen.partition_uid, seen.epoch, seen.asked_target)))

    def _settings_changed(self, kind: str, item: dict[str, Any]) -> None:
        if item["metadata"]["name"] != self.kvns or kind == "DELETED":
            return
        self.session.times = LeaseTimes.of(item["spec"])

    async def _open_stored(self, uid: str) -> None:
        """Opens a replica that lies on disk, whether or not its KVPartition still exists."""
        try:
            self._stored[uid] = await self._openings.open(uid)
        except StorageError as error:
            logger.error("%s: not opened: %s", uid, error)

    async def _put_away(self) -> None:
        """Closes and marks what lies here of partitions that were deleted while this shard was away.

        What their deletionPolicy was, nobody here knows any more: the files stay, for a person to remove.
        """
        await self._informers[0].synced.wait()
        for uid in sorted(self._stored.keys() - self._catalog.uids()):
            logger.warning("%s: no KVPartition has this UID any more; its files are kept", uid)
            del self._openings.took[uid]
            await self._stored.pop(uid).close()
            await run(self._around.executor, partial(Replica.retain, self._folder, uid))

    async def _open(self, spec: PartitionSpec) -> None:
        try:
            replica = self._stored.pop(spec.uid, None) or await self._openings.open(spec.uid)
        except CommitFailed as error:
            self._fatal(error)
            return
        except StorageError as error:
            # Stays in `_opening`: the pod is not Ready, and does not report this replica.
            logger.error("%s: not opened: %s", spec.name, error)
            return
        self._opening.discard(spec.uid)
        now = self._catalog.spec(spec.uid)
        if now is None:  # deleted while it was being opened
            self._openings.took.pop(spec.uid, None)
            await self._remove(Partition(spec, replica, self._around))
            return
        partition = self._partitions[spec.uid] = Partition(now, replica, self._around)
        raw = self._catalog.raw_lease(spec.uid)
        if raw is not None:
            partition.lease_changed(raw)

    def _forget(self, spec: PartitionSpec) -> None:
        self._catalog.forget(spec)
        self._opening.discard(spec.uid)
        self._openings.took.pop(spec.uid, None)
        partition = self._partitions.pop(spec.uid, None)
        if partition is not None:
            self._spawn(self._remove(partition))

    def _held(self, uid: str) -> Held | None:
        """What lies here of a partition, for the leaver."""
        spec, partition = self._catalog.spec(uid), self._partitions.get(uid)
        replica = partition.replica if partition else self._stored.get(uid)
        if spec is None or replica is None or uid in self._opening:
            return None
        return Held(
            spec=spec,
            lease=self._catalog.lease(uid),
            known_epoch=max(replica.known_epoch, partition.fence.epoch if partition else 0),
            set_version=replica.set_version,
            members=replica.members,
            suspect=self._memory.is_suspect(uid),
        )

    async def _discard(self, uid: str) -> None:
        """The partition was moved away from this pod: its files go. Placed here again, it begins anew."""
        self._opening.add(uid)
        partition, stored = self._partitions.pop(uid, None), self._stored.pop(uid, None)
        self._openings.took.pop(uid, None)
        if partition is not None:
            await partition.close()
        elif stored is not None:
            await stored.close()
        await run(self._around.executor, partial(Replica.discard, self._folder, uid))
        self._opening.discard(uid)
        spec = self._catalog.spec(uid)
        if spec is not None and self.pod in spec.replicas:
            self._opening.add(uid)
            await self._open(spec)

    async def _remove(self, partition: Partition) -> None:
        """A KVPartition was deleted: its files go, or stay marked, by its deletionPolicy."""
        await partition.close()
        files = Replica.retain if partition.spec.keep_data else Replica.discard
        await run(self._around.executor, lambda: files(self._folder, partition.spec.uid))

    # -- loops ------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        """The one timer of a shard: silent peers, pings, the deadline of what is under way.

        Its work grows with the peers and with what is under way, not with the partitions.
        """
        number, before = 0, self._clock.now()
        while True:
            await asyncio.sleep(limits.TICK_SECONDS)
            now = self._clock.now()
            elapsed, before = min(now - before, limits.TICK_SLICE_SECONDS_MAX), now
            number += 1
            self._rota.tick(elapsed, valid=self.session.valid())
            self._links.tick(elapsed)
            self._feeds.tick(elapsed)
            self._links.ping(number)
            self._feeds.ping(number)

    def _owned(self) -> list[Owned]:
        return [each.owned for each in self._partitions.values() if each.owned is not None]

    def _owned_of(self, uid: str) -> Owned | None:
        partition = self._partitions.get(uid)
        return partition.owned if partition else None

    def _known_epochs(self) -> Mapping[str, int]:
        stored = {uid: replica.known_epoch for uid, replica in self._stored.items()}
        return {**stored, **{uid: p.replica.known_epoch for uid, p in self._partitions.items()}}

    def _fatal(self, error: BaseException) -> None:
        """A commit failed: nothing is acknowledged any more, and the process ends."""
        logger.critical("commit failed: %s", error)
        self._failed = True
        self.session.end("a commit failed")
        for owned in self._owned():
            owned.stop(NotOwner("a commit failed on this shard"))
        self._on_fatal_outside(error)

    def _unexpected(self, error: BaseException) -> None:
        """A task ended by it, in code that holds a protocol: stop rather than go on."""
        logger.critical("unexpected error", exc_info=error)
        self._fatal(error)


async def _ignore_result(work: Coroutine[Any, Any, bool]) -> None:
    with contextlib.suppress(SessionOver):
        await work
