"""One client: a keep-alive connection that sends a prepared request, waits for the answer, and sends the next.

HTTP/1.1 is read as far as the two systems use it: a status line, `Content-Length`, a body. Everything else about
a general client would be paid for in the figures.

Invariants:
  * One request is under way on a connection at a time.
  * An answer that cannot be read is an error that is counted, never a put.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

HEAD_BYTES_MAX: Final = 16 * 1024
_LENGTH: Final = b"\r\ncontent-length:"


class Unreadable(Exception):
    """The answer is no HTTP that this client reads; the message says why."""


def whole_answer(data: bytes) -> tuple[int, int] | None:
    """Status and size of the answer that `data` begins with; None: it is not whole yet. Pure.

    Raises:
        Unreadable: it has no status, no length, or no end of its head.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        if len(data) > HEAD_BYTES_MAX:
            raise Unreadable(f"no end of the head within {HEAD_BYTES_MAX} bytes")
        return None
    head = data[:end].lower() + b"\r\n"
    at = head.find(_LENGTH)
    if not head.startswith(b"http/1.1 ") or at < 0:
        raise Unreadable(f"want HTTP/1.1 with a Content-Length, got {bytes(data[:80])!r}")
    begin = at + len(_LENGTH)
    try:
        size = end + 4 + int(head[begin : head.index(b"\r\n", begin)])
        status = int(head[9:12])
    except ValueError as error:
        raise Unreadable(f"malformed head: {bytes(data[:80])!r}") from error
    return (status, size) if len(data) >= size else None


class Connection(asyncio.Protocol):
    """Sends what `following` gives until that is None, and tells of each answer: `on_answer(seconds, status)`.

    Status 0: the connection broke, or the answer was unreadable; nothing more is sent on it.
    """

    __slots__ = ("_clock", "_following", "_on_answer", "_rest", "_sent_at", "_transport", "ended")

    def __init__(
        self,
        *,
        following: Callable[[], bytes | None],
        on_answer: Callable[[float, int], None],
        clock: Callable[[], float],
        ended: asyncio.Future[None],
    ) -> None:
        self._following, self._on_answer, self._clock = following, on_answer, clock
        self._rest = b""
        self._sent_at = -1.0  # negative: nothing is under way
        self._transport: asyncio.Transport
        self.ended = ended

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport; `send` begins."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self) -> None:
        """Sends the next request, or closes if there is none."""
        request = self._following()
        if request is None:
            self._transport.close()
            return
        self._sent_at = self._clock()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Takes a part of an answer, mostly a whole one."""
        if self._rest:
            data = self._rest + data
        try:
            found = whole_answer(data)
        except Unreadable:
            self._transport.abort()
            return
        if found is None:
            self._rest = data
            return
        status, size = found
        if len(data) != size or self._sent_at < 0:
            self._transport.abort()  # bytes that nobody asked for
            return
        self._rest = b""
        seconds = self._clock() - self._sent_at
        self._sent_at = -1.0
        self._on_answer(seconds, status)
        self.send()

    def connection_lost(self, exc: Exception | None) -> None:
        """Counts what was under way as failed."""
        if self._sent_at >= 0:
            self._on_answer(self._clock() - self._sent_at, 0)
        if not self.ended.done():
            self.ended.set_result(None)
