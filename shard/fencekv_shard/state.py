"""What a replica knows about itself: `meta.state`, and how entries change it. Pure.

Invariants:
  * applied_seq <= commit_seq <= last.seq, and last.epoch <= promised.
  * `promised` and `closed_epoch` never fall, whatever is appended, cut off or seeded anew.
  * Everything but replica id, promise, closed epoch, applied_seq and commit_seq is a function of the entries. Of
    `ends` the oldest may be missing where entries were cut off.
  * What a round writes of the state does not grow with the number of epochs: `meta.state` has the last few ends,
    `meta.ends` has all that are known, and is written only when they change.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from fencekv.codec import decode, encode
from fencekv.errors import Invalid
from fencekv_shard import journal, limits
from fencekv_shard.journal import Entry, InSync, Ownership

FORMAT: Final = 1
_ENDS_FORMAT: Final = 1
ENDS_KEY: Final = b"ends"  # in `meta`; absent while `meta.state` has them all
_FIELDS: Final = 14


class Position(NamedTuple):
    """Where a journal ends; ordered by epoch, then seq, as a grant compares. Seq -1: nothing yet."""

    epoch: int
    seq: int
    txid: int


class EpochEnd(NamedTuple):
    """Where an earlier epoch ended, as its successor's ownership entry records it."""

    epoch: int
    seq: int
    txid: int


NOTHING: Final = Position(0, -1, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """One replica's `meta.state`."""

    replica_id: str
    promised: int = 0
    last: Position = NOTHING
    applied_seq: int = -1
    commit_seq: int = -1  # a hint: what was known when the state was last written for another reason
    set_version: int = 0
    members: tuple[str, ...] = ()
    closed_epoch: int = 0
    peaks: tuple[bytes, ...] = ()
    chain: bytes = journal.ZERO_HASH
    ends: tuple[EpochEnd, ...] = ()

    def check(self) -> None:
        """Asserts the invariants that one state alone can show."""
        assert self.applied_seq <= self.commit_seq, (self.applied_seq, self.commit_seq)
        assert self.commit_seq <= self.last.seq, (self.commit_seq, self.last.seq)
        assert self.last.epoch <= self.promised, (self.last.epoch, self.promised)
        assert len(self.peaks) == (self.last.seq + 1).bit_count(), (len(self.peaks), self.last.seq)


def encode_state(state: State) -> bytes:
    """The state's bytes on disk; of its ends only the last few, see `ends_rows`."""
    shape = [
        FORMAT,
        state.replica_id,
        state.promised,
        state.last.seq,
        state.last.epoch,
        state.last.txid,
        state.applied_seq,
        state.commit_seq,
        state.set_version,
        list(state.members),
        state.closed_epoch,
        list(state.peaks),
        state.chain,
        _ends_shape(state.ends[-limits.ENDS_INLINE_MAX :]),
    ]
    return encode(shape)


def ends_rows(ends: tuple[EpochEnd, ...]) -> list[tuple[bytes, bytes]]:
    """What `meta` says of ends besides the state; empty: nothing, the state has them all."""
    if len(ends) <= limits.ENDS_INLINE_MAX:
        return []
    return [(ENDS_KEY, encode([_ENDS_FORMAT, _ends_shape(ends)]))]


def _ends_shape(ends: tuple[EpochEnd, ...]) -> list[list[int]]:
    return [[end.epoch, end.seq, end.txid] for end in ends]


def decode_state(data: bytes, ends: bytes | None = None) -> State:
    """Reads a state from disk. `ends`: what `meta.ends` holds; None: it is absent.

    Raises:
        Invalid: it is of another format, or damaged.
    """
    shape = decode(data, what="meta.state")
    if not isinstance(shape, list) or not shape or shape[0] != FORMAT:
        found = shape[0] if isinstance(shape, list) and shape else None
        raise Invalid(f"meta.state: format {found!r}, this program knows {FORMAT}", field="meta.state")
    if len(shape) != _FIELDS or not _well_formed(shape):
        raise Invalid("meta.state: damaged", field="meta.state")
    recent = tuple(EpochEnd(*end) for end in shape[13])
    # A version that knew no `meta.ends` wrote all that it knew into the state, and left the rest as it was.
    below = recent[0].epoch if recent else shape[4]
    earlier = [] if ends is None else [end for end in _decode_ends(ends) if end.epoch < below]
    return State(
        replica_id=shape[1],
        promised=shape[2],
        last=Position(shape[4], shape[3], shape[5]),
        applied_seq=shape[6],
        commit_seq=shape[7],
        set_version=shape[8],
        members=tuple(shape[9]),
        closed_epoch=shape[10],
        peaks=tuple(shape[11]),
        chain=shape[12],
        ends=(*earlier, *recent)[-limits.ENDS_MAX :],
    )


def _decode_ends(data: bytes) -> list[EpochEnd]:
    shape = decode(data, what="meta.ends")
    if not isinstance(shape, list) or len(shape) != 2 or shape[0] != _ENDS_FORMAT:
        raise Invalid("meta.ends: of another format", field="meta.ends")
    if not isinstance(shape[1], list) or not all(_is_end(end) for end in shape[1]):
        raise Invalid("meta.ends: damaged", field="meta.ends")
    return [EpochEnd(*end) for end in shape[1]]


class Growth:
    """Entries put behind a state, one after the other, and the records that they become.

    Built while earlier ones are still being written: what it rests on is their end, not what is on disk.
    """

    __slots__ = ("_announced", "chain", "epoch", "first", "peaks", "records", "seq", "txid")

    def __init__(self, *, last: Position, peaks: tuple[bytes, ...], chain: bytes) -> None:
        self.epoch, self.seq, self.txid = last  # of the last entry
        self.peaks, self.chain = peaks, chain
        self.first = last.seq + 1
        self.records: list[tuple[int, bytes]] = []
        self._announced: list[Entry] = []  # entries that change more than the journal's end

    @classmethod
    def behind(cls, end: State | Growth) -> Growth:
        """Nothing yet, behind a state or behind another growth."""
        return cls(last=end.last, peaks=end.peaks, chain=end.chain)

    @property
    def last(self) -> Position:
        """Where the journal ends."""
        return Position(self.epoch, self.seq, self.txid)

    def add(self, entry: Entry, data: bytes) -> None:
        """Adds an entry with its encoding.

        It must follow the last one; who takes it from elsewhere has checked that (`successor_problem`).
        """
        seq = entry.seq
        assert seq == self.seq + 1, (entry, self.seq)
        assert entry.epoch >= self.epoch, (entry, self.epoch)
        assert entry.txid >= self.txid, (entry, self.txid)
        leaf = journal.leaf_hash(data)
        self.chain = journal.chain_hash(self.chain, leaf)
        self.peaks, nodes = journal.append(self.peaks, seq, leaf)
        self.records.append((seq, journal.encode_record(leaf, self.chain, nodes, data)))
        self.epoch, self.seq, self.txid = entry.epoch, seq, entry.txid
        if not isinstance(entry.operations, tuple):
            self._announced.append(entry)

    def onto(self, state: State, *, commit_seq: int) -> State:
        """The state with these entries, on a state that ends where they begin."""
        assert state.last.seq == self.first - 1, (state.last, self.first)
        for entry in self._announced:
            state = announced(state, entry)
        return replace(state, last=self.last, peaks=self.peaks, chain=self.chain, commit_seq=commit_seq)


def appended(
    state: State, entries: Iterable[tuple[Entry, bytes]], *, commit_seq: int
) -> tuple[State, list[tuple[int, bytes]]]:
    """The state after entries (each with its encoding), and their records by seq."""
    growth = Growth.behind(state)
    for entry, data in entries:
        growth.add(entry, data)
    return growth.onto(state, commit_seq=commit_seq), growth.records


def successor_problem(last: Position, entry: Entry) -> str:
    """Why an entry cannot follow `last` (empty: it can)."""
    if entry.seq != last.seq + 1:
        return f"seq {entry.seq} does not follow {last.seq}"
    if entry.epoch < last.epoch:
        return f"epoch {entry.epoch} of seq {entry.seq} falls below {last.epoch}"
    if entry.txid < last.txid:
        return f"txid {entry.txid} of seq {entry.seq} falls below {last.txid}"
    return ""


def truncated(
    state: State,
    *,
    last: Position,
    peaks: tuple[bytes, ...],
    chain: bytes,
    cut: Sequence[Entry],
    in_sync: InSync | None,
) -> State:
    """The state without the entries `cut`. `in_sync`: the last change of the set before them (None: none)."""
    lost_ends = sum(_ends_epoch(entry) for entry in cut)
    changes_set = any(isinstance(entry.operations, InSync) for entry in cut)
    earlier = in_sync or InSync(version=0, members=())
    return replace(
        state,
        last=last,
        peaks=peaks,
        chain=chain,
        commit_seq=min(state.commit_seq, last.seq),
        ends=state.ends[: max(0, len(state.ends) - lost_ends)],
        set_version=earlier.version if changes_set else state.set_version,
        members=earlier.members if changes_set else state.members,
    )


def announced(state: State, entry: Entry) -> State:
    """The state with what an entry changes besides the journal's end: in-sync set, ends of epochs."""
    operations = entry.operations
    if isinstance(operations, InSync):
        return replace(state, set_version=operations.version, members=operations.members)
    if isinstance(operations, Ownership) and _ends_epoch(entry):
        end = EpochEnd(operations.previous_epoch, operations.previous_seq, operations.previous_txid)
        return replace(state, ends=(*state.ends, end)[-limits.ENDS_MAX :])
    return state


def _ends_epoch(entry: Entry) -> bool:
    """The first ownership entry of a journal names epoch 0, which is no epoch: it never issued a token."""
    return isinstance(entry.operations, Ownership) and entry.operations.previous_epoch > 0


def _well_formed(shape: list[Any]) -> bool:
    integers = [*shape[2:9], shape[10]]
    return (
        isinstance(shape[1], str)
        and all(type(number) is int and number >= -1 for number in integers)
        and all(isinstance(part, list) for part in (shape[9], shape[11], shape[13]))
        and all(isinstance(member, str) for member in shape[9])
        and all(isinstance(peak, bytes) and len(peak) == journal.HASH_BYTES for peak in shape[11])
        and isinstance(shape[12], bytes)
        and len(shape[12]) == journal.HASH_BYTES
        and all(_is_end(end) for end in shape[13])
        and -1 <= shape[6] <= shape[7] <= shape[3]
        and len(shape[11]) == (shape[3] + 1).bit_count()
    )


def _is_end(shape: Any) -> bool:
    return isinstance(shape, list) and len(shape) == 3 and all(type(number) is int for number in shape)
