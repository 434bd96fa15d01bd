"""A local copy of one kind of object: list, watch, and list again after any trouble.

Invariants:
  * A successful list replaces the copy: what a broken or silent watch missed is made good then.
  * `ABSENT` is told of an object that a later list no longer shows; `DELETED` only if the server said so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any, Final

from fencekv.kube import Kube, KubeError, KubeGone, Resource, Unclear

Object = dict[str, Any]
Key = tuple[str, str]

ADDED: Final = "ADDED"
MODIFIED: Final = "MODIFIED"
DELETED: Final = "DELETED"
ABSENT: Final = "ABSENT"
RELIST_SECONDS: Final = 30.0
PAUSE_SECONDS: Final = 0.25

_log = logging.getLogger("fencekv.sandbox.pods")


class Cache:
    """Objects of all namespaces by (namespace, name). `tell` hears of each change, after it was taken in."""

    def __init__(self, kube: Kube, resource: Resource, *, tell: Callable[[str, Object], None]) -> None:
        self._kube = kube
        self._resource = resource
        self._tell = tell
        self._objects: dict[Key, Object] = {}
        self.listed = asyncio.Event()

    def get(self, key: Key) -> Object | None:
        """The object as last seen."""
        return self._objects.get(key)

    def __iter__(self) -> Iterator[Object]:
        return iter(list(self._objects.values()))

    async def run(self) -> None:
        """Follows the API server until cancelled."""
        trouble = ""
        while True:
            try:
                await self._follow()
                trouble = ""
            except KubeGone:
                continue
            except (KubeError, Unclear) as error:
                if str(error) != trouble:
                    trouble = str(error)
                    _log.warning("%s: %s", self._resource.plural, trouble)
                await asyncio.sleep(PAUSE_SECONDS)

    async def _follow(self) -> None:
        listing = await self._kube.list(self._resource, None)
        self._take(listing.items)
        self.listed.set()
        version = listing.resource_version
        try:
            # A watch can die silently: now and then the whole list is asked for.
            async with asyncio.timeout(RELIST_SECONDS):
                while True:
                    version = await self._watch(version)
        except TimeoutError:
            return

    async def _watch(self, version: str) -> str:
        async for event in self._kube.watch(self._resource, None, resource_version=version):
            version = event.object["metadata"]["resourceVersion"]
            if event.type == "BOOKMARK":
                continue
            event.object.setdefault("kind", self._resource.kind)
            if event.type == DELETED:
                self._objects.pop(key_of(event.object), None)
            else:
                self._objects[key_of(event.object)] = event.object
            self._tell(event.type, event.object)
        return version

    def _take(self, items: list[Object]) -> None:
        before, self._objects = self._objects, {key_of(item): item for item in items}
        for key, item in before.items():
            if key not in self._objects:
                self._tell(ABSENT, item)
        for key, item in self._objects.items():
            known = before.get(key)
            if known is None:
                self._tell(ADDED, item)
            elif known["metadata"]["resourceVersion"] != item["metadata"]["resourceVersion"]:
                self._tell(MODIFIED, item)


def key_of(obj: Object) -> Key:
    """Where the object lives; a cluster-scoped one has an empty namespace."""
    return (obj["metadata"].get("namespace") or "", obj["metadata"]["name"])
