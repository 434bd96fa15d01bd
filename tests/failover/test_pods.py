"""Shards as pods: updates, growing and shrinking, a shard that is lost for good, and what people stop or hold."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
from world import World

from fencekv.kube import CLAIMS, KV_NAMESPACES, KV_PARTITIONS, PODS
from fencekv.leases import HOLD_FAILOVER

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

REVISION = "controller-revision-hash"
PAUSE_SECONDS_MAX = 2.0  # of a planned move; the drills on a cluster hold it to less


async def pods(world: World) -> dict[str, Any]:
    items = (await world.sandbox.kube.list(PODS, world.sandbox.namespace)).items
    return {each["metadata"]["name"]: each for each in items if each["metadata"]["name"].startswith("sample-")}


async def namespace(world: World) -> Any:
    return await world.sandbox.kube.get(KV_NAMESPACES, world.sandbox.namespace, "sample")


async def ask(world: World, spec: dict[str, Any]) -> None:
    await world.sandbox.kube.patch(KV_NAMESPACES, world.sandbox.namespace, "sample", {"spec": spec})


async def condition(world: World, kind: str) -> dict[str, Any]:
    conditions = (await namespace(world))["status"]["conditions"]
    found: dict[str, Any] = next(each for each in conditions if each["type"] == kind)
    return found


async def settled(world: World) -> bool:
    """Whether the operator has seen the newest spec, and has nothing left to do about the pool."""
    seen = await namespace(world)
    if seen["status"]["observedGeneration"] != seen["metadata"]["generation"]:
        return False
    return (await condition(world, "Reconciling"))["status"] == "False"


def longest_pause(load: Any) -> float:
    """The longest time in which a key got no write acknowledged."""
    gaps = [0.0]
    for log in load.logs.values():
        times = [when for when, _ in log.acknowledgements]
        gaps += [later - earlier for earlier, later in itertools.pairwise(times)]
    return max(gaps)


def is_ready(pod: dict[str, Any]) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return "deletionTimestamp" not in pod["metadata"] and any(
        each["type"] == "Ready" and each["status"] == "True" for each in conditions
    )


async def test_a_new_template_reaches_every_shard_while_writes_go_on(make) -> None:
    async with make() as world:
        await world.settled(lambda: settled(world))
        before = await pods(world)
        (old,) = {each["metadata"]["labels"][REVISION] for each in before.values()}
        async with world.load("a", "b") as load:
            await load.all_written()
            await ask(world, {"shards": {"resources": {"requests": {"cpu": "50m", "memory": "64Mi"}}}})
            down = 0

            async def updated() -> bool:
                nonlocal down
                now = await pods(world)
                ready = [each for each in now.values() if is_ready(each)]
                down = max(down, 3 - len(ready))
                revisions = {each["metadata"]["labels"][REVISION] for each in now.values()}
                return len(ready) == 3 and old not in revisions and await settled(world)

            await world.settled(updated, seconds=120)
            await world.all_in_sync()
        await load.check()
        print(f"longest pause {longest_pause(load):.3f} s, errors {[log.errors for log in load.logs.values()]}")
        assert down == 1, "one pod at a time"
        assert [log.errors for log in load.logs.values()] == [[], []]
        assert longest_pause(load) <= PAUSE_SECONDS_MAX


async def test_a_pool_grows_and_shrinks_while_writes_go_on(make) -> None:
    async with make(shards=4) as world:
        async with world.load("a", "b") as load:
            await load.all_written()
            before = await world.partition("orders-0")
            last = "sample-3"
            if last not in before["spec"]["replicas"]:
                wanted = [last, *before["spec"]["replicas"][:2]]
                await world.sandbox.kube.patch(
                    KV_PARTITIONS, world.sandbox.namespace, "orders-0", {"spec": {"replicas": wanted}}
                )
                await world.settled(lambda: holds(world, last))
            await ask(world, {"shards": {"replicas": 3}})

            async def shrunk() -> bool:
                return last not in await pods(world) and await settled(world)

            await world.settled(shrunk, seconds=120)
            after = await world.partition("orders-0")
            assert last not in after["spec"]["replicas"]
            await world.all_in_sync()
        await load.check()
        print(f"longest pause {longest_pause(load):.3f} s, errors {[log.errors for log in load.logs.values()]}")
        assert [log.errors for log in load.logs.values()] == [[], []]


async def holds(world: World, pod: str) -> bool:
    found = await world.partition("orders-0")
    return pod in (found["status"].get("inSync") or ())


async def test_a_shard_that_is_away_for_good_is_made_anew_elsewhere(make) -> None:
    async with make(shards=4) as world:
        await ask(world, {"replaceAfterSeconds": 10})
        await world.settled(lambda: settled(world))  # A pod that was never Ready is away since it is there.
        replicas = set((await world.partition("orders-0"))["spec"]["replicas"])
        (spare,) = {f"sample-{ordinal}" for ordinal in range(4)} - replicas
        owner = await world.sandbox.owner_of("orders-0")
        lost = next(pod for pod in sorted(replicas) if pod != owner.pod)
        world.sandbox.pod(lost).freeze()
        try:

            async def replaced() -> bool:
                found = await world.partition("orders-0")
                wanted = replicas - {lost} | {spare}
                return set(found["spec"]["replicas"]) == wanted == set(found["status"]["inSync"])

            began = time.monotonic()
            await world.settled(replaced, seconds=60)
            assert time.monotonic() - began >= 10
        finally:
            world.sandbox.pod(lost).thaw()


async def test_a_person_holds_a_failover_and_lets_it_go(make) -> None:
    async with make() as world:
        note = {HOLD_FAILOVER: "looking at its disk"}
        await annotate(world, note)
        owner = await world.sandbox.kill_owner("orders-0", "child")

        async def blocked() -> bool:
            found = await world.partition("orders-0")
            conditions = {each["type"]: each for each in found["status"]["conditions"]}
            return conditions["Blocked"]["reason"] == "Held" and "at its disk" in conditions["Blocked"]["message"]

        await world.settled(blocked)
        assert (await world.sandbox.owner_of("orders-0")).epoch == owner.epoch
        await annotate(world, dict.fromkeys(note))
        after = await world.sandbox.wait_owner("orders-0", epoch_min=owner.epoch + 1)
        assert after.session != owner.session
        await world.all_in_sync()


async def annotate(world: World, notes: dict[str, str | None]) -> None:
    body = {"metadata": {"annotations": notes}}
    await world.sandbox.kube.patch(KV_PARTITIONS, world.sandbox.namespace, "orders-0", body)


async def test_a_paused_namespace_fails_over_and_does_nothing_else(make) -> None:
    async with make() as world:
        await world.settled(lambda: settled(world))
        before = await pods(world)
        await ask(world, {"paused": True, "shards": {"image": "fencekv:other"}, "replaceAfterSeconds": 10})
        await world.settled(lambda: is_paused(world))
        owner = await world.sandbox.kill_owner("orders-0", "child")
        await world.sandbox.wait_owner("orders-0", epoch_min=owner.epoch + 1)
        await world.all_in_sync()
        now = await pods(world)
        assert {name: each["metadata"]["uid"] for name, each in now.items()} == {
            name: each["metadata"]["uid"] for name, each in before.items()
        }
        await ask(world, {"paused": False})

        async def restarted() -> bool:
            pod = (await pods(world)).get("sample-2")
            return pod is not None and pod["metadata"]["uid"] != before["sample-2"]["metadata"]["uid"]

        await world.settled(restarted)


async def test_volumes_grow_under_running_shards(make) -> None:
    async with make(table=False) as world:
        await world.settled(lambda: settled(world))
        await ask(world, {"shards": {"storage": {"size": "2Gi"}}})
        if world.plane is not None:  # A real API server, and no StorageClass that lets a volume grow.

            async def refused() -> bool:
                stalled = await condition(world, "Stalled")
                return stalled["status"] == "True" and "must support resize" in stalled["message"]

            await world.settled(refused)
            assert (await condition(world, "Ready"))["status"] == "True"
            return
        await world.settled(lambda: settled(world))
        for claim in (await world.sandbox.kube.list(CLAIMS, world.sandbox.namespace)).items:
            assert claim["status"]["capacity"]["storage"] == "2Gi"


async def is_paused(world: World) -> bool:
    return (await condition(world, "Paused"))["status"] == "True"
