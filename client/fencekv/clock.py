"""Time, as an argument: the only module that asks the operating system for it.

Invariants:
  * `now()` goes on while the machine sleeps (CLOCK_BOOTTIME) and never goes back. Deadlines are made of it alone.
  * `unix()` and `unix_ns()` are for people and for journal entries; no decision depends on them.
"""

from __future__ import annotations

import time  # noqa: TID251 - the one place that may
from typing import Final, Protocol

# macOS has no CLOCK_BOOTTIME; there a sleeping machine is not told from a running one.
_STEADY: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock(Protocol):
    """What the code asks of time. A simulation gives each process its own."""

    def now(self) -> float:
        """Seconds of this machine's steady clock."""
        ...

    def unix(self) -> float:
        """Seconds since 1970."""
        ...

    def unix_ns(self) -> int:
        """Nanoseconds since 1970."""
        ...


class Chance(Protocol):
    """What the code asks of chance; a seeded `random.Random` gives it."""

    def random(self) -> float:
        """A number in [0, 1)."""
        ...

    def getrandbits(self, k: int, /) -> int:
        """A number of `k` random bits."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> float:
        """Seconds of CLOCK_BOOTTIME."""
        return time.clock_gettime(_STEADY)

    def unix(self) -> float:
        """Seconds since 1970."""
        return time.time()

    def unix_ns(self) -> int:
        """Nanoseconds since 1970."""
        return time.time_ns()
