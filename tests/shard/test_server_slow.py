"""HTTP connections that are slow, silent or greedy, or wait to be asked for a body; and that others are served."""

from __future__ import annotations

import asyncio

import pytest
from fake_node import FakeNode, FakePartition, later
from raw_http import Raw, dialled_http, others_are_served, request

from fencekv.token import Version
from fencekv_shard.frame_exchange import HELD_BYTES_MAX
from fencekv_shard.server import Running
from fencekv_shard.transaction import Record

KEY = "/v1/sample/orders/keys/k"
MIB = 1 << 20
HEAD = f"PUT {KEY} HTTP/1.1\r\nHost: a\r\n".encode()


# -- bodies that wait to be asked for


async def test_a_client_that_waits_is_told_to_send_its_body_once(raw: Raw, partition: FakePartition) -> None:
    raw.send(HEAD, b"Content-Length: 2\r\nExpect: 100-Continue\r\n\r\n")
    assert (await raw.answer()).line == "HTTP/1.1 100 Continue"
    raw.send(b"a")
    await asyncio.sleep(0)
    assert (await raw.ask(b"b")).status == 200
    assert partition.state["k"].value == b"ab"


async def test_a_client_is_not_told_to_send_what_would_be_refused(raw: Raw) -> None:
    said = await raw.ask(HEAD, b"Content-Length: 9999999\r\nExpect: 100-continue\r\n\r\n")
    assert said.status == 413
    assert await raw.read() is None


async def test_a_client_is_told_to_go_on_behind_the_answers_before(
    shard: Running, raw: Raw, partition: FakePartition
) -> None:
    event = asyncio.Event()
    partition.script = [event]
    raw.send(request("PUT", KEY, b"1"), HEAD, b"Content-Length: 1\r\nExpect: 100-continue\r\n\r\n")
    await others_are_served(shard.port)
    event.set()
    assert (await raw.answer()).status == 200
    assert (await raw.answer()).status == 100
    assert (await raw.ask(b"2")).document["version"] == "1.1"


async def test_a_client_of_http_1_0_is_never_told_to_go_on(shard: Running, raw: Raw) -> None:
    raw.send(HEAD.replace(b"1.1", b"1.0"), b"Content-Length: 1\r\nExpect: 100-continue\r\n\r\n")
    await others_are_served(shard.port)
    assert (await raw.ask(b"1")).status == 200


# -- slow, silent and greedy clients


async def test_an_idle_connection_is_closed_and_one_that_waits_for_its_answer_is_not(
    shard: Running, raw: Raw, partition: FakePartition
) -> None:
    event = asyncio.Event()
    async with dialled_http(shard.port) as waits:
        assert (await raw.ask(request("GET", "/healthz"))).status == 200
        partition.script = [event]
        waits.send(request("PUT", KEY, b"1"))
        while not partition.calls:
            await asyncio.sleep(0)
        later(shard, 74)
        assert (await raw.ask(request("GET", "/healthz"))).status == 200
        later(shard, 76)
        assert await raw.read() is None
        event.set()
        assert (await waits.answer()).status == 200


@pytest.mark.parametrize(
    ("sent", "what"), [(b"GET /heal", "request"), (HEAD + b"Content-Length: 9\r\n\r\nhalf", "body")]
)
async def test_a_request_that_does_not_arrive_whole_is_refused_in_time(
    shard: Running, node: FakeNode, raw: Raw, sent: bytes, what: str
) -> None:
    raw.send(sent)
    await others_are_served(shard.port)
    later(shard, 29)
    raw.send(sent[-1:])
    await others_are_served(shard.port)
    later(shard, 31)
    refused = await raw.answer()
    assert (refused.status, refused.document["field"], refused.document["limit"]) == (400, what, 30.0)
    assert refused.document["detail"] == f"{what}: not whole within 30 s"
    assert await raw.read() is None
    assert node.calls == []


async def test_waiting_for_an_earlier_answer_is_not_held_against_the_client(
    shard: Running, raw: Raw, partition: FakePartition
) -> None:
    event = asyncio.Event()
    partition.script = [event]
    raw.send(request("PUT", KEY, b"1"), HEAD, b"Content-Length: 2\r\n\r\na")
    await others_are_served(shard.port)
    later(shard, 40)
    event.set()
    assert (await raw.answer()).status == 200
    assert (await raw.ask(b"b")).document["version"] == "1.1"


async def test_each_request_has_its_own_time_to_arrive(shard: Running, raw: Raw) -> None:
    first = request("GET", "/healthz")
    raw.send(first[:5])
    await others_are_served(shard.port)
    [connection] = [one for one in shard.frames.http_connections if one._reader.partial]
    assert connection._partial_since is not None
    connection._partial_since -= 40
    raw.send(first[5:], first[:5])
    assert (await raw.answer()).status == 200
    later(shard, 0)
    assert (await raw.ask(first[5:])).status == 200


async def test_nothing_is_read_behind_a_request_that_takes_its_time(
    shard: Running, raw: Raw, partition: FakePartition
) -> None:
    event = asyncio.Event()
    partition.script = [event]
    raw.send(request("PUT", KEY, b"1"))
    await others_are_served(shard.port)
    raw.send(request("PUT", KEY, b"x" * MIB) * 20)
    for _ in range(20):
        await others_are_served(shard.port)
    assert shard.frames.exchange.held_bytes < MIB
    event.set()
    for _ in range(21):
        assert (await raw.answer()).status == 200


async def test_nothing_is_begun_for_who_does_not_read_its_answers_and_others_are_served(
    shard: Running, raw: Raw, partition: FakePartition
) -> None:
    partition.state["k"] = Record(b"x" * MIB, Version(1, 0))
    raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
    raw.send(request("GET", KEY) * 200)
    before = -1
    while len(partition.calls) != before:  # until it has stopped
        before = len(partition.calls)
        for _ in range(10):
            await others_are_served(shard.port)
    assert 0 < len(partition.calls) < 20  # what lies in the sockets, and not 200 MiB
    raw.writer.transport.resume_reading()  # type: ignore[attr-defined]
    for _ in range(200):
        assert len((await raw.answer()).body) == MIB


async def test_who_takes_nothing_of_its_answers_is_broken_off(
    shard: Running, raw: Raw, partition: FakePartition
) -> None:
    partition.state["k"] = Record(b"x" * MIB, Version(1, 0))
    raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
    raw.send(request("GET", KEY) * 50)
    while len(partition.calls) < 3:
        await others_are_served(shard.port)
    for _ in range(10):
        await others_are_served(shard.port)
    later(shard, 1)
    later(shard, 59)
    assert shard.frames.http_connections
    later(shard, 62)
    while shard.frames.http_connections:
        await asyncio.sleep(0)


async def test_more_than_a_shard_may_hold_is_exhausted_and_free_again(
    shard: Running, raw: Raw, node: FakeNode, partition: FakePartition
) -> None:
    exchange = shard.frames.exchange
    exchange.held_bytes += HELD_BYTES_MAX + 1
    full = await raw.ask(request("PUT", KEY, b"1"))
    assert (full.status, full.headers["Retry-After"]) == (429, "1")
    assert (await raw.ask(request("GET", "/healthz"))).status == 200
    raw.send(HEAD, b"Content-Length: 1000000\r\n\r\n", b"x" * 100_000)
    assert (await raw.answer()).status == 429
    assert await raw.read() is None
    assert node.calls == []
    exchange.held_bytes -= HELD_BYTES_MAX + 1
    event = asyncio.Event()
    partition.script = [event]
    async with dialled_http(shard.port) as other:
        other.send(request("PUT", KEY, b"x" * 1000), request("PUT", KEY, b"y" * 500))
        while exchange.held_bytes < 1000:
            await asyncio.sleep(0)
        event.set()
        assert (await other.answer()).status == 200
        assert (await other.answer()).status == 200
    assert exchange.held_bytes == 0
