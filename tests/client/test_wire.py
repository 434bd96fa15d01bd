"""Values, keys, bounds and cursors on the wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fencekv import wire
from fencekv.errors import Invalid
from fencekv.operations import keys_named
from fencekv.token import Token
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


def test_the_keys_of_a_document_are_found_whatever_else_is_wrong_with_it() -> None:
    document = {
        "compare": [{"key": "a"}, {"key": 7}, "x"],
        "then": [{"put": {"key": "b"}}, {"get": None}],
        "else": {"delete": {"key": "c"}},
    }
    assert keys_named(document) == ["a", "b"]
    assert keys_named([1]) == []
    assert keys_named({"then": "text"}) == []
