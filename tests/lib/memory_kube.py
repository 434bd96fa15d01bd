"""A `fencekv.kube.Kube` in memory: the embedded API server's core with the project's CRDs, in this process."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from fencekv.kube import CRDS, REQUEST_SECONDS, Listing, Resource, WatchEvent, error_of
from fencekv_sandbox.apiserver import ApiServer, Request

Object = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
START = datetime(2026, 1, 1, tzinfo=UTC).timestamp()


@functools.cache
def _definitions() -> list[Object]:
    return [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "crds").glob("kv*.yaml"))]


class HandClock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> float:
        return self.seconds

    def unix(self) -> float:
        return START + self.seconds

    def unix_ns(self) -> int:
        return int(self.unix() * 1e9)


class MemoryKube:
    """Raw objects in and out. `before` and `after` (method, path) run around each request and may raise."""

    def __init__(self, clock: HandClock | None = None, *, collect_owners: bool = True) -> None:
        self.clock = clock or HandClock()
        numbers = itertools.count(1)
        self.server = ApiServer(
            now=lambda: datetime.fromtimestamp(self.clock.unix(), UTC),
            new_uid=lambda: f"00000000-0000-4000-8000-{next(numbers):012x}",
            collect_owners=collect_owners,
        )
        self.before: Callable[[str, str], None] = lambda _method, _path: None
        self.after: Callable[[str, str], None] = lambda _method, _path: None
        self.requests: list[tuple[str, str]] = []
        for definition in _definitions():
            self._ask("POST", CRDS.path(None), definition)
        self.requests.clear()

    @property
    def writes(self) -> list[tuple[str, str]]:
        """Requests that were not reads."""
        return [request for request in self.requests if request[0] != "GET"]

    async def get(
        self, resource: Resource, namespace: str | None, name: str, *, timeout: float = REQUEST_SECONDS
    ) -> Object:
        return await self._later("GET", resource.path(namespace, name))

    async def list(
        self,
        resource: Resource,
        namespace: str | None,
        *,
        labels: str = "",
        timeout: float = REQUEST_SECONDS,
    ) -> Listing:
        query = {"labelSelector": labels} if labels else {}
        page = await self._later("GET", resource.path(namespace), query=query)
        for item in page["items"]:
            item.setdefault("apiVersion", resource.api_version)
            item.setdefault("kind", resource.kind)
        return Listing(page["items"], page["metadata"]["resourceVersion"])

    async def create(
        self, resource: Resource, namespace: str | None, body: Object, *, timeout: float = REQUEST_SECONDS
    ) -> Object:
        return await self._later("POST", resource.path(namespace), body)

    async def replace(
        self,
        resource: Resource,
        namespace: str | None,
        body: Object,
        *,
        subresource: str = "",
        timeout: float = REQUEST_SECONDS,
    ) -> Object:
        return await self._later("PUT", resource.path(namespace, body["metadata"]["name"], subresource), body)

    async def patch(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        body: Object,
        *,
        subresource: str = "",
        timeout: float = REQUEST_SECONDS,
    ) -> Object:
        return await self._later("PATCH", resource.path(namespace, name, subresource), body)

    async def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        *,
        options: Object | None = None,
        timeout: float = REQUEST_SECONDS,
    ) -> None:
        await self._later("DELETE", resource.path(namespace, name), options)

    async def watch(
        self, resource: Resource, namespace: str | None, *, labels: str = "", resource_version: str
    ) -> AsyncIterator[WatchEvent]:
        query = {"watch": "1", "resourceVersion": resource_version}
        query |= {"labelSelector": labels} if labels else {}
        watcher = self.server.watch(Request(method="GET", path=resource.path(namespace), query=query))
        more = asyncio.Event()
        watcher.wake = more.set
        try:
            while True:
                more.clear()
                for line in watcher.poll():
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise error_of(int(event["object"]["code"]), event["object"])
                    yield WatchEvent(event["type"], event["object"])
                if watcher.closed:
                    return
                await more.wait()
        finally:
            watcher.close()

    async def _later(
        self, method: str, path: str, body: Object | None = None, *, query: Mapping[str, str] | None = None
    ) -> Object:
        # A request always lets others run, as it does over a network.
        await asyncio.sleep(0)
        return self._ask(method, path, body, query=query)

    def _ask(
        self, method: str, path: str, body: Object | None = None, *, query: Mapping[str, str] | None = None
    ) -> Object:
        self.before(method, path)
        self.requests.append((method, path))
        content = "application/merge-patch+json" if method == "PATCH" else "application/json"
        response = self.server.handle(
            Request(
                method=method,
                path=path,
                query=query or {},
                headers={"content-type": content},
                body=b"" if body is None else json.dumps(body).encode(),
            )
        )
        self.after(method, path)
        document: Object = json.loads(response.body)
        if response.status >= 400:
            raise error_of(response.status, document)
        return document
