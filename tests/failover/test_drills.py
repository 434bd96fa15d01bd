"""KVOperations on a running FenceKV: drills with every fault, their histories, and what a broken one leaves."""

from __future__ import annotations

import base64
import itertools
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from podlab import alive

from fencekv.drill_history import from_bytes, judge
from fencekv.faults import FAULT, Fault, Order
from fencekv.kube import CONFIG_MAPS, KV_OPERATIONS, LEASES
from fencekv.leases import session_lease_name
from fencekv_operator.operations import FINAL

Object = dict[str, Any]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def order(name: str, **spec: Any) -> Object:
    """A KVOperation on the table `orders`."""
    return {
        "apiVersion": "fencekv.io/v1alpha1",
        "kind": "KVOperation",
        "metadata": {"name": name},
        "spec": {"table": "orders", **spec},
    }


def drill(name: str, fault: str, **options: Any) -> Object:
    return order(name, type="drill", drill={"fault": fault, **options})


async def status_of(world: Any, name: str) -> Object:
    found = await world.sandbox.kube.get(KV_OPERATIONS, world.sandbox.namespace, name)
    return dict(found.get("status") or {})


async def ended(world: Any, name: str, *, seconds: float = 90) -> Object:
    """The status of an operation once it is final."""

    async def look() -> Object | None:
        status = await status_of(world, name)
        return status if status.get("phase") in FINAL else None

    return dict(await world.settled(look, seconds))


async def reached(world: Any, name: str, step: str) -> Object:
    """The status of an operation once it is at a step."""

    async def look() -> Object | None:
        status = await status_of(world, name)
        assert status.get("phase") not in FINAL, status
        return status if status.get("step") == step else None

    return dict(await world.settled(look, 60))


async def no_order(world: Any, pod: str) -> bool:
    lease = await world.sandbox.kube.get(LEASES, world.sandbox.namespace, session_lease_name(pod))
    return FAULT not in (lease["metadata"].get("annotations") or {})


def stopped(pids: list[int]) -> list[int]:
    """Those of the processes that SIGSTOP holds."""
    return [
        pid for pid in alive(pids) if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"
    ]


def shard_of(pod: Any) -> int:
    """The shard process of a pod: the helper was forked from the supervisor, and has its command."""
    [shard] = [pid for pid in pod.children() if b"serve" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return int(shard)


@pytest.mark.parametrize("fault", ["kill", "freeze", "cutFromAPI", "cutFromPeers", "deletePod"])
async def test_a_drill_with_each_fault_passes_and_its_history_says_so_too(make, fault: str) -> None:
    async with make() as world:
        before = await world.sandbox.owner_of("orders-0")
        await world.sandbox.apply(drill("d-1", fault))
        status = await ended(world, "d-1")

        result = status["result"]
        assert (status["phase"], result["verdict"]) == ("Succeeded", "Passed"), status
        assert (result["lost"], result["staleAcknowledged"]) == (0, 0)
        assert result["epochBefore"] == before.epoch < result["epochAfter"]
        assert result["writesAcknowledged"] > 300
        assert await no_order(world, before.pod)
        kept = await world.sandbox.kube.get(CONFIG_MAPS, world.sandbox.namespace, status["history"])
        history = from_bytes(base64.b64decode(kept["binaryData"]["history.cbor.gz"]))
        verdict = judge(history)
        assert verdict.good, verdict
        assert verdict.acknowledged == result["writesAcknowledged"]
        assert history.head["fault"] == fault
        assert kept["metadata"]["ownerReferences"][0]["name"] == "d-1"
        await world.all_in_sync()


async def test_a_drill_whose_operator_is_killed_is_aborted_by_the_next_one_and_thaws(make) -> None:
    async with make(d=6, v=4) as world:
        owner = await world.sandbox.owner_of("orders-0")
        pids = world.sandbox.pod(owner.pod).pids()
        await world.sandbox.apply(drill("d-1", "freeze", rtoSecondsMax=60))
        await reached(world, "d-1", "TakingOver")
        await world.settled(lambda: _true(bool(stopped(pids))))
        await world.sandbox.operators[0].kill()
        assert stopped(pids)
        world.sandbox.start_operator(0)

        status = await ended(world, "d-1")
        assert (status["phase"], status["result"]["verdict"]) == ("Failed", "Aborted"), status
        await world.settled(lambda: _true(not stopped(pids)))
        assert await no_order(world, owner.pod)


async def test_a_frozen_shard_thaws_by_itself_when_nobody_takes_the_order_back(make) -> None:
    async with make() as world:
        owner = await world.sandbox.owner_of("orders-0")
        shard = shard_of(world.sandbox.pod(owner.pod))
        await world.sandbox.operators[0].kill()
        frozen = Order(fault=Fault.FREEZE, session=str(owner.session), seconds=4)
        patch = {"metadata": {"annotations": {FAULT: frozen.annotation()}}}
        name = session_lease_name(owner.pod)
        await world.as_operator.patch(LEASES, world.sandbox.namespace, name, patch)
        await world.settled(lambda: _true(bool(stopped([shard]))))
        await world.settled(lambda: _true(not stopped([shard])), 15)  # before the kubelet gives it up
        assert shard in alive([shard]), "it goes on, and was not killed"


async def test_a_frozen_shard_whose_helper_dies_thaws_at_once_and_is_not_frozen_again(make) -> None:
    async with make(d=6, v=4) as world:
        owner = await world.sandbox.owner_of("orders-0")
        pod = world.sandbox.pod(owner.pod)
        shard = shard_of(pod)
        [helper] = [pid for pid in pod.children() if pid != shard]
        await world.sandbox.apply(drill("d-1", "freeze", rtoSecondsMax=1))
        await reached(world, "d-1", "TakingOver")
        await world.settled(lambda: _true(bool(stopped([shard]))))
        os.kill(helper, signal.SIGKILL)
        await world.settled(lambda: _true(not stopped([shard])), 5)  # long before the order expires
        assert shard in alive([shard]), "it goes on, and was not killed"
        successor = await world.settled(lambda: _others(pod, shard, helper))
        assert successor
        status = await ended(world, "d-1")
        assert status["phase"] == "Failed", "the fault was undone before the owner was over"
        assert not stopped([shard])


async def test_drills_of_a_namespace_follow_each_other_and_an_unhealthy_one_is_refused(make) -> None:
    async with make() as world:
        await world.sandbox.apply(
            [drill("d-1", "kill"), drill("d-2", "kill"), drill("d-3", "kill", rtoSecondsMax=1)]
        )
        statuses = [await ended(world, name, seconds=150) for name in ("d-1", "d-2", "d-3")]
        assert {one["phase"] for one in statuses} == {"Succeeded"}, statuses
        spans = sorted((one["startedAt"], one["finishedAt"]) for one in statuses)
        assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans)), spans

        await world.table("single", replicas=1)
        body = drill("d-4", "kill")
        body["spec"]["table"] = "single"
        await world.sandbox.apply(body)
        status = await ended(world, "d-4")
        assert status["result"]["verdict"] == "Refused"
        assert "a drill needs 2" in status["message"]


async def test_a_switchover_goes_where_it_is_told_and_replicas_are_verified(make) -> None:
    async with make() as world:
        owner = await world.sandbox.owner_of("orders-0")
        target = next(pod for pod in ("sample-0", "sample-1", "sample-2") if pod != owner.pod)
        async with world.load("a", "b") as load:
            await load.all_written()
            await world.sandbox.apply(
                order("s-1", type="switchover", partition="orders-0", switchover={"to": target})
            )
            status = await ended(world, "s-1")
            await world.sandbox.apply(order("v-1", type="verify"))
            verified = await ended(world, "v-1")
        await load.check()
        assert not [error for log in load.logs.values() for error in log.errors], "a switchover fails no request"
        assert (status["phase"], status["result"]["owner"]) == ("Succeeded", target), status
        assert (await world.sandbox.owner_of("orders-0")).pod == target
        assert verified["result"]["verdict"] == "Same", verified
        assert verified["result"]["partitions"][0]["message"] == "3 replicas agree"


async def _true(value: bool) -> bool:
    return value


async def _others(pod: Any, *known: int) -> list[int]:
    return [pid for pid in alive(pod.children()) if pid not in known]
