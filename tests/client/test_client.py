"""The SDK: what it sends where, what it repeats, and what it tells its caller."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fake_node import FakeNode, serving
from scripted_shard import Answer, Drop, ScriptedShard, Silence, closed_port

from fencekv import messages as m
from fencekv.caller import Settings
from fencekv.client import FenceKV
from fencekv.errors import Conflict, Exhausted, Fenced, Invalid, Lost, NotOwner, Unavailable, Unknown
from fencekv.operations import Delete, Get, Put, at_version, exists, has_value
from fencekv.partitioning import HashPartitioning, RangePartitioning
from fencekv.resting import Resting
from fencekv.results import DeleteDone, GetDone, PutDone
from fencekv.routing import DOUBTS_ONE_BY_ONE_MAX, Owner, Routes
from fencekv.token import Token, Version

UNKEYED = Settings(timeout_seconds=2, idempotency=False)
KEYED = Settings(timeout_seconds=2)


@pytest.fixture(name="transport", params=["frames", "http"], autouse=True)
def choose(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything is to hold on both transports."""
    monkeypatch.setenv("FENCEKV_TRANSPORT", request.param)
    return str(request.param)


def client(*addresses: str, settings: Settings = KEYED, transport: Any = "") -> FenceKV:
    return FenceKV.connect(
        namespace="sample",
        endpoints=list(addresses),
        transport=transport,
        settings=settings,
        chance=random.Random(7),
    )


# -- against shards that work


@pytest.fixture(name="node")
def make_node() -> FakeNode:
    node = FakeNode()
    node.add_table("orders")
    node.add_table("wide", partitioning=HashPartitioning(4))
    return node


@pytest.fixture(name="db")
async def start(node: FakeNode) -> AsyncIterator[FenceKV]:
    async with serving(node) as [shard]:
        for route in list(node.routes.values()):
            table, index = route.partition.rsplit("-", 1)
            address = f"127.0.0.1:{shard.port}"
            node.point(table, int(index), owner=node.pod, http=address, local=True)
        async with client(f"127.0.0.1:{shard.port}") as db:
            yield db


async def test_put_get_delete(db: FenceKV) -> None:
    orders = db.table("orders")
    written = await orders.put("a/b é", b"\x00\xff")
    assert (written.version, written.token, written.partition) == (Version(1, 0), Token(1, 1), "orders-0")
    entry = await orders.get("a/b é")
    assert entry is not None
    assert (entry.key, entry.value, entry.version) == ("a/b é", b"\x00\xff", Version(1, 0))
    assert (await orders.delete("a/b é")).existed
    gone = await orders.delete("a/b é")
    assert (gone.existed, gone.version) == (False, None)
    assert await orders.get("a/b é") is None


async def test_conditions(db: FenceKV) -> None:
    orders = db.table("orders")
    first = await orders.put("k", b"1", if_absent=True)
    with pytest.raises(Conflict) as refusal:
        await orders.put("k", b"2", if_absent=True)
    assert refusal.value.extra["version"] == str(first.version)
    second = await orders.put("k", b"2", if_version=first.version)
    with pytest.raises(Conflict):
        await orders.delete("k", if_version=first.version)
    assert (await orders.delete("k", if_version=second.version)).existed
    with pytest.raises(Invalid):
        await orders.put("k", b"3", if_version=second.version, if_absent=True)


async def test_transactions(db: FenceKV) -> None:
    orders = db.table("orders")
    answer = await orders.txn(
        compare=[exists("a", False), at_version("a", Version(0, 0)), has_value("a", b"x", "!=")],
        then=[Put("a", b"\xff"), Get("a"), Delete("b"), Get("c")],
        otherwise=[Get("a")],
    )
    assert answer.succeeded
    assert answer.version == Version(1, 0)
    assert list(answer.results) == [
        PutDone(version=Version(1, 0)),
        GetDone(key="a", value=b"\xff", version=Version(1, 0)),
        DeleteDone(existed=False),
        GetDone(key="c", value=None, version=None),
    ]
    again = await orders.txn(compare=[exists("a", False)], then=[Put("a", b"2")], otherwise=[Get("a")])
    assert (again.succeeded, again.version) == (False, None)
    with pytest.raises(Invalid):
        await orders.txn()


@pytest.mark.parametrize("consistency", ["primary", "cached"])
async def test_listing_goes_through_all_pages_of_all_partitions(db: FenceKV, consistency: Any) -> None:
    wide = db.table("wide")
    keys = sorted(f"k{n:02}/é" for n in range(25))
    for key in keys:
        await wide.put(key, key.encode())
    found = [entry async for entry in wide.list(page_size=4, consistency=consistency)]
    assert [entry.key for entry in found] == keys
    assert all(entry.value == entry.key.encode() for entry in found)
    assert [entry.key async for entry in wide.list(prefix="k0", start="k03", end="k05")] == ["k03/é", "k04/é"]


async def test_a_cached_listing_over_partitions_is_asked_for_our_own_writes(db: FenceKV, node: FakeNode) -> None:
    await db.table("wide").put("k", b"v")
    index = node.tables["wide"].partitioning.partition_of("k")
    _ = [entry async for entry in db.table("wide").list(consistency="cached")]
    tokens = {key[1]: part.calls[-1][2].min_token for key, part in node.replicas.items() if key[0] == "wide"}
    assert tokens == {n: Token(1, 1) if n == index else None for n in range(4)}


async def test_history(db: FenceKV) -> None:
    orders = db.table("orders")
    for value in (b"1", b"2"):
        await orders.put("k", value)
    await orders.delete("k")
    changes = [change async for change in orders.history("k", page_size=1)]
    assert [change.value for change in changes] == [None, b"2", b"1"]


async def test_every_write_has_an_idempotency_key_of_its_own(db: FenceKV, node: FakeNode) -> None:
    orders = db.table("orders")
    await orders.put("k", b"1")
    await orders.put("k", b"1")
    await orders.txn(then=[Get("k")])
    await orders.delete("k", idempotency_key="mine")
    keys = [call[1].idempotency_key for call in node.replicas["orders", 0].calls if call[0] == "submit"]
    assert keys[3] == b"mine"
    assert len(set(keys)) == 4
    assert all(keys)


async def test_reads_carry_the_partitions_token_and_all_requests_its_epoch(db: FenceKV, node: FakeNode) -> None:
    orders, partition = db.table("orders"), node.replicas["orders", 0]
    await orders.put("k", b"1")
    await orders.get("k")
    await orders.get("k", consistency="cached", min_token=Token(1, 9))
    await orders.get("k", min_token=Token(0, 5))
    await orders.list_page()
    await orders.history_page("k")
    options = [call[-1] for call in partition.calls]
    assert [option.epoch for option in options] == [None, 1, 1, 1, 1, 1]
    own = Token(1, 1)
    assert [option.min_token for option in options] == [None, own, Token(1, 9), own, own, own]


async def test_a_lost_token_is_told_once_and_then_forgotten(db: FenceKV, node: FakeNode) -> None:
    orders, partition = db.table("orders"), node.replicas["orders", 0]
    await orders.put("k", b"1")
    partition.script = [Lost("gone", end="1.0")]
    with pytest.raises(Lost):
        await orders.get("k")
    await orders.get("k")
    assert partition.calls[-1][2].min_token is None


async def test_an_unknown_table_or_namespace_is_told_at_once(db: FenceKV, node: FakeNode) -> None:
    with pytest.raises(Invalid) as refusal:
        await db.table("nothing").put("k", b"v")
    assert refusal.value.status == 404
    assert node.calls == []


async def test_a_key_that_no_wire_can_carry_is_refused_here(db: FenceKV) -> None:
    with pytest.raises(Invalid):
        await db.table("orders").get("\ud800")
    with pytest.raises(Invalid):
        await db.table("orders").txn(then=[Get("\ud800")])


async def test_many_requests_at_once_ask_for_the_routes_once() -> None:
    async with ScriptedShard().running() as shard, client(shard.address) as db:
        await asyncio.gather(*(db.table("orders").put(f"k{n}", b"v") for n in range(20)))
        assert (shard.routes_asked, len(shard.seen)) == (1, 20)


async def test_the_transport_is_chosen_by_argument_then_by_environment_and_frames_are_the_default(
    monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    async def spoken(given: str) -> str:
        async with ScriptedShard().running() as shard, client(shard.address, transport=given) as db:
            await db.table("orders").put("k", b"v")
            assert len(shard.seen) == 1
            return "frames" if shard.messages else "http"

    assert await spoken("") == transport
    assert [await spoken(given) for given in ("frames", "http")] == ["frames", "http"]
    monkeypatch.setenv("FENCEKV_TRANSPORT", "")
    assert await spoken("") == "frames"
    monkeypatch.setenv("FENCEKV_TRANSPORT", "pigeons")
    with pytest.raises(Invalid, match="pigeons"):
        await spoken("")


# -- against shards that fail


async def test_a_write_that_was_not_carried_out_is_repeated_even_without_key() -> None:
    script = [Answer.of(Unavailable("no owner")), Answer.of(Fenced("newer")), Answer.of(NotOwner("not me"))]
    async with ScriptedShard(*script).running() as shard, client(shard.address, settings=UNKEYED) as db:
        assert (await db.table("orders").put("k", b"v")).version == Version(1, 0)
        assert len(shard.seen) == 4
        assert all("idempotency-key" not in seen.headers for seen in shard.seen)


async def test_a_write_whose_connection_broke_is_unknown_without_a_key() -> None:
    async with ScriptedShard(Drop()).running() as shard, client(shard.address, settings=UNKEYED) as db:
        with pytest.raises(Unknown):
            await db.table("orders").put("k", b"v")
        assert len(shard.seen) == 1


@pytest.mark.parametrize("failure", [Drop(), Answer.of(Unknown("no confirmation"))], ids=["broken", "unknown"])
async def test_a_write_of_unknown_outcome_is_repeated_under_the_same_key(failure: Any) -> None:
    async with ScriptedShard(failure).running() as shard, client(shard.address) as db:
        assert (await db.table("orders").put("k", b"v")).version == Version(1, 0)
        first, second = shard.seen
        assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
        assert (first.target, first.body) == (second.target, second.body)


async def test_a_write_that_was_never_answered_ends_as_unknown_not_as_the_last_refusal() -> None:
    script = [Drop(), *[Answer.of(Unavailable("no owner"))] * 100]
    settings = Settings(timeout_seconds=0.3)
    async with ScriptedShard(*script).running() as shard, client(shard.address, settings=settings) as db:
        with pytest.raises(Unknown):
            await db.table("orders").put("k", b"v")
        assert len(shard.seen) > 2


async def test_what_is_full_after_an_unknown_attempt_is_asked_again() -> None:
    script = [Drop(), Answer.of(Exhausted("full"))]
    async with ScriptedShard(*script).running() as shard, client(shard.address) as db:
        assert (await db.table("orders").put("k", b"v")).version == Version(1, 0)
        assert len(shard.seen) == 3


async def test_what_is_full_is_told_to_the_caller() -> None:
    async with ScriptedShard(Answer.of(Exhausted("full"))).running() as shard, client(shard.address) as db:
        with pytest.raises(Exhausted):
            await db.table("orders").put("k", b"v")
        assert len(shard.seen) == 1


async def test_reads_are_repeated_in_every_case() -> None:
    got = Answer(document="v", headers={"FenceKV-Version": "1.0", "FenceKV-Token": "1.1"})
    script = [Drop(), Silence(), Answer.of(Unknown("?")), Answer.of(Unavailable("later")), got]
    settings = Settings(timeout_seconds=5, attempt_seconds=0.1, idempotency=False)
    async with ScriptedShard(*script).running() as shard, client(shard.address, settings=settings) as db:
        entry = await db.table("orders").get("k")
        assert entry is not None
        assert len(shard.seen) == 5


async def test_the_owner_named_by_a_refusal_is_asked_at_once() -> None:
    async with ScriptedShard().running() as new, ScriptedShard().running() as old, client(old.address) as db:
        old.script = [Answer.of(NotOwner("moved", http=new.address, epoch=2), FenceKV_Epoch="2")]
        new.epoch = 2
        await db.table("orders").put("k", b"1")
        assert (len(old.seen), len(new.seen)) == (1, 1)
        assert new.seen[0].headers["fencekv-epoch"] == "2"


async def test_a_shard_that_names_an_owner_of_the_past_is_not_believed() -> None:
    async with ScriptedShard().running() as past, ScriptedShard().running() as shard, client(shard.address) as db:
        shard.epoch = 5
        shard.script = [
            Answer(headers={"FenceKV-Epoch": "5"}),
            Answer.of(NotOwner("?", http=past.address, epoch=3)),
        ]
        await db.table("orders").put("k", b"1")
        await db.table("orders").put("k", b"2")
        assert (len(shard.seen), len(past.seen)) == (3, 0)


async def test_an_epoch_that_rose_has_the_routes_asked_for_anew() -> None:
    async with (
        ScriptedShard(Answer(headers={"FenceKV-Epoch": "2"})).running() as shard,
        client(shard.address) as db,
    ):
        await db.table("orders").put("k", b"1")
        shard.epoch = 2
        await db.table("orders").put("k", b"2")
        await db.table("orders").put("k", b"3")
        assert shard.routes_asked == 2


def routes_of(db: FenceKV) -> Routes:
    assert db._caller is not None
    return db._caller.routes


def in_partition(index: int, *, of: int) -> str:
    """A key of a partition."""
    return next(key for key in map(str, range(1000)) if HashPartitioning(of).partition_of(key) == index)


async def test_while_one_partition_is_in_doubt_requests_to_the_others_go_on() -> None:
    first, second = (in_partition(index, of=2) for index in range(2))
    async with ScriptedShard().running() as shard, client(shard.address) as db:
        shard.count, shard.others = 2, [shard.address]
        table = db.table("orders")
        await table.put(first, b"1")
        shard.answering.clear()
        shard.script = [Answer.of(Unavailable("no owner"))]
        doubted = asyncio.ensure_future(table.put(second, b"1"))
        async with asyncio.timeout(5):
            while shard.routes_asked < 2:
                await asyncio.sleep(0.01)
            await table.put(first, b"2")
        assert not doubted.done()
        shard.answering.set()
        await asyncio.wait_for(doubted, 5)
        assert shard.route_keys == [None, second]


@pytest.mark.parametrize("doubts", [DOUBTS_ONE_BY_ONE_MAX, DOUBTS_ONE_BY_ONE_MAX + 1])
async def test_of_many_partitions_in_doubt_all_are_asked_for_at_once(doubts: int) -> None:
    keys = [in_partition(index, of=doubts) for index in range(doubts)]
    async with ScriptedShard().running() as shard, client(shard.address) as db:
        shard.count, shard.others = doubts, [shard.address] * (doubts - 1)
        table = db.table("orders")
        await asyncio.gather(*(table.put(key, b"1") for key in keys))
        assert shard.route_keys == [None]
        for index in range(doubts):
            routes_of(db).doubt("orders", index)
        await asyncio.gather(*(table.put(key, b"2") for key in keys for _ in range(3)))
        # Who wants the same meanwhile shares the answer.
        assert sorted(map(str, shard.route_keys[1:])) == (
            sorted(keys) if doubts == DOUBTS_ONE_BY_ONE_MAX else ["None"]
        )


async def test_the_bad_key_of_one_request_is_not_the_error_of_another() -> None:
    """Both wait for the same partition's routes, and the bad one asks for them."""
    async with ScriptedShard().running() as shard, client(shard.address) as db:
        table = db.table("orders")
        await table.put("good", b"1")
        shard.refused_keys = {"bad"}
        routes_of(db).doubt("orders", 0)
        done = await asyncio.gather(table.put("bad", b"1"), table.put("good", b"2"))
        assert [each.version for each in done] == [Version(1, 0)] * 2
        assert shard.route_keys == [None, "bad", None]


async def test_an_answer_that_another_one_overtook_takes_nobody_back() -> None:
    routes = Routes()

    def answer(epoch: int, http: str) -> m.Routes:
        located = m.Located("orders-0", 0, epoch, "x", http, None)
        return m.Routes(0, "", None, 0, {"strategy": "hash", "count": 1}, [located])

    routes.load("orders", answer(1, "a:1"), doubts=0)
    routes.doubt("orders", 0)
    asked = routes.doubts
    assert routes.load_some("orders", answer(2, "b:1"), doubts=asked) == [0]
    assert routes.load("orders", answer(1, "a:1"), doubts=asked) == []
    assert routes.tables["orders"].owners[0] == Owner("orders-0", 2, "b:1")
    routes.doubt("orders", 0)
    routes.load("orders", answer(2, "b:1"), doubts=asked)
    assert 0 in routes.tables["orders"].doubted, "it is younger than the question"
    routes.load("orders", answer(1, "a:1"), doubts=routes.doubts)
    assert routes.tables["orders"].owners[0] == Owner("orders-0", 2, ""), "any shard may know"
    assert not routes.tables["orders"].doubted


async def test_a_client_that_is_closed_ends_what_waits_for_routes_by_an_error() -> None:
    async with ScriptedShard().running() as shard, client(shard.address) as db:
        await db.table("orders").put("k", b"1")
        shard.answering.clear()
        routes_of(db).doubt("orders", 0)
        waiting = asyncio.ensure_future(db.table("orders").put("k", b"2"))
        async with asyncio.timeout(5):
            while shard.routes_asked < 2:
                await asyncio.sleep(0.01)
        await db.close()
        with pytest.raises(RuntimeError, match="closed"):
            await asyncio.wait_for(waiting, 5)


async def test_routes_that_show_a_newer_owner_wake_those_who_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[tuple[str, int, bool]] = []

    def served(_self: Resting, table: str, index: int, *, write: bool) -> None:
        woken.append((table, index, write))

    monkeypatch.setattr(Resting, "served", served)
    async with ScriptedShard().running() as shard, client(shard.address) as db:
        shard.count, shard.others = 2, [shard.address]
        keys = [in_partition(index, of=2) for index in range(2)]
        await db.table("orders").put(keys[0], b"1")
        shard.epoch = 2
        for key in keys:  # each is asked for by itself
            routes_of(db).doubt("orders", keys.index(key))
            await db.table("orders").put(key, b"2")
            index = keys.index(key)
            assert set(woken) == {("orders", index, True), ("orders", index, False)}
            woken.clear()
        routes_of(db).doubt("orders", 0)
        await db.table("orders").put(keys[0], b"3")
        assert not woken, "the same owner as before"


async def test_a_dead_owner_is_gone_round_by_another_shard() -> None:
    async with ScriptedShard().running() as shard, client(shard.address, settings=UNKEYED) as db:
        shard.owner_http = f"127.0.0.1:{closed_port()}"
        await db.table("orders").put("k", b"v")
        assert len(shard.seen) == 1


async def test_a_shard_that_is_cut_off_and_goes_on_naming_itself_is_left_for_another_owner() -> None:
    refusal = Answer.of(NotOwner("the session's deadline has passed"))
    async with ScriptedShard(*[refusal] * 100).running() as cut, ScriptedShard().running() as other:
        cut.others = [other.address]
        # The one address that it was told may be a Service, whose connection stays with the shard that it met.
        async with client(cut.address) as db:
            await db.table("orders").put("k", b"1")
        assert (len(cut.seen), len(other.seen)) == (1, 1)


async def test_an_owner_that_stays_silent_is_not_the_first_choice_of_the_next_request() -> None:
    async with ScriptedShard(Silence()).running() as owner, ScriptedShard().running() as other:
        other.owner_http = owner.address
        async with client(other.address, settings=Settings(timeout_seconds=5, attempt_seconds=1)) as db:
            table = db.table("orders")
            first = asyncio.ensure_future(table.put("k", b"1"))
            async with asyncio.timeout(5):
                while not owner.seen or other.routes_asked < 2:
                    await asyncio.sleep(0.01)
            await table.put("k", b"2")
            assert (len(owner.seen), len(other.seen)) == (1, 1)
            await first  # the owner is not asked again, and another shard forwards


async def test_a_dead_endpoint_is_passed_over() -> None:
    dead = [f"127.0.0.1:{closed_port()}" for _ in range(3)]
    async with ScriptedShard().running() as shard, client(*dead, shard.address) as db:
        await db.table("orders").put("k", b"v")
        assert len(shard.seen) == 1


async def test_without_any_shard_the_error_comes_in_time_and_says_unavailable() -> None:
    clock = asyncio.get_running_loop().time
    started = clock()
    async with client(f"127.0.0.1:{closed_port()}", settings=Settings(timeout_seconds=0.3)) as db:
        with pytest.raises(Unavailable):
            await db.table("orders").put("k", b"v")
    assert clock() - started < 2


async def test_a_standard_success_that_came_too_late_is_not_believed() -> None:
    late = Answer(headers={"FenceKV-Durability": "standard"}, delay=0.1)
    strict = Settings(timeout_seconds=2, standard_success_seconds=0.05, idempotency=False)
    async with ScriptedShard(late).running() as shard, client(shard.address, settings=strict) as db:
        with pytest.raises(Unknown):
            await db.table("orders").put("k", b"v")
    repeating = Settings(timeout_seconds=2, standard_success_seconds=0.05)
    async with ScriptedShard(late).running() as shard, client(shard.address, settings=repeating) as db:
        await db.table("orders").put("k", b"v")
        assert len(shard.seen) == 2


async def test_a_replicated_success_is_believed_whenever_it_comes() -> None:
    late = Answer(headers={"FenceKV-Durability": "replicated"}, delay=0.1)
    settings = Settings(timeout_seconds=2, standard_success_seconds=0.05, idempotency=False)
    async with ScriptedShard(late).running() as shard, client(shard.address, settings=settings) as db:
        assert (await db.table("orders").put("k", b"v")).version == Version(1, 0)


async def test_a_client_is_used_within_its_block() -> None:
    with pytest.raises(RuntimeError):
        client("127.0.0.1:1").table("orders")


def test_range_tables_are_routed_by_the_order_of_bytes() -> None:
    split = RangePartitioning(("b", "é"))
    assert [split.partition_of(key) for key in ("a", "b", "z", "é", "日")] == [0, 1, 1, 2, 2]


async def test_a_request_that_its_shard_forwarded_to_a_frozen_owner_is_sent_again_when_that_shard_owns() -> None:
    async with ScriptedShard(Answer(), Silence()).running() as shard, client(shard.address) as db:
        table = db.table("orders")
        await table.put("k", b"1")
        second = asyncio.ensure_future(table.put("k", b"2"))
        async with asyncio.timeout(5):
            while len(shard.seen) < 2:
                await asyncio.sleep(0.01)
            began = asyncio.get_running_loop().time()
            shard.epoch = 2  # it was granted the partition while it waits for the one that it forwarded to
            await second
        assert asyncio.get_running_loop().time() - began < 1.5
        assert len(shard.seen) == 3
        assert shard.seen[1].headers["idempotency-key"] == shard.seen[2].headers["idempotency-key"]
