"""Partitions that all want the API server at once leave room for the session."""

from __future__ import annotations

import asyncio
from typing import Any

from fencekv.kube import LEASES
from fencekv_shard.turns import NotWanted, Turns

Object = dict[str, Any]


class Slow:
    """An API server that answers when it is told to."""

    def __init__(self) -> None:
        self.under_way: list[str] = []
        self.answers: dict[str, asyncio.Event] = {}

    async def get(self, resource: object, namespace: object, name: str, *, timeout: float = 1.0) -> Object:
        self.under_way.append(name)
        try:
            await self.answers.setdefault(name, asyncio.Event()).wait()
        finally:
            self.under_way.remove(name)
        return {"name": name}

    async def replace(self, resource: object, namespace: object, body: Object, *, timeout: float = 1.0) -> Object:
        return await self.get(resource, namespace, body["name"], timeout=timeout)


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_so_many_are_under_way_and_the_others_come_in_order() -> None:
    slow = Slow()
    turns = Turns(slow, writes=2)
    asked = [asyncio.create_task(turns.replace(LEASES, "default", {"name": name})) for name in "abcd"]
    await settled()
    assert slow.under_way == ["a", "b"]

    slow.answers["a"].set()
    await settled()
    assert slow.under_way == ["b", "c"]

    asked[3].cancel()  # who waits no more takes no turn
    for name in ("b", "c"):
        slow.answers[name].set()
    done = await asyncio.gather(*asked, return_exceptions=True)
    assert done[:3] == [{"name": "a"}, {"name": "b"}, {"name": "c"}]
    assert isinstance(done[3], asyncio.CancelledError)
    assert slow.under_way == []


async def test_a_turn_that_ends_badly_is_given_on() -> None:
    slow = Slow()
    turns = Turns(slow, reads=1)
    first = asyncio.create_task(turns.get(LEASES, "default", "a"))
    second = asyncio.create_task(turns.get(LEASES, "default", "b"))
    await settled()
    first.cancel()
    await settled()
    assert slow.under_way == ["b"]
    slow.answers["b"].set()
    assert await second == {"name": "b"}


async def test_it_is_known_whether_any_read_is_under_way_or_waits() -> None:
    slow = Slow()
    turns = Turns(slow, reads=1)
    assert not turns.reading
    asked = [asyncio.create_task(turns.get(LEASES, "default", name)) for name in "ab"]
    await settled()
    assert turns.reading
    slow.answers["a"].set()
    await asked[0]
    assert turns.reading
    asked[1].cancel()
    await asyncio.wait(asked)
    assert not turns.reading
    written = asyncio.create_task(turns.replace(LEASES, "default", {"name": "c"}))
    await settled()
    assert not turns.reading
    slow.answers["c"].set()
    await written


async def test_reads_do_not_wait_for_writes() -> None:
    """Who opens a partition that nobody serves reads; who changes the set of one that is served writes."""
    slow = Slow()
    turns = Turns(slow, reads=1, writes=1)
    asked = [asyncio.create_task(turns.replace(LEASES, "default", {"name": name})) for name in "abc"]
    await settled()
    asked.append(asyncio.create_task(turns.get(LEASES, "default", "d")))
    await settled()
    assert slow.under_way == ["a", "d"]
    for name in "abcd":
        slow.answers.setdefault(name, asyncio.Event()).set()
    await asyncio.gather(*asked)


async def test_a_release_does_not_wait_for_other_writes() -> None:
    slow = Slow()
    turns = Turns(slow, writes=1)
    asked = [asyncio.create_task(turns.replace(LEASES, "default", {"name": name})) for name in "ab"]
    asked.append(asyncio.create_task(turns.replace(LEASES, "default", {"name": "c"}, releases=True)))
    await settled()
    assert slow.under_way == ["a", "c"]
    for name in "abc":
        slow.answers.setdefault(name, asyncio.Event()).set()
    await asyncio.gather(*asked)


async def test_what_its_turn_finds_needless_is_not_sent() -> None:
    slow = Slow()
    turns = Turns(slow, writes=1)
    wanted = {"b", "c"}
    asked = [
        asyncio.create_task(
            turns.replace(LEASES, "default", {"name": name}, wanted=lambda name=name: name in wanted)
        )
        for name in "bcd"
    ]
    await settled()
    wanted.clear()
    slow.answers["b"].set()
    done = await asyncio.gather(*asked, return_exceptions=True)
    assert done[0] == {"name": "b"}  # it was under way already
    assert [type(each) for each in done[1:]] == [NotWanted, NotWanted]
    assert slow.answers.keys() == {"b"}
