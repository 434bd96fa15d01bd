"""A proxy with fault hooks in front of a real API server: the same rules as the embedded server's own."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

from fencekv_sandbox.apiserver.faults import Asked, Decision, Faults

VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
ERRORS = {
    "conflict": (409, "Conflict"),
    "too_many": (429, "TooManyRequests"),
    "unavailable": (503, "ServiceUnavailable"),
}
HOP = {"transfer-encoding", "content-length", "connection", "host"}


class Front:
    """Passes requests on; `faults` says what goes wrong."""

    def __init__(self, upstream: str, tls: ssl.SSLContext) -> None:
        self.upstream, self._tls = upstream, tls
        self._changed = asyncio.Event()
        self.faults = Faults(chance=random.Random(1), changed=self._wake)
        self.port = 0
        self._session: aiohttp.ClientSession

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def answer(self, incoming: web.Request) -> web.StreamResponse:
        decision = self.faults.decide(asked(incoming))
        while decision.freeze is not None and self.faults.is_frozen(decision.freeze):
            await self._changed.wait()
        await asyncio.sleep(decision.delay_seconds)
        if decision.error in ERRORS:
            return refusal(decision)
        headers = {name: value for name, value in incoming.headers.items() if name.lower() not in HOP}
        try:
            async with self._session.request(
                incoming.method,
                self.upstream + incoming.path_qs,
                headers=headers,
                data=await incoming.read() or None,
            ) as outgoing:
                if decision.lost_reply:
                    await outgoing.read()
                    return self._cut(incoming)
                kept = {name: value for name, value in outgoing.headers.items() if name.lower() not in HOP}
                response = web.StreamResponse(status=outgoing.status, headers=kept)
                await response.prepare(incoming)
                async for piece in outgoing.content.iter_any():
                    await response.write(piece)
                await response.write_eof()
                return response
        except (aiohttp.ClientError, ConnectionError):
            return self._cut(incoming)

    @staticmethod
    def _cut(incoming: web.Request) -> web.StreamResponse:
        if incoming.transport is not None:
            incoming.transport.abort()
        return web.Response(status=503)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Front]:
        connector = aiohttp.TCPConnector(ssl=self._tls, limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, auto_decompress=False
        ) as self._session:
            application = web.Application(client_max_size=1 << 26)
            application.router.add_route("*", "/{path:.*}", self.answer)
            runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.5)
            await runner.setup()
            try:
                site = web.TCPSite(runner, "127.0.0.1", 0)
                await site.start()
                self.port = runner.addresses[0][1]
                yield self
            finally:
                self.faults.clear()
                with contextlib.suppress(asyncio.TimeoutError):
                    await runner.cleanup()


def refusal(decision: Decision) -> web.Response:
    assert decision.error is not None
    status, reason = ERRORS[decision.error]
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": status,
        "reason": reason,
        "message": "fault",
    }
    return web.json_response(body, status=status, headers={"Retry-After": str(decision.retry_after_seconds)})


def asked(incoming: web.Request) -> Asked:
    """What a request is about, read from its path."""
    parts = incoming.path.strip("/").split("/")
    rest = parts[2:] if parts[0] == "api" else parts[3:]
    namespace = ""
    if len(rest) >= 2 and rest[0] == "namespaces":
        namespace, rest = rest[1], rest[2:]
    resource, name, subresource = (*rest, "", "", "")[:3]
    verb = VERBS.get(incoming.method) or ("get" if name else "list")
    if incoming.query.get("watch") in {"1", "true"}:
        verb = "watch"
    return Asked(
        verb=verb,
        resource=resource,
        subresource=subresource,
        namespace=namespace,
        name=name,
        user_agent=incoming.headers.get("User-Agent", ""),
    )
