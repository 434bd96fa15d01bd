"""Following the owners of partitions: the standby's side of the stream.

One connection to each owner's pod carries all partitions followed there. A partition's messages are worked off in
order, those of different partitions beside each other.

Invariants:
  * The epoch is promised durably before the first answer under it.
  * Nothing is confirmed before it is fsynced; entries are taken only if hashes and numbers follow.
  * A seed takes the replica's place only when all of it is durable and has the owner's hash; nothing is confirmed
    for it before. One that is given up is removed at once: it may be as large as the replica.
  * A divergent tail is set aside before it is cut off; a replica that diverged below what it has applied is set
    aside whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import deque
from collections.abc import Coroutine
from typing import Any, Final, Protocol

from fencekv.errors import Invalid
from fencekv.leases import Session
from fencekv_shard import greeting, limits
from fencekv_shard.base import Standing, decode_base
from fencekv_shard.feed import Pings, Spawn, fields
from fencekv_shard.folder import Seed
from fencekv_shard.journal import Checkpoint
from fencekv_shard.peer import Channel, ChannelClosed, Message, Transport
from fencekv_shard.replica import Replica
from fencekv_shard.store import BelowApplied, CommitFailed, DiskFull, PromiseMoved, StalePromise, Unreadable
from fencekv_shard.view import Closed

logger = logging.getLogger(__name__)

BACKOFF_SECONDS_MIN: Final = 0.02
BACKOFF_SECONDS_MAX: Final = 1.0


class Following(Protocol):
    """A partition that follows an owner."""

    replica: Replica

    async def reseed(self, epoch: int, seed: Seed | None = None) -> None:
        """Sets the replica aside and opens `seed`, or an empty one, in its place."""
        ...

    def committed(self, seq: int) -> None:
        """The owner says that entries up to `seq` are committed; all of them are here."""
        ...

    def stale(self) -> None:
        """The owner acts under an older epoch than the one promised here: it is refused."""
        ...

    def fatal(self, error: BaseException) -> None:
        """A commit failed: the process must end."""
        ...


class Link:
    """The connection to one owner's pod."""

    def __init__(self, *, address: str, transport: Transport, session: Session, kvns: str, spawn: Spawn) -> None:
        self.address, self._spawn = address, spawn
        self._transport, self._session, self._kvns = transport, session, kvns
        self._wanted: dict[str, _Stream] = {}
        self._channel: Channel | None = None
        self._pings: Pings | None = None  # None: not connected
        self._task: asyncio.Task[None] | None = None
        self._heard = True
        self._silent_seconds = 0.0
        self._numbers = 0
        self._turn_at = -math.inf  # the loop's time until which turns to follow are given away
        self._says = greeting.PROTOCOL
        self._refused = ""  # why nothing can be said on this link, as it was logged last; empty: nothing was

    def follow(self, uid: str, following: Following, *, urgent: bool) -> None:
        """Begins to follow a partition whose owner is there; `urgent`: it does not wait for its turn."""
        self.unfollow(uid)
        turn_at = -math.inf if urgent else self._turn()
        stream = self._wanted[uid] = _Stream(uid, following, self, turn_at=turn_at)
        if self._task is None:
            self._task = self._spawn(self._run())
        elif self._channel is not None:
            stream.subscribe_in_turn()

    def hasten(self, uid: str) -> None:
        """Has a partition that is followed, or is to be in its turn, be followed now."""
        self._wanted[uid].hasten(connected=self._channel is not None)

    def _turn(self) -> float:
        """When the next partition may follow, by the loop's time.

        A shard that is back with a thousand replicas would else take the time of the owners that took over.
        """
        now = asyncio.get_running_loop().time()
        gap = 1 / limits.FOLLOWS_PER_SECOND
        next_at = max(self._turn_at, now - limits.FOLLOWS_AT_ONCE_MAX * gap) + gap
        self._turn_at = min(next_at, now + limits.FOLLOW_WAIT_SECONDS_MAX)
        return self._turn_at

    def unfollow(self, uid: str) -> None:
        """Stops following a partition."""
        stream = self._wanted.pop(uid, None)
        if stream is not None:
            stream.stop()

    def follows(self, uid: str) -> bool:
        """Whether a partition is followed on this link."""
        return uid in self._wanted

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs `work` beside; an error that it does not handle ends the process."""
        return self._spawn(work)

    def next_number(self) -> int:
        """A number for a subscription, rising on this link."""
        self._numbers += 1
        return self._numbers

    @property
    def idle(self) -> bool:
        """Whether nothing is followed any more."""
        return not self._wanted

    def close(self) -> None:
        """Ends the connection."""
        for uid in list(self._wanted):
            self.unfollow(uid)
        if self._task is not None:
            self._task.cancel()
        if self._channel is not None:
            self._channel.close()

    def tick(self, slice_seconds: float) -> None:
        """Gives up a connection on which the owner has been silent for too long."""
        if self._heard:
            self._heard, self._silent_seconds = False, 0.0
            return
        self._silent_seconds += slice_seconds
        if self._silent_seconds >= limits.PEER_SILENCE_SECONDS and self._channel is not None:
            self._silent_seconds = 0.0
            self._channel.close()

    def ping(self, number: int) -> None:
        """Asks the owner for a sign of life; does not wait for the ping to leave."""
        if self._pings is not None:
            self._pings.send(number)

    def hang_up(self) -> None:
        """Ends the connection of the moment; a new one follows."""
        if self._channel is not None:
            self._channel.close()

    async def send(self, message: Message) -> None:
        """Sends on the connection of the moment. Raises ChannelClosed."""
        if self._channel is None:
            raise ChannelClosed("not connected")
        await self._channel.send(message)

    async def _run(self) -> None:
        backoff = BACKOFF_SECONDS_MIN
        while True:
            try:
                channel = await self._transport.connect(self.address)
                try:
                    await self._greet(channel)
                    self._channel, self._heard = channel, True
                    self._pings = Pings(channel, self._spawn)
                    backoff = BACKOFF_SECONDS_MIN
                    for stream in list(self._wanted.values()):
                        stream.subscribe_in_turn()
                    await self._receive(channel)
                finally:
                    self._channel = self._pings = None
                    channel.close()
                    for stream in self._wanted.values():
                        stream.disconnected()
            except ChannelClosed as error:
                logger.debug("%s: %s", self.address, error)
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, BACKOFF_SECONDS_MAX)

    async def _greet(self, channel: Channel) -> None:
        says, self._says = self._says, greeting.PROTOCOL  # what the next connection meets may be updated
        try:
            await greeting.call(channel, session=self._session, kvns=self._kvns, says=says)
        except greeting.SaysFirst:
            self._says = greeting.FIRST
            raise
        except greeting.Incompatible as error:
            if str(error) != self._refused:
                logger.warning("%s: not followed: %s", self.address, error)
            self._refused = str(error)
            raise
        self._refused = ""

    async def _receive(self, channel: Channel) -> None:
        while True:
            message = await channel.receive()
            self._heard = True
            if message[0] == "ping":
                await channel.send(["pong", *fields(message, int)])
            elif len(message) > 1 and isinstance(message[1], str) and message[1] in self._wanted:
                await self._wanted[message[1]].put(message)


class _Stream:
    """One followed partition."""

    def __init__(self, uid: str, following: Following, link: Link, *, turn_at: float = -math.inf) -> None:
        self._uid, self._following, self._link, self._turn_at = uid, following, link, turn_at
        self._inbox: deque[Message] = deque()
        self._room = asyncio.Event()
        self._working: asyncio.Task[None] | None = None
        self._subscribing: asyncio.TimerHandle | None = None
        self._backoff = BACKOFF_SECONDS_MIN
        self._stopped = False
        self._seed: Seed | None = None  # None: none is being received
        self._pages = 0  # of the seed that are durable
        self._number = 0  # of the subscription that counts; messages of an earlier one are dropped

    def subscribe_in_turn(self) -> None:
        """Subscribes when its turn has come: of a connection that is made anew all have had theirs."""
        self.subscribe_soon(max(0.0, self._turn_at - asyncio.get_running_loop().time()))

    def hasten(self, *, connected: bool) -> None:
        """Waits for its turn no longer."""
        if self._turn_at > asyncio.get_running_loop().time():
            self._turn_at = -math.inf
            if connected:
                self.subscribe_soon(0.0)

    def subscribe_soon(self, seconds: float) -> None:
        """Subscribes (again) after a while. What came before on an earlier subscription is dropped."""
        self._inbox.clear()
        self._room.set()
        if self._subscribing is not None:
            self._subscribing.cancel()
        self._subscribing = asyncio.get_running_loop().call_later(seconds, self._subscribe)

    def stop(self) -> None:
        """Works off nothing more."""
        self._stopped = True
        self._inbox.clear()
        self._room.set()
        if self._subscribing is not None:
            self._subscribing.cancel()
        self.disconnected()

    def disconnected(self) -> None:
        """Nothing more of what was being received will come."""
        if self._seed is not None:
            self._link.spawn(self._drop_seed())

    async def put(self, message: Message) -> None:
        """Queues a message; waits while too many are queued, so that the sender feels it."""
        while len(self._inbox) >= limits.TAIL_MESSAGES_MAX and not self._stopped:
            self._room.clear()
            await self._room.wait()
        if not self._stopped:
            self._inbox.append(message)
            self._start()

    def _subscribe(self) -> None:
        self._inbox.append(["_subscribe"])
        self._start()

    def _start(self) -> None:
        if self._working is None and not self._stopped:
            self._working = self._link.spawn(self._work())

    async def _work(self) -> None:
        try:
            while self._inbox and not self._stopped:
                message = self._inbox.popleft()
                self._room.set()
                await self._take(message)
        except ChannelClosed as error:
            logger.debug("%s: %s", self._uid, error)
            if not self._stopped:
                self._link.hang_up()  # the next connection subscribes anew
        except (StalePromise, PromiseMoved) as error:
            logger.info("%s: %s", self._uid, error)
            self._following.stale()
            await self._refuse("stale-epoch")
        except Closed as error:
            logger.info("%s: %s", self._uid, error)  # the partition leaves this shard, or its replica is exchanged
            self._again()
        except (Invalid, DiskFull, Unreadable) as error:
            logger.warning("%s: %s", self._uid, error)
            await self._drop_seed()
            self._again()
        except CommitFailed as error:
            self._following.fatal(error)
        finally:
            self._working = None
            if self._inbox:
                self._start()

    async def _take(self, message: Message) -> None:
        kind, replica = message[0], self._following.replica
        if kind == "_subscribe":
            await self._drop_seed()
            if self._stopped:
                return
            last = replica.last
            self._number = self._link.next_number()
            await self._link.send(
                [
                    "subscribe",
                    self._uid,
                    self._number,
                    replica.replica_id,
                    replica.promised,
                    last.seq,
                    last.epoch,
                    replica.chain,
                ]
            )
            if replica.standing is Standing.DIFFERS:
                await self._link.send(["refuse", self._uid, replica.known_epoch, greeting.BASE_DIFFERS])
        elif kind == "append":
            _, epoch, number, commit, chain, entries = fields(message, str, int, int, int, bytes, list)
            if number == self._number:
                await self._append(epoch, commit, chain, entries)
        elif kind == "truncate":
            _, epoch, number, seq = fields(message, str, int, int, int)
            if number == self._number:
                await replica.promise(epoch)
                await self._truncate(epoch, _seq(seq))
        elif kind == "probe":
            _, epoch, number, seq = fields(message, str, int, int, int)
            if number != self._number:
                return
            await replica.promise(epoch)
            if self._stopped:
                return
            chain = replica.chain_at(min(_seq(seq), replica.last.seq))
            await self._link.send(["hash", self._uid, epoch, seq, chain])
        elif kind in {"seed", "rows", "seeded"}:
            await self._take_seed(message)
        elif kind == "refuse":
            self._again()

    async def _take_seed(self, message: Message) -> None:
        kind, replica = message[0], self._following.replica
        if kind == "seed":
            _, epoch, number, data = fields(message, str, int, int, bytes)
            if number != self._number:
                return
            await replica.promise(epoch)
            base = decode_base(data)
            if base.seq < 0 or base.last.epoch > epoch:
                raise Invalid("seed: not a base of that owner", field="base")
            logger.info("%s: a seed from seq %d begins", self._uid, base.seq)
            self._seed, self._pages = await replica.begin_seed(base), 0
            if self._stopped:
                await self._drop_seed()
        elif kind == "rows":
            _, epoch, number, rows = fields(message, str, int, int, list)
            if number == self._number and self._seed is not None:
                await replica.add_to_seed(self._seed, [_row(row) for row in rows])
                self._pages += 1
                await self._link.send(["seeding", self._uid, epoch, number, self._pages])
        else:
            _, epoch, number, at, keys, digest = fields(message, str, int, int, int, int, bytes)
            if number == self._number and self._seed is not None:
                self._seed.check(Checkpoint(at=at, keys=keys, digest=digest))
                seed, self._seed = self._seed, None
                await self._following.reseed(epoch, seed)
                self._backoff = BACKOFF_SECONDS_MIN
                self.subscribe_soon(0.0)

    async def _drop_seed(self) -> None:
        """Gives up the seed that is being received, if one is."""
        seed, self._seed = self._seed, None
        if seed is not None:
            with contextlib.suppress(Closed):
                await self._following.replica.drop_seed(seed)

    async def _append(self, epoch: int, commit: int, chain: bytes, entries: list[bytes]) -> None:
        replica = self._following.replica
        await replica.promise(epoch)
        if entries:
            while replica.overlay_full and replica.needs_apply:
                await replica.apply_step()
            await self._confirm(replica, epoch, await replica.append_copied(entries, epoch=epoch, chain=chain))
        if not self._stopped and self._following.replica is replica and commit <= replica.last.seq:
            self._following.committed(commit)

    async def _truncate(self, epoch: int, seq: int) -> None:
        replica = self._following.replica
        try:
            tail = await replica.truncate(seq, epoch=epoch)
        except BelowApplied as error:
            logger.warning("%s: diverged below what was applied, seeding anew: %s", self._uid, error)
            await self._following.reseed(epoch)
            self.subscribe_soon(0.0)
            return
        if tail is not None:
            logger.warning("%s: divergent tail set aside in %s", self._uid, tail)
        self._backoff = BACKOFF_SECONDS_MIN
        await self._confirm(replica, epoch, min(seq, replica.last.seq))

    async def _confirm(self, replica: Replica, epoch: int, seq: int) -> None:
        """`seq`: of the write that was just made. By now the replica may hold what another owner sent.

        Or another one may be in its place, which does not hold it.
        """
        if self._following.replica is replica:
            await self._link.send(["confirm", self._uid, epoch, replica.replica_id, seq])

    async def _refuse(self, reason: str) -> None:
        with contextlib.suppress(ChannelClosed):
            await self._link.send(["refuse", self._uid, self._following.replica.known_epoch, reason])
        self._again()

    def _again(self) -> None:
        if self._stopped:
            return
        self.subscribe_soon(self._backoff)
        self._backoff = min(self._backoff * 2, BACKOFF_SECONDS_MAX)


def _row(row: Any) -> tuple[bytes, bytes]:
    match row:
        case [bytes(key), bytes(data)]:
            return key, data
        case _:
            raise ChannelClosed("rows: not a key and a row")


def _seq(seq: int) -> int:
    if seq < -1:
        raise ChannelClosed(f"seq {seq}")
    return seq
