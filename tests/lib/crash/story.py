"""What the recorded program said about itself, and what it may therefore never be found without.

Invariants:
  * Nothing here asks the product: what must be there follows from the marks alone.
  * A replica's life is a row of phases; a phase has one journal, which only grows. Cutting a tail off and seeding
    anew begin a phase, and until that has returned the disk may show the old phase or the new one, each whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Written:
    """A journal entry as the program handed it in. `writes`: (key, value in hex; None: deleted).

    `checkpoint_at`: up to where it lets the journal be trimmed; None: it is no checkpoint.
    """

    digest: str
    writes: tuple[tuple[str, str | None], ...]
    checkpoint_at: int | None = None


@dataclass(slots=True)
class Phase:
    """One journal of the replica, and how much of it is known to be durable."""

    entries: list[Written] = field(default_factory=list)
    ends: set[int] = field(default_factory=lambda: {0})  # lengths that it can be found with: whole appends
    durable: int = 0  # so many entries at least
    applied_seq: int = -1  # at least
    base_seq: int = -1  # at least
    first_seq: int = 0  # of the entries that are left, at least
    seeded: int = 0  # so many entries it began with in its base alone
    replica_id: str | None = None  # None: not told yet; any id that no earlier phase had
    tails: frozenset[tuple[str, ...]] = frozenset()  # what was cut off on the way here: digests of its records


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was found on a disk after a crash. `problem`: it could not be opened, or contradicts itself.

    `items` and `base`: (key, value in hex) in order, at the journal's end and at base_seq.
    """

    problem: str = ""
    replica_id: str = ""
    promised: int = 0
    closed_epoch: int = 0
    applied_seq: int = -1
    commit_seq: int = -1
    base_seq: int = -1
    first_seq: int = 0
    journal: tuple[str, ...] = ()  # digests of its entries from first_seq on
    items: tuple[tuple[str, str], ...] = ()
    base: tuple[tuple[str, str], ...] = ()
    tails: frozenset[tuple[str, ...]] = frozenset()  # digests of the records of each tail that was set aside
    renewal: int = 0
    suspect: bool = False

    @property
    def length(self) -> int:
        """How many entries the journal has had."""
        return self.first_seq + len(self.journal)


class Story:
    """Told mark by mark; `judge` says at any point what a disk may not look like."""

    def __init__(self) -> None:
        self._phases = [Phase()]  # one, or while a new one begins two
        self._ids: set[str | None] = set()  # of phases that are over
        self._promised = [0, 0]  # at least, at most
        self._closed = [0, 0]
        self._renewal = 0  # the highest carried out
        self._suspect = {False}  # what may be found
        self._acknowledged: dict[int, tuple[tuple[str, str | None], ...]] = {}
        self.acknowledged = 0  # transactions, in all

    def tell(self, mark: Sequence[Any]) -> None:
        """Takes a mark in."""
        name, values = mark
        getattr(self, f"_on_{name}")(**values)

    # -- marks -----------------------------------------------------------------------------------------------

    def _on_started(self) -> None:
        """From here on a call may be made to fail."""

    def _on_told(self, **_outcomes: object) -> None:
        """What clients were told, for the test to look at."""

    def _on_answered(self, *, error: str) -> None:
        """A client was told an error, which promises nothing here."""

    def _on_opened(
        self,
        *,
        replica_id: str,
        length: int,
        promised: int,
        closed_epoch: int,
        applied_seq: int,
        base_seq: int,
        first_seq: int,
    ) -> None:
        """A process reads what is there, perhaps after a crash: what may have been is settled by that."""
        fitting = [p for p in self._phases if p.replica_id == replica_id and p.durable <= length in p.ends]
        fitting = fitting or [p for p in self._phases if p.replica_id is None and length == p.durable]
        assert fitting, (replica_id, length)
        phase = fitting[-1]
        self._ids.update(p.replica_id for p in self._phases if p.replica_id not in {None, replica_id})
        self._phases = [phase]
        phase.replica_id, phase.durable, phase.applied_seq = replica_id, length, applied_seq
        phase.base_seq, phase.first_seq = base_seq, first_seq
        phase.ends = {end for end in phase.ends if end <= length}
        del phase.entries[length:]
        assert self._promised[0] <= promised <= self._promised[1], (promised, self._promised)
        assert self._closed[0] <= closed_epoch <= self._closed[1], (closed_epoch, self._closed)
        self._promised = [promised, promised]
        self._closed = [closed_epoch, closed_epoch]

    @property
    def turning(self) -> bool:
        """Whether one journal is giving way to another, or the replica is being made."""
        return len(self._phases) > 1 or self._phases[0].replica_id is None

    def _on_appending(self, *, entries: Sequence[Sequence[Any]]) -> None:
        phase = self._phases[-1]
        phase.entries += _entries(entries)
        phase.ends.add(len(phase.entries))

    def _on_appended(self, *, seq: int) -> None:
        self._phases[-1].durable = max(self._phases[-1].durable, seq + 1)

    def _on_refused(self) -> None:
        """The append under way wrote nothing."""
        phase = self._phases[-1]
        phase.ends.discard(len(phase.entries))
        del phase.entries[max(phase.ends) :]

    def _on_acknowledged(self, *, seq: int, writes: list[tuple[str, str | None]]) -> None:
        self._acknowledged[seq] = _pairs(writes)
        self.acknowledged += 1

    def _on_applied(self, *, seq: int) -> None:
        self._phases[-1].applied_seq = seq

    def _on_folded(self, *, seq: int) -> None:
        self._phases[-1].base_seq = seq

    def _on_trimmed(self, *, first: int) -> None:
        self._phases[-1].first_seq = first

    def _on_promising(self, *, epoch: int) -> None:
        self._promised[1] = max(self._promised[1], epoch)

    def _on_promised(self, *, epoch: int) -> None:
        self._promised[0] = max(self._promised[0], epoch)

    def _on_closing(self, *, epoch: int) -> None:
        self._closed[1] = max(self._closed[1], epoch)

    def _on_closed(self, *, epoch: int) -> None:
        self._closed[0] = max(self._closed[0], epoch)

    def _on_cutting(self, *, length: int) -> None:
        old = self._phases[-1]
        tail = tuple(entry.digest for entry in old.entries[length:])
        kept = {end for end in old.ends if end < length} | {length}
        tails = old.tails | {tail}
        cut = replace(old, entries=old.entries[:length], ends=kept, durable=length, tails=tails)
        self._phases.append(cut)
        self._acknowledged = {seq: writes for seq, writes in self._acknowledged.items() if seq < length}

    def _on_seeding(self, *, entries: Sequence[Sequence[Any]], promised: int) -> None:
        self._on_promising(epoch=promised)
        seeded = Phase(_entries(entries), tails=self._phases[-1].tails)
        seeded.durable = seeded.seeded = seeded.first_seq = len(entries)
        seeded.base_seq = seeded.applied_seq = len(entries) - 1
        seeded.ends = {len(entries)}
        self._phases.append(seeded)
        self._acknowledged = {}

    def _on_cut(self) -> None:
        del self._phases[0]

    def _on_renewed(self, *, number: int) -> None:
        self._renewal = number

    def _on_suspecting(self) -> None:
        self._suspect.add(True)

    def _on_suspected(self) -> None:
        self._suspect = {True}

    def _on_granting(self) -> None:
        self._suspect.add(False)  # and True for good: that a suspicion ended need not be durable

    # -- judging ---------------------------------------------------------------------------------------------

    def judge(self, found: Found) -> str:
        """What is wrong with this at this point (empty: nothing)."""
        if found.problem:
            return found.problem
        common = self._common_problem(found)
        if common:
            return common
        problems = [self._phase_problem(phase, found) for phase in self._phases]
        return "" if "" in problems else " / ".join(problems)

    def _common_problem(self, found: Found) -> str:
        low, high = self._promised
        if not low <= found.promised <= high:
            return f"promised epoch {found.promised}, told {low} (asked for {high})"
        low, high = self._closed
        if not low <= found.closed_epoch <= high:
            return f"closed epoch {found.closed_epoch}, told {low} (asked for {high})"
        if found.renewal > self._renewal:
            return f"renewal {found.renewal}, carried out {self._renewal}"
        if found.suspect not in self._suspect:
            return f"suspect: {found.suspect}, which is not what it was told"
        if not found.first_seq - 1 <= found.base_seq <= found.applied_seq <= found.commit_seq < found.length:
            order = (found.first_seq, found.base_seq, found.applied_seq, found.commit_seq, found.length)
            return f"first, base, applied, committed, length: {order}"
        return ""

    def _phase_problem(self, phase: Phase, found: Found) -> str:
        if phase.replica_id is None:
            others = self._ids | {p.replica_id for p in self._phases if p.replica_id is not None}
            if found.replica_id in others:
                return f"replica {found.replica_id} came back"
        elif phase.replica_id != found.replica_id:
            return f"replica {found.replica_id} instead of {phase.replica_id}"
        length = found.length
        if length < phase.durable:
            return f"{length} entries, {phase.durable} were durable"
        if length not in phase.ends:
            return f"{length} entries: part of what was appended at once"
        if found.journal != tuple(entry.digest for entry in phase.entries[found.first_seq : length]):
            return "an entry that was never handed in"
        if found.applied_seq < phase.applied_seq:
            return f"applied up to {found.applied_seq}, was {phase.applied_seq}"
        problem = _trimming_problem(phase, found)
        if problem:
            return problem
        if not phase.tails <= found.tails:
            return "a tail was cut off, and is in no file"
        for seq, writes in self._acknowledged.items():
            if seq >= length or phase.entries[seq].writes != writes:
                return f"an acknowledged transaction is missing: seq {seq}"
        if found.items != _items(phase.entries[:length]):
            return "the keys do not follow from the transactions"
        return ""


def _trimming_problem(phase: Phase, found: Found) -> str:
    if found.base_seq < phase.base_seq:
        return f"the base is at {found.base_seq}, was at {phase.base_seq}"
    if found.first_seq < phase.first_seq:
        return f"the journal begins at {found.first_seq}, was trimmed up to {phase.first_seq}"
    applied = phase.entries[: found.applied_seq + 1]
    vouched = max((entry.checkpoint_at + 1 for entry in applied if entry.checkpoint_at is not None), default=0)
    if found.first_seq > max(vouched, phase.seeded):
        return f"trimmed up to {found.first_seq}, the last checkpoint that is there speaks of {vouched}"
    if found.base != _items(phase.entries[: found.base_seq + 1]):
        return "the base does not follow from the transactions"
    return ""


def _entries(told: Sequence[Sequence[Any]]) -> list[Written]:
    return [Written(digest, _pairs(writes), at) for digest, writes, at in told]


def _pairs(writes: Sequence[Sequence[str | None]]) -> tuple[tuple[str, str | None], ...]:
    pairs = []
    for key, value in writes:
        assert key is not None
        pairs.append((key, value))
    return tuple(pairs)


def _items(entries: Sequence[Written]) -> tuple[tuple[str, str], ...]:
    items: dict[str, str] = {}
    for entry in entries:
        for key, value in entry.writes:
            if value is None:
                items.pop(key, None)
            else:
                items[key] = value
    return tuple(sorted(items.items(), key=lambda item: item[0].encode()))
