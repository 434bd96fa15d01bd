"""Bugs to be found: each breaks the real code of the process that it is planted in."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

import lmdb

from fencekv_shard import folder, store
from fencekv_shard.replica import Replica


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


def _state_in_a_transaction_of_its_own() -> None:
    real = lmdb.open
    lmdb.open = lambda *arguments, **options: _Apart(real(*arguments, **options))  # type: ignore[assignment]


class _Apart:
    """An environment whose `meta.state` is written behind each commit, by a second one."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def begin(self, *arguments: Any, **options: Any) -> Any:
        txn = self._real.begin(*arguments, **options)
        return _ApartTxn(self._real, txn) if options.get("write") else txn


class _ApartTxn:
    def __init__(self, env: Any, real: Any) -> None:
        self._env, self._real = env, real
        self._state: tuple[Any, dict[str, Any]] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def __enter__(self) -> Any:
        return self._real.__enter__()  # a new environment: made as it should be

    def __exit__(self, *error: Any) -> Any:
        return self._real.__exit__(*error)

    def put(self, key: bytes, value: bytes, **options: Any) -> Any:
        if key != b"state":
            return self._real.put(key, value, **options)
        self._state = (value, options)
        return True

    def commit(self) -> None:
        self._real.commit()
        if self._state is not None:
            value, options = self._state
            with self._env.begin(write=True) as txn:
                txn.put(b"state", value, **options)


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
    "state in a transaction of its own": _state_in_a_transaction_of_its_own,
    "acknowledged before the commit": _acknowledged_before_the_commit,
    "without fsync of files": _without_fsync_of_files,
    "without fsync of folders": _without_fsync_of_folders,
}

# These show on a failing disk only.
PLANTED_ON_FAILURES: Final[dict[str, Callable[[], None]]] = {
    "failed commits taken for good": _failed_commits_taken_for_good,
    "failed fsyncs tried again": _failed_fsyncs_tried_again,
}
