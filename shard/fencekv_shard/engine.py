"""The owner's side of a partition for one epoch: commit rounds, commit_seq, acknowledgements.

A round takes what waits, evaluates it on the head of the journal, appends it with one fsync, and leaves its
answers pending until commit_seq has reached what they depend on. The next round does not wait for that.

Invariants:
  * Nothing is acknowledged that is above commit_seq, or after the session's deadline: the deadline is looked at
    on the loop, in the same step that sets the answer.
  * commit_seq only stands at the end of a round, and never falls.
  * An answer depends only on entries at or below the seq that it waits for, a failed condition's answer too.
  * A request that fails its checks wrote nothing, and fails alone.
  * Once stopped, nothing is acknowledged any more and commit_seq stands: the replica may follow another owner.
  * Entries of our own never wait for room: without them commit_seq, which makes room, might never move again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection
from typing import Protocol

from fencekv.clock import Clock
from fencekv.errors import Exhausted, FenceKVError, NotOwner, Unavailable, Unknown
from fencekv_shard import limits
from fencekv_shard.api import Committed, Durability, Options
from fencekv_shard.journal import Entry, Ownership, accepted_loss_entry, in_sync_entry, ownership_entry
from fencekv_shard.replica import Closed, Replica
from fencekv_shard.rounds import Internal, Pending, Request, Round, fail
from fencekv_shard.spec import PartitionSpec
from fencekv_shard.store import DiskFull, PromiseMoved
from fencekv_shard.transaction import Put, Transaction

logger = logging.getLogger(__name__)


class Deadline(Protocol):
    """The session, as far as the engine needs it."""

    @property
    def deadline(self) -> float:
        """Until when this session may act, CLOCK_BOOTTIME in seconds."""
        ...


class Engine:
    """Commits transactions under one epoch.

    Args:
        member: this replica as the in-sync set names it.
        on_growth: called after each fsync that added entries, and whenever commit_seq rises.
        on_deposed: called once if a newer epoch turns out to be promised here.
        on_fatal: called if a commit itself failed; the process must end.
    """

    def __init__(
        self,
        *,
        replica: Replica,
        epoch: int,
        member: str,
        session: Deadline,
        clock: Clock,
        spec: PartitionSpec,
        on_growth: Callable[[], None],
        on_deposed: Callable[[], None],
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self.replica, self.epoch, self.member, self.spec = replica, epoch, member, spec
        self._session, self._clock = session, clock
        self._on_growth, self._on_deposed, self._on_fatal = on_growth, on_deposed, on_fatal
        self.counted: set[str] = set()  # standbys whose confirmation is needed
        self.confirmed: dict[str, int] = {}  # member -> seq that it has fsynced under this epoch
        self.heard_at: dict[str, float] = {}  # member -> when it last said anything
        self.standbys_in_set = 0
        self.replicated_seq = -1
        self._queue: deque[Request | Internal] = deque()
        self._queue_bytes = 0
        self._running: asyncio.Task[None] | None = None
        self._pending: dict[bool, deque[Pending]] = {False: deque(), True: deque()}
        self._round_ends: deque[int] = deque()
        # Rounds that no standby has confirmed: their ends, and when they were fsynced here.
        self._unshipped: deque[tuple[int, float]] = deque()
        self._relaxing: tuple[int, frozenset[str]] | None = None  # a smaller counted set, valid from this seq on
        self._stopped: FenceKVError | None = None
        self._changed = asyncio.Event()  # commit_seq, a counted set, or what `_run` may take
        self._loss_journaled = False
        self.rounds = 0

    # -- requests ---------------------------------------------------------------------------------------------

    async def submit(self, transaction: Transaction, options: Options) -> Committed:
        """Commits a transaction; `fence.admit` was asked before.

        Raises:
            NotOwner, Unavailable, Exhausted, Invalid: nothing was done.
            Unknown: the outcome is not known.
        """
        replicated = Durability.REPLICATED in (self.spec.durability, options.durability)
        self._check_copies(replicated=replicated)
        if self._stopped is not None:
            raise self._stopped
        size = transaction.size_bytes()
        if (
            len(self._queue) >= limits.QUEUE_TRANSACTIONS_MAX
            or self._queue_bytes + size > limits.QUEUE_BYTES_MAX
            or len(self._pending[replicated]) >= limits.UNCOMMITTED_TRANSACTIONS_MAX
        ):
            raise Exhausted("too many transactions are waiting for this partition")
        request = Request(transaction, replicated, asyncio.get_running_loop().create_future(), size)
        self._queue.append(request)
        self._queue_bytes += size
        self._kick()
        try:
            async with asyncio.timeout(limits.UNCLEAN_ANSWER_SECONDS):
                return await request.future
        except TimeoutError as error:
            raise self._given_up(request) from error

    async def wait_committed(self, seq: int) -> None:
        """Waits until commit_seq >= seq. Raises what stopped the engine, if that comes first."""
        while self.replica.commit_seq < seq:
            if self._stopped is not None:
                raise self._stopped
            await self._change()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    # -- ownership --------------------------------------------------------------------------------------------

    async def open(
        self, *, session: str, members: tuple[str, ...], set_version: int, accepted_loss: int | None = None
    ) -> None:
        """Commits everything up to the ownership entry under the epoch, which is promised. May be repeated.

        `accepted_loss`: the epoch whose loss a person accepted, so that this one could begin; it is journaled.

        Raises:
            NotOwner: a higher epoch is promised here.
            Exhausted: the disk is full; try again.
        """
        self.count([member for member in members if member != self.member])
        self.standbys_in_set = len(members) - 1
        last, now_ns = self.replica.last, self._clock.unix_ns
        if last.epoch < self.epoch:
            ownership = Ownership(
                previous_epoch=last.epoch,
                previous_seq=last.seq,
                previous_txid=last.txid,
                previous_chain=self.replica.chain,
                session=session,
            )
            await self._append_internal(
                lambda seq, txid: ownership_entry(
                    seq=seq, txid=txid, epoch=self.epoch, unix_ns=now_ns(), ownership=ownership
                )
            )
        if accepted_loss is not None and not self._loss_journaled:
            await self._append_internal(
                lambda seq, txid: accepted_loss_entry(
                    seq=seq, txid=txid, epoch=self.epoch, unix_ns=now_ns(), accepted_epoch=accepted_loss
                )
            )
            self._loss_journaled = True
        seq = await self.record_set(members, set_version)
        await self.wait_committed(seq)

    async def record_set(self, members: tuple[str, ...], set_version: int) -> int:
        """Journals a version of the in-sync set; gives the entry's seq once it is fsynced here."""
        now_ns = self._clock.unix_ns
        return await self._append_internal(
            lambda seq, txid: in_sync_entry(
                seq=seq,
                txid=txid,
                epoch=self.epoch,
                unix_ns=now_ns(),
                version=set_version,
                members=members,
            )
        )

    @property
    def relaxing(self) -> bool:
        """Whether a smaller set waits for its entry to be confirmed."""
        return self._relaxing is not None

    def relaxes_to(self, standbys: Collection[str]) -> bool:
        """Whether exactly these will be counted once the entry that says so is confirmed."""
        return self._relaxing is not None and self._relaxing[1] == set(standbys)

    def count(self, standbys: Collection[str]) -> None:
        """Counts these standbys too, from now on."""
        self.counted.update(standbys)
        if self._relaxing is not None:
            self._relaxing = (self._relaxing[0], self._relaxing[1].union(standbys))

    def relax(self, *, seq: int, standbys: Collection[str]) -> None:
        """Counts only `standbys` from now on, once each of them has confirmed `seq`, the entry that says so."""
        self._relaxing = (seq, frozenset(standbys))
        self.advance()

    def confirm(self, member: str, seq: int) -> None:
        """A standby has fsynced everything up to `seq` under this epoch."""
        if seq > self.replica.last.seq:
            logger.error("%s confirms %d, which was never sent", member, seq)
            return
        self.confirmed[member] = max(seq, self.confirmed.get(member, -1))
        self.heard(member)
        self.advance()

    def heard(self, member: str) -> None:
        """A standby said something."""
        self.heard_at[member] = self._clock.now()

    def stop(self, error: FenceKVError) -> None:
        """Ends it: what waits was not started and gets `error`; what was started is Unknown."""
        if self._stopped is not None:
            return
        self._stopped = error
        self.expire(error, Unknown("the ownership ended before the acknowledgement"))
        self._refuse_waiting(error)
        self._changed.set()

    def expire(self, refusal: FenceKVError | None = None, unknown: Unknown | None = None) -> None:
        """The deadline has passed: no request that is under way can be acknowledged any more."""
        refusal = refusal or NotOwner("the session's deadline has passed", epoch=self.epoch)
        unknown = unknown or Unknown("the session's deadline passed before the acknowledgement")
        for item in self._queue:
            if isinstance(item, Request):
                fail(item.future, refusal)
        self._queue = deque(item for item in self._queue if isinstance(item, Internal))
        self._queue_bytes = 0
        for pending in self._pending.values():
            while pending:
                fail(pending.popleft().future, unknown)

    def _refuse_waiting(self, error: FenceKVError) -> None:
        for item in self._queue:
            if isinstance(item, Request):
                fail(item.future, error)
            elif not item.future.done():
                item.future.set_exception(error)
                item.future.exception()  # looked at: nobody may be waiting for it any more
        self._queue.clear()
        self._queue_bytes = 0

    async def drained(self) -> None:
        """Waits until nothing is queued, running, or unconfirmed by a counted standby."""
        while True:
            if self._running is not None:
                await asyncio.wait([self._running])
            elif self.replicated_seq < self.replica.last.seq or self.replica.commit_seq < self.replica.last.seq:
                await self._change()
            else:
                return
            if self._stopped is not None:
                raise self._stopped

    # -- rounds -----------------------------------------------------------------------------------------------

    def _kick(self) -> None:
        if self._running is None and self._queue and self._stopped is None:
            self._running = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            while self._queue and self._stopped is None:
                batch = self._take() if await self._make_room() else self._take_internal()
                if batch:
                    await self._round(batch)
                elif self._queue and self._stopped is None:
                    await self._change()  # nothing of the overlay is committed yet: standbys must confirm first
        except DiskFull as error:
            self._refuse_waiting(Exhausted(f"the disk of the owner is full: {error}"))
        except Closed:
            self.stop(NotOwner("this shard does not hold the partition any more", epoch=self.epoch))
        except Exception as error:  # a failed commit, a disk that contradicts itself, a bug: stop the process
            self.stop(NotOwner("an unexpected error on this shard", epoch=self.epoch))
            self._on_fatal(error)
        finally:
            self._running = None
            self._kick()

    async def _make_room(self) -> bool:
        """Applies what is committed while the overlay is full; whether there is room then."""
        while self.replica.overlay_full:
            if await self.replica.apply_step() == 0:
                return not self.replica.overlay_full
        return True

    def _take_internal(self) -> list[Request | Internal]:
        batch: list[Request | Internal] = [item for item in self._queue if isinstance(item, Internal)]
        self._queue = deque(item for item in self._queue if isinstance(item, Request))
        return batch

    def _take(self) -> list[Request | Internal]:
        batch: list[Request | Internal] = []
        size = 0
        while self._queue and len(batch) < limits.ROUND_TRANSACTIONS_MAX:
            following = self._queue[0]
            added = following.size_bytes if isinstance(following, Request) else 0
            if batch and size + added > limits.ROUND_BYTES_MAX:
                break
            batch.append(self._queue.popleft())
            size += added
        self._queue_bytes = max(0, self._queue_bytes - size)
        return batch

    async def _round(self, batch: list[Request | Internal]) -> None:
        if not self.within_deadline():
            for item in batch:
                if isinstance(item, Request):
                    fail(item.future, NotOwner("the session's deadline has passed", epoch=self.epoch))
            batch = [item for item in batch if isinstance(item, Internal)]
        building = Round(self.replica, epoch=self.epoch, unix_ns=self._clock.unix_ns)
        in_reserve = self.replica.in_reserve()
        for item in batch:
            if isinstance(item, Internal):
                building.add_internal(item)
            elif in_reserve and _puts(item.transaction):
                fail(item.future, Exhausted("the disk of the owner is full: only deletes are taken"))
            elif not item.future.done():
                building.add(item)
        if building.entries and not await self._commit(building):
            return
        self._after_fsync(building)

    async def _commit(self, building: Round) -> bool:
        try:
            await self.replica.append_own(building.entries, epoch=self.epoch)
        except PromiseMoved:
            _fail_round(building, NotOwner("a newer epoch is promised here", epoch=self.epoch))
            self.stop(NotOwner("a newer epoch is promised here", epoch=self.epoch))
            self._on_deposed()
            return False
        except DiskFull as error:
            _fail_round(building, Exhausted(f"the disk of the owner is full: {error}"))
            return False
        except Closed:
            _fail_round(building, NotOwner("this shard does not hold the partition any more", epoch=self.epoch))
            raise
        except Exception as error:
            _fail_round(building, Unknown("the commit failed: its outcome is not known"))
            self.stop(NotOwner("a commit failed on this shard", epoch=self.epoch))
            self._on_fatal(error)
            return False
        return True

    def _after_fsync(self, building: Round) -> None:
        self.rounds += 1
        for internal, seq in building.internal:
            if not internal.future.done():
                internal.future.set_result(seq)
        if self._stopped is not None:
            for request, _ in building.answers:
                fail(request.future, Unknown("the ownership ended during the commit"))
            return
        if building.entries:
            self._round_ends.append(building.seq)
            if self._has_copies:
                self._unshipped.append((building.seq, self._clock.now()))
        if self.within_deadline():
            for request, pending in building.answers:
                self._pending[request.replicated].append(pending)
        else:
            for request, _ in building.answers:
                fail(request.future, Unknown("the session's deadline passed during the commit"))
        if building.entries:
            self._on_growth()
        self.advance()

    async def _append_internal(self, make: Callable[[int, int], Entry]) -> int:
        if self._stopped is not None:
            raise self._stopped
        internal = Internal(make, asyncio.get_running_loop().create_future())
        self._queue.append(internal)
        self._changed.set()
        self._kick()
        return await internal.future

    # -- acknowledgement --------------------------------------------------------------------------------------

    def within_deadline(self) -> bool:
        """Gate 1: whether the session may act now."""
        return self._clock.now() < self._session.deadline

    def advance(self) -> None:
        """Moves commit_seq as far as confirmations allow, and acknowledges what it has reached."""
        if self._stopped is not None:
            return
        if self._relaxing is not None:
            seq, standbys = self._relaxing
            if all(self.confirmed.get(member, -1) >= seq for member in standbys):
                self.counted, self._relaxing = set(standbys), None
        self.replicated_seq = max(self.replicated_seq, self._replicated())
        best = max((self.confirmed.get(member, -1) for member in self.counted), default=-1)
        while self._unshipped and self._unshipped[0][0] <= best:
            self._unshipped.popleft()
        target = self.replica.last.seq if self.spec.durability is Durability.STANDARD else self.replicated_seq
        reached = -1
        while self._round_ends and self._round_ends[0] <= target:
            reached = self._round_ends.popleft()
        if reached > self.replica.commit_seq:
            self.replica.commit(reached)
            self._on_growth()
        self._acknowledge()
        self._changed.set()

    def _replicated(self) -> int:
        """The seq that every counted member has fsynced."""
        return min((self.confirmed.get(member, -1) for member in self.counted), default=self.replica.last.seq)

    def _acknowledge(self) -> None:
        for replicated, pending in self._pending.items():
            reached = self.replica.commit_seq
            if replicated:
                reached = min(reached, self.replicated_seq)
                if self._too_few():
                    continue
            elif self._unshipped_too_long():
                continue
            while pending and pending[0].needs_seq <= reached:
                item = pending.popleft()
                if not self.within_deadline():
                    fail(item.future, Unknown("the session's deadline passed before the acknowledgement"))
                elif isinstance(item.answer, FenceKVError):
                    fail(item.future, item.answer)
                elif not item.future.done():
                    item.future.set_result(item.answer)

    def _check_copies(self, *, replicated: bool) -> None:
        if replicated and self._too_few():
            have, want = self.standbys_in_set, max(1, self.spec.min_in_sync)
            raise Unavailable(f"{have} standbys in sync, {want} needed", epoch=self.epoch)
        if not replicated and self._unshipped_too_long():
            raise Unavailable("no standby has confirmed for maxUnshippedSeconds", epoch=self.epoch)

    def _too_few(self) -> bool:
        return self.standbys_in_set < max(1, self.spec.min_in_sync)

    @property
    def _has_copies(self) -> bool:
        return len(self.spec.replicas) > 1

    def _unshipped_too_long(self) -> bool:
        """Whether the last confirmed copy is older than the table allows; without standbys it has no bound."""
        if not self._has_copies:
            return False
        heard = max((self.heard_at.get(member, float("-inf")) for member in self.counted), default=float("-inf"))
        copied_at = min(heard, self._unshipped[0][1] if self._unshipped else float("inf"))
        return self._clock.now() - copied_at > self.spec.unshipped_seconds_max

    def _given_up(self, request: Request) -> FenceKVError:
        if request in self._queue:
            self._queue.remove(request)
            self._queue_bytes = max(0, self._queue_bytes - request.size_bytes)
            return Unavailable("the partition did not get to this request in time")
        return Unknown("the standbys did not confirm in time")


def _puts(transaction: Transaction) -> bool:
    return any(isinstance(part, Put) for part in (*transaction.then, *transaction.otherwise))


def _fail_round(building: Round, error: FenceKVError) -> None:
    for request, _ in building.answers:
        fail(request.future, error)
    for internal, _ in building.internal:
        fail(internal.future, error)
