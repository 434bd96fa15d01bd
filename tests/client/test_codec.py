"""Strict decoding: a document has one encoding, and nothing in it acts."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import cbor2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fencekv.codec import DEPTH_MAX, decode, decode_json, encode
from fencekv.errors import Invalid

numbers = st.integers(min_value=-(2**63), max_value=2**63 - 1)
leaves = st.none() | st.booleans() | numbers | st.text(max_size=5) | st.binary(max_size=5)
documents = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


@given(documents)
def test_what_was_encoded_is_decoded(document: Any) -> None:
    assert decode(encode(document)) == document


@pytest.mark.parametrize("size", [0, 1, 23, 24, 255, 256, 65535, 65536, 70000])
def test_lengths_and_numbers_of_every_size_are_read(size: int) -> None:
    for document in ([bytes(size)], ["x" * size], ["é" * size], [0] * size, [[0] * size], [size], [size << 32]):
        assert decode(encode(document)) == document


@given(st.binary(max_size=40))
def test_what_is_decoded_has_the_encoding_that_was_read(data: bytes) -> None:
    try:
        document = decode(data)
    except Invalid:
        return
    assert encode(document) == data


@st.composite
def heads(draw: st.DrawFn, major: int, number: int) -> bytes:
    """A head of any of its lengths, most of them not the shortest."""
    sizes = [size for size in (0, 1, 2, 4, 8) if number < (24 if size == 0 else 1 << 8 * size)]
    size = draw(st.sampled_from(sizes))
    if size == 0:
        return bytes([major << 5 | number])
    return bytes([major << 5 | 23 + size.bit_length()]) + number.to_bytes(size, "big")


@st.composite
def encodings(draw: st.DrawFn, depth: int = 0) -> bytes:
    """Documents without tags, encoded in all ways that there are."""
    sort = draw(st.integers(0, 7 if depth < 3 else 5))
    if sort == 0:
        return draw(st.sampled_from([b"\xf4", b"\xf5", b"\xf6", b"\xf7", b"\xf9\x3c\x00", b"\xf8\x20"]))
    if sort <= 2:
        return draw(
            heads(sort - 1, draw(st.sampled_from([0, 5, 23, 24, 255, 256, 65535, 65536, 2**32, 2**64 - 1])))
        )
    if sort <= 4:
        text = draw(st.text(max_size=30)).encode()
        return draw(heads(sort - 1, len(text))) + text
    inner = draw(st.lists(encodings(depth + 1), max_size=30 if sort == 6 else 3))
    if sort < 7:
        return draw(heads(4, len(inner))) + b"".join(inner)
    members = [draw(encodings(3)) + value for value in inner]
    return draw(heads(5, len(members))) + b"".join(members)


@given(encodings(), st.sampled_from([b"", b"", b"\x00"]))
@example(b"\xa1\x80\xf4", b"")  # a map whose key is an array
def test_of_all_encodings_the_canonical_one_is_accepted_and_no_other(data: bytes, behind: bytes) -> None:
    try:
        value = cbor2.loads(data, allow_duplicate_keys=False)
        canonical = None if is_foreign(value) else cbor2.dumps(value, canonical=True)
    except Exception:  # what cbor2 does not read at all
        canonical = None
    try:
        decode(data + behind)
    except Invalid:
        assert data + behind != canonical
    else:
        assert data + behind == canonical


def is_foreign(value: Any) -> bool:
    """Whether it holds what no message does, and none is let in with.

    Simple values, of which 1 equals the number 1 in Python, and arrays and maps as keys.
    """
    if isinstance(value, list):
        return any(map(is_foreign, value))
    if isinstance(value, dict):
        return any(isinstance(key, tuple | Mapping) or is_foreign(key) for key in value) or any(
            map(is_foreign, value.values())
        )
    return isinstance(value, cbor2.CBORSimpleValue) or value is cbor2.undefined


def test_a_simple_value_does_not_pass_for_a_number() -> None:
    with pytest.raises(Invalid):
        decode(b"\x81\xe1")
    with pytest.raises(Invalid):
        decode(b"\xa1\x61a\xe1")


@pytest.mark.parametrize(
    "value",
    [
        cbor2.CBORTag(999, 1),
        datetime.date(2020, 1, 1),
        Decimal("1.5"),
        ipaddress.ip_address("10.0.0.7"),
        2**64,
        {"a": [cbor2.CBORTag(2, b"\x01")]},
    ],
    ids=repr,
)
def test_no_tag_is_acted_on(value: Any) -> None:
    with pytest.raises(Invalid):
        decode(cbor2.dumps(value, canonical=True))


@pytest.mark.parametrize(
    "data",
    [
        "8001",  # a byte behind it
        "1800",  # 0 in two bytes
        "9fff",  # an array without a length
        "9f" + "00" * 24 + "ff",  # one that is as long as with it
        "5f4100ff",  # bytes in pieces
        "a2616101616102",  # a key twice
        "a2616201616101",  # keys out of order
        "",
        "82",
    ],
)
def test_another_encoding_is_refused(data: str) -> None:
    with pytest.raises(Invalid):
        decode(bytes.fromhex(data))


def test_nesting_is_bounded() -> None:
    for levels, fits in ((DEPTH_MAX, True), (DEPTH_MAX + 1, False), (1_000_000, False)):
        for data in (b"\x81" * (levels - 1) + b"\x80", b"\x81" * (levels - 1) + b"\x00"):
            if fits:
                decode(data)
            else:
                with pytest.raises(Invalid):
                    decode(data)
    decode_json("[" * (DEPTH_MAX - 1) + "0" + "]" * (DEPTH_MAX - 1))
    with pytest.raises(Invalid):
        decode_json("[" * DEPTH_MAX + "0" + "]" * DEPTH_MAX)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', "[NaN]", "[Infinity]", "[1", "[" * 100_000])
def test_json_that_says_two_things_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        decode_json(text)
