"""Bugs to be found: each breaks the real code of the process that it is planted in."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

import lmdb

from fencekv_shard import folder, store
from fencekv_shard.engine import Engine
from fencekv_shard.replica import Replica
from fencekv_shard.trimmer import Trimmer


def open_with(**changes: Any) -> Callable[[], None]:
    """Environments are opened with other options from now on; gives what undoes that.

    A new one is made as it should be: that it may be lost whole would be found too soon to prove much.
    """
    real = lmdb.open

    def opened(path: str, **options: Any) -> Any:
        return real(path, **(options if path.endswith(".seed") else {**options, **changes}))

    def undo() -> None:
        lmdb.open = real

    lmdb.open = opened  # type: ignore[assignment]
    return undo


def _without_sync() -> None:
    open_with(sync=False)


def _without_metasync() -> None:
    open_with(metasync=False)


def _apart(key: bytes) -> Callable[[], None]:
    """The row of `meta` under this key is written in a transaction of its own."""

    def plant() -> None:
        real = lmdb.open
        lmdb.open = lambda *arguments, **options: _Apart(real(*arguments, **options), key)  # type: ignore[assignment]

    return plant


class _Apart:
    """An environment one row of which is written behind each commit, by a second one."""

    def __init__(self, real: Any, key: bytes) -> None:
        self._real, self._key = real, key

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def begin(self, *arguments: Any, **options: Any) -> Any:
        txn = self._real.begin(*arguments, **options)
        return _ApartTxn(self._real, txn, self._key) if options.get("write") else txn


class _ApartTxn:
    def __init__(self, env: Any, real: Any, key: bytes) -> None:
        self._env, self._real, self._key = env, real, key
        self._row: tuple[Any, dict[str, Any]] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def __enter__(self) -> Any:
        return self._real.__enter__()  # a new environment: made as it should be

    def __exit__(self, *error: Any) -> Any:
        return self._real.__exit__(*error)

    def put(self, key: bytes, value: bytes, **options: Any) -> Any:
        if key != self._key:
            return self._real.put(key, value, **options)
        self._row = (value, options)
        return True

    def commit(self) -> None:
        self._real.commit()
        if self._row is not None:
            value, options = self._row
            with self._env.begin(write=True) as txn:
                txn.put(self._key, value, **options)


def _acknowledged_before_the_commit() -> None:
    real = Replica.append_staged

    def hasty(self: Replica, growth: Any, *, epoch: int, done: Callable[[BaseException | None], None]) -> None:
        after = growth.onto(self._state, commit_seq=self._commit_seq)
        real(self, growth, epoch=epoch, done=lambda _error: None)
        self._state = after
        done(None)

    Replica.append_staged = hasty  # type: ignore[method-assign]


def _without_fsync_of_files() -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            real(descriptor)

    os.fsync = fsync  # type: ignore[assignment]


def _without_fsync_of_folders() -> None:
    for module in (folder, store):
        module.sync_folder = lambda path: None  # type: ignore[attr-defined]


def _trimmed_before_the_checkpoint() -> None:
    real = Trimmer._make_checkpoint

    async def hasty(self: Trimmer, replica: Replica, engine: Engine) -> bool:
        await self._fold(replica, replica.commit_seq, lambda _entry: True)
        await self._trim(replica, replica.base.seq)
        return await real(self, replica, engine)

    Trimmer._make_checkpoint = hasty  # type: ignore[method-assign]


def _moved_aside_before_the_seed_is_complete() -> None:
    real = folder.Seed.complete

    def late(self: folder.Seed, replica_id: str, promises: folder.Promises) -> None:
        path = self._path.with_suffix("")
        path.rename(path.with_suffix(f".aside-for-{replica_id}"))
        folder.sync_folder(path.parent)
        real(self, replica_id, promises)

    folder.Seed.complete = late  # type: ignore[method-assign]


def _failed_commits_taken_for_good() -> None:
    real = store.Prepared.commit

    def commit(self: store.Prepared) -> Any:
        try:
            return real(self)
        except store.CommitFailed:
            self._store._failed, self._store._writing = False, False
            return self.state

    store.Prepared.commit = commit  # type: ignore[method-assign]


def _failed_fsyncs_tried_again() -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        try:
            real(descriptor)
        except OSError:
            real(descriptor)

    os.fsync = fsync  # type: ignore[assignment]


PLANTED: Final[dict[str, Callable[[], None]]] = {
    "without sync": _without_sync,
    "without metasync": _without_metasync,
    "state in a transaction of its own": _apart(b"state"),
    "acknowledged before the commit": _acknowledged_before_the_commit,
    "without fsync of files": _without_fsync_of_files,
    "without fsync of folders": _without_fsync_of_folders,
    "trimmed before the checkpoint": _trimmed_before_the_checkpoint,
    "base in a transaction of its own": _apart(b"base"),
    "ends in a transaction of their own": _apart(b"ends"),
    "moved aside before the seed is complete": _moved_aside_before_the_seed_is_complete,
}

# These show on a failing disk only.
PLANTED_ON_FAILURES: Final[dict[str, Callable[[], None]]] = {
    "failed commits taken for good": _failed_commits_taken_for_good,
    "failed fsyncs tried again": _failed_fsyncs_tried_again,
}
