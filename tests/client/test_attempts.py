"""When a request may be sent again."""

from __future__ import annotations

import random

import pytest

from fencekv.attempts import BACKOFF_MOST_SECONDS, Failure, Step, final_error, judge, pause_seconds
from fencekv.errors import (
    ERRORS,
    Conflict,
    Denied,
    Exhausted,
    Fenced,
    FenceKVError,
    Invalid,
    NotOwner,
    TooLarge,
    Unavailable,
    Unknown,
)

NOTHING_DONE = [Failure.REFUSED, NotOwner("x"), Unavailable("x"), Fenced("x")]
OPEN = [Failure.BROKEN, Failure.LATE, Unknown("x")]
DEFINITE = [Conflict("x"), Invalid("x"), TooLarge("x"), Denied("x"), Exhausted("x")]


def name(value: object) -> str:
    return type(value).__name__ if isinstance(value, Exception) else str(value)


@pytest.mark.parametrize("outcome", NOTHING_DONE, ids=name)
@pytest.mark.parametrize("write", [True, False])
@pytest.mark.parametrize("keyed", [True, False])
def test_what_was_not_carried_out_is_always_repeated(outcome: FenceKVError, write: bool, keyed: bool) -> None:
    verdict = judge(outcome, write=write, keyed=keyed)
    assert (verdict.step, verdict.uncertain) == (Step.REROUTE, False)


@pytest.mark.parametrize("outcome", OPEN, ids=name)
def test_what_may_have_been_carried_out_is_repeated_only_if_that_is_harmless(outcome: FenceKVError) -> None:
    assert judge(outcome, write=False, keyed=False).step is Step.REROUTE
    assert judge(outcome, write=True, keyed=True).step is Step.REROUTE
    verdict = judge(outcome, write=True, keyed=False)
    assert (verdict.step, verdict.uncertain) == (Step.RAISE, True)
    assert isinstance(final_error(outcome, uncertain=True, detail="x"), Unknown)


@pytest.mark.parametrize("outcome", DEFINITE, ids=name)
def test_an_answer_that_repeating_cannot_change_is_given_to_the_caller(outcome: FenceKVError) -> None:
    verdict = judge(outcome, write=True, keyed=True)
    assert verdict.step is Step.RAISE
    assert final_error(outcome, uncertain=verdict.uncertain, detail="x") is outcome


def test_a_named_owner_is_followed_at_once() -> None:
    assert judge(NotOwner("x", http="a:1"), write=True, keyed=False).step is Step.FOLLOW


@pytest.mark.parametrize("kind", ERRORS.values(), ids=list(ERRORS))
def test_after_an_attempt_of_unknown_outcome_no_error_denies_it_unless_it_holds_for_all_attempts(
    kind: type[FenceKVError],
) -> None:
    verdict = judge(kind("x"), write=True, keyed=True, uncertain=True)
    final = verdict.step is Step.RAISE and not verdict.uncertain
    assert final == (kind in {Conflict, Invalid, TooLarge})
    if not final:
        assert verdict.uncertain
        assert isinstance(final_error(kind("x"), uncertain=True, detail="x"), Unknown)


def test_pauses_grow_have_jitter_and_a_cap() -> None:
    chance = random.Random(1)
    pauses = [pause_seconds(attempt, chance) for attempt in range(40)]
    assert all(0 < pause <= BACKOFF_MOST_SECONDS for pause in pauses)
    assert pauses[0] < pauses[3]
    assert len(set(pauses)) == len(pauses)
