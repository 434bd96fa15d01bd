"""The Kubernetes API of a simulation: the embedded API server's core, reached over the simulated network.

Invariants:
  * A request is carried out at one moment of virtual time, at most once, and perhaps long after its sender gave
    up: what was on the wire, or queued at a frozen server, arrives late rather than never.
  * Its sender sees the answer, or `Unclear`. A watch shows commits in order, or ends.
"""

from __future__ import annotations

import asyncio
import datetime
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fencekv.kube import REQUEST_SECONDS, Listing, Resource, Unclear, WatchEvent, error_of
from fencekv_sandbox.apiserver import ApiServer, Request, Response
from fencekv_sandbox.apiserver.errors import ApiError
from fencekv_sandbox.apiserver.store import Change, Key, Stored
from fencekv_sandbox.apiserver.watch import Watcher
from simulation.loop import (
    START_SECONDS,
    UNIX_START_SECONDS,
    Process,
    SimulationLoop,
    current_process,
    require_alive,
)
from simulation.network import Network

Object = dict[str, Any]

HOST: Final = "api"
MERGE_PATCH: Final = "application/merge-patch+json"


@dataclass(slots=True, kw_only=True)
class ApiFaults:
    """What goes wrong between a client and the API server, as chances of one request."""

    request_lost: float = 0.0
    request_late: float = 0.0  # it is carried out up to `late_seconds_max` later
    late_seconds_max: float = 8.0
    reply_lost: float = 0.0  # half of these are noticed at once, as a broken connection


class Backup:
    """An earlier state; as a log it gives back what it holds and keeps nothing."""

    def __init__(self, version: int, objects: list[Stored]) -> None:
        self._version, self._objects = version, objects

    def append(self, version: int, key: Key, obj: Object | None) -> None:
        """Keeps nothing."""

    def replay(self) -> Iterator[tuple[int, Key | None, Object | None]]:
        """Its objects, then its version."""
        for stored in sorted(self._objects, key=lambda one: one.version):
            yield stored.version, stored.key, stored.object
        yield self._version, None, None

    def compact(self, version: int, objects: Iterable[Stored]) -> None:
        """Keeps nothing."""

    def wants_compaction(self) -> bool:
        """Never."""
        return False


class ApiHost:
    """The API server in its place in the network."""

    def __init__(self, loop: SimulationLoop, network: Network) -> None:
        self.loop, self.network = loop, network
        self.faults = ApiFaults()
        self._uids = loop.rng("uids")
        self._chance = loop.rng("api")
        self._frozen: deque[Callable[[], None]] | None = None  # None: it answers.
        self._watches: list[_Watch] = []
        self._listeners: list[tuple[str, Callable[[Change], None]]] = []
        self.server = ApiServer(now=self._now, new_uid=self._new_uid)

    def subscribe(self, resource: str, listener: Callable[[Change], None]) -> None:
        """Tells the world of each commit of a resource, also after `restore`."""
        self._listeners.append((resource, listener))
        self.server.core.store.subscribe(resource, listener)

    def copy(self) -> Backup:
        """All objects as they are now."""
        return Backup(self.server.core.store.version, self.server.core.store.all())

    def restore(self, backup: Backup) -> None:
        """Puts everything back to an earlier copy, resourceVersion included, as a restored etcd does."""
        self.cut_watches()
        self.server = ApiServer(now=self._now, new_uid=self._new_uid, log=backup)
        for resource, listener in self._listeners:
            self.server.core.store.subscribe(resource, listener)

    def freeze(self) -> None:
        """No answers any more; what arrives is queued."""
        if self._frozen is None:
            self._frozen = deque()

    def thaw(self) -> None:
        """Works off what queued up."""
        queued, self._frozen = self._frozen or deque(), None
        for work in queued:
            work()

    def cut_watches(self) -> None:
        """Breaks every watch."""
        for watch in tuple(self._watches):
            watch.cut()

    def forget_events(self) -> None:
        """Compacts: a watch from before gets 410."""
        self.server.core.store.forget_events()

    def kube(self, process: Process) -> SimKube:
        """`fencekv.kube.Kube` of one process."""
        return SimKube(self, process)

    def ask(self, method: str, path: str, *, body: Any = None, content: str = "application/json") -> Any:
        """The world's own request: at once, and never lost."""
        headers = {"content-type": content} if body is not None else {}
        response = self.server.handle(Request.make(method, path, body=body, headers=headers))
        document: Object = json.loads(response.body)
        if response.status >= 400:
            raise error_of(response.status, document)
        return document

    # Between network and server

    def submit(self, source: Process, request: Request, answer: asyncio.Future[Response]) -> None:
        """Sends a request on its way."""
        delay = self.network.delay()
        if self._hits(self.faults.request_lost):
            return
        if self._hits(self.faults.request_late):
            delay += self._chance.uniform(0, self.faults.late_seconds_max)
        self.loop.call_outside(delay, self._arrive, source, request, answer)

    def later(self, work: Callable[[], None]) -> None:
        """Does something that the server does: now, or once it is thawed."""
        if self._frozen is None:
            work()
        else:
            self._frozen.append(work)

    def _arrive(self, source: Process, request: Request, answer: asyncio.Future[Response]) -> None:
        if self.network.is_blocked(source.host, HOST):
            self.network.hold((source.host, HOST), lambda: self._arrive(source, request, answer))
            return
        self.later(lambda: self._carry_out(source, request, answer))

    def _carry_out(self, source: Process, request: Request, answer: asyncio.Future[Response]) -> None:
        response = self.server.handle(request)
        if request.method != "GET":
            self.loop.trace(f"api {request.method} {request.path} by {source.name} = {response.status}")
        if self._hits(self.faults.reply_lost):
            if self._hits(0.5):
                error = Unclear("connection reset")
                self.loop.call_outside(self.network.delay(), self._settle, source, answer, error)
            return
        self.loop.call_outside(self.network.delay(), self._settle, source, answer, response)

    def _settle(self, source: Process, answer: asyncio.Future[Response], result: Response | Unclear) -> None:
        if answer.done() or self.network.is_blocked(HOST, source.host):
            return
        if isinstance(result, Unclear):
            answer.set_exception(result)
        else:
            answer.set_result(result)

    def open_watch(self, source: Process, request: Request) -> _Watch:
        """Opens a watch once its request has arrived."""
        watch = _Watch(self, source)
        self._watches.append(watch)
        self.loop.call_outside(self.network.delay(), watch.begin, request)
        return watch

    def forget(self, watch: _Watch) -> None:
        """A watch is over."""
        if watch in self._watches:
            self._watches.remove(watch)

    def _hits(self, probability: float) -> bool:
        return probability > 0 and self._chance.random() < probability

    def _now(self) -> datetime.datetime:
        seconds = UNIX_START_SECONDS + self.loop.time() - START_SECONDS
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC)

    def _new_uid(self) -> str:
        digits = f"{self._uids.getrandbits(128):032x}"
        return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


class _Watch:
    """One watch: its stream from the server, first in, first out, and what its client has not read yet."""

    def __init__(self, host: ApiHost, source: Process) -> None:
        self._host, self._source = host, source
        self._watcher: Watcher | None = None  # None: the request has not arrived, or the watch is over.
        self._delivered_at = 0.0
        self._scheduled = False
        self.inbox: deque[bytes | None] = deque()  # None: the end of the stream
        self.broken = False
        self.waiter: asyncio.Future[None] | None = None  # None: the client does not wait.
        source.at_exit.append(self._source_died)

    def begin(self, request: Request) -> None:
        """The request has arrived."""
        host = self._host
        if host.network.is_blocked(self._source.host, HOST):
            host.network.hold((self._source.host, HOST), lambda: self.begin(request))
            return
        host.later(lambda: self._open(request))

    def _open(self, request: Request) -> None:
        if self.broken:
            return
        try:
            self._watcher = self._host.server.watch(request)
        except ApiError as error:
            event = json.dumps({"type": "ERROR", "object": error.document()})
            self._send([event.encode(), None])
            return
        self._watcher.wake = self._wake
        self._wake()

    def _wake(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._host.loop.call_outside(0, self._host.later, self._drain)

    def _drain(self) -> None:
        self._scheduled = False
        if self._watcher is None:
            return
        events: list[bytes | None] = [*self._watcher.poll()]
        if self._watcher.closed:
            self._watcher = None
            events.append(None)
        if events:
            self._send(events)

    def _send(self, events: list[bytes | None]) -> None:
        loop = self._host.loop
        self._delivered_at = max(self._delivered_at, loop.time() + self._host.network.delay())
        loop.call_outside(self._delivered_at - loop.time(), self._arrive, events)

    def _arrive(self, events: list[bytes | None]) -> None:
        network = self._host.network
        if network.is_blocked(HOST, self._source.host):
            network.hold((HOST, self._source.host), lambda: self._arrive(events))
            return
        self.inbox.extend(events)
        self.wake_client()

    def cut(self) -> None:
        """The connection breaks."""
        self.broken = True
        self.close()
        self.wake_client()

    def close(self) -> None:
        """The client has gone, or is as good as gone."""
        if self._watcher is not None:
            self._watcher.wake = lambda: None
            self._watcher.close()
            self._watcher = None
        self.broken = True
        if self._source_died in self._source.at_exit:
            self._source.at_exit.remove(self._source_died)
        self._host.forget(self)

    def _source_died(self, _status: int) -> None:
        self.close()

    # The client's side. An asynchronous generator would outlive the death of its process half-way.

    def __aiter__(self) -> AsyncIterator[WatchEvent]:
        return self

    async def __anext__(self) -> WatchEvent:
        while not self.inbox:
            if self.broken:
                raise Unclear("watch: connection lost")
            self.waiter = self._host.loop.create_future()
            await self.waiter
        line = self.inbox.popleft()
        if line is None:
            self.close()
            raise StopAsyncIteration
        event = json.loads(line)
        if event["type"] == "ERROR":
            self.close()
            raise error_of(int(event["object"].get("code") or 500), event["object"])
        return WatchEvent(event["type"], event["object"])

    async def aclose(self) -> None:
        """The client reads no more."""
        self.close()

    def wake_client(self) -> None:
        """There is something to read."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class SimKube:
    """`fencekv.kube.Kube` of one process."""

    def __init__(self, host: ApiHost, process: Process) -> None:
        self._host, self._process = host, process

    async def get(
        self, resource: Resource, namespace: str | None, name: str, *, timeout: float = REQUEST_SECONDS
    ) -> Object:
        """Quorum read of one object."""
        return await self._ask("GET", resource.path(namespace, name), timeout=timeout)

    async def list(
        self,
        resource: Resource,
        namespace: str | None,
        *,
        labels: str = "",
        timeout: float = REQUEST_SECONDS,
    ) -> Listing:
        """Quorum read of a collection."""
        query = {"labelSelector": labels} if labels else {}
        page = await self._ask("GET", resource.path(namespace), query=query, timeout=timeout)
        for item in page["items"]:
            item.setdefault("apiVersion", resource.api_version)
            item.setdefault("kind", resource.kind)
        return Listing(page["items"], page["metadata"]["resourceVersion"])

    async def create(
        self, resource: Resource, namespace: str | None, body: Object, *, timeout: float = REQUEST_SECONDS
    ) -> Object:
        """POST."""
        return await self._ask("POST", resource.path(namespace), body=body, timeout=timeout)

    async def replace(
        self,
        resource: Resource,
        namespace: str | None,
        body: Object,
        *,
        subresource: str = "",
        timeout: float = REQUEST_SECONDS,
    ) -> Object:
        """PUT."""
        path = resource.path(namespace, body["metadata"]["name"], subresource)
        return await self._ask("PUT", path, body=body, timeout=timeout)

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
        return await self._ask("PATCH", path, body=body, content=MERGE_PATCH, timeout=timeout)

    async def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        *,
        options: Object | None = None,
        timeout: float = REQUEST_SECONDS,
    ) -> None:
        """DELETE."""
        await self._ask("DELETE", resource.path(namespace, name), body=options, timeout=timeout)

    def watch(
        self, resource: Resource, namespace: str | None, *, labels: str = "", resource_version: str
    ) -> AsyncIterator[WatchEvent]:
        """Events after `resource_version`."""
        require_alive()
        query = {"watch": "1", "resourceVersion": resource_version}
        query |= {"labelSelector": labels} if labels else {}
        request = Request(method="GET", path=resource.path(namespace), query=query)
        return self._host.open_watch(self._process, request)

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        body: Object | None = None,
        query: Mapping[str, str] | None = None,
        content: str = "application/json",
        timeout: float,
    ) -> Object:
        require_alive()
        process = current_process()
        assert process is self._process, (process, self._process.name)
        headers = {"user-agent": self._process.name}
        data = b""
        if body is not None:
            data, headers["content-type"] = json.dumps(body).encode(), content
        request = Request(method=method, path=path, query=query or {}, headers=headers, body=data)
        answer: asyncio.Future[Response] = self._host.loop.create_future()
        self._host.submit(self._process, request, answer)
        try:
            async with asyncio.timeout(timeout):
                response = await answer
        except TimeoutError as error:
            raise Unclear(f"{method} {path}: no answer within {timeout} s") from error
        document: Object = json.loads(response.body)
        if response.status >= 400:
            raise error_of(response.status, document)
        return document
