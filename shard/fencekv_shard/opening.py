"""Opening the replicas that lie on a shard's disk: a few at once, and what each took."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fencekv.clock import Clock
from fencekv_shard.executor import Executor
from fencekv_shard.replica import Replica
from fencekv_shard.store import Corrupt

logger = logging.getLogger(__name__)

OPENING_AT_ONCE: Final = 8


class Openings:
    """Those of one folder. `took`: what opening took, for the shard's report, by UID, until it is taken out."""

    def __init__(self, folder: Path, *, executor: Executor, new_id: Callable[[], str], clock: Clock) -> None:
        self.took: dict[str, dict[str, object]] = {}
        self._folder, self._executor, self._new_id, self._clock = folder, executor, new_id, clock
        self._slots = asyncio.Semaphore(OPENING_AT_ONCE)

    async def open(self, uid: str) -> Replica:
        """Opens a partition's replica; one that contradicts itself is set aside, and an empty one takes its place.

        Raises:
            StorageError: it cannot be opened.
        """
        executor, new_id = self._executor, self._new_id
        async with self._slots:
            began = self._clock.now()
            try:
                replica = await Replica.open(self._folder, uid, executor=executor, new_id=new_id)
            except Corrupt as error:
                logger.error("%s: seeding anew: %s", uid, error)
                replica = await Replica.reseed(self._folder, uid, executor=executor, new_id=new_id, promised=0)
        seconds = round(self._clock.now() - began, 6)
        self.took[uid] = {"openSeconds": seconds, "replayedEntries": replica.overlay_entries}
        return replica
