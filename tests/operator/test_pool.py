"""The reconciler and its pool of shard pods: updates, absences, volumes, and what a pause stops."""

from __future__ import annotations

from typing import Any

import pytest
from memory_kube import HandClock, MemoryKube
from operator_world import DEFAULT, OPERATOR, World, facts_of, kvns_object, table_object

from fencekv.kube import (
    BUDGETS,
    CLAIMS,
    KV_NAMESPACES,
    KV_PARTITIONS,
    KV_TABLES,
    LEASES,
    PODS,
    STATEFUL_SETS,
    KubeError,
    Resource,
)
from fencekv.leases import granted
from fencekv_operator.absence import LOOK_SECONDS
from fencekv_operator.cache import Cache
from fencekv_operator.pool_looks import PoolLooks
from fencekv_operator.settings import FINALIZER, NamespaceSettings

Object = dict[str, Any]


async def served(*, shards: int = 3, count: int = 2, **spec: Any) -> World:
    """A world whose pods run and whose partitions are all served, in sync."""
    world = World()
    await world.create(KV_NAMESPACES, kvns_object(shards={"replicas": shards}, **spec))
    await world.settle()
    await world.run_shards()
    world.clock.seconds += 60
    await world.create(KV_TABLES, table_object(count=count))
    await world.settle()
    await in_sync(world)
    return world


async def in_sync(world: World, *, without: tuple[str, ...] = ()) -> None:
    """Plays failover loop and shards: facts and Leases show all replicas in sync but those on some pods."""
    for each in await world.partitions():
        pods = tuple(pod for pod in each["spec"]["replicas"] if pod not in without)
        facts = facts_of(each, owner=pods[0], in_sync=pods, epoch=1)
        world.facts[each["metadata"]["uid"]] = facts
        await lease_says(world, each["metadata"]["name"], facts.lease)
    await world.settle()


async def lease_says(world: World, partition: str, lease: Any) -> None:
    raw = await world.get(LEASES, f"partition-{partition}")
    raw["spec"]["leaseTransitions"] = 0
    body = granted(
        raw,
        session=lease.session,
        epoch=1,
        in_sync=lease.in_sync,
        set_version=1,
        http="h:1",
        peer="p:1",
        unix_seconds=0.0,
    )
    await world.kube.replace(LEASES, DEFAULT, body)


async def revisions(world: World) -> dict[str, str]:
    found = {}
    for name in await world.names(PODS):
        found[name] = (await world.get(PODS, name))["metadata"]["labels"]["controller-revision-hash"]
    return found


def restarts(world: World) -> list[str]:
    return [each.message.split()[1].rstrip(":") for each in world.notices if each.reason == "RestartingShard"]


async def is_settled(world: World) -> bool:
    """What `kubectl wait` and kstatus go by."""
    seen = await world.get(KV_NAMESPACES, "sample")
    current = seen["status"]["observedGeneration"] == seen["metadata"]["generation"]
    return current and (await world.condition(KV_NAMESPACES, "sample", "Reconciling"))["status"] == "False"


async def test_what_is_asked_for_is_never_settled_before_it_is_done() -> None:
    world = await served()
    settled: list[bool] = []
    patch = world.kube.patch

    async def watch(resource: Any, *args: Any, **options: Any) -> Any:
        result = await patch(resource, *args, **options)
        settled.append(await is_settled(world))
        return result

    await world.run_shards()
    await world.settle()
    assert await is_settled(world)
    world.kube.patch = watch  # type: ignore[method-assign]
    await world.edit(KV_NAMESPACES, "sample", {"shards": {"image": "fencekv:2"}})
    await world.settle()
    assert settled
    assert not any(settled)


async def test_a_new_image_reaches_one_pod_after_the_other_each_when_all_copies_are_in_sync_again() -> None:
    world = await served()
    old = (await revisions(world))["sample-0"]
    await world.edit(KV_NAMESPACES, "sample", {"shards": {"image": "fencekv:2"}})
    await world.settle()
    assert set((await revisions(world)).values()) == {old}, "the StatefulSet's controller has not seen it yet"
    assert not await is_settled(world), "nobody may think that it is done"
    await world.run_shards()
    await world.settle()
    for gone in ("sample-2", "sample-1", "sample-0"):
        assert gone not in await world.names(PODS)
        await in_sync(world, without=(gone,))
        assert (await world.get(BUDGETS, "sample"))["spec"]["maxUnavailable"] == 0
        await world.run_shards()
        await world.settle()
        reconciling = await world.condition(KV_NAMESPACES, "sample", "Reconciling")
        if gone != "sample-0":
            assert (reconciling["status"], reconciling["reason"]) == ("True", "RollingUpdate")
            assert "to be in sync" in reconciling["message"]
        assert len(await world.names(PODS)) == 3, "nothing more goes while a copy lags"
        await in_sync(world)
    assert restarts(world) == ["sample-2", "sample-1", "sample-0"]
    assert old not in (await revisions(world)).values()
    assert (await world.condition(KV_NAMESPACES, "sample", "Reconciling"))["status"] == "False"
    assert (await world.get(BUDGETS, "sample"))["spec"]["maxUnavailable"] == 1
    assert (await world.get(KV_NAMESPACES, "sample"))["status"]["updatedShards"] == 3


async def test_a_status_that_lags_behind_the_lease_restarts_nothing() -> None:
    world = await served()
    (first, *_) = await world.partitions()
    lagging = facts_of(first, in_sync=("sample-2",), owner="sample-2").lease
    await lease_says(world, first["metadata"]["name"], lagging)  # The status still says that all are in sync.
    await world.edit(KV_NAMESPACES, "sample", {"shards": {"image": "fencekv:2"}})
    await world.settle()
    await world.run_shards()
    await world.settle()
    assert len(await world.names(PODS)) == 3
    await in_sync(world)
    assert "sample-2" not in await world.names(PODS), "the guard, and not something else, kept it"


async def test_an_image_that_is_not_there_stops_the_update_and_its_successor_goes_on() -> None:
    world = await served()
    await world.edit(KV_NAMESPACES, "sample", {"shards": {"image": "fencekv:typo"}})
    await world.settle()
    await world.run_shards()
    await world.settle()
    await world.run_shards()
    await in_sync(world, without=("sample-2",))
    await world.pod_is("sample-2", ready=False, waiting="ErrImagePull")
    await world.settle()
    stalled = await world.condition(KV_NAMESPACES, "sample", "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "ShardsFailing")
    assert stalled["message"] == "sample-2: ErrImagePull: as told"
    assert restarts(world) == ["sample-2"]
    await world.edit(KV_NAMESPACES, "sample", {"shards": {"image": "fencekv:2"}})
    await world.settle()
    await world.run_shards()
    await world.pod_is("sample-2", ready=False, waiting="ErrImagePull")
    await world.settle()
    assert restarts(world) == ["sample-2", "sample-2"], "the one that is down, at once, and no other"


async def test_a_pause_stops_everything_but_statuses() -> None:
    world = await served(deletionPolicy="Delete")
    await world.edit(KV_NAMESPACES, "sample", {"paused": True})
    await world.settle()
    writes = len(world.kube.writes)
    await world.edit(KV_NAMESPACES, "sample", {"shards": {"image": "fencekv:2", "replicas": 5}})
    await world.edit(KV_TABLES, "orders", {"replicas": 1})
    await world.create(KV_TABLES, table_object("later"))
    await world.kube.delete(KV_NAMESPACES, DEFAULT, "sample")
    await world.settle()
    theirs = 4
    ours = [path for _, path in world.kube.writes[writes + theirs :]]
    assert {path.rpartition("/")[2] for path in ours} == {"status"}, ours
    assert (await world.condition(KV_NAMESPACES, "sample", "Paused"))["status"] == "True"
    assert (await world.condition(KV_TABLES, "orders", "Paused"))["status"] == "True"
    assert (await world.get(KV_NAMESPACES, "sample"))["metadata"]["finalizers"] == [FINALIZER]


async def test_a_table_that_is_paused_keeps_its_partitions_as_they_are() -> None:
    world = await served()
    await world.edit(KV_TABLES, "orders", {"paused": True, "replicas": 1})
    await world.create(KV_TABLES, table_object("other", count=1))
    await world.settle()
    sizes = {each["metadata"]["name"]: len(each["spec"]["replicas"]) for each in await world.partitions()}
    assert sizes == {"orders-0": 3, "orders-1": 3, "other-0": 3}
    await world.edit(KV_TABLES, "orders", {"paused": False})
    await world.settle()
    await in_sync(world)
    assert len((await world.get(KV_PARTITIONS, "orders-0"))["spec"]["replicas"]) == 2


async def wait_away(world: World, seconds: float) -> None:
    """Lets time pass as the operator hears it: it looks every few seconds."""
    end = world.clock.seconds + seconds
    while world.clock.seconds < end:
        world.clock.seconds += LOOK_SECONDS
        await world.settle()


async def test_a_shard_that_is_away_for_too_long_is_replaced_and_one_that_comes_back_in_time_is_not() -> None:
    world = await served(shards=4, count=1, replaceAfterSeconds=60)
    (before,) = [set(each["spec"]["replicas"]) for each in await world.partitions()]
    (spare,) = {f"sample-{ordinal}" for ordinal in range(4)} - before
    lost = max(before)
    await world.pod_is(lost, ready=False)
    await in_sync(world, without=(lost,))
    await wait_away(world, 50)
    await world.pod_is(lost)
    await wait_away(world, 20)
    await world.pod_is(lost, ready=False)
    await wait_away(world, 50)
    assert set((await world.get(KV_PARTITIONS, "orders-0"))["spec"]["replicas"]) == before
    await wait_away(world, 20)
    assert spare in (await world.get(KV_PARTITIONS, "orders-0"))["spec"]["replicas"]
    await in_sync(world, without=(lost,))
    assert set((await world.get(KV_PARTITIONS, "orders-0"))["spec"]["replicas"]) == before - {lost} | {spare}


async def test_volumes_grow_and_a_refusal_is_shown_and_stops_nothing_else() -> None:
    world = await served()
    patch, refused = world.kube.patch, []

    async def refuse(resource: Any, namespace: Any, name: str, *args: Any, **options: Any) -> Any:
        if resource is CLAIMS and not refused:
            raise KubeError(403, "Forbidden", "the storageclass must support resize")
        return await patch(resource, namespace, name, *args, **options)

    world.kube.patch = refuse  # type: ignore[method-assign]
    await world.edit(KV_NAMESPACES, "sample", {"shards": {"storage": {"size": "2Gi"}, "replicas": 4}})
    await world.settle()
    stalled = await world.condition(KV_NAMESPACES, "sample", "Stalled")
    assert stalled["status"] == "True"
    assert "must support resize" in stalled["message"]
    assert (await world.get(STATEFUL_SETS, "sample"))["spec"]["replicas"] == 4
    refused.append(False)
    await world.run_shards()
    await world.settle()
    sizes = {
        name: (await world.get(CLAIMS, name))["spec"]["resources"]["requests"]["storage"]
        for name in await world.names(CLAIMS)
    }
    assert sizes == {f"data-sample-{ordinal}": "2Gi" for ordinal in range(4)}
    assert (await world.condition(KV_NAMESPACES, "sample", "Stalled"))["status"] == "False"
    template = (await world.get(STATEFUL_SETS, "sample"))["spec"]["volumeClaimTemplates"][0]
    assert template["spec"]["resources"]["requests"]["storage"] == "1Gi", "it cannot change, and need not"


@pytest.mark.parametrize("surplus", [1, 2])
async def test_surplus_pods_leave_one_by_one(surplus: int) -> None:
    world = await served(shards=3 + surplus, count=4)
    await world.edit(KV_NAMESPACES, "sample", {"shards": {"replicas": 3}})
    sizes = []
    for _ in range(30):
        await world.settle()
        sizes.append((await world.get(STATEFUL_SETS, "sample"))["spec"]["replicas"])
        await world.run_shards()
        await in_sync(world)
        if sizes[-1] == 3:
            break
    assert sorted(set(sizes), reverse=True) == list(range(3 + surplus, 2, -1))[-len(set(sizes)) :], sizes
    assert len(set(sizes)) >= surplus
    for each in await world.partitions():
        assert set(each["spec"]["replicas"]) <= {"sample-0", "sample-1", "sample-2"}


async def test_a_pod_is_away_for_good_only_if_the_server_itself_says_so() -> None:
    """A watch that died silently leaves an old state in the cache."""
    clock, cache = HandClock(), Cache()
    server = {f"sample-{ordinal}": True for ordinal in range(4)}

    def pod(name: str, *, ready: bool, version: str) -> Object:
        labels = {"fencekv.io/namespace": "sample", "fencekv.io/kind": "shard"}
        meta = {"namespace": DEFAULT, "name": name, "uid": name, "resourceVersion": version, "labels": labels}
        return {"metadata": meta, "status": {"conditions": [{"type": "Ready", "status": str(ready)}]}}

    async def look(resource: Resource, namespace: str, name: str) -> None:
        cache.put(PODS, pod(name, ready=server[name], version="2"))

    looks = PoolLooks(
        cache=cache,
        kube=MemoryKube(clock),
        clock=clock,
        look=look,
        learn=lambda *_: None,
        answered_at=clock.now,
    )
    body = kvns_object(shards={"replicas": 4}, replaceAfterSeconds=10)
    body["metadata"].update(uid="u", resourceVersion="1")
    kvns = NamespaceSettings.parse(body, OPERATOR)
    for name in server:
        cache.put(PODS, pod(name, ready=name != "sample-1", version="1"))
    assert (await looks.look(DEFAULT, kvns)).again
    clock.seconds += 11
    assert not (await looks.look(DEFAULT, kvns)).changed, "it was ready all the time"
    server["sample-2"] = False
    cache.put(PODS, pod("sample-2", ready=False, version="3"))
    await looks.look(DEFAULT, kvns)
    clock.seconds += 11
    assert (await looks.look(DEFAULT, kvns)).changed
    assert looks.away(DEFAULT, "sample") == {"sample-2"}
    looks.observe(DEFAULT, "sample", pod("sample-2", ready=True, version="4"))
    cache.put(PODS, pod("sample-2", ready=False, version="5"))
    assert (await looks.look(DEFAULT, kvns)).changed, "it was back between two looks: another absence"
    clock.seconds += 11
    await looks.look(DEFAULT, kvns)
    assert looks.away(DEFAULT, "sample") == {"sample-2"}
    looks.forget()
    assert looks.away(DEFAULT, "sample") == frozenset()
