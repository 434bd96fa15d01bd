"""One replica's LMDB environment: the only module that knows LMDB.

Invariants:
  * Each writing method is one LMDB write transaction with one fsync, and writes `meta.state` with its change. It
    begins and fills the transaction; the `Prepared` that it gives commits it.
  * Entries are appended only if the promise on disk, read inside that transaction, is the appender's epoch and
    that epoch is not closed; and only right behind the last record on disk.
  * `current`, `versions` and `idempotency` hold exactly what base and journal say up to `applied_seq`; but the
    last two may still hold what lies below the base.
  * `base` and `meta.base` change together; a record leaves the journal only when the base holds what it wrote.
  * After an error of a commit nothing is written any more: what the disk holds is known only after a restart.
  * One `Prepared` at a time, and none begins while a read is under way. LMDB's own locks are off (decision 0004):
    without its table of readers this is what keeps it from using pages again that a reader still looks at. Whoever
    reads outside of the event loop lets nothing be written meanwhile.

Only `Prepared.commit` blocks on the disk; it may run in any thread, with reads beside it that see what was
committed before.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import lmdb

from fencekv.errors import Invalid
from fencekv_shard import limits
from fencekv_shard.base import Base, Fold, meta_rows, read_base
from fencekv_shard.rows import Batch, Trim, seq_key, unpack_seq
from fencekv_shard.state import ENDS_KEY, EpochEnd, State, decode_state, encode_state, ends_rows
from fencekv_shard.tables import Tables

TABLES: Final = ("meta", "current", "versions", "journal", "mmr", "idempotency", "leases", "expiry")
BASE: Final = "base"  # a table that environments made by earlier versions get with their first fold
DATA_FILE: Final = "data.mdb"

_STATE_KEY: Final = b"state"
Items = Sequence[tuple[bytes, bytes]]  # keys and values of rows, in the order of the keys

_ROOM_BYTES: Final = 1 << 20  # pages that any transaction may need besides its records


class StorageError(Exception):
    """Base of what storage tells its callers in this process."""


class FolderInUse(StorageError):
    """Another process, or another replica object of this one, holds the partition's lock."""


class UnknownFormat(StorageError):
    """The folder holds something that this program cannot read: it was not touched."""


class Unreadable(StorageError):
    """The disk did not let us look: nothing is known about what lies there, and nothing was touched. Try again."""


class Corrupt(StorageError):
    """What lies on disk contradicts its hashes: this replica must be seeded anew."""


class StalePromise(StorageError):
    """A higher epoch was promised before."""

    def __init__(self, epoch: int, promised: int) -> None:
        super().__init__(f"stale epoch: got={epoch}, promised={promised}")
        self.epoch = epoch
        self.promised = promised


class PromiseMoved(StorageError):
    """The appender's epoch is not the promised one, or is closed: nothing was written."""

    def __init__(self, epoch: int, *, promised: int, closed: int) -> None:
        super().__init__(f"epoch {epoch} may not append: promised={promised}, closed={closed}")
        self.epoch = epoch
        self.promised = promised
        self.closed = closed


class BelowApplied(StorageError):
    """The journal cannot be cut there: derived tables already hold what is above. Seed anew."""


class DiskFull(StorageError):
    """There is no room; nothing was written."""


class CommitFailed(StorageError):
    """A commit failed, and what the disk holds is not known: the process must end."""


def dont_need(path: Path) -> None:
    """Drops an environment's file from the page cache, so that what is read next comes from the disk.

    After a failed fsync the cache shows what never reached it.
    """
    if not hasattr(os, "posix_fadvise"):  # macOS has none; there the chain alone is checked
        return
    descriptor = os.open(path / DATA_FILE, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


class Prepared:
    """A filled LMDB transaction that waits for its commit. It ends by `commit`, or with its store."""

    __slots__ = ("_base", "_opened", "_raw", "_store", "_txn", "state")

    def __init__(
        self, store: Store, txn: Any, state: State, raw: bytes, base: Base | None, opened: dict[str, Any]
    ) -> None:
        self._store, self._txn = store, txn
        self.state, self._raw = state, raw
        self._base, self._opened = base, opened  # None, {}: they stay as they are

    def commit(self) -> State:
        """Makes it durable; gives the store's new state. Blocks, in any thread.

        Raises:
            DiskFull: the map is full; nothing was written.
            CommitFailed: whether it is durable is not known.
        """
        store = self._store
        try:
            self._txn.commit()
        except (
            lmdb.MapFullError
        ) as error:  # the list of free pages grows in the commit, before anything is written
            store._writing = False
            raise DiskFull(f"{store.path}: {error}") from error
        except Exception as error:
            raise store._fail(error) from error
        store._db.update(self._opened)
        store._ends = self.state.ends
        store.base = self._base or store.base
        store.state, store._raw, store._writing = self.state, self._raw, False
        return self.state


_FOREIGN = (lmdb.InvalidError, lmdb.VersionMismatchError, lmdb.CorruptedError, lmdb.PageNotFoundError)


class Store(Tables):
    """An open environment. `state` and `base` are what `meta` holds on disk."""

    def __init__(
        self,
        path: Path,
        environment: Any,
        tables: dict[str, Any],
        state: State,
        raw: bytes,
        base: Base,
        *,
        map_bytes: int,
    ) -> None:
        super().__init__(path, environment, tables)
        self._map_bytes = map_bytes
        self._page_bytes: int = environment.stat()["psize"]
        self.state, self.base = state, base
        self._ends: tuple[EpochEnd, ...] | None = None  # the state's as they were written last; None: not by us
        self._raw = raw  # the bytes of `state`: comparing them is cheaper than decoding in each transaction
        self._writing = False  # a `Prepared` is under way
        self._failed = False

    @classmethod
    def create(cls, path: Path, state: State | None, *, map_bytes: int = limits.MAP_BYTES) -> None:
        """Makes an environment with its state, durable but for the name of its folder, and closes it.

        `state` None: it is not complete, and cannot be opened, before `complete` has given it one.
        """
        _require_room(path.parent, 0, os.statvfs(path.parent))
        path.mkdir()
        with _making(path, map_bytes) as (txn, tables):
            if state is not None:
                txn.put(_STATE_KEY, encode_state(state), db=tables["meta"])
        sync_folder(path)

    @classmethod
    def fill(cls, path: Path, rows: Mapping[str, Items], *, map_bytes: int = limits.MAP_BYTES) -> None:
        """Adds rows to the tables named, each behind the ones that are there. The environment is not complete.

        Raises:
            Invalid: they do not lie behind those that are there, or are out of order.
            DiskFull, CommitFailed: see there.
        """
        payload = sum(len(key) + len(row) for items in rows.values() for key, row in items)
        _require_room(path, payload, os.statvfs(path))
        with _making(path, map_bytes) as (txn, tables):
            for name, items in rows.items():
                _, added = txn.cursor(db=tables[name]).putmulti(items, append=True)
                if added != len(items):
                    raise Invalid("rows: out of order", field="rows")

    @classmethod
    def complete(cls, path: Path, state: State, base: Base, *, map_bytes: int = limits.MAP_BYTES) -> None:
        """Makes an environment complete; durable but for the name of its folder."""
        state.check()
        with _making(path, map_bytes) as (txn, tables):
            for key, data in (*meta_rows(base), *ends_rows(state.ends)):
                txn.put(key, data, db=tables["meta"])
            txn.put(_STATE_KEY, encode_state(state), db=tables["meta"])

    @classmethod
    def open(cls, path: Path, *, map_bytes: int = limits.MAP_BYTES) -> Self:
        """Opens an environment that `create` made, reading it from the disk and not from the page cache.

        Raises:
            UnknownFormat: it is none, or one of another format.
            Corrupt: its pages are damaged.
        """
        if not (path / DATA_FILE).is_file():
            raise UnknownFormat(f"{path}: holds no {DATA_FILE}")
        dont_need(path)
        try:
            env = _environment(path, map_bytes)
        except _FOREIGN as error:
            raise UnknownFormat(f"{path}: not an LMDB 1.0 environment: {error}") from error
        except lmdb.Error as error:
            raise Unreadable(f"{path}: {error}") from error
        try:
            tables = {name: env.open_db(name.encode(), create=False) for name in TABLES}
            with contextlib.suppress(lmdb.NotFoundError):
                tables[BASE] = env.open_db(BASE.encode(), create=False)
            with env.begin() as txn:
                raw = txn.get(_STATE_KEY, db=tables["meta"]) or b""
                state = decode_state(raw, txn.get(ENDS_KEY, db=tables["meta"]))
                base = read_base(partial(txn.get, db=tables["meta"]))
            return cls(path, env, tables, state, raw, base, map_bytes=map_bytes)
        except (lmdb.NotFoundError, lmdb.IncompatibleError, Invalid) as error:
            env.close()
            raise UnknownFormat(f"{path}: {error}") from error
        except lmdb.Error as error:
            env.close()
            raise Corrupt(f"{path}: {error}") from error
        except BaseException:
            env.close()
            raise

    def close(self) -> None:
        """Closes the environment, undoing what was not committed. No method may run beside it or after it."""
        self._env.close()

    # -- writing ---------------------------------------------------------------------------------------------

    def append(self, records: Sequence[tuple[int, bytes]], state: State, *, promised: int) -> Prepared:
        """Appends records (seq, bytes) and the state that they lead to.

        Raises:
            PromiseMoved: the promise on disk is not `promised`, or that epoch is closed.
            DiskFull, CommitFailed: see there.
        """
        assert records, "nothing to append"
        assert records[-1][0] == state.last.seq, (records[-1][0], state.last)

        def work(txn: Any) -> State:
            self._check_promise(txn, promised)
            self._check_unchanged(txn)
            cursor = txn.cursor(db=self._db["journal"])
            last_seq = unpack_seq(cursor.key()) if cursor.last() else self.base.first_seq - 1
            assert last_seq == records[0][0] - 1, (last_seq, records[0][0])
            _, added = cursor.putmulti([(seq_key(seq), data) for seq, data in records], append=True)
            assert added == len(records), (added, len(records))
            return state

        return self._begin(work, payload_bytes=sum(len(data) for _, data in records))

    def promise(self, epoch: int) -> Prepared:
        """Makes `epoch` the promised epoch.

        Raises:
            StalePromise: a higher one was promised.
        """

        def work(txn: Any) -> State:
            state = self._read_state(txn)
            if epoch < state.promised:
                raise StalePromise(epoch, state.promised)
            return replace(state, promised=epoch)

        return self._begin(work)

    def close_epoch(self, epoch: int) -> Prepared:
        """No append under `epoch` or a lower one from now on."""

        def work(txn: Any) -> State:
            state = self._read_state(txn)
            return replace(state, closed_epoch=max(epoch, state.closed_epoch))

        return self._begin(work)

    def apply(self, batch: Batch, state: State, base: Base | None = None) -> Prepared:
        """Brings the derived tables up to `state.applied_seq`. `base`: with a checkpoint that is among it."""
        assert self.state.applied_seq < state.applied_seq <= state.commit_seq, (self.state.applied_seq, state)

        def work(txn: Any) -> State:
            self._check_unchanged(txn)
            for key in batch.deletes:
                txn.delete(key, db=self._db["current"])
            for table, items in (
                ("current", batch.puts),
                ("versions", batch.versions),
                ("idempotency", batch.idempotency),
            ):
                if items:
                    txn.cursor(db=self._db[table]).putmulti(items)
            return state

        payload = sum(len(key) + len(value) for items in (batch.puts, batch.versions) for key, value in items)
        return self._begin(work, payload_bytes=payload, base=base)

    def fold(self, fold: Fold, base: Base) -> Prepared:
        """Brings the base up to `base.seq`."""
        assert self.base.seq < base.seq <= self.state.applied_seq, (self.base, base, self.state)
        opened: dict[str, Any] = {}

        def work(txn: Any) -> State:
            self._check_unchanged(txn)
            table = self._db.get(BASE)
            if table is None:
                table = opened[BASE] = self._env.open_db(BASE.encode(), txn=txn)
            for key in fold.deletes:
                txn.delete(key, db=table)
            if fold.puts:
                txn.cursor(db=table).putmulti(fold.puts)
            return self.state

        return self._begin(work, payload_bytes=fold.size_bytes, base=base, opened=opened)

    def trim(self, trim: Trim, base: Base) -> Prepared:
        """Removes the journal's records below `base.first_seq`, and what they leave in the derived tables."""
        assert self.base.first_seq < base.first_seq <= base.seq + 1, (self.base, base)

        def work(txn: Any) -> State:
            self._check_unchanged(txn)
            cursor = txn.cursor(db=self._db["journal"])
            cursor.first()
            while cursor.key() and cursor.key() < seq_key(base.first_seq):
                cursor.delete()
            cursor = txn.cursor(db=self._db["versions"])
            for first, prefix in trim.versions:
                cursor.set_range(first)
                while cursor.key().startswith(prefix):
                    cursor.delete()
            for key, value in trim.idempotency:
                if txn.get(key, db=self._db["idempotency"]) == value:
                    txn.delete(key, db=self._db["idempotency"])
            return self.state

        return self._begin(work, base=base)

    def cut(self, seq: int, state: State, *, promised: int) -> Prepared:
        """Removes the journal's records above `seq`.

        Raises:
            PromiseMoved: the promise on disk is not `promised`, or that epoch is closed.
            BelowApplied: the derived tables already hold some of them.
        """
        assert state.last.seq == seq, (state.last, seq)
        if seq < self.state.applied_seq:
            raise BelowApplied(f"cut at {seq}, applied up to {self.state.applied_seq}")

        def work(txn: Any) -> State:
            self._check_promise(txn, promised)
            self._check_unchanged(txn)
            cursor = txn.cursor(db=self._db["journal"])
            if cursor.set_range(seq_key(seq + 1)):
                while cursor.key():
                    cursor.delete()
            return state

        return self._begin(work)

    def _check_promise(self, txn: Any, epoch: int) -> None:
        state = self._read_state(txn)
        if state.promised != epoch or state.closed_epoch >= epoch:
            raise PromiseMoved(epoch, promised=state.promised, closed=state.closed_epoch)

    def _check_unchanged(self, txn: Any) -> None:
        """The lock should keep everyone else out; a shared volume in another PID namespace can defeat it."""
        if txn.get(_STATE_KEY, db=self._db["meta"]) != self._raw:
            raise Corrupt(f"{self.path}: another process changed the state")

    def _read_state(self, txn: Any) -> State:
        raw = txn.get(_STATE_KEY, db=self._db["meta"])
        if raw == self._raw:
            return self.state
        return decode_state(raw, txn.get(ENDS_KEY, db=self._db["meta"]))

    def _begin(
        self,
        work: Callable[[Any], State],
        *,
        payload_bytes: int = 0,
        base: Base | None = None,
        opened: dict[str, Any] | None = None,
    ) -> Prepared:
        if self._failed:
            raise CommitFailed(f"{self.path}: an earlier commit failed")
        assert not self._writing, "a write has not ended yet"
        disk = os.statvfs(self.path)
        _require_room(self.path, payload_bytes, disk)
        try:
            txn = self._env.begin(write=True)
        except lmdb.Error as error:
            raise self._fail(error) from error
        try:
            state = work(txn)
            state.check()
            raw = encode_state(state)
            txn.put(_STATE_KEY, raw, db=self._db["meta"])
            ends = [] if state.ends is self._ends else ends_rows(state.ends)
            for key, data in ends if base is None else [*ends, *meta_rows(base)]:
                txn.put(key, data, db=self._db["meta"])
        except (lmdb.MapFullError, lmdb.TxnFullError, lmdb.DiskError) as error:
            txn.abort()
            raise DiskFull(f"{self.path}: {error}") from error
        except lmdb.Error as error:  # a page could not be read or spilled: the disk, not the request
            txn.abort()
            raise self._fail(error) from error
        except BaseException:
            txn.abort()
            raise
        self._writing = True
        return Prepared(self, txn, state, raw, base, opened or {})

    def _fail(self, error: Exception) -> CommitFailed:
        self._failed = True
        return CommitFailed(f"{self.path}: {error}")

    def in_reserve(self) -> bool:
        """Whether what is free on the disk, or in the map, is the reserve, or less."""
        return _is_in_reserve(os.statvfs(self.path)) or self._map_in_reserve()

    def _map_in_reserve(self) -> bool:
        if (self._env.info()["last_pgno"] + 1) * self._page_bytes <= self._map_bytes:
            return False
        # Pages behind the mark were used once; how many of all are used now, the tables tell.
        with self._env.begin() as txn:
            stats = [self._env.stat(), *(txn.stat(table) for table in self._db.values())]
        pages = sum(stat[kind] for stat in stats for kind in ("branch_pages", "leaf_pages", "overflow_pages"))
        return bool(pages * self._page_bytes > self._map_bytes)


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_in_reserve(disk: os.statvfs_result) -> bool:
    total, free = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
    return free < max(limits.DISK_RESERVE_BYTES, total * limits.DISK_RESERVE_SHARE)


def _require_room(path: Path, payload_bytes: int, disk: os.statvfs_result) -> None:
    """Refuses before the commit what would fill the disk in it: only before it a full disk is harmless."""
    free = disk.f_bavail * disk.f_frsize
    if free < _ROOM_BYTES + 4 * payload_bytes:
        raise DiskFull(f"{path}: {free} bytes free")


@contextlib.contextmanager
def _making(path: Path, map_bytes: int) -> Iterator[tuple[Any, dict[str, Any]]]:
    """One durable transaction on an environment that is being made, with all its tables."""
    try:
        with contextlib.closing(_environment(path, map_bytes)) as env, env.begin(write=True) as txn:
            yield txn, {name: env.open_db(name.encode(), txn=txn) for name in (*TABLES, BASE)}
    except (lmdb.MapFullError, lmdb.TxnFullError, lmdb.DiskError) as error:
        raise DiskFull(f"{path}: no room for a new environment") from error
    except lmdb.Error as error:
        raise CommitFailed(f"{path}: {error}") from error


def _environment(path: Path, map_bytes: int) -> Any:
    return lmdb.open(
        str(path),
        map_size=map_bytes + map_bytes // limits.MAP_RESERVE_PART,
        subdir=True,
        max_dbs=len(TABLES) + 1,
        lock=False,
        sync=True,
        metasync=True,
        lib_version=1,
    )
