"""The cuts that a drill orders: this shard's connections to the API server, or to its peers, carry nothing.

To its peers: what they copy, and the clients' requests that it forwards to them.

A cut is like a network that drops everything: what is sent does not arrive, an answer under way does not either,
nothing is refused, and afterwards what was held back goes on. The pod's helper orders it through a pipe.

Invariants:
  * Every cut ends by itself, at the latest after EXPIRES_SECONDS_MAX, also if the helper has died.
  * Without a cut nothing is delayed, and nothing is changed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, TypeVar

from fencekv.faults import CUTS, EXPIRES_SECONDS_MAX, Fault
from fencekv.kube import REQUEST_SECONDS, Kube, Listing, Object, Resource, Unclear, WatchEvent
from fencekv.sending import Refused
from fencekv_shard.peer import CONNECT_SECONDS, Channel, ChannelClosed, Listener, Message, OnChannel, Transport

logger = logging.getLogger(__name__)

T = TypeVar("T")

PIPE_BYTES_MAX: Final = 4096
_CUTS: Final = {str(fault): fault for fault in CUTS}


class Cuts:
    """Which connections are cut now. Lives on one event loop."""

    def __init__(self) -> None:
        self._ends: dict[Fault, asyncio.TimerHandle] = {}
        self._healed: dict[Fault, asyncio.Event] = {fault: asyncio.Event() for fault in CUTS}
        for event in self._healed.values():
            event.set()

    def order(self, fault: Fault, seconds: float) -> None:
        """Cuts for so long from now on; 0: no longer."""
        timer = self._ends.pop(fault, None)
        if timer is not None:
            timer.cancel()
        if seconds <= 0:
            self._healed[fault].set()
            return
        logger.warning("%s for %.1f s", fault, seconds)
        self._healed[fault].clear()
        until = min(seconds, EXPIRES_SECONDS_MAX)
        self._ends[fault] = asyncio.get_running_loop().call_later(until, self.order, fault, 0)

    def active(self, fault: Fault) -> bool:
        """Whether it is cut now."""
        return not self._healed[fault].is_set()

    async def passable(self, fault: Fault) -> None:
        """Waits until it is not cut."""
        await self._healed[fault].wait()

    async def reached(self, address: str) -> None:
        """Before something is forwarded to a peer: raises Refused, as late as a dial would, while it is cut."""
        if self.active(Fault.CUT_FROM_PEERS):
            await asyncio.sleep(CONNECT_SECONDS)
            raise Refused(f"{address}: cut off from the peers: nothing was sent")

    async def arrived(self) -> None:
        """Before a peer's answer to what was forwarded is taken: waits until it is not cut."""
        await self.passable(Fault.CUT_FROM_PEERS)

    def listen(self, pipe: int) -> Callable[[], None]:
        """Takes orders from a pipe, a line each; gives what ends that."""
        loop = asyncio.get_running_loop()
        os.set_blocking(pipe, False)
        loop.add_reader(pipe, self._read, pipe)

        def end() -> None:
            loop.remove_reader(pipe)

        return end

    def _read(self, pipe: int) -> None:
        try:
            data = os.read(pipe, PIPE_BYTES_MAX)
        except BlockingIOError:
            return
        if not data:  # the supervisor is gone, and this process will follow
            asyncio.get_running_loop().remove_reader(pipe)
        for line in data.splitlines():
            try:
                order = json.loads(line)
                fault, seconds = _CUTS[order["fault"]], float(order["seconds"])
            except (ValueError, KeyError, TypeError) as error:
                logger.warning("an order that cannot be read: %s", error)
            else:
                self.order(fault, seconds)


class CutKube:
    """`Kube` through which nothing passes while the shard is cut off from the API server."""

    def __init__(self, kube: Kube, cuts: Cuts) -> None:
        self._kube, self._cuts = kube, cuts

    async def get(
        self, resource: Resource, namespace: str | None, name: str, *, timeout: float = REQUEST_SECONDS
    ) -> Object:
        """Quorum read of one object."""
        return await self._through(timeout, lambda: self._kube.get(resource, namespace, name, timeout=timeout))

    async def list(
        self, resource: Resource, namespace: str | None, *, labels: str = "", timeout: float = REQUEST_SECONDS
    ) -> Listing:
        """Quorum read of a collection."""
        return await self._through(
            timeout, lambda: self._kube.list(resource, namespace, labels=labels, timeout=timeout)
        )

    async def create(
        self, resource: Resource, namespace: str | None, body: Object, *, timeout: float = REQUEST_SECONDS
    ) -> Object:
        """POST."""
        return await self._through(timeout, lambda: self._kube.create(resource, namespace, body, timeout=timeout))

    async def replace(
        self,
        resource: Resource,
        namespace: str | None,
        body: Object,
        *,
        subresource: str = "",
        timeout: float = REQUEST_SECONDS,
    ) -> Object:
        """PUT."""
        return await self._through(
            timeout,
            lambda: self._kube.replace(resource, namespace, body, subresource=subresource, timeout=timeout),
        )

    async def patch(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        body: Object,
        *,
        subresource: str = "",
        timeout: float = REQUEST_SECONDS,
    ) -> Object:
        """JSON merge patch."""
        return await self._through(
            timeout,
            lambda: self._kube.patch(resource, namespace, name, body, subresource=subresource, timeout=timeout),
        )

    async def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        *,
        options: Object | None = None,
        timeout: float = REQUEST_SECONDS,
    ) -> None:
        """DELETE."""
        await self._through(
            timeout, lambda: self._kube.delete(resource, namespace, name, options=options, timeout=timeout)
        )

    async def watch(
        self, resource: Resource, namespace: str | None, *, labels: str = "", resource_version: str
    ) -> AsyncIterator[WatchEvent]:
        """Events; while it is cut they are held back."""
        await self._cuts.passable(Fault.CUT_FROM_API)
        stream = self._kube.watch(resource, namespace, labels=labels, resource_version=resource_version)
        try:
            async for event in stream:
                await self._cuts.passable(Fault.CUT_FROM_API)
                yield event
        finally:
            close: Any = getattr(stream, "aclose", None)
            if close is not None:
                await close()

    async def _through(self, timeout: float, request: Callable[[], Awaitable[T]]) -> T:
        cuts = self._cuts
        if cuts.active(Fault.CUT_FROM_API):
            await asyncio.sleep(timeout)
            raise Unclear("cut off from the API server: nothing was sent")
        answer = await request()
        if cuts.active(Fault.CUT_FROM_API):
            await asyncio.sleep(timeout)
            raise Unclear("cut off from the API server: no answer arrived")
        return answer


class CutTransport:
    """`Transport` through which nothing passes while the shard is cut off from its peers."""

    def __init__(self, transport: Transport, cuts: Cuts) -> None:
        self._transport, self._cuts = transport, cuts

    async def connect(self, address: str) -> Channel:
        """Dials."""
        if self._cuts.active(Fault.CUT_FROM_PEERS):
            await asyncio.sleep(CONNECT_SECONDS)
            raise ChannelClosed(f"{address}: cut off from the peers")
        return _CutChannel(await self._transport.connect(address), self._cuts)

    async def listen(self, address: str, on_channel: OnChannel) -> Listener:
        """Serves connections on `address`."""

        async def serve(channel: Channel) -> None:
            await self._cuts.passable(Fault.CUT_FROM_PEERS)
            await on_channel(_CutChannel(channel, self._cuts))

        return await self._transport.listen(address, serve)


class _CutChannel:
    """`Channel`: what is to pass while it is cut waits until it is not, or until the channel is closed."""

    __slots__ = ("_channel", "_closed", "_cuts")

    def __init__(self, channel: Channel, cuts: Cuts) -> None:
        self._channel, self._cuts = channel, cuts
        self._closed = asyncio.Event()

    async def send(self, message: Message) -> None:
        if self._cuts.active(Fault.CUT_FROM_PEERS):
            await self._healed()
        await self._channel.send(message)

    async def receive(self) -> Message:
        message = await self._channel.receive()
        if self._cuts.active(Fault.CUT_FROM_PEERS):
            await self._healed()
        return message

    def close(self) -> None:
        self._closed.set()
        self._channel.close()

    async def _healed(self) -> None:
        healed = asyncio.ensure_future(self._cuts.passable(Fault.CUT_FROM_PEERS))
        closed = asyncio.ensure_future(self._closed.wait())
        try:
            await asyncio.wait([healed, closed], return_when=asyncio.FIRST_COMPLETED)
        finally:
            healed.cancel()
            closed.cancel()
        if self._closed.is_set():
            raise ChannelClosed("closed while it was cut")
