"""The mover at work in the failover loop, in virtual time: owners go home once it is calm, and only then."""

from __future__ import annotations

import asyncio
from collections import Counter

from failover_world import NAMESPACE, World

from fencekv_operator.facts import Reason
from fencekv_operator.failover import Failover
from fencekv_operator.moves import CALM_SECONDS, RETRY_SECONDS
from fencekv_operator.placing import Preference

HOME, OTHER, THIRD = "s-0", "s-1", "s-2"


async def failed_over(world: World) -> Failover:
    """The first pod of all partitions was killed and is back, in sync; others own."""
    failover = await world.started()
    world.join_all()
    home = world.shards[HOME]
    home.process.crash()
    world.release(home.session)
    await world.until(lambda: all(world.epoch(name) == 2 for name in world.names.values()))
    world.start(HOME)
    await asyncio.sleep(2)
    for name in world.names.values():
        world.join(HOME, name)
    world.transitions.clear()
    return failover


def owners(world: World) -> Counter[str]:
    return Counter(world.owner(name) for name in world.names.values())


def test_after_a_failover_owners_go_home_when_it_is_calm_and_only_as_far_as_it_evens_the_load() -> None:
    world = World(partitions=4)
    world.wishes = dict.fromkeys((f"orders-{number}" for number in range(4)), Preference.BALANCED)

    async def story() -> None:
        await failed_over(world)
        away = owners(world)
        assert away[HOME] == 0
        await asyncio.sleep(CALM_SECONDS - 5)
        assert owners(world) == away, "not yet"
        await asyncio.sleep(3 * CALM_SECONDS)
        settled = owners(world)
        assert max(settled[pod] - settled[HOME] for pod in (OTHER, THIRD)) < 2, settled
        assert settled[HOME] >= 1
        assert set(world.reasons()) == {Reason.RELEASED}
        count = len(world.transitions)
        await asyncio.sleep(10 * CALM_SECONDS)
        assert len(world.transitions) == count, "and then they stay"

    world.run(story)


def test_what_is_required_moves_at_once_and_what_is_not_wished_for_not_at_all() -> None:
    world = World(partitions=2)
    world.wishes = {"orders-0": Preference.REQUIRED}

    async def story() -> None:
        await failed_over(world)
        assert await world.until(lambda: world.owner("orders-0") == HOME, seconds=10) < 8
        await asyncio.sleep(3 * CALM_SECONDS)
        assert world.owner("orders-1") != HOME

    world.run(story)


def test_nothing_moves_to_a_pod_that_is_not_in_sync() -> None:
    world = World()
    world.wishes = {"orders-0": Preference.REQUIRED}

    async def story() -> None:
        failover = await world.started()
        world.join(OTHER)
        home = world.shards[HOME]
        home.process.crash()
        world.release(home.session)
        await world.until(lambda: world.epoch() == 2)
        world.start(HOME)
        await asyncio.sleep(20)
        assert world.release_requests == []
        assert await failover.mover.order(NAMESPACE, "orders-0", HOME) == f"{HOME}: it is not in sync"
        assert await failover.mover.order(NAMESPACE, "orders-9") == "nobody owns it"
        world.join(HOME)
        await world.until(lambda: world.owner() == HOME, seconds=10)

    world.run(story)


def test_an_order_moves_to_the_pod_that_is_named_or_to_the_best() -> None:
    world = World()

    async def story() -> None:
        failover = await world.started()
        world.join_all()
        await asyncio.sleep(3)
        assert await failover.mover.order(NAMESPACE, "orders-0", THIRD) == ""
        await world.until(lambda: world.owner() == THIRD, seconds=2)
        assert (
            await failover.mover.order(NAMESPACE, "orders-0", THIRD) == f"{THIRD}: it owns the partition already"
        )
        await asyncio.sleep(3)
        assert await failover.mover.order(NAMESPACE, "orders-0") == ""
        await world.until(lambda: world.owner() == HOME, seconds=2)

    world.run(story)


def test_an_owner_that_does_not_agree_is_left_alone_for_a_while() -> None:
    world = World()
    world.wishes = {"orders-0": Preference.REQUIRED}

    async def story() -> None:
        world.agrees = False
        await failed_over(world)
        await world.until(lambda: len(world.release_requests) == 1, seconds=10)
        await asyncio.sleep(RETRY_SECONDS - 5)
        assert len(world.release_requests) == 1
        world.agrees = True
        await world.until(lambda: world.owner() == HOME, seconds=10)

    world.run(story)
