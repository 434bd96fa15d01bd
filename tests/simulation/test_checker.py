"""The checker: hand-made histories that are wrong must be found, and right ones must pass."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation.checker import (
    Acknowledgement,
    Grant,
    History,
    JournalEntry,
    Kind,
    Operation,
    Outcome,
    check_journal,
    check_linearizable,
    check_owners,
    check_versions,
    linearizable,
    step,
)

# An operation: kind, expected, value, outcome, called, answered.
Row = tuple[str, str | None, str | None, str, int, int | None]


def operation(row: Row) -> Operation:
    kind, expected, value, outcome, called, answered = row
    return Operation(
        client="c",
        kind=Kind(kind),
        key="k",
        expected=expected.encode() if expected else None,
        value=value.encode() if value else None,
        outcome=Outcome(outcome),
        called=called,
        answered=answered,
    )


GOOD: dict[str, list[Row]] = {
    "empty": [],
    "a read of an absent key": [("get", None, None, "ok", 1, 2)],
    "write, then read": [("put", None, "a", "ok", 1, 2), ("get", None, "a", "ok", 3, 4)],
    "concurrent writes in either order": [
        ("put", None, "a", "ok", 1, 4),
        ("put", None, "b", "ok", 2, 3),
        ("get", None, "a", "ok", 5, 6),
    ],
    "an unknown write that happened": [
        ("put", None, "a", "unknown", 1, 2),
        ("get", None, "a", "ok", 3, 4),
    ],
    "an unknown write that happened late": [
        ("put", None, "a", "unknown", 1, 2),
        ("put", None, "b", "ok", 3, 4),
        ("get", None, "b", "ok", 5, 6),
        ("get", None, "a", "ok", 7, 8),
    ],
    "an unknown write that never happened": [
        ("put", None, "a", "unknown", 1, 2),
        ("get", None, None, "ok", 3, 4),
    ],
    "a CAS that failed because of a write that nobody else saw": [
        ("put", None, "a", "ok", 1, 2),
        ("put", None, "b", "unknown", 3, None),
        ("cas", "a", "c", "no", 4, 5),
    ],
    "a CAS": [
        ("put", None, "a", "ok", 1, 2),
        ("cas", "a", "b", "ok", 3, 4),
        ("cas", "a", "c", "no", 5, 6),
        ("get", None, "b", "ok", 7, 8),
    ],
    "an unknown CAS that happened": [
        ("put", None, "a", "ok", 1, 2),
        ("cas", "a", "b", "unknown", 3, None),
        ("get", None, "b", "ok", 7, 8),
    ],
    "a refused write": [("put", None, "a", "refused", 1, 2), ("get", None, None, "ok", 3, 4)],
}

BAD: dict[str, list[Row]] = {
    "a stale read": [
        ("put", None, "a", "ok", 1, 2),
        ("put", None, "b", "ok", 3, 4),
        ("get", None, "a", "ok", 5, 6),
    ],
    "a lost write": [("put", None, "a", "ok", 1, 2), ("get", None, None, "ok", 3, 4)],
    "a value out of nowhere": [("get", None, "x", "ok", 1, 2)],
    "reads that go back": [
        ("put", None, "a", "ok", 1, 10),
        ("put", None, "b", "ok", 2, 11),
        ("get", None, "a", "ok", 3, 4),
        ("get", None, "b", "ok", 5, 6),
        ("get", None, "a", "ok", 7, 8),
    ],
    "a read before the write began": [
        ("get", None, "a", "ok", 1, 2),
        ("put", None, "a", "ok", 3, 4),
    ],
    "an unknown write seen, then unseen": [
        ("put", None, "a", "unknown", 1, 2),
        ("get", None, "a", "ok", 3, 4),
        ("get", None, None, "ok", 5, 6),
    ],
    "a refused write that happened": [
        ("put", None, "a", "refused", 1, 2),
        ("get", None, "a", "ok", 3, 4),
    ],
    "two CASes from one value": [
        ("put", None, "a", "ok", 1, 2),
        ("cas", "a", "b", "ok", 3, 6),
        ("cas", "a", "c", "ok", 4, 5),
    ],
    "a CAS that failed although its condition held": [
        ("put", None, "a", "ok", 1, 2),
        ("cas", "a", "b", "no", 3, 4),
    ],
    "an unknown CAS whose condition never held": [
        ("put", None, "a", "ok", 1, 2),
        ("cas", "z", "b", "unknown", 3, None),
        ("get", None, "b", "ok", 7, 8),
    ],
}


@pytest.mark.parametrize("name", GOOD)
def test_a_right_history_passes(name: str) -> None:
    assert linearizable([operation(row) for row in GOOD[name]])


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_history_is_found(name: str) -> None:
    assert not linearizable([operation(row) for row in BAD[name]])


@st.composite
def histories(draw: st.DrawFn) -> list[Operation]:
    """Up to six operations with values from a tiny set and spans at random."""
    count = draw(st.integers(1, 6))
    points = draw(st.permutations(range(1, 2 * count + 1)))
    values = st.sampled_from([None, b"a", b"b", b"c"])
    operations = []
    for index in range(count):
        called, answered = sorted(points[2 * index : 2 * index + 2])
        kind = draw(st.sampled_from(list(Kind)))
        outcomes = [Outcome.OK, Outcome.OK, Outcome.OK, Outcome.UNKNOWN, Outcome.PENDING, Outcome.REFUSED]
        outcome = draw(st.sampled_from([*outcomes, *([Outcome.NO] * 2 if kind is Kind.CAS else [])]))
        operations.append(
            Operation(
                client="c",
                kind=kind,
                key="k",
                value=draw(values),
                expected=draw(values) if kind is Kind.CAS else None,
                outcome=outcome,
                called=called,
                answered=None if outcome is Outcome.PENDING else answered,
            )
        )
    return operations


@given(histories())
@settings(max_examples=400, deadline=None)
def test_the_search_agrees_with_trying_every_order(operations: list[Operation]) -> None:
    assert linearizable(operations) == by_brute_force(operations)


def by_brute_force(operations: Sequence[Operation]) -> bool:
    """Tries every subset of what is unclear, in every order."""
    certain = [one for one in operations if one.outcome in (Outcome.OK, Outcome.NO)]
    unclear = [one for one in operations if one.outcome in (Outcome.UNKNOWN, Outcome.PENDING)]
    for size in range(len(unclear) + 1):
        for taken in itertools.combinations(unclear, size):
            if any(explains(order) for order in itertools.permutations([*certain, *taken])):
                return True
    return False


def explains(order: Sequence[Operation]) -> bool:
    state = None
    for index, one in enumerate(order):
        if any(_ended(later) < one.called for later in order[index + 1 :]):
            return False
        if one.kind is Kind.GET and one.outcome is not Outcome.OK:
            continue
        possible, state = step(state, one)
        if not possible:
            return False
    return True


def _ended(one: Operation) -> float:
    certain = one.outcome in (Outcome.OK, Outcome.NO)
    return one.answered if certain and one.answered is not None else float("inf")


def test_a_long_history_is_checked_fast() -> None:
    history = History()
    open_operations: list[Operation] = []
    held: bytes | None = None
    for number in range(20_000):
        if len(open_operations) == 5:
            history.answer(open_operations.pop(0), Outcome.OK)
        if number % 3:
            one = Operation(client="c", kind=Kind.GET, key="k", value=held)
        else:
            held = str(number).encode()
            one = Operation(client="c", kind=Kind.PUT, key="k", value=held)
        open_operations.append(history.call(one))
    for one in open_operations:
        history.answer(one, Outcome.OK)
    assert check_linearizable(history) == []


def test_two_owners_of_one_epoch_are_found() -> None:
    grants = [Grant(partition="p", epoch=1, holder="a/u/n"), Grant(partition="p", epoch=1, holder="b/u/n")]
    assert "two owners" in check_owners(grants)[0]


def test_a_falling_epoch_is_found_also_over_a_deleted_lease() -> None:
    grants = [
        Grant(partition="p", epoch=3, holder="a/u/n"),
        Grant(partition="p", epoch=0, holder=""),
        Grant(partition="p", epoch=2, holder="b/u/n"),
    ]
    assert any("fell" in finding for finding in check_owners(grants))


def test_an_old_grant_that_a_restored_store_shows_again_is_no_new_one() -> None:
    grants = [Grant(partition="p", epoch=epoch, holder=f"{epoch}/u/n") for epoch in (1, 2, 1, 3)]
    assert check_owners(grants) == []


def test_an_acknowledgement_of_someone_who_was_never_granted_is_found() -> None:
    grants = [Grant(partition="p", epoch=1, holder="a/u/n")]
    assert check_owners(grants, [said("a", epoch=1)]) == []
    assert "of a/u/n" in check_owners(grants, [said("b", epoch=1)])[0]
    assert "never granted" in check_owners(grants, [said("a", epoch=2)])[0]


def test_an_acknowledgement_that_comes_too_late_is_found() -> None:
    grants = [
        Grant(partition="p", epoch=1, holder="a/u/n", time=0),
        Grant(partition="p", epoch=2, holder="b/u/n", time=5),
    ]
    assert check_owners(grants, [said("a", epoch=1, time=5)]) == []
    assert "right to write was lost" in check_owners(grants, [said("a", epoch=1, time=6)])[0]


def said(pod: str, *, epoch: int, time: float = 1.0) -> Acknowledgement:
    return Acknowledgement(partition="p", epoch=epoch, pod=pod, time=time)


def acknowledged(kind: Kind, value: bytes, version: tuple[int, int]) -> Operation:
    return Operation(client="c", kind=kind, key="k", value=value, version=version)


def test_a_lost_acknowledged_write_and_a_read_of_it_are_found() -> None:
    history = History()
    for kind in (Kind.PUT, Kind.GET):
        history.answer(history.call(acknowledged(kind, b"a", (1, 1))), Outcome.OK)
    kept = [JournalEntry(epoch=1), JournalEntry(epoch=1, writes={"k": b"a"})]
    taken_back = [JournalEntry(epoch=1), JournalEntry(epoch=2, writes={"k": b"b"})]
    assert check_journal(history, {"k": kept}) == []
    found = check_journal(history, {"k": taken_back})
    assert "acknowledged write lost" in found[0]
    assert "taken back" in found[1]
    assert len(check_journal(history, {"k": kept[:1]})) == 2


def test_versions_that_fall_or_stand_for_two_values_are_found() -> None:
    history = History()
    for value, version in ((b"a", (1, 2)), (b"b", (1, 1))):
        history.answer(history.call(acknowledged(Kind.PUT, value, version)), Outcome.OK)
    assert "version fell" in check_versions(history)[0]
    history = History()
    calls = [history.call(acknowledged(Kind.PUT, value, (1, 2))) for value in (b"a", b"b")]
    for call in calls:
        history.answer(call, Outcome.OK)
    assert "two values" in check_versions(history)[0]
