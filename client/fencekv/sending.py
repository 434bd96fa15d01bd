"""Sending one request to one shard, once, whatever the wire: what a transport offers to the caller.

Invariants:
  * An attempt ends in an answer, in `Refused` (nothing was sent, or the shard says that it did not start it), in
    `Broken` (it may have been carried out), or in an error of this library. No transport sends anything again.
"""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Protocol

from fencekv import messages as m

CONNECT_SECONDS = 1.0

Build = Callable[[int, m.Options | None], m.Request]
"""Makes the message of a request from its number and its options."""


class Refused(Exception):
    """No connection was had, or the shard did not start it: nothing was done."""


class Broken(Exception):
    """The request left, wholly or in part, and no whole answer came."""


class Attempt(ABC):
    """A request under way. Its maker awaits `future`; the rest is for whoever looks after many of them."""

    __slots__ = ("address", "epoch", "future", "give_up_at", "key", "place", "watch_at")

    def __init__(self, future: asyncio.Future[m.Answer], address: str) -> None:
        self.future = future
        self.address = address
        self.give_up_at = math.inf
        self.watch_at = math.inf  # from then on, somebody looks whether its partition has a new owner
        self.place: tuple[str, int] | None = None  # table and partition; None: about no single one
        self.key: str | None = None  # one of that partition; None: it is about no single one
        self.epoch = 0  # the highest that was known of the partition when it was sent

    @abstractmethod
    def give_up(self, error: Exception) -> None:
        """Stops waiting: the attempt ends in `error` if it has not ended."""


class Transport(Protocol):
    """How requests reach shards."""

    def send(self, address: str, operation: int, build: Build, options: m.Options | None) -> Attempt | None:
        """Sends a request; None: not before `ready(address)` has returned.

        Raises:
            Invalid, TooLarge: it cannot be sent at all.
        """
        ...

    async def ready(self, address: str, *, seconds: float) -> None:
        """Waits until `send` can send there.

        Raises:
            Refused: no connection.
            Unavailable: too many requests are under way there. Exhausted: and too many wait already.
        """
        ...

    def under_way(self) -> Iterable[Attempt]:
        """The attempts that have not ended."""
        ...

    async def close(self) -> None:
        """Closes all connections; what is under way breaks."""
        ...
