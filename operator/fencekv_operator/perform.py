"""Carries out actions, and nothing else: each is one request, or a quorum read and the request that it allows.

Invariants:
  * Every answer goes into the cache, so that the next plan knows of it before any watch does.
  * A partition's record is made only while a quorum read shows that very partition without an epoch, and deleted
    only while one shows that its partition is gone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from fencekv.kube import KV_PARTITIONS, LEASES, Kube, KubeAlreadyExists, KubeNotFound, Resource
from fencekv.leases import PARTITION_UID, partition_lease_name
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
    Update,
)
from fencekv_operator.events import Notice

Object = dict[str, Any]


class Performer:
    """Carries actions out on an API server. `learn` takes what it saw: an object, or None for one that is gone."""

    def __init__(
        self,
        *,
        kube: Kube,
        learn: Callable[[Resource, str, str, Object | None], None],
        post: Callable[[Notice], None],
    ) -> None:
        self._kube, self._learn, self._post = kube, learn, post

    async def perform(self, action: Action) -> None:
        """Carries out one action.

        Raises:
            KubeError: it was refused. Unclear: it may have been carried out.
        """
        match action:
            case Create(resource=resource, namespace=namespace, body=body):
                made = await self._kube.create(resource, namespace, body)
                self._learn(resource, namespace, body["metadata"]["name"], made)
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

    async def _make_lease(self, partition: Object) -> None:
        meta = partition["metadata"]
        current = await self.look(KV_PARTITIONS, meta["namespace"], meta["name"])
        if current is None or current["metadata"]["uid"] != meta["uid"]:
            return
        if "epoch" in (current.get("status") or {}):
            return  # It had a record. If there is none now it was lost, which is for the failover loop to judge.
        body = resources.partition_lease(current)
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
