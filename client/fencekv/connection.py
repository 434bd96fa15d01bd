"""One connection of frames to a shard: many requests under way at once, each with a number.

Invariants:
  * Numbers rise; an answer belongs to the request of its number, and one that nobody waits for is passed over.
  * What is under way is bounded by the shard's limit, and nothing is sent while the socket takes no more.
  * Whoever waits for a place gets one in the order of asking: a place that is free for somebody is nobody else's.
  * When the connection ends, its attempts have ended: `Refused` where the shard said that it did not start it,
    else `Broken`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Final, cast

from fencekv import frames, messages
from fencekv import messages as m
from fencekv.errors import Exhausted, Invalid, TooLarge
from fencekv.frame_reader import read_answer, read_message
from fencekv.messages import Malformed
from fencekv.sending import CONNECT_SECONDS, Attempt, Broken, Build, Refused

WRITE_BUFFER_BYTES_MAX: Final = 1 << 20
SILENCE_SECONDS: Final = 0.5  # of a shard that owes answers
TURN_BYTES_MAX: Final = 256 << 10  # gathered in one turn of the loop
CLOSE_SECONDS: Final = 1.0
ROOM_WAITING_MAX: Final = 16_384  # requests that wait for a place on one connection


class Waiting(Attempt):
    """A request on a connection."""

    __slots__ = ("connection", "number", "operation", "sent")

    def __init__(self, connection: Connection, number: int, operation: int, sent: float) -> None:
        super().__init__(connection.loop.create_future(), connection.address)
        self.connection = connection
        self.number = number
        self.operation = operation
        self.sent = sent

    def give_up(self, error: Exception) -> None:
        """Tells the shard that nobody waits any more."""
        self.connection.drop(self)
        if not self.future.done():
            self.future.set_exception(error)


class Connection(asyncio.Protocol):
    """Made by `dial`. `open`: new requests may be sent, as far as there is room."""

    def __init__(self, address: str, hello: m.Hello, loop: asyncio.AbstractEventLoop) -> None:
        self.address = address
        self.loop = loop
        self.open = False
        self.opened: asyncio.Future[m.Welcome | None] = loop.create_future()  # None: it ended before
        self.ended: asyncio.Future[None] = loop.create_future()
        self.reason = "the connection ended"
        self._hello = hello
        self._transport: asyncio.Transport | None = None
        self._splitter = frames.Splitter()
        self._limits = m.Limits()
        self._waiting: dict[int, Waiting] = {}
        self._number = 0
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._paused = False
        self._room: deque[asyncio.Future[None]] = deque()
        self._given = 0  # places that were given to somebody in `room` who has not gone on yet
        self._heard = 0.0
        self._idle: asyncio.TimerHandle | None = None
        self._abort: asyncio.TimerHandle | None = None

    # -- for whoever sends

    @property
    def free(self) -> bool:
        """Whether a request can be sent now, without one that waits being passed."""
        return self.open and not self._paused and len(self._waiting) + self._given < self._limits.in_flight

    def under_way(self) -> Iterable[Waiting]:
        """The requests without an answer."""
        return list(self._waiting.values())

    def send(self, operation: int, build: Build, options: m.Options | None) -> Waiting:
        """Sends a request.

        Raises:
            Invalid, TooLarge: no frame can carry it.
        """
        assert self.free, self.address
        number = self._number + 1
        try:
            frame = frames.encode(build(number, options))
            if operation not in _CHECKED:
                read_message(frame[frames.HEAD_BYTES :])
        except (TypeError, ValueError, Malformed) as error:
            # Sent, it would cost all requests of the connection their answers.
            self._make_room()  # the place that this one had is another one's
            raise Invalid(f"request: {error}", field="request") from error
        size, limit = len(frame) - frames.HEAD_BYTES, self._limits.frame_bytes
        if size > limit:
            self._make_room()
            raise TooLarge(f"request: {size} bytes in a frame of at most {limit}", limit=limit)
        self._number = number
        waiting = Waiting(self, number, operation, self.loop.time())
        self._waiting[number] = waiting
        self._write(frame)
        return waiting

    async def room(self) -> None:
        """Waits until a request may be sent, or the connection is not open any more.

        The place is the caller's until it next waits for anything.

        Raises:
            Exhausted: too many wait already.
        """
        waited = False
        while self.open and not self.free:
            self._check_room()
            place = self.loop.create_future()
            if waited:
                self._room.appendleft(place)  # the socket is full again meanwhile: it is still the first
            else:
                self._room.append(place)
            try:
                await place
            except asyncio.CancelledError:
                if not place.cancelled():  # this one's turn has come just now: it is another one's
                    self._given -= 1
                    self._make_room()
                raise
            self._given -= 1
            waited = True

    def _check_room(self) -> None:
        if len(self._room) < ROOM_WAITING_MAX:
            return
        self._room = deque(place for place in self._room if not place.done())  # without those that were given up
        if len(self._room) >= ROOM_WAITING_MAX:
            limit = ROOM_WAITING_MAX
            raise Exhausted(f"{self.address}: {limit} requests wait for a place already: send fewer", limit=limit)

    def drop(self, waiting: Waiting) -> None:
        """Stops waiting for an answer."""
        if self._waiting.pop(waiting.number, None) is None:
            return
        if not self.ended.done():
            self._write(frames.encode(m.Cancel(waiting.number)))
        if self._heard < waiting.sent < self.loop.time() - SILENCE_SECONDS:
            # Nothing came for as long as this one waited: what is sent from now on takes another connection.
            self._retire()
        self._make_room()
        self._end_if_over()

    async def close(self) -> None:
        """Says goodbye, and ends the connection."""
        if self.open:
            self._write(frames.encode(m.Goodbye("done")))
        self._end("closed by this client")
        if self._transport is None:
            return  # it was never there
        await asyncio.shield(self.ended)

    # -- what the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Opens the conversation."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES_MAX)
        self._transport.write(frames.encode(self._hello))

    def data_received(self, data: bytes) -> None:
        """Gives each answer to whoever waits for it."""
        self._heard = self.loop.time()
        try:
            for body in self._splitter.feed(data):
                message = read_answer(body, self._operation_of)
                if message is None:
                    continue
                if type(message) in _CONTROL:
                    self._control(cast(_Control, message))
                    continue
                answer = cast(m.Answer, message)
                future = self._waiting.pop(answer.number).future
                if not future.done():
                    future.set_result(answer)
        except Malformed as error:
            self._write(frames.encode(m.Goodbye(str(error))))
            self._end(f"the shard broke the protocol: {error}")
        if self._room:
            self._make_room()
        self._end_if_over()

    def pause_writing(self) -> None:
        """The socket takes no more for now."""
        self._paused = True

    def resume_writing(self) -> None:
        """It takes more."""
        self._paused = False
        self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends everything that is left."""
        self._end(self.reason if exc is None else repr(exc))
        if self._abort is not None:
            self._abort.cancel()
        self.ended.set_result(None)

    # -- inside

    def _operation_of(self, number: int) -> int | None:
        waiting = self._waiting.get(number)
        return None if waiting is None else waiting.operation

    def _control(self, message: _Control) -> None:
        if isinstance(message, m.Goodbye):
            self._goodbye(message)
        elif isinstance(message, m.Pong) or self.opened.done() or message.version != messages.VERSION:
            raise Malformed(f"{type(message).__name__}: not expected")
        else:
            self._limits = message.limits
            self.open = True
            self.opened.set_result(message)
            self._idle = self.loop.call_later(self._idle_seconds(), self._idled)

    def _goodbye(self, message: m.Goodbye) -> None:
        self.reason = f"the shard said goodbye: {message.reason}"
        if message.last is None:
            self._end(self.reason)
            return
        for waiting in self.under_way():
            if waiting.number > message.last:
                del self._waiting[waiting.number]
                _fail(waiting, Refused(f"{self.address}: {self.reason}"))
        self._retire()

    def _end_if_over(self) -> None:
        if not self.open and not self._waiting and self.opened.done():
            self._end(self.reason)

    def _retire(self) -> None:
        """Takes no further request; what is under way may still be answered."""
        self.open = False
        self._make_room()

    def _end(self, reason: str) -> None:
        self.open = False
        self.reason = reason
        if not self.opened.done():
            self.opened.set_result(None)
        if self._idle is not None:
            self._idle.cancel()
        lost, self._waiting = self._waiting, {}
        for waiting in lost.values():
            _fail(waiting, Broken(f"{self.address}: {reason}"))
        self._make_room()
        if self._transport is not None and self._abort is None:
            self._flush()
            self._transport.close()
            # A peer that takes nothing more would keep the socket for ever.
            self._abort = self.loop.call_later(CLOSE_SECONDS, self._transport.abort)

    def _make_room(self) -> None:
        """Wakes whoever can go on: all when it is closed, else as many as there are places."""
        in_flight = self._limits.in_flight
        places = len(self._room) if not self.open else in_flight - len(self._waiting) - self._given
        while self._room and places > 0 and not (self.open and self._paused):
            place = self._room.popleft()
            if not place.done():
                place.set_result(None)
                self._given += 1
                places -= 1

    def _write(self, frame: bytes) -> None:
        if not self._unsent:
            # All that is sent in one turn of the loop goes out together.
            self.loop.call_soon(self._flush)
        self._unsent.append(frame)
        self._unsent_bytes += len(frame)
        if self._unsent_bytes > TURN_BYTES_MAX:
            self._flush()

    def _flush(self) -> None:
        unsent = self._unsent
        if unsent and self._transport is not None and not self._transport.is_closing():
            self._transport.write(unsent[0] if len(unsent) == 1 else b"".join(unsent))
        unsent.clear()
        self._unsent_bytes = 0

    def _idle_seconds(self) -> float:
        # Well before the shard would: a request that crosses its closing would be of unknown outcome.
        return self._limits.idle_seconds / 4

    def _idled(self) -> None:
        if not self._waiting and self.loop.time() - self._heard >= self._idle_seconds():
            self._write(frames.encode(m.Goodbye("idle")))
            self._end("idle")
        elif self.open:
            self._idle = self.loop.call_later(self._idle_seconds(), self._idled)


_CHECKED: Final = frozenset({m.GET, m.PUT, m.DELETE})  # `frames.encode` refuses wrong types in them

_Control = m.Welcome | m.Goodbye | m.Pong
_CONTROL: Final = frozenset({m.Welcome, m.Goodbye, m.Pong})


def _fail(waiting: Waiting, error: Exception) -> None:
    if not waiting.future.done():
        waiting.future.set_exception(error)


async def dial(address: str, hello: m.Hello) -> Connection:
    """Opens a connection, up to the shard's welcome: from then on it is known that the shard lives.

    Raises:
        Refused: the shard does not answer, or does not want it.
    """
    loop = asyncio.get_running_loop()
    host, _, port = address.rpartition(":")
    connection = Connection(address, hello, loop)
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await loop.create_connection(lambda: connection, host.strip("[]"), int(port))
            welcome = await asyncio.shield(connection.opened)
    except (TimeoutError, OSError, ValueError) as error:
        await connection.close()
        raise Refused(f"{address}: {error!r}") from error
    except asyncio.CancelledError:
        await connection.close()
        raise
    if welcome is None:
        await connection.close()
        raise Refused(f"{address}: {connection.reason}")
    return connection
