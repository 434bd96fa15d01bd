"""The load generator against servers of a few lines."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from bench.connection import HEAD_BYTES_MAX, Unreadable, whole_answer
from bench.loader import Job, run
from bench.requests import VALUE_BYTES, build
from bench.responder import ANSWER, responder


def job(port: int, **changed: float) -> Job:
    told = {"clients": 3, "warmup_seconds": 0.02, "seconds": 0.15, "seed": 1, **changed}
    return Job(kind="fencekv", host="127.0.0.1", port=port, **told)  # type: ignore[arg-type]


def size(port: int) -> int:
    return len(build("fencekv", host=f"127.0.0.1:{port}", seed=1, keys=1)[0])


@asynccontextmanager
async def answering(*parts: bytes, close: bool = False) -> AsyncIterator[int]:
    """Answers each read with these parts, in writes of their own."""

    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        while await reader.read(65536):
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.001)
            if close:
                break
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()
        await asyncio.gather(*serving, return_exceptions=True)


def test_an_answer_is_whole_only_with_its_last_byte() -> None:
    assert whole_answer(ANSWER) == (200, len(ANSWER))
    assert all(whole_answer(ANSWER[:end]) is None for end in range(len(ANSWER)))


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"SMTP ready\r\nContent-Length: 0\r\n\r\n",
        b"x" * (HEAD_BYTES_MAX + 1),
    ],
)
def test_what_cannot_be_read_is_refused(data: bytes) -> None:
    with pytest.raises(Unreadable):
        whole_answer(data)


def test_both_systems_get_the_same_keys_and_values() -> None:
    ours = build("fencekv", host="h", seed=5, keys=50)
    theirs = build("etcd", host="h", seed=5, keys=50)
    for one, other in zip(ours, theirs, strict=True):
        head, _, value = one.partition(b"\r\n\r\n")
        document = json.loads(other.partition(b"\r\n\r\n")[2])
        assert len(value) == VALUE_BYTES
        assert base64.b64decode(document["value"]) == value
        assert head.split(b" ")[1].endswith(b"/keys/" + base64.b64decode(document["key"]))
    assert len({len(request) for request in ours}) == len({len(request) for request in theirs}) == 1
    assert len(set(ours)) == 50


async def test_what_is_answered_in_the_window_is_counted() -> None:
    async with responder(size) as port:
        load = await run(job(port))
    assert len(load.latencies_us) > 10
    assert all(0 < latency < 150_000 for latency in load.latencies_us)
    assert load.errors == {}


async def test_an_answer_in_pieces_is_one_put() -> None:
    async with answering(ANSWER[:10], ANSWER[10:60], ANSWER[60:]) as port:
        load = await run(job(port))
    assert load.latencies_us
    assert min(load.latencies_us) > 1000  # the pause between the pieces is in it
    assert load.errors == {}


async def test_a_refusal_is_an_error_and_no_put() -> None:
    async with answering(ANSWER.replace(b"200 OK", b"503 No")) as port:
        load = await run(job(port))
    assert load.latencies_us == []
    assert load.errors["503"] > 3


@pytest.mark.parametrize("answer", [b"", b"what?", ANSWER + b"more"])
async def test_a_broken_connection_is_an_error_and_ends(answer: bytes) -> None:
    async with answering(answer, close=True) as port:
        load = await run(job(port))
    assert load.latencies_us == []
    assert load.errors == {"0": 3}
