"""What lies below a trimmed journal: all keys as of one seq, and where the journal stood there. Pure.

Invariants:
  * A base is a function of the entries up to its seq: two replicas with the same entries have the same at each
    seq, byte for byte, whatever the steps that led there.
  * It stands at the end of a commit round.
  * first_seq <= seq + 1: what the journal has lost, the base holds.
  * `total` is worked out from what was meant to be written, never from what is read back: rows that add up to
    another one are not those that this replica wrote.
"""

from __future__ import annotations

import enum
import hashlib
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from fencekv.codec import decode, encode
from fencekv.errors import Invalid
from fencekv_shard import journal, limits
from fencekv_shard.journal import Checkpoint, Entry
from fencekv_shard.rows import Where
from fencekv_shard.state import NOTHING, EpochEnd, Position, State, announced
from fencekv_shard.transaction import Put

FORMAT: Final = 1
_FIELDS: Final = 11
_TAG: Final = b"fencekv.base.v1"
_TOTAL_TAG: Final = b"fencekv.row.v1"
_TOTAL_FORMAT: Final = 1
_TOTALS: Final = 1 << (8 * journal.HASH_BYTES)
_TOTAL_KEY: Final = b"base-total"  # in `meta`
_BASE_KEY: Final = b"base"
_ROW: Final = struct.Struct(">IQI")
_SIZES: Final = struct.Struct(">HI")


class Row(NamedTuple):
    """A key in the base: the entry that wrote it, by which of its operations, and the value."""

    epoch: int
    seq: int
    operation: int
    value: bytes


class Standing(enum.Enum):
    """What is known of a replica's base, as its shard's report says it."""

    SOUND = "sound"  # or nothing speaks against it
    DIFFERS = "differs"  # from what the owner's checkpoint says, and not from what was written here
    DAMAGED = "damaged"  # it is not what was written here


class Noted(NamedTuple):
    """A checkpoint that the journal holds, and the seq of its entry."""

    seq: int
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """`meta.base`: where the journal stood at the base's seq, and how much of it is left."""

    last: Position = NOTHING
    chain: bytes = journal.ZERO_HASH
    peaks: tuple[bytes, ...] = ()
    ends: tuple[EpochEnd, ...] = ()
    set_version: int = 0
    members: tuple[str, ...] = ()
    first_seq: int = 0  # the first record of the journal that is kept
    noted: Noted | None = None  # the last checkpoint that was applied; None: none yet
    # What its rows add up to (`changed_total`); None: not known, an earlier version has folded it.
    total: bytes | None = field(default=bytes(journal.HASH_BYTES), compare=False)

    @property
    def seq(self) -> int:
        """What the base holds: everything up to here."""
        return self.last.seq

    @property
    def to_trim(self) -> bool:
        """Whether the journal still holds records that a checkpoint has made superfluous."""
        return self.noted is not None and self.first_seq <= self.noted.checkpoint.at

    def known(self, seq: int) -> bool:
        """Whether position and chain at `seq` can be told."""
        return seq in {-1, self.seq} or seq >= self.first_seq

    @property
    def known_from(self) -> int:
        """The lowest seq from which on position and chain are known at each; -1: the whole journal is there."""
        return min(self.first_seq, self.seq) if self.first_seq else -1

    def check(self) -> None:
        """Asserts the invariants that one base alone can show."""
        assert 0 <= self.first_seq <= self.seq + 1, self
        assert len(self.peaks) == (self.seq + 1).bit_count(), self

    def state(self, *, replica_id: str, promised: int = 0, closed_epoch: int = 0) -> State:
        """The state of a replica that holds the base and nothing else."""
        return State(
            replica_id=replica_id,
            promised=promised,
            last=self.last,
            applied_seq=self.seq,
            commit_seq=self.seq,
            set_version=self.set_version,
            members=self.members,
            closed_epoch=closed_epoch,
            peaks=self.peaks,
            chain=self.chain,
            ends=self.ends,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """What entries change in the base: each list in the order of its keys."""

    puts: Sequence[tuple[bytes, bytes]] = field(default=())
    deletes: Sequence[bytes] = field(default=())

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Fold:
        """The changes of consecutive entries, the last write of a key winning."""
        rows: dict[bytes, bytes | None] = {}
        for entry in entries:
            for index, write in enumerate(entry.writes):
                row = Row(entry.epoch, entry.seq, index, write.value) if isinstance(write, Put) else None
                rows[write.key.encode()] = row and pack_row(row)
        return cls(
            puts=sorted((key, row) for key, row in rows.items() if row is not None),
            deletes=sorted(key for key, row in rows.items() if row is None),
        )

    @property
    def keys(self) -> list[bytes]:
        """The keys that it changes."""
        return [*(key for key, _ in self.puts), *self.deletes]

    @property
    def size_bytes(self) -> int:
        """What is to be written, about."""
        return sum(len(key) + len(row) for key, row in self.puts)


def folded(base: Base, entries: Sequence[Entry], *, chain: bytes, peaks: tuple[bytes, ...]) -> Base:
    """The base after the entries that follow it; `chain` and `peaks` are those behind the last of them."""
    assert entries[0].seq == base.seq + 1, (entries[0], base)
    state = base.state(replica_id="")
    for entry in entries:
        if not isinstance(entry.operations, tuple):
            state = announced(state, entry)
    last = entries[-1]
    return replace(
        base,
        last=Position(last.epoch, last.seq, last.txid),
        chain=chain,
        peaks=peaks,
        ends=state.ends,
        set_version=state.set_version,
        members=state.members,
    )


def refolded(total: bytes | None, fold: Fold, before: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The total after a fold; `before`: the rows, as they are on disk, of the keys that it changes."""
    return total and changed_total(total, came=fold.puts, went=before)


def changed_total(
    total: bytes, *, came: Iterable[tuple[bytes, bytes]] = (), went: Iterable[tuple[bytes, bytes]] = ()
) -> bytes:
    """The total with some rows more and others less: a sum of hashes modulo 2^256, whatever their order."""
    number = int.from_bytes(total) + sum(map(_number_of, came)) - sum(map(_number_of, went))
    return (number % _TOTALS).to_bytes(journal.HASH_BYTES)


def _number_of(row: tuple[bytes, bytes]) -> int:
    key, data = row
    return int.from_bytes(hashlib.sha256(_TOTAL_TAG + _SIZES.pack(len(key), len(data)) + key + data).digest())


def noted(base: Base, entries: Sequence[Entry]) -> Base:
    """The base with the last checkpoint among entries that are being applied."""
    for entry in entries:
        if isinstance(entry.operations, Checkpoint):
            base = replace(base, noted=Noted(entry.seq, entry.operations))
    return base


def pack_row(row: Row) -> bytes:
    """A row's bytes on disk."""
    return _ROW.pack(row.epoch, row.seq, row.operation) + row.value


def unpack_row(data: bytes) -> Row:
    """Reads a row.

    Raises:
        Invalid: it is too short.
    """
    if len(data) < _ROW.size:
        raise Invalid("row: too short", field="row")
    epoch, seq, operation = _ROW.unpack_from(data)
    return Row(epoch, seq, operation, data[_ROW.size :])


def checked_row(key: bytes, data: bytes, base: Base) -> Where:
    """Where a row of a base was written, which another shard has sent.

    Raises:
        Invalid: it is none.
    """
    row = unpack_row(data)
    try:
        problem = journal.writes_problem((Put(key.decode(), row.value),))
    except UnicodeDecodeError:
        problem = "key is no text"
    if problem or not 0 <= row.seq <= base.seq or not 1 <= row.epoch <= base.last.epoch:
        raise Invalid(f"row: {problem or 'not below the base'}", field="row")
    return row.seq, row.operation


class Digest:
    """The hash over a base's rows, taken in the order of their keys."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256(_TAG)
        self.keys = 0
        self.total = bytes(journal.HASH_BYTES)

    def add(self, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """Adds the rows that follow: keys and packed rows."""
        self._hash.update(b"".join(_SIZES.pack(len(key), len(row)) + key + row for key, row in rows))
        self.keys += len(rows)
        self.total = changed_total(self.total, came=rows)

    def checkpoint(self, at: int) -> Checkpoint:
        """What a checkpoint at `at` says of these rows."""
        return Checkpoint(at=at, keys=self.keys, digest=self._hash.digest())


def meta_rows(base: Base) -> list[tuple[bytes, bytes]]:
    """What `meta` says of the base."""
    base.check()
    rows = [(_BASE_KEY, encode_base(base))]
    if base.total is not None:
        rows.append((_TOTAL_KEY, encode([_TOTAL_FORMAT, base.seq, base.total])))
    return rows


def read_base(get: Callable[[bytes], bytes | None]) -> Base:
    """The base that `meta` tells of, whose rows `get` gives.

    Raises:
        Invalid: it is of another format, or damaged.
    """
    data = get(_BASE_KEY)
    if data is None:
        return Base()
    base, said = decode_base(data), get(_TOTAL_KEY)
    shape = None if said is None else decode(said, what="meta.base-total")
    match shape:
        case [int(known), int(seq), bytes(total)] if (
            known == _TOTAL_FORMAT and seq == base.seq and len(total) == journal.HASH_BYTES
        ):
            return replace(base, total=total)
    # A version that knew no total leaves the one of an earlier seq there, or none.
    return base if base.seq >= 0 else replace(base, total=Base().total)


def encode_base(base: Base) -> bytes:
    """The base's bytes, on disk and between shards; but for its total, which is each replica's own."""
    shape = [
        FORMAT,
        base.last.seq,
        base.last.epoch,
        base.last.txid,
        base.chain,
        list(base.peaks),
        [list(end) for end in base.ends],
        base.set_version,
        list(base.members),
        base.first_seq,
        None if base.noted is None else _noted_shape(base.noted),
    ]
    return encode(shape)


def _noted_shape(point: Noted) -> list[Any]:
    return [point.seq, point.checkpoint.at, point.checkpoint.keys, point.checkpoint.digest]


def decode_base(data: bytes) -> Base:
    """Reads a base.

    Raises:
        Invalid: it is of another format, or damaged.
    """
    shape = decode(data, what="meta.base")
    if not isinstance(shape, list) or not shape or shape[0] != FORMAT:
        raise Invalid("meta.base: of another format", field="meta.base")
    if len(shape) != _FIELDS or not _well_formed(shape):
        raise Invalid("meta.base: damaged", field="meta.base")
    point = shape[10]
    return Base(
        last=Position(shape[2], shape[1], shape[3]),
        chain=shape[4],
        peaks=tuple(shape[5]),
        ends=tuple(EpochEnd(*end) for end in shape[6][-limits.ENDS_MAX :]),
        set_version=shape[7],
        members=tuple(shape[8]),
        first_seq=shape[9],
        noted=point and Noted(point[0], Checkpoint(at=point[1], keys=point[2], digest=point[3])),
        total=None,
    )


def _well_formed(shape: list[Any]) -> bool:
    return (
        _numbers([shape[1], shape[2], shape[3], shape[7], shape[9]])
        and all(isinstance(part, list) for part in (shape[5], shape[6], shape[8]))
        and all(_is_hash(one) for one in (shape[4], *shape[5]))
        and all(isinstance(end, list) and len(end) == 3 and _numbers(end) for end in shape[6])
        and all(isinstance(member, str) for member in shape[8])
        and 0 <= shape[9] <= shape[1] + 1
        and len(shape[5]) == (shape[1] + 1).bit_count()
        and (shape[10] is None or _is_noted(shape[10]))
    )


def _is_noted(shape: Any) -> bool:
    return isinstance(shape, list) and len(shape) == 4 and _numbers(shape[:3]) and _is_hash(shape[3])


def _is_hash(value: Any) -> bool:
    return isinstance(value, bytes) and len(value) == journal.HASH_BYTES


def _numbers(values: list[Any]) -> bool:
    return all(type(value) is int and value >= -1 for value in values)
