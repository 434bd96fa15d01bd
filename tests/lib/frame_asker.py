"""A client of the frames protocol that hides nothing: it sends what it is told, and reads what comes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

from fencekv import codec, frames
from fencekv import messages as m
from fencekv.frame_reader import read_answer

HELLO = m.Hello((1,), "sample", "tests")


class FrameAsker:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.operations: dict[int, int] = {}
        self.number = 0

    def send(self, *messages: m.ClientMessage) -> None:
        """Sends messages, in one write."""
        for message in messages:
            kind = type(message)
            if kind in OPERATIONS:
                self.operations[message.number] = OPERATIONS[kind]  # type: ignore[union-attr]
        self.writer.write(b"".join(frames.encode(message) for message in messages))

    def send_items(self, *items: Any) -> None:
        """Sends an array that no message need be."""
        body = codec.encode(list(items))
        self.writer.write(len(body).to_bytes(4, "big") + body)

    async def read(self, timeout: float = 10) -> Any:
        """The next message; None: the shard has closed."""
        async with asyncio.timeout(timeout):
            try:
                head = await self.reader.readexactly(4)
            except (asyncio.IncompleteReadError, ConnectionError):
                return None
            body = await self.reader.readexactly(int.from_bytes(head, "big"))
        return read_answer(body, self.operations.get)

    async def ask(self, message: m.Request) -> Any:
        """Sends a request and gives the answer."""
        self.send(message)
        return await self.read()

    def reset(self) -> None:
        """Breaks the connection, without an orderly end."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def next(self) -> int:
        """A number for a request."""
        self.number += 1
        return self.number

    async def put(self, key: str, value: bytes = b"v", condition: m.Condition = None, **options: Any) -> Any:
        """Sends a put and gives the answer."""
        return await self.ask(m.Put(self.next(), "orders", asked(**options), key, value, condition))

    async def get(self, key: str, **options: Any) -> Any:
        """Sends a get and gives the answer."""
        return await self.ask(m.Get(self.next(), "orders", asked(**options), key))


OPERATIONS: dict[type, int] = {
    m.Get: m.GET,
    m.Put: m.PUT,
    m.Delete: m.DELETE,
    m.Txn: m.TXN,
    m.List: m.LIST,
    m.History: m.HISTORY,
    m.Route: m.ROUTE,
}


def asked(**options: Any) -> m.Options | None:
    """Options of a request; None where there are none."""
    return m.Options(**options) if options else None


@contextlib.asynccontextmanager
async def dialled(port: int) -> AsyncIterator[FrameAsker]:
    """A connection on which nothing was said yet."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 25)
    try:
        yield FrameAsker(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def connected(port: int, hello: m.Hello = HELLO) -> AsyncIterator[FrameAsker]:
    """A connection that was opened."""
    async with dialled(port) as asker:
        asker.send(hello)
        welcome = await asker.read()
        assert isinstance(welcome, m.Welcome), welcome
        yield asker
