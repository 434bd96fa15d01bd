"""The load generator: against its own stubs, and against the SDK's strict codec."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from bench.generator import Generator, Job, Load, build

from fencekv import messages
from fencekv.frame_reader import read_message
from fencekv.frames import Splitter, encode
from fencekv.token import Token, Version

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("go") is None, reason="the load generator is built with Go"),
]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def generator() -> Generator:
    return asyncio.run(build(ROOT / ".cache" / "bench"))


def job(loader: str, address: str, **changes: object) -> Job:
    given: dict[str, object] = {"op": "put", "clients": 4, "warmup_seconds": 0.05, "seconds": 0.2, "keys": 50}
    return Job(loader=loader, address=address, **{**given, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("loader", "depth"),
    [
        ("frames", 1),
        ("frames", 16),
        ("http", 1),
        ("gateway", 1),
        ("redis", 1),
        ("redis", 16),
        ("etcd", 1),
        ("etcd", 4),
    ],
)
@pytest.mark.parametrize("op", ["put", "get"])
async def test_it_drives_its_own_stub(generator: Generator, loader: str, depth: int, op: str) -> None:
    async with generator.stub(loader) as (address, _):
        found = await generator.run(job(loader, address, depth=depth, op=op))
    assert not found.errors
    assert found.operations > 100
    assert found.operations == sum(found.by_second)
    assert 0 < found.latency_ms["p50"] <= found.latency_ms["p99"] <= found.latency_ms["max"] < 2000


async def test_tasks_of_aiohttp_put_into_the_gateway(generator: Generator) -> None:
    async with generator.stub("gateway") as (address, _):
        found = await generator.run(job("aiohttp", address))
    assert not found.errors
    assert found.operations > 10
    assert found.per_second == pytest.approx(found.operations / found.seconds)


async def test_a_server_that_is_not_there_is_told(generator: Generator) -> None:
    async with generator.stub("redis") as (address, _):
        pass
    with pytest.raises(Exception, match="connection refused"):
        await generator.run(job("redis", address))


class Shard(asyncio.Protocol):
    """Reads with the SDK's codec, which refuses all that docs/frames.md does not allow."""

    def __init__(self, seen: list[messages.ClientMessage], answer: Callable[..., object]) -> None:
        self._splitter, self._seen, self._answer = Splitter(), seen, answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        for body in self._splitter.feed(data):
            message = read_message(body)
            self._seen.append(message)
            if isinstance(message, messages.Hello):
                self._transport.write(encode(messages.Welcome(1, "sample-0", messages.Limits())))
            else:
                self._transport.write(encode(self._answer(message)))  # type: ignore[arg-type]


async def against(
    generator: Generator, answer: Callable[..., object], **changes: object
) -> tuple[Load, list[messages.ClientMessage]]:
    seen: list[messages.ClientMessage] = []
    server = await asyncio.get_running_loop().create_server(lambda: Shard(seen, answer), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        found = await generator.run(job("frames", f"127.0.0.1:{port}", **changes))
    return found, seen


async def test_its_frames_are_those_of_the_page(generator: Generator) -> None:
    def written(put: messages.Put) -> messages.Written:
        return messages.Written(put.number, "bench-0", Token(1, 2), 1, Version(1, 70_000), 0)

    found, seen = await against(generator, written, depth=3)
    assert not found.errors
    puts = [message for message in seen if isinstance(message, messages.Put)]
    assert len(puts) >= found.operations > 0
    assert {(put.table, put.options, put.condition, len(put.value)) for put in puts} == {
        ("bench", None, None, 256)
    }
    assert {put.key for put in puts} <= {f"bench-{number:08d}" for number in range(50)}
    assert len({put.value for put in puts}) > 10
    # Numbers pass the places where CBOR's integers grow.
    assert max(put.number for put in puts) > 255


async def test_a_fill_puts_every_key_once(generator: Generator) -> None:
    def committed(txn: messages.Txn) -> messages.Committed:
        results = tuple((0,) for _ in txn.then)
        return messages.Committed(txn.number, "bench-0", Token(1, 2), 1, True, results, Version(1, 3), 0)

    found, seen = await against(generator, committed, op="fill", keys=2500, batch=1000)
    keys = Counter(
        put.key
        for message in seen
        if isinstance(message, messages.Txn)
        for put in message.then  # type: ignore[union-attr]
    )
    assert keys == Counter(f"bench-{number:08d}" for number in range(2500))
    assert found.operations == 2500


async def test_refusals_are_errors_by_name_and_no_puts(generator: Generator) -> None:
    def refused(put: messages.Put) -> messages.Refusal:
        return messages.Refusal(put.number, "Exhausted", 429, "full", "bench-0", None, 1, {})

    found, _ = await against(generator, refused)
    assert found.operations == 0
    assert set(found.errors) == {"Exhausted"}


async def test_a_value_that_was_not_put_is_an_error(generator: Generator) -> None:
    def got(get: messages.Get) -> messages.Got:
        return messages.Got(get.number, "bench-0", Token(1, 2), 1, b"short", Version(1, 3))

    found, _ = await against(generator, got, op="get")
    assert found.operations == 0
    assert set(found.errors) == {"a value of 5 bytes"}
