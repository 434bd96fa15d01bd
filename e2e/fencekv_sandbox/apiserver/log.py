"""The store's log on disk: JSON lines, compacted at start and whenever most of it is history.

Invariants:
  * A line is written whole before the commit is answered: the end of this process loses nothing.
    With `sync`, neither does the end of the machine.
  * One process at a time has the log open.
  * A torn last line was never answered, and is dropped.
  * Compaction replaces the file in one rename, and carries the version, so that it never goes back.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from .store import Key, Object, Stored, encode

COMPACT_BYTES_MIN: Final = 32 * 1024 * 1024
COMPACT_RATIO_MIN: Final = 4


class FileLog:
    """Commits as lines `[version, resource, namespace, name, object or null]`."""

    def __init__(self, path: Path, *, sync: bool = False) -> None:
        self._path = path
        self._sync = sync
        self._bytes = 0
        self._bytes_live = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise OSError(f"{path.parent} is in use by another API server") from error
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def append(self, version: int, key: Key, obj: Object | None) -> None:
        """Keep one commit; None: the object was deleted."""
        line = encode([version, key.resource, key.namespace, key.name, obj]) + b"\n"
        view = memoryview(line)
        while view:
            view = view[os.write(self._file, view) :]
        if self._sync:
            os.fdatasync(self._file)
        self._bytes += len(line)

    def replay(self) -> Iterable[tuple[int, Key | None, Object | None]]:
        """Everything kept so far."""
        lines = self._path.read_bytes().split(b"\n")
        torn = lines.pop()
        for number, line in enumerate(lines):
            try:
                entry: list[Any] = json.loads(line)
            except ValueError as error:
                raise OSError(f"{self._path}: line {number + 1} is damaged") from error
            version, resource, namespace, name, obj = entry
            key = Key(resource=resource, namespace=namespace, name=name) if resource else None
            yield version, key, obj
        if torn:
            os.ftruncate(self._file, self._path.stat().st_size - len(torn))

    def compact(self, version: int, objects: Iterable[Stored]) -> None:
        """Replace all by the state at `version`."""
        beside = self._path.with_suffix(".new")
        with beside.open("wb") as file:
            for stored in sorted(objects, key=lambda one: one.version):
                key = stored.key
                head = encode([stored.version, key.resource, key.namespace, key.name])
                file.write(head[:-1] + b"," + stored.encoded + b"]\n")
            file.write(encode([version, "", "", "", None]) + b"\n")
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        beside.replace(self._path)
        os.close(self._file)
        self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self._bytes = self._bytes_live = size

    def wants_compaction(self) -> bool:
        """Whether most of the log is history."""
        return self._bytes > max(COMPACT_BYTES_MIN, COMPACT_RATIO_MIN * self._bytes_live)

    def close(self) -> None:
        """Give the file back."""
        os.close(self._file)
        os.close(self._lock)
