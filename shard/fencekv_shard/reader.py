"""Reads of a replica's keys as of a seq: overlay first, then the derived tables, then the journal.

Invariants:
  * A read at a seq depends on the entries up to it alone. The derived tables may run ahead of the overlay's
    applied_seq while an apply step is under way; so `current` counts only for keys that the overlay does not hold,
    for all others `versions` does, which keeps what was.
  * What was written up to the base's seq is read from the base, whether the journal still has it or not. Reads
    below it are refused: the base knows only what was last.
  * All of a read happens in one turn of the event loop: the overlay does not change under it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from heapq import merge
from operator import itemgetter
from typing import Any, Final

from fencekv.errors import Invalid, Lost
from fencekv.token import Version
from fencekv_shard import journal
from fencekv_shard.api import Change
from fencekv_shard.journal import Entry, Written
from fencekv_shard.overlay import Overlay, entry_bytes
from fencekv_shard.rows import Where
from fencekv_shard.store import Corrupt, Store
from fencekv_shard.transaction import Put, Record, Write

_PAGE_KEYS: Final = 256
_CACHE_ENTRIES: Final = 256
_CACHE_BYTES: Final = 2 << 20


class Reader:
    """Reads of one replica."""

    def __init__(self, store: Store, overlay: Overlay) -> None:
        self._store = store
        self._overlay = overlay
        self._cache: OrderedDict[int, Entry] = OrderedDict()  # applied entries: they never change
        self._cache_bytes = 0
        self._shape: tuple[int, Any] = (
            -1,
            None,
        )  # of the entry that was read last: a page may have a thousand of it
        self.base_seq = -1  # the base holds what was last written up to here,
        self.floor = -1  # and perhaps, while it is being folded, up to here

    def entry(self, seq: int) -> Entry:
        """An entry of the journal."""
        found = self._overlay.entry(seq) or self._cache.get(seq)
        if found is not None:
            return found
        data = self._store.record(seq)
        if data is None:
            raise Corrupt(f"{self._store.path}: seq {seq} is missing")
        try:
            entry = journal.decode_entry(journal.record_entry(data))
        except Invalid as error:
            raise Corrupt(f"{self._store.path}: seq {seq}: {error}") from error
        if seq <= self._overlay.applied_seq:
            self._remember(entry)
        return entry

    def read(self, key: str, at: int) -> Record | None:
        """What a key holds at a seq; None: it is absent."""
        if at < self.floor:
            raise self._gone(at)
        changed = self._overlay.holds(key)
        if changed:
            found = self._overlay.change(key, at)
            if found is not None:
                entry, write = found
                return _record(Written(entry.epoch, entry.seq, write))
        if changed or at < self._overlay.applied_seq:
            where = self._store.version_at(key, at)
        else:
            where = self._store.current(key)
        return None if where is None else self._stored(key, where)

    def scan(
        self, *, start: str, end: str, after: str, limit: int, bytes_max: int, at: int
    ) -> tuple[list[tuple[str, Record]], bool]:
        """Keys of start <= key < end behind `after`, in the order of their bytes, and whether there are more.

        The page ends before `bytes_max` is passed, but has one key at least, if there is any.
        """
        if at < self.floor:
            raise self._gone(at)
        low = max(start, after + "\x01") if after else start  # keys have no NUL: nothing lies between
        items: list[tuple[str, Record]] = []
        size = 0
        previous: str | None = None  # None: no key came yet
        for key, where in merge(
            self._changed_keys(low, end, at), self._stored_keys(low, end, at), key=itemgetter(0)
        ):
            if key == previous:
                continue
            previous = key
            record = self.read(key, at) if where is None else self._stored(key, where)
            if record is None:
                continue
            size += len(key.encode()) + len(record.value)
            if len(items) == limit or (items and size > bytes_max):
                return items, True
            items.append((key, record))
        return items, False

    def history(
        self, key: str, *, before: int | None, limit: int, at: int, bytes_max: int
    ) -> tuple[list[Change], bool]:
        """Versions of a key up to `at` and below `before`, newest first, and whether there are more."""
        bound = at if before is None else min(at, before - 1)
        if bound < self.floor:
            raise self._gone(bound)
        found = self._overlay.changes(key, bound)[: limit + 1]
        applied = min(bound, self._overlay.applied_seq)
        changes: list[Change] = []
        size = 0
        for change in self._older(found, key, applied, limit + 1 - len(found)):
            size += len(change.value or b"")
            if len(changes) == limit or (changes and size > bytes_max):
                return changes, True
            changes.append(change)
        return changes, False

    def idempotent(self, key: bytes) -> tuple[int, bytes] | None:
        """The last entry with this idempotency key: (seq, fingerprint); None: there is none."""
        found = self._overlay.idempotent(key)
        if found is not None:
            return found
        seq = self._store.idempotency(key)
        if seq is None or seq <= self.floor:
            return None
        idempotency = self.entry(seq).idempotency
        if idempotency is None or idempotency[0] != key:
            raise Corrupt(f"{self._store.path}: seq {seq} has another idempotency key")
        return seq, idempotency[1]

    def _older(self, found: list[tuple[Entry, Write]], key: str, applied: int, limit: int) -> Iterator[Change]:
        for entry, write in found:
            yield _change(Written(entry.epoch, entry.seq, write))
        for where in self._store.versions_of(key, seq=applied, limit=limit):
            if where[0] > self.floor:
                yield _change(self._written(where))
                continue
            record = self._stored(key, where)  # what the base holds; what was before is gone
            if record is not None:
                yield Change(record.version, record.value)
            return

    def _changed_keys(self, low: str, end: str, at: int) -> Iterator[tuple[str, Where | None]]:
        if at < self._overlay.applied_seq:  # `versions` knows them all
            return
        for key in self._overlay.keys(low, end):
            yield key, None

    def _stored_keys(self, low: str, end: str, at: int) -> Iterator[tuple[str, Where | None]]:
        """Keys of the derived tables. One that the overlay holds has come before, from there."""
        while True:
            if at < self._overlay.applied_seq:
                page = self._store.versions_page(low, end, seq=at, limit=_PAGE_KEYS)
            else:
                page = self._store.current_page(low, end, limit=_PAGE_KEYS)
            yield from page
            if len(page) < _PAGE_KEYS:
                return
            low = page[-1][0] + "\x01"

    def _stored(self, key: str, where: Where) -> Record | None:
        """What an applied operation left in its key, the last one up to the floor or one behind it."""
        if where[0] > self.base_seq:
            return _record(self._written(where))
        row = self._store.base_row(key)
        if row is None:
            return None  # it was a delete
        if row.seq != where[0]:
            raise Corrupt(f"{self._store.path}: the base has {key[:64]!r} of seq {row.seq}, not of {where[0]}")
        return Record(row.value, Version(row.epoch, row.seq))

    def _gone(self, seq: int) -> Lost:
        return Lost(f"history is gone: it begins at seq {self.floor}, asked was {seq}")

    def _written(self, where: Where) -> Written:
        """One operation of an applied entry."""
        seq, index = where
        if self._shape[0] != seq:
            data = self._store.record(seq)
            if data is None:
                raise Corrupt(f"{self._store.path}: seq {seq} is missing")
            self._shape = (seq, self._trusted(data, seq))
        try:
            return journal.written(self._shape[1], index)
        except Invalid as error:
            raise Corrupt(f"{self._store.path}: seq {seq}: {error}") from error

    def _trusted(self, record: bytes, seq: int) -> Any:
        try:
            return journal.own_shape(journal.record_entry(record))
        except Invalid as error:
            raise Corrupt(f"{self._store.path}: seq {seq}: {error}") from error

    def _remember(self, entry: Entry) -> None:
        self._cache[entry.seq] = entry
        self._cache_bytes += entry_bytes(entry)
        # The newest one stays, whatever its size: a listing of one large transaction reads it again and again.
        while len(self._cache) > 1 and (len(self._cache) > _CACHE_ENTRIES or self._cache_bytes > _CACHE_BYTES):
            _, oldest = self._cache.popitem(last=False)
            self._cache_bytes -= entry_bytes(oldest)


def _change(written: Written) -> Change:
    write = written.write
    return Change(Version(written.epoch, written.seq), write.value if isinstance(write, Put) else None)


def _record(written: Written) -> Record | None:
    write = written.write
    return Record(write.value, Version(written.epoch, written.seq)) if isinstance(write, Put) else None
