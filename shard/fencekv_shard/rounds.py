"""Building a commit round: requests evaluated in order, each on what the ones before it leave.

Invariants:
  * A request sees what all earlier ones wrote, also where that is on no disk yet, and nothing of failed ones.
  * A replay of an idempotent request is evaluated on the state that the first one met, and so answers the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from fencekv.errors import FenceKVError, Invalid
from fencekv.token import Token, Version
from fencekv_shard.api import Committed, Waiter
from fencekv_shard.journal import Entry, transaction_entry
from fencekv_shard.replica import Replica
from fencekv_shard.state import Growth
from fencekv_shard.transaction import Record, Transaction, evaluate


@dataclass(slots=True, eq=False)
class Request:
    """A transaction to be committed."""

    transaction: Transaction
    replicated: bool
    waiter: Waiter
    size_bytes: int
    since: float  # when it was taken, CLOCK_BOOTTIME in seconds


@dataclass(slots=True, eq=False)
class Internal:
    """An entry of our own kind: ownership, in-sync set. Its result is its seq, once fsynced."""

    make: Callable[[int, int], Entry]  # (seq, txid) -> entry
    future: asyncio.Future[int]

    def fail(self, error: FenceKVError) -> None:
        """Ends it with an error; nobody may be waiting for it any more."""
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()


class Pending:
    """An answer that waits until `needs_seq` is committed: a refusal that rests on the journal waits too."""

    __slots__ = ("answer", "needs_seq", "request", "waiting")

    def __init__(self, request: Request, needs_seq: int, answer: Committed | FenceKVError) -> None:
        self.request, self.needs_seq, self.answer = request, needs_seq, answer
        self.waiting = True

    def give(self) -> None:
        """Answers, unless that was done."""
        if self.waiting:
            self.waiting = False
            if isinstance(self.answer, FenceKVError):
                self.request.waiter.refused(self.answer)
            else:
                self.request.waiter.committed(self.answer)

    def fail(self, error: FenceKVError) -> None:
        """Answers with an error instead, unless it was answered."""
        if self.waiting:
            self.waiting = False
            self.request.waiter.refused(error)


class Round:
    """What a round has gathered, before its commit.

    Args:
        growth: where it begins: behind what is durable, or behind the round that is being written.
    """

    def __init__(self, replica: Replica, *, epoch: int, growth: Growth, unix_ns: Callable[[], int]) -> None:
        self._replica, self._epoch, self._unix_ns = replica, epoch, unix_ns
        self.growth = growth
        self.txid = growth.last.txid + 1
        self.size_bytes = 0
        self.answers: list[Pending] = []
        self.internal: list[tuple[Internal, int]] = []

    @property
    def seq(self) -> int:
        """Of the last entry, this round's included."""
        return self.growth.last.seq

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
            pending = self._evaluate(request)
        except FenceKVError as error:
            pending = Pending(request, self.seq, error)
        self.answers.append(pending)

    def fail(self, error: FenceKVError) -> None:
        """Answers all of it with an error."""
        for pending in self.answers:
            pending.fail(error)
        for internal, _ in self.internal:
            internal.fail(error)

    def _evaluate(self, request: Request) -> Pending:
        transaction = request.transaction
        fingerprint = transaction.fingerprint() if transaction.idempotency_key else b""
        if fingerprint:
            replayed = self._replay(transaction, fingerprint)
            if replayed is not None:
                return Pending(request, *replayed)
        effect = evaluate(transaction, self._replica.read_staged)
        if not effect.writes:
            # Nothing is written; the answer shows the head, this round's earlier entries included.
            token = Token(self._epoch, self.txid if self.writes else self.txid - 1)
            return Pending(request, self.seq, Committed(effect=effect, version=None, token=token))
        seq = self.seq + 1
        entry = transaction_entry(
            seq=seq,
            txid=self.txid,
            epoch=self._epoch,
            unix_ns=self._unix_ns(),
            actor=transaction.actor,
            writes=effect.writes,
            idempotency=(transaction.idempotency_key, fingerprint) if fingerprint else None,
        )
        self._replica.stage(entry, self.growth)
        version, token = Version(self._epoch, seq), Token(self._epoch, self.txid)
        return Pending(request, seq, Committed(effect=effect, version=version, token=token))

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
        answer = Committed(effect=effect, version=Version(entry.epoch, seq), token=Token(entry.epoch, entry.txid))
        return seq, answer
