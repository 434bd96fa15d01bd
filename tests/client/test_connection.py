"""One connection of frames: numbers, bounds, cancellation, goodbyes, and what a broken one leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fake_frames import FakeFrames
from scripted_shard import closed_port

from fencekv import frames
from fencekv import messages as m
from fencekv.caller import Settings
from fencekv.client import FenceKV
from fencekv.connection import Connection, Waiting, dial
from fencekv.errors import Exhausted, Invalid, TooLarge, Unavailable, Unknown
from fencekv.frame_transport import FrameTransport
from fencekv.operations import Put
from fencekv.sending import Broken, Refused
from fencekv.token import Token, Version

HELLO = m.Hello((m.VERSION,), "sample", "test")


@pytest.fixture(name="shard")
async def make_shard() -> AsyncIterator[FakeFrames]:
    async with FakeFrames().running() as shard:
        yield shard


@pytest.fixture(name="connection")
async def connect(shard: FakeFrames) -> AsyncIterator[Connection]:
    connection = await dial(shard.address, HELLO)
    yield connection
    await connection.close()


def put(connection: Connection, key: str = "k", value: bytes = b"v") -> Waiting:
    return connection.send(m.PUT, lambda number, options: m.Put(number, "orders", options, key, value, None), None)


def written(number: int) -> m.Written:
    return m.Written(number, "orders-0", Token(1, number), 1, Version(1, number), 0)


async def test_answers_come_in_any_order(shard: FakeFrames, connection: Connection) -> None:
    waiting = [put(connection) for _ in range(3)]
    requests = await shard.took(3)
    assert [request.number for request in requests] == [1, 2, 3]
    for number in (2, 3, 1):
        shard.say(written(number))
    answers = [await one.future for one in waiting]
    assert [answer.number for answer in answers] == [1, 2, 3]
    assert list(connection.under_way()) == []


async def test_what_is_sent_in_one_turn_goes_out_together(shard: FakeFrames, connection: Connection) -> None:
    for _ in range(20):
        put(connection)
    await shard.took(20)
    assert shard.pieces == 2  # the hello, and all requests


async def test_no_more_is_under_way_than_the_shard_takes(shard: FakeFrames) -> None:
    shard.welcome = m.Welcome(m.VERSION, "sample-0", m.Limits(in_flight=2))
    connection = await dial(shard.address, HELLO)
    put(connection), put(connection)
    assert not connection.free
    waiting = [asyncio.ensure_future(connection.room()) for _ in range(2)]
    await shard.took(2)
    assert not any(task.done() for task in waiting)
    shard.say(written(1))
    done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=5)
    assert len(done) == 1  # one place, one turn
    assert connection.free
    await connection.close()
    await asyncio.wait_for(asyncio.gather(*waiting), 5)
    assert not connection.open


async def test_a_turn_that_was_given_up_goes_to_the_next(shard: FakeFrames) -> None:
    shard.welcome = m.Welcome(m.VERSION, "sample-0", m.Limits(in_flight=1))
    connection = await dial(shard.address, HELLO)
    put(connection)
    first, second = (asyncio.ensure_future(connection.room()) for _ in range(2))
    await shard.took(1)
    shard.say(written(1))
    while list(connection.under_way()):
        await asyncio.sleep(0)
    assert not connection.free  # the place is the first one's, who has not gone on yet
    first.cancel()
    await asyncio.wait_for(second, 5)
    assert first.cancelled()
    await connection.close()


async def test_a_request_that_is_given_up_makes_room(shard: FakeFrames) -> None:
    shard.welcome = m.Welcome(m.VERSION, "sample-0", m.Limits(in_flight=1))
    connection = await dial(shard.address, HELLO)
    waiting, room = put(connection), asyncio.ensure_future(connection.room())
    await shard.took(1)
    waiting.give_up(Broken("late"))
    with pytest.raises(Broken):
        await waiting.future
    await asyncio.wait_for(room, 5)
    await connection.close()


async def test_a_turn_that_was_not_used_goes_to_the_next(shard: FakeFrames) -> None:
    shard.welcome = m.Welcome(m.VERSION, "sample-0", m.Limits(in_flight=1))
    connection = await dial(shard.address, HELLO)
    put(connection)
    first, second = (asyncio.ensure_future(connection.room()) for _ in range(2))
    await shard.took(1)
    shard.say(written(1))
    await asyncio.wait_for(first, 5)
    with pytest.raises(Invalid):
        put(connection, key="\ud800")
    await asyncio.wait_for(second, 5)
    await connection.close()


async def test_nobody_passes_those_that_wait_for_a_place(shard: FakeFrames) -> None:
    shard.welcome = m.Welcome(m.VERSION, "sample-0", m.Limits(in_flight=2))
    connection = await dial(shard.address, HELLO)
    put(connection), put(connection)
    order: list[int] = []

    async def one(turn: int) -> None:
        await connection.room()
        put(connection)
        order.append(turn)

    waiting = [asyncio.ensure_future(one(turn)) for turn in range(6)]
    passed = 0
    for number in range(1, 7):
        await shard.took(number)
        shard.say(written(number))
        while any(under_way.number == number for under_way in connection.under_way()):
            await asyncio.sleep(0)
        passed += connection.free  # as a request that comes just now would find it
    await asyncio.wait_for(asyncio.gather(*waiting), 5)
    assert (order, passed) == ([0, 1, 2, 3, 4, 5], 0)
    await connection.close()


async def test_what_waits_for_a_place_is_bounded(shard: FakeFrames, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fencekv.connection.ROOM_WAITING_MAX", 3)
    shard.welcome = m.Welcome(m.VERSION, "sample-0", m.Limits(in_flight=1))
    connection = await dial(shard.address, HELLO)
    put(connection)
    waiting = [asyncio.ensure_future(connection.room()) for _ in range(3)]
    await shard.took(1)
    with pytest.raises(Exhausted, match="3 requests wait"):
        await connection.room()
    waiting.pop(1).cancel()
    await asyncio.sleep(0)
    waiting.append(asyncio.ensure_future(connection.room()))  # in the place of the one that was given up
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    await connection.close()
    await asyncio.wait_for(asyncio.gather(*waiting), 5)


async def test_a_full_socket_holds_requests_back(shard: FakeFrames, connection: Connection) -> None:
    shard.stop_reading()
    sent = 0
    while connection.free and sent < 500:
        put(connection, value=bytes(1 << 20))
        sent += 1
        await asyncio.sleep(0)
    assert sent < 100
    shard.go_on_reading()
    await asyncio.wait_for(connection.room(), 10)
    assert connection.free


async def test_a_request_that_is_given_up_is_cancelled_at_the_shard(
    shard: FakeFrames, connection: Connection
) -> None:
    waiting = put(connection)
    await shard.took(1)
    waiting.give_up(Broken("late"))
    with pytest.raises(Broken, match="late"):
        await waiting.future
    assert await shard.next_of(m.Cancel) == m.Cancel(1)
    shard.say(written(1))  # it was on its way already
    other = put(connection)
    await shard.took(2)
    shard.say(written(2))
    assert await other.future == written(2)


async def test_a_drain_tells_what_was_not_started(shard: FakeFrames, connection: Connection) -> None:
    waiting = [put(connection) for _ in range(3)]
    await shard.took(3)
    shard.say(m.Goodbye("drain", 2))
    shard.say(written(1))
    assert await waiting[0].future == written(1)
    with pytest.raises(Refused, match="drain"):
        await waiting[2].future
    assert not connection.open
    shard.hang_up()
    with pytest.raises(Broken):
        await waiting[1].future
    await asyncio.wait_for(asyncio.shield(connection.ended), 5)


async def test_a_drained_connection_ends_with_its_last_answer(shard: FakeFrames, connection: Connection) -> None:
    waiting = put(connection)
    await shard.took(1)
    shard.say(m.Goodbye("drain", 1))
    shard.say(written(1))
    assert await waiting.future == written(1)
    await asyncio.wait_for(asyncio.shield(connection.ended), 5)


@pytest.mark.parametrize("how", ["hang up", "goodbye", "nonsense", "stranger"])
async def test_a_connection_that_ends_leaves_what_was_under_way_open(
    shard: FakeFrames, connection: Connection, how: str
) -> None:
    waiting = put(connection)
    await shard.took(1)
    if how == "hang up":
        shard.hang_up()
    else:
        said = {
            "goodbye": frames.encode(m.Goodbye("frame: malformed")),
            "nonsense": b"HTTP/1.1 400 Bad Request\r\n\r\n",
            "stranger": frames.encode(m.Welcome(m.VERSION, "again", m.Limits())),
        }
        shard.say_bytes(said[how])
    with pytest.raises(Broken):
        await waiting.future
    await asyncio.wait_for(asyncio.shield(connection.ended), 5)


@pytest.mark.parametrize("first", [m.Goodbye("full"), m.Welcome(2, "sample-0", m.Limits()), None], ids=str)
async def test_a_shard_that_does_not_want_us_has_done_nothing(first: Any) -> None:
    shard = FakeFrames()
    shard.welcome = first
    async with shard.running():
        with pytest.raises(Refused):
            await dial(shard.address, HELLO)


async def test_a_port_at_which_nobody_listens_is_told_at_once() -> None:
    async with asyncio.timeout(0.5):
        with pytest.raises(Refused):
            await dial(f"127.0.0.1:{closed_port()}", HELLO)


async def test_a_shard_that_does_not_say_welcome_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fencekv.connection.CONNECT_SECONDS", 0.1)
    shard = FakeFrames()
    shard.silent = True
    async with shard.running():
        with pytest.raises(Refused):
            await dial(shard.address, HELLO)


async def test_what_no_frame_can_carry_is_refused_here_and_takes_no_number(shard: FakeFrames) -> None:
    shard.welcome = m.Welcome(m.VERSION, "sample-0", m.Limits(frame_bytes=1000))
    connection = await dial(shard.address, HELLO)
    with pytest.raises(TooLarge):
        put(connection, value=bytes(1000))
    with pytest.raises(Invalid):
        put(connection, key="\ud800")
    put(connection)
    assert [request.number for request in await shard.took(1)] == [1]
    await connection.close()


async def test_an_idle_connection_is_closed_by_the_client(shard: FakeFrames) -> None:
    shard.welcome = m.Welcome(m.VERSION, "sample-0", m.Limits(idle_seconds=0))
    connection = await dial(shard.address, HELLO)
    await asyncio.wait_for(asyncio.shield(connection.ended), 5)
    assert await shard.next_of(m.Goodbye) == m.Goodbye("idle")


# -- the connections of a client


def send(transport: FrameTransport, address: str) -> Waiting | None:
    return transport.send(address, m.ROUTE, lambda number, options: m.Route(number, "orders", options, None), None)


async def test_one_connection_serves_all_requests_to_a_shard(shard: FakeFrames) -> None:
    transport = FrameTransport(namespace="sample", name="test")
    await asyncio.gather(*(transport.ready(shard.address, seconds=5) for _ in range(20)))
    assert all(send(transport, shard.address) for _ in range(20))
    assert len(list(transport.under_way())) == 20
    assert shard.connections == 1
    await transport.close()
    assert list(transport.under_way()) == []


async def test_a_connection_that_ended_is_replaced(shard: FakeFrames) -> None:
    transport = FrameTransport(namespace="sample", name="test")
    for connections in (1, 2):
        await transport.ready(shard.address, seconds=5)
        attempt = send(transport, shard.address)
        assert attempt is not None
        assert shard.connections == connections
        await shard.took(connections)
        shard.hang_up()
        with pytest.raises(Broken):
            await attempt.future
    await transport.close()


async def test_a_shard_that_stays_silent_gets_a_new_connection(
    shard: FakeFrames, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fencekv.connection.SILENCE_SECONDS", 0.0)
    transport = FrameTransport(namespace="sample", name="test")
    await transport.ready(shard.address, seconds=5)
    attempt, other = send(transport, shard.address), send(transport, shard.address)
    assert attempt is not None
    assert other is not None
    await shard.took(2)
    attempt.give_up(Broken("no answer in time"))
    assert send(transport, shard.address) is None
    await transport.ready(shard.address, seconds=5)
    assert shard.connections == 2
    assert not other.future.done()  # it may still be answered
    with pytest.raises(Broken):
        await attempt.future
    await transport.close()
    with pytest.raises(Broken):
        await other.future


async def test_without_room_in_time_nothing_was_sent(shard: FakeFrames) -> None:
    shard.welcome = m.Welcome(m.VERSION, "sample-0", m.Limits(in_flight=1))
    transport = FrameTransport(namespace="sample", name="test")
    await transport.ready(shard.address, seconds=5)
    assert send(transport, shard.address) is not None
    with pytest.raises(Unavailable):
        await transport.ready(shard.address, seconds=0.05)
    assert len(await shard.took(1)) == 1
    await transport.close()


# -- what a caller of the SDK sees of it


def owned_by(shard: FakeFrames, request: m.Request) -> m.Routes:
    located = m.Located("orders-0", 0, 1, "sample-0", shard.address, None)
    return m.Routes(request.number, "", None, 0, {"strategy": "hash", "count": 1}, [located])


def working(shard: FakeFrames, request: m.Request) -> m.ShardMessage | None:
    return owned_by(shard, request) if isinstance(request, m.Route) else written(request.number)


def client(*shards: FakeFrames, settings: Settings | None = None) -> FenceKV:
    addresses = [shard.address for shard in shards]
    return FenceKV.connect(namespace="sample", endpoints=addresses, transport="frames", settings=settings)


async def test_what_a_drain_did_not_start_is_sent_again_even_without_a_key(shard: FakeFrames) -> None:
    drained: list[int] = []

    def answers(request: m.Request) -> m.ShardMessage | None:
        if isinstance(request, m.Put) and not drained:
            drained.append(request.number)
            return m.Goodbye("drain", request.number - 1)
        return working(shard, request)

    shard.answers = answers
    async with client(shard, settings=Settings(timeout_seconds=5, idempotency=False)) as db:
        await db.table("orders").put("k", b"v")
    assert drained
    assert len([request for request in await shard.took(1) if isinstance(request, m.Put)]) == 2
    assert shard.connections == 2


async def test_a_task_that_is_cancelled_cancels_its_request(shard: FakeFrames) -> None:
    shard.answers = lambda request: owned_by(shard, request) if isinstance(request, m.Route) else None
    async with client(shard, settings=Settings(timeout_seconds=60, attempt_seconds=60)) as db:
        task = asyncio.ensure_future(db.table("orders").put("k", b"v"))
        requests = await shard.took(2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await shard.next_of(m.Cancel) == m.Cancel(requests[-1].number)


async def test_an_attempt_that_takes_too_long_is_cancelled_and_sent_again(shard: FakeFrames) -> None:
    def answers(request: m.Request) -> m.ShardMessage | None:
        puts = [one for one in shard.messages if isinstance(one, m.Put)]
        return working(shard, request) if puts or not isinstance(request, m.Put) else None

    shard.answers = answers
    async with client(shard, settings=Settings(timeout_seconds=5, attempt_seconds=0.1)) as db:
        await db.table("orders").put("k", b"v")
        first, second = [request for request in await shard.took(3) if isinstance(request, m.Put)]
        assert first.options == second.options  # the same idempotency key
        assert await shard.next_of(m.Cancel) == m.Cancel(first.number)


async def test_wrong_types_are_refused_here_and_cost_nobody_the_connection(shard: FakeFrames) -> None:
    shard.answers = lambda request: working(shard, request)
    wrong: Any = 7
    async with client(shard) as db:
        orders = db.table("orders")
        await orders.put("k", b"v")
        for attempt in (
            orders.put("k", wrong),
            orders.put("k", b"v", idempotency_key=wrong),
            orders.txn(then=[Put("k", wrong)]),
            orders.list_page(limit=-1),
            orders.history_page("k", cursor=wrong),
        ):
            with pytest.raises(Invalid):
                await attempt
        await orders.put("k", b"v")
    assert shard.connections == 1


async def test_more_tasks_than_the_shard_takes_at_once_wait_for_their_turn(shard: FakeFrames) -> None:
    shard.welcome = m.Welcome(m.VERSION, "sample-0", m.Limits(in_flight=3))
    under_way: list[int] = []
    most = 0

    def answers(request: m.Request) -> m.ShardMessage | None:
        nonlocal most
        if isinstance(request, m.Route):
            return owned_by(shard, request)
        under_way.append(request.number)
        most = max(most, len(under_way))
        if len(under_way) == 3:
            for number in under_way:
                shard.say(written(number))
            under_way.clear()
        return None

    shard.answers = answers
    async with client(shard) as db:
        await asyncio.gather(*(db.table("orders").put(f"k{n}", b"v") for n in range(51)))
    assert most == 3
    assert shard.connections == 1


async def test_a_turn_is_waited_for_until_the_deadline_and_an_attempt_counts_from_when_it_is_sent(
    shard: FakeFrames,
) -> None:
    shard.welcome = m.Welcome(m.VERSION, "sample-0", m.Limits(in_flight=1))
    sent: list[m.Put] = []

    def slowly(request: m.Request) -> m.ShardMessage | None:
        if isinstance(request, m.Route):
            return owned_by(shard, request)
        assert isinstance(request, m.Put)
        sent.append(request)
        asyncio.get_running_loop().call_later(0.2, shard.say, written(request.number))
        return None

    shard.answers = slowly
    async with client(shard, settings=Settings(attempt_seconds=0.4)) as db:
        await asyncio.gather(*(db.table("orders").put(f"k{n}", b"v") for n in range(6)))
    assert [put.key for put in sent] == [f"k{n}" for n in range(6)]  # each once, in the order of asking


async def test_more_requests_than_may_wait_are_exhausted_at_once(
    shard: FakeFrames, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fencekv.connection.ROOM_WAITING_MAX", 2)
    shard.welcome = m.Welcome(m.VERSION, "sample-0", m.Limits(in_flight=1))
    shard.answers = lambda request: owned_by(shard, request) if isinstance(request, m.Route) else None
    async with client(shard, settings=Settings(timeout_seconds=1.0)) as db:
        await db.table("orders").route()
        puts = [asyncio.ensure_future(db.table("orders").put(f"k{n}", b"v")) for n in range(5)]
        await asyncio.wait(puts, return_when=asyncio.FIRST_COMPLETED)
        assert not any(put.done() for put in puts[:3])
        outcomes = await asyncio.gather(*puts, return_exceptions=True)
    assert [type(one) for one in outcomes] == [Unknown, Unavailable, Unavailable, Exhausted, Exhausted]


async def test_a_client_that_was_closed_dials_no_more(shard: FakeFrames) -> None:
    shard.answers = lambda request: owned_by(shard, request) if isinstance(request, m.Route) else None
    db = client(shard)
    async with db:
        task = asyncio.ensure_future(db.table("orders").put("k", b"v"))
        await shard.took(2)
    with pytest.raises(RuntimeError):
        await task
    assert shard.connections == 1
