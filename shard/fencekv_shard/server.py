"""A shard's listener for clients: one port, and behind it the parts of both wires put together.

Invariants:
  * Both wires are answered by one dispatcher, and counted by the same counters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import aiohttp

from fencekv.clock import SystemClock
from fencekv.transport import make_session
from fencekv_shard.api import Node
from fencekv_shard.dispatcher import Dispatcher
from fencekv_shard.faults import Cuts
from fencekv_shard.forward import Forwarder
from fencekv_shard.frame_exchange import Exchange
from fencekv_shard.frame_forward import FrameForwarder
from fencekv_shard.frame_server import FrameServer
from fencekv_shard.http_exchange import HttpExchange
from fencekv_shard.metrics import Metrics

BACKLOG: Final = 1024  # connections that wait to be accepted
CLOSE_SECONDS_MAX: Final = 2.0  # for requests under way when the listener closes
_SYSTEM: Final = SystemClock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A listener that is up."""

    port: int
    listener: asyncio.Server
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
        await self.frames.close(timeout=CLOSE_SECONDS_MAX)
        await self.forwarder.close()
        await self.session.close()


async def start_server(
    node: Node, *, host: str, port: int, unix: Callable[[], float] = _SYSTEM.unix, cuts: Cuts | None = None
) -> Running:
    """Starts the listener of a shard; port 0 takes a free one.

    `unix`: seconds since 1970, for answers' dates. `cuts` None: nobody orders any.
    """
    session, cuts = make_session(), cuts or Cuts()
    pages = Forwarder(session, pod=node.pod, cuts=cuts)
    forwarder = FrameForwarder(kvns=node.kvns, pod=node.pod, cuts=cuts)
    exchange = Exchange(node=node, dispatcher=Dispatcher(node, pages), metrics=Metrics(), relay=forwarder.relay)
    http = HttpExchange(exchange, node=node, forwarder=pages, unix=unix)
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
        frames=frames,
        session=session,
        forwarder=forwarder,
    )
