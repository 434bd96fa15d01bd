"""A crash between any two writes, and two operators at once: the same end."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from operator_world import World, kvns_object, table_object

from fencekv.kube import KV_NAMESPACES, KV_TABLES, KubeNotFound


class Crash(Exception):
    """The operator dies here."""


async def run_to_the_end(world: World, *, delete: bool) -> None:
    await world.settle()
    await world.run_shards()
    await world.grant_all()
    await world.settle()
    if delete:
        for resource, name in ((KV_TABLES, "orders"), (KV_NAMESPACES, "sample")):
            with contextlib.suppress(KubeNotFound):
                await world.delete(resource, name)
        await world.settle()


@pytest.mark.slow
@pytest.mark.parametrize("delete", [False, True], ids=["making", "deleting"])
async def test_a_crash_between_any_two_writes_still_converges(delete: bool) -> None:
    async def run(crash_after: int | None) -> tuple[dict[str, Any], int]:
        world = World()
        policy = {"deletionPolicy": "Delete"} if delete else {}
        await world.create(KV_NAMESPACES, kvns_object(**policy))
        await world.create(KV_TABLES, table_object(**policy))
        start = len(world.kube.writes)

        def crash(method: str, _path: str) -> None:
            if method != "GET" and len(world.kube.writes) - start == crash_after:
                world.kube.before = lambda _method, _path: None
                raise Crash

        world.kube.before = crash
        try:
            await run_to_the_end(world, delete=delete)
        except Crash:
            world.operator()
            await run_to_the_end(world, delete=delete)
        return await world.picture(), len(world.kube.writes) - start

    wanted, writes = await run(None)
    assert writes > 20
    for crash_after in range(writes):
        picture, _ = await run(crash_after)
        assert picture == wanted, f"after {crash_after} writes"


async def test_two_operators_at_once_reach_the_same_end() -> None:
    lone = World()
    pair = World()
    for world in (lone, pair):
        await world.create(KV_NAMESPACES, kvns_object())
        await world.create(KV_TABLES, table_object(count=4))
    await run_to_the_end(lone, delete=False)
    first, second = pair.reconciler, pair.operator()
    await asyncio.gather(pair.settle(first), pair.settle(second))
    await pair.run_shards()
    await pair.grant_all()
    await asyncio.gather(pair.settle(first), pair.settle(second))
    assert await pair.picture() == await lone.picture()
