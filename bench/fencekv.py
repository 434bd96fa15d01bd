"""FenceKV as it is measured: the sample at rest, and one shard with one partition under load."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.memory import AIM_OPERATOR_MB, AIM_SHARD_MB, Memory, measured
from bench.requests import NAMESPACE, TABLE
from fencekv_sandbox import assets
from fencekv_sandbox.sandbox import NotReady, Sandbox

API_VERSION: Final = "fencekv.io/v1alpha1"
READY_SECONDS_MAX: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The shard under load."""

    host: str
    port: int
    pids: list[int]  # supervisor and shard process
    beside: list[int]  # the operator: FenceKV's, but not on a put's way


def objects() -> list[dict[str, Any]]:
    """One shard; a table that is acknowledged after the local fsync, as one etcd does it."""
    meta = {"apiVersion": API_VERSION, "metadata": {"name": NAMESPACE}}
    namespace = {**meta, "kind": "KVNamespace", "spec": {"shards": {"replicas": 1}}}
    table = {
        "apiVersion": API_VERSION,
        "kind": "KVTable",
        "metadata": {"name": TABLE},
        "spec": {
            "namespace": NAMESPACE,
            "partitioning": {"strategy": "hash", "count": 1},
            "replicas": 0,
            "durability": "standard",
        },
    }
    return [namespace, table]


@contextlib.asynccontextmanager
async def one_shard(folder: Path) -> AsyncIterator[Shard]:
    """Runs it. Raises NotReady."""
    async with Sandbox(data=folder) as sandbox:
        await sandbox.apply(objects())
        await sandbox.wait_ready(TABLE, seconds=READY_SECONDS_MAX)
        owner = await sandbox.owner_of(f"{TABLE}-0")
        if owner is None:
            raise NotReady(f"{TABLE}-0 has no owner")
        host, _, port = (await sandbox.session_lease(owner.pod)).http.rpartition(":")
        yield Shard(
            host=host,
            port=int(port),
            pids=sandbox.pod(owner.pod).pids(),
            beside=[operator.pid for operator in sandbox.operators],
        )


async def idle_memory(folder: Path, *, settle_seconds: float) -> list[Memory]:
    """Memory of operator and shards, the sample being Ready and settled; empty: not known on this system."""
    async with Sandbox(data=folder) as sandbox:
        applied = await sandbox.apply(assets.samples())
        for obj in applied:
            if obj["kind"] == "KVTable":
                await sandbox.wait_ready(obj["metadata"]["name"], seconds=READY_SECONDS_MAX)
        await asyncio.sleep(settle_seconds)
        found = [measured("operator", op.pid, aim_mb=AIM_OPERATOR_MB) for op in sandbox.operators]
        for name in _pods(applied):
            pod = sandbox.pod(name)
            found += [measured(f"shard {name}", pid, aim_mb=AIM_SHARD_MB) for pid in pod.children()]
            found.append(measured(f"supervisor {name}", pod.supervisor))
        return [memory for memory in found if memory is not None]


def _pods(applied: list[dict[str, Any]]) -> list[str]:
    return [
        f"{obj['metadata']['name']}-{ordinal}"
        for obj in applied
        if obj["kind"] == "KVNamespace"
        for ordinal in range(obj["spec"]["shards"]["replicas"])
    ]
