"""Reads of a replica's keys as of a seq: overlay first, then the derived tables, then the journal.

Invariants:
  * A read at a seq depends on the entries up to it alone. The derived tables may run ahead of the overlay's
    applied_seq while an apply step is under way; so `current` counts only for keys that the overlay does not hold,
    for all others `versions` does, which keeps what was.
  * All of a read happens in one turn of the event loop: the overlay does not change under it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from heapq import merge
from operator import itemgetter
from typing import Final

from fencekv.token import Version
from fencekv_shard import journal
from fencekv_shard.api import Change
from fencekv_shard.journal import Entry
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

    def entry(self, seq: int) -> Entry:
        """An entry of the journal."""
        found = self._overlay.entry(seq) or self._cache.get(seq)
        if found is not None:
            return found
        data = self._store.record(seq)
        if data is None:
            raise Corrupt(f"{self._store.path}: seq {seq} is missing")
        entry = journal.decode_entry(journal.record_entry(data))
        if seq <= self._overlay.applied_seq:
            self._remember(entry)
        return entry

    def read(self, key: str, at: int) -> Record | None:
        """What a key holds at a seq; None: it is absent."""
        changed = self._overlay.holds(key)
        if changed:
            found = self._overlay.change(key, at)
            if found is not None:
                return _record(*found)
        if changed or at < self._overlay.applied_seq:
            where = self._store.version_at(key, at)
        else:
            where = self._store.current(key)
        return None if where is None else _record(*self._write(where))

    def scan(
        self, *, start: str, end: str, after: str, limit: int, bytes_max: int, at: int
    ) -> tuple[list[tuple[str, Record]], bool]:
        """Keys of start <= key < end behind `after`, in the order of their bytes, and whether there are more.

        The page ends before `bytes_max` is passed, but has one key at least, if there is any.
        """
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
            record = self.read(key, at) if where is None else _record(*self._write(where))
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
        found = self._overlay.changes(key, bound)[: limit + 1]
        applied = min(bound, self._overlay.applied_seq)
        changes: list[Change] = []
        size = 0
        for entry, write in self._older(found, key, applied, limit + 1 - len(found)):
            value = write.value if isinstance(write, Put) else None
            size += len(value or b"")
            if len(changes) == limit or (changes and size > bytes_max):
                return changes, True
            changes.append(Change(Version(entry.epoch, entry.seq), value))
        return changes, False

    def idempotent(self, key: bytes) -> tuple[int, bytes] | None:
        """The last entry with this idempotency key: (seq, fingerprint); None: there is none."""
        found = self._overlay.idempotent(key)
        if found is not None:
            return found
        seq = self._store.idempotency(key)
        if seq is None:
            return None
        idempotency = self.entry(seq).idempotency
        if idempotency is None or idempotency[0] != key:
            raise Corrupt(f"{self._store.path}: seq {seq} has another idempotency key")
        return seq, idempotency[1]

    def _older(
        self, found: list[tuple[Entry, Write]], key: str, applied: int, limit: int
    ) -> Iterator[tuple[Entry, Write]]:
        yield from found
        for where in self._store.versions_of(key, seq=applied, limit=limit):
            yield self._write(where)

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

    def _write(self, where: Where) -> tuple[Entry, Write]:
        entry = self.entry(where[0])
        if where[1] >= len(entry.writes):
            raise Corrupt(f"{self._store.path}: seq {where[0]} has no operation {where[1]}")
        return entry, entry.writes[where[1]]

    def _remember(self, entry: Entry) -> None:
        self._cache[entry.seq] = entry
        self._cache_bytes += entry_bytes(entry)
        # The newest one stays, whatever its size: a listing of one large transaction reads it again and again.
        while len(self._cache) > 1 and (len(self._cache) > _CACHE_ENTRIES or self._cache_bytes > _CACHE_BYTES):
            _, oldest = self._cache.popitem(last=False)
            self._cache_bytes -= entry_bytes(oldest)


def _record(entry: Entry, write: Write) -> Record | None:
    return Record(write.value, Version(entry.epoch, entry.seq)) if isinstance(write, Put) else None
