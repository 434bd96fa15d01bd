"""Whether very many partitions change hands just now, so that whoever only shows it should wait.

When a shard with hundreds of partitions dies, every grant and every change of a set is a write that clients wait
for. Statuses and Events are others, for people: in such a moment they come later.

Invariants:
  * Nothing is put off for longer than `CROWD_SECONDS_MAX`.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import Final

from fencekv.clock import Clock

CHANGES: Final = 24  # so many of them,
WITHIN_SECONDS: Final = 1.0  # so close together, are a crowd
CROWD_SECONDS_MAX: Final = 10.0
# Another crowd begins only after a pause in which whoever waited gets on: one that comes and goes is the same.
PAUSE_SECONDS: Final = 2 * WITHIN_SECONDS


class Crowd:
    """Counts changes of partitions that had an owner before."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._changes = deque([-math.inf] * CHANGES, maxlen=CHANGES)
        self._since = self._dense_at = -math.inf  # when the last one began, and when it was last seen to be one

    def note(self) -> None:
        """A partition changes, or is to change, hands or set."""
        now = self._clock.now()
        self._changes.append(now)
        if now > self._changes[0] + WITHIN_SECONDS:
            return
        if now >= self._dense_at + PAUSE_SECONDS:
            self._since = now
        self._dense_at = now

    @property
    def is_there(self) -> bool:
        """Whether there is a crowd that has not lasted for too long."""
        return self._left_seconds() > 0

    async def passed(self) -> None:
        """Returns when there is none."""
        while True:
            left = self._left_seconds()
            if left <= 0:
                return
            await asyncio.sleep(left)

    def _left_seconds(self) -> float:
        """How long there is one at least, if nothing more changes."""
        return min(self._changes[0] + WITHIN_SECONDS, self._since + CROWD_SECONDS_MAX) - self._clock.now()
