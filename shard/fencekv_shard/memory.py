"""What a pod remembers on its volume besides its replicas: renewals, and whose records are suspect.

Invariants:
  * Nothing is read or written before the data folder is this process's alone, which lasts to its end.
  * The remembered renewal never falls. It is written after the renewal was carried out, so that a Lease that
    shows less was deleted or put back to an earlier copy.
  * A partition is suspect until a grant of it with a higher epoch has been seen.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Final

from fencekv.clock import Clock

logger = logging.getLogger(__name__)

FOLDER_RETRY_SECONDS: Final = 0.2
FOLDER_WARNING_SECONDS: Final = 10.0


class PodMemory:
    """`renewal.json` and the lock of the data folder.

    Args:
        folder: the data folder; created if missing.
        epochs: gives the highest known epoch of each replica of this pod, by partition UID.
    """

    def __init__(self, folder: Path, *, epochs: Callable[[], Mapping[str, int]]) -> None:
        self._folder = folder
        self._path = folder / "renewal.json"
        self._epochs = epochs
        self._lock: IO[bytes] | None = None  # None: not opened yet, or closed.
        self.renewal = 0
        self._suspects: dict[str, int] = {}

    async def open(self, clock: Clock) -> None:
        """Waits until no other process holds the folder, and reads what is remembered there.

        The other one is an older process that still drains, after its pod was deleted by force, or that of another
        node, if a volume is attached twice. Ending instead would only make the kubelet wait ever longer between
        attempts.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = await _locked(self._folder / "shard.lock", clock)
        stored = self._read()
        self.renewal = stored.get("renewal", 0)
        self._suspects = stored.get("suspect", {})

    def remember(self, renewal: int) -> None:
        """Stores the number of a renewal that was carried out.

        Not fsynced: after a power loss an older number only makes the check less sharp. A full disk does the same.
        """
        self.renewal = max(self.renewal, renewal)
        try:
            self._write(sync=bool(self._suspects))
        except OSError as error:
            logger.error("renewal %d not remembered: %s", renewal, error)

    def suspect(self) -> None:
        """Marks the records of all replicas of this pod as suspect, durably."""
        for uid, epoch in self._epochs().items():
            self._suspects[uid] = max(epoch, self._suspects.get(uid, -1))
        self._write(sync=True)

    def is_suspect(self, uid: str) -> bool:
        """Whether the record of a partition is suspect to this pod."""
        return uid in self._suspects

    def granted(self, uid: str, epoch: int) -> None:
        """Takes note of a grant: one above the suspected epoch clears the suspicion."""
        if uid in self._suspects and epoch > self._suspects[uid]:
            del self._suspects[uid]
            try:
                self._write(sync=True)
            except OSError as error:  # it is suspected again after a restart, which costs one more grant
                logger.error("%s: end of suspicion not remembered: %s", uid, error)

    def close(self) -> None:
        """Lets go of the folder, if it was obtained."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _read(self) -> dict[str, Any]:
        try:
            stored = json.loads(self._path.read_text())
        except FileNotFoundError:
            return {}
        except ValueError:
            # A torn write of a file that is only ever replaced whole: treat it as a volume that lost something.
            logger.error("%s is damaged: beginning anew", self._path)
            return {}
        return dict(stored)

    def _write(self, *, sync: bool = False) -> None:
        assert self._lock is not None, f"{self._folder} is not ours"
        beside = self._path.with_suffix(".new")
        with beside.open("w") as file:
            json.dump({"renewal": self.renewal, "suspect": self._suspects}, file)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        beside.rename(self._path)
        if sync:
            _sync_folder(self._path.parent)


async def _locked(path: Path, clock: Clock) -> IO[bytes]:
    file = path.open("ab")
    began = clock.now()
    warned = None  # None: not yet; the first warning comes at once.
    try:
        while not _lock_at_once(file):
            now = clock.now()
            if warned is None or now - warned >= FOLDER_WARNING_SECONDS:
                logger.warning("%s is in use by another process: waited %.0f s", path.parent, now - began)
                warned = now
            await asyncio.sleep(FOLDER_RETRY_SECONDS)
    except BaseException:
        file.close()
        raise
    if warned is not None:
        logger.info("%s is free after %.1f s", path.parent, clock.now() - began)
    return file


def _lock_at_once(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
