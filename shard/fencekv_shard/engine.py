"""The owner's side of a partition for one epoch: commit_seq and acknowledgements.

`pipeline` brings rounds to the disk; here their answers wait until commit_seq has reached what they depend on. The
next round does not wait for that.

Invariants:
  * Nothing is acknowledged that is above commit_seq, or after the session's deadline: the deadline is looked at
    on the loop, in the same step that gives the answer.
  * commit_seq only stands at the end of a round, and never falls.
  * An answer depends only on entries at or below the seq that it waits for, a failed condition's answer too.
  * A request that fails its checks wrote nothing, and fails alone.
  * Once stopped, nothing is acknowledged any more and commit_seq stands: the replica may follow another owner.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection
from typing import Final, Protocol

from fencekv.clock import Clock
from fencekv.errors import Exhausted, FenceKVError, NotOwner, Unavailable, Unknown
from fencekv_shard import limits
from fencekv_shard.api import Committed, Durability, Options, Waiter
from fencekv_shard.journal import (
    Checkpoint,
    Ownership,
    accepted_loss_entry,
    checkpoint_entry,
    in_sync_entry,
    ownership_entry,
)
from fencekv_shard.meters import Gate, Meters
from fencekv_shard.pipeline import Pipeline
from fencekv_shard.replica import Replica
from fencekv_shard.rounds import Make, Request, Round
from fencekv_shard.spec import PartitionSpec
from fencekv_shard.store import DiskFull, PromiseMoved
from fencekv_shard.transaction import Transaction
from fencekv_shard.view import Closed

logger = logging.getLogger(__name__)

ANSWERS_A_LOOK: Final = 16  # given between two looks at the deadline


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
        meters: gets what rounds took and what was refused; None: nobody asks.
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
        meters: Meters | None = None,
    ) -> None:
        self.replica, self.epoch, self.member, self.spec = replica, epoch, member, spec
        self._session, self._clock = session, clock
        self._on_growth, self._on_deposed, self._on_fatal = on_growth, on_deposed, on_fatal
        self.counted: set[str] = set()  # standbys whose confirmation is needed
        self.confirmed: dict[str, int] = {}  # member -> seq that it has fsynced under this epoch
        self.heard_at: dict[str, float] = {}  # member -> when it last said anything
        self.standbys_in_set = 0
        self.replicated_seq = -1
        self._meters = meters or Meters()
        self._pipeline = Pipeline(replica=replica, epoch=epoch, clock=clock, owner=self, meters=self._meters)
        self._pending: dict[bool, deque[Request]] = {False: deque(), True: deque()}
        # Rounds that are not committed: their ends, and when the first request of each was taken.
        self._round_ends: deque[tuple[int, float]] = deque()
        # Rounds that no standby has confirmed: their ends, and when they were fsynced here.
        self._unshipped: deque[tuple[int, float]] = deque()
        self._relaxing: tuple[int, frozenset[str]] | None = None  # a smaller counted set, valid from this seq on
        self._stopped: FenceKVError | None = None
        self._changed = asyncio.Event()  # commit_seq, a counted set, or the end of a round
        self._loss_journaled = False
        self.rounds = 0

    # -- requests ---------------------------------------------------------------------------------------------

    def begin(self, transaction: Transaction, options: Options, waiter: Waiter) -> None:
        """Takes a transaction to commit; `fence.admit` was asked before. The waiter is told later, on the loop.

        Raises:
            NotOwner, Unavailable, Exhausted: nothing was done, and the waiter is told nothing.
        """
        replicated = Durability.REPLICATED in (self.spec.durability, options.durability)
        self._check_copies(replicated=replicated)
        if self._stopped is not None:
            raise self._stopped
        if len(self._pending[replicated]) >= limits.UNCOMMITTED_TRANSACTIONS_MAX:
            raise Exhausted("too many transactions wait for the standbys of this partition")
        now = self._clock.now()
        self._pipeline.submit(Request(transaction, replicated, waiter, transaction.size_bytes(), now))

    async def submit(self, transaction: Transaction, options: Options) -> Committed:
        """`begin`, and waits.

        Raises:
            NotOwner, Unavailable, Exhausted, Invalid: nothing was done.
            Unknown: the outcome is not known.
        """
        future: asyncio.Future[Committed] = asyncio.get_running_loop().create_future()
        self.begin(transaction, options, FutureWaiter(future))
        return await future

    def give_up_overdue(self) -> None:
        """Answers what has waited for too long; called now and then."""
        before = self._clock.now() - limits.UNCLEAN_ANSWER_SECONDS
        waiting, writing = self._pipeline.overdue(before)
        for request in waiting:
            request.waiter.refused(Unavailable("the partition did not get to this request in time"))
        for request in writing:
            request.fail(Unknown("the disk of the owner did not answer in time"))
        for queue in self._pending.values():
            while queue and queue[0].since < before:
                queue.popleft().fail(Unknown("the standbys did not confirm in time"))

    @property
    def waiting_for_round(self) -> int:
        """How many requests are not being written yet."""
        return self._pipeline.waiting

    @property
    def waiting_for_standbys(self) -> int:
        """How many requests are fsynced here and not answered."""
        return sum(len(pending) for pending in self._pending.values())

    @property
    def busy(self) -> bool:
        """Whether a request is unanswered, or a round is being written."""
        return not self._pipeline.idle or any(self._pending.values())

    @property
    def unsettled(self) -> bool:
        """Whether a request, an epoch that is being opened or a planned move may wait for a counted standby."""
        return self.busy or self.replicated_seq < self.replica.last.seq

    @property
    def lacks_copies(self) -> bool:
        """Whether writes are refused because too few standbys are in sync, or none has confirmed for too long."""
        return self._too_few() or (self.spec.durability is Durability.STANDARD and self._unshipped_too_long())

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
        await self.replica.settled()  # what an earlier epoch of this shard was writing has ended
        if self._stopped is not None:
            raise self._stopped
        self.count([member for member in members if member != self.member])
        self.standbys_in_set = len(members) - 1
        # In one round: whoever waits for the new owner waits for each fsync, here and at the standbys.
        seq = await self._append_internal(
            *self._ownership(session),
            *self._loss(accepted_loss),
            self._in_sync(members, set_version),
        )
        self._loss_journaled = accepted_loss is not None
        await self.wait_committed(seq)

    async def record_set(self, members: tuple[str, ...], set_version: int) -> int:
        """Journals a version of the in-sync set; gives the entry's seq once it is fsynced here."""
        if self.replica.last.epoch < self.epoch:
            raise Unavailable("the epoch has not begun here")
        return await self._record_set(members, set_version)

    async def _record_set(self, members: tuple[str, ...], set_version: int) -> int:
        return await self._append_internal(self._in_sync(members, set_version))

    def _ownership(self, session: str) -> list[Make]:
        """The entry that begins the epoch, if it has not begun here."""
        last = self.replica.last
        if last.epoch >= self.epoch:
            return []
        ownership = Ownership(
            previous_epoch=last.epoch,
            previous_seq=last.seq,
            previous_txid=last.txid,
            previous_chain=self.replica.chain,
            session=session,
        )
        now_ns, epoch = self._clock.unix_ns, self.epoch
        return [
            lambda seq, txid: ownership_entry(
                seq=seq, txid=txid, epoch=epoch, unix_ns=now_ns(), ownership=ownership
            )
        ]

    def _loss(self, accepted_loss: int | None) -> list[Make]:
        """The entry that says that a loss was accepted, if one was and nothing says so yet."""
        if accepted_loss is None or self._loss_journaled:
            return []
        now_ns, epoch = self._clock.unix_ns, self.epoch
        return [
            lambda seq, txid: accepted_loss_entry(
                seq=seq, txid=txid, epoch=epoch, unix_ns=now_ns(), accepted_epoch=accepted_loss
            )
        ]

    def _in_sync(self, members: tuple[str, ...], set_version: int) -> Make:
        now_ns, epoch = self._clock.unix_ns, self.epoch
        return lambda seq, txid: in_sync_entry(
            seq=seq, txid=txid, epoch=epoch, unix_ns=now_ns(), version=set_version, members=members
        )

    async def journal_checkpoint(self, checkpoint: Checkpoint) -> int:
        """Journals what the base is at a seq; gives the entry's seq once it is fsynced here."""
        now_ns = self._clock.unix_ns
        return await self._append_internal(
            lambda seq, txid: checkpoint_entry(
                seq=seq, txid=txid, epoch=self.epoch, unix_ns=now_ns(), checkpoint=checkpoint
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
        self._pipeline.end(error)
        self._forget_pending(Unknown("the ownership ended before the acknowledgement"))
        self._changed.set()

    def expire(self, refusal: FenceKVError | None = None, unknown: Unknown | None = None) -> None:
        """The deadline has passed: no request that is under way can be acknowledged any more.

        With errors of the caller's: another end of the right to write, which counts as no refusal.
        """
        if refusal is None:
            self._meters.refusals[Gate.DEADLINE] += self.waiting_for_round
            self._meters.refusals[Gate.FSYNCED] += self.waiting_for_standbys
        self._pipeline.drop_requests(refusal or self._past_deadline())
        self._forget_pending(unknown or Unknown("the session's deadline passed before the acknowledgement"))

    def _past_deadline(self) -> NotOwner:
        return NotOwner("the session's deadline has passed", epoch=self.epoch)

    def _forget_pending(self, error: Unknown) -> None:
        for pending in self._pending.values():
            while pending:
                pending.popleft().fail(error)

    async def drained(self) -> None:
        """Waits until nothing is queued, running, or unconfirmed by a counted standby."""
        while True:
            if self._stopped is not None:
                raise self._stopped
            last = self.replica.last.seq
            if self._pipeline.idle and self.replicated_seq >= last and self.replica.commit_seq >= last:
                return
            await self._change()

    # -- rounds -----------------------------------------------------------------------------------------------

    def refusal(self) -> FenceKVError | None:
        """Gate 1, before a round."""
        if self._stopped is not None:
            return self._stopped
        if self.within_deadline():
            return None
        self._meters.refusals[Gate.DEADLINE] += self.waiting_for_round
        return self._past_deadline()

    def on_written(self, finished: Round) -> None:
        """A round is durable here: its answers wait for commit_seq."""
        self.rounds += 1
        if self._stopped is not None:
            finished.fail(Unknown("the ownership ended during the commit"))
            return
        if finished.writes:
            now = self._clock.now()
            self._round_ends.append((finished.seq, finished.answers[0].since if finished.answers else now))
            if self._has_copies:
                self._unshipped.append((finished.seq, now))
        if self.within_deadline():
            for request in finished.answers:
                self._pending[request.replicated].append(request)
        else:
            self._meters.refusals[Gate.FSYNCED] += len(finished.answers)
            finished.fail(Unknown("the session's deadline passed during the commit"))
        if finished.writes:
            self._on_growth()
        self.advance()

    def on_failed(self, failed: Round, error: BaseException) -> FenceKVError:
        """A round was not written, or nobody knows."""
        if isinstance(error, DiskFull):
            full = Exhausted(f"the disk of the owner is full: {error}")
            failed.fail(full)
            self._changed.set()
            return full
        if isinstance(error, PromiseMoved):
            newer = NotOwner("a newer epoch is promised here", epoch=self.epoch)
            failed.fail(newer)
            self.stop(newer)
            self._on_deposed()
            return newer
        if isinstance(error, Closed):
            gone = NotOwner("this shard does not hold the partition any more", epoch=self.epoch)
            failed.fail(gone)
            self.stop(gone)
            return gone
        failed.fail(Unknown("the commit failed: its outcome is not known"))
        self.on_broken(error)
        return NotOwner("a commit failed on this shard", epoch=self.epoch)

    def on_broken(self, error: BaseException) -> None:
        """A failed commit, a disk that contradicts itself, a bug: the process ends."""
        self.stop(NotOwner("a commit failed on this shard", epoch=self.epoch))
        self._on_fatal(error)

    async def _append_internal(self, *makes: Make) -> int:
        """Appends entries of our own in one round; gives the last one's seq once they are fsynced here."""
        if self._stopped is not None:
            raise self._stopped
        return (await asyncio.gather(*[self._pipeline.submit_internal(make) for make in makes]))[-1]

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
        while self._round_ends and self._round_ends[0][0] <= target:
            reached, since = self._round_ends.popleft()
            self._meters.round_seconds.add(self._clock.now() - since)
        if reached > self.replica.commit_seq:
            self.replica.commit(reached)
            self._on_growth()
        self._acknowledge()
        self._pipeline.refill()
        self._changed.set()

    def _replicated(self) -> int:
        """The seq that every counted member has fsynced."""
        return min((self.confirmed.get(member, -1) for member in self.counted), default=self.replica.last.seq)

    def _acknowledge(self) -> None:
        given = 0
        for replicated, pending in self._pending.items():
            reached = self.replica.commit_seq
            if replicated:
                reached = min(reached, self.replicated_seq)
                if self._too_few():
                    continue
            elif self._unshipped_too_long():
                continue
            while pending and pending[0].needs_seq <= reached:
                if given % ANSWERS_A_LOOK == 0 and not self.within_deadline():
                    late = Unknown("the session's deadline passed before the acknowledgement")
                    while pending and pending[0].needs_seq <= reached:
                        pending.popleft().fail(late)
                        self._meters.refusals[Gate.FSYNCED] += 1
                    break
                pending.popleft().give()
                given += 1
        if given:
            self._pipeline.answered(given)

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


class FutureWaiter:
    """A waiter for a coroutine."""

    __slots__ = ("_future",)

    def __init__(self, future: asyncio.Future[Committed]) -> None:
        self._future = future

    def committed(self, answer: Committed) -> None:
        """Gives the answer."""
        if not self._future.done():
            self._future.set_result(answer)

    def refused(self, error: FenceKVError) -> None:
        """Raises the error where the answer is awaited."""
        if not self._future.done():
            self._future.set_exception(error)
