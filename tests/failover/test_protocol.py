"""What can go wrong around a failover, case by case: epochs only rise, and nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from dataclasses import replace

import aiohttp
import pytest
from world import D, V

from fencekv import leases
from fencekv.errors import FenceKVError
from fencekv.kube import KV_NAMESPACES, KV_PARTITIONS, LEASES, KubeConflict
from fencekv_sandbox.apiserver.faults import Rule
from fencekv_sandbox.controlplane import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

PARTITION = "orders-0"
LEASE = leases.partition_lease_name(PARTITION)


async def owner_killed(world, load, what="child", *, within: float = 20.0) -> None:
    """Kills the owner and waits until the keys are written under a higher epoch."""
    since = time.monotonic()
    old = await world.sandbox.kill_owner(PARTITION, what)
    await load.taken_over(since, dict.fromkeys(load.keys, old.epoch), seconds=within)


async def test_two_operators_at_once_grant_each_epoch_once(make) -> None:
    async with make(operators=2) as world:
        async with world.load("a", "b") as load:
            for _ in range(3):
                await world.all_in_sync()
                await owner_killed(world, load)
        await load.check()


async def test_the_second_operator_takes_over_from_a_killed_leader(make) -> None:
    async with make(operators=2) as world:
        async with world.load("a") as load:
            holder = (await world.sandbox.kube.get(LEASES, world.sandbox.namespace, "fencekv-operator"))["spec"]
            leading = int(holder["holderIdentity"].rpartition("-")[2])
            await world.sandbox.operators[leading].kill()
            await owner_killed(world, load, within=30)
        await load.check()


STEPS = {
    "before the fence": Rule(kind="freeze", verbs=("update",), resource="leases", name="session-*"),
    "after the fence": Rule(kind="lost_reply", verbs=("update",), resource="leases", name="session-*"),
    "before the grant": Rule(kind="freeze", verbs=("update",), resource="leases", name=LEASE),
    "after the grant": Rule(kind="lost_reply", verbs=("update",), resource="leases", name=LEASE),
    "before the status": Rule(kind="freeze", verbs=("patch", "update"), resource="kvpartitions", name=PARTITION),
}


@pytest.mark.parametrize("step", STEPS)
async def test_an_operator_killed_at_a_step_of_a_grant_is_continued_by_the_next(make, step: str) -> None:
    async with make() as world:
        async with world.load("a") as load:
            old = await world.sandbox.owner_of(PARTITION)
            rule = world.faults.add(replace(STEPS[step], user_agent="fencekv-operator*"))
            since = time.monotonic()
            world.sandbox.pod(old.pod).kill("all")  # no release: the session has to be fenced first
            await asyncio.sleep(4.0)  # past the relist, the fence and, where it is not held, the grant
            await world.sandbox.operators[0].kill()
            world.faults.remove(rule)
            world.sandbox.start_operator(0)
            await load.taken_over(since, {"a": old.epoch}, seconds=40)
        await load.check()


async def test_a_deleted_partition_lease_comes_back_with_a_higher_epoch(make) -> None:
    async with make() as world:
        async with world.load("a", "b") as load:
            old = await world.sandbox.owner_of(PARTITION)
            since = time.monotonic()
            await world.sandbox.kube.delete(LEASES, world.sandbox.namespace, LEASE)
            await world.settled(lambda: owner_above(world, old.epoch))
            await load.taken_over(since, dict.fromkeys("ab", old.epoch))
            await world.all_in_sync()
            await owner_killed(world, load)
        await load.check()


async def owner_above(world, epoch: int):
    owner = await world.sandbox.owner_of(PARTITION)
    return owner if owner is not None and owner.epoch > epoch else None


async def test_a_deleted_session_lease_ends_that_session_and_nothing_else(make) -> None:
    async with make() as world:
        async with world.load("a") as load:
            old = await world.sandbox.owner_of(PARTITION)
            since = time.monotonic()
            await world.sandbox.kube.delete(LEASES, world.sandbox.namespace, leases.session_lease_name(old.pod))
            await load.taken_over(since, {"a": old.epoch}, seconds=D + 15)
            after = await world.sandbox.owner_of(PARTITION)
            assert after.session != old.session
            await world.all_in_sync()
        await load.check()


async def test_a_wiped_status_does_not_let_an_epoch_be_used_again(make) -> None:
    async with make() as world:
        async with world.load("a") as load:
            await owner_killed(world, load)
            await world.all_in_sync()
            kube, namespace = world.sandbox.kube, world.sandbox.namespace
            with contextlib.suppress(KubeConflict):
                found = await kube.get(KV_PARTITIONS, namespace, PARTITION)
                await kube.replace(KV_PARTITIONS, namespace, {**found, "status": {}}, subresource="status")
            await kube.delete(LEASES, namespace, LEASE)
            old = await world.settled(lambda: owner_above(world, 2))
            assert old.epoch >= 3
            await world.all_in_sync()
            await owner_killed(world, load)
        await load.check()


async def test_a_frozen_api_server_deposes_nobody(make) -> None:
    async with make() as world:
        async with world.load("a", readers=False) as load:
            old = await world.sandbox.owner_of(PARTITION)
            address = (await world.sandbox.session_lease(old.pod)).http
            rule = world.faults.add(Rule(kind="freeze"))
            began = time.monotonic()
            # Nobody can renew: the owner stops by itself at V, and says so.
            await world.settled(lambda: stops_serving(address), seconds=V + 3)
            await asyncio.sleep(max(0.0, began + 10 - time.monotonic()))
            world.faults.remove(rule)
            count = load.acknowledged
            await world.settled(lambda: more_than(load, count), seconds=10)
            await asyncio.sleep(D + 1)  # long enough to depose somebody, if silence had been counted
            assert await world.sandbox.owner_of(PARTITION) == old
        await load.check()


async def stops_serving(address: str) -> bool:
    async with aiohttp.request("GET", f"http://{address}/peer/v1/report") as answer:
        report = await answer.json()
    return not any(replica["serving"] for replica in report["replicas"])


async def more_than(load, count: int) -> bool:
    return load.acknowledged > count


@pytest.mark.parametrize("volume", ["kept", "lost"])
async def test_a_pod_that_comes_back_under_its_name_is_believed_only_with_its_volume(make, volume: str) -> None:
    async with make() as world:
        async with world.load("a") as load:
            before = await world.sandbox.partition_lease(PARTITION)
            old = await world.sandbox.owner_of(PARTITION)
            since = time.monotonic()
            if volume == "lost":
                await world.sandbox.pod(old.pod).lose_volume()
            else:
                world.sandbox.pod(old.pod).kill("all")
            await load.taken_over(since, {"a": old.epoch}, seconds=30)
            await world.all_in_sync()
            after = await world.sandbox.partition_lease(PARTITION)
            again = {member for member in after.in_sync if member.startswith(f"{old.pod}/")}
            assert (again <= set(before.in_sync)) == (volume == "kept"), "a lost volume is a new replica"
            await owner_killed(world, load)
        await load.check()


async def test_a_second_process_on_the_folder_waits_and_takes_nothing(make) -> None:
    """As a pod that was deleted by force and its successor on one node do: the volume is still held."""
    async with make() as world:
        async with world.load("a") as load:
            old = await world.sandbox.owner_of(PARTITION)
            intruder = leases.Session(old.pod, old.session.pod_uid, "ffffffffffffffff")
            ports = free_ports(2)
            beside = world.sandbox.pod(old.pod).run_beside(
                (sys.executable, "-m", "fencekv_shard", "serve"),
                environment={
                    "FENCEKV_SESSION": str(intruder),
                    "FENCEKV_HTTP_PORT": str(ports[0]),
                    "FENCEKV_PEER_PORT": str(ports[1]),
                },
            )
            try:
                host = (await world.sandbox.session_lease(old.pod)).http.rpartition(":")[0]
                await world.settled(lambda: answers(f"http://{host}:{ports[0]}", healthz=200, readyz=503))
                count = load.acknowledged
                await world.settled(lambda: more_than(load, count))
                assert await answers(f"http://{host}:{ports[0]}", healthz=200, readyz=503)
                assert await world.sandbox.owner_of(PARTITION) == old
                assert (await world.sandbox.session_lease(old.pod)).session == old.session
            finally:
                await beside.stop(10.0)
            assert beside.exit_status == 0
        await load.check()


async def answers(address: str, **statuses: int) -> bool:
    """Whether a shard answers these pages so; False as well if it does not answer yet."""
    async with aiohttp.ClientSession() as session:
        for page, status in statuses.items():
            try:
                async with session.get(f"{address}/{page}") as reply:
                    if reply.status != status:
                        return False
            except aiohttp.ClientError:
                return False
    return True


async def test_an_owner_whose_renewals_fail_is_replaced_though_it_can_read(make) -> None:
    async with make() as world:
        async with world.load("a") as load:
            old = await world.sandbox.owner_of(PARTITION)
            since = time.monotonic()
            world.faults.add(
                Rule(
                    kind="unavailable",
                    verbs=("update",),
                    resource="leases",
                    name=leases.session_lease_name(old.pod),
                    user_agent="fencekv-shard*",
                )
            )
            await load.taken_over(since, {"a": old.epoch}, seconds=D + 10)
            assert (await world.sandbox.owner_of(PARTITION)).pod != old.pod
            world.faults.clear()
            await world.all_in_sync()
        await load.check()


async def test_a_join_whose_swap_lands_late_costs_nothing(make) -> None:
    async with make() as world:
        async with world.load("a") as load:
            owner = await world.sandbox.owner_of(PARTITION)
            standby = next(pod for pod in ("sample-0", "sample-1", "sample-2") if pod != owner.pod)
            world.faults.add(
                Rule(
                    kind="delay",
                    seconds=1.5,  # the owner gives up after a second; the swap is carried out all the same
                    verbs=("update",),
                    resource="leases",
                    name=LEASE,
                    user_agent="fencekv-shard*",
                    count=3,
                )
            )
            world.sandbox.pod(standby).kill("child")
            await world.all_in_sync(seconds=40)
            await owner_killed(world, load)
            await world.all_in_sync()
        await load.check()


async def test_d_and_v_lowered_while_running_take_effect_without_a_gap(make) -> None:
    async with make(d=9, v=6) as world:
        async with world.load("a") as load:
            kube, namespace = world.sandbox.kube, world.sandbox.namespace
            times = {"durationSeconds": D, "validSeconds": V, "renewSeconds": 1}
            await kube.patch(KV_NAMESPACES, namespace, "sample", {"spec": {"lease": times}})

            async def lowered() -> bool:
                seen = [await world.sandbox.session_lease(f"sample-{number}") for number in range(3)]
                return all(one.valid_seconds == V for one in seen)

            await world.settled(lowered)
            old = await world.sandbox.owner_of(PARTITION)
            pod = world.sandbox.pod(old.pod)
            since = time.monotonic()
            pod.freeze()
            try:
                seconds = await load.taken_over(since, {"a": old.epoch})
            finally:
                pod.thaw()
            # The larger V may still be trusted for a while: until then the wait is the longer one.
            assert seconds <= 9 + 2
        await load.check()


async def test_etcd_put_back_to_an_earlier_copy_brings_no_epoch_back(make) -> None:
    async with make(fsync=True) as world:
        if world.plane is None:
            pytest.skip("the embedded API server has no etcd to put back; `make test-k8s` runs this")
        async with world.load("a") as load:
            copy = await world.plane.snapshot()
            await owner_killed(world, load)
            await world.all_in_sync()
            highest = (await world.sandbox.owner_of(PARTITION)).epoch
            world.epochs.restored = True
            await world.plane.put_back(copy)
            again = await world.settled(lambda: owner_above(world, highest), seconds=60)
            since = time.monotonic()
            await load.taken_over(since, {"a": highest}, seconds=30)
            assert again.epoch > highest
            await world.all_in_sync(seconds=60)
            await owner_killed(world, load)
        await load.check()


async def test_an_owner_cut_off_from_its_standbys_refuses_replicated_writes_and_keeps_its_reads(make) -> None:
    async with make() as world:
        table = world.client.table("orders")
        await table.put("a", b"1")
        owner = await world.sandbox.owner_of(PARTITION)
        others = [pod for pod in ("sample-0", "sample-1", "sample-2") if pod != owner.pod]
        for pod in others:
            world.sandbox.pod(pod).freeze()
        try:
            with pytest.raises(FenceKVError) as refused:
                await table.put("a", b"2")
            assert refused.value.name in {"Unavailable", "Unknown"}
            entry = await table.get("a")
            assert entry is not None
            assert entry.value == b"1", "an uncommitted write is not shown"
        finally:
            for pod in others:
                world.sandbox.pod(pod).thaw()
        await world.all_in_sync()
