"""The owner is killed, in each way: how long until its partitions write again, and what was lost."""

from __future__ import annotations

import asyncio
import time

import pytest
from world import D, World

from fencekv.kube import PODS
from fencekv.leases import SessionLease
from fencekv.partitioning import HashPartitioning
from fencekv_sandbox.sandbox import Owner

KILLS = 30
PARTITIONS = 100  # each shard holds them all, and owns a third

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


async def test_a_killed_shard_process_is_replaced_within_a_second_the_longest_of_30(make) -> None:
    async with make() as world:
        longest = 0.0
        async with world.load("a", "b") as load:
            for _ in range(KILLS):
                await world.all_in_sync()
                since = time.monotonic()
                old = await world.sandbox.kill_owner("orders-0", "child")
                longest = max(longest, await load.taken_over(since, dict.fromkeys("ab", old.epoch)))
        await load.check()
        print(f"killed {KILLS} times, writing again after {longest:.3f} s at most")
        assert longest <= 1.0
        lease = await world.sandbox.partition_lease("orders-0")
        assert lease.epoch == KILLS + 1


async def test_a_killed_container_is_replaced_within_three_seconds(make) -> None:
    async with make() as world:
        async with world.load("a", "b") as load:
            for _ in range(3):
                await world.all_in_sync()
                since = time.monotonic()
                old = await world.sandbox.kill_owner("orders-0", "all")
                seconds = await load.taken_over(since, dict.fromkeys("ab", old.epoch))
                print(f"container killed, writing again after {seconds:.3f} s")
                assert seconds <= 3.0
        await load.check()


async def test_a_frozen_owner_is_replaced_after_d_and_acknowledges_nothing_when_it_thaws(make) -> None:
    async with make() as world:
        async with world.load("a", "b") as load:
            owner = await world.sandbox.owner_of("orders-0")
            pod = world.sandbox.pod(owner.pod)
            since = time.monotonic()
            pod.freeze()
            try:
                seconds = await load.taken_over(since, dict.fromkeys("ab", owner.epoch))
            finally:
                pod.thaw()
            print(f"frozen, writing again after {seconds:.3f} s, D is {D} s")
            assert seconds <= D + 2
            after = await world.sandbox.owner_of("orders-0")
            assert after.epoch > owner.epoch
            assert after.session != owner.session
            await world.all_in_sync()
        await load.check()


async def test_a_pod_that_is_deleted_by_force_costs_d_and_not_its_successors_start_as_well(make) -> None:
    """Its supervisor does not come to release the session, and its object, with the container's end, is gone."""
    d = 6  # its successor is there well before
    async with make(d=d, v=4) as world:
        async with world.load("a", "b") as load:
            for _ in range(3):
                await world.all_in_sync()
                owner = await world.sandbox.owner_of("orders-0")
                since = time.monotonic()
                world.sandbox.pod(owner.pod).freeze()
                await asyncio.sleep(1.0)  # a kubelet that is slow to hear of it
                await world.sandbox.kube.delete(
                    PODS, world.sandbox.namespace, owner.pod, options={"gracePeriodSeconds": 0}
                )
                after = await world.settled(lambda old=owner: followed(world, old))
                followed_seconds = time.monotonic() - since
                seconds = await load.taken_over(since, dict.fromkeys("ab", owner.epoch))
                print(f"followed after {followed_seconds:.3f} s, writing again after {seconds:.3f} s, D is {d} s")
                assert after.taken_from is not None
                assert after.taken_from.session == owner.session
                assert seconds < followed_seconds + d
        await load.check()


async def followed(world: World, old: Owner) -> SessionLease | None:
    """The Lease of the pod once another session holds it."""
    seen = await world.sandbox.session_lease(old.pod)
    return None if seen.session == old.session else seen


async def test_a_shard_with_100_partitions_and_1000_keys_is_replaced_within_five_seconds(make) -> None:
    async with make(table=False) as world:
        await world.table(partitions=PARTITIONS, seconds=120)
        await world.all_in_sync(seconds=120)
        keys = [f"key-{number}" for number in range(1000)]
        async with world.load(*keys, pause_seconds=2.0, readers=False) as load:
            await load.all_written()
            places: dict[str, list[str]] = {}
            for key in keys:
                places.setdefault(f"orders-{HashPartitioning(PARTITIONS).partition_of(key)}", []).append(key)
            owners = {name: await world.sandbox.owner_of(name) for name in await world.uids()}
            pod = world.sandbox.pod(owners["orders-0"].pod)
            mine = [name for name, owner in owners.items() if owner.pod == pod.name]
            assert len(mine) >= 30, "owners are spread over the shards"
            since = time.monotonic()
            pod.kill("child")
            for name in mine:
                await world.sandbox.wait_owner(name, epoch_min=owners[name].epoch + 1, seconds=10)
            granted = time.monotonic() - since
            groups = [(places[name], owners[name].epoch) for name in mine if name in places]
            seconds = await load.all_taken_over(since, groups)
            print(f"{len(mine)} partitions granted after {granted:.3f} s, the last writes after {seconds:.3f} s")
            assert seconds <= 5.0
        await load.check()
