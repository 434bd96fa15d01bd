"""What kstatus (sigs.k8s.io/cli-utils, used by Flux, kpt and Config Sync) makes of our objects in each state.

The library itself is asked: tests/kstatus is a small Go program around it, built here. Needs Go, and its modules
from the module cache or the network.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from operator_world import World, facts_of, kvns_object, table_object

from fencekv.kube import KV_NAMESPACES, KV_OPERATIONS, KV_PARTITIONS, KV_TABLES, Resource
from fencekv_operator import operations
from fencekv_operator.facts import Trouble
from fencekv_operator.operations import Operation, Progress

Object = dict[str, Any]

GO = shutil.which("go")
SOURCES = Path(__file__).parents[1] / "kstatus"
BUILD_SECONDS = 280

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(BUILD_SECONDS + 60),
    pytest.mark.skipif(GO is None, reason="no Go: kstatus is a Go library, and is asked itself"),
]


@pytest.fixture(scope="module")
def kstatus(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[Object]], list[Object]]:
    """The library, as a function of objects."""
    program = tmp_path_factory.mktemp("kstatus") / "kstatus"
    assert GO is not None
    built = subprocess.run(
        [GO, "build", "-mod=readonly", "-buildvcs=false", "-o", str(program), "."],
        cwd=SOURCES,
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
    )
    assert built.returncode == 0, built.stderr

    def judge(objects: list[Object]) -> list[Object]:
        done = subprocess.run(
            [str(program)], input=json.dumps(objects), capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, done.stderr
        found: list[Object] = json.loads(done.stdout)
        return found

    return judge


async def made() -> World:
    """A KVNamespace and a KVTable, as the API server stored them; the operator has not seen them."""
    world = World()
    await world.create(KV_NAMESPACES, kvns_object())
    await world.create(KV_TABLES, table_object())
    return world


async def started() -> World:
    """The operator has seen them; shards and owners are not there yet."""
    world = await made()
    await world.settle()
    return world


async def ready() -> World:
    world = await started()
    await world.run_shards()
    await world.grant_all()
    await world.settle()
    return world


async def edited() -> World:
    """A new generation that the operator has not seen."""
    world = await ready()
    await world.edit(KV_NAMESPACES, "sample", {"quota": {"tables": 5}})
    await world.edit(KV_TABLES, "orders", {"maxUnshippedSeconds": 2})
    await world.edit(KV_PARTITIONS, "orders-0", {"maxUnshippedSeconds": 2})
    return world


async def stalled() -> World:
    """A table that its namespace's quota forbids."""
    world = World()
    await world.create(KV_NAMESPACES, kvns_object(quota={"tables": 0}))
    await world.create(KV_TABLES, table_object())
    await world.settle()
    return world


async def troubled() -> World:
    """A partition without an owner that could serve it."""
    world = await ready()
    partition = await world.get(KV_PARTITIONS, "orders-0")
    facts = facts_of(partition, trouble=Trouble.DEGRADED, alive=False, detail="sample-0 is missing")
    world.facts[partition["metadata"]["uid"]] = facts
    await world.settle()
    return world


async def moving() -> World:
    """A placement that was changed, and is not reached: the new copies are not in sync."""
    world = await ready()
    await world.edit(KV_NAMESPACES, "sample", {"shards": {"replicas": 4}})
    await world.edit(KV_TABLES, "orders", {"placement": {"excludePods": ["sample-2"]}})
    await world.run_shards()
    await world.settle()
    return world


async def unsatisfiable() -> World:
    world = await ready()
    await world.edit(KV_TABLES, "orders", {"placement": {"excludePods": ["sample-2"]}})
    await world.settle()
    return world


async def deleting() -> World:
    world = World()
    await world.create(KV_NAMESPACES, kvns_object(deletionPolicy="Delete"))
    await world.create(KV_TABLES, table_object(deletionPolicy="Delete"))
    await world.settle()
    await world.run_shards()
    await world.grant_all()
    await world.settle()
    for resource, name in ((KV_TABLES, "orders"), (KV_NAMESPACES, "sample")):
        await world.delete(resource, name)
    return world


async def ordered() -> World:
    """A KVOperation that the operator has not seen."""
    world = World()
    body = {
        "apiVersion": KV_OPERATIONS.api_version,
        "kind": KV_OPERATIONS.kind,
        "metadata": {"name": "op-1", "namespace": "default"},
        "spec": {"type": "verify", "table": "orders"},
    }
    await world.create(KV_OPERATIONS, body)
    return world


async def went(*steps: Progress) -> World:
    """A KVOperation whose status the operator wrote so."""
    world = await ordered()
    for step in steps:
        operation = Operation.parse(await world.get(KV_OPERATIONS, "op-1"))
        status = operations.new_status(operation, step, now_unix=world.kube.clock.unix())
        assert status is not None
        await world.kube.patch(KV_OPERATIONS, "default", "op-1", {"status": status}, subresource="status")
    return world


RUNNING = operations.running("Comparing")


async def waiting() -> World:
    return await went(operations.waiting("Waiting", "orders-0 has no owner yet"))


async def running() -> World:
    return await went(RUNNING)


async def succeeded() -> World:
    return await went(RUNNING, operations.succeeded("all the same", {"verdict": "Same"}))


async def failed() -> World:
    return await went(RUNNING, operations.failed("Different", "sample-2 differs", {"verdict": "Different"}))


ORDER = (KV_OPERATIONS, "op-1")
TABLE, SPACE, PARTITION = (KV_TABLES, "orders"), (KV_NAMESPACES, "sample"), (KV_PARTITIONS, "orders-0")
CASES: list[tuple[Callable[[], Awaitable[World]], tuple[Resource, str], str]] = [
    (made, SPACE, "InProgress"),
    (made, TABLE, "InProgress"),
    (started, SPACE, "InProgress"),
    (started, TABLE, "InProgress"),
    (started, PARTITION, "InProgress"),
    (ready, SPACE, "Current"),
    (ready, TABLE, "Current"),
    (ready, PARTITION, "Current"),
    (edited, SPACE, "InProgress"),
    (edited, TABLE, "InProgress"),
    (edited, PARTITION, "InProgress"),
    (stalled, TABLE, "Failed"),
    (troubled, TABLE, "InProgress"),
    (troubled, PARTITION, "InProgress"),
    (moving, TABLE, "InProgress"),
    (unsatisfiable, TABLE, "InProgress"),
    (deleting, SPACE, "Terminating"),
    (deleting, TABLE, "Terminating"),
    (ordered, ORDER, "InProgress"),
    (waiting, ORDER, "InProgress"),
    (running, ORDER, "InProgress"),
    (succeeded, ORDER, "Current"),
    (failed, ORDER, "Failed"),
]


async def test_kstatus_sees_each_state(kstatus: Callable[[list[Object]], list[Object]]) -> None:
    worlds = {make: await make() for make in dict.fromkeys(make for make, _, _ in CASES)}
    objects = [await worlds[make].get(resource, name) for make, (resource, name), _ in CASES]
    verdicts = await asyncio.to_thread(kstatus, objects)
    found = [
        (make.__name__, resource.kind, verdict["status"])
        for (make, (resource, _), _), verdict in zip(CASES, verdicts, strict=True)
    ]
    assert found == [(make.__name__, resource.kind, wanted) for make, (resource, _), wanted in CASES]
    sentences = {
        (make.__name__, resource.kind): verdict["message"]
        for (make, (resource, _), _), verdict in zip(CASES, verdicts, strict=True)
    }
    assert "3 replicas are wanted" in sentences["unsatisfiable", "KVTable"], sentences
    assert "orders-0" in sentences["moving", "KVTable"], sentences
    assert "quota" in sentences["stalled", "KVTable"], sentences
    assert "sample-2 differs" in sentences["failed", "KVOperation"], sentences


async def test_a_table_that_moves_or_waits_for_a_place_still_serves() -> None:
    for make in (moving, unsatisfiable):
        world = await make()
        assert (await world.condition(KV_TABLES, "orders", "Ready"))["status"] == "True", make
