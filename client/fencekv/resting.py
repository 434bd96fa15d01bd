"""Requests that wait before they ask a partition again.

A partition that changes hands is asked by all who need it, again and again. Many that each came back after a short
pause would take from whoever takes over the very time that it needs for that: so each of them asks the less often,
the more they are, and the first answer that one of them gets wakes all that have waited for the usual pause.

Where very many partitions change hands, each may have few who wait, and all together are many. They wait longer as
well; routes that show a newer owner wake them.

Reads and writes wait apart: an owner may answer those and refuse these.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

AT_PACE: Final = 8  # so many ask a partition again at the usual pace; of more, each one less often
ALL_AT_PACE: Final = 64  # and so many ask any
REST_SECONDS_MAX: Final = 2.0
ALL_REST_SECONDS_MAX: Final = 0.5  # for the sake of those who wait for other partitions
LAST_TRY_SECONDS: Final = 0.5  # before its time is up a request asks once more


class _Place:
    """Those who wait for one partition."""

    __slots__ = ("count", "served")

    def __init__(self) -> None:
        self.count = 0
        self.served = asyncio.Event()


class Resting:
    """Those of a client."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` is the one of the deadlines, in seconds."""
        self._clock = clock
        self._places: dict[tuple[str, int, bool], _Place] = {}  # by table, index, and whether they write
        self._count = 0  # of those who wait for any of them

    def __bool__(self) -> bool:
        """Whether any request waits."""
        return bool(self._places)

    async def rest(self, table: str, index: int | None, pause: float, deadline: float, *, write: bool) -> None:
        """Waits `pause` seconds, and longer among many, but then only until one of them had an answer.

        `index` None: no partition was asked, and nobody is waited for.
        """
        if index is None:
            await asyncio.sleep(pause)
            return
        place = self._places.setdefault((table, index, write), _Place())
        place.count += 1
        self._count += 1
        crowded = min(pause * place.count / AT_PACE, REST_SECONDS_MAX)
        crowded = max(pause, crowded, min(pause * self._count / ALL_AT_PACE, ALL_REST_SECONDS_MAX))
        latest = max(pause, deadline - self._clock() - LAST_TRY_SECONDS)
        try:
            await asyncio.sleep(pause)
            async with asyncio.timeout(min(crowded, latest) - pause):
                await place.served.wait()
        except TimeoutError:
            pass
        finally:
            place.count -= 1
            self._count -= 1
            if place.count == 0 and self._places.get((table, index, write)) is place:
                del self._places[table, index, write]

    def served(self, table: str, index: int, *, write: bool) -> None:
        """A partition answered: all who have waited for that need not wait any longer."""
        place = self._places.pop((table, index, write), None)
        if place is not None:
            place.served.set()
