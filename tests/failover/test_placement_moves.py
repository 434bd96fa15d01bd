"""A changed placement, applied while clients write: replicas and owners move, and no request fails."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from world import World

from fencekv import leases
from fencekv.informer import Informer
from fencekv.kube import KV_PARTITIONS, KV_TABLES, LEASES
from fencekv.leases import PartitionLease

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

Object = dict[str, Any]
KEYS = [f"key-{number}" for number in range(12)]


def orders(**placement: Any) -> Object:
    """The table as a person keeps it in a repository."""
    return {
        "apiVersion": "fencekv.io/v1alpha1",
        "kind": "KVTable",
        "metadata": {"name": "orders"},
        "spec": {
            "namespace": "sample",
            "partitioning": {"strategy": "hash", "count": 3},
            "replicas": 2,
            "durability": "replicated",
            **({"placement": placement} if placement else {}),
        },
    }


class Watched:
    """The least that was ever in sync, and every unready and Reconciling that was shown."""

    def __init__(self) -> None:
        self.least = 99
        self.unready: list[Object] = []
        self.reconciling: list[tuple[str, str]] = []

    def partition(self, kind: str, item: Object) -> None:
        for each in (item.get("status") or {}).get("conditions") or ():
            if each["type"] == "Ready" and each["status"] != "True":
                self.unready.append({"partition": item["metadata"]["name"], **each})

    def lease(self, kind: str, item: Object) -> None:
        seen = PartitionLease.parse(item)
        if kind != "DELETED" and seen.session is not None:
            self.least = min(self.least, len(seen.in_sync))

    def table(self, kind: str, item: Object) -> None:
        for each in (item.get("status") or {}).get("conditions") or ():
            if each["type"] == "Ready" and each["status"] != "True":
                self.unready.append(each)
            if each["type"] == "Reconciling":
                self.reconciling.append((each["status"], each["reason"]))


@contextlib.asynccontextmanager
async def watching(world: World) -> AsyncIterator[Watched]:
    kube, namespace, seen = world.sandbox.kube, world.sandbox.namespace, Watched()
    labels = f"{leases.LABEL_KIND}={leases.KIND_PARTITION}"
    informers = (
        Informer(kube, LEASES, namespace, labels=labels, on_change=seen.lease),
        Informer(kube, KV_TABLES, namespace, on_change=seen.table),
        Informer(kube, KV_PARTITIONS, namespace, on_change=seen.partition),
    )
    tasks = [asyncio.ensure_future(informer.run()) for informer in informers]
    try:
        for informer in informers:
            await informer.synced.wait()
        yield seen
    finally:
        for task in tasks:
            task.cancel()


async def plan(world: World, folder: Path, table: Object) -> tuple[int, Object]:
    """What `kubectl fencekv plan -f` says of a table: exit status and document."""
    file = folder / "table.yaml"
    file.write_text(yaml.safe_dump(table))
    arguments = ["plan", "-f", str(file), "-o", "json", "--kubeconfig", str(world.sandbox.kubeconfig)]
    program = Path(sys.executable).with_name("kubectl-fencekv")
    process = await asyncio.create_subprocess_exec(
        str(program), *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode in {0, 1}, err.decode()
    return int(process.returncode), json.loads(out)


async def conditions(world: World) -> dict[str, Object]:
    found = await world.sandbox.kube.get(KV_TABLES, world.sandbox.namespace, "orders")
    return {each["type"]: each for each in found["status"]["conditions"]}


async def settled(world: World, *, generation: int) -> bool:
    """Whether the table is as its spec asks for."""
    found = await world.sandbox.kube.get(KV_TABLES, world.sandbox.namespace, "orders")
    now = {each["type"]: each["status"] for each in found["status"].get("conditions") or ()}
    seen = found["status"].get("observedGeneration", -1)
    return seen >= generation and now.get("Ready") == "True" and now.get("Reconciling") == "False"


def homes(partitions: list[Object]) -> Mapping[str, list[str]]:
    return {each["metadata"]["name"]: each["spec"]["replicas"] for each in partitions}


async def test_an_applied_placement_moves_replicas_and_owners_and_no_request_fails(
    make: Any, tmp_path: Path
) -> None:
    async with make(shards=4, table=False) as world:
        sandbox = world.sandbox
        await sandbox.apply(orders())
        await sandbox.wait_ready("orders")
        await world.all_in_sync()
        before = homes(await sandbox.partitions("orders"))
        left_out = before["orders-1"][1]
        new_owner = next(f"sample-{n}" for n in range(4) if f"sample-{n}" not in {*before["orders-0"], left_out})
        wanted = orders(excludePods=[left_out], partitions=[{"index": 0, "required": {"owner": new_owner}}])
        status, document = await plan(world, tmp_path, wanted)
        assert status == 1
        foreseen = {(move["partition"], move["what"], move["to"]) for move in document["moves"]}
        assert ("orders-0", "owner", new_owner) in foreseen
        assert homes(await sandbox.partitions("orders")) == before, "a plan changes nothing"

        async with watching(world) as seen, world.load(*KEYS) as load:
            await load.all_written()
            made = (await sandbox.apply(wanted))[0]
            generation = made["metadata"]["generation"]
            await world.settled(lambda: settled(world, generation=generation), seconds=90)

            async def owned() -> bool:
                owner = await sandbox.owner_of("orders-0")
                return owner is not None and owner.pod == new_owner

            await world.settled(owned, seconds=30)
            reached = load.acknowledged
            await world.settled(lambda: asyncio.sleep(0, load.acknowledged > reached + 100), seconds=30)
        await load.check()
        assert [log.errors for log in load.logs.values() if log.errors] == []
        assert seen.least >= 3, "never fewer copies than wanted"
        assert seen.unready == [], "\n".join(map(str, seen.unready))
        assert ("True", "Moving") in seen.reconciling
        after = homes(await sandbox.partitions("orders"))
        assert all(left_out not in pods and len(pods) == 3 for pods in after.values()), after
        assert after["orders-0"][0] == new_owner
        assert await plan(world, tmp_path, wanted) == (0, {"moves": [], "missing": {}})

        async def emptied() -> bool:
            return not (await sandbox.report(left_out))["replicas"]

        await world.settled(emptied, seconds=30)
        files = [str(each.relative_to(sandbox.data)) for each in sandbox.data.rglob("data.mdb")]
        assert not [file for file in files if left_out in file], files
        assert len([file for file in files if new_owner in file]) >= 1, files
        copies = {(move["partition"], move["to"]) for move in document["moves"] if move["what"] == "copy"}
        came = {(name, pod) for name, pods in after.items() for pod in pods if pod not in before[name]}
        assert copies == came, "what was foreseen is what came"


async def test_what_cannot_be_had_is_said_and_nothing_moves(make: Any, tmp_path: Path) -> None:
    async with make(shards=3, table=False) as world:
        sandbox = world.sandbox
        await sandbox.apply(orders())
        await sandbox.wait_ready("orders")
        await world.all_in_sync()
        before = homes(await sandbox.partitions("orders"))
        nowhere = orders(partitions=[{"index": 1, "required": {"zones": ["zone-x"]}}])
        status, document = await plan(world, tmp_path, nowhere)
        assert (status, document["moves"]) == (0, [])
        assert "zone-x" in document["missing"]["orders"]
        await sandbox.apply(nowhere)

        async def told() -> bool:
            return (await conditions(world))["Degraded"]["reason"] == "PlacementUnsatisfiable"

        await world.settled(told)
        now = await conditions(world)
        assert now["Degraded"]["message"] == "partition 1: no pod runs in zone zone-x"
        assert (now["Reconciling"]["status"], now["Ready"]["status"]) == ("True", "True")
        assert homes(await sandbox.partitions("orders")) == before
        # Zones are labels of the nodes: all three shards lie in different ones.
        await sandbox.apply(orders(spread={"zone": "Required"}))
        await world.settled(lambda: settled(world, generation=3))
        assert homes(await sandbox.partitions("orders")) == before
