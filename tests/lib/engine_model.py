"""What an engine is, without disk, rounds and time: a journal to which each request, in order, may add. Pure.

A request is evaluated on everything that was asked before it. What is durable is followed entry by entry; an
entry's actor names its request, and who was passed over must have added nothing, unless nobody can know whether
it was done. How requests share rounds is the engine's own choice: the model takes txids as they come.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fencekv.token import Token, Version
from fencekv_shard.api import Change
from fencekv_shard.journal import Entry, Kind
from fencekv_shard.transaction import (
    Compare,
    Delete,
    DeleteResult,
    Get,
    GetResult,
    Put,
    PutResult,
    Record,
    Relation,
    Result,
    Target,
    Transaction,
)

State = Mapping[str, Record]
Writes = Mapping[str, bytes | None]  # None: deleted
Answer = tuple[bool, tuple[Result, ...]]  # which branch, and what its operations answer


@dataclass(slots=True, eq=False)
class Asked:
    """A request that was taken. `transaction` None: an entry of the engine's own, which has no actor."""

    actor: str
    epoch: int
    transaction: Transaction | None
    replicated: bool = False
    gone: bool = False  # whether it is done nobody will be told


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a request must be told."""

    needs_seq: int  # the entry that the answer rests on
    answer: Answer | None  # None: its idempotency key stands for another request
    version: Version | None = None  # None: it wrote nothing
    adds: bool = False  # an entry to the journal, even if it writes nothing
    writes: Writes = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """An entry of the journal, and what its request was answered."""

    epoch: int
    txid: int
    writes: Writes = field(default_factory=dict)
    idempotency: tuple[bytes, bytes] | None = None
    answer: Answer = (True, ())


class Model:
    """The journal, the state behind each of its entries, and who waits, in the order of asking."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.waiting: list[Asked] = []
        self.outcomes: dict[str, Outcome] = {}  # by actor, once nothing can change them any more
        self.floor = -1  # what happened up to here is forgotten, but for what it led to
        self._states: list[State] = [{}]

    @property
    def last_seq(self) -> int:
        return len(self.lines) - 1

    def token(self, seq: int) -> Token:
        """What shows that somebody saw everything up to `seq`."""
        return Token(self.lines[seq].epoch, self.lines[seq].txid)

    def ends_round(self, seq: int) -> bool:
        """Whether the next entry, if there is one, belongs to another round."""
        return seq in (-1, self.last_seq) or self.lines[seq].txid < self.lines[seq + 1].txid

    # -- the journal

    def follow(self, entry: Entry) -> None:
        """The next entry is durable."""
        while self.waiting and self.waiting[0].actor != entry.actor:
            self._pass(self.waiting.pop(0))
        if entry.kind is not Kind.TRANSACTION:
            del self.waiting[:1]
            self._add(entry, {}, (True, ()))
            return
        assert self.waiting, f"nobody asked for this, or not now: {entry}"
        asked = self.waiting.pop(0)
        outcome = self.outcome(asked)
        self.outcomes[asked.actor] = outcome
        assert outcome.answer is not None, (entry, outcome)
        assert (asked.epoch, outcome.needs_seq) == (entry.epoch, entry.seq), (entry, outcome)
        assert outcome.adds, (entry, outcome)
        self._add(entry, outcome.writes, outcome.answer)

    def settle(self, asked: Asked) -> None:
        """A request is answered that is in no entry: nothing before it waits for the disk any more."""
        while asked in self.waiting:
            self._pass(self.waiting.pop(0))

    def copy(self, entry: Entry, transaction: Transaction | None) -> None:
        """Another owner's entry is durable; `transaction` made it."""
        asked = Asked(entry.actor, entry.epoch, transaction)
        outcome = Outcome(needs_seq=0, answer=(True, ())) if transaction is None else self.outcome(asked)
        assert outcome.answer is not None, (entry, outcome)
        self._add(entry, outcome.writes, outcome.answer)

    def cut(self, seq: int) -> None:
        """The entries above `seq` are no more."""
        del self.lines[seq + 1 :], self._states[seq + 2 :]

    def _pass(self, asked: Asked) -> None:
        if asked.transaction is None or asked.gone:
            assert asked.gone, "an entry of our own was passed over"
            return
        outcome = self.outcome(asked)
        assert not outcome.adds, f"passed over: {asked}"
        self.outcomes[asked.actor] = outcome

    def _add(self, entry: Entry, writes: Writes, answer: Answer) -> None:
        assert entry.seq == self.last_seq + 1, (entry, self.last_seq)
        assert not self.lines or 0 <= entry.txid - self.lines[-1].txid <= 1, (entry, self.lines[-1])
        written = {write.key: write.value if isinstance(write, Put) else None for write in entry.writes}
        assert written == writes, (entry, writes)
        state = {**self._states[-1]}
        for key, value in writes.items():
            if value is None:
                del state[key]
            else:
                state[key] = Record(value, Version(entry.epoch, entry.seq))
        line = Line(
            epoch=entry.epoch, txid=entry.txid, writes=writes, idempotency=entry.idempotency, answer=answer
        )
        self.lines.append(line)
        self._states.append(state)

    # -- what a request is answered

    def outcome(self, asked: Asked) -> Outcome:
        """What a request must be told if it comes next."""
        transaction, head = asked.transaction, self.last_seq
        assert transaction is not None, asked
        for seq in range(head, self.floor, -1) if transaction.idempotency_key else ():
            line = self.lines[seq]
            if line.idempotency is None or line.idempotency[0] != transaction.idempotency_key:
                continue
            if line.idempotency[1] != transaction.fingerprint():
                return Outcome(needs_seq=head, answer=None)
            version = Version(line.epoch, seq) if line.writes else None
            return Outcome(needs_seq=seq, answer=line.answer, version=version)
        answer, writes = carried_out(transaction, self._states[-1])
        parts = (*transaction.then, *transaction.otherwise)
        is_write = not all(isinstance(part, Get) for part in parts)
        if not writes and not (transaction.idempotency_key and is_write):
            return Outcome(needs_seq=head, answer=answer)
        version = Version(asked.epoch, head + 1) if writes else None
        return Outcome(needs_seq=head + 1, answer=answer, version=version, adds=True, writes=writes)

    # -- reads

    def read(self, key: str, at: int) -> Record | None:
        return self._states[at + 1].get(key)

    def scan(
        self, *, start: str, end: str, after: str, limit: int, bytes_max: int, at: int
    ) -> tuple[list[tuple[str, Record]], bool]:
        """A page of keys, and whether there are more."""
        low, high, behind = start.encode(), end.encode(), after.encode()
        inside = sorted(
            (name, key, record)
            for key, record in self._states[at + 1].items()
            if (name := key.encode()) >= low and (not end or name < high) and name > behind
        )
        page: list[tuple[str, Record]] = []
        for name, key, record in inside:
            bytes_max -= len(name) + len(record.value)
            if len(page) == limit or (page and bytes_max < 0):
                return page, True
            page.append((key, record))
        return page, False

    def history(self, key: str, *, before: int | None, limit: int, at: int) -> tuple[list[Change], bool]:
        """A page of a key's versions, newest first, and whether there are more.

        Of those that are forgotten the last one shows, if it is not a deletion: the key holds it still.
        """
        bound = at if before is None else min(at, before - 1)
        found: list[Change] = []
        for seq in range(bound, -1, -1):
            line = self.lines[seq]
            if key not in line.writes:
                continue
            if seq > self.floor or line.writes[key] is not None:
                found.append(Change(Version(line.epoch, seq), line.writes[key]))
            if seq <= self.floor:
                break
        return found[:limit], len(found) > limit


def carried_out(transaction: Transaction, state: State) -> tuple[Answer, Writes]:
    """A transaction's answer on a state, and what it writes there."""
    succeeded = all(_true(compare, state.get(compare.key)) for compare in transaction.compare)
    values: dict[str, bytes] = {key: record.value for key, record in state.items()}
    changed: set[str] = set()
    results: list[Result] = []
    for operation in transaction.then if succeeded else transaction.otherwise:
        key = operation.key
        if isinstance(operation, Put):
            values[key] = operation.value
            changed.add(key)
            results.append(PutResult())
        elif isinstance(operation, Delete):
            results.append(DeleteResult(key in values))
            values.pop(key, None)
            changed.add(key)
        else:
            own = key in changed or key not in state
            results.append(GetResult(key, values.get(key), None if own else state[key].version))
    writes = {key: values.get(key) for key in changed if key in values or key in state}
    return (succeeded, tuple(results)), writes


def _true(compare: Compare, record: Record | None) -> bool:
    if compare.target is Target.EXISTS:
        return ((record is not None) is compare.operand) is (compare.relation is Relation.EQUAL)
    if compare.target is Target.VALUE:
        if record is None:
            return compare.relation is Relation.UNEQUAL
        held: object = record.value
    else:
        held = Version(0, 0) if record is None else record.version
    return {
        Relation.EQUAL: held == compare.operand,
        Relation.UNEQUAL: held != compare.operand,
        Relation.LESS: held < compare.operand,  # type: ignore[operator]
        Relation.GREATER: held > compare.operand,  # type: ignore[operator]
    }[compare.relation]
