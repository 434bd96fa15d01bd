"""What a transaction does to a state, and what is refused before it is evaluated."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fencekv.errors import FenceKVError, Invalid, TooLarge
from fencekv.token import Version
from fencekv_shard import limits
from fencekv_shard.transaction import (
    Compare,
    Delete,
    DeleteResult,
    Get,
    GetResult,
    Operation,
    Put,
    PutResult,
    Record,
    Relation,
    Result,
    Target,
    Transaction,
    Write,
    evaluate,
    holds,
    validate,
)

ONE = Record(b"one", Version(2, 7))
STATE = {"a": ONE}


@pytest.mark.parametrize(
    ("operations", "results", "writes"),
    [
        pytest.param([Put("b", b"x")], [PutResult()], [Put("b", b"x")], id="put of a new key"),
        pytest.param([Put("a", b"one")], [PutResult()], [Put("a", b"one")], id="put of the same value is a write"),
        pytest.param([Delete("a")], [DeleteResult(True)], [Delete("a")], id="delete of a key"),
        pytest.param([Delete("b")], [DeleteResult(False)], [], id="delete of an absent key writes nothing"),
        pytest.param([Get("a")], [GetResult("a", b"one", Version(2, 7))], [], id="get of a key"),
        pytest.param([Get("b")], [GetResult("b", None, None)], [], id="get of an absent key"),
        pytest.param(
            [Put("a", b"x"), Get("a")],
            [PutResult(), GetResult("a", b"x", None)],
            [Put("a", b"x")],
            id="get sees put",
        ),
        pytest.param(
            [Delete("a"), Get("a")],
            [DeleteResult(True), GetResult("a", None, None)],
            [Delete("a")],
            id="get sees delete",
        ),
        pytest.param(
            [Put("a", b"x"), Put("a", b"y")], [PutResult(), PutResult()], [Put("a", b"y")], id="the last put stays"
        ),
        pytest.param(
            [Put("b", b"x"), Delete("b")], [PutResult(), DeleteResult(True)], [], id="put and delete of a new key"
        ),
        pytest.param(
            [Put("a", b"x"), Delete("a")],
            [PutResult(), DeleteResult(True)],
            [Delete("a")],
            id="put and delete of an old key",
        ),
        pytest.param(
            [Delete("a"), Delete("a")],
            [DeleteResult(True), DeleteResult(False)],
            [Delete("a")],
            id="the second delete finds nothing",
        ),
        pytest.param(
            [Delete("a"), Put("a", b"x")],
            [DeleteResult(True), PutResult()],
            [Put("a", b"x")],
            id="delete, then put",
        ),
        pytest.param(
            [Put("b", b"1"), Put("c", b"2"), Put("b", b"3")],
            [PutResult()] * 3,
            [Put("c", b"2"), Put("b", b"3")],
            id="writes stand in the order of the operations that stay",
        ),
    ],
)
def test_operations(operations: list[Operation], results: list[Result], writes: list[Write]) -> None:
    effect = evaluate(Transaction(then=tuple(operations)), STATE.get)
    assert effect.succeeded
    assert list(effect.results) == results
    assert list(effect.writes) == writes


EQ, NE, LT, GT = Relation.EQUAL, Relation.UNEQUAL, Relation.LESS, Relation.GREATER
VERSION, VALUE, EXISTS = Target.VERSION, Target.VALUE, Target.EXISTS


@pytest.mark.parametrize(
    ("target", "operand", "record", "true"),
    [
        (VERSION, Version(2, 7), ONE, {EQ}),
        (VERSION, Version(2, 8), ONE, {NE, LT}),
        (VERSION, Version(3, 0), ONE, {NE, LT}),
        (VERSION, Version(1, 9), ONE, {NE, GT}),
        (VERSION, Version(0, 0), None, {EQ}),
        (VERSION, Version(1, 0), None, {NE, LT}),
        (VALUE, b"one", ONE, {EQ}),
        (VALUE, b"onf", ONE, {NE, LT}),
        (VALUE, b"on", ONE, {NE, GT}),
        (VALUE, b"", None, {NE}),
        (VALUE, b"one", None, {NE}),
        (EXISTS, True, ONE, {EQ}),
        (EXISTS, False, ONE, {NE}),
        (EXISTS, True, None, {NE}),
        (EXISTS, False, None, {EQ}),
    ],
)
def test_conditions(
    target: Target, operand: Version | bytes | bool, record: Record | None, true: set[Relation]
) -> None:
    relations = [EQ, NE] if target is EXISTS else list(Relation)
    assert {relation for relation in relations if holds(Compare("a", target, relation, operand), record)} == true


def test_all_conditions_must_hold_for_the_first_branch() -> None:
    yes = Compare("a", EXISTS, EQ, True)
    no = Compare("b", EXISTS, EQ, True)
    branches: dict[str, Any] = {"then": (Put("x", b"then"),), "otherwise": (Put("x", b"else"),)}
    chosen = {
        compare: evaluate(Transaction(compare=compare, **branches), STATE.get)
        for compare in [(), (yes,), (no,), (yes, no), (no, yes), (yes, yes)]
    }
    assert {compare for compare, effect in chosen.items() if effect.succeeded} == {(), (yes,), (yes, yes)}
    for effect in chosen.values():
        assert effect.writes == (Put("x", b"then" if effect.succeeded else b"else"),)


def test_a_failed_condition_without_other_branch_writes_nothing() -> None:
    effect = evaluate(Transaction(compare=(Compare("b", EXISTS, EQ, True),), then=(Put("a", b""),)), STATE.get)
    assert (effect.succeeded, effect.results, effect.writes) == (False, (), ())


keys = st.sampled_from(["a", "b", "c"])
operation = st.one_of(st.builds(Put, keys, st.binary(max_size=2)), st.builds(Delete, keys), st.builds(Get, keys))


@given(st.dictionaries(keys, st.binary(max_size=2)), st.lists(operation, min_size=1, max_size=8))
def test_writes_lead_to_the_state_that_the_operations_lead_to(
    before: dict[str, bytes], operations: list[Operation]
) -> None:
    effect = evaluate(
        Transaction(then=tuple(operations)),
        lambda key: Record(before[key], Version(1, 1)) if key in before else None,
    )
    one_by_one = dict(before)
    for step, result in zip(operations, effect.results, strict=True):
        if isinstance(step, Put):
            one_by_one[step.key] = step.value
        elif isinstance(step, Delete):
            assert result == DeleteResult(step.key in one_by_one)
            one_by_one.pop(step.key, None)
        else:
            assert isinstance(result, GetResult)
            assert result.value == one_by_one.get(step.key)
    at_once = dict(before)
    for write in effect.writes:
        if isinstance(write, Put):
            at_once[write.key] = write.value
        else:
            del at_once[write.key]  # a delete of an absent key is no write
    assert at_once == one_by_one
    assert len({write.key for write in effect.writes}) == len(effect.writes)


LONG = "k" * (limits.KEY_BYTES_MAX + 1)


@pytest.mark.parametrize(
    ("transaction", "error", "field", "limit"),
    [
        (Transaction(), Invalid, "then", None),
        (Transaction(compare=(Compare("", EXISTS, EQ, True),)), Invalid, "key", None),
        (Transaction(then=(Put("a\x00b", b""),)), Invalid, "key", None),
        (Transaction(otherwise=(Delete("\x01a"),)), Invalid, "key", None),
        (Transaction(then=(Get("\ud800"),)), Invalid, "key", None),
        (Transaction(then=(Get(LONG),)), TooLarge, "key", limits.KEY_BYTES_MAX),
        (Transaction(then=(Get("é" * 513),)), TooLarge, "key", limits.KEY_BYTES_MAX),
        (
            Transaction(then=(Put("a", bytes(limits.VALUE_BYTES_MAX + 1)),)),
            TooLarge,
            "value",
            limits.VALUE_BYTES_MAX,
        ),
        (Transaction(then=(Get("a"),) * 1001), TooLarge, "txn", limits.TXN_OPERATIONS_MAX),
        (
            Transaction(then=tuple(Put(f"k{i}", bytes(1_000_000)) for i in range(10))),
            TooLarge,
            "txn",
            limits.TXN_BYTES_MAX,
        ),
        (
            Transaction(then=(Get("a"),), idempotency_key=bytes(257)),
            Invalid,
            "Idempotency-Key",
            limits.IDEMPOTENCY_KEY_BYTES_MAX,
        ),
    ],
)
def test_refused(transaction: Transaction, error: type[FenceKVError], field: str, limit: int | None) -> None:
    with pytest.raises(error) as refused:
        validate(transaction)
    assert refused.value.extra.get("field") == field
    assert refused.value.extra.get("limit") == limit


@pytest.mark.parametrize(
    "transaction",
    [
        Transaction(then=(Put("k" * limits.KEY_BYTES_MAX, bytes(limits.VALUE_BYTES_MAX)),)),
        Transaction(then=(Get("a"),) * limits.TXN_OPERATIONS_MAX),
        Transaction(compare=(Compare("a", VALUE, EQ, b""),)),
        Transaction(then=(Put("é/日本/🙂", b""),), idempotency_key=bytes(256)),
    ],
)
def test_accepted_at_the_limit(transaction: Transaction) -> None:
    validate(transaction)


def test_fingerprints_tell_requests_apart_and_ignore_who_asks() -> None:
    base = Transaction(compare=(Compare("a", VALUE, EQ, b"x"),), then=(Put("a", b"y"),))
    others = [
        Transaction(then=(Put("a", b"y"),)),
        Transaction(compare=base.compare, otherwise=(Put("a", b"y"),)),
        Transaction(compare=base.compare, then=(Put("a", b"z"),)),
        Transaction(compare=base.compare, then=(Delete("a"),)),
        Transaction(compare=base.compare, then=(Get("a"),)),
        Transaction(compare=(Compare("a", VALUE, NE, b"x"),), then=base.then),
        Transaction(compare=(Compare("b", VALUE, EQ, b"x"),), then=base.then),
    ]
    prints = [one.fingerprint() for one in (base, *others)]
    assert len(set(prints)) == len(prints)
    assert all(len(one) == 16 for one in prints)
    same = Transaction(compare=base.compare, then=base.then, actor="x", idempotency_key=b"k")
    assert same.fingerprint() == base.fingerprint()
