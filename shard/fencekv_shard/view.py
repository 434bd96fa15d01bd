"""What a replica knows and reads: its state, its keys as of a seq, its journal.

Invariants:
  * What the properties show is durable (commit_seq and what is staged excepted). They change on the event loop,
    after the write.
  * Of what was trimmed nothing is guessed: it is refused, or said not to be known.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace

from fencekv.errors import Lost
from fencekv_shard import journal, limits
from fencekv_shard.api import Change
from fencekv_shard.base import Base, Standing
from fencekv_shard.journal import Entry, InSync
from fencekv_shard.overlay import Overlay
from fencekv_shard.reader import Reader
from fencekv_shard.state import NOTHING, EpochEnd, Position, State
from fencekv_shard.store import Corrupt, StorageError, Store
from fencekv_shard.transaction import Record


class Closed(StorageError):
    """The replica was closed before the write began: nothing was done."""


class View:
    """A replica, as far as it is looked at. What is here is quick enough for the event loop."""

    def __init__(self, uid: str, store: Store, tail: Sequence[Entry]) -> None:
        self.uid = uid
        self._store = store
        self._state: State = store.state
        self._base: Base = store.base
        self._first_seq = 0
        self._commit_seq = store.state.commit_seq
        self._overlay = Overlay(store.state.applied_seq)
        self._overlay.extend(tail)
        self._reader = Reader(store, self._overlay)
        self._adopt(store.base)
        self._closed = False
        self.standing = Standing.SOUND  # of the base

    def _adopt(self, base: Base) -> None:
        """This is what the disk holds now."""
        self._base, self._first_seq = base, base.first_seq
        self._reader.base_seq = self._reader.floor = base.seq

    @property
    def closed(self) -> bool:
        """Whether it was closed: nothing can be read or written any more."""
        return self._closed

    @property
    def replica_id(self) -> str:
        """The id made when it was created or seeded anew."""
        return self._state.replica_id

    @property
    def promised(self) -> int:
        """The highest epoch promised."""
        return self._state.promised

    @property
    def last(self) -> Position:
        """The last entry's epoch, seq and txid; seq -1: there is none."""
        return self._state.last

    @property
    def chain(self) -> bytes:
        """The chain hash of the last entry."""
        return self._state.chain

    @property
    def commit_seq(self) -> int:
        """The highest seq known to be committed."""
        return self._commit_seq

    @property
    def applied_seq(self) -> int:
        """Up to here the derived tables hold everything."""
        return self._state.applied_seq

    @property
    def set_version(self) -> int:
        """The version of the in-sync set in the journal."""
        return self._state.set_version

    @property
    def members(self) -> tuple[str, ...]:
        """The in-sync set in the journal."""
        return self._state.members

    @property
    def closed_epoch(self) -> int:
        """No append under this epoch or a lower one."""
        return self._state.closed_epoch

    @property
    def ends(self) -> tuple[EpochEnd, ...]:
        """Where earlier epochs ended."""
        return self._state.ends

    @property
    def known_epoch(self) -> int:
        """The highest epoch that it knows of."""
        return max(self.promised, self.last.epoch, self.closed_epoch)

    @property
    def needs_apply(self) -> bool:
        """Whether an apply step has something to do."""
        return self.commit_seq > self.applied_seq

    @property
    def overlay_full(self) -> bool:
        """Whether writers should wait for apply steps."""
        return self._overlay.full

    @property
    def overlay_fill(self) -> float:
        """How full the overlay is, 1.0: writers wait."""
        return self._overlay.fill

    @property
    def overlay_entries(self) -> int:
        """How many entries it holds."""
        return len(self._overlay)

    @property
    def overlay_bytes(self) -> int:
        """About how much memory they take."""
        return self._overlay.size_bytes

    @property
    def base(self) -> Base:
        """What lies below the journal, and how far the journal is trimmed."""
        return self._base

    @property
    def first_seq(self) -> int:
        """The first entry that the journal still holds; last.seq + 1: none."""
        return self._first_seq

    def vouched(self, total: bytes) -> None:
        """The base is as it should be, and adds up to this; which is written with its next change."""
        if self._base.total is None:
            self._base = replace(self._base, total=total)

    def base_page(
        self, after: bytes, *, count_max: int = limits.BASE_PAGE_KEYS, bytes_max: int = limits.BASE_PAGE_BYTES
    ) -> list[tuple[bytes, bytes]]:
        """Keys and packed rows of the base behind a key. Who goes page by page sees that it is not folded."""
        if self._closed:
            raise Closed(f"{self.uid}: closed")
        return self._store.base_page(after, count_max=count_max, bytes_max=bytes_max)

    def in_reserve(self) -> bool:
        """Whether the disk is so full that only what frees room, or keeps ownership going, may be written."""
        return not self._closed and self._store.in_reserve()

    def root(self) -> bytes:
        """The root of the Merkle mountain range over the whole journal."""
        return journal.root(self._state.peaks)

    def report(self) -> dict[str, object]:
        """What it says of itself in its shard's report."""
        return {
            "replica": self.replica_id,
            "promised": self.promised,
            "lastEpoch": self.last.epoch,
            "lastSeq": self.last.seq,
            "lastTxid": self.last.txid,
            "appliedSeq": self.applied_seq,
            "commitSeq": self.commit_seq,
            "firstSeq": self.first_seq,
            "baseSeq": self.base.seq,
            "base": self.standing.value,
            "overlayEntries": self.overlay_entries,
            "overlayBytes": self.overlay_bytes,
            "setVersion": self.set_version,
            "members": list(self.members),
            "closedEpoch": self.closed_epoch,
        }

    # -- keys ----------------------------------------------------------------------------------------------------

    def read_staged(self, key: str, at: int | None = None) -> Record | None:
        """What a key holds after all that is staged, or at a seq of it."""
        return self._reader.read(key, self._overlay.last_seq if at is None else at)

    def entry_staged(self, seq: int) -> Entry:
        """An entry, one that is staged included."""
        return self._reader.entry(seq)

    def read(self, key: str, at: int) -> Record | None:
        """What a key holds at a seq; None: it is absent. Raises Lost: that history is gone."""
        assert at <= self.last.seq, (at, self.last)
        return self._reader.read(key, at)

    def scan(
        self,
        *,
        start: str = "",
        end: str = "",
        after: str = "",
        limit: int,
        bytes_max: int = limits.LIST_BYTES_MAX,
        at: int,
    ) -> tuple[list[tuple[str, Record]], bool]:
        """Keys of start <= key < end behind `after`, in the order of their bytes, and whether there are more.

        Raises:
            Lost: the history of `at` is gone.
        """
        assert at <= self.last.seq, (at, self.last)
        return self._reader.scan(start=start, end=end, after=after, limit=limit, bytes_max=bytes_max, at=at)

    def history(
        self, key: str, *, before: int | None = None, limit: int, at: int, bytes_max: int = limits.LIST_BYTES_MAX
    ) -> tuple[list[Change], bool]:
        """Versions of a key up to `at` and below seq `before`, newest first, and whether there are more.

        The oldest is the one that the base holds.

        Raises:
            Lost: `before` lies where the history is gone.
        """
        assert at <= self.last.seq, (at, self.last)
        return self._reader.history(key, before=before, limit=limit, at=at, bytes_max=bytes_max)

    def idempotent(self, key: bytes) -> tuple[int, bytes] | None:
        """The last entry with this idempotency key: (seq, fingerprint); None: there is none above the base."""
        return self._reader.idempotent(key)

    def entry(self, seq: int) -> Entry:
        """An entry of the journal, first_seq <= seq <= last.seq."""
        assert 0 <= seq <= self.last.seq, (seq, self.last)
        return self._reader.entry(seq)

    def position_at(self, seq: int) -> Position:
        """Epoch, seq and txid of an entry that is kept, or where the base stands; of nothing for -1."""
        if seq == self.last.seq:
            return self.last
        if seq == self._base.seq:
            return self._base.last
        if seq == -1:
            return NOTHING
        entry = self.entry(seq)
        return Position(entry.epoch, seq, entry.txid)

    @property
    def committed(self) -> Position:
        """Epoch, seq and txid at commit_seq."""
        return self.position_at(self.commit_seq)

    def txid_seq(self, txid: int) -> int:
        """The last seq whose txid is not above `txid`; -1: there is none. Raises Lost: that history is gone."""
        first = self._base.known_from
        known = range(max(first, 0), self.last.seq + 1)
        place = bisect_right(known, txid, key=lambda seq: self.position_at(seq).txid)
        if place == 0 and first >= 0:
            raise Lost(f"history is gone: it begins behind txid {txid}")
        return known.start + place - 1

    def raw(self, first: int, entries_max: int, bytes_max: int) -> list[bytes]:
        """Encoded entries from `first` on, for shipping: one at least, if there is any."""
        count = min(entries_max, self.last.seq - first + 1)
        records = self._store.records(first, count_max=count, bytes_max=bytes_max)
        return [journal.record_entry(record) for record in records]

    def chain_at(self, seq: int) -> bytes:
        """The chain hash of an entry; ZERO_HASH for -1; empty: it is not known any more."""
        assert -1 <= seq <= self.last.seq, (seq, self.last)
        if seq == self.last.seq:
            return self.chain
        return self._chain_on_disk(seq) if seq >= self._first_seq or self._base.known(seq) else b""

    def _chain_on_disk(self, seq: int) -> bytes:
        if seq == -1:
            return journal.ZERO_HASH
        return self._base.chain if seq == self._base.seq else journal.record_chain(self._record(seq))

    def _in_sync_at(self, seq: int) -> InSync | None:
        """The last change of the in-sync set up to `seq`, which is not below the base; None: there was none."""
        for at in range(seq, self._base.seq, -1):
            operations = self._entry_on_disk(at).operations
            if isinstance(operations, InSync):
                return operations
        return (
            InSync(version=self._base.set_version, members=self._base.members) if self._base.set_version else None
        )

    def _entry_on_disk(self, seq: int) -> Entry:
        return journal.decode_entry(journal.record_entry(self._record(seq)))

    def _record(self, seq: int) -> bytes:
        data = self._store.record(seq)
        if data is None:
            raise Corrupt(f"{self.uid}: seq {seq} is missing")
        return data

    def _foldable(self, limit: int, old: Callable[[Entry], bool]) -> list[Entry]:
        """Whole rounds that follow the base."""
        entries: list[Entry] = []
        whole = writes = 0  # of `entries`, those of whole rounds
        first = self._base.seq + 1
        if limit < first:
            return entries
        while first + len(entries) <= limit:
            following = first + len(entries)
            for data in self.raw(following, limits.FOLD_ENTRIES, limits.FOLD_BYTES):
                entry = journal.decode_entry(data)
                if entries and entry.txid != entries[-1].txid:
                    whole = len(entries)
                    if whole >= limits.FOLD_ENTRIES or writes >= limits.FOLD_WRITES:
                        return entries
                if entry.seq > limit or not old(entry):
                    return entries[:whole]
                entries.append(entry)
                writes += len(entry.writes)
        return entries if self._ends_round(limit) else entries[:whole]

    def _ends_round(self, seq: int) -> bool:
        """Whether an entry is the last one of its round, as far as the journal goes."""
        return seq == self.last.seq or self.position_at(seq + 1).txid != self.position_at(seq).txid
