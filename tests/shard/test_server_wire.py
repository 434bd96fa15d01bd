"""HTTP as bytes on a connection: where requests end, their order, their time, and what is refused as unclear."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from fake_node import FakeNode, FakePartition, not_owner
from raw_http import Raw, dialled_http, others_are_served, request

from fencekv.token import Version
from fencekv_shard import api
from fencekv_shard.http_reader import FIELD_BYTES_MAX, FIELDS_BYTES_MAX, FIELDS_MAX, TARGET_BYTES_MAX, Reader
from fencekv_shard.server import Running, start_server
from fencekv_shard.transaction import Transaction

KEY = "/v1/sample/orders/keys/k"
MIB = 1 << 20
HEAD = f"PUT {KEY} HTTP/1.1\r\nHost: a\r\n".encode()
BEHIND = request("PUT", "/v1/sample/orders/keys/behind", b"smuggled")


# -- where a request ends

UNCLEAR = {
    "both lengths": HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "both lengths, the other way round": HEAD
    + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "a length twice": HEAD + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\nv",
    "two lengths": HEAD + b"Content-Length: 1\r\nContent-Length: 5\r\n\r\nv",
    "a list of lengths": HEAD + b"Content-Length: 1, 1\r\n\r\nv",
    "a length with sign": HEAD + b"Content-Length: +1\r\n\r\nv",
    "a negative length": HEAD + b"Content-Length: -1\r\n\r\nv",
    "a length with underscore": HEAD + b"Content-Length: 1_0\r\n\r\n0123456789",
    "an empty length": HEAD + b"Content-Length:\r\n\r\n",
    "an overflowing length": HEAD + b"Content-Length: 18446744073709551617\r\n\r\nv",
    "space before the colon": HEAD + b"Content-Length : 1\r\n\r\nv",
    "chunked twice": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a coding before chunked": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n1\r\nv\r\n0\r\n\r\n",
    "a coding behind chunked": HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\n1\r\nv\r\n0\r\n\r\n",
    "a coding that is not chunked": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n1\r\nv\r\n0\r\n\r\n",
    "no coding": HEAD + b"Transfer-Encoding: identity\r\n\r\n",
    "chunked in HTTP/1.0": HEAD.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n1\r\nv\r\n0\r\n\r\n",
    "a chunk's size in hex with prefix": HEAD + b"Transfer-Encoding: chunked\r\n\r\n0x1\r\nv\r\n0\r\n\r\n",
    "a chunk longer than it says": HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nvv\r\n0\r\n\r\n",
    "a chunk's line ended by LF": HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\nv\r\n0\r\n\r\n",
    "an LF in a chunk's extension": HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;a\nb\r\nv\r\n0\r\n\r\n",
    "a field behind the body": HEAD + b'Transfer-Encoding: chunked\r\n\r\n1\r\nv\r\n0\r\nIf-Match: "1.1"\r\n\r\n',
    "lines ended by LF": HEAD.replace(b"\r\n", b"\n") + b"Content-Length: 1\n\nv",
    "one line ended by LF": HEAD + b"X: a\nContent-Length: 1\r\n\r\nv",
    "a CR within a line": HEAD + b"X: a\rContent-Length: 1\r\n\r\nv",
    "a folded line": HEAD + b"X: a\r\n b\r\nContent-Length: 1\r\n\r\nv",
    "a folded length": HEAD + b"Content-Length:\r\n 1\r\n\r\nv",
    "a NUL in a header": HEAD + b"X: a\0b\r\nContent-Length: 1\r\n\r\nv",
    "a NUL in the target": HEAD.replace(b"/k", b"/k\0") + b"Content-Length: 1\r\n\r\nv",
    "a blank in the target": HEAD.replace(b"/k", b"/k k") + b"Content-Length: 1\r\n\r\nv",
    "a header without name": HEAD + b": a\r\nContent-Length: 1\r\n\r\nv",
    "a header that is no token": HEAD + b"X(: a\r\nContent-Length: 1\r\n\r\nv",
    "no host": f"PUT {KEY} HTTP/1.1\r\nContent-Length: 1\r\n\r\nv".encode(),
    "two hosts": HEAD + b"host: b\r\nContent-Length: 1\r\n\r\nv",
    "no version": f"PUT {KEY}\r\n\r\n".encode(),
    "HTTP/0.9": HEAD.replace(b"1.1", b"0.9") + b"Content-Length: 1\r\n\r\nv",
    "HTTP/2.0": HEAD.replace(b"1.1", b"2.0") + b"Content-Length: 1\r\n\r\nv",
    "HTTP/2's opening": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "an unknown method": HEAD.replace(b"PUT", b"PAT") + b"Content-Length: 1\r\n\r\nv",
    "a method in small letters": HEAD.replace(b"PUT", b"put") + b"Content-Length: 1\r\n\r\nv",
}


@pytest.mark.parametrize("sent", UNCLEAR.values(), ids=UNCLEAR.keys())
@pytest.mark.parametrize("split", [False, True], ids=["in one piece", "byte by byte"])
async def test_what_could_be_read_in_two_ways_is_refused_and_nothing_behind_it_is_read(
    node: FakeNode, raw: Raw, sent: bytes, split: bool
) -> None:
    whole = request("GET", "/healthz") + sent + BEHIND
    if split:
        for at in range(len(whole)):
            raw.send(whole[at : at + 1])
            await asyncio.sleep(0)
    else:
        raw.send(whole)
    assert (await raw.answer()).status == 200
    refused = await raw.answer()
    assert (refused.status, refused.document["title"], refused.document["field"]) == (400, "Invalid", "request")
    assert refused.headers["Content-Type"] == "application/problem+json"
    assert await raw.read() is None
    assert node.calls == []


def test_there_are_as_many_unclear_requests_as_names() -> None:
    assert len(set(UNCLEAR.values())) == len(UNCLEAR)


@pytest.mark.parametrize(
    ("sent", "limit"),
    [
        (request("GET", "/" + "x" * TARGET_BYTES_MAX), TARGET_BYTES_MAX),
        (request("GET", KEY, X="x" * FIELD_BYTES_MAX), FIELD_BYTES_MAX),
        (request("GET", KEY, **{"x" * FIELD_BYTES_MAX: "x"}), FIELD_BYTES_MAX),
        (request("GET", KEY, **{f"x{n}": "x" * 15_000 for n in range(5)}), FIELDS_BYTES_MAX),
        (request("GET", KEY, **{f"x{n}": "x" for n in range(FIELDS_MAX)}), FIELDS_MAX),
        (f"GET {KEY} HTTP/1.1\r\nX: ".encode() + b"x" * 2 * FIELD_BYTES_MAX, FIELD_BYTES_MAX),
        (f"GET {KEY} HTTP/1.1\r\n".encode() + b"x" * 2 * FIELD_BYTES_MAX, FIELD_BYTES_MAX),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"x" * 2 * FIELD_BYTES_MAX, FIELD_BYTES_MAX),
    ],
    ids=["target", "value", "name", "all", "many", "endless value", "endless name", "endless chunk extension"],
)
async def test_heads_are_bounded_while_they_arrive(node: FakeNode, raw: Raw, sent: bytes, limit: int) -> None:
    for at in range(0, len(sent), 1000):
        raw.send(sent[at : at + 1000])
        await asyncio.sleep(0)
    refused = await raw.answer()
    assert (refused.status, refused.document["field"], refused.document["limit"]) == (400, "request", limit)
    assert await raw.read() is None
    assert node.calls == []


async def test_heads_just_within_the_limits_are_taken(raw: Raw) -> None:
    long = "x" * (FIELD_BYTES_MAX - 2)
    assert (await raw.ask(request("GET", "/healthz", X1=long, X2=long, X3=long))).status == 200
    many = {f"x{n}": "x" for n in range(FIELDS_MAX - 1)}
    assert (await raw.ask(request("GET", "/healthz", **many))).status == 200
    target = "/v1/sample/orders/keys?prefix=" + "x" * (TARGET_BYTES_MAX - 30)
    assert (await raw.ask(request("GET", target))).status == 413  # by the key's own limit


async def test_a_target_with_scheme_or_authority_is_no_path_of_ours(node: FakeNode, raw: Raw) -> None:
    for method, target in (("GET", f"http://shard{KEY}"), ("OPTIONS", "*"), ("CONNECT", "shard:80")):
        said = await raw.ask(request(method, target))
        assert (said.status, said.document["field"]) == (404, "path")
    assert node.calls == []


BODIES = {
    "length": HEAD + b"Content-Length: 6\r\n\r\nabcdef",
    "chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n4;x=y\r\ncdef\r\n0\r\n\r\n",
    "chunked in capitals": HEAD + b"transfer-encoding: CHUNKED\r\n\r\n6\r\nabcdef\r\n0\r\n\r\n",
    "blanks around the length": HEAD + b"Content-Length: \t6 \t\r\n\r\nabcdef",
    "empty lines before": b"\r\n\r\n" + HEAD + b"Content-Length: 6\r\n\r\nabcdef",
    "HTTP/1.0": HEAD.replace(b"1.1", b"1.0") + b"Connection: keep-alive\r\nContent-Length: 6\r\n\r\nabcdef",
}


@pytest.mark.parametrize("sent", BODIES.values(), ids=BODIES.keys())
async def test_a_body_is_the_same_wherever_packets_end(raw: Raw, partition: FakePartition, sent: bytes) -> None:
    for at in range(len(sent)):
        raw.send(sent[:at])
        await asyncio.sleep(0)
        raw.send(sent[at:])
        assert (await raw.answer()).status == 200
        assert partition.state.pop("k").value == b"abcdef"


async def test_blanks_around_a_headers_value_are_no_part_of_it(raw: Raw, partition: FakePartition) -> None:
    blanks = HEAD + b"Content-Length:\t1 \t\r\nFenceKV-Epoch: \t 1 \t\r\nFenceKV-Durability:standard\r\n\r\nv"
    assert (await raw.ask(blanks)).status == 200
    assert partition.calls[0][2].epoch == 1


def test_requests_come_out_alike_wherever_their_bytes_are_split() -> None:
    sent = b"".join([*BODIES.values(), request("GET", f"{KEY}?a=b", X="é"), request("DELETE", KEY)])

    def read(*parts: bytes) -> list[Any]:
        reader = Reader()
        for part in parts:
            reader.feed(part)
        assert not reader.partial
        assert reader.body_bytes == 0
        return [(r.method, r.target, r.headers, r.body, r.keep_alive, str(r.refusal)) for r in reader.requests]

    whole = read(sent)
    assert len(whole) == len(BODIES) + 2
    for at in range(len(sent)):
        assert read(sent[:at], sent[at:]) == whole
    assert read(*(sent[at : at + 1] for at in range(len(sent)))) == whole


# -- order


async def test_requests_in_one_packet_are_carried_out_and_answered_in_their_order(raw: Raw) -> None:
    txn = json.dumps({"then": [{"get": {"key": "k"}}]}).encode()
    raw.send(
        request("PUT", KEY, b"1"),
        request("GET", KEY),
        request("GET", "/healthz"),
        request("GET", "/nowhere"),
        request("PUT", KEY, b"2", If_Match='"9.9"'),
        request("GET", "/v1/sample/orders/keys"),
        request("POST", "/v1/sample/orders/txn", txn, Content_Type="application/json"),
        request("DELETE", KEY),
        request("GET", KEY),
        request("GET", "/metrics"),
    )
    said = [await raw.answer() for _ in range(10)]
    assert [one.status for one in said] == [200, 200, 200, 404, 412, 200, 200, 200, 404, 200]
    assert said[1].body == b"1"
    assert [item["key"] for item in said[5].document["items"]] == ["k"]
    assert said[6].document["results"][0]["value"] == "1"
    assert said[7].document["existed"] is True


async def test_a_slow_request_holds_up_those_behind_it_and_nobody_else(
    shard: Running, raw: Raw, partition: FakePartition
) -> None:
    event = asyncio.Event()
    partition.script = [event]
    raw.send(request("PUT", KEY, b"1"), request("GET", KEY))
    await others_are_served(shard.port)
    raw.send(request("GET", "/healthz"), request("GET", KEY))
    await others_are_served(shard.port)
    assert len(partition.calls) == 1
    event.set()
    said = [await raw.answer() for _ in range(4)]
    assert [one.body for one in said[1::2]] == [b"1", b"1"]
    assert said[2].document == {"live": True}


async def test_thousands_of_requests_in_one_stream_are_all_answered(raw: Raw) -> None:
    count = 5000
    raw.send(request("GET", "/healthz") * count, request("GET", KEY))
    for _ in range(count):
        assert (await raw.answer()).status == 200
    assert (await raw.answer()).status == 404


async def test_an_answer_that_comes_twice_is_not_taken_for_the_next_requests(
    raw: Raw, partition: FakePartition, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    waiters: list[api.Waiter] = []

    def begin(_: FakePartition, transaction: Transaction, options: api.Options, waiter: api.Waiter) -> None:
        waiters.append(waiter)
        if len(waiters) == 1:
            raise ZeroDivisionError("taken, and yet a bug")

    monkeypatch.setattr(FakePartition, "begin", begin)
    raw.send(request("PUT", KEY, b"1"), request("PUT", KEY, b"2"))
    assert (await raw.answer()).document["title"] == "Unknown"
    first, second = waiters
    transaction = Transaction(then=(), compare=(), otherwise=())
    first.committed(partition._commit(transaction).replaced(version=Version(1, 1)))
    second.committed(partition._commit(transaction).replaced(version=Version(1, 2)))
    assert (await raw.answer()).document["version"] == "1.2"


# -- how connections end


async def test_a_connection_is_kept_unless_the_client_says_otherwise(shard: Running, raw: Raw) -> None:
    for _ in range(2):
        said = await raw.ask(request("GET", "/healthz"))
        assert (said.line, said.headers.get("Connection")) == ("HTTP/1.1 200 OK", None)
    said = await raw.ask(request("GET", "/healthz", Connection="close"), BEHIND)
    assert said.headers["Connection"] == "close"
    assert await raw.read() is None
    async with dialled_http(shard.port) as old:
        kept = await old.ask(b"GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert (kept.line, kept.headers["Connection"]) == ("HTTP/1.0 200 OK", "keep-alive")
        last = await old.ask(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert (last.line, last.headers.get("Connection")) == ("HTTP/1.0 200 OK", None)
        assert await old.read() is None


async def test_an_upgrade_is_not_made_and_nothing_behind_it_is_read(node: FakeNode, raw: Raw) -> None:
    said = await raw.ask(request("GET", "/healthz", Connection="Upgrade", Upgrade="h2c"), BEHIND)
    assert (said.status, said.headers["Connection"]) == (200, "close")
    assert await raw.read() is None
    assert node.calls == []


async def test_the_head_alone_is_answered_without_a_body(raw: Raw) -> None:
    raw.send(request("HEAD", KEY), request("GET", "/healthz"))
    said = await raw.read(headless=True)
    assert said is not None
    assert (said.status, int(said.headers["Content-Length"]) > 0) == (405, True)
    assert (await raw.answer()).status == 200


async def test_an_answer_names_the_day_and_the_server(node: FakeNode) -> None:
    day = 1_700_000_000.25
    running = await start_server(node, host="127.0.0.1", port=0, unix=lambda: day)
    try:
        async with dialled_http(running.port) as raw:
            said = await raw.ask(request("GET", "/healthz"))
            assert said.headers["Date"] == "Tue, 14 Nov 2023 22:13:20 GMT"
            assert said.headers["Server"] == "fencekv"
    finally:
        await running.close()


async def test_a_client_that_has_said_all_still_gets_its_answers(raw: Raw, partition: FakePartition) -> None:
    event = asyncio.Event()
    partition.script = [event]
    raw.send(request("PUT", KEY, b"1"), request("GET", KEY))
    raw.writer.write_eof()
    while not partition.calls:
        await asyncio.sleep(0)
    event.set()
    assert (await raw.answer()).status == 200
    assert (await raw.answer()).body == b"1"
    assert await raw.read() is None


async def test_a_client_that_goes_away_in_a_write_changes_nothing_about_it(
    shard: Running, partition: FakePartition
) -> None:
    event = asyncio.Event()
    partition.script = [event]
    async with dialled_http(shard.port) as raw:
        raw.send(request("PUT", KEY, b"1"))
        while not partition.calls:
            await asyncio.sleep(0)
        raw.break_off()
    while shard.frames.http_connections:
        await asyncio.sleep(0)
    event.set()
    while not partition.state:
        await asyncio.sleep(0)
    assert list(partition.state) == ["k"]
    async with dialled_http(shard.port) as other:
        text = (await other.ask(request("GET", "/metrics"))).body.decode()
        assert 'fencekv_requests_total{outcome="ok",route="put"} 1' in text
    assert shard.frames.exchange.held_bytes == 0


async def test_a_client_that_goes_away_in_a_write_that_waits_changes_nothing_about_it(
    shard: Running, partition: FakePartition
) -> None:
    event = asyncio.Event()
    partition.script = [not_owner(), event]  # it lost its ownership a moment ago, and has it again
    async with dialled_http(shard.port) as raw:
        raw.send(request("PUT", KEY, b"1"))
        while len(partition.calls) < 2:
            await asyncio.sleep(0)
        raw.break_off()
    while shard.frames.http_connections:
        await asyncio.sleep(0)
    event.set()
    while not partition.state:
        await asyncio.sleep(0)
    assert list(partition.state) == ["k"]


async def test_nobody_answers_a_read_whose_client_has_gone(shard: Running, partition: FakePartition) -> None:
    partition.script = [asyncio.Event()]
    async with dialled_http(shard.port) as raw:
        raw.send(request("GET", KEY))
        while not partition.calls:
            await asyncio.sleep(0)
        raw.break_off()
    while shard.frames.http_connections or shard.frames.exchange._tasks:
        await asyncio.sleep(0)
    assert len(partition.calls) == 1
    assert shard.frames.exchange.held_bytes == 0


async def test_a_client_that_breaks_off_in_a_body_leaves_nothing(shard: Running, node: FakeNode) -> None:
    async with dialled_http(shard.port) as raw:
        raw.send(HEAD, b"Content-Length: 100000\r\n\r\n", b"x" * 50_000)
        while shard.frames.exchange.held_bytes < 50_000:
            await asyncio.sleep(0)
    while shard.frames.http_connections:
        await asyncio.sleep(0)
    assert shard.frames.exchange.held_bytes == 0
    assert node.calls == []


async def test_a_refusal_reaches_a_client_that_goes_on_sending(raw: Raw) -> None:
    raw.send(HEAD, b"Content-Length: 10000000\r\n\r\n", b"x" * MIB)
    refused = await raw.answer()
    assert (refused.status, refused.headers["Connection"]) == (413, "close")
    for _ in range(3):
        raw.send(b"x" * MIB)
        await raw.writer.drain()
    assert await raw.read() is None


async def test_a_refused_body_that_came_with_its_head_ends_no_connection(raw: Raw) -> None:
    raw.send(
        request("GET", KEY, b"body"), request("PUT", "/nowhere", b"body"), request("GET", "/healthz", b"body")
    )
    said = [await raw.answer() for _ in range(3)]
    assert [one.status for one in said] == [400, 404, 200]
    assert (await raw.ask(request("GET", "/healthz"))).status == 200


async def test_closing_answers_what_is_under_way_and_ends_the_rest(
    shard: Running, raw: Raw, partition: FakePartition
) -> None:
    event = asyncio.Event()
    partition.script = [event]
    async with dialled_http(shard.port) as idle:
        assert (await idle.ask(request("GET", "/healthz"))).status == 200
        raw.send(request("PUT", KEY, b"1"), BEHIND)
        while not partition.calls:
            await asyncio.sleep(0)
        closing = asyncio.ensure_future(shard.close())
        assert await idle.read() is None
        event.set()
        assert (await raw.answer()).headers["Connection"] == "close"
        assert await raw.read() is None
        raw.writer.close()
        await closing
    assert list(partition.state) == ["k"]
