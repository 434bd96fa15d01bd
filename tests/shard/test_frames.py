"""A shard's frames over a partition in memory: what is asked of the partition, and what the client is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from engines import turns
from fake_node import FakeNode, FakePartition, not_owner
from frame_asker import HELLO, FrameAsker, connected, dialled
from hypothesis import given
from hypothesis import strategies as st

from fencekv import frames
from fencekv import messages as m
from fencekv import operations as op
from fencekv.errors import Exhausted, Fenced, Lost, Unavailable, Unknown
from fencekv.frame_reader import read_answer
from fencekv.partitioning import HashPartitioning, RangePartitioning
from fencekv.token import Token, Version
from fencekv.transport import make_session, send
from fencekv_shard import api
from fencekv_shard.calls import Found, WriteKind, Written
from fencekv_shard.frame_answers import encode, render
from fencekv_shard.server import Running
from fencekv_shard.transaction import Effect, GetResult, PutResult, Record


@pytest.fixture(name="ask")
async def connect(shard: Running) -> AsyncIterator[FrameAsker]:
    async with connected(shard.port) as ask:
        yield ask


# -- opening


async def test_the_shard_welcomes_with_its_version_pod_and_limits(shard: Running) -> None:
    async with dialled(shard.port) as ask:
        ask.send(HELLO)
        assert await ask.read() == m.Welcome(1, "sample-0", m.Limits(16_000_000, 1024, 300))


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (m.Hello((2, 3), "sample", "t"), "versions: this shard speaks 1"),
        (m.Hello((1,), "other", "t"), "namespace: this shard serves 'sample', not 'other'"),
        (m.Get(1, "orders", None, "k"), "opening: want the protocol, its versions, a namespace and a name first"),
    ],
)
async def test_who_opens_wrongly_is_told_why_and_nothing_behind_it_is_carried_out(
    shard: Running, partition: FakePartition, first: m.ClientMessage, reason: str
) -> None:
    async with dialled(shard.port) as ask:
        ask.send(first, m.Put(2, "orders", None, "k", b"v", None))
        assert await ask.read() == m.Goodbye(reason)
        assert await ask.read() is None
    assert partition.calls == []


async def test_requests_may_follow_the_opening_at_once(shard: Running) -> None:
    async with dialled(shard.port) as ask:
        ask.send(HELLO, m.Put(7, "orders", None, "k", b"v", None))
        assert isinstance(await ask.read(), m.Welcome)
        assert (await ask.read()).number == 7


async def test_http_and_frames_share_a_port_and_the_data(shard: Running, ask: FrameAsker) -> None:
    await ask.put("k", b"from frames")
    async with make_session() as session:
        url = f"http://127.0.0.1:{shard.port}/v1/sample/orders/keys/k"
        reply = await send(session, method="GET", url=url, headers={}, timeout=10)
        assert (reply.body, reply.headers["FenceKV-Version"]) == (b"from frames", "1.0")
        await send(session, method="PUT", url=url, headers={}, body=b"from HTTP", timeout=10)
        metrics = await send(
            session, method="GET", url=f"http://127.0.0.1:{shard.port}/metrics", headers={}, timeout=10
        )
    assert (await ask.get("k")).value == b"from HTTP"
    assert 'fencekv_requests_total{outcome="ok",route="put"} 2' in metrics.body.decode()


# -- operations


async def test_a_put_is_answered_with_partition_token_epoch_version_and_durability(ask: FrameAsker) -> None:
    assert await ask.put("k") == m.Written(1, "orders-0", Token(1, 1), 1, Version(1, 0), 0)


@pytest.mark.parametrize("value", [b"", b"\x00\xff binary", b"x" * (1 << 20)], ids=["empty", "binary", "1 MiB"])
async def test_a_value_comes_back_byte_for_byte(ask: FrameAsker, value: bytes) -> None:
    await ask.put("k", value)
    assert await ask.get("k") == m.Got(2, "orders-0", Token(1, 1), 1, value, Version(1, 0))


async def test_an_absent_key_is_a_refusal_named_not_found_with_the_token(ask: FrameAsker) -> None:
    refusal = await ask.get("k")
    assert (refusal.name, refusal.status, refusal.token) == ("NotFound", 404, Token(1, 0))
    assert (refusal.partition, refusal.extra) == ("orders-0", {"field": "key"})


async def test_a_delete_says_whether_the_key_existed(ask: FrameAsker) -> None:
    await ask.put("k")
    first = await ask.ask(m.Delete(ask.next(), "orders", None, "k", None))
    second = await ask.ask(m.Delete(ask.next(), "orders", None, "k", None))
    assert first == m.Deleted(2, "orders-0", Token(1, 2), 1, True, Version(1, 1), 0)
    assert (second.existed, second.version) == (False, None)


async def test_conditions_hold_or_are_a_conflict_that_names_the_version(
    ask: FrameAsker, partition: FakePartition
) -> None:
    assert isinstance(await ask.put("k", b"1", condition=True), m.Written)
    again = await ask.put("k", b"2", condition=True)
    assert (again.name, again.status, again.extra["version"]) == ("Conflict", 412, "1.0")
    assert (await ask.put("k", b"3", condition=Version(1, 7))).status == 412
    assert isinstance(await ask.put("k", b"4", condition=Version(1, 0)), m.Written)
    stale = await ask.ask(m.Delete(ask.next(), "orders", None, "k", Version(1, 0)))
    assert (stale.name, stale.token) == ("Conflict", Token(1, 5))
    assert partition.state["k"].value == b"4"


async def test_a_transaction_does_one_branch_and_answers_each_operation(ask: FrameAsker) -> None:
    compare = [op.exists("a", False)]
    then = [op.Put("a", b"\xff"), op.Get("a"), op.Delete("b"), op.Get("c")]
    txn = (compare, then, [op.Get("a")])
    first = await ask.ask(m.Txn(ask.next(), "orders", None, *txn))
    done = [m.PutDone(), m.GetDone(b"\xff", None), m.DeleteDone(False), m.GetDone(None, None)]
    assert first == m.Committed(1, "orders-0", Token(1, 1), 1, True, done, Version(1, 0), 0)
    second = await ask.ask(m.Txn(ask.next(), "orders", None, *txn))
    assert (second.succeeded, second.version) == (False, None)
    assert second.results == [m.GetDone(b"\xff", Version(1, 0))]


async def test_a_listing_goes_on_with_its_cursor(ask: FrameAsker) -> None:
    for key in "abc":
        await ask.put(key)
    first = await ask.ask(m.List(ask.next(), "orders", None, "a", "", 2, "", None))
    assert [item.key for item in first.items] == ["a", "b"]
    assert (first.partition, first.tokens, first.seq) == ("orders-0", {"orders-0": Token(1, 3)}, 2)
    second = await ask.ask(m.List(ask.next(), "orders", None, "a", "", 2, first.cursor, None))
    assert ([item.key for item in second.items], second.cursor) == (["c"], "")
    bounded = await ask.ask(m.List(ask.next(), "orders", None, "b", "c", 0, "", 0))
    assert bounded.items == [m.Item("b", b"v", Version(1, 1))]


async def test_a_listing_over_several_partitions_has_a_token_for_each(node: FakeNode, ask: FrameAsker) -> None:
    node.add_table("wide", partitioning=HashPartitioning(3))
    for key in "abcd":
        await ask.ask(m.Put(ask.next(), "wide", None, key, b"v", None))
    page = await ask.ask(m.List(ask.next(), "wide", None, "", "", 0, "", None))
    assert [item.key for item in page.items] == ["a", "b", "c", "d"]
    assert (page.partition, page.token, page.seq) == ("", None, None)
    assert page.tokens.keys() == {"wide-0", "wide-1", "wide-2"}


async def test_history_names_versions_and_deletions_newest_first(ask: FrameAsker) -> None:
    await ask.put("k", b"1")
    await ask.ask(m.Delete(ask.next(), "orders", None, "k", None))
    first = await ask.ask(m.History(ask.next(), "orders", None, "k", 1, ""))
    assert first.items == [m.Change(Version(1, 1), None)]
    second = await ask.ask(m.History(ask.next(), "orders", None, "k", 1, first.cursor))
    assert (second.items, second.cursor) == ([m.Change(Version(1, 0), b"1")], "")


async def test_routes_name_owners_and_the_partitioning(node: FakeNode, ask: FrameAsker) -> None:
    node.add_table("split", partitioning=RangePartitioning(("m",)))
    node.point("split", 1, owner="sample-1", http="127.0.0.1:9", epoch=4)
    del node.replicas["split", 1]
    routes = await ask.ask(m.Route(ask.next(), "split", None, None))
    assert routes.partitioning == {"strategy": "range", "splitPoints": ["m"]}
    assert routes.partitions == [
        m.Located("split-0", 0, 1, "sample-0", "", Token(1, 0)),
        m.Located("split-1", 1, 4, "sample-1", "127.0.0.1:9", None),
    ]
    one = await ask.ask(m.Route(ask.next(), "split", None, "z"))
    assert [located.place for located in one.partitions] == [1]


async def test_what_a_request_asks_for_reaches_the_partition(ask: FrameAsker, partition: FakePartition) -> None:
    await ask.get("k", consistency=1, min_token=Token(1, 0), epoch=1)
    await ask.put("k", durability=1, idempotency_key="i-é")
    read, write = partition.calls
    assert read[2] == api.Options(consistency=api.Consistency.CACHED, min_token=Token(1, 0), epoch=1)
    assert write[2].durability is api.Durability.REPLICATED
    assert write[1].idempotency_key == "i-é".encode()


async def test_a_request_never_lowers_the_tables_durability(node: FakeNode, ask: FrameAsker) -> None:
    node.add_table("safe", durability=api.Durability.REPLICATED)
    written = await ask.ask(m.Put(ask.next(), "safe", m.Options(durability=0), "k", b"v", None))
    assert written.durability == 1


# -- what goes wrong

LONG = "k" * 1025


@pytest.mark.parametrize(
    ("request_", "name", "status", "field"),
    [
        (m.Get(1, "nothing", None, "k"), "Invalid", 404, "table"),
        (m.Get(1, "t" * 254, None, "k"), "Invalid", 404, "table"),
        (m.Get(1, "orders", None, ""), "Invalid", 400, "key"),
        (m.Get(1, "orders", None, "a\x00"), "Invalid", 400, "key"),
        (m.Put(1, "orders", None, "\x01a", b"", None), "Invalid", 400, "key"),
        (m.Delete(1, "orders", None, LONG, None), "TooLarge", 413, "key"),
        (m.Put(1, "orders", None, "é" * 513, b"", None), "TooLarge", 413, "key"),
        (m.Put(1, "orders", None, "k", b"x" * ((1 << 20) + 1), None), "TooLarge", 413, "value"),
        (m.Txn(1, "orders", None, [], [], []), "Invalid", 400, "then"),
        (m.Txn(1, "orders", None, [], [op.Get("k")] * 1001, []), "TooLarge", 413, "txn"),
        (m.Txn(1, "orders", None, [op.Compare("k", "exists", "<", True)], [], []), "Invalid", 400, "compare"),
        (m.Get(1, "orders", m.Options(epoch=1 << 31), "k"), "Invalid", 400, "epoch"),
        (m.Get(1, "orders", m.Options(idempotency_key="i"), "k"), "Invalid", 400, "idempotencyKey"),
        (m.Put(1, "orders", m.Options(idempotency_key=""), "k", b"", None), "Invalid", 400, "idempotencyKey"),
        (
            m.Put(1, "orders", m.Options(idempotency_key="é" * 129), "k", b"", None),
            "Invalid",
            400,
            "idempotencyKey",
        ),
        (m.Get(1, "orders", m.Options(forwarded=""), "k"), "Invalid", 400, "forwarded"),
        (m.List(1, "orders", None, LONG, "", 0, "", None), "TooLarge", 413, "start"),
        (m.List(1, "orders", None, "", "\x00", 0, "", None), "Invalid", 400, "end"),
        (m.List(1, "orders", None, "", "", 1001, "", None), "Invalid", 400, "limit"),
        (m.List(1, "orders", None, "", "", 0, "nonsense", None), "Invalid", 400, "cursor"),
        (m.List(1, "orders", None, "", "", 0, "", 1), "Invalid", 400, "partition"),
        (m.List(1, "orders", None, "", "", 0, "", 1 << 62), "Invalid", 400, "partition"),
        (m.History(1, "orders", None, "k", 1001, ""), "Invalid", 400, "limit"),
        (m.Route(1, "orders", None, ""), "Invalid", 400, "key"),
    ],
)
async def test_a_wrong_request_is_refused_by_name_and_field_and_changes_nothing(
    ask: FrameAsker, partition: FakePartition, request_: m.Request, name: str, status: int, field: str
) -> None:
    refusal = await ask.ask(request_)
    assert (refusal.number, refusal.name, refusal.status, refusal.extra["field"]) == (1, name, status, field)
    assert (partition.state, partition.txid) == ({}, 0)
    assert isinstance(await ask.ask(m.Put(2, "orders", None, "k", b"v", None)), m.Written)


@pytest.mark.parametrize(
    "error",
    [Unavailable("u"), Exhausted("x"), Fenced("f"), Unknown("?"), Lost("l", end="1.7")],
    ids=lambda error: error.name,
)
async def test_errors_of_the_partition_reach_the_client_by_name(
    ask: FrameAsker, partition: FakePartition, error: Exception
) -> None:
    for as_begun in (True, False):
        if as_begun:
            partition.script = [error]
        else:
            partition.refusals = [error]  # type: ignore[list-item]
        refusal = await ask.put("k")
        assert (refusal.name, refusal.status) == (error.name, error.status)  # type: ignore[attr-defined]
        assert (refusal.partition, refusal.epoch) == ("orders-0", 1)
        assert refusal.extra.get("end") == (error.extra.get("end"))  # type: ignore[attr-defined]
    assert (refusal.extra.get("retryAfter") == 100) == isinstance(error, Unavailable | Exhausted)


async def test_a_bug_leaves_a_write_unknown_and_a_read_unavailable(
    ask: FrameAsker, partition: FakePartition, caplog: pytest.LogCaptureFixture
) -> None:
    partition.script = [ZeroDivisionError(), ZeroDivisionError(), ZeroDivisionError()]
    assert (await ask.put("k")).name == "Unknown"
    assert (await ask.get("k")).name == "Unavailable"
    listing = await ask.ask(m.List(ask.next(), "orders", None, "", "", 0, "", None))
    assert listing.name == "Unavailable"
    assert "not foreseen" in caplog.text
    assert isinstance(await ask.put("k"), m.Written)


async def test_a_write_that_meets_a_lost_ownership_goes_the_long_way(
    ask: FrameAsker, partition: FakePartition
) -> None:
    partition.script = [not_owner()]
    assert isinstance(await ask.put("k"), m.Written)
    partition.refusals = [not_owner()]  # type: ignore[list-item]
    assert isinstance(await ask.put("k"), m.Written)
    assert partition.txid == 2


async def test_a_write_is_held_during_a_move(node: FakeNode, ask: FrameAsker, partition: FakePartition) -> None:
    async def moved(at: FakeNode) -> None:
        at.on_hold = None

    node.on_hold = moved
    assert isinstance(await ask.put("k"), m.Written)
    assert node.holds == [("orders", 0)]


@pytest.mark.parametrize(
    ("version", "name", "extra"),
    [(None, "TooLarge", {"limit": 16_000_000}), (Version(1, 1), "Unknown", {"version": "1.1"})],
)
def test_an_answer_larger_than_a_frame_is_an_error_that_claims_nothing_wrong(
    version: Version | None, name: str, extra: dict[str, object]
) -> None:
    effect = Effect(True, (GetResult("k", b"x" * (1 << 20), Version(1, 1)),) * 17)
    answer = Written("orders-0", Token(1, 1), 1, WriteKind.TXN, effect, version, api.Durability.STANDARD)
    frame = encode(7, answer)
    refusal = read_answer(frame[4:], {7: m.TXN}.get)
    assert isinstance(refusal, m.Refusal)
    assert (refusal.name, {field: refusal.extra[field] for field in extra}) == (name, extra)


# -- many at once


async def test_answers_come_as_they_are_ready(ask: FrameAsker, partition: FakePartition) -> None:
    event = asyncio.Event()
    partition.script = [event]
    ask.send(m.Put(1, "orders", None, "slow", b"v", None), m.Put(2, "orders", None, "fast", b"v", None))
    assert (await ask.read()).number == 2
    event.set()
    assert (await ask.read()).number == 1


async def test_ping_is_answered_beside_what_is_under_way(ask: FrameAsker, partition: FakePartition) -> None:
    event = asyncio.Event()
    partition.script = [event]
    ask.send(m.Get(1, "orders", None, "k"), m.Ping(42))
    assert await ask.read() == m.Pong(42)
    event.set()
    assert (await ask.read()).number == 1


async def test_more_than_may_be_under_way_is_exhausted_and_the_rest_goes_on(
    ask: FrameAsker, partition: FakePartition
) -> None:
    event = asyncio.Event()
    partition.script = [event] * 1024
    ask.send(*(m.Put(n, "orders", None, "k", b"v", None) for n in range(1, 1026)))
    refusal = await ask.read()
    assert (refusal.number, refusal.name, refusal.extra["limit"]) == (1025, "Exhausted", 1024)
    event.set()
    assert sorted([(await ask.read()).number for _ in range(1024)]) == list(range(1, 1025))
    assert isinstance(await ask.ask(m.Put(1026, "orders", None, "k", b"v", None)), m.Written)


async def test_what_nobody_waits_for_takes_no_ones_place_up_to_a_limit_of_its_own(
    ask: FrameAsker, partition: FakePartition
) -> None:
    event = asyncio.Event()
    partition.script = [event] * 4096
    for first in range(1, 4096, 1024):
        numbers = range(first, first + 1024)
        ask.send(*(m.Put(n, "orders", None, "k", b"v", None) for n in numbers))
        ask.send(*(m.Cancel(n) for n in (*numbers, first)), m.Ping(first))  # one of them twice
        assert await ask.read() == m.Pong(first), "there was room for all of them"
    refusal = await ask.ask(m.Put(4097, "orders", None, "k", b"v", None))
    assert (refusal.number, refusal.name) == (4097, "Exhausted")
    event.set()
    await turns()
    assert isinstance(await ask.ask(m.Put(4098, "orders", None, "k", b"v", None)), m.Written)


async def test_cancelled_requests_are_not_answered_and_a_begun_write_is_carried_out(
    ask: FrameAsker, partition: FakePartition
) -> None:
    read, written = asyncio.Event(), asyncio.Event()
    partition.script = [written, read]
    ask.send(m.Put(1, "orders", None, "k", b"v", None), m.Get(2, "orders", None, "k"))
    ask.send(m.Cancel(1), m.Cancel(2), m.Cancel(77), m.Ping(1))
    assert await ask.read() == m.Pong(1)
    written.set()
    read.set()
    ask.send(m.Get(3, "orders", None, "other"))
    assert (await ask.read()).number == 3
    assert partition.state["k"].value == b"v"


async def test_a_broken_connection_does_not_undo_a_write_and_frees_what_it_held(
    shard: Running, partition: FakePartition
) -> None:
    event = asyncio.Event()
    partition.script = [event, asyncio.Event()]
    async with connected(shard.port) as ask:
        ask.send(m.Put(1, "orders", None, "k", b"v", None), m.Get(2, "orders", None, "k"), m.Ping(1))
        await ask.read()
        ask.writer.write(b"\x00\x00\x10\x00 and no more")
        await ask.writer.drain()
        ask.reset()
    exchange = shard.frames.exchange
    event.set()
    async with connected(shard.port) as other:
        async with asyncio.timeout(10):
            while "k" not in partition.state or exchange.held_bytes:
                assert isinstance(await other.ask(m.Get(other.next(), "orders", None, "x")), m.Refusal)
    assert partition.state["k"].value == b"v"


# -- goodbye

BROKEN = [
    ("a map", b"\xa0", "frame: want an array that is not empty"),
    ("trailing bytes", b"\x81\x01\x00", "frame: CBOR is not in canonical form"),
    ("not canonical", b"\x85\x18\x01\x01\x66orders\xf6\x61k", "frame: CBOR is not in canonical form"),
    ("a tag", b"\x85\xc1\x01\x01\x66orders\xf6\x61k", "frame: malformed CBOR"),
    ("unknown operation", b"\x85\x02\x09\x66orders\xf6\x61k", "operation: 9 is unknown"),
    ("a float as key", b"\x85\x02\x01\x66orders\xf6\xf9\x00\x00", "key: want a text"),
    ("too short", b"\x82\x02\x01", "request: too short"),
    ("a second opening", b"\x85\x00\x67fencekv\x81\x01\x66sample\x61t", "opening: a second one"),
    ("a number again", b"\x85\x01\x01\x66orders\xf6\x61k", "number: 1, but they rise, and 1 was there before"),
]


@pytest.mark.parametrize(("body", "reason"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
async def test_what_breaks_a_rule_ends_the_connection_and_what_was_before_is_answered(
    shard: Running, partition: FakePartition, body: bytes, reason: str
) -> None:
    event = asyncio.Event()
    partition.script = [event]
    async with connected(shard.port) as ask:
        ask.send(m.Put(1, "orders", None, "before", b"v", None))
        ask.writer.write(len(body).to_bytes(4, "big") + body)
        ask.send(m.Put(3, "orders", None, "behind", b"v", None))
        goodbye = await ask.read()
        assert isinstance(goodbye, m.Goodbye)
        assert goodbye.reason.startswith(reason)
        assert goodbye.last == 1
        event.set()
        assert (await ask.read()).number == 1
        assert await ask.read() is None
    assert list(partition.state) == ["before"]


@pytest.mark.parametrize("head", [b"\x00\x00\x00\x00", b"\x00\xf4\x24\x01"], ids=["empty", "too long"])
async def test_a_length_out_of_bounds_is_not_read(shard: Running, head: bytes) -> None:
    async with connected(shard.port) as ask:
        ask.writer.write(head)
        assert (await ask.read()).reason.startswith("frame: ")
        assert await ask.read() is None


async def test_a_shard_that_goes_answers_what_is_under_way_and_takes_nothing_more(
    shard: Running, partition: FakePartition
) -> None:
    event = asyncio.Event()
    partition.script = [event]
    async with connected(shard.port) as ask, connected(shard.port) as idle:
        ask.send(m.Put(5, "orders", None, "k", b"v", None), m.Ping(1))
        await ask.read()
        shard.goodbye("this shard drains")
        assert await ask.read() == m.Goodbye("this shard drains", 5)
        assert await idle.read() == m.Goodbye("this shard drains", 0)
        assert await idle.read() is None
        ask.send(m.Put(6, "orders", None, "later", b"v", None))
        event.set()
        assert (await ask.read()).number == 5
        assert await ask.read() is None
        async with dialled(shard.port) as late:
            late.send(HELLO)
            assert await late.read() == m.Goodbye("this shard drains")
    assert list(partition.state) == ["k"]


async def test_a_client_that_says_goodbye_or_only_ends_gets_its_answers(
    shard: Running, partition: FakePartition
) -> None:
    for end in ("goodbye", "eof"):
        event = asyncio.Event()
        partition.script = [event]
        async with connected(shard.port) as ask:
            ask.send(m.Put(1, "orders", None, end, b"v", None))
            if end == "eof":
                ask.writer.write_eof()
            else:
                ask.send(m.Goodbye("done"))
            event.set()
            assert (await ask.read()).number == 1
            assert await ask.read() is None
            async with connected(shard.port) as other, asyncio.timeout(1.5):
                while end == "eof" and len(shard.frames.connections) > 1:  # both sides have ended: it is over
                    await other.get("k")


# -- the short form of frequent answers

NUMBERS = st.one_of(
    st.sampled_from([0, 23, 24, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**63 - 1]), st.integers(0, 2**63 - 1)
)


@given(st.lists(NUMBERS, min_size=6, max_size=6), st.text(max_size=300), st.binary(max_size=300))
def test_puts_and_gets_are_answered_in_the_bytes_of_the_codec(numbers: list[int], name: str, value: bytes) -> None:
    number, epoch, *rest = numbers
    token, version = Token(*rest[:2]), Version(*rest[2:])
    about = name, token, epoch
    effect = Effect(True, (PutResult(),))
    for durability in api.Durability:
        written = Written(*about, WriteKind.PUT, effect, version, durability)
        assert encode(number, written) == frames.encode(render(number, written))
    found = Found(*about, Record(value, version))
    assert encode(number, found) == frames.encode(render(number, found))


def test_a_value_of_any_size_is_answered_in_the_bytes_of_the_codec() -> None:
    for size in (0, 23, 24, 255, 256, 65535, 65536, 1 << 20):
        found = Found("orders-0", Token(1, 2), 1, Record(b"x" * size, Version(1, 2)))
        assert encode(7, found) == frames.encode(render(7, found))
