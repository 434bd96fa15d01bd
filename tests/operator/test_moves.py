"""Which owners are asked to hand over: few at a time, only when calm, and never back and forth."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fencekv_operator.moves import (
    CALM_SECONDS,
    MOVE_SECONDS_MAX,
    OWNER_MOVES_AT_ONCE_MAX,
    OWNER_MOVES_IN_A_ROW,
    RETRY_SECONDS,
    SETTLED_SECONDS,
    Asked,
    Candidate,
    next_moves,
)
from fencekv_operator.placing import Preference

SPACE = ("default", "sample")
UNEVEN = {SPACE: {"p-0": 0, "p-1": 4}}


def candidate(
    number: int = 0,
    *,
    wish: Preference = Preference.REQUIRED,
    calm: float = CALM_SECONDS,
    owner: str = "p-1",
    target: str = "p-0",
) -> Candidate:
    return Candidate(
        namespace="default",
        name=f"orders-{number}",
        uid=f"u-{number}",
        kvns="sample",
        owner=owner,
        target=target,
        epoch=3,
        http="h",
        preference=wish,
        calm_seconds=calm,
    )


def asked(number: int = 0, *, epoch: int = 3, at: float = 100.0) -> Asked:
    return Asked(space=SPACE, epoch=epoch, at=at, owner="p-1", target="p-0")


def names(found: list[Candidate]) -> list[str]:
    return [one.name for one in found]


@pytest.mark.parametrize(
    ("wish", "calm", "owned", "moves"),
    [
        (Preference.REQUIRED, SETTLED_SECONDS, {}, True),
        (Preference.REQUIRED, SETTLED_SECONDS - 0.1, {}, False),
        (Preference.PREFERRED, CALM_SECONDS, {}, True),
        (Preference.PREFERRED, CALM_SECONDS - 0.1, {}, False),
        (Preference.BALANCED, CALM_SECONDS, {"p-0": 1, "p-1": 3}, True),
        (Preference.BALANCED, CALM_SECONDS, {"p-0": 1, "p-1": 2}, False),
        (Preference.BALANCED, CALM_SECONDS - 0.1, {"p-0": 1, "p-1": 3}, False),
        (Preference.NONE, 1e6, {"p-0": 0, "p-1": 9}, False),
    ],
)
def test_what_is_asked_for_and_when(wish: Preference, calm: float, owned: dict[str, int], moves: bool) -> None:
    found = next_moves([candidate(wish=wish, calm=calm)], owned={SPACE: owned}, asked={}, epochs={}, now=100.0)
    assert bool(found) is moves


def test_a_few_at_a_time_and_the_most_wanted_first() -> None:
    wishes = [Preference.BALANCED, Preference.PREFERRED, Preference.REQUIRED]
    many = [candidate(number, wish=wishes[number % 3]) for number in range(150)]
    found = next_moves(many, owned={SPACE: {"p-0": 0, "p-1": 150}}, asked={}, epochs={}, now=100.0)
    assert len(found) == OWNER_MOVES_AT_ONCE_MAX
    assert {one.preference for one in found} == {Preference.REQUIRED}
    other = replace(candidate(999), kvns="other")
    both = next_moves([*many, other], owned=UNEVEN, asked={}, epochs={}, now=100.0)
    assert "orders-999" in names(both), "the limit is a KVNamespace's own"


@pytest.mark.parametrize(
    ("waiting", "at_once"),
    [
        (1, 1),
        (OWNER_MOVES_IN_A_ROW - 1, 1),
        (OWNER_MOVES_IN_A_ROW, 2),
        (100 * OWNER_MOVES_IN_A_ROW, OWNER_MOVES_AT_ONCE_MAX),
    ],
)
def test_what_few_moves_there_are_go_one_after_the_other(waiting: int, at_once: int) -> None:
    many = [candidate(number) for number in range(waiting)]
    assert len(next_moves(many, owned={SPACE: {"p-1": waiting}}, asked={}, epochs={}, now=100.0)) == at_once


def test_what_was_asked_for_takes_room_until_its_epoch_ends_or_its_time_is_up() -> None:
    before = {"u-0": asked()}
    same = dict.fromkeys(before, 3)
    one = [candidate(50)]
    assert next_moves(one, owned=UNEVEN, asked=before, epochs=same, now=101.0) == []
    assert names(next_moves(one, owned=UNEVEN, asked=before, epochs={**same, "u-0": 4}, now=101.0)) == [
        "orders-50"
    ]
    late = 100.0 + MOVE_SECONDS_MAX
    assert names(next_moves(one, owned=UNEVEN, asked=before, epochs=same, now=late)) == ["orders-50"]


def test_an_owner_that_did_not_let_go_is_asked_again_later() -> None:
    before = {"u-0": asked()}
    for seconds, again in ((RETRY_SECONDS - 0.1, False), (RETRY_SECONDS, True)):
        found = next_moves([candidate()], owned=UNEVEN, asked=before, epochs={"u-0": 3}, now=100.0 + seconds)
        assert bool(found) is again
    moved_back = replace(candidate(), epoch=5)
    assert next_moves([moved_back], owned=UNEVEN, asked=before, epochs={"u-0": 5}, now=101.0)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40), st.data())
@settings(max_examples=200, deadline=None)
def test_balancing_comes_to_rest_and_never_makes_it_worse(
    partitions: list[tuple[int, int]], data: st.DataObject
) -> None:
    """Wherever failovers left the owners (first of each pair), moves to preferred pods end, evenly or at home."""
    owners = [owner for owner, _ in partitions]
    for _ in range(200):
        counts = Counter(f"p-{owner}" for owner in owners)
        candidates = [
            candidate(number, wish=Preference.BALANCED, owner=f"p-{owner}", target=f"p-{home}")
            for number, (owner, (_, home)) in enumerate(zip(owners, partitions, strict=True))
            if owner != home
        ]
        found = next_moves(candidates, owned={SPACE: counts}, asked={}, epochs={}, now=0.0)
        assert len(found) <= OWNER_MOVES_AT_ONCE_MAX
        if not found:
            break
        spread = sum(count * count for count in counts.values())
        some = data.draw(st.sets(st.sampled_from(sorted(names(found))), min_size=1))  # others fail
        for one in found:
            if one.name in some:
                owners[int(one.name.rpartition("-")[2])] = int(one.target.rpartition("-")[2])
        if len(some) == len(found):
            assert sum(count * count for count in Counter(owners).values()) < spread
    else:
        raise AssertionError("no rest")
    for one in candidates:
        assert counts[one.owner] - counts[one.target] < 2
