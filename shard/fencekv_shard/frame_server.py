"""A shard's connections, whatever they speak: the first byte tells frames from HTTP, and one timer serves all.

Invariants:
  * A connection costs no timer and no task of its own.
  * One that says nothing is closed, and so is one that does not speak by the rules.
"""

from __future__ import annotations

import asyncio
from typing import Final, cast

from fencekv_shard.frame_connection import FrameConnection
from fencekv_shard.frame_exchange import Exchange
from fencekv_shard.http_connection import KEEPALIVE_SECONDS, HttpConnection
from fencekv_shard.http_exchange import HttpExchange

TICK_SECONDS: Final = 1.0
SILENT_SECONDS_MAX: Final = KEEPALIVE_SECONDS  # without a first byte


class FrameServer:
    """The connections of a shard, and those that have not said yet what they speak."""

    def __init__(self, exchange: Exchange, *, http: HttpExchange) -> None:
        self.exchange, self._http = exchange, http
        self._silent: dict[_Silent, None] = {}
        self.connections: dict[FrameConnection, None] = {}
        self.http_connections: dict[HttpConnection, None] = {}
        self._goodbye: str | None = None  # None: it takes connections
        self._timer = exchange.loop.call_later(TICK_SECONDS, self._tick)

    def __call__(self) -> asyncio.Protocol:
        """The protocol of a new connection."""
        return _Silent(self)

    def goodbye(self, reason: str) -> None:
        """Takes no further request in frames: clients are told to go elsewhere, what is under way is answered.

        HTTP has no word for it: a client whose connection is closed cannot know what became of its last request.
        """
        self._goodbye = reason
        for connection in list(self.connections):
            connection.leave(reason)

    async def close(self, *, timeout: float) -> None:
        """Says goodbye, waits for what is under way, and closes all connections."""
        self._timer.cancel()
        self.goodbye(self._goodbye or "this shard closes")
        for silent in list(self._silent):
            silent.close()
        for http in list(self.http_connections):
            http.leave()
        open_ones = self._all()
        if open_ones:
            await asyncio.wait([connection.lost for connection in open_ones], timeout=timeout)
        for connection in self._all():
            connection.abort()
        await self.exchange.close()

    def add(self, silent: _Silent) -> None:
        """A connection was made."""
        self._silent[silent] = None

    def remove(self, silent: _Silent) -> None:
        """It has spoken, or is no more."""
        self._silent.pop(silent, None)

    def protocol(self, first: int) -> asyncio.Protocol:
        """Who goes on with a connection, by its first byte."""
        if first != 0:
            http = HttpConnection(self._http)
            self.http_connections[http] = None
            http.lost.add_done_callback(lambda _: self.http_connections.pop(http, None))
            return http
        connection = FrameConnection(self.exchange)
        self.connections[connection] = None
        connection.lost.add_done_callback(lambda _: self.connections.pop(connection, None))
        return connection

    def welcome(self, connection: asyncio.Protocol) -> None:
        """A connection has said its first bytes; one that comes too late is told so."""
        if self._goodbye is not None and isinstance(connection, FrameConnection):
            connection.leave(self._goodbye)

    def _all(self) -> list[FrameConnection | HttpConnection]:
        return [*self.connections, *self.http_connections]

    def _tick(self) -> None:
        self._timer = self.exchange.loop.call_later(TICK_SECONDS, self._tick)
        self.tick(self.exchange.loop.time())

    def tick(self, now: float) -> None:
        """Looks at all connections: what has taken too long?"""
        for connection in self._all():
            connection.tick(now)
        for silent in list(self._silent):
            silent.tick(now)


class _Silent(asyncio.Protocol):
    """A connection that has said nothing yet."""

    def __init__(self, server: FrameServer) -> None:
        self._server = server
        self._made = asyncio.get_running_loop().time()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._server.add(self)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None, data
        self._server.remove(self)
        protocol = self._server.protocol(data[0])
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        self._server.welcome(protocol)
        protocol.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.remove(self)

    def tick(self, now: float) -> None:
        if now - self._made > SILENT_SECONDS_MAX:
            self.close()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
