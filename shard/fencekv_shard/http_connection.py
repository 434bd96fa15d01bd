"""One connection on which a client speaks HTTP/1.1.

Invariants:
  * Requests are carried out one after the other, and answered in the order in which they were sent.
  * A write that a partition has taken is carried out, whatever becomes of the connection.
  * Nothing is begun while more than UNSENT_BYTES_MAX wait to be sent, and nothing is read while what was read
    waits to be begun.
  * A request that breaks HTTP's rules is answered, and ends the connection: nothing behind it is carried out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import Final, cast

from fencekv import wire
from fencekv.errors import Exhausted, FenceKVError, Invalid, Unavailable, Unknown
from fencekv_shard.calls import Answer, Call, Get, Write
from fencekv_shard.forward import Received
from fencekv_shard.frame_exchange import (
    LINGER_SECONDS_MAX,
    PARTIAL_BYTES_SMALL,
    UNSENT_BYTES_LOW,
    UNSENT_BYTES_MAX,
    Unsent,
)
from fencekv_shard.http_answers import HttpAnswer, encode, problem, render
from fencekv_shard.http_exchange import HttpExchange
from fencekv_shard.http_reader import Reader, Request
from fencekv_shard.http_requests import parse

logger = logging.getLogger(__name__)

KEEPALIVE_SECONDS: Final = 75.0  # between an answer and the next request
REQUEST_SECONDS_MAX: Final = 30.0  # for a request to arrive whole
_PIECE_BYTES: Final = 64 * 1024  # parsed at once: bounds the requests that wait on one connection
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Turn:
    """A request that was begun: a `calls.Taker`."""

    __slots__ = ("call", "connection", "request", "started", "task")

    def __init__(self, connection: HttpConnection, request: Request, started: float) -> None:
        self.connection, self.request, self.started = connection, request, started
        self.call: Call | None = None  # None: it is not read yet, or needs no dispatcher
        self.task: asyncio.Task[None] | None = None  # None: it went no long way, or not yet

    def answered(self, answer: Answer) -> None:
        """Sends the answer."""
        self.connection.finish(self, answer)

    def long_way(self) -> None:
        """Has it answered by a task."""
        self.connection.long_way(self)


class HttpConnection(asyncio.Protocol):
    """A connection; `lost` is done when it is no more."""

    def __init__(self, shared: HttpExchange) -> None:
        self._shared, self._exchange = shared, shared.exchange
        self._loop = shared.exchange.loop
        self.lost = self._loop.create_future()
        self._transport: asyncio.Transport | None = None  # None: not yet, or not any more
        self._reader = Reader()
        self._unread = b""  # what came while a request was under way
        self._held_bytes = 0  # of requests, as far as the shard's total has them
        self._turn: Turn | None = None  # None: no request is under way
        self._working = False
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._paused = False  # too much waits to be sent
        self._reading = True
        self._leaving = False  # the next answer is the last one
        self._client_ended = False  # the client says nothing more
        self._ended_at: float | None = None  # when all was said; then only the client's end is waited for
        self._heard = self._loop.time()
        self._partial_since: float | None = None  # None: no request is being waited for in part
        self._unsent = Unsent(self._heard)

    # -- what the transport says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called once."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=UNSENT_BYTES_MAX, low=UNSENT_BYTES_LOW)

    def data_received(self, data: bytes) -> None:
        """Works off what came, as far as nothing is under way."""
        if self._ended_at is not None:
            return
        self._heard = self._loop.time()
        self._unread = self._unread + data if self._unread else data
        self._work()

    def eof_received(self) -> bool:
        """The client says nothing more, and may still wait for answers."""
        self._client_ended = True
        if self._ended_at is not None:
            return False  # both sides have said all, and the transport closes
        self._work()
        return True

    def pause_writing(self) -> None:
        """Too much waits to be sent."""
        self._paused = True

    def resume_writing(self) -> None:
        """The client has taken enough of it."""
        self._paused = False
        self._work()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody waits for reads any more; writes go on."""
        self._transport = None
        self._out.clear()
        self._unread = b""
        self._reader.close()
        turn = self._turn
        if turn is not None and turn.task is not None and not isinstance(turn.call, Write):
            turn.task.cancel()
            self._turn = None
        self._hold()
        if not self.lost.done():
            self.lost.set_result(None)

    # -- what the server says

    def leave(self) -> None:
        """Closes as soon as no request is under way."""
        self._leaving = True
        if self._turn is None and not self._reader.partial and self._ended_at is None:
            self._close()

    def abort(self) -> None:
        """Breaks the connection off."""
        self._unread = b""
        self._reader.close()
        if self._transport is not None:
            self._transport.abort()

    def tick(self, now: float) -> None:
        """Called about once a second: what has taken too long?"""
        if self._transport is None:
            return
        unsent = self._transport.get_write_buffer_size()
        if self._unsent.too_long(unsent, now):
            self.abort()
            return
        if self._ended_at is not None:
            if now - self._ended_at > LINGER_SECONDS_MAX:
                self._transport.close()
        elif self._partial_since is not None:
            if now - self._partial_since > REQUEST_SECONDS_MAX:
                what, limit = "body" if self._reader.in_body else "request", REQUEST_SECONDS_MAX
                self._reader.refuse(Invalid(f"{what}: not whole within {limit:g} s", field=what, limit=limit))
                self._work()
        elif self._turn is None and not unsent and now - self._heard > KEEPALIVE_SECONDS:
            self._close()

    # -- requests

    def _work(self) -> None:
        """Begins the next request if there is one and its answer has room; called whenever that may be so."""
        if self._working or self._transport is None or self._ended_at is not None:
            return
        self._working = True
        reader = self._reader
        while self._turn is None and not self._paused:
            if self._out_bytes > UNSENT_BYTES_MAX:
                self._flush()
            elif reader.requests:
                self._begin(reader.requests.popleft())
            elif self._unread and not reader.ended:
                piece, self._unread = self._unread[:_PIECE_BYTES], self._unread[_PIECE_BYTES:]
                reader.feed(piece)
                if reader.body_bytes > PARTIAL_BYTES_SMALL and self._exchange.full():
                    reader.refuse(_too_many())
            else:
                self._rest()
                break
        self._working = False
        self._flush()
        self._hold()
        self._read(not self._unread)

    def _rest(self) -> None:
        """Nothing is under way, and all that came was read: what is being waited for?"""
        reader = self._reader
        if reader.ended or self._client_ended:
            self._end()
        elif not reader.partial:
            self._partial_since = None
        elif self._partial_since is None:
            self._partial_since = self._loop.time()
        if reader.go_on():
            self._send([_CONTINUE])

    def _begin(self, request: Request) -> None:
        turn = self._turn = Turn(self, request, self._loop.time())
        self._partial_since = None
        exchange, matched = self._exchange, request.matched
        try:
            if request.refusal is not None:
                self.finish(turn, problem(request.refusal))
                return
            assert matched is not None, request.target
            own = self._shared.own.get(matched.route.name)
            if own is not None:
                self.finish(turn, own())
                return
            asked = self._shared.asked.get(matched.route.name)
            if asked is not None:
                turn.task = exchange.spawn(self._answer_asked(turn, asked(matched, request.body)))
                return
            if exchange.full():
                self.finish(turn, problem(_too_many()))
                return
            call = turn.call = parse(matched, request.headers, request.body)
            if isinstance(call, Write | Get) and call.namespace == exchange.kvns:
                exchange.dispatcher.begin(call, turn)
            else:
                self.long_way(turn)
        except FenceKVError as error:
            self.finish(turn, problem(error))
        except Exception:
            logger.exception("%s %s: not foreseen", request.method, request.name)
            self.finish(turn, _not_foreseen(request))

    def long_way(self, turn: Turn) -> None:
        """Has a request answered by a task."""
        turn.task = self._exchange.spawn(self._answer(turn))

    async def _answer_asked(self, turn: Turn, answer: Awaitable[HttpAnswer]) -> None:
        try:
            page = await answer
        except Exception:
            logger.exception("%s %s: not foreseen", turn.request.method, turn.request.name)
            page = _not_foreseen(turn.request)
        self.finish(turn, page)

    async def _answer(self, turn: Turn) -> None:
        shared, request, call = self._shared, turn.request, turn.call
        assert call is not None, request.target
        received = Received(
            method=request.method,
            target=request.target,
            headers=request.headers,
            body=request.body,
            write=isinstance(call, Write),
        )
        answer: Answer | HttpAnswer
        try:
            relay = shared.forwarder.relay
            answer = await self._exchange.dispatcher.answer(call, lambda http: relay(http, received))
        except Exception:
            logger.exception("%s %s: not foreseen", request.method, request.name)
            answer = _not_foreseen(request)
        self.finish(turn, answer)

    # -- answers

    def finish(self, turn: Turn, answer: Answer | HttpAnswer) -> None:
        """Ends a request. Raises nothing: whoever calls it has other requests to end."""
        if self._turn is not turn:
            return  # it was answered, or nobody waits for it
        self._turn, request = None, turn.request
        try:
            page = answer if isinstance(answer, HttpAnswer) else render(answer)
            now = self._heard = self._loop.time()
            self._exchange.metrics.count(request.name, page.outcome, now - turn.started)
            if self._transport is not None:
                keep_alive = request.keep_alive and not self._leaving
                if not keep_alive:
                    self._reader.close()
                self._send(
                    encode(
                        page,
                        cbor=request.name == "txn" and _is_cbor(request),
                        version=request.version,
                        keep_alive=keep_alive,
                        headless=request.method == "HEAD",
                        date=self._shared.date(now),
                    )
                )
                self._work()
            else:
                self._hold()
        except Exception:
            logger.exception("an answer cannot be sent: the connection is broken off")
            self.abort()

    def _send(self, pieces: list[bytes]) -> None:
        self._out += pieces
        self._out_bytes += sum(map(len, pieces))

    def _flush(self) -> None:
        out = self._out
        if out and self._transport is not None:
            if len(out) == 1:
                self._transport.write(out[0])
            else:
                self._transport.writelines(out)
            self._out, self._out_bytes = [], 0

    def _end(self) -> None:
        """Says nothing more."""
        self._flush()
        self._ended_at = self._loop.time()
        self._unread = b""
        self._reader.close()
        if self._transport is None or self._transport.is_closing():
            return
        if self._client_ended:
            self._transport.close()
        else:
            # Closed at once, with something of the client's unread, the answer could be lost on its way.
            self._transport.write_eof()
            self._read(True)

    def _close(self) -> None:
        """Closes at once: nothing is on its way."""
        assert self._transport is not None
        self._ended_at = self._loop.time()
        self._transport.close()

    # -- bytes

    def _read(self, on: bool) -> None:
        if self._reading != on and self._transport is not None and not self._transport.is_closing():
            self._reading = on
            if on:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _hold(self) -> None:
        held = len(self._unread) + self._reader.body_bytes
        if self._turn is not None:
            held += len(self._turn.request.body)
        if held != self._held_bytes:
            self._exchange.held_bytes += held - self._held_bytes
            self._held_bytes = held


def _is_cbor(request: Request) -> bool:
    return any(value == wire.CBOR and name.lower() == "content-type" for name, value in request.headers)


def _too_many() -> Exhausted:
    return Exhausted("this shard holds too many requests")


def _not_foreseen(request: Request) -> HttpAnswer:
    """A bug of ours. What it left undone is not known, so a write must not be called failed."""
    kind = Unknown if request.matched is not None and request.matched.route.writes else Unavailable
    return problem(kind("an error inside the shard, see its log"))
