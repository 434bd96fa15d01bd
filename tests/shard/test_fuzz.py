"""Bent frames, CBOR bodies and HTTP requests against a shard's real listener.

`FUZZ=n` says how many cases; each is made from SEED and its number, so that a failure names what to look at.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import random
import re
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from fake_node import FakeNode, FakePartition, serving
from frame_asker import HELLO
from mutation import CBOR_PIECES, HTTP_PIECES, mutate

from fencekv import codec, frames
from fencekv import messages as m
from fencekv import operations as op
from fencekv.frame_reader import read_answer
from fencekv.partitioning import HashPartitioning
from fencekv.token import Token, Version

CASES = int(os.environ.get("FUZZ", "3000"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
AT_ONCE = 16
FOUR = HashPartitioning(4)
BATCHES = 8
QUIET_SECONDS = 0.25  # a shard that has said nothing for so long waits for the rest of the request
BLOCKS_MAX = 20_000  # that may be allocated beyond those after the first batches

OPTIONS = (
    None,
    m.Options(consistency=1, min_token=Token(1, 0), epoch=1),
    m.Options(durability=1, idempotency_key="i", epoch=0),
)
REQUESTS: tuple[Callable[[m.Options | None], m.ClientMessage], ...] = (
    lambda o: m.Get(3, "orders", o, "key"),
    lambda o: m.Put(3, "orders", o, "key", b"value", None),
    lambda o: m.Put(3, "orders", o, "{a}/key", b"\x00" * 300, Version(1, 2)),
    lambda o: m.Put(3, "wide", o, "key", b"", True),
    lambda o: m.Delete(3, "orders", o, "key", None),
    lambda o: m.Txn(
        3,
        "orders",
        o,
        [op.exists("key", False), op.at_version("key", Version(1, 1), "<"), op.has_value("key", b"v", "!=")],
        [op.Put("key", b"v"), op.Delete("other"), op.Get("key")],
        [op.Get("key")],
    ),
    lambda o: m.List(3, "wide", o, "a", "z", 10, "", None),
    lambda o: m.List(3, "orders", o, "", "", 0, "", 0),
    lambda o: m.History(3, "orders", o, "key", 10, ""),
    lambda o: m.Route(3, "wide", o, None),
    lambda o: m.Cancel(9),
    lambda o: m.Ping(9),
    lambda o: m.Goodbye("done"),
    lambda o: HELLO,
)
DOCUMENT = {
    "compare": [{"key": "key", "target": "exists", "op": "==", "exists": False}],
    "then": [{"put": {"key": "key", "value": b"v"}}, {"get": {"key": "key"}}, {"delete": {"key": "other"}}],
    "else": [{"get": {"key": "key"}}],
}
HTTP = (
    b"GET /v1/sample/orders/keys/key HTTP/1.1\r\nHost: a\r\nConnection: close\r\nFenceKV-Min-Token: 1.0\r\n\r\n",
    b"PUT /v1/sample/orders/keys/key HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 5\r\n\r\nvalue",
    b'PUT /v1/sample/wide/keys/a%2Fb HTTP/1.1\r\nHost: a\r\nConnection: close\r\nIf-Match: "1.2"\r\n'
    b"Idempotency-Key: i\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nvalue\r\n0\r\n\r\n",
    b"DELETE /v1/sample/orders/keys/key HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"GET /v1/sample/wide/keys?prefix=k&limit=5&start=a&end=z HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"GET /v1/sample/orders/history/key?limit=5 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"GET /v1/route/sample/wide?key=k HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"POST /v1/sample/orders/txn HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 50\r\n"
    b'Content-Type: application/json\r\n\r\n{"then":[{"put":{"key":"key","value":"v"}}]}      ',
)


@dataclass
class Told:
    """What the shard said over all cases."""

    written: set[tuple[str, str]] = field(default_factory=set)  # partitions and versions, of the last batch
    writes: int = 0
    answers: int = 0
    goodbyes: int = 0
    silent: int = 0
    wrong: list[str] = field(default_factory=list)

    def status(self, case: int, status: int, what: object) -> None:
        self.answers += 1
        if status >= 500:
            self.wrong.append(f"case {case}: {what!r:.300}")


def bent_frame(rng: random.Random) -> bytes:
    frame = frames.encode(rng.choice(REQUESTS)(rng.choice(OPTIONS)))
    if rng.randrange(8) == 0:
        return mutate(rng, frame, CBOR_PIECES)  # its length too
    body = mutate(rng, frame[4:], CBOR_PIECES)
    return len(body).to_bytes(4, "big") + body


def bent_body(rng: random.Random) -> bytes:
    body = mutate(rng, codec.encode(DOCUMENT), CBOR_PIECES)
    head = b"POST /v1/sample/orders/txn HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    return head + b"Content-Type: application/cbor\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def bent_http(rng: random.Random) -> bytes:
    return mutate(rng, rng.choice(HTTP), HTTP_PIECES) or b"\n"


async def said(port: int, data: bytes, *, end: bool) -> bytes:
    """All that the shard answers until it closes, or is quiet."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    heard = b""
    try:
        writer.write(data)
        if end:
            writer.write_eof()
        while True:
            async with asyncio.timeout(30 if end else QUIET_SECONDS):
                more = await reader.read(1 << 20)
            if not more:
                break
            heard += more
    except (TimeoutError, ConnectionError):
        assert not end, "the shard leaves a client without an end"
    finally:
        writer.transport.abort()
    return heard


def read_frames(case: int, heard: bytes, told: Told, sent: bytes) -> None:
    welcomed = False
    for body in frames.Splitter().feed(heard):
        items = codec.decode(body)
        if items[0] == 0:
            welcomed = welcomed or items[1] == m.PROTOCOL
            told.goodbyes += items[1] == "goodbye"
        elif items[1] == 1:
            message = read_answer(body, lambda _: m.GET)
            assert isinstance(message, m.Refusal)
            told.status(case, message.status, message)
        else:
            told.answers += 1
            if is_write(items):
                epoch, seq = items[-2]
                told.written.add((items[2], f"{epoch}.{seq}"))
    assert welcomed, (case, sent)


def is_write(items: list[Any]) -> bool:
    """Whether a success says that something was written: put, delete and txn end in a version and a durability."""
    put = len(items) == 7 and isinstance(items[5], list) and isinstance(items[6], int)
    delete = len(items) == 8 and isinstance(items[6], list)
    txn = len(items) == 9 and isinstance(items[5], bool) and isinstance(items[7], list)
    return put or delete or txn


def read_http(case: int, heard: bytes, told: Told) -> None:
    while heard:
        head, separator, rest = heard.partition(b"\r\n\r\n")
        status = re.match(rb"HTTP/\d\.\d (\d{3}) ", head)
        assert separator, (case, heard[:200])
        assert status is not None, (case, heard[:200])
        length = re.search(rb"(?im)^content-length: (\d+)", head)
        body, heard = (rest[: int(length[1])], rest[int(length[1]) :]) if length else (b"", rest)
        if status[1] == b"100":
            continue
        told.status(case, int(status[1]), body)
        kind = re.search(rb"(?im)^content-type: (\S+)", head)
        if status[1] == b"200" and kind is not None:
            documents = {b"application/json": json.loads, b"application/cbor": codec.decode}
            document = documents.get(kind[1], lambda _: {})(body)
            if document.get("version"):
                told.written.add((document["partition"], document["version"]))


async def one(case: int, port: int, told: Told) -> None:
    rng = random.Random(f"{SEED}/{case}")
    if case % 3 == 0:
        sent = bent_frame(rng)
        read_frames(case, await said(port, frames.encode(HELLO) + sent, end=True), told, sent)
        return
    heard = await said(port, bent_body(rng) if case % 3 == 1 else bent_http(rng), end=False)
    told.silent += not heard
    read_http(case, heard, told)


async def batch(cases: range, port: int, told: Told) -> None:
    waiting = iter(cases)

    async def worker() -> None:
        for case in waiting:
            await one(case, port, told)

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_bent_input_breaks_nothing_and_changes_nothing_that_is_not_answered_as_done(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    unforeseen: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unforeseen.append(context))
    node, told, blocks = FakeNode(), Told(), []
    node.add_table("orders")
    node.add_table("wide", partitioning=FOUR)
    async with serving(node) as [shard]:
        for number in range(BATCHES):
            cases = range(CASES * number // BATCHES, CASES * (number + 1) // BATCHES)
            await batch(cases, shard.port, told)
            while shard.frames.http_connections:  # each ends with its client
                await asyncio.sleep(0.001)
            assert told.written == forget(node)
            told.writes += len(told.written)
            told.written.clear()
            assert shard.frames.exchange.held_bytes == 0
            assert not shard.frames.connections
            gc.collect()
            blocks.append(sys.getallocatedblocks())
    assert not told.wrong, told.wrong[:5]
    assert not unforeseen, unforeseen[:3]
    assert [record.getMessage() for record in caplog.records] == []
    assert told.writes, told
    assert told.goodbyes, told
    assert told.silent < CASES / 4, told
    assert blocks[-1] - blocks[BATCHES // 2] < BLOCKS_MAX, blocks


def forget(node: FakeNode) -> set[tuple[str, str]]:
    """All that was written, partitions and versions; everything begins anew."""
    made: set[tuple[str, str]] = set()
    for key, replica in node.replicas.items():
        made |= {(replica.name, f"{replica.epoch}.{seq}") for seq in range(replica.seq + 1)}
        node.replicas[key] = FakePartition(replica.name)
        node.replicas[key].calls = deque(maxlen=10)  # type: ignore[assignment]
    return made
