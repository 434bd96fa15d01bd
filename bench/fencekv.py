"""FenceKV as it is measured: shards under load, the sample at rest, a shard with many partitions.

Everything runs on the sandbox: its API server in this process, operator and shards as processes of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from bench.generator import NAMESPACE
from bench.memory import AIM_OPERATOR_MB, AIM_SHARD_MB, Memory, measured
from fencekv_sandbox import assets
from fencekv_sandbox.sandbox import NotReady, Owner, Sandbox

API_VERSION: Final = "fencekv.io/v1alpha1"
READY_SECONDS_MAX: Final = 60.0
LOOK_SECONDS: Final = 0.05
REQUEST_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """Shards under load; `address` is that of the first table's owner."""

    sandbox: Sandbox
    address: str
    pod: str
    pids: list[int]  # supervisors and shard processes
    beside: list[int]  # the operator: FenceKV's, but not on a put's way

    async def metrics(self) -> dict[str, float]:
        """What the owner's process counts now; empty: it does not answer."""
        address = (await self.sandbox.session_lease(self.pod)).http
        return await scraped(address)

    def process(self) -> int:
        """The owner's shard process."""
        return process_of(self.sandbox, self.pod)


def process_of(sandbox: Sandbox, pod: str) -> int:
    """A pod's shard process; beside it lives one that carries out drills."""
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in sandbox.pod(pod).children()}
    [pid] = [pid for pid, command in commands.items() if b"serve" in command]
    return pid


def namespace(shards: int) -> dict[str, Any]:
    """The KVNamespace of a run."""
    meta = {"apiVersion": API_VERSION, "metadata": {"name": NAMESPACE}}
    return {**meta, "kind": "KVNamespace", "spec": {"shards": {"replicas": shards}}}


def table(name: str, *, standbys: int = 0, partitions: int = 1) -> dict[str, Any]:
    """A table; without standbys it is acknowledged after the local fsync, as one etcd does it."""
    copies: dict[str, Any] = {"replicas": 0, "durability": "standard"}
    if standbys:
        copies = {"replicas": standbys, "durability": "replicated", "minInSync": 1}
    return {
        "apiVersion": API_VERSION,
        "kind": "KVTable",
        "metadata": {"name": name},
        "spec": {
            "namespace": NAMESPACE,
            "partitioning": {"strategy": "hash", "count": partitions},
            **copies,
        },
    }


@contextlib.asynccontextmanager
async def shards(folder: Path, *, tables: Sequence[str] = ("bench",), standbys: int = 0) -> AsyncIterator[Shards]:
    """Runs one shard and one for each standby, with tables of one partition. Raises NotReady."""
    async with Sandbox(data=folder) as sandbox:
        await sandbox.apply([namespace(1 + standbys), *(table(name, standbys=standbys) for name in tables)])
        owners = []
        for name in tables:
            await sandbox.wait_ready(name, seconds=READY_SECONDS_MAX)
            owners.append(await _complete(sandbox, f"{name}-0", members=1 + standbys))
        pods = [f"{NAMESPACE}-{ordinal}" for ordinal in range(1 + standbys)]
        yield Shards(
            sandbox=sandbox,
            address=(await sandbox.session_lease(owners[0].pod)).http,
            pod=owners[0].pod,
            pids=[pid for pod in pods for pid in sandbox.pod(pod).pids()],
            beside=[operator.pid for operator in sandbox.operators],
        )


async def _complete(sandbox: Sandbox, partition: str, *, members: int) -> Owner:
    """The owner, once all of a partition's replicas are in sync."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while loop.time() - began < READY_SECONDS_MAX:
        lease = await sandbox.partition_lease(partition)
        owner = await sandbox.owner_of(partition)
        if owner is not None and len(lease.in_sync) == members:
            return owner
        await asyncio.sleep(LOOK_SECONDS)
    raise NotReady(f"{partition}: not all of its {members} replicas are in sync")


async def scraped(address: str) -> dict[str, float]:
    """A shard's /metrics by `name{labels}`; empty: it does not answer."""
    timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"http://{address}/metrics") as answer,
        ):
            answer.raise_for_status()
            return series_of(await answer.text())
    except (aiohttp.ClientError, OSError, TimeoutError):
        return {}


def series_of(text: str) -> dict[str, float]:
    """The series of a text in Prometheus' form. Pure."""
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            found[name] = float(value)
    return found


def total(metrics: Mapping[str, float], name: str) -> float | None:
    """The sum of a metric over its labels; None: the shard does not tell it."""
    values = [value for series, value in metrics.items() if series.partition("{")[0] == name]
    return sum(values) if values else None


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
            found.append(measured(f"shard {name}", process_of(sandbox, name), aim_mb=AIM_SHARD_MB))
            found.append(measured(f"supervisor {name}", pod.supervisor))
        return [memory for memory in found if memory is not None]


def _pods(applied: list[dict[str, Any]]) -> list[str]:
    return [
        f"{obj['metadata']['name']}-{ordinal}"
        for obj in applied
        if obj["kind"] == "KVNamespace"
        for ordinal in range(obj["spec"]["shards"]["replicas"])
    ]
