"""Create or update, over the plain API: for the sandbox's own objects, whose only writer it is.

Invariants:
  * An object that already says what is wanted is not written.
  * An update keeps what others put into the metadata: finalizers, owners, further labels and annotations.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterable
from typing import Any, Final

from fencekv import kube as kubernetes
from fencekv.kube import CRDS, Kube, KubeAlreadyExists, KubeBusy, KubeConflict, KubeNotFound, Resource

Object = dict[str, Any]

LOOK_SECONDS: Final = 0.05
ATTEMPTS_MAX: Final = 20
NAMESPACES: Final = Resource("", "v1", "namespaces", "Namespace")
CONFIG_MAPS: Final = Resource("", "v1", "configmaps", "ConfigMap")
CLUSTER_SCOPED: Final = frozenset({"CustomResourceDefinition", "Namespace"})

_KNOWN: Final = {
    (resource.api_version, resource.kind): resource
    for resource in (
        NAMESPACES,
        CONFIG_MAPS,
        *(one for one in vars(kubernetes).values() if isinstance(one, Resource)),
    )
}


def resource_of(obj: Object) -> Resource:
    """The resource that an object belongs to."""
    found = _KNOWN.get((obj["apiVersion"], obj["kind"]))
    if found is None:
        raise ValueError(f"{obj['apiVersion']} {obj['kind']}: the sandbox does not know this kind")
    return found


async def apply(kube: Kube, objects: Iterable[Object], *, namespace: str) -> list[Object]:
    """Creates or updates each object, in order; answers what the server made of it."""
    return [await _apply_one(kube, obj, namespace) for obj in objects]


async def apply_definitions(kube: Kube, definitions: list[Object], *, seconds_max: float = 30.0) -> None:
    """Applies CustomResourceDefinitions and waits until they are served."""
    await apply(kube, definitions, namespace="")
    async with asyncio.timeout(seconds_max):
        for definition in definitions:
            name = definition["metadata"]["name"]
            while not _established(await kube.get(CRDS, None, name)):  # noqa: ASYNC110  (the server is elsewhere)
                await asyncio.sleep(LOOK_SECONDS)


async def _apply_one(kube: Kube, obj: Object, namespace: str) -> Object:
    resource = resource_of(obj)
    at = None if obj["kind"] in CLUSTER_SCOPED else obj["metadata"].get("namespace") or namespace
    for _ in range(ATTEMPTS_MAX):
        try:
            current = await kube.get(resource, at, obj["metadata"]["name"])
        except KubeNotFound:
            try:
                return await kube.create(resource, at, obj)
            except (KubeAlreadyExists, KubeBusy):
                await asyncio.sleep(LOOK_SECONDS)
                continue
        if _says(current, obj):
            return current
        try:
            return await kube.replace(resource, at, _updated(current, obj))
        except (KubeConflict, KubeNotFound, KubeBusy):
            await asyncio.sleep(LOOK_SECONDS)
    raise TimeoutError(f"{obj['kind']} {obj['metadata']['name']}: others kept changing it")


def _says(current: Any, wanted: Any) -> bool:
    """Whether `current` holds all that is `wanted`; the server may have added defaults."""
    if isinstance(wanted, dict):
        return isinstance(current, dict) and all(_says(current.get(name), wanted[name]) for name in wanted)
    if isinstance(wanted, list):
        return isinstance(current, list) and len(current) == len(wanted) and all(map(_says, current, wanted))
    return bool(current == wanted)


def _updated(current: Object, wanted: Object) -> Object:
    changed = copy.deepcopy(wanted)
    metadata = copy.deepcopy(current["metadata"])
    for field in ("labels", "annotations"):
        metadata[field] = {**(metadata.get(field) or {}), **(wanted["metadata"].get(field) or {})}
    changed["metadata"] = metadata
    if "status" in current:
        changed.setdefault("status", current["status"])
    return changed


def _established(definition: Object) -> bool:
    found = (definition.get("status") or {}).get("conditions") or []
    return any(c["type"] == "Established" and c["status"] == "True" for c in found)
