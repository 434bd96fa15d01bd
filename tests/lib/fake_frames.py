"""A shard that speaks frames and does nothing by itself: tests look at what came, and say what it says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from fencekv import frames
from fencekv import messages as m
from fencekv.frame_reader import read_message

Message = TypeVar("Message")


class FakeFrames:
    """`say` speaks on the latest connection; `answers` gives what is said to a request at once, None: nothing.

    `welcome` None: it hangs up instead; `silent`: it does not say welcome.
    """

    def __init__(self) -> None:
        self.welcome: m.ShardMessage | None = m.Welcome(m.VERSION, "sample-0", m.Limits())
        self.silent = False
        self.answers: Callable[[m.Request], m.ShardMessage | None] = lambda _: None
        self.connections = 0
        self.pieces = 0  # of data, as they arrived
        self.messages: list[m.ClientMessage] = []
        self.port = 0
        self._came = asyncio.Condition()
        self._latest: _Side | None = None
        self._sides: list[_Side] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[FakeFrames]:
        server = await asyncio.get_running_loop().create_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for side in self._sides:
                side.transport.abort()
            await asyncio.gather(*(side.ended for side in self._sides))

    def _connected(self) -> _Side:
        self._latest = _Side(self)
        self._sides.append(self._latest)
        return self._latest

    async def took(self, count: int) -> list[m.Request]:
        """Waits until `count` requests have come on all connections together; returns all that came."""
        async with asyncio.timeout(5), self._came:
            await self._came.wait_for(lambda: len(self._requests()) >= count)
        return self._requests()

    def _requests(self) -> list[m.Request]:
        return [message for message in self.messages if isinstance(message, m.Request)]

    async def next_of(self, kind: type[Message]) -> Message:
        """Waits for a message of a kind."""
        async with asyncio.timeout(5), self._came:
            await self._came.wait_for(lambda: any(isinstance(message, kind) for message in self.messages))
        return next(message for message in self.messages if isinstance(message, kind))

    def came(self, message: m.ClientMessage) -> None:
        self.messages.append(message)
        asyncio.ensure_future(self._tell())  # noqa: RUF006 (it ends at once)

    async def _tell(self) -> None:
        async with self._came:
            self._came.notify_all()

    def say(self, message: m.ShardMessage) -> None:
        self.say_bytes(frames.encode(message))

    def say_bytes(self, data: bytes) -> None:
        self._side.transport.write(data)

    def hang_up(self) -> None:
        self._side.transport.close()

    def stop_reading(self) -> None:
        self._side.transport.pause_reading()

    def go_on_reading(self) -> None:
        self._side.transport.resume_reading()

    @property
    def _side(self) -> _Side:
        assert self._latest is not None
        return self._latest


class _Side(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, shard: FakeFrames) -> None:
        self._shard = shard
        self._splitter = frames.Splitter()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._shard.connections += 1

    def data_received(self, data: bytes) -> None:
        self._shard.pieces += 1
        for body in self._splitter.feed(data):
            message = read_message(body)
            if isinstance(message, m.Hello) and not self._shard.silent:
                if self._shard.welcome is None:
                    self.transport.close()
                else:
                    self.transport.write(frames.encode(self._shard.welcome))
            elif isinstance(message, m.Request):
                said = self._shard.answers(message)
                if said is not None:
                    self.transport.write(frames.encode(said))
            self._shard.came(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set_result(None)
