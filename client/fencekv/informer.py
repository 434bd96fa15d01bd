"""A local copy of a collection: list, then watch, then list again.

Watches end, break, fall behind and die silently, so a list follows every end of a watch and also comes
round by itself. What is in the copy is at best a little old: a hint, never proof.

Invariants:
  * `on_change` hears of each object in the copy, and of each one that left it, also when only a list showed it.
  * A broken API server costs one list a back-off, never a loop without pause.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

from fencekv.kube import Kube, KubeError, Resource, Unclear, WatchEvent

Object = dict[str, Any]
Key = tuple[str, str]  # Kubernetes namespace ("" for cluster scope), name

RELIST_SECONDS: Final = 60.0
LIST_SECONDS: Final = 5.0
BACKOFF_SECONDS_MIN: Final = 0.1
BACKOFF_SECONDS_MAX: Final = 2.0


def key_of(item: Object) -> Key:
    """Where an object lives."""
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]


class Informer:
    """Keeps `items` like the API server's collection; run it as a task of its own."""

    def __init__(
        self,
        kube: Kube,
        resource: Resource,
        namespace: str | None,
        *,
        labels: str = "",
        on_change: Callable[[str, Object], None] | None = None,
        relist_seconds: float = RELIST_SECONDS,
    ) -> None:
        """Copies `namespace` (None: all of them); `on_change(type, object)`: ADDED, MODIFIED or DELETED."""
        self.items: dict[Key, Object] = {}
        self.synced = asyncio.Event()
        self._kube, self._resource, self._namespace, self._labels = kube, resource, namespace, labels
        self._on_change = on_change or (lambda _type, _item: None)
        self._relist_seconds = relist_seconds

    async def run(self) -> None:
        """Lists and watches until it is cancelled."""
        backoff = BACKOFF_SECONDS_MIN
        while True:
            try:
                await self._watch(await self._list())
                pause = backoff = BACKOFF_SECONDS_MIN
            except (KubeError, Unclear):
                pause, backoff = backoff, min(backoff * 2, BACKOFF_SECONDS_MAX)
            await asyncio.sleep(pause)

    def seen(self, item: Object) -> None:
        """Takes an object that its caller has just read or written, ahead of the watch."""
        known = self.items.get(key_of(item))
        if known is None or known["metadata"]["resourceVersion"] != item["metadata"]["resourceVersion"]:
            self._apply("MODIFIED" if known is not None else "ADDED", item)

    async def _list(self) -> str:
        listing = await self._kube.list(self._resource, self._namespace, labels=self._labels, timeout=LIST_SECONDS)
        found = {key_of(item): item for item in listing.items}
        for key in sorted(self.items.keys() - found.keys()):
            self._apply("DELETED", self.items[key])
        for key in sorted(found):
            known = self.items.get(key)
            if known is None:
                self._apply("ADDED", found[key])
            elif known["metadata"]["resourceVersion"] != found[key]["metadata"]["resourceVersion"]:
                self._apply("MODIFIED", found[key])
        self.synced.set()
        return listing.resource_version

    async def _watch(self, version: str) -> None:
        stream = self._kube.watch(self._resource, self._namespace, labels=self._labels, resource_version=version)
        try:
            # A silent watch is no news of anything: the time-out leads to the next list.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._relist_seconds):
                    async for event in stream:
                        self._take(event)
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()

    def _take(self, event: WatchEvent) -> None:
        if event.type in {"ADDED", "MODIFIED", "DELETED"}:
            self._apply(event.type, event.object)

    def _apply(self, kind: str, item: Object) -> None:
        if kind == "DELETED":
            self.items.pop(key_of(item), None)
        else:
            self.items[key_of(item)] = item
        self._on_change(kind, item)
