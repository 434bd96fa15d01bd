"""A shard that does not own the partition has the owner answer, one hop away, and claims only what it knows."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from fake_node import FakeNode, not_owner, serving
from scripted_shard import Answer, Drop, ScriptedShard, closed_port

from fencekv.errors import NotOwner, Unavailable
from fencekv.partitioning import HashPartitioning
from fencekv.transport import Reply, make_session, send
from fencekv_shard import api

KEY = "/v1/sample/orders/keys/k"


@pytest.fixture(name="session")
async def make_http() -> AsyncIterator[aiohttp.ClientSession]:
    async with make_session() as session:
        yield session


async def ask(
    session: aiohttp.ClientSession, port: int, method: str, path: str, body: bytes = b"", **headers: str
) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    url = f"http://127.0.0.1:{port}{path}"
    return await send(session, method=method, url=url, headers=named, body=body, timeout=10)


def title(reply: Reply) -> str:
    return str(json.loads(reply.body)["title"])


def make_pair() -> tuple[FakeNode, FakeNode]:
    first, second = FakeNode(pod="sample-0"), FakeNode(pod="sample-1")
    first.add_table("orders", owned=False)
    second.add_table("orders")
    return first, second


async def test_a_request_at_any_shard_is_answered_by_the_owner(session: aiohttp.ClientSession) -> None:
    first, second = make_pair()
    async with serving(first, second) as [one, two]:
        first.point("orders", 0, owner="sample-1", http=f"127.0.0.1:{two.port}")
        written = await ask(
            session, one.port, "PUT", KEY, b"\x00v", Idempotency_Key="i", FenceKV_Durability="replicated"
        )
        assert (written.status, written.headers["FenceKV-Token"]) == (200, "1.1")
        assert written.headers["FenceKV-Partition"] == "orders-0"
        got = await ask(session, one.port, "GET", KEY, FenceKV_Min_Token="1.1")
        assert (got.body, got.headers["FenceKV-Version"]) == (b"\x00v", "1.0")
        absent = await ask(session, one.port, "GET", f"{KEY}2")
        assert (absent.status, title(absent)) == (404, "NotFound")
        txn = b'{"then":[{"get":{"key":"k"}}]}'
        done = await ask(session, one.port, "POST", "/v1/sample/orders/txn", txn, Content_Type="application/json")
        assert json.loads(done.body)["results"][0]["base64"] == "AHY="
        assert [
            i["key"]
            for i in json.loads((await ask(session, one.port, "GET", "/v1/sample/orders/keys")).body)["items"]
        ] == ["k"]
        assert (
            json.loads((await ask(session, one.port, "GET", "/v1/sample/orders/history/k")).body)["cursor"] is None
        )
    transaction, options = second.calls[0][1:]
    assert (transaction.idempotency_key, options.durability) == (b"i", api.Durability.REPLICATED)
    assert first.calls == []


async def test_a_forwarded_request_goes_no_further_and_is_told_the_owner(session: aiohttp.ClientSession) -> None:
    first, second = make_pair()
    async with serving(first, second) as [one, two]:
        first.point("orders", 0, owner="sample-1", http=f"127.0.0.1:{two.port}", epoch=3)
        reply = await ask(session, one.port, "PUT", KEY, b"v", FenceKV_Forwarded="sample-2")
        problem = json.loads(reply.body)
        assert (reply.status, problem["title"], problem["owner"]) == (421, "NotOwner", "sample-1")
        assert (problem["http"], problem["epoch"]) == (f"127.0.0.1:{two.port}", 3)
        assert reply.headers["FenceKV-Epoch"] == "3"
    assert second.calls == []


async def test_the_owner_that_cannot_be_reached_is_unavailable_since_nothing_was_sent(
    session: aiohttp.ClientSession,
) -> None:
    first, _ = make_pair()
    first.point("orders", 0, owner="sample-1", http=f"127.0.0.1:{closed_port()}")
    async with serving(first) as [one]:
        for method, body in (("PUT", b"v"), ("GET", b"")):
            reply = await ask(session, one.port, method, KEY, body)
            assert (reply.status, title(reply)) == (503, "Unavailable")


@pytest.mark.parametrize(
    ("method", "status", "name"),
    [("PUT", 504, "Unknown"), ("DELETE", 504, "Unknown"), ("GET", 503, "Unavailable")],
)
async def test_a_connection_lost_after_sending_leaves_a_write_unknown(
    session: aiohttp.ClientSession, method: str, status: int, name: str
) -> None:
    first, _ = make_pair()
    # The first answer leaves a kept connection, on which a careless client would send the write twice.
    async with serving(first) as [one], ScriptedShard(Answer(), Drop()).running() as owner:
        first.point("orders", 0, owner="sample-1", http=owner.address)
        await ask(session, one.port, "PUT", KEY, b"v")
        reply = await ask(session, one.port, method, KEY, b"v" if method == "PUT" else b"")
        assert (reply.status, title(reply)) == (status, name)
        assert [seen.method for seen in owner.seen] == ["PUT", method]
        assert owner.seen[1].headers["fencekv-forwarded"] == "sample-0"


async def test_a_request_is_held_during_a_move_and_then_goes_to_the_new_owner(
    session: aiohttp.ClientSession,
) -> None:
    first, second = make_pair()
    partition = first.own("orders", 0)
    async with serving(first, second) as [one, two]:

        async def moved(node: FakeNode) -> None:
            node.point("orders", 0, owner="sample-1", http=f"127.0.0.1:{two.port}", epoch=2)

        first.on_hold = moved
        assert (await ask(session, one.port, "PUT", KEY, b"v")).status == 200
    assert partition.calls == []
    assert len(second.calls) == 1


async def test_a_replica_deposed_while_it_was_asked_leads_to_the_new_owner(session: aiohttp.ClientSession) -> None:
    first, second = make_pair()
    partition = first.own("orders", 0)
    async with serving(first, second) as [one, two]:
        holds = 0

        async def deposed_at_the_second_look(node: FakeNode) -> None:
            nonlocal holds
            holds += 1
            if holds == 2:
                node.point("orders", 0, owner="sample-1", http=f"127.0.0.1:{two.port}", epoch=2)

        first.on_hold = deposed_at_the_second_look
        partition.script = [not_owner()]
        assert (await ask(session, one.port, "PUT", KEY, b"v")).status == 200
    assert (len(partition.calls), len(second.calls)) == (1, 1)


async def test_a_shard_behind_the_times_follows_the_owner_that_the_other_one_names(
    session: aiohttp.ClientSession,
) -> None:
    first, second = make_pair()
    async with serving(first, second) as [one, two], ScriptedShard().running() as former:
        named = NotOwner("moved", owner="sample-1", http=f"127.0.0.1:{two.port}", epoch=2)
        former.script = [Answer.of(named)]
        first.point("orders", 0, owner="sample-2", http=former.address)
        assert (await ask(session, one.port, "PUT", KEY, b"v")).status == 200
        assert (len(former.seen), len(second.calls)) == (1, 1)
        former.script = [Answer.of(NotOwner("nobody knows", epoch=2))]
        lost = await ask(session, one.port, "PUT", KEY, b"v")
        assert (lost.status, title(lost)) == (421, "NotOwner")


async def test_cached_reads_are_answered_by_any_replica_else_by_the_owner(session: aiohttp.ClientSession) -> None:
    first, second = make_pair()
    standby = first.own("orders", 0)
    async with serving(first, second) as [one, two]:
        first.point("orders", 0, owner="sample-1", http=f"127.0.0.1:{two.port}")
        await ask(session, one.port, "PUT", KEY, b"v")
        near = await ask(session, one.port, "GET", KEY, FenceKV_Consistency="cached")
        assert (near.status, len(second.calls)) == (404, 1)
        standby.script = [Unavailable("not that far yet")] * 2
        far = await ask(session, one.port, "GET", KEY, FenceKV_Consistency="cached", FenceKV_Min_Token="1.1")
        assert (far.status, far.body) == (200, b"v")
        standby.script = [Unavailable("not that far yet")] * 2
        headers = {"FenceKV_Consistency": "cached", "FenceKV_Forwarded": "sample-2"}
        assert (await ask(session, one.port, "GET", KEY, **headers)).status == 503


async def test_a_listing_gathers_the_partitions_of_several_shards(session: aiohttp.ClientSession) -> None:
    first, second = FakeNode(pod="sample-0"), FakeNode(pod="sample-1")
    for node in (first, second):
        node.add_table("wide", partitioning=HashPartitioning(4), owned=False)
    async with serving(first, second) as [one, two]:
        ports = {"sample-0": one.port, "sample-1": two.port}
        for index in range(4):
            owner = (first, second)[index % 2]
            for node in (first, second):
                node.point("wide", index, owner=owner.pod, http=f"127.0.0.1:{ports[owner.pod]}")
            owner.own("wide", index)
        keys = [f"k{n:02}/é" for n in range(30)]
        for key in keys:
            encoded = key.replace("/", "%2F").replace("é", "%C3%A9")
            assert (await ask(session, one.port, "PUT", f"/v1/sample/wide/keys/{encoded}", b"\xff")).status == 200
        found: list[Any] = []
        cursor = ""
        while cursor is not None:
            # Each page at the other shard: a cursor is good at all of them.
            port = (one.port, two.port)[len(found) % 2]
            path = "/v1/sample/wide/keys?limit=7" + (f"&cursor={cursor}" if cursor else "")
            page = json.loads((await ask(session, port, "GET", path)).body)
            found += page["items"]
            cursor = page["cursor"]
        assert [item["key"] for item in found] == keys
        assert {item["base64"] for item in found} == {"/w=="}
        second.replicas["wide", 1].script = [Unavailable("a moment")]
        broken = await ask(session, one.port, "GET", "/v1/sample/wide/keys")
        assert (broken.status, title(broken)) == (503, "Unavailable")


async def test_a_page_that_cannot_be_read_is_unavailable(session: aiohttp.ClientSession) -> None:
    first = FakeNode()
    first.add_table("wide", partitioning=HashPartitioning(2))
    nonsense = Answer(document={"items": [{"key": 1}], "cursor": None})
    async with serving(first) as [one], ScriptedShard(nonsense).running() as other:
        first.point("wide", 1, owner="sample-1", http=other.address)
        reply = await ask(session, one.port, "GET", "/v1/sample/wide/keys")
        assert (reply.status, title(reply)) == (503, "Unavailable")
