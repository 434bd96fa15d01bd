"""The StatefulSet controller, the scheduler and the volume provisioner: performs what `statefulset.plan` decides.

Invariants:
  * Every round works from what is seen now; a failed step is tried again in a later round.
  * A volume's folder is removed only after the API server said that its claim was deleted, and no pod uses it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from fencekv.kube import (
    CLAIMS,
    PODS,
    SERVICE_ACCOUNTS,
    STATEFUL_SETS,
    Kube,
    KubeAlreadyExists,
    KubeConflict,
    KubeError,
    KubeNotFound,
    Resource,
    Unclear,
)

from . import statefulset, status
from .cache import DELETED, Cache, Key, key_of
from .environment import claim_volumes
from .statefulset import Action, CreateClaim, CreatePod, DeletePod

Object = dict[str, Any]

NODES: Final = Resource("", "v1", "nodes", "Node")
ROUND_SECONDS: Final = 1.0
PROTECTION: Final = "kubernetes.io/pvc-protection"
ZONE: Final = "topology.kubernetes.io/zone"

_log = logging.getLogger("fencekv.sandbox.pods")


class Controller:
    """Makes pods and claims of StatefulSets, and nodes for them."""

    def __init__(
        self,
        kube: Kube,
        *,
        pods: Cache,
        nodes: int,
        now: Callable[[], str],
        forget_volume: Callable[[Key], bool],
    ) -> None:
        self._kube = kube
        self._pods = pods
        self._node_names = [f"node-{number}" for number in range(nodes)]
        self._now = now
        self._forget_volume = forget_volume
        self._changed = asyncio.Event()
        self._sets = Cache(kube, STATEFUL_SETS, tell=lambda *_: self.wake())
        self._claims = Cache(kube, CLAIMS, tell=self._claim_changed)
        self._nodes = Cache(kube, NODES, tell=lambda *_: self.wake())
        self._lost_claims: set[Key] = set()
        self._troubles: dict[str, str] = {}

    @property
    def node_names(self) -> list[str]:
        """The simulated nodes."""
        return self._node_names

    def wake(self) -> None:
        """Something changed: look at everything soon."""
        self._changed.set()

    async def run(self) -> None:
        """Works until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for cache in (self._sets, self._claims, self._nodes):
                tasks.create_task(cache.run())
            tasks.create_task(self._rounds())

    async def _rounds(self) -> None:
        for cache in (self._pods, self._sets, self._claims, self._nodes):
            await cache.listed.wait()
        while True:
            self._changed.clear()
            await self._round()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ROUND_SECONDS):
                    await self._changed.wait()

    async def _round(self) -> None:
        await self._make_nodes()
        self._lost_claims -= {key for key in self._lost_claims if self._forget_volume(key)}
        owned: dict[str, list[Object]] = {}
        for pod in self._pods:
            if uid := statefulset.owned_by(pod):
                owned.setdefault(uid, []).append(pod)
        nodes = [node for node in self._nodes if node["metadata"]["name"] in self._node_names]
        for set_ in self._sets:
            pods = owned.pop(set_["metadata"]["uid"], [])
            namespace = set_["metadata"]["namespace"]
            claims = {c["metadata"]["name"]: c for c in self._claims if c["metadata"]["namespace"] == namespace}
            for action in statefulset.plan(set_, pods, claims=claims, nodes=nodes):
                await self._attempt(key_of(set_), self._perform(namespace, action))
            await self._attempt(key_of(set_), self._report(set_, pods))
        for pods in owned.values():  # their StatefulSet is gone
            for pod in pods:
                if not pod["metadata"].get("deletionTimestamp"):
                    lost = DeletePod(pod["metadata"]["name"], pod["metadata"]["uid"], "its owner is gone")
                    await self._attempt(key_of(pod), self._perform(pod["metadata"]["namespace"], lost))
        for pod in self._pods:
            if not pod["spec"].get("nodeName") and not (pod.get("status") or {}).get("conditions"):
                await self._attempt(key_of(pod), self._wait_for_node(pod))
        for claim in self._claims:
            if claim["metadata"].get("deletionTimestamp"):
                await self._attempt(key_of(claim), self._let_go(claim))
            elif not _is_bound(claim):
                await self._attempt(key_of(claim), self._bind(claim))

    async def _attempt(self, key: Key, step: Awaitable[None]) -> None:
        name = "/".join(key)
        try:
            await step
            self._troubles.pop(name, None)
        except (KubeNotFound, KubeConflict, KubeAlreadyExists):
            pass  # our copy is behind: the next round sees why
        except (KubeError, Unclear) as error:
            if self._troubles.get(name) != str(error):
                self._troubles[name] = str(error)
                _log.warning("%s: %s", name, error)

    async def _perform(self, namespace: str, action: Action) -> None:
        match action:
            case CreateClaim(body=body):
                await self._kube.create(CLAIMS, namespace, body)
            case CreatePod(body=body):
                await self._default_account(body)
                await self._kube.create(PODS, namespace, body)
            case DeletePod(name=name, uid=uid, reason=reason):
                _log.info("deleting pod %s/%s: %s", namespace, name, reason)
                await self._kube.delete(PODS, namespace, name, options={"preconditions": {"uid": uid}})

    async def _default_account(self, pod: Object) -> None:
        """A cluster makes this account in each namespace, and admits no pod without one."""
        if pod["spec"].get("serviceAccountName"):
            return
        body = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
        with contextlib.suppress(KubeAlreadyExists):
            await self._kube.create(SERVICE_ACCOUNTS, pod["metadata"]["namespace"], body)

    async def _report(self, set_: Object, pods: list[Object]) -> None:
        found = statefulset.set_status(set_, pods)
        before = set_.get("status") or {}
        if any(before.get(name, 0) != value for name, value in found.items()):
            key = key_of(set_)
            patch = {"metadata": {"uid": set_["metadata"]["uid"]}, "status": found}
            await self._kube.patch(STATEFUL_SETS, key[0], key[1], patch, subresource="status")

    async def _wait_for_node(self, pod: Object) -> None:
        message = f"0/{len(self._node_names)} nodes are available: none fits the pod's node selector"
        found = status.unschedulable(pod, message, now=self._now())
        patch = {"metadata": {"uid": pod["metadata"]["uid"]}, "status": found}
        await self._kube.patch(PODS, *key_of(pod), patch, subresource="status")

    async def _bind(self, claim: Object) -> None:
        spec = claim["spec"]
        found = {
            "phase": "Bound",
            "accessModes": spec.get("accessModes") or ["ReadWriteOnce"],
            "capacity": (spec.get("resources") or {}).get("requests") or {"storage": "1Gi"},
        }
        patch = {"metadata": {"uid": claim["metadata"]["uid"]}, "status": found}
        await self._kube.patch(CLAIMS, *key_of(claim), patch, subresource="status")

    async def _let_go(self, claim: Object) -> None:
        """An API server protects claims by a finalizer, which a cluster takes off once no pod uses the claim."""
        namespace, name = key_of(claim)
        users = [pod for pod in self._pods if pod["metadata"]["namespace"] == namespace]
        finalizers = claim["metadata"].get("finalizers") or []
        if PROTECTION not in finalizers or any(name in claim_volumes(pod).values() for pod in users):
            return
        metadata = {
            "uid": claim["metadata"]["uid"],
            "finalizers": [one for one in finalizers if one != PROTECTION] or None,
        }
        await self._kube.patch(CLAIMS, namespace, name, {"metadata": metadata})

    def _claim_changed(self, kind: str, claim: Object) -> None:
        if kind == DELETED:
            self._lost_claims.add(key_of(claim))
        self.wake()

    async def _make_nodes(self) -> None:
        for number, name in enumerate(self._node_names):
            if self._nodes.get(("", name)) is None:
                await self._attempt(("node", name), self._make_node(name, f"zone-{'abc'[number % 3]}"))

    async def _make_node(self, name: str, zone: str) -> None:
        labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", ZONE: zone}
        with contextlib.suppress(KubeAlreadyExists):
            body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}, "spec": {}}
            await self._kube.create(NODES, None, body)
        now = self._now()
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "simulated"}
        found = {
            "conditions": [{**ready, "lastHeartbeatTime": now, "lastTransitionTime": now}],
            "addresses": [
                {"type": "InternalIP", "address": "127.0.0.1"},
                {"type": "Hostname", "address": name},
            ],
            "capacity": {"cpu": "2", "memory": "4Gi", "pods": "110"},
            "allocatable": {"cpu": "2", "memory": "4Gi", "pods": "110"},
        }
        await self._kube.patch(NODES, None, name, {"status": found}, subresource="status")


def _is_bound(claim: Object) -> bool:
    """Whether the claim has a volume with all the room that it asks for: every volume here can grow."""
    status, asked = claim.get("status") or {}, (claim["spec"].get("resources") or {}).get("requests")
    return status.get("phase") == "Bound" and asked in (None, status.get("capacity"))
