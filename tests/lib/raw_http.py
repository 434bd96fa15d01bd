"""A client of HTTP that sends what it is told, byte for byte, and reads answers strictly."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

SECONDS_MAX = 10


@dataclass(frozen=True)
class Said:
    """An answer."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def status(self) -> int:
        return int(self.line.split(" ")[1])

    @property
    def document(self) -> Any:
        return json.loads(self.body)


@dataclass
class Raw:
    """A connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, *data: bytes) -> None:
        self.writer.write(b"".join(data))

    def break_off(self) -> None:
        """Resets the connection: the other side learns that nobody is there any more."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def read(self, *, headless: bool = False) -> Said | None:
        """The next answer; None: the shard has closed. `headless`: the request was a HEAD."""
        async with asyncio.timeout(SECONDS_MAX):
            head = b""
            with contextlib.suppress(ConnectionError):
                while not head.endswith(b"\r\n\r\n") and (part := await self.reader.readline()):
                    head += part
            if not head:
                return None
            line, *fields = head[:-4].decode().split("\r\n")
            headers = dict(field.split(": ", 1) for field in fields)
            assert len(headers) == len(fields), fields
            size = 0 if headless else int(headers.get("Content-Length", 0))
            return Said(line, headers, await self.reader.readexactly(size))

    async def answer(self) -> Said:
        """The next answer, which there must be."""
        said = await self.read()
        assert said is not None, "the shard has closed"
        return said

    async def ask(self, *data: bytes) -> Said:
        self.send(*data)
        return await self.answer()


@contextlib.asynccontextmanager
async def dialled_http(port: int) -> AsyncIterator[Raw]:
    """A connection to a shard."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4 << 20)
    try:
        yield Raw(reader, writer)
    finally:
        writer.transport.abort()


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """A request's bytes; a `_` in a header's name is a `-`."""
    named = {"Host": "shard", **{name.replace("_", "-"): value for name, value in headers.items()}}
    if body:
        named["Content-Length"] = str(len(body))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in named.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def others_are_served(port: int) -> None:
    """Round trips on another connection: what was sent on the first one before has arrived by then."""
    async with dialled_http(port) as other:
        for _ in range(3):
            assert (await other.ask(request("GET", "/healthz"))).status == 200
