"""Clients that are slow, silent, many or greedy: they end or wait, and others are served."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections.abc import Iterator

import pytest
from fake_node import FakePartition, later
from frame_asker import HELLO, connected, dialled

from fencekv import frames
from fencekv import messages as m
from fencekv.token import Version
from fencekv_shard.frame_exchange import HELD_BYTES_MAX, READ_BYTES_MAX, UNSENT_BYTES_MAX, Exchange
from fencekv_shard.server import Running
from fencekv_shard.transaction import Record

MIB = 1 << 20


def gets(first: int, count: int) -> list[m.ClientMessage]:
    return [m.Get(n, "orders", None, "k") for n in range(first, first + count)]


async def test_nothing_is_read_from_who_does_not_read_its_answers_and_others_are_served(
    shard: Running, partition: FakePartition
) -> None:
    partition.state["k"] = Record(b"x" * MIB, Version(1, 0))
    async with connected(shard.port) as slow, connected(shard.port) as other:
        slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
        slow.send(*gets(1, 200))
        before = -1
        while len(partition.calls) != before:  # until it has stopped reading
            before = len(partition.calls)
            for _ in range(20):
                assert isinstance(await other.put("o"), m.Written)
            before += 20
        served = sum(call[0] == "read" for call in partition.calls)
        assert served < 20  # what lies in the sockets, and not 200 MiB
        slow.writer.transport.resume_reading()  # type: ignore[attr-defined]
        for number in range(1, 201):
            assert (await slow.read()).number == number


async def test_reads_that_have_to_wait_are_begun_as_their_answers_have_room(
    shard: Running, partition: FakePartition
) -> None:
    event = asyncio.Event()
    partition.script = [event] * 100
    async with connected(shard.port) as ask:
        lists = [m.List(n, "orders", None, "", "", 0, "", None) for n in range(1, 101)]
        ask.send(*lists, m.Put(101, "orders", None, "k", b"v", None), m.Ping(1))
        assert await ask.read() == m.Pong(1)
        partition.script = [event] * 200
        for _ in range(3):
            await asyncio.sleep(0)
        begun = sum(call[0] == "scan" for call in partition.calls)
        assert begun == READ_BYTES_MAX // (8 * MIB)
        event.set()
        assert sorted([(await ask.read()).number for _ in range(101)]) == list(range(1, 102))


@pytest.mark.parametrize("sent", [b"\0", frames.encode(HELLO)[:-1]])
async def test_who_does_not_open_in_time_is_told_so(shard: Running, sent: bytes) -> None:
    async with dialled(shard.port) as ask, connected(shard.port) as other:
        ask.writer.write(sent)
        await other.put("k")
        later(shard, 4)
        await other.put("k")
        later(shard, 6)
        assert await ask.read() == m.Goodbye("opening: not within 5 s")
        assert await ask.read() is None
        assert isinstance(await other.put("k"), m.Written)


async def test_who_says_nothing_at_all_is_closed(shard: Running) -> None:
    async with dialled(shard.port) as ask, connected(shard.port) as other:
        await other.put("k")
        later(shard, 74)
        await other.put("k")
        later(shard, 76)
        assert await ask.read() is None


async def test_idle_connections_are_closed_and_those_that_wait_for_an_answer_are_not(
    shard: Running, partition: FakePartition
) -> None:
    event = asyncio.Event()
    async with connected(shard.port) as idle, connected(shard.port) as waits:
        await idle.put("k")
        partition.script = [event]
        waits.send(m.Put(1, "orders", None, "k", b"v", None), m.Ping(1))
        await waits.read()
        later(shard, 299)
        idle.send(m.Ping(2))
        assert await idle.read() == m.Pong(2)
        later(shard, 301)
        assert await idle.read() == m.Goodbye("idle for 300 s", 1)
        event.set()
        assert isinstance(await waits.read(), m.Written)


async def test_a_frame_that_does_not_arrive_whole_ends_its_connection(shard: Running) -> None:
    async with connected(shard.port) as ask, connected(shard.port) as other:
        ask.writer.write(b"\x00\x00\x10\x00 and no more")
        await other.put("k")
        later(shard, 29)
        await other.put("k")
        later(shard, 31)
        assert await ask.read() == m.Goodbye("frame: not whole within 30 s", 0)


async def test_who_takes_nothing_of_what_waits_for_it_is_broken_off(
    shard: Running, partition: FakePartition
) -> None:
    partition.state["k"] = Record(b"x" * MIB, Version(1, 0))
    async with connected(shard.port) as slow, connected(shard.port) as other:
        slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
        slow.send(*gets(1, 50))
        while sum(call[0] == "read" for call in partition.calls) < 3:
            await other.put("o")
        for _ in range(20):
            await other.put("o")
        later(shard, 1)
        later(shard, 59)
        assert len(shard.frames.connections) == 2
        later(shard, 62)
        await other.put("o")
        assert len(shard.frames.connections) == 1


async def test_a_client_that_does_not_close_after_the_goodbye_is_closed(shard: Running) -> None:
    async with connected(shard.port) as ask, connected(shard.port) as other:
        shard_side = next(iter(shard.frames.connections))
        shard_side.leave("go")
        assert await ask.read() == m.Goodbye("go", 0)
        assert await ask.read() is None
        later(shard, 3)
        await other.put("k")
        assert list(shard.frames.connections) != []
        assert shard_side not in shard.frames.connections


@pytest.fixture(name="many_files")
def allow_many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(4096, hard)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
async def test_a_thousand_idle_sockets_and_a_sender_of_single_bytes_leave_others_served(shard: Running) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(500):
            await stack.enter_async_context(dialled(shard.port))
        for _ in range(500):
            await stack.enter_async_context(connected(shard.port))
        trickle = await stack.enter_async_context(connected(shard.port))
        ask = await stack.enter_async_context(connected(shard.port))
        frame = frames.encode(m.Put(1, "orders", None, "slowly", b"v", None))
        trickle.operations[1] = m.PUT
        for at in range(len(frame)):
            trickle.writer.write(frame[at : at + 1])
            assert isinstance(await ask.put("k"), m.Written)
        assert (await trickle.read()).number == 1


async def test_more_than_a_shard_may_hold_is_exhausted_and_free_again(
    shard: Running, partition: FakePartition
) -> None:
    assert HELD_BYTES_MAX == 256 * MIB
    exchange = shard.frames.exchange
    event = asyncio.Event()
    async with connected(shard.port) as ask, connected(shard.port) as other:
        with filled(exchange):
            assert (await ask.put("k")).name == "Exhausted"
            other.writer.write((UNSENT_BYTES_MAX).to_bytes(4, "big") + b"x" * 100_000)
            goodbye = await other.read()
            assert goodbye.reason.startswith("this shard holds too many requests")
        partition.script = [event]
        ask.send(m.Put(ask.next(), "orders", None, "k", b"x" * 1000, None), m.Ping(1))
        await ask.read()
        assert exchange.held_bytes > 1000
        event.set()
        assert isinstance(await ask.read(), m.Written)
        assert exchange.held_bytes == 0


@contextlib.contextmanager
def filled(exchange: Exchange) -> Iterator[None]:
    """As if others had sent as much as the shard takes."""
    exchange.held_bytes += HELD_BYTES_MAX + 1
    try:
        yield
    finally:
        exchange.held_bytes -= HELD_BYTES_MAX + 1


async def test_a_client_of_many_connections_gets_each_answer_where_it_asked(shard: Running) -> None:
    async def one(name: str) -> None:
        async with connected(shard.port) as ask:
            for n in range(20):
                await ask.put(f"{name}-{n}", name.encode())
                assert (await ask.get(f"{name}-{n}")).value == name.encode()

    await asyncio.gather(*(one(f"c{n}") for n in range(20)))
