"""Having another shard answer a request that came as a frame: one hop on, over frames.

Invariants:
  * A request is sent once. A write that may have arrived and has no answer is `Unknown`; one that did not leave,
    and every read, is `Unavailable`.
  * Every request that leaves here names this pod as its forwarder, so that it travels no further.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from fencekv import messages
from fencekv.connection import Waiting
from fencekv.errors import NotOwner, Unavailable, Unknown
from fencekv.frame_transport import FrameTransport
from fencekv.sending import Broken, Refused
from fencekv_shard.calls import Relayed
from fencekv_shard.faults import Cuts
from fencekv_shard.forward import RELAY_SECONDS

_OPERATIONS: Final[Mapping[type, int]] = {
    messages.Get: messages.GET,
    messages.Put: messages.PUT,
    messages.Delete: messages.DELETE,
    messages.Txn: messages.TXN,
    messages.List: messages.LIST,
    messages.History: messages.HISTORY,
    messages.Route: messages.ROUTE,
}
_WRITES: Final = (messages.Put, messages.Delete, messages.Txn)


class FrameForwarder:
    """Connections to other shards, made as they are needed. Close it when done."""

    def __init__(self, *, kvns: str, pod: str, cuts: Cuts) -> None:
        self._pod = pod
        self._cuts = cuts
        self._transport = FrameTransport(namespace=kvns, name=pod)

    async def relay(self, http: str, request: messages.Request) -> Relayed:
        """Has the shard at `http` answer a client's request.

        Raises:
            Unavailable: nothing was sent, or a read had no answer.
            Unknown: a write was sent and had no answer.
        """
        try:
            await self._cuts.reached(http)
            waiting = await self._send(http, request)
        except Refused as error:
            raise Unavailable(f"the owner at {http} cannot be reached") from error
        try:
            async with asyncio.timeout(RELAY_SECONDS):
                reply = await waiting.future
                await self._cuts.arrived()
        except Refused as error:
            raise Unavailable(f"the owner at {http} did not begin it") from error
        except (Broken, TimeoutError) as error:
            if isinstance(request, _WRITES):
                raise Unknown(f"the owner at {http} was asked and did not answer") from error
            raise Unavailable(f"the owner at {http} did not answer") from error
        finally:
            waiting.connection.drop(waiting)  # of effect where it was not answered: nobody waits any more
        return Relayed(reply=reply, owner_http=_owner_http(reply))

    async def close(self) -> None:
        """Closes the connections."""
        await self._transport.close()

    async def _send(self, http: str, request: messages.Request) -> Waiting:
        options = (request.options or messages.Options())._replace(forwarded=self._pod)

        def build(number: int, given: messages.Options | None) -> messages.Request:
            return request._replace(number=number, options=given)

        while True:
            waiting = self._transport.send(http, _OPERATIONS[type(request)], build, options)
            if waiting is not None:
                return waiting
            await self._transport.ready(http, seconds=RELAY_SECONDS)


def _owner_http(reply: messages.Answer) -> str:
    """The owner that a NotOwner names; empty: another answer, or it names none."""
    if not isinstance(reply, messages.Refusal) or reply.name != NotOwner.name:
        return ""
    return str(reply.extra.get("http") or "")
