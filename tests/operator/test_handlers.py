"""kopf's part against an API server: events reach the reconciler, and a settled cluster is left alone."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from apiservers import Api
from operator_world import OPERATOR, facts_of, kvns_object, table_object

from fencekv.clock import SystemClock
from fencekv.kube import (
    KV_NAMESPACES,
    KV_PARTITIONS,
    KV_TABLES,
    LEASES,
    SERVICES,
    STATEFUL_SETS,
    Access,
    HttpKube,
    Kube,
    KubeNotFound,
    Resource,
)
from fencekv_operator import handlers
from fencekv_operator.events import Recorder, transition_notice
from fencekv_operator.facts import PartitionFacts, Reason, Transition
from fencekv_operator.reconcile import WATCHED, Reconciler
from fencekv_operator.status import condition_status

Object = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]


class Operator:
    """The reconciler and kopf's watches, without the failover loop."""

    def __init__(self, access: Access, kube: Kube, namespace: str) -> None:
        self.facts: dict[str, PartitionFacts] = {}
        self.kube, self.namespace = kube, namespace
        clock = SystemClock()
        self.recorder = Recorder(kube=kube, clock=clock, reporter="test")
        self.reconciler = Reconciler(
            kube=kube,
            clock=clock,
            chance=random.Random(1),
            operator=OPERATOR,
            facts=lambda _namespace, name: {each.name: each for each in self.facts.values()}.get(name),
            leading=lambda: True,
            post=self.recorder.post,
            kube_namespace=namespace,
        )
        self._access = access

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        stop, ready = asyncio.Event(), asyncio.Event()
        watches = asyncio.create_task(
            handlers.run(
                self._access,
                self.reconciler.observe,
                kube_namespace=self.namespace,
                stop=stop,
                ready=ready,
            )
        )
        tasks = [asyncio.create_task(self.reconciler.run()), asyncio.create_task(self.recorder.run())]
        try:
            await asyncio.wait_for(ready.wait(), 20)
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            stop.set()
            await asyncio.wait_for(watches, 20)

    async def see(self, resource: Resource, name: str, check: Any, *, seconds: float = 20) -> Object:
        """Waits until an object is as `check` wants it."""
        seen: Object | None = None
        try:
            async with asyncio.timeout(seconds):
                while True:
                    with contextlib.suppress(KubeNotFound):
                        seen = await self.kube.get(resource, self.namespace, name)
                        if check(seen):
                            return seen
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"{resource.plural}/{name} stays {seen}") from None


@pytest.fixture
async def operator(apiserver: Api, access: Access) -> AsyncIterator[Operator]:
    for path in sorted((ROOT / "crds").glob("kv*.yaml")):
        await apiserver.define(yaml.safe_load(path.read_text()))
    namespace = await apiserver.namespace()
    async with HttpKube(access, user_agent="test") as kube:
        yield Operator(access, kube, namespace)


def ready(obj: Object) -> bool:
    return condition_status(obj, "Ready") == "True"


@pytest.mark.slow
async def test_watches_bring_a_table_from_nothing_to_ready_and_then_nothing_is_written(
    operator: Operator,
) -> None:
    kube, namespace = operator.kube, operator.namespace
    async with operator.running():
        for resource, body in ((KV_NAMESPACES, kvns_object()), (KV_TABLES, table_object(count=2))):
            body["metadata"]["namespace"] = namespace
            await kube.create(resource, namespace, body)
        await operator.see(STATEFUL_SETS, "sample", lambda obj: obj["spec"]["replicas"] == 3)
        await operator.see(KV_TABLES, "orders", lambda obj: (obj.get("status") or {}).get("partitions") == 2)
        status = {"replicas": 3, "readyReplicas": 3}
        await kube.patch(STATEFUL_SETS, namespace, "sample", {"status": status}, subresource="status")
        await operator.see(KV_NAMESPACES, "sample", ready)
        for index in range(2):
            name = f"orders-{index}"
            await kube.get(LEASES, namespace, f"partition-{name}")
            partition = await kube.get(KV_PARTITIONS, namespace, name)
            operator.facts[partition["metadata"]["uid"]] = facts_of(partition)
            operator.reconciler.on_change(namespace, name)
        await operator.see(KV_TABLES, "orders", ready)
        await asyncio.sleep(0.5)

        versions = await _versions(kube, namespace)
        done = operator.reconciler.performed
        await operator.reconciler.resync()
        await asyncio.sleep(1.0)
        assert operator.reconciler.failed == 0
        assert operator.reconciler.performed == done, "a settled cluster is planned to be changed"
        assert await _versions(kube, namespace) == versions

        await kube.delete(SERVICES, namespace, "sample-shards")
        await operator.reconciler.resync()
        await operator.see(SERVICES, "sample-shards", lambda _: True)


async def test_an_owner_change_becomes_one_event_however_often_it_is_reported(operator: Operator) -> None:
    kube, namespace = operator.kube, operator.namespace
    partition = {
        "apiVersion": "fencekv.io/v1alpha1",
        "kind": "KVPartition",
        "metadata": {"name": "orders-0", "namespace": namespace, "uid": "u-1"},
    }
    change = Transition(
        partition="orders-0",
        partition_uid="u-1",
        reason=Reason.SILENT,
        from_pod="sample-0",
        to_pod="sample-1",
        from_epoch=3,
        to_epoch=4,
        seconds=6.2,
    )
    recorder = operator.recorder
    running = asyncio.create_task(recorder.run())
    try:
        told = transition_notice(partition, change)
        assert told is not None
        for _ in range(3):
            recorder.post(told)
        event = await _event(kube, namespace, told.name)
    finally:
        running.cancel()
        await asyncio.wait([running])
    assert event["type"] == "Warning"
    assert event["involvedObject"]["name"] == "orders-0"
    assert "epoch 3 -> sample-1 with epoch 4" in event["message"]
    assert recorder.dropped == 0


def test_kopf_writes_nothing_and_elects_nobody() -> None:
    settings = handlers.settings()
    assert settings.peering.standalone
    assert settings.scanning.disabled
    assert not settings.posting.enabled
    assert settings.watching.client_timeout is not None
    assert settings.watching.server_timeout is not None
    assert settings.watching.client_timeout > settings.watching.server_timeout


def test_the_routing_table_has_one_row_for_each_watched_kind() -> None:
    table = handlers.registry(Access(server="http://127.0.0.1:1"), lambda *_: None)
    rows = sorted(str(handler.id) for handler in table._watching.get_all_handlers())
    assert rows == sorted(f"observe-{resource.plural}" for resource, _ in WATCHED)
    assert not list(table._changing.get_all_handlers())
    assert not list(table._spawning.get_all_handlers())


async def _versions(kube: Kube, namespace: str) -> dict[str, str]:
    found = {}
    for resource in (KV_NAMESPACES, KV_TABLES, KV_PARTITIONS, STATEFUL_SETS, SERVICES, LEASES):
        for item in (await kube.list(resource, namespace)).items:
            found[f"{resource.plural}/{item['metadata']['name']}"] = item["metadata"]["resourceVersion"]
    return found


async def _event(kube: Kube, namespace: str, name: str) -> Object:
    from fencekv.kube import EVENTS

    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(KubeNotFound):
                event = await kube.get(EVENTS, namespace, name)
                if event.get("count", 1) >= 3:
                    return event
            await asyncio.sleep(0.05)
