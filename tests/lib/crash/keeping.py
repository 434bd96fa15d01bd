"""The trimmer of a recorded life: the real one, with small steps, and with a clock in the life's hands."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

from memory_kube import HandClock

from fencekv_shard import limits
from fencekv_shard.__main__ import _commit_failed
from fencekv_shard.engine import Engine
from fencekv_shard.replica import Replica
from fencekv_shard.trimmer import Trimmer

WINDOW_SECONDS: Final = 10.0

# So small that a short life has many steps, and none is waited for.
STEPS: Final = {
    "FOLD_ENTRIES": 4,
    "FOLD_WRITES": 8,
    "FOLD_PAUSE_SECONDS": 0.0,
    "FOLD_AGAIN_SECONDS": 0.002,
    "TRIM_SECONDS_MIN": 0.0,
    "ASIDE_REPLICAS_MAX": 1,
    "IDEMPOTENCY_SECONDS_MIN": 3 * WINDOW_SECONDS,
}


class Keeping:
    """Folds and trims `replica` while the life goes on. `engine`: of the owner; None: it is a standby."""

    def __init__(self, replica: Replica) -> None:
        for name, value in STEPS.items():
            assert hasattr(limits, name), name
            setattr(limits, name, value)
        self.replica = replica
        self.engine: Engine | None = None
        self.clock = HandClock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._trimmer = Trimmer(
            name="crash",
            replica=lambda: self.replica,
            engine=lambda: self.engine,
            window_seconds=lambda: WINDOW_SECONDS,
            clock=self.clock,
            spawn=self._spawn,
            on_fatal=_commit_failed,
            on_standing=self._contradicted,
        )

    def progressed(self) -> None:
        """Something was committed or applied."""
        self._trimmer.progressed()

    def pass_time(self, seconds: float) -> None:
        """So much time has passed."""
        self.clock.seconds += seconds
        self._trimmer.changed()

    async def rest(self) -> None:
        """Waits until what is being done has ended."""
        while self._tasks:
            await asyncio.gather(*self._tasks)

    async def end(self) -> None:
        """Begins nothing more."""
        self._trimmer.stop()
        await self.rest()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _contradicted(self) -> None:
        raise AssertionError("the base is not what the journal says")
