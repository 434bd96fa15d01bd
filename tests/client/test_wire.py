"""Values, keys, bounds and cursors on the wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fencekv import wire
from fencekv.errors import Invalid
from fencekv.operations import (
    Delete,
    Get,
    Operation,
    Put,
    Transaction,
    at_version,
    exists,
    has_value,
    parse_txn,
    txn_document,
)
from fencekv.token import Token, Version
from fencekv.wire import ListCursor, Position

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=6)


@given(st.binary(max_size=40))
def test_a_value_survives_json(value: bytes) -> None:
    member = wire.value_member(value)
    assert wire.value_of(member, field="x") == value
    assert all(ord(char) >= 32 or char in "\t\n\r" for char in member.get("value", ""))


@given(TEXT, TEXT)
def test_the_bound_after_a_prefix_holds_exactly_the_keys_with_it(prefix: str, key: str) -> None:
    start, end = wire.bounds(prefix, "", "")
    inside = start.encode() <= key.encode() and (not end or key.encode() < end.encode())
    assert inside == key.startswith(prefix)


def test_the_bound_after_a_prefix_skips_what_utf8_cannot_hold() -> None:
    assert wire.after_prefix("a\ud7ff") == "a\ue000"
    assert wire.after_prefix("a\U0010ffff") == "b"
    assert wire.after_prefix("\U0010ffff") == ""


def test_the_narrower_of_prefix_and_bounds_counts() -> None:
    assert wire.bounds("b", "a", "z") == ("b", "c")
    assert wire.bounds("b", "bb", "bc") == ("bb", "bc")
    assert wire.bounds("", "", "") == ("", "")


numbers = st.integers(min_value=0, max_value=2**63 - 1)
positions = st.builds(
    Position,
    st.integers(min_value=0, max_value=9),
    st.none() | st.builds(Token, numbers, numbers),
    st.none() | numbers,
)


@given(TEXT, st.lists(positions, max_size=4))
def test_a_cursor_survives_and_is_good_for_its_listing_only(after: str, places: list[Position]) -> None:
    cursor = ListCursor(after, tuple(places))
    mine, other = (wire.listing_id(table, "a", "b", None) for table in ("orders", "customers"))
    text = wire.encode_list_cursor(cursor, mine)
    assert wire.decode_list_cursor(text, mine, partitions=10) == cursor
    with pytest.raises(Invalid, match="another request"):
        wire.decode_list_cursor(text, other, partitions=10)


@pytest.mark.parametrize(
    "parts",
    [
        [1],
        [2, b"id", 5],
        [1, b"id", 5, []],
        [1, b"id", "a", [[0, 1, 1]]],
        [1, b"id", "a", [[10, 1, 1, 1]]],
        [1, b"id", "a", [[0, 1, -1, 1]]],
        [1, b"id", "a", [[0, 1, True, 1]]],
        [1, b"id", "a", [[0, 1, 2**63, 1]]],
        {"a": 1},
    ],
    ids=str,
)
def test_a_cursor_of_another_shape_is_refused(parts: object) -> None:
    import base64

    from fencekv.codec import encode

    text = base64.urlsafe_b64encode(encode(parts)).decode().rstrip("=")
    with pytest.raises(Invalid) as refusal:
        wire.decode_list_cursor(text, b"id", partitions=10)
    assert refusal.value.extra["field"] == "cursor"


@pytest.mark.parametrize("key", [".", "..", "a/b", "%", "é", "a b"])
def test_a_key_in_a_path_is_one_segment_that_nobody_normalises(key: str) -> None:
    from urllib.parse import unquote

    encoded = wire.segment(key)
    assert unquote(encoded) == key
    assert "/" not in encoded
    assert encoded not in {".", ".."}


def test_a_transaction_survives_its_document() -> None:
    compare = [exists("a", False), at_version("b", Version(3, 1), "<"), has_value("c", b"\xff", "!=")]
    then: list[Operation] = [Put("a", b"\x00"), Delete("b"), Get("c")]
    read = parse_txn(txn_document(compare, then, [Get("a")]))
    assert read == Transaction(compare, then, [Get("a")])
    assert read.key() == "a"
    assert parse_txn({}).key() is None


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ([1], "body"),
        ({"than": []}, "than"),
        ({"then": "text"}, "then"),
        ({"then": ["x"]}, "then[0]"),
        ({"then": [{"put": {"key": "a"}, "get": {"key": "a"}}]}, "then[0]"),
        ({"else": [{"put": {"key": "a"}}]}, "else[0].put.value"),
        ({"then": [{"get": {"key": 7}}]}, "then[0].get.key"),
        ({"then": [{"get": {"key": "a", "value": "b"}}]}, "then[0].get.value"),
        ({"compare": [{"key": "a", "target": "size", "op": "=="}]}, "compare[0].target"),
        ({"compare": [{"key": "a", "target": "exists", "op": "<", "exists": True}]}, "compare[0].op"),
        ({"compare": [{"key": "a", "target": "exists", "op": "==", "value": "x"}]}, "compare[0].value"),
        ({"compare": [{"key": "a", "target": "version", "op": "==", "version": "1"}]}, "compare[0].version"),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_what_is_wrong_with_a_document_is_named(document: object, field: str) -> None:
    with pytest.raises(Invalid) as refusal:
        parse_txn(document)
    assert refusal.value.extra["field"] == field
