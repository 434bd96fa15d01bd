"""For how long shard pods have been away, heard by the operator's own clock.

Invariants:
  * No timestamp of another machine is read. Time counts only in slices between two looks with an answer of the API
    server in between, each slice at most so long: an operator that was paused, or cut off, has heard nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

LOOK_SECONDS: Final = 5.0  # how often a pod that is away is to be looked at
SLICE_SECONDS_MAX: Final = 3 * LOOK_SECONDS


@dataclass(slots=True)
class _Absence:
    looked_at: float
    heard_seconds: float


class Absences:
    """The pods of one pool that are away; the others are forgotten."""

    def __init__(self) -> None:
        self._away: dict[str, _Absence] = {}

    def look(self, pod: str, *, away: bool, now: float, answered_at: float) -> float | None:
        """Takes a look at a pod; gives the seconds that it was heard to be away. None: it is not.

        `answered_at`: when the API server last answered, on the clock of `now`.
        """
        if not away:
            self.end(pod)
            return None
        seen = self._away.setdefault(pod, _Absence(looked_at=now, heard_seconds=0.0))
        if answered_at >= seen.looked_at:
            seen.heard_seconds += min(now - seen.looked_at, SLICE_SECONDS_MAX)
            seen.looked_at = now
        return seen.heard_seconds

    def end(self, pod: str) -> None:
        """The pod is there: if it is away again, that is another absence."""
        self._away.pop(pod, None)


def replaceable(heard_seconds: Mapping[str, float | None], *, after_seconds: int) -> frozenset[str]:
    """The pods of a pool that are away for so long that their replicas are to be made anew elsewhere.

    None if more than half of the pool is away: what befell them all will end, and the rest could not carry it.
    `after_seconds` 0: none ever.
    """
    away = {pod: seconds for pod, seconds in heard_seconds.items() if seconds is not None}
    if after_seconds == 0 or 2 * len(away) > len(heard_seconds):
        return frozenset()
    return frozenset(pod for pod, seconds in away.items() if seconds >= after_seconds)
