"""Answers every request at once: what the load processes reach against it is their own ceiling."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

_BODY: Final = b'{"version":"1.1000000","token":"1.1000000","partition":"bench-0"}'
ANSWER: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
    + str(len(_BODY)).encode()
    + b"\r\n\r\n"
    + _BODY
)


class _Responder(asyncio.Protocol):
    """Requests of one size need no parsing."""

    def __init__(self, request_bytes: int) -> None:
        self._request_bytes, self._received = request_bytes, 0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        while self._received >= self._request_bytes:
            self._received -= self._request_bytes
            self._transport.write(ANSWER)


@contextlib.asynccontextmanager
async def responder(request_bytes: Callable[[int], int], *, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """Serves on this loop; gives the port. `request_bytes`: a request's size, by the port that it names."""
    loop = asyncio.get_running_loop()
    size = 0
    server = await loop.create_server(lambda: _Responder(size), host, 0, backlog=1024)
    try:
        port = int(server.sockets[0].getsockname()[1])
        size = request_bytes(port)
        yield port
    finally:
        server.close()
        await server.wait_closed()
