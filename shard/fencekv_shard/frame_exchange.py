"""What all connections of a shard share, of both wires: whom they ask, what they count, what they may hold.

Invariants:
  * Bytes of requests under way, and of frames that have not arrived whole, are bounded over all connections.
  * What is answered in one turn of the loop leaves each connection in one write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Protocol

from fencekv import messages
from fencekv_shard.api import Node
from fencekv_shard.calls import Relayed
from fencekv_shard.dispatcher import Dispatcher
from fencekv_shard.metrics import Metrics
from fencekv_shard.tasks import Tasks

OPENING_SECONDS_MAX: Final = 5.0  # from connecting to the client's first message
FRAME_SECONDS_MAX: Final = 30.0  # for a frame to arrive whole
STALLED_SECONDS_MAX: Final = 60.0  # for a client to take a byte of what waits for it
LINGER_SECONDS_MAX: Final = 2.0  # for a client to close, once all was said
UNSENT_BYTES_MAX: Final = 1 << 20  # then nothing more is read from that connection
UNSENT_BYTES_LOW: Final = 256 << 10  # and from here on again
READ_BYTES_MAX: Final = 32 << 20  # of answers to reads of one connection that are being made at once
HELD_BYTES_MAX: Final = 256 << 20  # of requests, over all connections
PARTIAL_BYTES_SMALL: Final = 64 << 10  # of a frame in part: nobody is turned away for it

FrameRelay = Callable[[str, messages.Request], Awaitable[Relayed]]
"""Has the shard at an address answer a request."""


class Unsent:
    """How long a client has taken nothing of what waits for it."""

    __slots__ = ("_bytes", "_since")

    def __init__(self, now: float) -> None:
        self._since, self._bytes = now, 0

    def too_long(self, unsent_bytes: int, now: float) -> bool:
        """Called now and then with what waits: whether it has not changed for STALLED_SECONDS_MAX."""
        if unsent_bytes != self._bytes or not unsent_bytes:
            self._since, self._bytes = now, unsent_bytes
            return False
        return now - self._since > STALLED_SECONDS_MAX


class Flushes(Protocol):
    """A connection with something to send."""

    def flush(self) -> None:
        """Sends it."""
        ...


class Exchange:
    """Shared by the connections of a shard."""

    def __init__(
        self,
        *,
        node: Node,
        dispatcher: Dispatcher,
        metrics: Metrics,
        relay: FrameRelay,
        held_bytes_max: int = HELD_BYTES_MAX,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.kvns, self.pod = node.kvns, node.pod
        self.dispatcher, self.metrics, self.relay = dispatcher, metrics, relay
        self.held_bytes = 0
        self._held_bytes_max = held_bytes_max
        self._unflushed: list[Flushes] = []
        self._tasks = Tasks()

    def full(self) -> bool:
        """Whether no further request is to be taken."""
        return self.held_bytes > self._held_bytes_max

    def flush_soon(self, connection: Flushes) -> None:
        """Flushes a connection at the end of this turn of the loop."""
        if not self._unflushed:
            self.loop.call_soon(self._flush)
        self._unflushed.append(connection)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs the long way of a request."""
        return self._tasks.spawn(work)

    async def close(self) -> None:
        """Ends what still runs."""
        await self._tasks.close()

    def _flush(self) -> None:
        connections, self._unflushed = self._unflushed, []
        for connection in connections:
            connection.flush()
