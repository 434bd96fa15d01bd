"""Carries out actions, and nothing else: each is one request, or a quorum read and the request that it allows.

Invariants:
  * Every answer goes into the cache, so that the next plan knows of it before any watch does.
  * A pod is restarted only while quorum reads show it as it was planned on, and the in-sync sets that this needs.
  * A partition's record is made only for a partition that this very process has just made, or while a quorum read
    shows that very partition without an epoch; it is deleted only while one shows that its partition is gone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from fencekv.kube import (
    KV_PARTITIONS,
    LEASES,
    PODS,
    Kube,
    KubeAlreadyExists,
    KubeError,
    KubeNotFound,
    Resource,
    Unclear,
)
from fencekv.leases import (
    KIND_PARTITION,
    LABEL_KIND,
    LABEL_NAMESPACE,
    PARTITION_UID,
    MalformedLease,
    PartitionLease,
    partition_lease_name,
    pod_of,
)
from fencekv_operator import resources
from fencekv_operator.actions import (
    Action,
    Create,
    Delete,
    DeleteAll,
    DeleteOrphan,
    DropLease,
    Emit,
    MakeLease,
    PatchStatus,
    RestartPod,
    Update,
)
from fencekv_operator.events import Notice
from fencekv_operator.rollout import Shard

Object = dict[str, Any]


class Performer:
    """Carries actions out on an API server. `learn` takes what it saw: an object, or None for one that is gone."""

    def __init__(
        self,
        *,
        kube: Kube,
        learn: Callable[[Resource, str, str, Object | None], None],
        post: Callable[[Notice], None],
        born: Callable[[Object], bool],
    ) -> None:
        """`born` is told of each new KVPartition; whether its record is made elsewhere, with its first grant."""
        self._kube, self._learn, self._post, self._born = kube, learn, post, born

    async def perform(self, action: Action) -> None:
        """Carries out one action.

        Raises:
            KubeError: it was refused. Unclear: it may have been carried out.
        """
        match action:
            case Create(resource=resource, namespace=namespace, body=body):
                made = await self._kube.create(resource, namespace, body)
                self._learn(resource, namespace, body["metadata"]["name"], made)
                if resource is KV_PARTITIONS and not self._born(made):
                    # No read is needed to know that it had no record. If this fails, `MakeLease` comes later.
                    with contextlib.suppress(KubeError, Unclear):
                        await self._create_lease(made)
            case Update(resource=resource, namespace=namespace, name=name, patch=patch):
                seen = await self._kube.patch(resource, namespace, name, patch)
                self._learn(resource, namespace, name, seen)
            case PatchStatus(resource=resource, namespace=namespace, name=name, status=status):
                body = {"status": status}
                seen = await self._kube.patch(resource, namespace, name, body, subresource="status")
                self._learn(resource, namespace, name, seen)
            case Delete(resource=resource, namespace=namespace, name=name, uid=uid):
                await self._delete(resource, namespace, name, uid=uid)
            case DeleteAll(resource=resource, namespace=namespace, labels=labels):
                listing = await self._kube.list(resource, namespace, labels=labels)
                for item in listing.items:
                    meta = item["metadata"]
                    await self._delete(resource, namespace, meta["name"], uid=meta["uid"])
            case DeleteOrphan():
                await self._delete_orphan(action)
            case RestartPod():
                await self._restart(action)
            case MakeLease(partition=partition):
                await self._make_lease(partition)
            case DropLease(namespace=namespace, partition=name):
                await self._drop_lease(namespace, name)
            case Emit(notice=notice):
                self._post(notice)

    async def look(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """Quorum read of one object, into the cache; None: there is none."""
        seen: Object | None = None
        with contextlib.suppress(KubeNotFound):
            seen = await self._kube.get(resource, namespace, name)
        self._learn(resource, namespace, name, seen)
        return seen

    async def _delete(self, resource: Resource, namespace: str, name: str, *, uid: str) -> None:
        options = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        with contextlib.suppress(KubeNotFound):
            await self._kube.delete(resource, namespace, name, options=options)
        # Finalizers may keep it, so what became of it is read.
        await self.look(resource, namespace, name)

    async def _delete_orphan(self, orphan: DeleteOrphan) -> None:
        owner = await self.look(orphan.owner_resource, orphan.namespace, orphan.owner_name)
        if owner is not None and owner["metadata"]["uid"] == orphan.owner_uid:
            return
        await self._delete(orphan.resource, orphan.namespace, orphan.name, uid=orphan.uid)

    async def _restart(self, action: RestartPod) -> None:
        planned = action.restart.shard
        pod = await self.look(PODS, action.namespace, planned.pod)
        if pod is None:
            return
        shard = Shard.parse(pod)
        if (shard.uid, shard.ready, shard.leaving) != (planned.uid, planned.ready, planned.leaving):
            return
        if action.restart.in_sync and not await self._are_in_sync(action):
            return  # The statuses that this was planned on lag behind; they come, and with them the next plan.
        await self._delete(PODS, action.namespace, shard.pod, uid=shard.uid)
        self._post(action.notice)

    async def _are_in_sync(self, action: RestartPod) -> bool:
        labels = f"{LABEL_KIND}={KIND_PARTITION},{LABEL_NAMESPACE}={action.kvns}"
        listing = await self._kube.list(LEASES, action.namespace, labels=labels)
        members: dict[str, set[str]] = {}
        for item in listing.items:
            try:
                lease = PartitionLease.parse(item)
            except MalformedLease:
                continue
            if lease.session is not None and not lease.is_released:
                members[lease.name] = {pod_of(member) for member in lease.in_sync}
        return all(
            pods <= members.get(partition_lease_name(partition), set())
            for partition, pods in action.restart.in_sync.items()
        )

    async def _make_lease(self, partition: Object) -> None:
        meta = partition["metadata"]
        current = await self.look(KV_PARTITIONS, meta["namespace"], meta["name"])
        if current is None or current["metadata"]["uid"] != meta["uid"]:
            return
        if "epoch" in (current.get("status") or {}):
            return  # It had a record. If there is none now it was lost, which is for the failover loop to judge.
        await self._create_lease(current)

    async def _create_lease(self, partition: Object) -> None:
        """Makes the record of a partition; one of an earlier namesake gives way to it."""
        meta, body = partition["metadata"], resources.partition_lease(partition)
        try:
            await self._kube.create(LEASES, meta["namespace"], body)
        except KubeAlreadyExists:
            if await self._drop_lease(meta["namespace"], meta["name"]):
                await self._kube.create(LEASES, meta["namespace"], body)

    async def _drop_lease(self, namespace: str, name: str) -> bool:
        """Deletes the record of a partition that is gone; says whether there is none now."""
        try:
            lease = await self._kube.get(LEASES, namespace, partition_lease_name(name))
        except KubeNotFound:
            return True
        partition = await self.look(KV_PARTITIONS, namespace, name)
        named = (lease["metadata"].get("annotations") or {}).get(PARTITION_UID)
        if partition is not None and named == partition["metadata"]["uid"]:
            return False
        meta = lease["metadata"]
        options = {"preconditions": {"uid": meta["uid"], "resourceVersion": meta["resourceVersion"]}}
        with contextlib.suppress(KubeNotFound):
            await self._kube.delete(LEASES, namespace, meta["name"], options=options)
        return True
