"""Requests that wait while a partition changes hands: bounded in number and in time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fencekv_shard import limits


class Holding:
    """Those of one partition."""

    def __init__(self) -> None:
        self.count = 0
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Who owns the partition, or whether it is being moved, may have changed."""
        self._changed.set()

    async def wait(self, *, while_: Callable[[], bool]) -> None:
        """Waits at most HELD_SECONDS_MAX; not at all if too many do."""
        if not while_() or self.count >= limits.HELD_REQUESTS_MAX:
            return
        self.count += 1
        try:
            async with asyncio.timeout(limits.HELD_SECONDS_MAX):
                while while_():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return
        finally:
            self.count -= 1
