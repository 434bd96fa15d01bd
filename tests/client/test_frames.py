"""Frames: each message byte for byte, what is refused, and how a stream is cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cbor2
import pytest
from golden_messages import ANSWERS, FROM_CLIENT, FROM_SHARD
from hypothesis import given
from hypothesis import strategies as st

from fencekv import frame_reader, frames
from fencekv import messages as m
from fencekv.messages import Malformed

GOLDEN = json.loads((Path(__file__).parent / "golden_frames.json").read_text())
CLIENT = [entry for entry in GOLDEN if entry["from"] == "client"]
SHARD = [entry for entry in GOLDEN if entry["from"] == "shard"]


def name(entry: dict[str, Any]) -> str:
    return str(entry["name"])


def read(entry: dict[str, Any]) -> Any:
    body = bytes.fromhex(entry["frame"])[4:]
    if entry["from"] == "client":
        return frame_reader.read_message(body)
    return frame_reader.read_answer(body, lambda _: entry.get("operation"))


@pytest.mark.parametrize("entry", GOLDEN, ids=name)
def test_every_message_has_the_bytes_that_other_languages_rely_on(entry: dict[str, Any]) -> None:
    message = {**FROM_CLIENT, **FROM_SHARD, **{n: answer for n, (_, answer) in ANSWERS.items()}}[entry["name"]]
    assert frames.encode(message).hex() == entry["frame"]
    assert read(entry) == message
    assert type(read(entry)) is type(message)


def test_the_vectors_hold_every_message() -> None:
    assert {name(entry) for entry in CLIENT} == FROM_CLIENT.keys()
    assert {name(entry) for entry in SHARD} == FROM_SHARD.keys() | ANSWERS.keys()
    kinds = {type(message) for message in (*FROM_CLIENT.values(), *FROM_SHARD.values())}
    kinds |= {type(answer) for _, answer in ANSWERS.values()}
    assert kinds == frames.MESSAGES


# -- what is refused


@pytest.mark.parametrize("entry", GOLDEN, ids=name)
def test_an_element_more_or_less_or_of_another_type_is_refused(entry: dict[str, Any]) -> None:
    items = cbor2.loads(bytes.fromhex(entry["frame"])[4:])

    def refused(changed: list[Any]) -> bool:
        frame = {"frame": (b"\0\0\0\0" + cbor2.dumps(changed, canonical=True)).hex()}
        try:
            read({**entry, **frame})
        except Malformed:
            return True
        return False

    open_maps = {"refused", "not found", "routes"}  # their maps hold what HTTP's documents hold
    assert refused([*items, 0, 0])
    if entry["name"] in open_maps:
        assert refused([{"a": [1.5]} if isinstance(item, dict) else item for item in items])
    assert refused(items[:1])
    for at in range(len(items)):
        for wrong in (1.5, -1, 2**63, {"a": 1} if entry["name"] not in open_maps else -1):
            assert refused([*items[:at], wrong, *items[at + 1 :]]), (at, wrong)
        if type(items[at]) is int:
            assert refused([*items[:at], True, *items[at + 1 :]]), at


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00",
        b"\x80",
        b"\xa0",
        bytes.fromhex("83006470696e67181700"),  # bytes behind the array
        bytes.fromhex("83006470696e671800"),  # 0 in two bytes
        bytes.fromhex("83006470696e671b0000000000000007"),
        bytes.fromhex("9f006470696e6707ff"),  # no length
        bytes.fromhex("8300647069ff6707"),  # no UTF-8
        bytes.fromhex("83006470696e67c24107"),  # a tag that makes a number
        bytes.fromhex("d9d9f783006470696e6707"),  # a tag that says nothing
        b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x81" * 17 + b"\x00",
        b"\x81" * 100_000,
    ],
    ids=lambda body: body[:12].hex(),
)
def test_a_body_that_is_not_canonical_is_refused(body: bytes) -> None:
    with pytest.raises(Malformed):
        frame_reader.read_message(body)


@given(st.binary(max_size=60))
def test_what_is_read_is_encoded_to_the_same_bytes(body: bytes) -> None:
    try:
        message = frame_reader.read_message(body)
    except Malformed:
        return
    assert frames.encode(message)[4:] == body


@given(st.data(), st.sampled_from(CLIENT))
def test_a_changed_byte_is_refused_or_makes_another_message_of_the_same_form(
    data: st.DataObject, entry: dict[str, Any]
) -> None:
    body = bytearray.fromhex(entry["frame"])[4:]
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        message = frame_reader.read_message(bytes(body))
    except Malformed:
        return
    assert frames.encode(message)[4:] == bytes(body)


def test_an_answer_that_nobody_waits_for_is_passed_over() -> None:
    _, answer = ANSWERS["written"]
    assert frame_reader.read_answer(frames.encode(answer)[4:], lambda _: None) is None


# -- a stream


@given(st.lists(st.binary(min_size=1, max_size=9), max_size=6), st.lists(st.integers(1, 9), min_size=1))
def test_a_stream_is_cut_the_same_however_it_arrives(bodies: list[bytes], sizes: list[int]) -> None:
    stream = b"".join(len(body).to_bytes(4, "big") + body for body in bodies)
    splitter, at, turn = frames.Splitter(), 0, 0
    found: list[bytes] = []
    while at < len(stream):
        size = sizes[turn % len(sizes)]
        found += splitter.feed(stream[at : at + size])
        at, turn = at + size, turn + 1
    assert found == bodies


@pytest.mark.parametrize("length", [0, 101, 2**32 - 1])
def test_a_length_out_of_bounds_is_refused_behind_the_frames_before_it(length: int) -> None:
    splitter = frames.Splitter(frame_bytes_max=100)
    bodies = splitter.feed(b"\0\0\0\1a" + length.to_bytes(4, "big"))
    assert next(bodies) == b"a"
    with pytest.raises(Malformed, match=str(length)):
        next(bodies)


def test_a_large_frame_in_small_pieces_is_held_once() -> None:
    splitter = frames.Splitter()
    body = bytes(range(256)) * 4096
    stream = len(body).to_bytes(4, "big") + body
    found = [body for at in range(0, len(stream), 1000) for body in splitter.feed(stream[at : at + 1000])]
    assert found == [body]


def test_options_that_ask_for_nothing_may_be_left_out() -> None:
    asked = m.Get(1, "orders", m.Options(), "k")
    assert frame_reader.read_message(frames.encode(asked)[4:]) == asked
    assert len(frames.encode(asked._replace(options=None))) < len(frames.encode(asked))
