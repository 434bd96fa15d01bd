"""The HTTP front: aiohttp around the sans-IO API server.

Invariants:
  * A request is answered after its commit, and a watch's events leave in commit order.
  * Faults are carried out here and only here; `/_sandbox/` itself is never faulty.
  * Stopping closes every watch and frees every frozen request.
"""

from __future__ import annotations

import asyncio
import json
import random  # noqa: TID251  (composition root: the default generator of faults is made here)
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

from aiohttp import web

from .api import ApiServer
from .errors import ApiError, conflict, expired, too_many_requests, unauthorized, unavailable
from .faults import Asked, BadFault, Decision, Faults, Rule, rule_from
from .kubeconfig import kubeconfig_text
from .log import FileLog
from .message import Request, Response, Target, answer
from .store import encode
from .tokens import user_of
from .watch import Watcher

HOST: Final = "127.0.0.1"
BOOKMARK_SECONDS: Final = 60.0
WATCH_SECONDS_DEFAULT: Final = 1800.0
BODY_BYTES_READ_MAX: Final = 4 * 1024 * 1024
LOG_BYTES_MAX: Final = 16 * 1024 * 1024
DEFAULT_TOKEN: Final = "sandbox-admin"  # noqa: S105  (no secret: everything listens on loopback)

_VERBS: Final = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class PodLogs(Protocol):
    """Where the logs of pods come from."""

    def __call__(
        self, namespace: str, pod: str, *, container: str, previous: bool, tail_lines: int | None, follow: bool
    ) -> AsyncIterator[bytes]:
        """The log's bytes; with `follow` until the container ends."""


class Server:
    """A running API server."""

    def __init__(
        self,
        api: ApiServer,
        *,
        tokens: Mapping[str, str] | None = None,
        faults: Faults | None = None,
        pod_logs: PodLogs | None = None,
    ) -> None:
        self.api = api
        self.tokens = dict(tokens or {})
        self.faults = faults or Faults(chance=random.Random())  # noqa: S311  (faults are no secrets)
        self.pod_logs = pod_logs
        self.port = 0
        self._watches: dict[Watcher, tuple[Asked, Callable[[], None]]] = {}
        self._changed = asyncio.Event()
        self._stopping = False
        self.faults.changed = self._faults_changed
        self.faults.on_cut = self._cut
        self.faults.on_stale = api.remember_for_stale_lists

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{HOST}:{self.port}"

    def kubeconfig(self, path: Path, *, token: str = "", namespace: str = "default") -> Path:
        """Write a kubeconfig for this server; returns its path."""
        chosen = token or next(iter(self.tokens), DEFAULT_TOKEN)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(kubeconfig_text(server=self.url, token=chosen, namespace=namespace), encoding="utf-8")
        return path

    def close_watches(self) -> None:
        """End every open watch in the regular way."""
        for watcher in list(self._watches):
            watcher.close()

    def stop(self) -> None:
        """Let everything that waits go on to its end."""
        self._stopping = True
        self.close_watches()
        self._faults_changed()

    def _faults_changed(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _cut(self, rule: Rule) -> None:
        for asked, cut in list(self._watches.values()):
            if rule.matches(asked):
                cut()

    # Requests

    async def answer(self, incoming: web.Request) -> web.StreamResponse:
        """Handle any request."""
        if incoming.path.startswith("/_sandbox/"):
            return await self._admin(incoming)
        request = await self._request(incoming)
        user = user_of(incoming.headers.get("Authorization", ""), self.tokens, self.api.core)
        if user is None and request.path not in {"/readyz", "/livez", "/healthz"}:
            error = unauthorized()
            return _sent(answer(error.document(), error.code))
        target = self.api.target_of(request)
        request = replace(request, user=user or "")
        asked = _asked(request, target, request.user)
        decision = self.faults.decide(asked)
        await self._wait(decision)
        refused = _refused(decision, target)
        if refused is not None:
            return _sent(refused)
        if self.api.is_watch(request):
            return await self._watch(incoming, request, asked, decision)
        if target is not None and target.subresource == "log":
            return await self._log(incoming, request, target)
        if decision.stale and _may_be_stale(request, target):
            return _sent(self.api.stale_list(request))
        response = self.api.handle(request)
        if decision.lost_reply:
            return _cut_off(incoming)
        return _sent(response)

    @staticmethod
    async def _request(incoming: web.Request) -> Request:
        return Request(
            method=incoming.method,
            path=incoming.path,
            query=dict(incoming.query),
            headers={name.lower(): value for name, value in incoming.headers.items()},
            body=await incoming.read(),
        )

    async def _wait(self, decision: Decision) -> None:
        while decision.freeze is not None and self.faults.is_frozen(decision.freeze) and not self._stopping:
            await self._changed.wait()
        if decision.delay_seconds:
            await asyncio.sleep(decision.delay_seconds)

    # Watches

    async def _watch(
        self, incoming: web.Request, request: Request, asked: Asked, decision: Decision
    ) -> web.StreamResponse:
        try:
            watcher = self.api.watch(request)
        except ApiError as error:
            return _sent(answer(error.document(), error.code, tuple(error.headers.items())))
        if decision.error == "gone":
            watcher.poll()
            watcher.fail(expired("too old resource version: made up by a fault"))
        ready = asyncio.Event()
        watcher.wake = ready.set
        transport = incoming.transport

        def cut() -> None:
            watcher.close()
            if transport is not None:
                transport.abort()

        self._watches[watcher] = (asked, cut)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        try:
            await response.prepare(incoming)
            if decision.lost_reply:
                cut()
            await self._stream(watcher, response, ready, asked)
        except ConnectionError:
            pass  # The client went away: that is how watches end.
        finally:
            self._watches.pop(watcher, None)
            watcher.close()
        return response

    async def _stream(
        self, watcher: Watcher, response: web.StreamResponse, ready: asyncio.Event, asked: Asked
    ) -> None:
        clock = asyncio.get_running_loop().time
        ends = clock() + (watcher.timeout_seconds or WATCH_SECONDS_DEFAULT)
        bookmark_at = clock() + BOOKMARK_SECONDS
        while True:
            ready.clear()
            while self.faults.freezes(asked) and not watcher.closed:
                await self._changed.wait()
            events = watcher.poll()
            if events:
                await response.write(b"".join(event + b"\n" for event in events))
                continue
            if watcher.closed:
                break
            left = min(ends, bookmark_at) - clock()
            if left <= 0:
                watcher.add_bookmark()
                bookmark_at = clock() + BOOKMARK_SECONDS
                if clock() >= ends:
                    watcher.close()
                continue
            try:
                async with asyncio.timeout(left):
                    await ready.wait()
            except TimeoutError:
                continue
        await response.write_eof()

    # Logs

    async def _log(self, incoming: web.Request, request: Request, target: Target) -> web.StreamResponse:
        whole = self.api.handle(
            Request(method="GET", path=request.path.rsplit("/", 1)[0], headers={"accept": "application/json"})
        )
        if whole.status != 200:
            return _sent(whole)
        pod = whole.json()
        container = request.query.get("container") or pod["spec"]["containers"][0]["name"]
        if self.pod_logs is None:
            error = ApiError(400, "BadRequest", f'container "{container}" has no log: no pod runner is attached')
            return _sent(answer(error.document(), error.code))
        assert target.name is not None
        tail = request.query.get("tailLines")
        lines = self.pod_logs(
            target.namespace or "",
            target.name,
            container=container,
            previous=request.flag("previous"),
            tail_lines=int(tail) if tail and tail.isdigit() else None,
            follow=request.flag("follow"),
        )
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        response.enable_chunked_encoding()
        await response.prepare(incoming)
        try:
            async for part in lines:
                await response.write(part)
            await response.write_eof()
        except ConnectionError:
            pass
        return response

    # Administration of faults

    async def _admin(self, incoming: web.Request) -> web.StreamResponse:
        path = incoming.path.removeprefix("/_sandbox/").strip("/")
        if path == "compact" and incoming.method == "POST":
            self.api.core.store.forget_events()
            return web.json_response({"oldestVersion": self.api.core.store.oldest_version})
        name, _, rule_id = path.partition("/")
        if name != "faults":
            return web.json_response({"error": "unknown path"}, status=404)
        if incoming.method == "GET":
            return web.json_response({"faults": self.faults.documents()})
        if incoming.method == "DELETE":
            if not rule_id:
                self.faults.clear()
            elif not self.faults.remove(rule_id):
                return web.json_response({"error": f"no fault {rule_id!r}"}, status=404)
            return web.json_response({"faults": self.faults.documents()})
        if incoming.method != "POST":
            return web.json_response({"error": "GET, POST or DELETE"}, status=405)
        try:
            document: Any = json.loads(await incoming.read())
            if not isinstance(document, dict):
                raise BadFault("a fault is a JSON object")
            added = self.faults.add(rule_from(document))
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response({"id": added}, status=201)


def _asked(request: Request, target: Target | None, user: str) -> Asked:
    if target is None:
        return Asked(verb="other", user_agent=request.user_agent, user=user)
    verb = _VERBS.get(request.method) or ("list" if target.name is None else "get")
    if ApiServer.is_watch(request):
        verb = "watch"
    if verb == "delete" and target.name is None:
        verb = "deletecollection"
    return Asked(
        verb=verb,
        resource=target.resource.plural,
        subresource=target.subresource or "",
        namespace=target.at,
        name=target.name or "",
        user_agent=request.user_agent,
        user=user,
    )


def _refused(decision: Decision, target: Target | None) -> Response | None:
    """The answer that a fault gives instead of the server's."""
    error: ApiError | None = None
    if decision.error == "conflict" and target is not None:
        error = conflict(target.resource.plural, target.resource.group, target.name or "")
    elif decision.error == "too_many":
        error = too_many_requests(decision.retry_after_seconds)
    elif decision.error == "unavailable":
        error = unavailable()
    elif decision.error == "gone":
        error = expired("the resourceVersion is too old: made up by a fault")
    return None if error is None else answer(error.document(), error.code, tuple(error.headers.items()))


def _may_be_stale(request: Request, target: Target | None) -> bool:
    """Reads by quorum are never stale: that is what ownership rests on."""
    return (
        target is not None
        and request.method == "GET"
        and (target.name is None or request.query.get("resourceVersion") == "0")
    )


def _sent(response: Response) -> web.Response:
    sent = web.Response(status=response.status, body=response.body)
    sent.headers["Content-Type"] = response.content_type
    for name, value in response.headers:
        sent.headers.add(name, value)
    return sent


def _cut_off(incoming: web.Request) -> web.Response:
    if incoming.transport is not None:
        incoming.transport.abort()
    return web.Response(status=500)


@asynccontextmanager
async def serve(
    *,
    data: Path | None = None,
    port: int = 0,
    tokens: Mapping[str, str] | None = None,
    faults: Faults | None = None,
    pod_logs: PodLogs | None = None,
    sync: bool = False,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    new_uid: Callable[[], str] = lambda: str(uuid.uuid4()),
    collect_owners: bool = True,
) -> AsyncIterator[Server]:
    """Run an API server on 127.0.0.1; `port` 0 takes a free one, `data` None keeps nothing."""
    log = None if data is None else FileLog(data / "objects.jsonl", sync=sync)
    api = ApiServer(now=now, new_uid=new_uid, log=log, collect_owners=collect_owners)
    server = Server(api, tokens=tokens, faults=faults, pod_logs=pod_logs)
    application = web.Application(client_max_size=BODY_BYTES_READ_MAX)
    application.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=2.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, HOST, port, reuse_address=True)
        await site.start()
        server.port = runner.addresses[0][1]
        yield server
    finally:
        server.stop()
        await runner.cleanup()
        if log is not None:
            log.close()


__all__ = ["HOST", "PodLogs", "Server", "encode", "serve"]
