"""What a StatefulSet's controller and a scheduler would do next. Pure.

Invariants:
  * A pod is made only while no object of its name is known, and deleted only by its UID.
  * Claims are made before their pod and never deleted here.
  * OrderedReady: one step at a time, lower ordinals first on the way up and last on the way down.
  * A rolling update takes one pod at a time, the highest first, and waits for it to be ready.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fencekv.codec import canonical_json

from .status import is_ready

Object = dict[str, Any]

REVISION: Final = "controller-revision-hash"
POD_NAME: Final = "statefulset.kubernetes.io/pod-name"
POD_INDEX: Final = "apps.kubernetes.io/pod-index"


@dataclass(frozen=True, slots=True)
class CreateClaim:
    """Make this PersistentVolumeClaim."""

    body: Object


@dataclass(frozen=True, slots=True)
class CreatePod:
    """Make this pod."""

    body: Object


@dataclass(frozen=True, slots=True)
class DeletePod:
    """Delete the pod of this name if it is still the one with this UID."""

    name: str
    uid: str
    reason: str


Action = CreateClaim | CreatePod | DeletePod


def plan(
    set_: Object, pods: Sequence[Object], *, claims: Mapping[str, Object], nodes: Sequence[Object]
) -> list[Action]:
    """The next steps for a StatefulSet with these `pods` of its own and `claims` by name."""
    if set_["metadata"].get("deletionTimestamp"):
        return []
    ordered = set_["spec"].get("podManagementPolicy", "OrderedReady") != "Parallel"
    found = {pod["metadata"]["name"]: pod for pod in pods}
    wanted = [f"{set_['metadata']['name']}-{ordinal}" for ordinal in ordinals(set_)]

    actions: list[Action] = []
    placed = list(pods)
    for name in wanted:
        pod = found.get(name)
        if pod is None:
            body = build_pod(set_, name, node=choose_node(set_, placed, nodes))
            placed.append(body)
            actions += [CreateClaim(c) for c in build_claims(set_, name) if c["metadata"]["name"] not in claims]
            actions.append(CreatePod(body))
        elif not _terminating(pod) and (why := _lost(set_, pod, placed, nodes)):
            actions.append(_delete(pod, why))
        if ordered and (pod is None or actions or not _healthy(pod)):
            return actions

    for pod in sorted(pods, key=_ordinal, reverse=True):
        if pod["metadata"]["name"] in wanted:
            continue
        if not _terminating(pod):
            actions.append(_delete(pod, "scaled down"))
        if ordered:
            return actions
    return actions or _update(set_, [found[name] for name in wanted])


def ordinals(set_: Object) -> range:
    """The ordinals that the StatefulSet wants."""
    start = int((set_["spec"].get("ordinals") or {}).get("start") or 0)
    replicas = set_["spec"].get("replicas")
    return range(start, start + (1 if replicas is None else int(replicas)))


def revision(set_: Object) -> str:
    """Names the pod template: pods of another revision are replaced."""
    digest = hashlib.sha256(canonical_json(set_["spec"]["template"]).encode()).hexdigest()
    return f"{set_['metadata']['name']}-{digest[:10]}"


def build_pod(set_: Object, name: str, *, node: str | None) -> Object:
    """The pod of this name; `node` None: no node takes it."""
    template = copy.deepcopy(set_["spec"]["template"])
    metadata = template.get("metadata") or {}
    ordinal = name.rsplit("-", 1)[1]
    spec = template["spec"]
    spec["hostname"] = name
    if set_["spec"].get("serviceName"):
        spec["subdomain"] = set_["spec"]["serviceName"]
    if node is not None:
        spec["nodeName"] = node
    names = [t["metadata"]["name"] for t in set_["spec"].get("volumeClaimTemplates") or []]
    others = [volume for volume in spec.get("volumes") or [] if volume["name"] not in names]
    spec["volumes"] = others + [
        {"name": volume, "persistentVolumeClaim": {"claimName": f"{volume}-{name}"}} for volume in names
    ]
    labels = {**(metadata.get("labels") or {}), POD_NAME: name, POD_INDEX: ordinal, REVISION: revision(set_)}
    owner = {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "name": set_["metadata"]["name"],
        "uid": set_["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": set_["metadata"]["namespace"],
            "labels": labels,
            "annotations": metadata.get("annotations") or {},
            "ownerReferences": [owner],
        },
        "spec": spec,
    }


def build_claims(set_: Object, pod: str) -> list[Object]:
    """The claims of a pod."""
    claims = []
    for template in set_["spec"].get("volumeClaimTemplates") or []:
        metadata = template["metadata"]
        selected = (set_["spec"].get("selector") or {}).get("matchLabels") or {}
        claims.append(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {
                    "name": f"{metadata['name']}-{pod}",
                    "namespace": set_["metadata"]["namespace"],
                    "labels": {**(metadata.get("labels") or {}), **selected},
                    "annotations": metadata.get("annotations") or {},
                },
                "spec": copy.deepcopy(template["spec"]),
            }
        )
    return claims


def choose_node(set_: Object, pods: Sequence[Object], nodes: Sequence[Object]) -> str | None:
    """The fitting node with the fewest pods of this set; None: none fits."""
    wanted = (set_["spec"]["template"]["spec"].get("nodeSelector") or {}).items()
    used = [pod["spec"].get("nodeName") for pod in pods]
    fitting = [
        node["metadata"]["name"]
        for node in nodes
        if not (node.get("spec") or {}).get("unschedulable")
        and wanted <= (node["metadata"].get("labels") or {}).items()
    ]
    return min(fitting, key=lambda name: (used.count(name), name), default=None)


def set_status(set_: Object, pods: Sequence[Object]) -> Object:
    """The StatefulSet's status."""
    update = revision(set_)
    updated = [pod for pod in pods if pod["metadata"]["labels"].get(REVISION) == update]
    living = [pod for pod in pods if not _terminating(pod)]
    ready = len([pod for pod in living if is_ready(pod)])
    replicas = len(pods)
    before = (set_.get("status") or {}).get("currentRevision") or update
    done = len(updated) == replicas == len(ordinals(set_)) == ready
    current = update if done else before
    return {
        "observedGeneration": set_["metadata"].get("generation", 1),
        "replicas": replicas,
        "readyReplicas": ready,
        "availableReplicas": ready,
        "currentReplicas": len([p for p in pods if p["metadata"]["labels"].get(REVISION) == current]),
        "updatedReplicas": len(updated),
        "currentRevision": current,
        "updateRevision": update,
    }


def owned_by(pod: Object) -> str | None:
    """UID of the StatefulSet that controls the pod; None: no StatefulSet does."""
    for owner in pod["metadata"].get("ownerReferences") or []:
        if owner.get("controller") and owner["kind"] == "StatefulSet":
            return str(owner["uid"])
    return None


def _update(set_: Object, pods: Sequence[Object]) -> list[Action]:
    strategy = set_["spec"].get("updateStrategy") or {}
    if strategy.get("type", "RollingUpdate") != "RollingUpdate":
        return []
    partition = int((strategy.get("rollingUpdate") or {}).get("partition") or 0)
    wanted = revision(set_)
    for pod in sorted(pods, key=_ordinal, reverse=True):
        if _ordinal(pod) < partition:
            return []
        if pod["metadata"]["labels"].get(REVISION) != wanted and not _terminating(pod):
            return [_delete(pod, "rolling update")]
        if not _healthy(pod):
            return []
    return []


def _lost(set_: Object, pod: Object, placed: Sequence[Object], nodes: Sequence[Object]) -> str:
    """Why the pod can never run; empty: it can."""
    if (pod.get("status") or {}).get("phase") in {"Failed", "Succeeded"}:
        return "ended"
    # A bare runner has no binding: a pod that found no node is made anew when one fits.
    if not pod["spec"].get("nodeName") and choose_node(set_, placed, nodes) is not None:
        return "a node fits now"
    return ""


def _delete(pod: Object, reason: str) -> DeletePod:
    return DeletePod(pod["metadata"]["name"], pod["metadata"]["uid"], reason)


def _terminating(pod: Object) -> bool:
    return bool(pod["metadata"].get("deletionTimestamp"))


def _healthy(pod: Object) -> bool:
    running = (pod.get("status") or {}).get("phase") == "Running"
    return running and is_ready(pod) and not _terminating(pod)


def _ordinal(pod: Object) -> int:
    return int(pod["metadata"]["name"].rsplit("-", 1)[1])
