"""Requests over frames: one connection a shard, dialled when it is needed.

Invariants:
  * Only a connection that takes requests is kept; one that the shard or silence has ended is replaced by the next
    request, and lives on until what is under way on it has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from fencekv import messages as m
from fencekv.connection import Connection, Waiting, dial
from fencekv.errors import Unavailable
from fencekv.sending import Attempt, Build, Refused


class FrameTransport:
    """The connections of one client. `name` says who it is, in the shards' logs."""

    def __init__(self, *, namespace: str, name: str) -> None:
        self._hello = m.Hello((m.VERSION,), namespace, name)
        self._current: dict[str, Connection] = {}
        self._all: set[Connection] = set()
        self._dialling: dict[str, asyncio.Task[Connection | Refused]] = {}
        self._closed = False

    def send(self, address: str, operation: int, build: Build, options: m.Options | None) -> Waiting | None:
        """Sends a request; None: not before `ready(address)` has returned.

        Raises:
            Invalid, TooLarge: it cannot be sent at all.
        """
        connection = self._current.get(address)
        if connection is None or not connection.free:
            return None
        return connection.send(operation, build, options)

    async def ready(self, address: str, *, seconds: float) -> None:
        """Waits until `send` can send there.

        Raises:
            Refused: no connection.
            Unavailable: too many requests are under way there. Exhausted: and too many wait already.
        """
        connection: Connection | None = None
        try:
            async with asyncio.timeout(seconds):
                while True:
                    connection = self._current.get(address)
                    if connection is None or not connection.open:
                        connection = None
                        connection = await self._dial(address)
                    if connection.free:
                        return
                    await connection.room()
        except TimeoutError as error:
            if connection is None:
                raise Refused(f"{address}: no connection in time") from error
            raise Unavailable(f"{address}: too many requests are under way") from error

    def under_way(self) -> Iterable[Attempt]:
        """The attempts that have not ended."""
        return [waiting for connection in self._all for waiting in connection.under_way()]

    async def close(self) -> None:
        """Closes all connections; what is under way breaks."""
        self._closed = True
        dialling = list(self._dialling.values())
        await asyncio.gather(*dialling)  # none takes long, and others wait for them
        await asyncio.gather(*(connection.close() for connection in list(self._all)))

    async def _dial(self, address: str) -> Connection:
        if self._closed:
            raise RuntimeError("the client is closed")
        task = self._dialling.get(address)
        if task is None:
            task = asyncio.ensure_future(self._dialled(address))
            self._dialling[address] = task
        # Others wait for the same: that this one waits no longer must not end it.
        result = await asyncio.shield(task)
        if isinstance(result, Refused):
            raise Refused(str(result))
        return result

    async def _dialled(self, address: str) -> Connection | Refused:
        try:
            connection = await dial(address, self._hello)
        except Refused as refusal:
            return refusal
        finally:
            del self._dialling[address]
        self._current[address] = connection
        self._all.add(connection)
        connection.ended.add_done_callback(lambda _: self._forget(connection))
        return connection

    def _forget(self, connection: Connection) -> None:
        self._all.discard(connection)
        if self._current.get(connection.address) is connection:
            del self._current[connection.address]
