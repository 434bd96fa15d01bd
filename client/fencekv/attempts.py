"""What to do after an attempt: the rules of when a request may be sent again. Pure.

Invariants:
  * A write without idempotency key is sent again only after an answer, or the lack of one, that proves that it was
    not carried out.
  * Once an attempt may have been carried out, the request can end in its true answer or as `Unknown`, never as an
    error that claims that nothing was done.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, Protocol

from fencekv.errors import Conflict, Fenced, FenceKVError, Invalid, NotOwner, TooLarge, Unavailable, Unknown

BACKOFF_FIRST_SECONDS: Final = 0.02
BACKOFF_MOST_SECONDS: Final = 0.2


class Chance(Protocol):
    """Where jitter comes from; a `random.Random` is one."""

    def random(self) -> float:
        """A number from 0 up to 1."""
        ...


class Failure(enum.Enum):
    """How an attempt can fail without an answer."""

    REFUSED = "refused"  # no connection: nothing was sent
    BROKEN = "broken"  # sent, wholly or in part, and no answer
    LATE = "late"  # a success under `standard` that came too late to be believed


class Step(enum.Enum):
    """What to do next."""

    RAISE = "raise"
    FOLLOW = "follow"  # ask the owner that the answer names, at once
    REROUTE = "reroute"  # find out anew who owns the partition, after a pause


@dataclass(frozen=True, slots=True)
class Verdict:
    """The next step, and whether this attempt or an earlier one may have been carried out."""

    step: Step
    uncertain: bool = False


def judge(outcome: FenceKVError | Failure, *, write: bool, keyed: bool, uncertain: bool = False) -> Verdict:
    """What follows from a failed attempt.

    `keyed`: the request carries an idempotency key. `uncertain`: an earlier attempt may have been carried out.
    """
    if outcome is Failure.REFUSED:
        return Verdict(Step.REROUTE, uncertain)
    if isinstance(outcome, Failure | Unknown):
        return Verdict(Step.REROUTE if keyed or not write else Step.RAISE, write)
    if isinstance(outcome, NotOwner):
        return Verdict(Step.FOLLOW if outcome.extra.get("http") else Step.REROUTE, uncertain)
    # `Fenced` came from a shard that is behind: the write was not carried out, and the new owner can do it.
    if isinstance(outcome, Unavailable | Fenced):
        return Verdict(Step.REROUTE, uncertain)
    # These hold for every attempt of the same request; others (`Exhausted`, say) speak of this attempt alone.
    if uncertain and not isinstance(outcome, Conflict | Invalid | TooLarge):
        return Verdict(Step.REROUTE, uncertain)
    return Verdict(Step.RAISE)


def final_error(last: FenceKVError | Failure, *, uncertain: bool, detail: str) -> FenceKVError:
    """The error to end with; `uncertain`: an attempt may have been carried out."""
    if uncertain:
        return last if isinstance(last, Unknown) else Unknown(f"the outcome is not known: {detail}")
    return last if isinstance(last, FenceKVError) else Unavailable(detail)


def pause_seconds(attempt: int, chance: Chance) -> float:
    """How long to wait before attempt number `attempt` + 1: doubling, capped, between half and all of it."""
    most = min(BACKOFF_MOST_SECONDS, BACKOFF_FIRST_SECONDS * 2 ** min(attempt, 16))
    return float(most * (0.5 + 0.5 * chance.random()))
