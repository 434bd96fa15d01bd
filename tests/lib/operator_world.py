"""A cluster in memory for the operator's tests: an API server, a hand-driven reconciler, facts made by hand."""

from __future__ import annotations

import asyncio
import copy
import random
from typing import Any

from memory_kube import HandClock, MemoryKube

from fencekv.kube import (
    CLAIMS,
    KV_NAMESPACES,
    KV_PARTITIONS,
    KV_TABLES,
    LEASES,
    PODS,
    STATEFUL_SETS,
    KubeError,
    KubeNotFound,
    Resource,
    Unclear,
)
from fencekv.leases import PartitionLease, Session
from fencekv_operator import resources
from fencekv_operator.events import Notice
from fencekv_operator.facts import PartitionFacts, ReplicaFacts, Trouble
from fencekv_operator.plan import MAKING_SECONDS
from fencekv_operator.reconcile import Reconciler
from fencekv_operator.settings import OperatorSettings
from fencekv_sandbox.pods import statefulset

Object = dict[str, Any]
OPERATOR = OperatorSettings(image="fencekv:test", namespace="fencekv-system")
DEFAULT = "default"


def kvns_object(name: str = "sample", **spec: Any) -> Object:
    return {
        "apiVersion": "fencekv.io/v1alpha1",
        "kind": "KVNamespace",
        "metadata": {"name": name, "namespace": DEFAULT},
        "spec": spec,
    }


def table_object(name: str = "orders", *, count: int = 2, **spec: Any) -> Object:
    return {
        "apiVersion": "fencekv.io/v1alpha1",
        "kind": "KVTable",
        "metadata": {"name": name, "namespace": DEFAULT},
        "spec": {"namespace": "sample", "partitioning": {"strategy": "hash", "count": count}, **spec},
    }


def member(pod: str) -> str:
    return f"{pod}/00000000000000a{pod[-1]}"


def session(pod: str, nonce: str = "0000000000000001") -> Session:
    return Session(pod, f"uid-{pod}", nonce)


def facts_of(
    partition: Object,
    *,
    epoch: int = 1,
    owner: str = "",
    in_sync: tuple[str, ...] | None = None,
    alive: bool = True,
    serving: bool = True,
    trouble: Trouble = Trouble.NONE,
    detail: str = "",
    released: str = "",
    seqs: dict[str, int] | None = None,
) -> PartitionFacts:
    """What the failover loop would say of a partition that `owner` (by default the preferred pod) serves."""
    pods = partition["spec"]["replicas"]
    owner = owner or pods[0]
    members = tuple(member(pod) for pod in (pods if in_sync is None else in_sync))
    lease = PartitionLease(
        name=f"partition-{partition['metadata']['name']}",
        uid="lease-uid",
        resource_version="1",
        partition_uid=partition["metadata"]["uid"],
        session=session(owner),
        epoch=epoch,
        in_sync=members,
        set_version=epoch,
        owner_http="127.0.0.1:1",
        owner_peer="127.0.0.1:2",
        released=released,
        release_target="",
        alone_since=None,
        accepted_loss=None,
    )
    replicas = tuple(
        ReplicaFacts(
            pod=pod,
            replica_id="a",
            role="owner" if pod == owner else "standby",
            serving=serving and pod == owner,
            known_epoch=epoch,
            last_epoch=epoch,
            last_seq=(seqs or {}).get(pod, 10),
            last_txid=(seqs or {}).get(pod, 10),
            commit_seq=10,
            set_version=epoch,
        )
        for pod in pods
    )
    return PartitionFacts(
        name=partition["metadata"]["name"],
        uid=partition["metadata"]["uid"],
        lease=lease,
        owner_alive=alive,
        replicas=replicas,
        trouble=trouble,
        detail=detail,
    )


class World:
    """Everything outside the operator, played by hand."""

    def __init__(self, *, collect_owners: bool = True) -> None:
        self.clock = HandClock()
        self.kube = MemoryKube(self.clock, collect_owners=collect_owners)
        self.facts: dict[str, PartitionFacts] = {}
        self.notices: list[Notice] = []
        self.leading, self.crowded = True, False
        self.reconciler = self.operator()

    def operator(self) -> Reconciler:
        """A new operator that remembers nothing."""
        self.reconciler = Reconciler(
            kube=self.kube,
            clock=self.clock,
            chance=random.Random(1),
            operator=OPERATOR,
            facts=lambda _namespace, name: {each.name: each for each in self.facts.values()}.get(name),
            leading=lambda: self.leading,
            post=self.notices.append,
            crowded=lambda: self.crowded,
        )
        return self.reconciler

    async def settle(self, reconciler: Reconciler | None = None) -> None:
        """Lists, plans and acts until a whole round writes nothing, and none after what is new had its time."""
        operator = reconciler or self.reconciler
        for _ in range(30):
            before = len(self.kube.writes)
            await operator.resync()
            await self.drain(operator)
            if len(self.kube.writes) == before:
                if all("epoch" in (each.get("status") or {}) for each in await self.partitions()):
                    return
                self.clock.seconds += MAKING_SECONDS
        raise AssertionError(f"does not settle: {self.kube.writes[-20:]}")

    async def drain(self, operator: Reconciler) -> None:
        """Works on every key that waits, the delayed ones too."""
        queue = operator.queue
        for _ in range(2000):
            if not queue._ready:
                # Not what waits for pods to get nodes or for shards, nor what failed again and again.
                delayed = [key for key, timer in queue._timers.items() if timer.when() - _loop_time() < 0.9]
                if not delayed:
                    return
                for key in delayed:
                    queue._expire(key)
            key = await queue.get()
            try:
                await operator.process(key)
            except (KubeError, Unclear):
                queue.failed(key)
            else:
                queue.done(key)

    async def get(self, resource: Resource, name: str) -> Object:
        return await self.kube.get(resource, DEFAULT, name)

    async def find(self, resource: Resource, name: str) -> Object | None:
        try:
            return await self.get(resource, name)
        except KubeNotFound:
            return None

    async def names(self, resource: Resource) -> list[str]:
        return [each["metadata"]["name"] for each in (await self.kube.list(resource, DEFAULT)).items]

    async def create(self, resource: Resource, body: Object) -> Object:
        return await self.kube.create(resource, DEFAULT, body)

    async def delete(self, resource: Resource, name: str) -> None:
        await self.kube.delete(resource, DEFAULT, name)

    async def edit(self, resource: Resource, name: str, spec: Object) -> None:
        await self.kube.patch(resource, DEFAULT, name, {"spec": spec})

    async def partitions(self) -> list[Object]:
        return (await self.kube.list(KV_PARTITIONS, DEFAULT)).items

    async def run_shards(self, *, ready: int | None = None) -> None:
        """Plays the StatefulSet controller: pods are as many as wanted, with their volume claims.

        A pod that is missing is made from the newest template; one that is there stays as it is, but for its
        readiness: the first `ready` of them are ready (None: all).
        """
        for each in (await self.kube.list(STATEFUL_SETS, DEFAULT)).items:
            count, name = each["spec"]["replicas"], each["metadata"]["name"]
            revision = statefulset.revision(each)
            up = count if ready is None else min(ready, count)
            for ordinal in range(count):
                await self._claim(f"data-{name}-{ordinal}", each["spec"]["selector"]["matchLabels"])
                await self._pod(each, f"{name}-{ordinal}", ready=ordinal < up)
            for pod in await self.names(PODS):
                if pod.rpartition("-")[0] == name and int(pod.rpartition("-")[2]) >= count:
                    await self.delete(PODS, pod)
            status = {
                "replicas": count,
                "readyReplicas": up,
                "updateRevision": revision,
                "observedGeneration": each["metadata"]["generation"],
            }
            await self.kube.patch(STATEFUL_SETS, DEFAULT, name, {"status": status}, subresource="status")

    async def pod_is(self, name: str, *, ready: bool = True, waiting: str = "") -> None:
        """Plays the kubelet: what a pod's status says."""
        status: Object = {"conditions": [{"type": "Ready", "status": "True" if ready else "False"}]}
        if waiting:
            state = {"waiting": {"reason": waiting, "message": "as told"}}
            status["containerStatuses"] = [
                {"name": "shard", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": state}
            ]
        await self.kube.patch(PODS, DEFAULT, name, {"status": status}, subresource="status")

    async def grant_all(self, *, epoch: int = 1) -> None:
        """Plays the failover loop: every partition is owned by its preferred pod."""
        for each in await self.partitions():
            self.facts[each["metadata"]["uid"]] = facts_of(each, epoch=epoch)

    async def condition(self, resource: Resource, name: str, kind: str) -> Object:
        obj = await self.get(resource, name)
        found = [each for each in obj["status"]["conditions"] if each["type"] == kind]
        assert len(found) == 1, obj["status"]
        return found[0]

    async def picture(self) -> dict[str, Any]:
        """What there is, without what differs from run to run."""
        seen: dict[str, Any] = {}
        for resource in (KV_NAMESPACES, KV_TABLES, KV_PARTITIONS, LEASES, CLAIMS, *resources.OWNED):
            for each in (await self.kube.list(resource, DEFAULT)).items:
                seen[f"{resource.plural}/{each['metadata']['name']}"] = _essence(each)
        return seen

    async def _pod(self, set_: Object, name: str, *, ready: bool) -> None:
        if await self.find(PODS, name) is None:
            # No node, because a pod on one goes only once its kubelet says so.
            await self.create(PODS, statefulset.build_pod(set_, name, node=None))
        await self.pod_is(name, ready=ready)

    async def _claim(self, name: str, labels: Object) -> None:
        if await self.find(CLAIMS, name) is None:
            body = {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": name, "labels": labels},
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
            }
            await self.create(CLAIMS, body)


def _loop_time() -> float:
    return asyncio.get_running_loop().time()


def _essence(obj: Object) -> Object:
    essence = copy.deepcopy({key: obj[key] for key in obj if key not in {"metadata", "status"}})
    if "tableUID" in essence.get("spec", {}):
        del essence["spec"]["tableUID"]
    meta = obj["metadata"]
    essence["labels"] = meta.get("labels")
    essence["finalizers"] = meta.get("finalizers")
    essence["owners"] = [owner["name"] for owner in meta.get("ownerReferences") or ()]
    conditions = (obj.get("status") or {}).get("conditions") or ()
    essence["conditions"] = [(each["type"], each["status"], each["reason"]) for each in conditions]
    return essence
