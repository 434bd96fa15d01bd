"""kopf's part: a routing table from watch events to the reconciler. No decision lives here.

kopf keeps the watches. Everything else that it can do is turned off: it writes no annotations, finalizers or
Events, and elects nobody. Its watches may die silently; the reconciler's periodic list makes up for that, and
ownership never depends on them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import aiohttp
import kopf

from fencekv.access import Access
from fencekv.kube import Resource
from fencekv_operator.reconcile import WATCHED

Object = dict[str, Any]
Sink = Callable[[Resource, str, Object], None]

FINALIZER: Final = "fencekv.io/kopf"
PREFIX: Final = "kopf.fencekv.io"
IDENTITY: Final[Any] = "fencekv-operator"  # kopf's own type for it is not exported
REQUEST_SECONDS: Final = 10
CONNECT_SECONDS: Final = 5
WATCH_SECONDS: Final = 300
WORKERS_MAX: Final = 50
# A worker waits so long for more of the same object. Left at 5 s, fifty of them take ten objects a second.
IDLE_SECONDS: Final = 0.2
CHUNK: Final = 500


def settings() -> kopf.OperatorSettings:
    """kopf's settings: watches with an end, no peering, no scanning, nothing written."""
    chosen = kopf.OperatorSettings()
    chosen.watching.server_timeout = WATCH_SECONDS
    chosen.watching.client_timeout = WATCH_SECONDS + 30
    chosen.watching.connect_timeout = CONNECT_SECONDS
    # Longer than a minute, in which a server sends a bookmark.
    chosen.watching.inactivity_timeout = 120
    chosen.watching.chunk_size = CHUNK
    for resource, labels in WATCHED:
        if labels:
            chosen.watching.label_selectors[resource.group, resource.version, resource.plural] = labels
    chosen.networking.request_timeout = REQUEST_SECONDS
    chosen.networking.connect_timeout = CONNECT_SECONDS
    chosen.queueing.worker_limit = WORKERS_MAX
    chosen.queueing.idle_timeout = IDLE_SECONDS
    chosen.peering.standalone = True
    chosen.scanning.disabled = True
    chosen.posting.enabled = False
    # Nothing of ours makes kopf write either of these; should it ever, they carry our name.
    chosen.persistence.finalizer = FINALIZER
    chosen.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=PREFIX)
    chosen.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=PREFIX)
    return chosen


def registry(access: Access, sink: Sink) -> kopf.OperatorRegistry:
    """The routing table: every event of a watched kind goes to `sink(resource, change, object)`."""
    table = kopf.OperatorRegistry()

    @kopf.on.login(registry=table)
    async def login(**_: Any) -> kopf.AiohttpSession:
        return kopf.AiohttpSession(
            server=access.server, default_namespace=access.namespace, aiohttp_session=_session(access)
        )

    for resource, _ in WATCHED:
        kopf.on.event(
            resource.group, resource.version, resource.plural, registry=table, id=f"observe-{resource.plural}"
        )(_route(resource, sink))
    return table


async def run(
    access: Access,
    sink: Sink,
    *,
    kube_namespace: str | None,
    stop: asyncio.Event,
    ready: asyncio.Event,
) -> None:
    """Runs kopf until `stop` is set. Sets `ready` when its handlers run."""
    where: dict[str, Any] = {"namespaces": [kube_namespace]} if kube_namespace else {"clusterwide": True}
    await kopf.operator(
        registry=registry(access, sink),
        settings=settings(),
        standalone=True,
        # Left to itself kopf names itself after the user, and in a container the user has no name.
        identity=IDENTITY,
        stop_flag=stop,
        ready_flag=ready,
        **where,
    )


def _route(resource: Resource, sink: Sink) -> Callable[..., Any]:
    async def observe(event: Any, **_: Any) -> None:
        obj = dict(event["object"])
        # A list's items do not name their kind.
        obj.setdefault("apiVersion", resource.api_version)
        obj.setdefault("kind", resource.kind)
        sink(resource, event["type"] or "ADDED", obj)

    return observe


def _token(access: Access) -> str:
    if not access.token_file:
        return access.token
    with open(access.token_file, encoding="utf-8") as file:
        return file.read().strip()


def _session(access: Access) -> aiohttp.ClientSession:
    """A session that reads its token anew for each request: a projected token rotates under a running pod."""

    async def authorize(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        token = _token(access)
        if token:
            request.headers["Authorization"] = f"Bearer {token}"
        return await handler(request)

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=access.tls or True),
        headers={"User-Agent": "fencekv-operator/kopf"},
        middlewares=(authorize,),
        read_bufsize=1 << 20,
    )
