"""A standby's side of the stream, message by message: what the owner says is in the test's hands."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Self

from engines import turns
from storage import UID, open_replica

from fencekv.leases import Session
from fencekv_shard.folder import Seed
from fencekv_shard.greeting import PROTOCOL
from fencekv_shard.peer import ChannelClosed, Message
from fencekv_shard.replica import Replica
from fencekv_shard.tail import Link


class Wire:
    """A channel and its dialler in the test's hands."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[Message | None] = asyncio.Queue()
        self.sent: list[Message] = []
        self.closed = 0

    async def connect(self, address: str) -> Wire:
        return self

    async def listen(self, address: str, on_channel: object) -> Any:
        raise AssertionError

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def receive(self) -> Message:
        message = await self.inbox.get()
        if message is None:
            raise ChannelClosed("closed")
        return message

    def close(self) -> None:
        self.closed += 1
        self.inbox.put_nowait(None)


class Follower:
    def __init__(self, replica: Replica) -> None:
        self.replica, self.commits, self.reseeds = replica, list[int](), list[int]()
        self.seeds: list[Seed] = []
        self.stale_owners = 0

    async def reseed(self, epoch: int, seed: Seed | None = None) -> None:
        self.reseeds.append(epoch)
        if seed is not None:
            self.seeds.append(seed)

    def committed(self, seq: int) -> None:
        self.commits.append(seq)

    def stale(self) -> None:
        self.stale_owners += 1

    def fatal(self, error: BaseException) -> None:
        raise AssertionError(error)


class Standby:
    """A replica that follows an owner whose messages the test makes up."""

    def __init__(self, replica: Replica) -> None:
        self.wire, self.follower, self.tasks = Wire(), Follower(replica), list[asyncio.Task[None]]()
        session = Session("sample-1", "uid", "n")
        self.link = Link(address="a:1", transport=self.wire, session=session, kvns="sample", spawn=self._spawn)
        self.link.follow(UID, self.follower, urgent=True)
        self.wire.inbox.put_nowait(["hello", PROTOCOL, "sample-0/uid/n", "sample-0", "sample"])

    @classmethod
    async def following(cls, folder: Path) -> Self:
        """One with an empty replica, which has subscribed."""
        one = cls(await open_replica(folder))
        await turns(100)
        assert one.wire.sent[-1][:3] == ["subscribe", UID, 1]
        return one

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        self.tasks.append(asyncio.ensure_future(work))
        return self.tasks[-1]

    async def hears(self, *message: Any) -> list[Message]:
        """What it answers."""
        before = len(self.wire.sent)
        self.wire.inbox.put_nowait(list(message))
        await turns(100)
        return self.wire.sent[before:]

    async def end(self) -> None:
        self.link.close()
        outcomes = await asyncio.gather(*self.tasks, return_exceptions=True)
        errors = [one for one in outcomes if isinstance(one, BaseException)]
        assert all(isinstance(one, asyncio.CancelledError) for one in errors), errors
        await self.follower.replica.close()
