"""A cluster for tests of `kubectl fencekv`: the embedded API server with objects, and somebody who acts there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from fencekv import leases
from fencekv.access import Access
from fencekv.kube import (
    CRDS,
    KV_NAMESPACES,
    KV_PARTITIONS,
    KV_TABLES,
    LEASES,
    PODS,
    HttpKube,
    Resource,
)
from fencekv_sandbox.apiserver import serve
from fencekv_sandbox.apiserver.http import DEFAULT_TOKEN
from fencekv_sandbox.apiserver.kubeconfig import kubeconfig_text

Object = dict[str, Any]
Made = tuple[Resource, Object]
Act = Callable[[HttpKube], Awaitable[None]]

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "default"
SINCE = "2026-01-02T03:04:05Z"
PODS_OF = ("sample-0", "sample-1", "sample-2")


def condition(kind: str, status: bool, reason: str, message: str = "") -> Object:
    return {
        "type": kind,
        "status": str(status),
        "reason": reason,
        "message": message,
        "lastTransitionTime": SINCE,
    }


def custom(resource: Resource, name: str, spec: Object, *conditions: Object, **status: Any) -> Made:
    body = {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": spec,
        "status": {**status, "conditions": list(conditions)},
    }
    return resource, body


def partition(index: int = 0, *conditions: Object, **status: Any) -> Made:
    spec = {
        "namespace": "sample",
        "table": "orders",
        "tableUID": "t",
        "index": index,
        "partitioning": {"strategy": "hash", "count": 2},
        "durability": "replicated",
        "minInSync": 1,
        "maxUnshippedSeconds": 1,
        "replicas": list(PODS_OF),
        "limits": {"valueBytesMax": 1024},
    }
    status = {"epoch": 4, "phase": "Ready", "owner": "sample-0", **status}
    return custom(KV_PARTITIONS, f"orders-{index}", spec, *conditions, **status)


def session(pod: str) -> leases.Session:
    return leases.Session(pod, f"uid-{pod}", "nonce")


def session_lease(pod: str, *, http: str = "") -> Made:
    return LEASES, leases.new_session_lease(
        session=session(pod),
        kvns="sample",
        namespace=NAMESPACE,
        valid_seconds=4,
        renewal=1,
        http=http,
        peer="",
        unix_seconds=0.0,
    )


def record(index: int = 0, *, pods: Sequence[str] = PODS_OF) -> Made:
    lease = leases.new_partition_lease(
        partition=f"orders-{index}", partition_uid="?", table="orders", kvns="sample", namespace=NAMESPACE
    )
    members = tuple(f"{pod}/r" for pod in pods)
    return LEASES, leases.granted(
        lease, session=session("sample-0"), epoch=4, in_sync=members, set_version=3, http="h", peer="p",
        unix_seconds=0.0,
    )  # fmt: skip


def shard_pod(name: str, **environment: str) -> Made:
    variables = [{"name": key, "value": value} for key, value in environment.items()]
    return PODS, {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "labels": {leases.LABEL_NAMESPACE: "sample", leases.LABEL_KIND: leases.KIND_SHARD},
        },
        "spec": {
            "nodeName": "worker",
            "containers": [{"name": "shard", "image": "fencekv:dev", "env": variables}],
        },
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    }  # fmt: skip


def sample() -> list[Made]:
    """A namespace, a table with two partitions that are served, Leases and pods."""
    ready = condition("Ready", True, "Serving", "sample-0 serves it")
    return [
        custom(KV_NAMESPACES, "sample", {}, condition("Ready", True, "AllShardsReady")),
        custom(KV_NAMESPACES, "other", {}),
        custom(
            KV_TABLES,
            "orders",
            {"namespace": "sample", "replicas": 2, "partitioning": {"strategy": "hash", "count": 2}},
            condition("Ready", True, "AllPartitionsReady"),
            partitions=2,
            readyPartitions=2,
        ),
        partition(0, ready),
        partition(1, ready),
        *(record(index) for index in (0, 1)),
        *(session_lease(pod) for pod in PODS_OF),
        *(shard_pod(pod) for pod in PODS_OF),
    ]


@contextlib.asynccontextmanager
async def cluster(
    folder: Path, objects: Sequence[Made], *, acts: Act | None = None, logs: Any = None
) -> AsyncIterator[str]:
    """Runs it, with `acts` beside; yields the kubeconfig's path."""
    async with serve(pod_logs=logs) as server:
        url = f"http://127.0.0.1:{server.port}"
        async with HttpKube(Access(server=url, token=DEFAULT_TOKEN), user_agent="test") as kube:
            for path in sorted((ROOT / "crds").glob("kv*.yaml")):
                await kube.create(CRDS, None, yaml.safe_load(path.read_text()))
            uids: dict[str, str] = {}
            for resource, body in objects:
                await _make(kube, resource, body, uids)
            task = asyncio.ensure_future(acts(kube)) if acts is not None else None
            file = folder / "kubeconfig"
            file.write_text(kubeconfig_text(server=url, token=DEFAULT_TOKEN))
            try:
                yield str(file)
            finally:
                if task is not None:
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)


async def _make(kube: HttpKube, resource: Resource, body: Object, uids: dict[str, str]) -> None:
    if resource is LEASES and body["metadata"]["annotations"].get(leases.PARTITION_UID) == "?":
        name = body["metadata"]["name"].removeprefix("partition-")
        body["metadata"]["annotations"][leases.PARTITION_UID] = uids[name]
    if resource is LEASES and body["metadata"]["name"].startswith("session-"):
        pod = body["metadata"]["name"].removeprefix("session-")
        holder = body["spec"]["holderIdentity"].replace(f"uid-{pod}", uids.get(pod, f"uid-{pod}"))
        body["spec"]["holderIdentity"] = holder
    made = await kube.create(resource, NAMESPACE, body)
    uids[made["metadata"]["name"]] = made["metadata"]["uid"]
    if "status" in body and resource is not LEASES:
        status = {"status": body["status"]}
        await kube.patch(resource, NAMESPACE, body["metadata"]["name"], status, subresource="status")
