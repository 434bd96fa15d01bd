"""A whole FenceKV for each test: operators and shards as processes, on the embedded API server or a real one.

On a real one it is installed as manifests/install.yaml says: operators and shards have their own accounts and no
other rights, the admission policies are in force, and what the accounts do is in the audit log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from front import Front
from installation import install, operator_kubeconfig
from workload import EpochWatch, Workload

from fencekv import leases
from fencekv.access import from_kubeconfig
from fencekv.client import FenceKV
from fencekv.informer import Informer
from fencekv.kube import KV_PARTITIONS, KV_TABLES, LEASES, HttpKube, KubeNotFound
from fencekv_sandbox.apiserver.faults import Faults
from fencekv_sandbox.controlplane import ControlPlane, control_plane
from fencekv_sandbox.pods.backoff import Backoff
from fencekv_sandbox.sandbox import Sandbox

D, V = 3, 2  # seconds; short ones keep the tests short

logging.getLogger("asyncio").setLevel(logging.ERROR)


@dataclass
class World:
    """A sandbox with a table, and ways to look at it."""

    sandbox: Sandbox
    faults: Faults
    plane: ControlPlane | None  # None: the API server is the embedded one
    as_operator: HttpKube  # with the operator's account: some things nobody else may write
    epochs: EpochWatch = field(default_factory=EpochWatch)
    client: FenceKV = field(init=False)

    async def table(
        self, name: str = "orders", *, partitions: int = 1, seconds: float = 60.0, **spec: Any
    ) -> None:
        """Applies a table and waits until it is Ready."""
        body = {
            "apiVersion": "fencekv.io/v1alpha1",
            "kind": "KVTable",
            "metadata": {"name": name},
            "spec": {
                "namespace": "sample",
                "partitioning": {"strategy": "hash", "count": partitions},
                "replicas": 2,
                "durability": "replicated",
                **spec,
            },
        }
        await self.sandbox.apply(body)
        await self.sandbox.wait_ready(name, seconds=seconds)

    async def all_in_sync(self, table: str = "orders", *, copies: int = 3, seconds: float = 30.0) -> None:
        """Waits until each partition has `copies` members in its set and an owner that serves."""
        labels = f"{leases.LABEL_KIND}={leases.KIND_PARTITION},{leases.LABEL_TABLE}={table}"
        async with asyncio.timeout(seconds):
            while True:
                found = (await self.sandbox.kube.list(LEASES, self.sandbox.namespace, labels=labels)).items
                seen = [leases.PartitionLease.parse(item) for item in found]
                if seen and all(len(one.in_sync) == copies and not one.is_released for one in seen):
                    return
                await asyncio.sleep(0.05)

    def load(self, *keys: str, **options: Any) -> Workload:
        """A workload on the table `orders`."""
        return Workload(self.client, "orders", keys or ("a",), **options)

    async def uids(self, table: str = "orders") -> dict[str, str]:
        """Name -> UID of the table's partitions."""
        return {p["metadata"]["name"]: p["metadata"]["uid"] for p in await self.sandbox.partitions(table)}

    async def settled(self, what: Callable[[], Any], seconds: float = 30.0) -> Any:
        """Waits until an awaitable condition of the cluster holds; gives what it gave."""
        async with asyncio.timeout(seconds):
            while True:
                with contextlib.suppress(KubeNotFound):
                    found = await what()
                    if found:
                        return found
                await asyncio.sleep(0.05)

    async def remove_table(self, name: str) -> None:
        await self.sandbox.kube.delete(KV_TABLES, self.sandbox.namespace, name)

    async def partition(self, name: str) -> dict[str, Any]:
        return await self.sandbox.kube.get(KV_PARTITIONS, self.sandbox.namespace, name)


Make = Callable[..., AbstractAsyncContextManager[World]]


@pytest.fixture
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Makes a world: `async with make(operators=2, shards=3, d=6, v=4) as world`."""
    real = request.config.getoption("--realapi")

    @asynccontextmanager
    async def build(
        *, operators: int = 1, shards: int = 3, d: int = D, v: int = V, table: bool = True, **options: Any
    ) -> AsyncIterator[World]:
        async with contextlib.AsyncExitStack() as stack:
            plane: ControlPlane | None = None
            front: Front | None = None
            kubeconfig: Path | None = None
            if real:
                fsync = bool(options.pop("fsync", False))
                plane = await stack.enter_async_context(control_plane(fsync=fsync, audit=True))
                front = await stack.enter_async_context(Front(plane.url, plane.ssl_context()).serving())
                kubeconfig = tmp_path / "front.kubeconfig"
                plain = yaml.safe_load(plane.kubeconfig().read_text())
                plain["clusters"][0]["cluster"] = {"server": f"http://127.0.0.1:{front.port}"}
                kubeconfig.write_text(yaml.safe_dump(plain))
                admin = from_kubeconfig(plane.kubeconfig())
                await install(admin)
                options["operator_kubeconfig"] = await operator_kubeconfig(
                    admin,
                    tmp_path / "operator.kubeconfig",
                    server=f"http://127.0.0.1:{front.port}",
                    namespace=admin.namespace,
                )
            options.pop("fsync", None)
            sandbox = Sandbox(
                data=tmp_path / "sandbox",
                kubeconfig=kubeconfig,
                operators=operators,
                backoff=options.pop("backoff", None) or Backoff(),
                **options,
            )
            await stack.enter_async_context(sandbox)
            faults = front.faults if front else sandbox.server.faults  # type: ignore[union-attr]
            as_operator = sandbox.kube
            if real:
                access = from_kubeconfig(options["operator_kubeconfig"])
                as_operator = await stack.enter_async_context(HttpKube(access, user_agent="as-operator"))
            world = World(sandbox=sandbox, faults=faults, plane=plane, as_operator=as_operator)
            await sandbox.apply(namespace_object(shards=shards, d=d, v=v))
            if table:
                await world.table()
                await world.all_in_sync(copies=min(3, shards))
            watch = Informer(
                sandbox.kube,
                LEASES,
                sandbox.namespace,
                labels=f"{leases.LABEL_KIND}={leases.KIND_PARTITION}",
                on_change=world.epochs.see,
            )
            watching = asyncio.ensure_future(watch.run())
            stack.callback(watching.cancel)
            world.client = await stack.enter_async_context(sandbox.client("sample"))
            yield world
            assert not world.epochs.problems, world.epochs.problems

    return build


def namespace_object(*, shards: int = 3, d: int = D, v: int = V) -> dict[str, Any]:
    """The KVNamespace `sample`."""
    return {
        "apiVersion": "fencekv.io/v1alpha1",
        "kind": "KVNamespace",
        "metadata": {"name": "sample"},
        "spec": {
            "shards": {"replicas": shards},
            "lease": {"durationSeconds": d, "validSeconds": v, "renewSeconds": 1},
        },
    }
