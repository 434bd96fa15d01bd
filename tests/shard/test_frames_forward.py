"""A shard that does not own the partition has the owner answer over frames, one hop away."""

from __future__ import annotations

import asyncio

import pytest
from fake_node import FakeNode, not_owner, serving
from frame_asker import connected
from scripted_shard import Answer, Drop, ScriptedShard, Silence, closed_port

from fencekv import messages as m
from fencekv import operations as op
from fencekv.errors import NotOwner, Unavailable
from fencekv.token import Token, Version
from fencekv_shard import api


def make_pair() -> tuple[FakeNode, FakeNode]:
    first, second = FakeNode(pod="sample-0"), FakeNode(pod="sample-1")
    first.add_table("orders", owned=False)
    second.add_table("orders")
    return first, second


async def test_a_request_at_any_shard_is_answered_by_the_owner() -> None:
    first, second = make_pair()
    async with serving(first, second) as [one, two], connected(one.port) as ask:
        first.point("orders", 0, owner="sample-1", http=f"127.0.0.1:{two.port}")
        written = await ask.put("k", b"\x00v", idempotency_key="i", durability=1)
        assert written == m.Written(1, "orders-0", Token(1, 1), 1, Version(1, 0), 1)
        got = await ask.get("k", min_token=Token(1, 1))
        assert (got.number, got.value) == (2, b"\x00v")
        absent = await ask.get("other")
        assert (absent.name, absent.partition, absent.token) == ("NotFound", "orders-0", Token(1, 1))
        done = await ask.ask(m.Txn(ask.next(), "orders", None, [], [op.Get("k")], []))
        assert done.results == [m.GetDone(b"\x00v", Version(1, 0))]
        listed = await ask.ask(m.List(ask.next(), "orders", None, "", "", 0, "", None))
        assert [item.key for item in listed.items] == ["k"]
        history = await ask.ask(m.History(ask.next(), "orders", None, "k", 0, ""))
        assert len(history.items) == 1
        gone = await ask.ask(m.Delete(ask.next(), "orders", None, "k", None))
        assert gone.existed is True
    transaction, options = second.calls[0][1:]
    assert (transaction.idempotency_key, options.durability) == (b"i", api.Durability.REPLICATED)
    assert first.calls == []


async def test_a_forwarded_request_goes_no_further_and_is_told_the_owner() -> None:
    first, second = make_pair()
    async with serving(first, second) as [one, two], connected(one.port) as ask:
        first.point("orders", 0, owner="sample-1", http=f"127.0.0.1:{two.port}", epoch=3)
        refusal = await ask.put("k", forwarded="sample-2")
        assert (refusal.name, refusal.status, refusal.epoch) == ("NotOwner", 421, 3)
        assert refusal.extra["owner"] == "sample-1"
        assert refusal.extra["http"] == f"127.0.0.1:{two.port}"
    assert second.calls == []


async def test_what_leaves_here_names_this_shard_as_its_forwarder() -> None:
    first, _ = make_pair()
    async with serving(first) as [one], ScriptedShard().running() as owner, connected(one.port) as ask:
        first.point("orders", 0, owner="sample-1", http=owner.address)
        assert isinstance(await ask.put("k"), m.Written)
        sent = owner.messages[-1]
        assert isinstance(sent, m.Put)
        assert sent.options is not None
        assert sent.options.forwarded == "sample-0"


async def test_the_owner_that_cannot_be_reached_is_unavailable_since_nothing_was_sent() -> None:
    first, _ = make_pair()
    first.point("orders", 0, owner="sample-1", http=f"127.0.0.1:{closed_port()}")
    async with serving(first) as [one], connected(one.port) as ask:
        for refusal in (await ask.put("k"), await ask.get("k")):
            assert (refusal.name, refusal.status, refusal.partition) == ("Unavailable", 503, "orders-0")


async def test_a_connection_lost_after_sending_leaves_a_write_unknown_and_a_read_unavailable() -> None:
    first, _ = make_pair()
    scripted = ScriptedShard(Answer(), Drop(), Drop())
    async with serving(first) as [one], connected(one.port) as ask, scripted.running() as owner:
        first.point("orders", 0, owner="sample-1", http=owner.address)
        assert isinstance(await ask.put("k"), m.Written)
        assert (await ask.put("k")).name == "Unknown"
        assert (await ask.get("k")).name == "Unavailable"
        assert [seen.method for seen in owner.seen] == ["PUT", "PUT", "GET"]  # each once


async def test_no_owner_at_all_is_unavailable() -> None:
    first, _ = make_pair()
    async with serving(first) as [one], connected(one.port) as ask:
        assert (await ask.put("k")).name == "Unavailable"


async def test_a_request_is_held_during_a_move_and_then_goes_to_the_new_owner() -> None:
    first, second = make_pair()
    partition = first.own("orders", 0)
    async with serving(first, second) as [one, two], connected(one.port) as ask:

        async def moved(node: FakeNode) -> None:
            node.point("orders", 0, owner="sample-1", http=f"127.0.0.1:{two.port}", epoch=2)

        first.on_hold = moved
        assert isinstance(await ask.put("k"), m.Written)
    assert partition.calls == []
    assert len(second.calls) == 1


async def test_a_write_refused_after_it_was_taken_goes_to_the_new_owner() -> None:
    first, second = make_pair()
    partition = first.own("orders", 0)
    async with serving(first, second) as [one, two], connected(one.port) as ask:
        event = asyncio.Event()
        partition.script, partition.refusals = [event], [not_owner()]  # type: ignore[list-item]
        ask.send(m.Put(1, "orders", None, "k", b"v", None), m.Ping(1))
        assert await ask.read() == m.Pong(1)
        first.point("orders", 0, owner="sample-1", http=f"127.0.0.1:{two.port}", epoch=2)
        event.set()
        assert isinstance(await ask.read(), m.Written)
    assert (len(partition.calls), len(second.calls)) == (1, 1)


async def test_a_shard_behind_the_times_follows_the_owner_that_the_other_one_names() -> None:
    first, second = make_pair()
    shards, scripted = serving(first, second), ScriptedShard().running()
    async with shards as [one, two], scripted as former, connected(one.port) as ask:
        named = NotOwner("moved", owner="sample-1", http=f"127.0.0.1:{two.port}", epoch=2)
        former.script = [Answer.of(named)]
        first.point("orders", 0, owner="sample-2", http=former.address)
        assert isinstance(await ask.put("k"), m.Written)
        assert (len(former.seen), len(second.calls)) == (1, 1)
        former.script = [Answer.of(NotOwner("nobody knows", epoch=2))]
        assert (await ask.put("k")).name == "NotOwner"


async def test_cached_reads_are_answered_by_any_replica_else_by_the_owner() -> None:
    first, second = make_pair()
    standby = first.own("orders", 0)
    async with serving(first, second) as [one, two], connected(one.port) as ask:
        first.point("orders", 0, owner="sample-1", http=f"127.0.0.1:{two.port}")
        await ask.put("k")
        near = await ask.get("k", consistency=1)
        assert (near.name, len(second.calls)) == ("NotFound", 1)
        standby.script = [Unavailable("not that far yet"), Unavailable("not that far yet")]
        far = await ask.get("k", consistency=1, min_token=Token(1, 1))
        assert far.value == b"v"
        standby.script = [Unavailable("not that far yet"), Unavailable("not that far yet")]
        assert (await ask.get("k", consistency=1, forwarded="sample-2")).name == "Unavailable"


@pytest.mark.parametrize("how", ["cancel", "break"])
async def test_a_read_that_nobody_waits_for_is_given_up_at_the_owner_too(how: str) -> None:
    first, _ = make_pair()
    async with serving(first) as [one], ScriptedShard(Silence()).running() as owner:
        first.point("orders", 0, owner="sample-1", http=owner.address)
        async with connected(one.port) as ask, asyncio.timeout(10):
            ask.send(m.Get(1, "orders", None, "k"))
            while not owner.seen:
                await asyncio.sleep(0.01)
            if how == "cancel":
                ask.send(m.Cancel(1))
            else:
                ask.reset()
            while not any(isinstance(message, m.Cancel) for message in owner.messages):
                await asyncio.sleep(0.01)
