"""Very many changes at once are a crowd, for a while."""

from __future__ import annotations

from memory_kube import HandClock

from fencekv_operator.crowd import CHANGES, CROWD_SECONDS_MAX, WITHIN_SECONDS, Crowd


def crowd() -> tuple[Crowd, HandClock]:
    clock = HandClock()
    return Crowd(clock), clock


def changes(one: Crowd, clock: HandClock, count: int, *, each_seconds: float = 0.0) -> None:
    for _ in range(count):
        clock.seconds += each_seconds
        one.note()


def test_few_or_slow_changes_are_none() -> None:
    one, clock = crowd()
    changes(one, clock, CHANGES - 1)
    assert not one.is_there
    one, clock = crowd()
    changes(one, clock, 10 * CHANGES, each_seconds=1.1 * WITHIN_SECONDS / (CHANGES - 1))
    assert not one.is_there


def test_many_at_once_are_one_until_they_cease() -> None:
    one, clock = crowd()
    changes(one, clock, CHANGES)
    assert one.is_there
    clock.seconds += 0.9 * WITHIN_SECONDS
    assert one.is_there
    changes(one, clock, CHANGES)
    clock.seconds += 0.9 * WITHIN_SECONDS
    assert one.is_there
    clock.seconds += 0.2 * WITHIN_SECONDS
    assert not one.is_there


def test_one_that_does_not_end_is_none_any_more_until_it_has_ended() -> None:
    one, clock = crowd()
    step = 0.5 * WITHIN_SECONDS / CHANGES
    changes(one, clock, CHANGES)
    changes(one, clock, int(0.9 * CROWD_SECONDS_MAX / step), each_seconds=step)
    assert one.is_there
    changes(one, clock, int(0.2 * CROWD_SECONDS_MAX / step), each_seconds=step)
    assert not one.is_there
    clock.seconds += 2 * WITHIN_SECONDS
    changes(one, clock, CHANGES)
    assert one.is_there
