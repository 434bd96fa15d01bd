"""One connection on which a client speaks frames: docs/frames.md, the shard's side.

Invariants:
  * Each request that was taken is answered once, unless it was cancelled or the connection broke.
  * A write that a partition has taken is carried out, whatever becomes of the connection.
  * Nothing is read while more than UNSENT_BYTES_MAX wait to be sent; reads that have to wait are begun only as
    their answers have room.
  * A frame that breaks a rule ends the connection, and nothing behind it is carried out.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterator
from typing import Final, cast

from fencekv import frames, messages
from fencekv.errors import Exhausted, FenceKVError, Unavailable, Unknown
from fencekv.frame_reader import read_message
from fencekv_shard import limits
from fencekv_shard.calls import Answer, Call, Failed, Get, Write
from fencekv_shard.frame_answers import encode, outcome
from fencekv_shard.frame_exchange import (
    FRAME_SECONDS_MAX,
    LINGER_SECONDS_MAX,
    OPENING_SECONDS_MAX,
    PARTIAL_BYTES_SMALL,
    READ_BYTES_MAX,
    UNSENT_BYTES_LOW,
    UNSENT_BYTES_MAX,
    Exchange,
    Unsent,
)
from fencekv_shard.frame_requests import NAMES, read

logger = logging.getLogger(__name__)

_HEAD_BYTES: Final = 4  # of a frame: its length
UNDER_WAY_MAX: Final = 4 * messages.IN_FLIGHT_MAX  # with the writes that nobody waits for any more
_SHORT: Final = (Write, Get)  # calls that may be served without a task
# How large the answers to reads get; what writes are answered with is small.
_ANSWER_BYTES: Final[dict[type, int]] = {
    messages.Get: limits.VALUE_BYTES_MAX,
    messages.List: limits.LIST_BYTES_MAX,
    messages.History: limits.LIST_BYTES_MAX,
    messages.Route: limits.VALUE_BYTES_MAX,
}


class Request:
    """A request under way: a `calls.Taker`."""

    __slots__ = ("call", "cancelled", "connection", "message", "reserved_bytes", "size", "started", "task")

    def __init__(self, connection: FrameConnection, message: messages.Request, size: int, started: float) -> None:
        self.connection, self.message, self.size, self.started = connection, message, size, started
        self.call: Call | None = None  # None: not read yet
        self.cancelled = False  # nobody waits for it
        self.reserved_bytes = 0  # of answers to reads, from the connection's share
        self.task: asyncio.Task[None] | None = None  # None: it went no long way, or not yet

    def answered(self, answer: Answer) -> None:
        """Sends the answer."""
        self.connection.finish(self, answer)

    def long_way(self) -> None:
        """Has it answered by a task."""
        self.connection.queue(self)


class FrameConnection(asyncio.Protocol):
    """A connection; `lost` is done when it is no more."""

    def __init__(self, exchange: Exchange) -> None:
        self.lost = exchange.loop.create_future()
        self._exchange, self._loop = exchange, exchange.loop
        self._transport: asyncio.Transport | None = None  # None: not yet, or not any more
        self._splitter = frames.Splitter()
        self._bodies: Iterator[bytes] | None = None  # None: all that came was worked off
        self._backlog: list[bytes] = []  # what came in while `_bodies` could not be worked off
        self._partial_bytes = 0  # received, and not yet worked off
        self._partial_since: float | None = None  # None: no frame has come in part
        self._opened = False
        self._leaving = False  # nothing more is taken
        self._client_ended = False  # the client says nothing more
        self._ended_at: float | None = None  # when all was said; then only the client's end is waited for
        self._paused = False  # too much waits to be sent
        self._last = 0  # the highest number taken
        self._under_way: dict[int, Request] = {}
        self._given_up = 0  # of them, writes that nobody waits for
        self._queued: deque[Request] = deque()  # reads for whose answers there is no room yet
        self._reserved_bytes = 0
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._made = self._heard = self._loop.time()
        self._unsent = Unsent(self._made)

    # -- what the transport says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called once."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=UNSENT_BYTES_MAX, low=UNSENT_BYTES_LOW)

    def data_received(self, data: bytes) -> None:
        """Works off what came, as far as there is room for answers."""
        if self._leaving:
            return
        self._heard = self._loop.time()
        self._hold(len(data))
        if self._bodies is not None:
            self._backlog.append(data)
            return
        self._bodies = self._splitter.feed(data)
        self._work()

    def eof_received(self) -> bool:
        """The client says nothing more, and may still wait for answers."""
        self._client_ended = True
        self.leave(None)
        return self._ended_at is None  # else both sides have said all, and the transport closes

    def pause_writing(self) -> None:
        """Too much waits to be sent."""
        self._paused = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """The client has taken enough of it."""
        self._paused = False
        self._begin_queued()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
        if self._bodies is not None:
            self._work()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody waits for reads any more; writes go on."""
        self._leaving, self._transport = True, None
        self._out.clear()
        self._drop_input()
        for request in list(self._under_way.values()):
            self._cancel(request)
        if not self.lost.done():
            self.lost.set_result(None)

    # -- what the server says

    def leave(self, reason: str | None) -> None:
        """Takes nothing more, and closes when all is answered; None: without a goodbye."""
        if self._leaving:
            return
        self._leaving = True
        self._drop_input()
        if reason is not None:
            self._send(frames.encode(messages.Goodbye(reason, self._last if self._opened else None)))
        self._close_if_done()

    def abort(self) -> None:
        """Breaks the connection off."""
        if self._transport is not None:
            self._transport.abort()

    def tick(self, now: float) -> None:
        """Called about once a second: what has taken too long?"""
        if self._transport is None:
            return
        unsent = self._transport.get_write_buffer_size()
        if self._unsent.too_long(unsent, now):
            self.abort()
        if self._leaving:
            if self._ended_at is not None and now - self._ended_at > LINGER_SECONDS_MAX:
                self._transport.close()
        elif not self._opened and now - self._made > OPENING_SECONDS_MAX:
            self.leave(f"opening: not within {OPENING_SECONDS_MAX:g} s")
        elif self._partial_since is not None and now - self._partial_since > FRAME_SECONDS_MAX:
            self.leave(f"frame: not whole within {FRAME_SECONDS_MAX:g} s")
        elif not self._under_way and not unsent and now - self._heard > messages.IDLE_SECONDS:
            self.leave(f"idle for {messages.IDLE_SECONDS} s")

    def flush(self) -> None:
        """Sends all that waits, in one write."""
        out = self._out
        if out and self._transport is not None:
            data = out[0] if len(out) == 1 else b"".join(out)
            out.clear()
            self._out_bytes = 0
            self._transport.write(data)

    # -- frames

    def _work(self) -> None:
        """Works off what came in; stops where answers have no room."""
        try:
            while self._bodies is not None:
                for body in self._bodies:
                    self._partial_since = None
                    self._frame(body)
                    if self._paused or self._leaving:
                        return
                self._bodies = None
                if self._backlog:
                    data = b"".join(self._backlog)
                    self._backlog.clear()
                    self._bodies = self._splitter.feed(data)
        except messages.Malformed as error:
            self.leave(str(error))
            return
        if self._partial_bytes and self._partial_since is None:
            self._partial_since = self._heard
        if self._partial_bytes > PARTIAL_BYTES_SMALL and self._exchange.full():
            self.leave("this shard holds too many requests: come back later")

    def _frame(self, body: bytes) -> None:
        size = len(body) + _HEAD_BYTES
        self._hold(-size)
        message = read_message(body)
        name = NAMES.get(type(message))
        if not self._opened:
            self._open(message)
        elif name is not None:
            self._take(cast("messages.Request", message), name, size)
        elif isinstance(message, messages.Cancel):
            cancelled = self._under_way.get(message.number)
            if cancelled is not None:
                self._cancel(cancelled)
        elif isinstance(message, messages.Ping):
            self._send(frames.encode(messages.Pong(message.number)))
        elif isinstance(message, messages.Goodbye):
            self.leave(None)
        else:
            raise messages.Malformed("opening: a second one")

    def _open(self, message: messages.ClientMessage) -> None:
        if isinstance(message, messages.Goodbye):
            self.leave(None)
            return
        if not isinstance(message, messages.Hello):
            raise messages.Malformed("opening: want the protocol, its versions, a namespace and a name first")
        if messages.VERSION not in message.versions:
            raise messages.Malformed(f"versions: this shard speaks {messages.VERSION}")
        if message.namespace != self._exchange.kvns:
            raise messages.Malformed(
                f"namespace: this shard serves {self._exchange.kvns!r}, not {message.namespace[:64]!r}"
            )
        self._opened = True
        welcome = messages.Welcome(messages.VERSION, self._exchange.pod, messages.Limits())
        self._send(frames.encode(welcome))

    def _take(self, message: messages.Request, name: str, size: int) -> None:
        number, exchange = message.number, self._exchange
        if number <= self._last:
            raise messages.Malformed(f"number: {number}, but they rise, and {self._last} was there before")
        self._last = number
        full = self._full()
        if full is not None:
            exchange.metrics.count(name, full.error.name, 0.0)
            self._send(encode(number, full))
            return
        request = self._under_way[number] = Request(self, message, size, self._heard)
        exchange.held_bytes += size
        try:
            call = request.call = read(message, namespace=exchange.kvns)
            if isinstance(call, _SHORT):
                exchange.dispatcher.begin(call, request)
            else:
                self.queue(request)
        except FenceKVError as error:
            self.finish(request, Failed.nowhere(error))
        except Exception:
            logger.exception("%s: not foreseen", name)
            if number in self._under_way:
                self.finish(request, _not_foreseen(request))

    def _full(self) -> Failed | None:
        limit, count = messages.IN_FLIGHT_MAX, len(self._under_way)
        if count - self._given_up >= limit or count >= UNDER_WAY_MAX:
            return Failed.nowhere(Exhausted(f"{limit} requests are under way on this connection", limit=limit))
        if self._exchange.full():
            return Failed.nowhere(Exhausted("this shard holds too many requests"))
        return None

    # -- the long way

    def queue(self, request: Request) -> None:
        """Has a request answered by a task, once there is room for its answer."""
        if request.cancelled:
            self.finish(request, _NOBODY_WAITS)
        elif isinstance(request.call, Write):
            request.task = self._exchange.spawn(self._answer(request))
        else:
            self._queued.append(request)
            self._begin_queued()

    def _begin_queued(self) -> None:
        queued = self._queued
        while queued and not self._paused:
            need = _ANSWER_BYTES[type(queued[0].message)]
            if self._reserved_bytes + need > READ_BYTES_MAX:
                return
            request = queued.popleft()
            request.reserved_bytes = need
            self._reserved_bytes += need
            request.task = self._exchange.spawn(self._answer(request))

    async def _answer(self, request: Request) -> None:
        exchange, call = self._exchange, request.call
        assert call is not None, request.message
        try:
            answer = await exchange.dispatcher.answer(call, lambda http: exchange.relay(http, request.message))
        except Exception:
            logger.exception("%s: not foreseen", NAMES[type(request.message)])
            answer = _not_foreseen(request)
        self.finish(request, answer)

    def _cancel(self, request: Request) -> None:
        if not request.cancelled:
            request.cancelled = True
            self._given_up += 1
        if isinstance(request.call, Write):
            return  # it may have been begun: it is carried out
        if request.task is not None:
            request.task.cancel()
        else:
            self._queued.remove(request)
        self.finish(request, _NOBODY_WAITS)

    # -- answers

    def finish(self, request: Request, answer: Answer) -> None:
        """Ends a request. Raises nothing: whoever calls it has other requests to end."""
        try:
            number, exchange = request.message.number, self._exchange
            del self._under_way[number]
            self._given_up -= request.cancelled
            exchange.held_bytes -= request.size
            if answer is not _NOBODY_WAITS:
                name = NAMES[type(request.message)]
                exchange.metrics.count(name, outcome(answer), self._loop.time() - request.started)
            if self._transport is not None and not request.cancelled:
                self._send(encode(number, answer))
            if request.reserved_bytes:
                self._reserved_bytes -= request.reserved_bytes
                self._begin_queued()
            if self._leaving:
                self._close_if_done()
        except Exception:
            logger.exception("an answer cannot be sent: the connection is broken off")
            self.abort()

    def _send(self, frame: bytes) -> None:
        if not self._out:
            self._exchange.flush_soon(self)
        self._out.append(frame)
        self._out_bytes += len(frame)
        if self._out_bytes > UNSENT_BYTES_MAX:
            self.flush()

    def _close_if_done(self) -> None:
        if self._under_way or self._transport is None or self._ended_at is not None:
            return
        self.flush()
        # Closed at once, with something of the client's unread, the goodbye could be lost on its way.
        self._ended_at = self._loop.time()
        if self._client_ended:
            self._transport.close()
        else:
            self._transport.write_eof()

    # -- bytes

    def _hold(self, more: int) -> None:
        self._partial_bytes += more
        self._exchange.held_bytes += more

    def _drop_input(self) -> None:
        self._hold(-self._partial_bytes)
        self._bodies, self._partial_since = None, None
        self._backlog.clear()
        self._splitter = frames.Splitter()


_NOBODY_WAITS: Final = Failed.nowhere(Unavailable("nobody waits for it"))


def _not_foreseen(request: Request) -> Failed:
    """A bug of ours. What it left undone is not known, so a write must not be called failed."""
    kind = Unknown if isinstance(request.call, Write) else Unavailable
    return Failed.nowhere(kind("an error inside the shard, see its log"))
