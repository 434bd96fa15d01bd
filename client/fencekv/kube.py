"""The Kubernetes API, as far as FenceKV talks to it: raw objects, explicit timeouts, no hidden retries.

One small client serves shards, operator and tools. Raw dictionaries go in and out, so that a PUT never drops a
field that this code does not know. Why not the official client: docs/decisions/0001-kubernetes-client.md.

Invariants:
  * `get` and `list` are quorum reads: they never send `resourceVersion`.
  * A request is sent once. Whether it was carried out is known from the answer alone; where there is none the
    error is `Unclear`, and the caller reads again before it believes anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import aiohttp

from fencekv.access import Access

Object = dict[str, Any]

REQUEST_SECONDS: Final = 5.0
WATCH_SECONDS: Final = 300
LIST_CHUNK: Final = 500
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of object as its path names it; `group` is empty for the core group."""

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        """As objects carry it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None, name: str = "", subresource: str = "") -> str:
        """Path of a collection or an object; `namespace` None: across all namespaces, or cluster-scoped."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        parts = [root, f"namespaces/{namespace}" if namespace else "", self.plural, name, subresource]
        return "/".join(part for part in parts if part)


LEASES: Final = Resource("coordination.k8s.io", "v1", "leases", "Lease")
PODS: Final = Resource("", "v1", "pods", "Pod")
SERVICES: Final = Resource("", "v1", "services", "Service")
SERVICE_ACCOUNTS: Final = Resource("", "v1", "serviceaccounts", "ServiceAccount")
CLAIMS: Final = Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
EVENTS: Final = Resource("", "v1", "events", "Event")
STATEFUL_SETS: Final = Resource("apps", "v1", "statefulsets", "StatefulSet")
DEPLOYMENTS: Final = Resource("apps", "v1", "deployments", "Deployment")
BUDGETS: Final = Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
NETWORK_POLICIES: Final = Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
ROLES: Final = Resource("rbac.authorization.k8s.io", "v1", "roles", "Role")
ROLE_BINDINGS: Final = Resource("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding")
CRDS: Final = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition")
KV_NAMESPACES: Final = Resource("fencekv.io", "v1alpha1", "kvnamespaces", "KVNamespace")
KV_TABLES: Final = Resource("fencekv.io", "v1alpha1", "kvtables", "KVTable")
KV_PARTITIONS: Final = Resource("fencekv.io", "v1alpha1", "kvpartitions", "KVPartition")
KV_OPERATIONS: Final = Resource("fencekv.io", "v1alpha1", "kvoperations", "KVOperation")
CONFIG_MAPS: Final = Resource("", "v1", "configmaps", "ConfigMap")


class KubeError(Exception):
    """The API server refused a request, which therefore changed nothing."""

    def __init__(self, status: int, reason: str, message: str, body: Object | None = None) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status, self.reason, self.message, self.body = status, reason, message, body or {}


class KubeNotFound(KubeError):
    """404."""


class KubeConflict(KubeError):
    """409 Conflict: the compare-and-swap failed."""


class KubeAlreadyExists(KubeError):
    """409 AlreadyExists."""


class KubeGone(KubeError):
    """410: the watch's resourceVersion is too old; list again."""


class KubeBusy(KubeError):
    """429: come back later. Nothing was done."""


class Unclear(Exception):
    """No answer, or a 5xx: the request may have been carried out, or may yet be."""


@dataclass(frozen=True, slots=True)
class Listing:
    """A list's items and the resourceVersion to watch from."""

    items: list[Object]
    resource_version: str


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One event of a watch: ADDED, MODIFIED, DELETED or BOOKMARK."""

    type: str
    object: Object


class Kube(Protocol):
    """What FenceKV asks of an API server. `HttpKube` is the real one; the simulation has its own."""

    async def get(
        self, resource: Resource, namespace: str | None, name: str, *, timeout: float = REQUEST_SECONDS
    ) -> Object:
        """Quorum read of one object."""
        ...

    async def list(
        self,
        resource: Resource,
        namespace: str | None,
        *,
        labels: str = "",
        timeout: float = REQUEST_SECONDS,
    ) -> Listing:
        """Quorum read of a collection."""
        ...

    async def create(
        self, resource: Resource, namespace: str | None, body: Object, *, timeout: float = REQUEST_SECONDS
    ) -> Object:
        """POST."""
        ...

    async def replace(
        self,
        resource: Resource,
        namespace: str | None,
        body: Object,
        *,
        subresource: str = "",
        timeout: float = REQUEST_SECONDS,
    ) -> Object:
        """PUT; with `metadata.resourceVersion` in the body it is a compare-and-swap."""
        ...

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
        """JSON merge patch."""
        ...

    async def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        *,
        options: Object | None = None,
        timeout: float = REQUEST_SECONDS,
    ) -> None:
        """DELETE; `options` is a DeleteOptions (preconditions, propagationPolicy)."""
        ...

    def watch(
        self, resource: Resource, namespace: str | None, *, labels: str = "", resource_version: str
    ) -> AsyncIterator[WatchEvent]:
        """Events after `resource_version`, until the server ends the watch."""
        ...


def error_of(status: int, body: Object) -> KubeError | Unclear:
    """What an answer of `status` >= 400 with a Status `body` means."""
    reason, message = str(body.get("reason") or ""), str(body.get("message") or "")
    if status == 404:
        return KubeNotFound(status, reason, message, body)
    if status == 409:
        kind = KubeAlreadyExists if reason == "AlreadyExists" else KubeConflict
        return kind(status, reason, message, body)
    if status == 410 or reason == "Expired":
        return KubeGone(status, reason, message, body)
    if status == 429:
        return KubeBusy(status, reason, message, body)
    if status >= 500:
        return Unclear(f"{status} {reason}: {message}")
    return KubeError(status, reason, message, body)


class HttpKube:
    """`Kube` over HTTP. Close it when done; `async with` does."""

    def __init__(self, access: Access, *, user_agent: str) -> None:
        self.access = access
        self._user_agent = user_agent
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> HttpKube:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()

    async def get(
        self, resource: Resource, namespace: str | None, name: str, *, timeout: float = REQUEST_SECONDS
    ) -> Object:
        """Quorum read of one object."""
        return await self._request("GET", resource.path(namespace, name), timeout=timeout)

    async def list(
        self,
        resource: Resource,
        namespace: str | None,
        *,
        labels: str = "",
        timeout: float = REQUEST_SECONDS,
    ) -> Listing:
        """Quorum read of a collection, page by page."""
        items: list[Object] = []
        query = {"limit": str(LIST_CHUNK), **({"labelSelector": labels} if labels else {})}
        while True:
            page = await self._request("GET", resource.path(namespace), query=query, timeout=timeout)
            for item in page.get("items") or []:
                item.setdefault("apiVersion", resource.api_version)
                item.setdefault("kind", resource.kind)
                items.append(item)
            following = page["metadata"].get("continue")
            if not following:
                return Listing(items, page["metadata"]["resourceVersion"])
            query["continue"] = following

    async def create(
        self, resource: Resource, namespace: str | None, body: Object, *, timeout: float = REQUEST_SECONDS
    ) -> Object:
        """POST."""
        return await self._request("POST", resource.path(namespace), body=body, timeout=timeout)

    async def replace(
        self,
        resource: Resource,
        namespace: str | None,
        body: Object,
        *,
        subresource: str = "",
        timeout: float = REQUEST_SECONDS,
    ) -> Object:
        """PUT; with `metadata.resourceVersion` in the body it is a compare-and-swap."""
        path = resource.path(namespace, body["metadata"]["name"], subresource)
        return await self._request("PUT", path, body=body, timeout=timeout)

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
        """JSON merge patch."""
        path = resource.path(namespace, name, subresource)
        content = "application/merge-patch+json"
        return await self._request("PATCH", path, body=body, content=content, timeout=timeout)

    async def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        *,
        options: Object | None = None,
        timeout: float = REQUEST_SECONDS,
    ) -> None:
        """DELETE; `options` is a DeleteOptions."""
        await self._request("DELETE", resource.path(namespace, name), body=options, timeout=timeout)

    async def watch(
        self, resource: Resource, namespace: str | None, *, labels: str = "", resource_version: str
    ) -> AsyncIterator[WatchEvent]:
        """Events after `resource_version`, until the server ends the watch.

        Raises:
            KubeGone: the version is too old.
            Unclear: the connection broke, or was silent for longer than the server promised.
        """
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(WATCH_SECONDS),
            **({"labelSelector": labels} if labels else {}),
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=WATCH_SECONDS + 30)
        try:
            async with self._client().get(
                self.access.server + resource.path(namespace),
                params=query,
                headers=self._headers(),
                timeout=timeout,
            ) as response:
                if response.status >= 400:
                    raise error_of(response.status, _status_of(await response.read()))
                async for line in response.content:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise error_of(int(event["object"].get("code") or 500), event["object"])
                    yield WatchEvent(event["type"], event["object"])
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise Unclear(f"watch {resource.plural}: {error!r}") from error

    async def dry_run(self, resource: Resource, namespace: str | None, body: Object, *, exists: bool) -> Object:
        """The object as the server would store it: checked, with its defaults. Nothing is written."""
        path = resource.path(namespace, body["metadata"]["name"] if exists else "")
        method = "PUT" if exists else "POST"
        return await self._request(method, path, body=body, query={"dryRun": "All"}, timeout=REQUEST_SECONDS)

    async def read(
        self,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        bytes_max: int,
        timeout: float = REQUEST_SECONDS,
    ) -> bytes:
        """The beginning of what is no object: a log, or what a pod answers through the proxy. Never more bytes."""
        try:
            async with asyncio.timeout(timeout):
                async with self._client().get(
                    self.access.server + path, params=query, headers={**self._headers(), "Accept": "*/*"}
                ) as response:
                    raw = bytearray()
                    async for part in response.content.iter_chunked(65536):
                        raw += part[: bytes_max - len(raw)]
                        if len(raw) >= bytes_max:
                            break
                    status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unclear(f"GET {path}: {error!r}") from error
        if status >= 400:
            raise error_of(status, _status_of(bytes(raw)))
        return bytes(raw)

    async def _request(
        self,
        method: str,
        path: str,
        *,
        body: Object | None = None,
        query: Mapping[str, str] | None = None,
        content: str = "application/json",
        timeout: float,
    ) -> Object:
        headers = self._headers()
        data = None
        if body is not None:
            data, headers["Content-Type"] = json.dumps(body).encode(), content
        try:
            async with asyncio.timeout(timeout):
                async with self._client().request(
                    method, self.access.server + path, data=data, params=query, headers=headers
                ) as response:
                    status, raw = response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unclear(f"{method} {path}: {error!r}") from error
        if status >= 400:
            raise error_of(status, _status_of(raw))
        try:
            answer: Object = json.loads(raw)
        except ValueError as error:
            raise Unclear(f"{method} {path}: answer is not JSON") from error
        return answer

    def _headers(self) -> dict[str, str]:
        token = self.access.token
        if self.access.token_file:
            with open(self.access.token_file, encoding="utf-8") as file:
                token = file.read().strip()
        return {"Authorization": f"Bearer {token}"} if token else {}

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=64, ssl=self.access.tls or True)
            self._session = aiohttp.ClientSession(
                connector=connector,
                headers={"User-Agent": self._user_agent, "Accept": "application/json"},
                read_bufsize=1 << 20,
            )
            # aiohttp would send a PUT again by itself when a kept connection breaks: a CAS that was carried
            # out would come back as a conflict, where its sender must learn that nobody knows.
            self._session._retry_connection = False
        return self._session


def _status_of(raw: bytes) -> Object:
    with contextlib.suppress(ValueError):
        body = json.loads(raw)
        if isinstance(body, dict):
            return body
    return {"message": raw[:300].decode(errors="replace")}
