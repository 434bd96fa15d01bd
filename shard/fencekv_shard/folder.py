"""The files of a partition's replica: its lock, and how an environment comes, is set aside, and goes.

Invariants:
  * Whoever opens, seeds anew or discards a replica holds `<uid>.lock`; the lock ends with its process.
  * At each instant there is one environment that counts: `<uid>/`, or, where that is absent, a complete
    `<uid>.seed/`. A seed beside an existing environment, or one without a state, is half-done and discarded.
  * A seed gets its state last: until then it is none, however much of an owner's base it holds.
  * A promise made here is never lost: a new environment promises at least what each one set aside had promised.
  * What is set aside is kept for a person to look at, within limits; what was set aside last is kept whatever its
    size. Nothing of it goes before what was set aside after it is durable under its name.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Self

from fencekv.errors import Invalid
from fencekv_shard import limits
from fencekv_shard.base import Base, Digest, checked_row
from fencekv_shard.journal import Checkpoint
from fencekv_shard.rows import pack_index, pack_where, version_key
from fencekv_shard.state import State
from fencekv_shard.store import DATA_FILE, Corrupt, DiskFull, FolderInUse, Store, UnknownFormat, sync_folder

logger = logging.getLogger(__name__)


class Promises(NamedTuple):
    """What an environment may never take back."""

    promised: int
    closed_epoch: int

    def and_those_of(self, path: Path) -> tuple[Promises, str | None]:
        """The higher of these and an environment's, with its replica id; None: it cannot be read."""
        try:
            store = Store.open(path)
        except (UnknownFormat, Corrupt):
            return self, None
        state = store.state
        store.close()
        promised = max(self.promised, state.promised)
        return Promises(promised, max(self.closed_epoch, state.closed_epoch)), state.replica_id


class Seed:
    """A replica that is being made from an owner's base, page by page. What it does blocks.

    Nothing of it counts before `replace_environment` has put it in the place of the one that is there.
    """

    def __init__(self, folder: Path, uid: str, base: Base) -> None:
        self._path = folder / f"{uid}.seed"
        self._base = replace(base, first_seq=base.seq + 1, noted=None)
        self._digest = Digest()

    def begin(self) -> None:
        """Makes an environment without a state, in the place of any earlier seed. Raises DiskFull."""
        _remove(self._path)
        Store.create(self._path, None)
        sync_folder(self._path.parent)

    def add(self, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """Adds the keys and packed rows that follow those that are there.

        Raises:
            Invalid: they are no rows of the base. DiskFull: there is no room; the seed is gone.
        """
        wheres = [(key, checked_row(key, row, self._base)) for key, row in rows]
        tables = {
            "base": rows,
            "current": [(key, pack_where(where)) for key, where in wheres],
            "versions": [(version_key(key, seq), pack_index(index)) for key, (seq, index) in wheres],
        }
        try:
            Store.fill(self._path, tables)
        except DiskFull:
            _remove(self._path)
            raise
        self._digest.add(rows)

    def drop(self) -> None:
        """Removes it. What cannot be removed stays for the next seed, or the next opening, to remove."""
        with contextlib.suppress(OSError):
            _remove(self._path)

    def check(self, sent: Checkpoint) -> None:
        """Raises Invalid: these are not all the rows that the owner sent."""
        if self._digest.checkpoint(self._base.seq) != sent:
            raise Invalid("seed: its hash is not the one that the owner has", field="rows")

    def complete(self, replica_id: str, promises: Promises) -> None:
        """Makes it an environment like any other."""
        promised, closed = max(promises.promised, self._base.last.epoch), promises.closed_epoch
        state = self._base.state(replica_id=replica_id, promised=promised, closed_epoch=closed)
        Store.complete(self._path, state, replace(self._base, total=self._digest.total))


class Lock:
    """The flock beside an environment."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def take(cls, folder: Path, uid: str) -> Self:
        """Takes the lock at once.

        Raises:
            FolderInUse: somebody holds it.
        """
        assert uid, "a partition without a UID"
        assert not set(uid) & set("/.*?["), uid  # file names are made from it, and found by it
        path = folder / f"{uid}.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise FolderInUse(f"{path}: held by another process, or already open in this one") from error
        return cls(path, descriptor)

    def release(self) -> None:
        """Gives the lock back."""
        os.close(self._descriptor)


def uids(folder: Path) -> list[str]:
    """The partitions that have files here, whether complete or not."""
    found = {path.name.removesuffix(".seed") for path in folder.iterdir() if path.is_dir()}
    return sorted(name for name in found if "." not in name)


def open_or_create(folder: Path, uid: str, *, new_id: Callable[[], str]) -> Store:
    """Opens the environment that counts, finishing what an earlier process left half-done. The lock is held.

    Raises:
        UnknownFormat: what lies there is not ours, or of another format.
    """
    path, seed = folder / uid, folder / f"{uid}.seed"
    if path.exists():
        _remove(seed)
        return Store.open(path)
    if not _complete(seed):
        _remove(seed)
        _make_seed(folder, uid, new_id(), _set_aside(folder, uid))
    return _adopt(folder, uid)


def replace_environment(
    folder: Path, uid: str, *, new_id: Callable[[], str], promised: int, seed: Seed | None = None
) -> Store:
    """Sets the environment aside and opens `seed` in its place, or an empty one. The lock is held.

    The new one is complete before the old one moves: a crash before that leaves the old one in place, a crash
    after it is finished by the next opening.
    """
    path, made = folder / uid, folder / f"{uid}.seed"
    if seed is None:
        if not path.exists() and _complete(made):
            _adopt(folder, uid).close()
        _remove(made)
    promises = _set_aside(folder, uid)
    promises = promises._replace(promised=max(promised, promises.promised))
    replica_id = None
    if path.exists():
        promises, replica_id = promises.and_those_of(path)
    if seed is None:
        _make_seed(folder, uid, new_id(), promises)
    else:
        seed.complete(new_id(), promises)
    aside = _aside_name(folder, uid, replica_id) if path.exists() else None
    if aside is not None:
        path.rename(aside)
        sync_folder(folder)
    store = _adopt(folder, uid)
    if aside is not None:
        replicas = list(folder.glob(f"{uid}.aside-*"))
        _collect(replicas, aside, count_max=limits.ASIDE_REPLICAS_MAX, bytes_max=limits.ASIDE_BYTES_MAX)
    return store


def discard(folder: Path, uid: str) -> None:
    """Removes everything of a partition: its deletionPolicy is Delete.

    Raises:
        FolderInUse: it is still open.
    """
    lock = Lock.take(folder, uid)
    try:
        for path in sorted(folder.glob(f"{uid}.*")):
            if path != lock.path:
                _remove(path)
        _remove(folder / uid)
        sync_folder(folder)
        lock.path.unlink()
        sync_folder(folder)
    finally:
        lock.release()


def retain(folder: Path, uid: str) -> None:
    """Marks a partition as deleted under Retain: its data stays, and nobody adopts it unasked."""
    (folder / f"{uid}.retained").touch()
    sync_folder(folder)


def is_retained(folder: Path, uid: str) -> bool:
    """Whether the partition was deleted under Retain."""
    return (folder / f"{uid}.retained").exists()


def write_tail(folder: Path, uid: str, *, epoch: int, seq: int, data: bytes) -> Path:
    """Sets a divergent tail aside, durably. `epoch` and `seq` are those of its first record.

    The same tail may be written twice (a crash before the cut); another one under its name gets a name of its own.
    """
    path = folder / f"{uid}.tail-{epoch}-{seq}.cbor"
    number = 1
    while path.exists() and path.read_bytes() != data:
        number += 1
        path = folder / f"{uid}.tail-{epoch}-{seq}.{number}.cbor"
    unfinished = path.with_suffix(".new")
    with unfinished.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(path)
    sync_folder(folder)
    tails = list(folder.glob(f"{uid}.tail-*.cbor"))
    _collect(tails, path, count_max=limits.TAILS_MAX, bytes_max=limits.TAILS_BYTES_MAX)
    return path


def _collect(found: Sequence[Path], newest: Path, *, count_max: int, bytes_max: int) -> None:
    """Removes what was set aside, the oldest first, until it is within the limits. `newest` stays.

    One that cannot be removed is left for the next time.
    """

    def written(path: Path) -> tuple[float, int]:
        with contextlib.suppress(OSError):
            status = (path / DATA_FILE if path.is_dir() else path).stat()
            return status.st_mtime, status.st_size
        return 0.0, 0  # a half-removed one

    ages = {path: written(path) for path in found}
    count, size = len(ages), sum(size for _, size in ages.values())
    for path in sorted(ages, key=lambda path: (ages[path], path.name)):
        if count <= count_max and size <= bytes_max:
            break
        if path == newest:
            continue
        logger.warning("%s is removed: what was set aside after it takes all the room for such", path)
        with contextlib.suppress(OSError):
            _remove(path)
        count, size = count - 1, size - ages[path][1]


def _adopt(folder: Path, uid: str) -> Store:
    path = folder / uid
    (folder / f"{uid}.seed").rename(path)
    sync_folder(folder)
    return Store.open(path)


def _complete(seed: Path) -> bool:
    """Whether an environment was made to its end: its state is its only, and so its last, commit."""
    if not (seed / DATA_FILE).is_file():
        return False
    with contextlib.suppress(UnknownFormat, Corrupt):
        Store.open(seed).close()
        return True
    return False


def _make_seed(folder: Path, uid: str, replica_id: str, promises: Promises) -> None:
    state = State(replica_id=replica_id, promised=promises.promised, closed_epoch=promises.closed_epoch)
    Store.create(folder / f"{uid}.seed", state)
    sync_folder(folder)


def _set_aside(folder: Path, uid: str) -> Promises:
    """What the environments set aside have promised: an empty one in their place promises it too."""
    promises = Promises(0, 0)
    for path in folder.glob(f"{uid}.aside-*"):
        promises, _ = promises.and_those_of(path)
    return promises


def _aside_name(folder: Path, uid: str, replica_id: str | None) -> Path:
    if replica_id is not None:
        return folder / f"{uid}.aside-{replica_id}"
    number = 0  # an environment that cannot be read has no id to be named by
    while (path := folder / f"{uid}.aside-unknown-{number}").exists():
        number += 1
    return path


def _remove(path: Path) -> None:
    if path.is_dir():
        # Without its data file it is no environment any more, even if a crash keeps the rest of the folder.
        (path / DATA_FILE).unlink(missing_ok=True)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
