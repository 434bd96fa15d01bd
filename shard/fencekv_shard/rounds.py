"""Building a commit round: requests evaluated in order, each on what the ones before it leave.

Invariants:
  * A request sees what all earlier ones wrote, also where that is on no disk yet, and nothing of failed ones.
  * A replay of an idempotent request is evaluated on the state that the first one met, and so answers the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from fencekv.errors import FenceKVError, Invalid, TooLarge
from fencekv.token import Token, Version
from fencekv_shard.api import Committed, Waiter
from fencekv_shard.journal import Entry, transaction_entry
from fencekv_shard.replica import Replica
from fencekv_shard.state import Growth
from fencekv_shard.transaction import Effect, Get, Record, Transaction, Write, evaluate

Make = Callable[[int, int], Entry]  # (seq, txid) -> entry


class Request:
    """A transaction to be committed, and then its answer, which waits until `needs_seq` is committed.

    A refusal that rests on the journal waits too. `since`: when it was taken, CLOCK_BOOTTIME in seconds.
    """

    __slots__ = ("answer", "needs_seq", "replicated", "since", "size_bytes", "transaction", "waiter", "waiting")

    def __init__(
        self, transaction: Transaction, replicated: bool, waiter: Waiter, size_bytes: int, since: float
    ) -> None:
        self.transaction, self.replicated, self.waiter = transaction, replicated, waiter
        self.size_bytes, self.since = size_bytes, since
        self.needs_seq = -1
        self.answer: Committed | FenceKVError | None = None  # None: it is not evaluated yet
        self.waiting = True

    def give(self) -> None:
        """Answers, unless that was done."""
        if self.waiting:
            self.waiting = False
            answer = self.answer
            if isinstance(answer, Committed):
                self.waiter.committed(answer)
            else:
                assert answer is not None, "it is not evaluated yet"
                self.waiter.refused(answer)

    def fail(self, error: FenceKVError) -> None:
        """Answers with an error instead, unless it was answered."""
        if self.waiting:
            self.waiting = False
            self.waiter.refused(error)


@dataclass(slots=True, eq=False)
class Internal:
    """An entry of our own kind: ownership, in-sync set. Its result is its seq, once fsynced."""

    make: Make
    future: asyncio.Future[int]

    def fail(self, error: FenceKVError) -> None:
        """Ends it with an error; nobody may be waiting for it any more."""
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()


class Round:
    """What a round has gathered, before its commit.

    Args:
        growth: where it begins: behind what is durable, or behind the round that is being written.
    """

    def __init__(self, replica: Replica, *, epoch: int, growth: Growth, unix_ns: Callable[[], int]) -> None:
        self._replica, self._epoch, self._unix_ns = replica, epoch, unix_ns
        self.growth = growth
        self.txid = growth.txid + 1
        self.size_bytes = 0
        self.answers: list[Request] = []
        self.internal: list[tuple[Internal, int]] = []

    @property
    def seq(self) -> int:
        """Of the last entry, this round's included."""
        return self.growth.seq

    @property
    def writes(self) -> bool:
        """Whether there is anything to commit."""
        return bool(self.growth.records)

    def add_internal(self, item: Internal) -> None:
        """Adds an entry of our own."""
        self._replica.stage(item.make(self.seq + 1, self.txid), self.growth)
        self.internal.append((item, self.seq))

    def add(self, request: Request) -> None:
        """Evaluates a request; one that fails its checks leaves no trace."""
        self.size_bytes += request.size_bytes
        try:
            request.needs_seq, request.answer = self._evaluate(request.transaction)
        except FenceKVError as error:
            request.needs_seq, request.answer = self.seq, error
        self.answers.append(request)

    def fail(self, error: FenceKVError) -> None:
        """Answers all of it with an error."""
        for request in self.answers:
            request.fail(error)
        for internal, _ in self.internal:
            internal.fail(error)

    def _evaluate(self, transaction: Transaction) -> tuple[int, Committed | FenceKVError]:
        """The answer, and the seq that it waits for."""
        fingerprint = b""
        if transaction.idempotency_key:
            fingerprint = transaction.fingerprint()
            replayed = self._replay(transaction, fingerprint)
            if replayed is not None:
                return replayed
        # An attempt of the same keyed request that is still on its way must find this outcome, whatever it is.
        leaves_trace = bool(fingerprint) and _may_write(transaction)
        try:
            effect = evaluate(transaction, self._replica.read_staged)
        except TooLarge as error:
            return (self._stage(transaction, (), fingerprint) if leaves_trace else self.seq), error
        growth, epoch = self.growth, self._epoch
        if not effect.writes and not leaves_trace:
            # Nothing is written; the answer shows the head, this round's earlier entries included.
            token = Token(epoch, self.txid if growth.records else self.txid - 1)
            return self.seq, Committed(effect, None, token)
        seq = self._stage(transaction, effect.writes, fingerprint)
        return seq, _committed(effect, Version(epoch, seq), Token(epoch, self.txid))

    def _stage(self, transaction: Transaction, writes: tuple[Write, ...], fingerprint: bytes) -> int:
        """Adds a transaction's entry; gives its seq."""
        seq = self.growth.seq + 1
        idempotency = (transaction.idempotency_key, fingerprint) if fingerprint else None
        entry = transaction_entry(
            seq=seq,
            txid=self.txid,
            epoch=self._epoch,
            unix_ns=self._unix_ns(),
            actor=transaction.actor,
            writes=writes,
            idempotency=idempotency,
        )
        self._replica.stage(entry, self.growth)
        return seq

    def _replay(self, transaction: Transaction, fingerprint: bytes) -> tuple[int, Committed] | None:
        """The answer to a request whose idempotency key was used before, and the seq that it waits for."""
        found = self._replica.idempotent(transaction.idempotency_key)
        if found is None:
            return None
        seq, known = found
        if known != fingerprint:
            text = "Idempotency-Key: was used for another request"
            raise Invalid(text, status=422, field="Idempotency-Key")
        entry = self._replica.entry_staged(seq)

        def read(key: str) -> Record | None:
            return self._replica.read_staged(key, seq - 1)

        effect = evaluate(transaction, read)
        return seq, _committed(effect, Version(entry.epoch, seq), Token(entry.epoch, entry.txid))


def _committed(effect: Effect, version: Version, token: Token) -> Committed:
    return Committed(effect, version if effect.writes else None, token)


def _may_write(transaction: Transaction) -> bool:
    return any(not isinstance(part, Get) for part in (*transaction.then, *transaction.otherwise))
