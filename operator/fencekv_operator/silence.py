"""Hearing that a session is silent, and for how long it must be heard.

A session is deposed for silence only if its Lease was *seen* to stand still. Seconds in which nobody answered
prove nothing: the session could not have renewed either, or had renewed where we did not look.

Invariants:
  * Counted are only the slices between successive successful quorum reads that showed the same observation. A
    slice runs from the answer of the earlier read to the departure of the later one: the API server took each
    picture somewhere between departure and answer, so this is the longest time that certainly lay between.
  * A slice counts SLICE_SECONDS_MAX at most: an API server that froze, or a process that was stopped, adds one
    slice, however long it was.
  * Another observation starts the count again, and takes every V that may have been stored until then along.
  * No moment that another machine wrote down is ever compared.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

SLICE_SECONDS_MAX: Final = 1.0
DURATION_SECONDS: Final = 6.0  # D where no KVNamespace says it
SAFETY_FACTOR: Final = 1.5  # V * 1.5 <= D: what two clocks may differ in speed, generously
TOGETHER_MIN: Final = 2  # one silent session is no common silence


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A successful quorum read, by the reader's own clock."""

    sent: float
    answered: float

    def __post_init__(self) -> None:
        assert self.answered >= self.sent, (self.sent, self.answered)


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """How long one observation has been heard to stand."""

    observation: Hashable
    seconds: float
    since: float  # the answer that first showed it
    answered: float  # the answer that last showed it
    valid_seconds: float  # V as last read; 0: never read
    trusted: tuple[tuple[float, float], ...]  # (V, when it may last have been stored), rising

    @classmethod
    def first(cls, observation: Hashable, reading: Reading, *, valid_seconds: float | None = None) -> Heard:
        """Nothing is known from before this reading."""
        valid = valid_seconds or 0.0
        return cls(
            observation=observation,
            seconds=0.0,
            since=reading.answered,
            answered=reading.answered,
            valid_seconds=valid,
            trusted=((valid, reading.answered),) if valid else (),
        )

    def fed(self, observation: Hashable, reading: Reading, *, valid_seconds: float | None = None) -> Heard:
        """After one more reading; `valid_seconds` None: the reading does not show this session's V."""
        assert reading.answered >= self.answered, (reading, self.answered)
        same = observation == self.observation
        valid = self.valid_seconds if valid_seconds is None else valid_seconds
        latest = dict(self.trusted)
        if not same and self.valid_seconds:
            # Renewals that nobody saw may have carried the earlier V up to this moment.
            latest[self.valid_seconds] = reading.answered
        if valid_seconds:
            latest[valid_seconds] = reading.answered
        standing = tuple((v, at) for v, at in sorted(latest.items()) if reading.sent < at + v * SAFETY_FACTOR)
        if not same:
            slice_seconds, since, seconds = 0.0, reading.answered, 0.0
        else:
            slice_seconds = min(max(reading.sent - self.answered, 0.0), SLICE_SECONDS_MAX)
            since, seconds = self.since, self.seconds
        return Heard(
            observation=observation,
            seconds=seconds + slice_seconds,
            since=since,
            answered=reading.answered,
            valid_seconds=valid,
            trusted=standing,
        )

    def wait_seconds(self, duration_seconds: float) -> float:
        """How long it must be heard: D, and longer while the session may still trust a larger V."""
        longest = max((v for v, _ in self.trusted), default=0.0)
        return max(duration_seconds, longest * SAFETY_FACTOR)


def fell_together(*, silent: int, sessions: int) -> bool:
    """Whether so many sessions are silent at once that the fault is more likely ours than theirs."""
    assert 0 <= silent <= sessions, (silent, sessions)
    return silent >= TOGETHER_MIN and 2 * silent > sessions
