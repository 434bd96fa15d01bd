"""A simulated network: channels and requests between the processes of a simulation, with seeded faults.

Hosts are names; an address is `host:port`. A link is one direction between two hosts. A blocked link holds what
is sent on a connection back, as TCP does, until it is open again, and loses requests that are new.

Invariants:
  * One direction of one channel is first in, first out; different channels and requests overtake each other.
  * Nothing is shared by reference: all that crosses was encoded and decoded.
  * A dead process sends nothing and gets nothing; its connections break for the other side, when it can hear.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from fencekv.codec import decode, encode
from fencekv_shard.peer import Channel, ChannelClosed, OnChannel
from simulation.loop import Process, SimulationLoop, current_process, require_alive

CONNECT_SECONDS: Final = 1.0

Message = list[Any]
Handler = Callable[[Any], Awaitable[Any]]


class NotSent(Exception):
    """Nobody listens there: the request never reached anyone."""


class NoAnswer(Exception):
    """The request was sent, and its outcome is not known."""


@dataclass(slots=True, kw_only=True)
class Faults:
    """How bad the network is. All seconds; chances are for one message each."""

    delay_min: float = 0.000_2
    delay_max: float = 0.002
    slow_chance: float = 0.01
    slow_max: float = 0.05
    request_lost: float = 0.0
    reply_lost: float = 0.0
    break_chance: float = 0.0  # that a channel breaks at a message


@dataclass(slots=True)
class _End:
    """One end of a channel, as the network sees it."""

    process: Process
    inbox: deque[bytes] = field(default_factory=deque)
    closed: bool = False
    waiter: asyncio.Future[None] | None = None  # None: nobody waits in receive().

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class SimChannel:
    """One end of a connection; `fencekv_shard.peer.Channel`."""

    def __init__(self, network: Network, near: _End, far: _End) -> None:
        self._network, self._near, self._far = network, near, far
        self._delivered_at = 0.0  # when the last message to the far end arrives

    async def send(self, message: Message) -> None:
        """Hands a message over."""
        require_alive()
        if self._near.closed:
            raise ChannelClosed("closed")
        data = encode(message)
        network = self._network
        if network.hits(network.faults.break_chance):
            network.loop.trace(f"break {self._near.process.host}->{self._far.process.host}")
            self._near.closed = True
            self._near.wake()
            self._transmit(None)
            raise ChannelClosed("connection reset")
        self._transmit(data)

    async def receive(self) -> Message:
        """The next message."""
        require_alive()
        while not self._near.inbox:
            if self._near.closed:
                raise ChannelClosed("closed")
            assert self._near.waiter is None, "two receivers on one channel"
            self._near.waiter = self._network.loop.create_future()
            try:
                await self._near.waiter
            finally:
                self._near.waiter = None
        message = decode(self._near.inbox.popleft(), what="frame")
        assert isinstance(message, list), message
        return message

    def close(self) -> None:
        """Ends it, at once."""
        if self._near.closed:
            return
        self._near.closed = True
        self._near.inbox.clear()
        self._near.wake()
        self._transmit(None)

    def _transmit(self, data: bytes | None) -> None:
        """Sends bytes, or None for the end of the connection."""
        network = self._network
        arrival = network.loop.time() + network.delay()
        self._delivered_at = max(self._delivered_at, arrival)
        wait = self._delivered_at - network.loop.time()
        network.loop.call_outside(wait, self._arrive, data)

    def _arrive(self, data: bytes | None) -> None:
        near, far = self._near, self._far
        if self._network.is_blocked(near.process.host, far.process.host):
            self._network.hold((near.process.host, far.process.host), lambda: self._arrive(data))
            return
        if far.closed or not far.process.alive:
            if data is not None and not near.closed:  # a reset comes back
                self._network.loop.call_outside(self._network.delay(), _end, near)
            return
        if data is None:
            far.closed = True
        else:
            far.inbox.append(data)
        far.wake()


def _end(end: _End) -> None:
    end.closed = True
    end.wake()


@dataclass(frozen=True, slots=True)
class _Listening:
    process: Process
    on_channel: OnChannel


class SimListener:
    """An open listening address."""

    def __init__(self, close: Callable[[], None]) -> None:
        self._close = close

    def close(self) -> None:
        """Accepts no more."""
        self._close()


class Network:
    """All hosts, links and connections."""

    def __init__(self, loop: SimulationLoop, *, faults: Faults | None = None) -> None:
        self.loop = loop
        self.faults = faults or Faults()
        self._chance = loop.rng("network")
        self._blocked: dict[tuple[str, str], int] = {}
        self._held: dict[tuple[str, str], deque[Callable[[], None]]] = {}
        self._listening: dict[str, _Listening] = {}
        self._serving: dict[str, tuple[Process, Handler]] = {}

    # Faults

    def hits(self, probability: float) -> bool:
        """Whether a fault of this probability happens now."""
        return probability > 0 and self._chance.random() < probability

    def delay(self) -> float:
        """How long a message travels."""
        faults = self.faults
        if self.hits(faults.slow_chance):
            return self._chance.uniform(faults.delay_max, faults.slow_max)
        return self._chance.uniform(faults.delay_min, faults.delay_max)

    def block(self, source: str, target: str) -> None:
        """Cuts one direction. Cuts nest."""
        self._blocked[source, target] = self._blocked.get((source, target), 0) + 1

    def unblock(self, source: str, target: str) -> None:
        """Opens one direction again; what connections held back arrives now, in order."""
        link = (source, target)
        self._blocked[link] -= 1
        if self._blocked[link]:
            return
        del self._blocked[link]
        held = self._held.pop(link, deque())
        for arrive in held:
            arrive()

    def is_blocked(self, source: str, target: str) -> bool:
        """Whether nothing passes from source to target."""
        return (source, target) in self._blocked

    def hold(self, link: tuple[str, str], arrive: Callable[[], None]) -> None:
        """Keeps an arrival back until the link is open."""
        self._held.setdefault(link, deque()).append(arrive)

    # Channels

    def transport(self, process: Process) -> SimTransport:
        """`fencekv_shard.peer.Transport` of one process."""
        return SimTransport(self, process)

    async def connect(self, process: Process, address: str) -> Channel:
        """Dials: a round trip, or ChannelClosed."""
        require_alive()
        host = address.rpartition(":")[0]
        await asyncio.sleep(self.delay())
        if self.is_blocked(process.host, host) or self.is_blocked(host, process.host):
            await asyncio.sleep(CONNECT_SECONDS)
            raise ChannelClosed(f"{address}: no answer")
        listening = self._listening.get(address)
        if listening is None or not listening.process.alive:
            await asyncio.sleep(self.delay())
            raise ChannelClosed(f"{address}: refused")
        near, far = _End(process), _End(listening.process)
        here, there = SimChannel(self, near, far), SimChannel(self, far, near)
        self._break_at_exit(process, here)
        self._break_at_exit(listening.process, there)
        listening.process.spawn(_serve(listening.on_channel, there))
        await asyncio.sleep(self.delay())
        return here

    def listen(self, process: Process, address: str, on_channel: OnChannel) -> SimListener:
        """Accepts connections at an address."""
        require_alive()
        entry = _Listening(process, on_channel)
        self._listening[address] = entry

        def close() -> None:
            if self._listening.get(address) is entry:
                del self._listening[address]

        process.at_exit.append(lambda _status: close())
        return SimListener(close)

    def _break_at_exit(self, process: Process, channel: SimChannel) -> None:
        process.at_exit.append(lambda _status: channel.close())

    # Requests

    def serve(self, process: Process, address: str, handler: Handler) -> Callable[[], None]:
        """Answers requests at an address by `handler`, run in `process`; returns how to stop."""
        require_alive()
        entry = (process, handler)
        self._serving[address] = entry

        def close() -> None:
            if self._serving.get(address) is entry:
                del self._serving[address]

        process.at_exit.append(lambda _status: close())
        return close

    async def request(self, address: str, payload: Any, *, timeout: float) -> Any:
        """Asks and waits for the answer.

        Raises:
            NotSent: nobody listens there.
            NoAnswer: the request, the answer or the server was lost on the way.
        """
        require_alive()
        source = current_process()
        assert source is not None, "requests come from processes"
        answer: asyncio.Future[bytes] = self.loop.create_future()
        exchange = _Exchange(self, source, address, encode(payload), answer)
        self.loop.call_outside(self.delay(), exchange.arrive)
        try:
            async with asyncio.timeout(timeout):
                return decode(await answer, what="answer")
        except TimeoutError as error:
            raise NoAnswer(f"{address}: no answer within {timeout} s") from error

    def serving(self, address: str) -> tuple[Process, Handler] | None:
        """Who answers there; None: nobody."""
        entry = self._serving.get(address)
        return entry if entry is not None and entry[0].alive else None


@dataclass(slots=True)
class _Exchange:
    """One request on its way there and back."""

    network: Network
    source: Process
    address: str
    payload: bytes
    answer: asyncio.Future[bytes]

    def arrive(self) -> None:
        network, host = self.network, self.address.rpartition(":")[0]
        if network.is_blocked(self.source.host, host) or network.hits(network.faults.request_lost):
            return
        entry = network.serving(self.address)
        if entry is None:
            self._reply(NotSent(f"{self.address}: refused"))
            return
        process, handler = entry
        process.at_exit.append(self._server_died)
        process.spawn(self._serve(process, handler))

    async def _serve(self, process: Process, handler: Handler) -> None:
        try:
            result = encode(await handler(decode(self.payload, what="request")))
        finally:
            if self._server_died in process.at_exit:
                process.at_exit.remove(self._server_died)
        if not self.network.hits(self.network.faults.reply_lost):
            self._reply(result)

    def _server_died(self, _status: int) -> None:
        self._reply(NoAnswer(f"{self.address}: connection lost"))

    def _reply(self, result: bytes | Exception) -> None:
        self.network.loop.call_outside(self.network.delay(), self._settle, result)

    def _settle(self, result: bytes | Exception) -> None:
        host = self.address.rpartition(":")[0]
        if self.answer.done() or self.network.is_blocked(host, self.source.host):
            return
        if isinstance(result, Exception):
            self.answer.set_exception(result)
        else:
            self.answer.set_result(result)


class SimTransport:
    """`fencekv_shard.peer.Transport` of one process."""

    def __init__(self, network: Network, process: Process) -> None:
        self._network, self._process = network, process

    async def connect(self, address: str) -> Channel:
        """Dials."""
        return await self._network.connect(self._process, address)

    async def listen(self, address: str, on_channel: OnChannel) -> SimListener:
        """Runs `on_channel` for each connection."""
        return self._network.listen(self._process, address, on_channel)


async def _serve(on_channel: OnChannel, channel: SimChannel) -> None:
    try:
        await on_channel(channel)
    except ChannelClosed:
        pass
    finally:
        channel.close()
