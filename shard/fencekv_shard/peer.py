"""Messages between shards: framed canonical CBOR over TCP, and the interface that a simulation replaces.

Invariants:
  * A channel delivers whole messages, in order, or it is closed; nothing is delivered after `ChannelClosed`.
  * No message is larger than FRAME_BYTES_MAX, in either direction.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from fencekv.codec import decode, encode
from fencekv.errors import Invalid
from fencekv_shard import limits

CONNECT_SECONDS = 1.0

Message = list[Any]


class ChannelClosed(Exception):
    """The other side is gone, or spoke another language."""


class Channel(Protocol):
    """One connection."""

    async def send(self, message: Message) -> None:
        """Hands a message over; waits where the other side does not read. Raises ChannelClosed."""
        ...

    async def receive(self) -> Message:
        """The next message. Raises ChannelClosed."""
        ...

    def close(self) -> None:
        """Ends it, at once."""
        ...


class Listener(Protocol):
    """An open listening address."""

    def close(self) -> None:
        """Accepts no more."""
        ...


OnChannel = Callable[[Channel], Awaitable[None]]


class Transport(Protocol):
    """How shards reach each other. Addresses are `host:port`."""

    async def connect(self, address: str) -> Channel:
        """Dials. Raises ChannelClosed if nobody answers."""
        ...

    async def listen(self, address: str, on_channel: OnChannel) -> Listener:
        """Runs `on_channel` for each connection, until it returns."""
        ...


class TcpChannel:
    """`Channel` over a TCP connection: 4 bytes of length, then the message."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, message: Message) -> None:
        """Hands a message over."""
        data = encode(message)
        assert len(data) <= limits.FRAME_BYTES_MAX, len(data)
        try:
            self._writer.write(struct.pack(">I", len(data)) + data)
            await self._writer.drain()
        except (OSError, RuntimeError) as error:
            raise ChannelClosed(str(error)) from error

    async def receive(self) -> Message:
        """The next message."""
        try:
            (size,) = struct.unpack(">I", await self._reader.readexactly(4))
            if size > limits.FRAME_BYTES_MAX:
                raise ChannelClosed(f"frame of {size} bytes, at most {limits.FRAME_BYTES_MAX}")
            message = decode(await self._reader.readexactly(size), what="frame")
        except (OSError, asyncio.IncompleteReadError, Invalid) as error:
            raise ChannelClosed(str(error)) from error
        if not isinstance(message, list) or not message:
            raise ChannelClosed("frame is not a message")
        return message

    def close(self) -> None:
        """Ends it, at once."""
        self._writer.transport.abort()


class TcpTransport:
    """`Transport` over TCP."""

    async def connect(self, address: str) -> Channel:
        """Dials, within CONNECT_SECONDS."""
        host, _, port = address.rpartition(":")
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        except (OSError, TimeoutError, ValueError) as error:
            raise ChannelClosed(f"{address}: {error!r}") from error
        return TcpChannel(reader, writer)

    async def listen(self, address: str, on_channel: OnChannel) -> Listener:
        """Serves connections on `address`."""
        host, _, port = address.rpartition(":")

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            channel = TcpChannel(reader, writer)
            try:
                with contextlib.suppress(ChannelClosed):
                    await on_channel(channel)
            finally:
                channel.close()

        return await asyncio.start_server(serve, host.strip("[]"), int(port))
