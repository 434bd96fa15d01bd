"""One queue of keys: each waits at most once, has one worker at a time, and comes back later after failing.

Invariants:
  * A key that is added while it is worked on is worked on again afterwards: no change is missed.
  * The wait after failures doubles up to a bound and is spread by chance, so that what failed together does not
    come back together.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, Generic, TypeVar

from fencekv.clock import Chance

K = TypeVar("K")

BACKOFF_SECONDS_MIN: Final = 0.1
BACKOFF_SECONDS_MAX: Final = 60.0
DOUBLINGS_MAX: Final = 16


class WorkQueue(Generic[K]):
    """Keys to work on. Delays run on the event loop's own time."""

    def __init__(self, *, chance: Chance) -> None:
        self._chance = chance
        self._ready: deque[K] = deque()
        self._waiting: set[K] = set()  # keys in _ready
        self._busy: set[K] = set()
        self._again: set[K] = set()  # busy keys that were added meanwhile
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}
        self._more = asyncio.Event()

    def __len__(self) -> int:
        return len(self._ready) + len(self._timers)

    def failures(self, key: K) -> int:
        """How often a key failed in a row."""
        return self._failures.get(key, 0)

    def add(self, key: K, *, delay_seconds: float = 0.0) -> None:
        """Queues a key, now or later; the earlier of two delays holds."""
        if key in self._waiting:
            return
        if delay_seconds <= 0:
            self._expire(key)
            return
        when = asyncio.get_running_loop().time() + delay_seconds
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= when:
                return
            timer.cancel()
        self._timers[key] = asyncio.get_running_loop().call_at(when, self._expire, key)

    async def get(self) -> K:
        """The next key; `done` or `failed` must follow."""
        while not self._ready:
            self._more.clear()
            await self._more.wait()
        key = self._ready.popleft()
        self._waiting.discard(key)
        self._busy.add(key)
        return key

    def done(self, key: K) -> None:
        """The key was worked on with success."""
        self._failures.pop(key, None)
        self._finish(key)

    def failed(self, key: K) -> None:
        """The key was worked on without success: it comes back by itself."""
        count = self._failures[key] = self._failures.get(key, 0) + 1
        self._again.discard(key)
        self._finish(key)
        bound = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN * 2.0 ** min(count - 1, DOUBLINGS_MAX))
        self.add(key, delay_seconds=bound * (0.5 + self._chance.random() / 2))

    def close(self) -> None:
        """Cancels what is delayed."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _expire(self, key: K) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        if key in self._busy:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._ready.append(key)
            self._more.set()

    def _finish(self, key: K) -> None:
        self._busy.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)
