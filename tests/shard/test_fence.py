"""Who may write: the role's table, and the gates that the fence itself holds."""

from __future__ import annotations

import pytest

from fencekv.errors import Lost, NotOwner
from fencekv.token import Token
from fencekv_shard.fence import TRANSITIONS, Event, Fence, Role
from fencekv_shard.freshness import Freshness, judge

OWNER = Fence().on(Event.GRANT, epoch=3).on(Event.OPENED)


def test_an_owner_within_its_deadline_is_admitted() -> None:
    OWNER.admit(now=9.9, deadline=10.0, client_epoch=3)


@pytest.mark.parametrize("now", [10.0, 10.1, 1e9])
def test_the_deadline_refuses_from_its_very_instant(now: float) -> None:
    with pytest.raises(NotOwner, match="deadline"):
        OWNER.admit(now=now, deadline=10.0, client_epoch=None)


def test_a_client_that_saw_a_newer_epoch_is_refused() -> None:
    with pytest.raises(NotOwner, match="epoch 4") as refused:
        OWNER.admit(now=0, deadline=10, client_epoch=4)
    assert refused.value.extra["epoch"] == 4


@pytest.mark.parametrize("events", [[], [Event.GRANT], [Event.GRANT, Event.OPENED, Event.CLOSE], [Event.DEPOSED]])
def test_only_an_opened_owner_is_admitted(events: list[Event]) -> None:
    fence = Fence()
    for event in events:
        fence = fence.on(event, epoch=1)
    with pytest.raises(NotOwner):
        fence.admit(now=0, deadline=10, client_epoch=None)


def test_an_epoch_never_falls_and_never_repeats() -> None:
    for epoch in (3, 2, 0):
        with pytest.raises(AssertionError):
            OWNER.on(Event.GRANT, epoch=epoch)
    assert OWNER.on(Event.DEPOSED).epoch == 3
    assert OWNER.on(Event.GRANT, epoch=4).role is Role.GRANTED


def test_owner_is_reached_by_a_grant_and_its_opening_only() -> None:
    into_owner = {
        (role, event) for role, row in TRANSITIONS.items() for event, to in row.items() if to is Role.OWNER
    }
    assert into_owner == {(Role.GRANTED, Event.OPENED)}


ENDS = [(1, 10, 7), (3, 20, 12)]  # epoch 2 left nothing
AT = Token(4, 15)


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (Token(4, 15), Freshness.SATISFIED),
        (Token(4, 16), Freshness.BEHIND),
        (Token(5, 1), Freshness.BEHIND),
        (Token(3, 12), Freshness.SATISFIED),
        (Token(1, 7), Freshness.SATISFIED),
        (Token(0, 0), Freshness.SATISFIED),
    ],
)
def test_a_token_is_satisfied_by_the_epoch_that_gave_it(token: Token, expected: Freshness) -> None:
    assert judge(token, at=AT, ends=ENDS) is expected


@pytest.mark.parametrize(("token", "end"), [(Token(3, 13), "3.12"), (Token(2, 1), "1.7"), (Token(1, 8), "1.7")])
def test_a_token_above_its_epochs_end_is_lost_though_its_number_is_used_again(token: Token, end: str) -> None:
    with pytest.raises(Lost) as lost:
        judge(token, at=AT, ends=ENDS)
    assert lost.value.extra["end"] == end


def test_a_token_of_an_epoch_whose_end_is_forgotten_is_lost_and_says_so() -> None:
    with pytest.raises(Lost, match="not known") as lost:
        judge(Token(2, 1), at=AT, ends=ENDS[1:])
    assert lost.value.extra["end"] == "0.0"
