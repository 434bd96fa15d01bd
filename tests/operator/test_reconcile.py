"""The reconciler on an API server in memory: what it makes, keeps, shows and removes, and what a crash leaves."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from operator_world import DEFAULT, World, facts_of, kvns_object, table_object

from fencekv.kube import (
    BUDGETS,
    CLAIMS,
    KV_NAMESPACES,
    KV_PARTITIONS,
    KV_TABLES,
    LEASES,
    NETWORK_POLICIES,
    PODS,
    ROLES,
    SERVICE_ACCOUNTS,
    SERVICES,
    STATEFUL_SETS,
    KubeError,
    Unclear,
)
from fencekv.leases import PartitionLease
from fencekv_operator.facts import Reason, Transition, Trouble
from fencekv_operator.reconcile import CREATIONS_AT_ONCE, PARTITION, RACES_MAX, TABLE
from fencekv_operator.settings import FINALIZER

Object = dict[str, Any]


async def started(**spec: Any) -> World:
    """A world with a namespace whose shards run, for long enough that nothing waits for their nodes."""
    world = World()
    await world.create(KV_NAMESPACES, kvns_object(**spec))
    await world.settle()
    await world.run_shards()
    world.clock.seconds += 60
    await world.settle()
    return world


async def with_table(*, table: Object | None = None, **spec: Any) -> World:
    """The same with a table whose partitions are all served."""
    world = await started(**spec)
    await world.create(KV_TABLES, table or table_object())
    await world.settle()
    await world.grant_all()
    await world.settle()
    return world


async def test_the_partitions_of_a_table_are_made_side_by_side_but_not_all_at_once() -> None:
    world = await started()
    count = 3 * CREATIONS_AT_ONCE
    await world.create(KV_TABLES, table_object(count=count))
    create, under_way = world.kube.create, [0]

    async def slow(resource: Any, *args: Any, **options: Any) -> Any:
        if resource is not KV_PARTITIONS:
            return await create(resource, *args, **options)
        under_way.append(under_way[-1] + 1)
        await asyncio.sleep(0)
        under_way.append(under_way[-1] - 1)
        return await create(resource, *args, **options)

    world.kube.create = slow  # type: ignore[method-assign]
    await world.settle()
    assert len(await world.names(KV_PARTITIONS)) == count
    assert max(under_way) == CREATIONS_AT_ONCE


async def test_a_partition_that_cannot_be_made_keeps_none_beside_it_from_being_made() -> None:
    world = await started()
    await world.create(KV_TABLES, table_object(count=4))
    create, refused = world.kube.create, [0]

    async def refuse(resource: Any, namespace: Any, body: Any, **options: Any) -> Any:
        if resource is KV_PARTITIONS and body["metadata"]["name"] == "orders-1" and refused[0] < RACES_MAX:
            refused[0] += 1
            raise KubeError(403, "Forbidden", "not that one")
        return await create(resource, namespace, body, **options)

    world.kube.create = refuse  # type: ignore[method-assign]
    reconciler = world.reconciler
    await reconciler.resync()
    with pytest.raises(KubeError, match="not that one"):
        await reconciler.process((TABLE, "default", "orders"))
    assert await world.names(KV_PARTITIONS) == ["orders-0", "orders-2", "orders-3"]
    assert (await world.condition(KV_TABLES, "orders", "Stalled"))["message"].endswith("not that one")
    await world.settle()
    assert len(await world.names(KV_PARTITIONS)) == 4


async def test_a_namespace_gets_everything_its_shards_need() -> None:
    world = await started()
    assert await world.names(STATEFUL_SETS) == ["sample"]
    assert await world.names(SERVICES) == ["sample", "sample-shards"]
    assert await world.names(SERVICE_ACCOUNTS) == ["fencekv-shard-sample"]
    assert await world.names(ROLES) == ["fencekv-shard-sample"]
    assert await world.names(BUDGETS) == ["sample"]
    assert await world.names(NETWORK_POLICIES) == ["sample"]
    ready = await world.condition(KV_NAMESPACES, "sample", "Ready")
    assert ready["status"] == "True"
    assert (await world.get(KV_NAMESPACES, "sample"))["status"]["readyShards"] == 3


async def test_a_table_gets_partitions_each_with_a_record_that_nobody_holds() -> None:
    world = await started()
    await world.create(KV_TABLES, table_object(count=4))
    await world.settle()
    assert await world.names(KV_PARTITIONS) == [f"orders-{index}" for index in range(4)]
    for partition in await world.partitions():
        lease = PartitionLease.parse(await world.get(LEASES, f"partition-{partition['metadata']['name']}"))
        assert (lease.epoch, lease.session, lease.in_sync) == (0, None, ())
        assert lease.partition_uid == partition["metadata"]["uid"]
        assert partition["status"]["epoch"] == 0
        assert partition["status"]["phase"] == "Pending"
    owners = [each["spec"]["replicas"][0] for each in await world.partitions()]
    assert sorted(set(owners)) == ["sample-0", "sample-1", "sample-2"]


async def test_a_new_partition_and_its_record_are_two_writes_and_no_read() -> None:
    world = await started()
    await world.create(KV_TABLES, table_object(count=4))
    await world.reconciler.resync()
    asked: list[str] = []
    world.kube.before = lambda method, path: asked.append(f"{method} {path}")
    await world.drain(world.reconciler)
    ours = [each.rpartition("/") for each in asked if "kvpartitions" in each or "leases" in each]
    assert sorted(last for _, _, last in ours) == ["kvpartitions"] * 4 + ["leases"] * 4, ours
    assert {first.split()[0] for first, _, _ in ours} == {"POST"}


async def test_a_record_that_was_not_made_with_its_partition_is_made_later() -> None:
    world = await started()
    await world.create(KV_TABLES, table_object(count=1))

    def refuse(method: str, path: str) -> None:
        if method == "POST" and "/leases" in path:
            world.kube.before = lambda _method, _path: None
            raise Unclear("no answer")

    world.kube.before = refuse
    await world.settle()
    assert PartitionLease.parse(await world.get(LEASES, "partition-orders-0")).epoch == 0


async def test_a_served_table_is_ready_and_says_who_serves() -> None:
    world = await with_table()
    assert (await world.condition(KV_TABLES, "orders", "Ready"))["status"] == "True"
    partition = await world.get(KV_PARTITIONS, "orders-0")
    status = partition["status"]
    assert (status["phase"], status["epoch"], status["owner"]) == ("Ready", 1, "sample-0")
    assert status["inSync"] == ["sample-0", "sample-1", "sample-2"]
    assert status["standbys"] == ["sample-1", "sample-2"]
    assert (status["token"], status["lag"]) == ("1.10", 0)


async def test_a_settled_world_is_left_alone() -> None:
    world = await with_table()
    before = len(world.kube.writes)
    world.operator()
    await world.settle()
    assert world.kube.writes[before:] == []


async def test_what_somebody_changed_by_hand_is_put_right() -> None:
    world = await started()
    await world.edit(STATEFUL_SETS, "sample", {"replicas": 1})
    await world.delete(SERVICES, "sample-shards")
    await world.settle()
    assert (await world.get(STATEFUL_SETS, "sample"))["spec"]["replicas"] == 3
    assert await world.find(SERVICES, "sample-shards") is not None


async def test_a_changed_image_and_a_dropped_node_selector_reach_the_pods() -> None:
    world = await started(shards={"nodeSelector": {"disk": "fast"}})
    await world.kube.patch(
        KV_NAMESPACES, DEFAULT, "sample", {"spec": {"shards": {"image": "other:2", "nodeSelector": None}}}
    )
    await world.settle()
    pod = (await world.get(STATEFUL_SETS, "sample"))["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == "other:2"
    assert not pod.get("nodeSelector")


async def test_a_lost_record_of_a_granted_partition_is_never_made_here() -> None:
    world = await with_table()
    await world.delete(LEASES, "partition-orders-0")
    world.operator()
    await world.settle()
    assert await world.find(LEASES, "partition-orders-0") is None


async def test_a_wiped_status_is_written_again_and_makes_no_second_record() -> None:
    world = await with_table()
    for name in await world.names(KV_PARTITIONS):
        partition = await world.get(KV_PARTITIONS, name)
        await world.kube.replace(KV_PARTITIONS, DEFAULT, {**partition, "status": {}}, subresource="status")
    leases = [await world.get(LEASES, f"partition-orders-{index}") for index in range(2)]
    await world.settle()
    assert (await world.get(KV_PARTITIONS, "orders-0"))["status"]["epoch"] == 1
    assert [await world.get(LEASES, f"partition-orders-{index}") for index in range(2)] == leases


async def test_a_record_of_an_earlier_namesake_gives_way() -> None:
    world = await started()
    stale = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "partition-orders-0", "annotations": {"fencekv.io/partition-uid": "gone"}},
        "spec": {"holderIdentity": "a/b/c", "leaseTransitions": 9},
    }
    await world.create(LEASES, stale)
    await world.create(KV_TABLES, table_object(count=1))
    await world.settle()
    lease = PartitionLease.parse(await world.get(LEASES, "partition-orders-0"))
    assert (lease.epoch, lease.session) == (0, None)


async def test_while_very_many_change_hands_what_they_show_waits() -> None:
    world = await with_table()
    partition = await world.get(KV_PARTITIONS, "orders-0")
    uid = partition["metadata"]["uid"]
    world.facts[uid] = facts_of(partition, epoch=2, owner="sample-1", in_sync=("sample-1", "sample-2"))
    world.crowded, before = True, len(world.kube.writes)
    await world.reconciler.process((PARTITION, DEFAULT, "orders-0"))
    assert len(world.kube.writes) == before
    world.crowded = False
    await world.drain(world.reconciler)
    assert (await world.get(KV_PARTITIONS, "orders-0"))["status"]["epoch"] == 2


async def test_an_owner_change_is_shown_with_its_reason_and_one_event() -> None:
    world = await with_table()
    partition = await world.get(KV_PARTITIONS, "orders-0")
    uid = partition["metadata"]["uid"]
    world.facts[uid] = facts_of(partition, epoch=2, owner="sample-1", in_sync=("sample-1", "sample-2"))
    world.reconciler.on_transition(
        DEFAULT,
        Transition(
            partition="orders-0",
            partition_uid=uid,
            reason=Reason.TERMINATED,
            from_pod="sample-0",
            to_pod="sample-1",
            from_epoch=1,
            to_epoch=2,
            seconds=0.61,
        ),
    )
    await world.drain(world.reconciler)
    status = (await world.get(KV_PARTITIONS, "orders-0"))["status"]
    assert status["owner"] == "sample-1"
    assert status["lastFailover"]["reason"] == "ContainerTerminated"
    assert (status["lastFailover"]["fromEpoch"], status["lastFailover"]["toEpoch"]) == (1, 2)
    changes = [each for each in world.notices if each.reason == "OwnerChanged"]
    assert len(changes) == 1
    assert changes[0].about_name == "orders-0"


async def test_an_epoch_in_the_status_never_falls() -> None:
    world = await with_table()
    await world.grant_all(epoch=5)
    await world.settle()
    await world.grant_all(epoch=2)
    await world.settle()
    assert (await world.get(KV_PARTITIONS, "orders-0"))["status"]["epoch"] == 5


async def test_tokens_alone_cause_no_write_until_the_slow_refresh() -> None:
    world = await with_table()
    partition = await world.get(KV_PARTITIONS, "orders-0")
    uid = partition["metadata"]["uid"]
    world.facts[uid] = facts_of(partition, seqs={"sample-0": 99, "sample-1": 97, "sample-2": 99})
    before = len(world.kube.writes)
    world.reconciler.on_change(DEFAULT, "orders-0")
    await world.drain(world.reconciler)
    assert world.kube.writes[before:] == []
    await world.settle()
    status = (await world.get(KV_PARTITIONS, "orders-0"))["status"]
    assert (status["token"], status["lag"]) == ("1.99", 2)


async def test_a_drain_may_take_no_shard_while_a_replica_is_behind() -> None:
    world = await with_table()
    assert (await world.get(BUDGETS, "sample"))["spec"]["maxUnavailable"] == 1
    partition = await world.get(KV_PARTITIONS, "orders-1")
    uid = partition["metadata"]["uid"]
    world.facts[uid] = facts_of(partition, in_sync=("sample-0", "sample-1"))
    await world.settle()
    assert (await world.get(BUDGETS, "sample"))["spec"]["maxUnavailable"] == 0
    assert (await world.condition(KV_TABLES, "orders", "Degraded"))["status"] == "True"
    assert (await world.condition(KV_TABLES, "orders", "Ready"))["status"] == "True"


async def test_a_suspect_record_shows_on_partition_and_table() -> None:
    world = await with_table()
    partition = await world.get(KV_PARTITIONS, "orders-1")
    uid = partition["metadata"]["uid"]
    world.facts[uid] = facts_of(partition, trouble=Trouble.SUSPECT, detail="sample-2 has not reported")
    await world.settle()
    assert (await world.get(KV_PARTITIONS, "orders-1"))["status"]["phase"] == "Suspect"
    condition = await world.condition(KV_TABLES, "orders", "RecordSuspect")
    assert condition["status"] == "True"
    assert "orders-1" in condition["message"]
    assert any(each.reason == "RecordSuspect" for each in world.notices)


async def test_quota_stalls_the_later_table_until_there_is_room() -> None:
    world = await started(quota={"tables": 1})
    await world.create(KV_TABLES, table_object("alpha", count=1))
    await world.settle()
    world.clock.seconds += 5
    await world.create(KV_TABLES, table_object("beta", count=1))
    await world.settle()
    stalled = await world.condition(KV_TABLES, "beta", "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "QuotaExceeded")
    assert await world.names(KV_PARTITIONS) == ["alpha-0"]
    await world.delete(KV_TABLES, "alpha")
    await world.settle()
    assert await world.names(KV_PARTITIONS) == ["beta-0"]
    assert (await world.condition(KV_TABLES, "beta", "Stalled"))["status"] == "False"


async def test_a_lowered_quota_takes_nothing_away() -> None:
    world = await with_table()
    await world.edit(KV_NAMESPACES, "sample", {"quota": {"partitions": 1}})
    await world.settle()
    assert await world.names(KV_PARTITIONS) == ["orders-0", "orders-1"]
    assert (await world.condition(KV_TABLES, "orders", "Ready"))["status"] == "True"


async def test_a_table_without_its_namespace_says_so_and_starts_when_it_comes() -> None:
    world = World()
    await world.create(KV_TABLES, table_object())
    await world.settle()
    stalled = await world.condition(KV_TABLES, "orders", "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "NamespaceNotFound")
    await world.create(KV_NAMESPACES, kvns_object())
    await world.settle()
    assert await world.names(KV_PARTITIONS) == ["orders-0", "orders-1"]


async def test_a_partition_that_somebody_deleted_is_not_silently_made_anew() -> None:
    world = await with_table()
    await world.delete(KV_PARTITIONS, "orders-0")
    await world.settle()
    assert await world.names(KV_PARTITIONS) == ["orders-1"]
    stalled = await world.condition(KV_TABLES, "orders", "Stalled")
    assert (stalled["reason"], "orders-0" in stalled["message"]) == ("PartitionMissing", True)
    annotation = {"metadata": {"annotations": {"fencekv.io/partitions-made": None}}}
    await world.kube.patch(KV_TABLES, DEFAULT, "orders", annotation)
    await world.settle()
    assert await world.names(KV_PARTITIONS) == ["orders-0", "orders-1"]


async def test_a_name_that_is_taken_is_not_taken_over_but_shown() -> None:
    world = World()
    foreign = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "sample"},
        "spec": {"ports": [{"port": 80}], "selector": {"app": "other"}},
    }
    await world.create(SERVICES, foreign)
    await world.create(KV_NAMESPACES, kvns_object())
    for _ in range(6):
        await world.reconciler.resync()
        await world.drain(world.reconciler)
    assert (await world.get(SERVICES, "sample"))["spec"]["selector"] == {"app": "other"}
    stalled = await world.condition(KV_NAMESPACES, "sample", "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "Refused")


@pytest.mark.parametrize("collector", [True, False], ids=["collector", "no-collector"])
async def test_retain_lets_everything_go_at_once_and_keeps_the_volumes(collector: bool) -> None:
    world = World(collect_owners=collector)
    await world.create(KV_NAMESPACES, kvns_object())
    await world.create(KV_TABLES, table_object())
    await world.settle()
    await world.run_shards()
    await world.grant_all()
    await world.settle()
    await world.delete(KV_TABLES, "orders")
    assert await world.find(KV_TABLES, "orders") is None, "no finalizer holds it, so no operator is needed"
    await world.delete(KV_NAMESPACES, "sample")
    assert await world.find(KV_NAMESPACES, "sample") is None
    await world.settle()
    for resource in (KV_PARTITIONS, LEASES, STATEFUL_SETS, SERVICES, ROLES, BUDGETS):
        assert await world.names(resource) == []
    assert len(await world.names(CLAIMS)) == 3


async def test_delete_removes_the_partitions_before_the_table_goes() -> None:
    world = await with_table(table=table_object(deletionPolicy="Delete"))
    assert (await world.get(KV_TABLES, "orders"))["metadata"]["finalizers"] == [FINALIZER]
    assert {each["spec"]["deletionPolicy"] for each in await world.partitions()} == {"Delete"}
    await world.delete(KV_TABLES, "orders")
    assert await world.find(KV_TABLES, "orders") is not None
    await world.settle()
    assert await world.find(KV_TABLES, "orders") is None
    assert await world.names(KV_PARTITIONS) == []
    assert await world.names(LEASES) == []


async def test_a_policy_changed_while_deleting_is_the_one_that_holds() -> None:
    world = await with_table(table=table_object(deletionPolicy="Delete"))
    await world.delete(KV_TABLES, "orders")
    await world.edit(KV_TABLES, "orders", {"deletionPolicy": "Retain"})
    seen: list[str] = []

    def watch_deletions(method: str, path: str) -> None:
        if method == "DELETE":
            seen.append(path)

    world.kube.before = watch_deletions
    await world.settle()
    assert await world.find(KV_TABLES, "orders") is None
    assert not [path for path in seen if "kvpartitions" in path], "the collector's work, after Retain was written"


async def test_deleting_a_namespace_under_delete_takes_tables_pods_and_volumes() -> None:
    world = await with_table(deletionPolicy="Delete")
    await world.create(
        LEASES,
        {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": "session-sample-0",
                "labels": {"fencekv.io/namespace": "sample", "fencekv.io/kind": "session"},
            },
            "spec": {"holderIdentity": "sample-0/u/n"},
        },
    )
    await world.delete(KV_NAMESPACES, "sample")
    await world.settle()
    for resource in (KV_NAMESPACES, KV_TABLES, KV_PARTITIONS, STATEFUL_SETS, CLAIMS, LEASES):
        assert await world.names(resource) == [], resource.plural


async def test_volumes_go_only_after_the_pods_can_no_longer_be_made() -> None:
    world = await with_table(deletionPolicy="Delete")
    order: list[str] = []

    def note(method: str, path: str) -> None:
        if method == "DELETE":
            order.append(path.split("/")[-2])

    world.kube.before = note
    await world.delete(KV_NAMESPACES, "sample")
    await world.settle()
    kinds = list(dict.fromkeys(order))
    assert kinds.index("kvtables") < kinds.index("statefulsets") < kinds.index("persistentvolumeclaims")


async def test_scaling_down_waits_until_the_pods_that_go_are_not_needed() -> None:
    world = await with_table(table=table_object(replicas=1), shards={"replicas": 4})
    await world.edit(KV_PARTITIONS, "orders-0", {"replicas": ["sample-3", "sample-0"]})
    await world.settle()
    await world.grant_all()
    await world.settle()
    await world.edit(KV_NAMESPACES, "sample", {"shards": {"replicas": 3}})
    await world.settle()
    assert (await world.get(STATEFUL_SETS, "sample"))["spec"]["replicas"] == 4
    # The replicas that were added are in sync now, but it still owns.
    for each in await world.partitions():
        world.facts[each["metadata"]["uid"]] = facts_of(each)
    partition = await world.get(KV_PARTITIONS, "orders-0")
    assert set(partition["spec"]["replicas"]) > {"sample-3", "sample-0"}
    uid = partition["metadata"]["uid"]
    world.facts[uid] = facts_of(partition, owner="sample-3")
    await world.settle()
    assert (await world.get(STATEFUL_SETS, "sample"))["spec"]["replicas"] == 4
    assert "sample-3" in (await world.get(KV_PARTITIONS, "orders-0"))["spec"]["replicas"], "it owns"
    world.facts[uid] = facts_of(partition, epoch=2, owner="sample-0")
    await world.settle()
    for each in await world.partitions():
        uid = each["metadata"]["uid"]
        world.facts[uid] = facts_of(each, epoch=2, owner=each["spec"]["replicas"][0])
    await world.settle()
    assert (await world.get(STATEFUL_SETS, "sample"))["spec"]["replicas"] == 3
    for each in await world.partitions():
        assert "sample-3" not in each["spec"]["replicas"]
        assert len(each["spec"]["replicas"]) == 2


async def test_placement_waits_a_moment_for_the_nodes_of_a_new_pool() -> None:
    world = World()
    await world.create(KV_NAMESPACES, kvns_object(shards={"replicas": 4}))
    await world.create(KV_TABLES, table_object(count=1, replicas=1))
    await world.settle()
    assert await world.names(KV_PARTITIONS) == []
    for ordinal, node in enumerate(("a", "a", "b", "b")):
        await world.create(PODS, pod_object(f"sample-{ordinal}", node))
    await world.settle()
    assert (await world.get(KV_PARTITIONS, "orders-0"))["spec"]["replicas"] == ["sample-0", "sample-2"]


def pod_object(name: str, node: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"fencekv.io/namespace": "sample", "fencekv.io/kind": "shard"}},
        "spec": {"nodeName": node, "containers": [{"name": "shard", "image": "x"}]},
    }


async def test_fewer_replicas_drop_a_standby_and_never_the_owner() -> None:
    world = await with_table()
    await world.edit(KV_TABLES, "orders", {"replicas": 1})
    await world.settle()
    for each in await world.partitions():
        assert len(each["spec"]["replicas"]) == 2
        assert each["status"]["owner"] in each["spec"]["replicas"]


async def test_who_does_not_lead_does_nothing_and_begins_with_a_list_when_it_does() -> None:
    world = World()
    world.leading = False
    await world.create(KV_NAMESPACES, kvns_object())
    world.kube.requests.clear()
    running = asyncio.create_task(world.reconciler.run())
    try:
        world.reconciler.observe(KV_NAMESPACES, "ADDED", await world.get(KV_NAMESPACES, "sample"))
        for _ in range(20):
            await asyncio.sleep(0)
        assert world.kube.writes == []
        world.leading = True
        async with asyncio.timeout(5):
            while not await world.names(STATEFUL_SETS):
                await asyncio.sleep(0.02)
    finally:
        running.cancel()
        await asyncio.wait([running])
