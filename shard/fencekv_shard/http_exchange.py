"""What all HTTP connections of a shard share: whom they ask, the shard's own pages, and the date.

Invariants:
  * A page of the shard's own is made without waiting; what the operator asks for is answered by a task.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from email.utils import formatdate

from fencekv import wire
from fencekv.errors import FenceKVError, NotFound, NotOwner
from fencekv_shard.api import Node
from fencekv_shard.forward import Forwarder
from fencekv_shard.frame_exchange import Exchange
from fencekv_shard.http_answers import JSON, HttpAnswer, problem
from fencekv_shard.http_requests import Matched, parse_chain, parse_release
from fencekv_shard.openapi import document as openapi_document


class HttpExchange:
    """Shared by the HTTP connections of a shard; `unix`: seconds since 1970, for the date."""

    def __init__(self, exchange: Exchange, *, node: Node, forwarder: Forwarder, unix: Callable[[], float]) -> None:
        self.exchange, self.forwarder = exchange, forwarder
        self._node, self._unix_seconds = node, unix
        self._date = ""
        self._date_until = -math.inf  # of the loop's time
        self.own: dict[str, Callable[[], HttpAnswer]] = {
            "healthz": self._healthz,
            "readyz": self._readyz,
            "metrics": self._metrics,
            "openapi": lambda: _document(openapi_document()),
            "report": self._report,
        }
        self.asked: dict[str, Callable[[Matched, bytes], Awaitable[HttpAnswer]]] = {
            "chain": self._chain,
            "release": self._release,
        }

    def date(self, now: float) -> str:
        """The date as headers have it; `now` is the loop's time."""
        if now >= self._date_until:
            unix = self._unix_seconds()
            self._date = formatdate(unix, usegmt=True)
            self._date_until = now + 1 - unix % 1
        return self._date

    def _healthz(self) -> HttpAnswer:
        live = self._node.live()
        return _document({"live": live}, status=200 if live else 503)

    def _readyz(self) -> HttpAnswer:
        ready = self._node.ready()
        return _document({"ready": ready}, status=200 if ready else 503)

    async def _chain(self, matched: Matched, _: bytes) -> HttpAnswer:
        try:
            uid, seq = parse_chain(matched.query)
            chain = self._node.chain(uid, seq)
            if chain is None:
                raise NotFound(f"no entry {seq} of such a replica here", field="seq")
        except FenceKVError as error:
            return problem(error)
        return _document({"uid": uid, "seq": seq, "chain": chain})

    async def _release(self, _: Matched, body: bytes) -> HttpAnswer:
        try:
            asked = parse_release(body)
            if not await self._node.release(asked.uid, asked.epoch, asked.target):
                raise NotOwner(f"this shard does not own it under epoch {asked.epoch}", status=409)
        except FenceKVError as error:
            return problem(error)
        return _document({"moving": asked.uid}, status=202)

    def _report(self) -> HttpAnswer:
        # Of a thousand replicas it is long, and holds no values, which other documents are searched for.
        body = JSON.encode(self._node.report()).encode()
        return HttpAnswer(status=200, body=body, content_type=wire.JSON)

    def _metrics(self) -> HttpAnswer:
        text = self.exchange.metrics.render(self._node.report(), ready=self._node.ready())
        return HttpAnswer(status=200, body=text.encode(), content_type="text/plain; version=0.0.4; charset=utf-8")


def _document(body: dict[str, object], *, status: int = 200) -> HttpAnswer:
    return HttpAnswer(status=status, body=body, outcome="ok" if status < 400 else "Unavailable")
