"""A shard's listener for clients: HTTP here, frames in `frame_server`, on one port. Only it imports `aiohttp.web`.

Invariants:
  * Both wires are answered by one dispatcher, and counted by the same counters.
  * A body is read up to its route's limit and not a byte further; what is announced larger is not read at all.
  * Every answer is ours: a problem document for each error, an unknown path and a wrong method included.
  * A request that was begun is carried out even if its client goes away: its outcome must not depend on that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from fencekv import wire
from fencekv.errors import FenceKVError, Invalid, Unavailable, Unknown
from fencekv.transport import make_session
from fencekv_shard.api import Node
from fencekv_shard.dispatcher import Dispatcher
from fencekv_shard.forward import Forwarder, Received
from fencekv_shard.frame_exchange import Exchange
from fencekv_shard.frame_forward import FrameForwarder
from fencekv_shard.frame_server import FrameServer
from fencekv_shard.http_answers import HttpAnswer, content, problem, render
from fencekv_shard.http_requests import Matched, Route, check_body_size, match, parse
from fencekv_shard.metrics import Metrics
from fencekv_shard.openapi import document as openapi_document

logger = logging.getLogger(__name__)

BODY_SECONDS_MAX: Final = 30.0  # for a body to arrive
TARGET_BYTES_MAX: Final = 64 * 1024  # cursors over many partitions travel in the query
HEADER_BYTES_MAX: Final = 16 * 1024
BACKLOG: Final = 1024  # connections that wait to be accepted
CLOSE_SECONDS_MAX: Final = 2.0  # for requests under way when the listener closes
KEEPALIVE_SECONDS: Final = 75.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A listener that is up."""

    port: int
    listener: asyncio.Server
    http: web.Server
    frames: FrameServer
    session: aiohttp.ClientSession
    forwarder: FrameForwarder

    def goodbye(self, reason: str) -> None:
        """Tells the clients that speak frames to go elsewhere, and takes no further request of theirs."""
        self.frames.goodbye(reason)

    async def close(self) -> None:
        """Stops listening, lets requests under way end for a moment, and closes all connections."""
        self.listener.close()
        await asyncio.sleep(0)  # what was accepted is known then
        self.http.pre_shutdown()
        await asyncio.gather(self.http.shutdown(CLOSE_SECONDS_MAX), self.frames.close(timeout=CLOSE_SECONDS_MAX))
        await self.forwarder.close()
        await self.session.close()


async def start_server(node: Node, *, host: str, port: int) -> Running:
    """Starts the listener of a shard; port 0 takes a free one."""
    session = make_session()
    pages = Forwarder(session, pod=node.pod)
    forwarder = FrameForwarder(kvns=node.kvns, pod=node.pod)
    dispatcher, metrics = Dispatcher(node, pages), Metrics()
    http = _Server(
        _Handler(node, pages, dispatcher, metrics).handle,
        access_log=None,
        auto_decompress=False,
        max_line_size=TARGET_BYTES_MAX,
        max_field_size=HEADER_BYTES_MAX,
        keepalive_timeout=KEEPALIVE_SECONDS,
        lingering_time=2.0,
    )
    exchange = Exchange(node=node, dispatcher=dispatcher, metrics=metrics, relay=forwarder.relay)
    frames = FrameServer(exchange, http=http)
    try:
        listener = await asyncio.get_running_loop().create_server(frames, host, port, backlog=BACKLOG)
    except BaseException:
        await frames.close(timeout=0)
        await session.close()
        raise
    return Running(
        port=listener.sockets[0].getsockname()[1],
        listener=listener,
        http=http,
        frames=frames,
        session=session,
        forwarder=forwarder,
    )


class _Connection(web.RequestHandler):
    """A connection; what is no HTTP is answered as every other wrong request."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Called with what the parser refused."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun, no other one can be sent")
        limit = TARGET_BYTES_MAX if isinstance(exc, LineTooLong) else None
        text = (str(exc) or message or "malformed").splitlines()[0][:200]
        error: FenceKVError = Invalid(f"request: {text}", field="request", limit=limit)
        if status >= 500:
            logger.error("a request failed inside the HTTP library", exc_info=exc)
            error = Unknown("an error inside the shard, see its log")
        response = _response(problem(error), cbor=False)
        response.force_close()
        return response


class _Server(web.Server):
    def __init__(
        self, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], **options: Any
    ) -> None:
        super().__init__(handler)
        self._options = options

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=asyncio.get_running_loop(), **self._options)


class _Handler:
    def __init__(self, node: Node, forwarder: Forwarder, dispatcher: Dispatcher, metrics: Metrics) -> None:
        self._node, self._forwarder = node, forwarder
        self._dispatcher, self._metrics = dispatcher, metrics
        self._own: dict[str, Callable[[], HttpAnswer]] = {
            "healthz": self._healthz,
            "readyz": self._readyz,
            "metrics": self._metrics_text,
            "openapi": lambda: _document(openapi_document()),
            "report": lambda: _document(node.report()),
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        clock = asyncio.get_running_loop().time
        started = clock()
        name, write = "none", False
        try:
            # What the client sent, not what a library made of it: a key may hold any character.
            matched = match(request.method, request._message.path)
            name, write = matched.route.name, matched.route.writes
            answer = await self._answer(request, matched)
        except FenceKVError as error:
            answer = problem(error)
        except Exception:
            # A bug of ours. What it left undone is not known, so a write must not be called failed.
            logger.exception("%s %s: not foreseen", request.method, name)
            kind = Unknown if write else Unavailable
            answer = problem(kind("an error inside the shard, see its log"))
        self._metrics.count(name, answer.outcome, clock() - started)
        cbor = name == "txn" and request.headers.get("Content-Type") == wire.CBOR
        return _response(answer, cbor=cbor)

    async def _answer(self, request: web.BaseRequest, matched: Matched) -> HttpAnswer:
        own = self._own.get(matched.route.name)
        if own is not None:
            return own()
        body = await _read(request, matched.route)
        headers = list(request.headers.items())
        call = parse(matched, headers, body)
        received = Received(
            method=request.method,
            target=request._message.path,
            headers=headers,
            body=body,
            write=matched.route.writes,
        )
        return render(await self._dispatcher.answer(call, lambda http: self._forwarder.relay(http, received)))

    def _healthz(self) -> HttpAnswer:
        live = self._node.live()
        return _document({"live": live}, status=200 if live else 503)

    def _readyz(self) -> HttpAnswer:
        ready = self._node.ready()
        return _document({"ready": ready}, status=200 if ready else 503)

    def _metrics_text(self) -> HttpAnswer:
        text = self._metrics.render(self._node.report(), ready=self._node.ready())
        return HttpAnswer(status=200, body=text.encode(), content_type="text/plain; version=0.0.4; charset=utf-8")


def _document(body: dict[str, object], *, status: int = 200) -> HttpAnswer:
    return HttpAnswer(status=status, body=body, outcome="ok" if status < 400 else "Unavailable")


async def _read(request: web.BaseRequest, route: Route) -> bytes:
    announced = request.content_length
    if announced is not None:
        check_body_size(route, announced)
    if not request.body_exists:
        return b""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer proper has not begun
    parts: list[bytes] = []
    size = 0
    try:
        if request.content.is_eof():  # small bodies come with their head: no timer, and nothing to wait for
            body = request.content.read_nowait()
            check_body_size(route, len(body))
            return body
        async with asyncio.timeout(BODY_SECONDS_MAX):
            while part := await request.content.readany():
                size += len(part)
                check_body_size(route, size)
                parts.append(part)
    except TimeoutError as error:
        limit = BODY_SECONDS_MAX
        raise Invalid(f"body: not whole within {limit:g} s", field="body", limit=limit) from error
    except (aiohttp.ClientError, web.RequestPayloadError, ConnectionError) as error:
        raise Invalid(f"body: broken off: {error}", field="body") from error
    return b"".join(parts)


def _response(answer: HttpAnswer, *, cbor: bool) -> web.Response:
    body, headers = content(answer, cbor=cbor)
    return web.Response(status=answer.status, body=body, headers=headers)
