"""The way of transactions to the disk: one round is written while the next one is being built.

A request is evaluated when it comes, on everything before it. Only one round is at the disk at a time; when it is
back, the next one waits a moment for the clients that were just answered, so that rounds stay full.

Invariants:
  * Rounds are written in the order in which they were built; one that fails takes along those that rest on it.
  * What waits is bounded in number and bytes; entries of our own never wait for room: without them commit_seq,
    which makes room, might never move again.
  * `on_written` and `on_failed` are called once for each round that was begun, in order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from fencekv.clock import Clock
from fencekv.errors import Exhausted, FenceKVError, Unavailable
from fencekv_shard import limits
from fencekv_shard.meters import Meters
from fencekv_shard.replica import Replica
from fencekv_shard.rounds import Internal, Make, Request, Round
from fencekv_shard.state import Growth
from fencekv_shard.store import DiskFull, StorageError
from fencekv_shard.transaction import Put, Transaction
from fencekv_shard.view import Closed


class Owner(Protocol):
    """Whom a pipeline works for."""

    def refusal(self) -> FenceKVError | None:
        """Why no round may be begun now; None: it may."""
        ...

    def on_written(self, finished: Round) -> None:
        """A round is durable here."""
        ...

    def on_failed(self, failed: Round, error: BaseException) -> FenceKVError:
        """A round was not written, or its outcome is not known; nothing is staged any more.

        Gives the error for the requests of the round behind it, which were not begun.
        """
        ...

    def on_broken(self, error: BaseException) -> None:
        """Something else was not written, and the process must end."""
        ...


class Pipeline:
    """Rounds of one epoch."""

    def __init__(self, *, replica: Replica, epoch: int, clock: Clock, owner: Owner, meters: Meters) -> None:
        self._replica, self._epoch, self._clock, self._owner = replica, epoch, clock, owner
        self._meters = meters
        self._queue: deque[Request] = deque()  # not evaluated yet: there is no room for what they write
        self._queue_bytes = 0
        self._building: Round | None = None
        self._writing: Round | None = None
        self._asked = False  # for the replica's lane, or being written
        self._gathering = False
        self._gather_began = 0.0
        self._gather_until = 0.0
        self._gather_turns = 0
        self._expected = 0  # how many requests may come in the next round
        self._round_seconds = 0.0  # the last one's
        self._begun_at = 0.0
        self._making_room: asyncio.Task[None] | None = None
        self._in_reserve = False

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is being written."""
        return not self._queue and self._building is None and not self._asked

    @property
    def waiting(self) -> int:
        """How many requests wait for the round that they are to be written in."""
        return len(self._queue) + (len(self._building.answers) if self._building is not None else 0)

    def submit(self, request: Request) -> None:
        """Takes a request. Raises Exhausted: nothing was done."""
        building = self._building
        count, size = len(self._queue), self._queue_bytes + request.size_bytes
        if building is not None:
            count, size = count + len(building.answers), size + building.size_bytes
        if count >= limits.QUEUE_TRANSACTIONS_MAX or size > limits.QUEUE_BYTES_MAX:
            raise Exhausted("too many transactions are waiting for this partition")
        if self._queue or not self._has_room(request):
            self._queue.append(request)
            self._queue_bytes += request.size_bytes
            self.refill()
            return
        self._check_reserve(request.transaction)
        self._add(request)

    def submit_internal(self, make: Make) -> asyncio.Future[int]:
        """Takes an entry of our own; gives its seq once it is durable here."""
        item = Internal(make, asyncio.get_running_loop().create_future())
        self._round().add_internal(item)
        self._schedule()
        return item.future

    def answered(self, count: int) -> None:
        """So many clients were just answered: they may come back at once."""
        self._expected = count + (len(self._building.answers) if self._building else 0)

    def refill(self) -> None:
        """Evaluates what waits, as far as there is room."""
        while self._queue and self._has_room(self._queue[0]):
            request = self._queue.popleft()
            self._queue_bytes -= request.size_bytes
            try:
                self._check_reserve(request.transaction)
            except Exhausted as error:
                request.waiter.refused(error)
                continue
            self._add(request)
        if self._queue and self._replica.overlay_full and self._making_room is None:
            self._making_room = asyncio.get_running_loop().create_task(self._make_room())

    def drop_requests(self, error: FenceKVError) -> None:
        """Refuses all requests that are not being written. Entries of our own stay."""
        self._refuse_queue(error)
        building = self._unbuilt()
        if building is not None:
            for request in building.answers:
                request.fail(error)
            for item, _ in building.internal:
                self._round().add_internal(item)

    def end(self, error: FenceKVError) -> None:
        """Takes nothing more; what was not begun gets `error`. What is being written still comes to an end."""
        self._refuse_queue(error)
        building = self._unbuilt()
        if building is not None:
            building.fail(error)

    def overdue(self, before: float) -> tuple[list[Request], list[Request]]:
        """What was taken before then: requests still in the queue, which leave it, and answers being written."""
        late: list[Request] = []
        while self._queue and self._queue[0].since < before:
            request = self._queue.popleft()
            self._queue_bytes -= request.size_bytes
            late.append(request)
        rounds = [each for each in (self._writing, self._building) if each is not None]
        return late, [each for one in rounds for each in one.answers if each.since < before]

    # -- building -------------------------------------------------------------------------------------------------

    def _has_room(self, request: Request) -> bool:
        building = self._building
        if self._replica.overlay_full:
            return False
        return building is None or (
            len(building.answers) < limits.ROUND_TRANSACTIONS_MAX
            and building.size_bytes + request.size_bytes <= limits.ROUND_BYTES_MAX
        )

    def _refuse_queue(self, error: FenceKVError) -> None:
        queue, self._queue, self._queue_bytes = self._queue, deque(), 0
        for request in queue:
            request.waiter.refused(error)

    def _check_reserve(self, transaction: Transaction) -> None:
        if self._building is None:
            self._in_reserve = self._replica.in_reserve()
        if self._in_reserve and _puts(transaction):
            raise Exhausted("the disk of the owner is full: only deletes are taken")

    def _add(self, request: Request) -> None:
        try:
            self._round().add(request)
        except StorageError as error:  # what lies on disk contradicts itself
            request.waiter.refused(Unavailable("the disk of the owner is damaged"))
            self._owner.on_broken(error)
            return
        self._schedule()

    def _round(self) -> Round:
        if self._building is None:
            before = self._writing
            growth = self._replica.growth() if before is None else Growth.behind(before.growth)
            self._building = Round(self._replica, epoch=self._epoch, growth=growth, unix_ns=self._clock.unix_ns)
        return self._building

    def _unbuilt(self) -> Round | None:
        """Takes back the round that is being built: nothing of it is staged any more."""
        building, self._building = self._building, None
        if building is not None:
            self._replica.unstage(building.growth.first - 1)
        return building

    async def _make_room(self) -> None:
        try:
            while self._replica.overlay_full and self._replica.needs_apply:
                await self._replica.apply_step()
        except DiskFull as error:
            self._refuse_queue(Exhausted(f"the disk of the owner is full: {error}"))
        except Closed:
            pass  # whoever closed the replica ends this too
        except StorageError as error:
            self._owner.on_broken(error)
        finally:
            self._making_room = None
        if not self._replica.overlay_full:
            self.refill()

    # -- writing --------------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if self._asked or self._gathering:
            return
        self._gathering = True
        self._gather_turns = 0
        asyncio.get_running_loop().call_soon(self._gather)

    def _gather(self) -> None:
        building = self._building
        if building is None:
            self._gathering = False
            return
        if self._is_worth_waiting_for(building):
            # Turns rather than a timer: timers are a millisecond apart, and each turn takes in what came.
            asyncio.get_running_loop().call_soon(self._gather)
            return
        if self._gather_turns > 0:
            self._meters.gather_seconds.add(self._clock.now() - self._gather_began)
        self._gathering = False
        self._asked = True
        self._replica.enter(self._begin)

    def _is_worth_waiting_for(self, building: Round) -> bool:
        """Whether clients that were just answered may still send something for this round."""
        if len(building.answers) >= self._expected or building.internal:
            return False
        now = self._clock.now()
        if self._gather_turns == 0:  # the answers leave at the end of the turn in which they are given
            wait = max(limits.GATHER_SECONDS_MIN, limits.GATHER_SHARE * self._round_seconds)
            self._gather_began = now
            self._gather_until = now + min(wait, limits.GATHER_SECONDS_MAX)
        self._gather_turns += 1
        return self._gather_turns < limits.GATHER_TURNS_MAX and now < self._gather_until

    def _begin(self) -> None:
        try:
            self._begin_round()
        except Exception as error:  # in code that holds a protocol: stop rather than go on
            self._owner.on_broken(error)

    def _begin_round(self) -> None:
        refusal = self._owner.refusal()
        if refusal is not None:
            self.drop_requests(refusal)
        round_, self._building = self._building, None
        if round_ is None:
            self._asked = False
            self._replica.leave()
            return
        self._expected = 0
        self._writing = round_
        self._begun_at = self._clock.now()
        if not round_.writes:
            self._replica.leave()
            self._end_round(None)
            return
        self._replica.append_staged(round_.growth, epoch=self._epoch, done=self._written)
        self.refill()

    def _written(self, error: BaseException | None) -> None:
        try:
            self._end_round(error)
        except Exception as unexpected:
            self._owner.on_broken(unexpected)

    def _end_round(self, error: BaseException | None) -> None:
        finished, self._writing, self._asked = self._writing, None, False
        assert finished is not None, "no round was begun"
        if error is not None:
            self._failed(finished, error)
            return
        self._round_seconds = self._clock.now() - self._begun_at
        for internal, seq in finished.internal:
            if not internal.future.done():
                internal.future.set_result(seq)
        self._owner.on_written(finished)
        self.refill()
        if self._building is not None:
            self._schedule()

    def _failed(self, failed: Round, error: BaseException) -> None:
        building, self._building = self._building, None
        self._replica.unstage(failed.growth.first - 1)
        following = self._owner.on_failed(failed, error)
        if building is not None:
            building.fail(following)
        self.refill()


def _puts(transaction: Transaction) -> bool:
    return any(isinstance(part, Put) for part in (*transaction.then, *transaction.otherwise))
