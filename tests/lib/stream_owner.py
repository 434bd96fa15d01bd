"""An owner's side of the stream, message by message: what the standby says is in the test's hands."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from engines import Bench, turns

from fencekv.leases import Session
from fencekv_shard.feed import Feeds
from fencekv_shard.owned import Owned, Wakeable
from fencekv_shard.peer import Channel, ChannelClosed, Message

OWNER = Session("sample-0", "uid-0", "0000000000000003")


class Pipe:
    """One end of a channel in memory."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[Message | None] = asyncio.Queue()
        self.other = self
        self.closed = False

    async def send(self, message: Message) -> None:
        self.other.inbox.put_nowait(message)

    async def receive(self) -> Message:
        message = await self.inbox.get()
        if message is None:
            raise ChannelClosed("closed")
        return message

    async def receive_or_none(self) -> Message | None:
        return await self.inbox.get()

    def close(self) -> None:
        if not self.closed:
            self.closed = self.other.closed = True
            self.inbox.put_nowait(None)
            self.other.inbox.put_nowait(None)


def pipe() -> tuple[Pipe, Pipe]:
    one, other = Pipe(), Pipe()
    one.other, other.other = other, one
    return one, other


class Owning:
    """An owned partition, as far as a feed looks at it."""

    def __init__(self, own: Bench) -> None:
        self.engine, self.feeds = own.engine, list[Wakeable]()
        self.doubters: list[str] = []
        self.ended: asyncio.Queue[str] = asyncio.Queue()  # whose sessions are over

    def attach(self, member: str, feed: Wakeable) -> None:
        self.feeds.append(feed)

    def detach(self, member: str, feed: Wakeable) -> None:
        feed.ended = True
        feed.wake.set()

    def doubted(self, member: str) -> None:
        self.doubters.append(member)

    def session_ended(self, member: str) -> None:
        self.ended.put_nowait(member)


class OwnerSide:
    """An owner that serves followers. End it."""

    def __init__(self, own: Bench) -> None:
        self.owning, self.owns = Owning(own), True
        self.expects = True  # that it comes to own what it does not own yet
        self.asked = 0  # how often whether a session is over
        self.over_at = 0  # the question whose answer is yes; 0: none's
        self._tasks: list[asyncio.Task[None]] = []
        self.feeds = Feeds(
            kvns="sample",
            session=OWNER,
            lookup=lambda _uid: cast("Owned", self.owning) if self.owns else None,
            expects=lambda _uid: self.expects,
            session_over=self._over,
            spawn=self._spawn,
        )

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        self._tasks.append(asyncio.ensure_future(work))
        return self._tasks[-1]

    async def _over(self, _: Session) -> bool:
        self.asked += 1
        return self.asked == self.over_at

    def dialled(self) -> Standby:
        """A connection to it."""
        near, far = pipe()
        self._spawn(self.feeds.serve(cast("Channel", far)))
        return Standby(near)

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Standby:
    """The other end of a connection."""

    def __init__(self, near: Pipe) -> None:
        self._near = near

    async def says(self, *message: Any) -> list[Message | None]:
        """What is answered; None: the connection ended."""
        await self._near.send(list(message))
        await turns(100)
        return self.heard()

    def heard(self) -> list[Message | None]:
        """What has come since."""
        found = []
        while not self._near.inbox.empty():
            found.append(self._near.inbox.get_nowait())
        return found

    async def next(self) -> Message | None:
        """What comes next; None: the connection ended."""
        return await self._near.receive_or_none()

    def hangs_up(self) -> None:
        """Ends the connection, as the death of a process does."""
        self._near.close()
