"""What clients of a modelled engine wish for, as Hypothesis strategies: few keys and values, so that they meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hypothesis import strategies as st

from fencekv_shard.transaction import Delete, Get, Operation, Put, Relation, Target

KEYS: Final = ("a", "a/1", "b", "\uffff", "\U0001f600")
BOUNDS: Final = ("", "a/", "a0", "b", "\uffff", "\U0001f600", "z")
VALUES: Final = (b"0", b"1", b"2" * 40, b"")


@dataclass(frozen=True, slots=True)
class Condition:
    """A compare whose operand is chosen when it is asked: `pick` is a place among what is there then."""

    key: str
    target: Target
    relation: Relation
    pick: int


@dataclass(frozen=True, slots=True)
class Wish:
    """A request. `once`: has an idempotency key; `again`: that of an earlier one; `same`: is that request."""

    compare: Sequence[Condition]
    then: Sequence[Operation]
    otherwise: Sequence[Operation]
    replicated: bool
    repeat: str
    pick: int
    turns: int  # that pass before it


PICKS = st.integers(0, 7)
CONDITION = st.builds(
    Condition,
    st.sampled_from(KEYS),
    st.sampled_from(list(Target)),
    st.sampled_from(list(Relation)),
    PICKS,
)
OPERATION = st.one_of(
    st.builds(Put, st.sampled_from(KEYS), st.sampled_from(VALUES)),
    st.builds(Put, st.sampled_from(KEYS), st.sampled_from(VALUES)),
    st.builds(Delete, st.sampled_from(KEYS)),
    st.builds(Get, st.sampled_from(KEYS)),
)
WISH = st.builds(
    Wish,
    st.lists(CONDITION, max_size=2),
    st.lists(OPERATION, min_size=1, max_size=3),
    st.lists(OPERATION, max_size=2),
    st.booleans(),
    st.sampled_from(["", "", "once", "same", "same", "again"]),
    PICKS,
    st.sampled_from([0, 0, 0, 1, 2, 3]),
)
WISHES = st.lists(WISH, min_size=1, max_size=6)
