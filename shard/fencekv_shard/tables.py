"""Reads of an environment's tables.

Invariants:
  * A read transaction ends in the method that began it: none is ever pinned. What is long is read in pages.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fencekv_shard.base import Row, unpack_row
from fencekv_shard.rows import SUFFIX_BYTES, Where, seq_key, unpack_seq, unpack_version, unpack_where, version_key


class Tables:
    """An open environment, as far as it is read. See `store`, which opens it and writes."""

    def __init__(self, path: Path, environment: Any, tables: dict[str, Any]) -> None:
        self.path = path
        self._env = environment
        self._db = tables  # `base` may be missing: see `store.BASE`

    def record(self, seq: int) -> bytes | None:
        """A record of the journal; None: there is none of that seq."""
        with self._env.begin() as txn:
            data: bytes | None = txn.get(seq_key(seq), db=self._db["journal"])
            return data

    def records(self, first: int, *, count_max: int, bytes_max: int) -> list[bytes]:
        """Consecutive records from `first` on: one at least, if there is any, whatever its size."""
        found: list[bytes] = []
        size = 0
        with self._env.begin() as txn, txn.cursor(db=self._db["journal"]) as cursor:
            positioned = cursor.set_range(seq_key(first))
            while positioned and len(found) < count_max:
                data = cursor.value()
                size += len(data)
                if found and size > bytes_max:
                    break
                found.append(data)
                positioned = cursor.next()
        return found

    def last_seq(self) -> int:
        """The seq of the last record; -1: none."""
        with self._env.begin() as txn, txn.cursor(db=self._db["journal"]) as cursor:
            return unpack_seq(cursor.key()) if cursor.last() else -1

    def current(self, key: str) -> Where | None:
        """Where the key's value at applied_seq was written; None: absent."""
        with self._env.begin() as txn:
            found = txn.get(key.encode(), db=self._db["current"])
            return None if found is None else unpack_where(found)

    def current_page(self, start: str, end: str, *, limit: int) -> list[tuple[str, Where]]:
        """Keys of start <= key < end (empty end: no bound) at applied_seq, in the order of their bytes."""
        bound = end.encode()
        page: list[tuple[str, Where]] = []
        with self._env.begin() as txn, txn.cursor(db=self._db["current"]) as cursor:
            positioned = cursor.set_range(start.encode()) if start else cursor.first()
            while positioned and len(page) < limit:
                key = cursor.key()
                if bound and key >= bound:
                    break
                page.append((key.decode(), unpack_where(cursor.value())))
                positioned = cursor.next()
        return page

    def version_at(self, key: str, seq: int) -> Where | None:
        """What wrote or deleted the key last at or before `seq`, as far as it is applied; None: nothing did."""
        found = self.versions_of(key, seq=seq, limit=1)
        return found[0] if found else None

    def versions_of(self, key: str, *, seq: int, limit: int) -> list[Where]:
        """What wrote or deleted the key at or before `seq`, newest first, as far as it is applied."""
        prefix = key.encode() + b"\x00"
        found: list[Where] = []
        if seq < 0:
            return found
        with self._env.begin() as txn, txn.cursor(db=self._db["versions"]) as cursor:
            positioned = cursor.set_range(version_key(key.encode(), seq))
            while positioned and len(found) < limit and cursor.key().startswith(prefix):
                found.append(unpack_version(cursor.key(), cursor.value())[1])
                positioned = cursor.next()
        return found

    def versions_page(self, start: str, end: str, *, seq: int, limit: int) -> list[tuple[str, Where]]:
        """For keys of start <= key < end: what wrote or deleted each last at or before `seq`."""
        bound = end.encode()
        page: list[tuple[str, Where]] = []
        if seq < 0:
            return page
        with self._env.begin() as txn, txn.cursor(db=self._db["versions"]) as cursor:
            positioned = cursor.set_range(start.encode()) if start else cursor.first()
            while positioned and len(page) < limit:
                key = cursor.key()[:-SUFFIX_BYTES]
                if bound and key >= bound:
                    break
                if cursor.set_range(version_key(key, seq)) and cursor.key()[:-SUFFIX_BYTES] == key:
                    page.append((key.decode(), unpack_version(cursor.key(), cursor.value())[1]))
                positioned = cursor.set_range(key + b"\x01")  # the least key behind it: keys have no NUL
        return page

    def idempotency(self, key: bytes) -> int | None:
        """The seq of the applied entry with this idempotency key; None: there is none."""
        with self._env.begin() as txn:
            found = txn.get(key, db=self._db["idempotency"])
            return None if found is None else unpack_seq(found)

    def base_row(self, key: str) -> Row | None:
        """A key's row in the base; None: the base does not hold it."""
        if "base" not in self._db:
            return None
        with self._env.begin() as txn:
            found = txn.get(key.encode(), db=self._db["base"])
            return None if found is None else unpack_row(found)

    def base_rows(self, keys: Iterable[bytes]) -> list[tuple[bytes, bytes]]:
        """The packed rows that the base holds of some keys."""
        if "base" not in self._db:
            return []
        with self._env.begin() as txn:
            found = [(key, txn.get(key, db=self._db["base"])) for key in keys]
            return [(key, row) for key, row in found if row is not None]

    def base_page(self, after: bytes, *, count_max: int, bytes_max: int) -> list[tuple[bytes, bytes]]:
        """Keys and packed rows of the base behind the key `after`: one at least, if there is any."""
        page: list[tuple[bytes, bytes]] = []
        size = 0
        if "base" not in self._db:
            return page
        with self._env.begin() as txn, txn.cursor(db=self._db["base"]) as cursor:
            positioned = cursor.set_range(after + b"\x00")
            while positioned and len(page) < count_max:
                key, row = cursor.item()
                size += len(key) + len(row)
                if page and size > bytes_max:
                    break
                page.append((key, row))
                positioned = cursor.next()
        return page

    def tables(self) -> dict[str, dict[bytes, bytes]]:
        """The whole derived tables, for `audit`."""
        names = ("current", "versions", "idempotency")
        with self._env.begin() as txn:
            return {name: dict(txn.cursor(db=self._db[name])) for name in names}
