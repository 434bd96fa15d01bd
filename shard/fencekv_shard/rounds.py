"""Building a commit round: requests evaluated in order on the head of the journal.

Invariants:
  * A request sees what the ones before it in the round wrote, and nothing of those that failed.
  * A replay of an idempotent request is evaluated on the state that the first one met, and so answers the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fencekv.errors import FenceKVError, Invalid
from fencekv.token import Token, Version
from fencekv_shard.api import Committed
from fencekv_shard.journal import Entry, transaction_entry
from fencekv_shard.replica import Replica
from fencekv_shard.transaction import Put, Record, Transaction, evaluate


@dataclass(slots=True, eq=False)
class Request:
    """A transaction that waits for a round."""

    transaction: Transaction
    replicated: bool
    future: asyncio.Future[Committed]
    size_bytes: int


@dataclass(slots=True, eq=False)
class Internal:
    """An entry of our own kind: ownership, in-sync set. Its result is its seq, once fsynced."""

    make: Callable[[int, int], Entry]  # (seq, txid) -> entry
    future: asyncio.Future[int]


@dataclass(slots=True, eq=False)
class Pending:
    """An answer that waits until `needs_seq` is committed: a refusal that rests on the journal waits too."""

    future: asyncio.Future[Committed]
    needs_seq: int
    answer: Committed | FenceKVError


class Round:
    """What a round has gathered, before its commit."""

    def __init__(self, replica: Replica, *, epoch: int, unix_ns: Callable[[], int]) -> None:
        self._replica, self._epoch, self._unix_ns = replica, epoch, unix_ns
        self._head = replica.last.seq
        self.txid = replica.last.txid + 1
        self.seq = self._head  # of the last entry, this round's included
        self.entries: list[Entry] = []
        self.answers: list[tuple[Request, Pending]] = []
        self.internal: list[tuple[Internal, int]] = []
        self._staged: dict[str, Record | None] = {}
        self._idempotent: dict[bytes, tuple[bytes, int, Committed]] = {}

    def add_internal(self, item: Internal) -> None:
        """Adds an entry of our own."""
        self.seq += 1
        self.entries.append(item.make(self.seq, self.txid))
        self.internal.append((item, self.seq))

    def add(self, request: Request) -> None:
        """Evaluates a request; one that fails its checks leaves no trace."""
        try:
            pending = self._evaluate(request)
        except FenceKVError as error:
            pending = Pending(request.future, self.seq, error)
        self.answers.append((request, pending))

    def _read(self, key: str) -> Record | None:
        return self._staged[key] if key in self._staged else self._replica.read(key, self._head)

    def _evaluate(self, request: Request) -> Pending:
        transaction = request.transaction
        fingerprint = transaction.fingerprint() if transaction.idempotency_key else b""
        if fingerprint:
            replayed = self._replay(transaction, fingerprint)
            if replayed is not None:
                return Pending(request.future, *replayed)
        effect = evaluate(transaction, self._read)
        if not effect.writes:
            # Nothing is written; the answer shows the head, this round's earlier entries included.
            token = Token(self._epoch, self.txid if self.entries else self.txid - 1)
            return Pending(request.future, self.seq, Committed(effect=effect, version=None, token=token))
        self.seq += 1
        version = Version(self._epoch, self.seq)
        self.entries.append(
            transaction_entry(
                seq=self.seq,
                txid=self.txid,
                epoch=self._epoch,
                unix_ns=self._unix_ns(),
                actor=transaction.actor,
                writes=effect.writes,
                idempotency=(transaction.idempotency_key, fingerprint) if fingerprint else None,
            )
        )
        for write in effect.writes:
            self._staged[write.key] = Record(write.value, version) if isinstance(write, Put) else None
        answer = Committed(effect=effect, version=version, token=Token(self._epoch, self.txid))
        if fingerprint:
            self._idempotent[transaction.idempotency_key] = (fingerprint, self.seq, answer)
        return Pending(request.future, self.seq, answer)

    def _replay(self, transaction: Transaction, fingerprint: bytes) -> tuple[int, Committed] | None:
        """The answer to a request whose idempotency key was used before, and the seq that it waits for."""
        staged = self._idempotent.get(transaction.idempotency_key)
        if staged is not None:
            known, seq, answer = staged
            _check_fingerprint(known, fingerprint)
            return seq, answer
        found = self._replica.idempotent(transaction.idempotency_key)
        if found is None:
            return None
        seq, known = found
        _check_fingerprint(known, fingerprint)
        entry = self._replica.entry(seq)
        effect = evaluate(transaction, lambda key: self._replay_read(entry, key))
        answer = Committed(effect=effect, version=Version(entry.epoch, seq), token=Token(entry.epoch, entry.txid))
        return seq, answer

    def _replay_read(self, entry: Entry, key: str) -> Record | None:
        return self._replica.read(key, entry.seq - 1)


def fail(future: asyncio.Future[Any], error: FenceKVError) -> None:
    """Answers with an error, unless there is an answer already."""
    if not future.done():
        future.set_exception(error)


def _check_fingerprint(known: bytes, fingerprint: bytes) -> None:
    if known != fingerprint:
        text = "Idempotency-Key: was used for another request"
        raise Invalid(text, status=422, field="Idempotency-Key")
