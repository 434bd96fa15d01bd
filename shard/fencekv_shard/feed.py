"""Shipping the journal of owned partitions to the standbys that follow: the owner's side of the stream.

One connection carries many partitions. For each, the owner first finds the last entry that both sides have, by
chain hash, tells the standby to cut off what is above, and then ships. A standby that ends below what this journal
has kept gets the base first, page by page, and follows anew with the replica that it makes of it.

Invariants:
  * Every message carries the epoch; a standby has promised it durably before it confirms anything.
  * A shipped commit seq stands at the end of a round whose entries were all shipped.
  * While a base is sent it is not folded: the standby gets it as of one seq. One that takes nothing is given up.
  * A confirmation counts for the very replica that it names; a session is heard on one connection, the last one.
  * Once the ownership has ended, the journal is not looked at any more: it may follow another one, or be closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine
from dataclasses import dataclass
from typing import Any, Final

from fencekv.leases import Session
from fencekv_shard import greeting, limits
from fencekv_shard.base import Base, Digest, Standing, encode_base
from fencekv_shard.engine import Engine
from fencekv_shard.greeting import BASE_DIFFERS, PROTOCOL, SEEDS, Greeted
from fencekv_shard.owned import Owned, Voice, Wakeable
from fencekv_shard.peer import Channel, ChannelClosed, Message

logger = logging.getLogger(__name__)

OVER_LOOK_SECONDS: Final = 0.1  # between two questions whether a session is over
OVER_LOOKS_MAX: Final = round(limits.STANDBY_TIMEOUT_SECONDS / OVER_LOOK_SECONDS)  # then its silence is believed

Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
Left = tuple[Owned, str]  # a replica, `pod/replica id`, that follows this partition no more


class Feed(Wakeable):
    """One partition's stream on one connection."""

    def __init__(
        self,
        *,
        channel: Channel,
        owned: Owned,
        uid: str,
        number: int,
        pod: str,
        replica_id: str,
        last_seq: int,
        chain: bytes,
        voice: Voice,
        version: int = PROTOCOL,
    ) -> None:
        super().__init__(voice)
        self._channel, self._owned, self._uid, self._number = channel, owned, uid, number
        self.member, self.replica_id, self._version = f"{pod}/{replica_id}", replica_id, version
        self._last_seq, self._chain = last_seq, chain
        self._hashes: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
        self._committed_sent = -1
        self._pages_durable = 0  # of a seed
        self.rounds_of_probes = 0

    @property
    def engine(self) -> Engine:
        """The owner's engine."""
        return self._owned.engine

    async def run(self) -> None:
        """Negotiates, then ships until the connection ends."""
        common = await self._common()
        following: int | None = None  # None: the standby must follow anew, and soon does
        if common is None:
            await self._seed()
        elif not self.ended:
            await self._channel.send(["truncate", self._uid, self.engine.epoch, self._number, common])
            following = common + 1
        while not self.ended:
            self.wake.clear()
            if following is not None:
                following = await self._ship(following)
            await self.wake.wait()
        await self._channel.send(["refuse", self._uid, self.engine.epoch, "not-owner"])

    def on_hash(self, seq: int, chain: bytes) -> None:
        """An answer to a probe."""
        self._hashes.put_nowait((seq, chain))

    def on_confirm(self, seq: int) -> None:
        """The standby has fsynced everything up to `seq`."""
        self.engine.confirm(self.member, seq)
        self.wake.set()

    def on_seeding(self, number: int, pages: int) -> None:
        """So many pages of the seed are durable at the standby."""
        if number == self._number:
            self._pages_durable = pages
            self.wake.set()

    async def _common(self) -> int | None:
        """The last seq that both journals have: chain hashes agree up to it, and nowhere above.

        None: it lies below what is kept here.
        """
        if self.ended:
            return -1
        replica = self.engine.replica
        high = min(self._last_seq, replica.last.seq)
        is_kept = high >= replica.base.known_from
        if is_kept and high == self._last_seq and replica.chain_at(high) == self._chain:
            return high
        low = max(replica.base.known_from - 1, -1)
        while low < high and not self.ended:
            middle = (low + high + 1) // 2
            self.rounds_of_probes += 1
            await self._channel.send(["probe", self._uid, self.engine.epoch, self._number, middle])
            answer = await self._hashes.get()
            while answer[0] != middle:  # to a probe of an earlier subscription
                answer = await self._hashes.get()
            if self.ended:
                break
            # Empty: the standby has trimmed it. What it trimmed was committed, so that no fork lies there.
            if answer in {(middle, replica.chain_at(middle)), (middle, b"")}:
                low = middle
            else:
                high = middle - 1
        common = min(low, high)
        return common if common >= replica.base.known_from else None

    async def _seed(self) -> None:
        """Sends the base. The standby makes a new replica of it, and follows anew."""
        if self._version < SEEDS:
            text = "%s: %s needs a seed, which version %d of the stream does not know: update its shard"
            logger.warning(text, self._owned.engine.spec.name, self.member, self._version)
            await self._channel.send(["refuse", self._uid, self.engine.epoch, "reseed"])
            return
        if self.engine.replica.standing is Standing.DAMAGED:
            logger.warning(
                "%s: %s needs a seed, and the base is damaged", self._owned.engine.spec.name, self.member
            )
            return
        head = [self._uid, self.engine.epoch, self._number]
        try:
            with self.engine.replica.pinned() as base:
                logger.info("%s: seeding %s from seq %d", self._owned.engine.spec.name, self.member, base.seq)
                sent = await self._send_base(base, head)
        except TimeoutError:
            # It may be frozen for long, and while the base is kept for it nothing can be trimmed.
            logger.warning("%s: %s takes no seed: it may dial again", self._owned.engine.spec.name, self.member)
            self._channel.close()
            return
        if base.total not in {None, sent.total}:
            logger.error("%s: the base that was sent is not what was written", self._owned.engine.spec.name)
            self._owned.doubted(self.member)
        elif not self.ended:
            point = sent.checkpoint(base.seq)
            await self._channel.send(["seeded", *head, point.at, point.keys, point.digest])

    async def _send_base(self, base: Base, head: list[Any]) -> Digest:
        """Sends the base's rows; what they are. Raises TimeoutError: nothing became durable for too long."""
        replica, digest, after, pages = self.engine.replica, Digest(), b"", 0
        async with asyncio.timeout(limits.SEED_STALL_SECONDS):
            await self._channel.send(["seed", *head, encode_base(base)])
        while not self.ended and (rows := replica.base_page(after)):
            async with asyncio.timeout(limits.SEED_STALL_SECONDS):
                await self._channel.send(["rows", *head, [list(row) for row in rows]])
                digest.add(rows)
                after, pages = rows[-1][0], pages + 1
                while not self.ended and pages - self._pages_durable >= limits.SEED_PAGES_WINDOW:
                    self.wake.clear()
                    await self.wake.wait()
        return digest

    async def _ship(self, following: int) -> int | None:
        """Ships what there is from `following` on, as far as the window allows; gives the next seq.

        None: it was trimmed. The standby was told to follow anew.
        """
        engine = self.engine
        while not self.ended and following <= engine.replica.last.seq:
            if following - engine.confirmed.get(self.member, following - 1) > limits.SHIP_WINDOW_ENTRIES:
                break
            if following < engine.replica.first_seq:
                await self._channel.send(["refuse", self._uid, engine.epoch, "reseed"])
                return None
            entries = engine.replica.raw(following, limits.SHIP_ENTRIES_MAX, limits.SHIP_BYTES_MAX)
            following += len(entries)
            await self._append(entries, following - 1)
        commit = engine.replica.commit_seq
        if not self.ended and commit > self._committed_sent and following > commit:
            await self._append([], following - 1)
        return following

    async def _append(self, entries: list[bytes], last: int) -> None:
        commit = self._commit_for(last)
        self._committed_sent = max(commit, self._committed_sent)
        chain = self.engine.replica.chain_at(last)
        await self._channel.send(["append", self._uid, self.engine.epoch, self._number, commit, chain, entries])

    def _commit_for(self, last: int) -> int:
        """The highest committed end of a round at or below `last`."""
        replica = self.engine.replica
        if last >= replica.commit_seq:
            return replica.commit_seq
        end = last
        while end >= replica.first_seq and replica.position_at(end).txid == replica.position_at(end + 1).txid:
            end -= 1  # what was trimmed ends with a round
        return end


class Feeds:
    """All streams from this shard.

    Args:
        lookup: gives an owned partition by UID; None: this shard does not own it (now).
        expects: whether this shard may come to own a partition: it holds a replica.
        session_over: asks the API server whether a session is over.
    """

    def __init__(
        self,
        *,
        kvns: str,
        session: Session,
        lookup: Callable[[str], Owned | None],
        expects: Callable[[str], bool],
        session_over: Callable[[Session], Awaitable[bool]],
        spawn: Spawn,
    ) -> None:
        self._spawn = spawn
        self._kvns, self._session, self._session_over = kvns, session, session_over
        self._lookup, self._expects = lookup, expects
        self._links: dict[int, _Link] = {}  # by number, in the order they came
        self._number = 0
        self._refused = ""  # why the last one was refused that could not be spoken with; empty: none was

    async def serve(self, channel: Channel) -> None:
        """Serves one connection until it ends."""
        try:
            greeted = await greeting.answer(channel, session=self._session, kvns=self._kvns)
        except greeting.Incompatible as error:
            if str(error) != self._refused:
                logger.warning("a follower is refused: %s", error)
            self._refused = str(error)
            raise
        for earlier in self._links.values():
            if earlier.session == greeted.session:
                earlier.channel.close()  # nobody is there any more, which TCP finds out much later
        link = _Link(channel, greeted, lookup=self._lookup, expects=self._expects, spawn=self._spawn)
        self._number += 1
        number = self._number
        self._links[number] = link
        try:
            await link.run()
        finally:
            del self._links[number]
            channel.close()
            left = link.end()
            if left:
                self._spawn(self._ask_whether_over(link.session, left))

    async def _ask_whether_over(self, session: Session, left: Collection[Left]) -> None:
        """Asks for as long as the silence of its replicas is waited for: a supervisor releases a session a
        moment after its process has ended."""
        for _ in range(OVER_LOOKS_MAX):
            if await self._session_over(session):
                for owned, member in left:
                    owned.session_ended(member)
                return
            await asyncio.sleep(OVER_LOOK_SECONDS)

    def close(self) -> None:
        """Ends all connections."""
        for link in self._links.values():
            link.channel.close()

    def begun(self, uid: str) -> None:
        """This shard owns a partition from here on: whoever came too early to follow it does so now."""
        for link in self._links.values():
            link.begun(uid)

    def tick(self, slice_seconds: float) -> None:
        """Refuses those who came to follow what this shard still does not own."""
        for link in self._links.values():
            link.tick(slice_seconds)

    def ping(self, number: int) -> None:
        """Asks every follower for a sign of life; waits for none."""
        for link in self._links.values():
            link.pings.send(number)


class Pings:
    """The pings on one channel. Sending one can take as long as a frozen peer does not read."""

    def __init__(self, channel: Channel, spawn: Spawn) -> None:
        self._channel, self._spawn = channel, spawn
        self._sending: asyncio.Task[None] | None = None  # None: none was sent yet

    def send(self, number: int) -> None:
        """Sends one, unless the last one has not even left."""
        if self._sending is None or self._sending.done():
            self._sending = self._spawn(self._send(number))

    async def _send(self, number: int) -> None:
        with contextlib.suppress(ChannelClosed):
            await self._channel.send(["ping", number])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subscription:
    """What a standby says of its replica, to follow the owner of a partition."""

    uid: str
    number: int
    replica_id: str
    promised: int
    last_seq: int
    last_epoch: int
    chain: bytes


@dataclass(slots=True)
class _Early:
    """A standby that came to follow what is not owned here, yet."""

    asked: _Subscription
    seconds: float = 0.0  # that it has waited
    doubts: bool = False  # it says that its base is sound, and another than the owner's


class _Link:
    """One connection: its feeds by partition."""

    def __init__(
        self,
        channel: Channel,
        greeted: Greeted,
        *,
        lookup: Callable[[str], Owned | None],
        expects: Callable[[str], bool],
        spawn: Spawn,
    ) -> None:
        self._spawn = spawn
        self.pings = Pings(channel, spawn)
        self.channel, self.session, self._lookup, self._expects = channel, greeted.session, lookup, expects
        self._early: dict[str, _Early] = {}  # by UID
        self._version = greeted.version
        self._voice = Voice()
        self._feeds: dict[str, tuple[Feed, Owned, asyncio.Task[None]]] = {}

    async def run(self) -> None:
        """Takes messages until the connection ends."""
        while True:
            message = await self.channel.receive()
            self._voice.heard = True
            await self._take(message)

    def end(self) -> list[Left]:
        """The connection ended. Gives who followed whom."""
        left: list[Left] = []
        for feed, owned, task in self._feeds.values():
            task.cancel()
            owned.detach(feed.member, feed)
            left.append((owned, feed.member))
        self._feeds.clear()
        self._early.clear()
        return left

    def begun(self, uid: str) -> None:
        """The partition is owned here from now on."""
        early, owned = self._early.pop(uid, None), self._lookup(uid)
        if early is None or owned is None:
            return
        if reason := self._admit(early.asked, owned):
            self._spawn(self._refuse(uid, owned.engine.epoch, reason))
        elif early.doubts:
            owned.doubted(self._feeds[uid][0].member)

    def tick(self, slice_seconds: float) -> None:
        """Refuses who has waited for too long; it may be right to ask elsewhere."""
        for uid, early in list(self._early.items()):
            early.seconds += slice_seconds
            if early.seconds >= limits.EARLY_SECONDS_MAX:
                del self._early[uid]
                self._spawn(self._refuse(uid, 0, "not-owner"))

    async def _take(self, message: Message) -> None:
        kind = message[0]
        if kind == "subscribe":
            uid, number, replica_id, promised, last_seq, last_epoch, chain = fields(
                message, str, int, str, int, int, int, bytes
            )
            await self._subscribe(
                _Subscription(
                    uid=uid,
                    number=number,
                    replica_id=replica_id,
                    promised=promised,
                    last_seq=last_seq,
                    last_epoch=last_epoch,
                    chain=chain,
                )
            )
        elif kind == "confirm":
            uid, epoch, replica_id, seq = fields(message, str, int, str, int)
            entry = self._feeds.get(uid)
            if entry is not None and entry[0].engine.epoch == epoch and entry[0].replica_id == replica_id:
                entry[0].on_confirm(seq)
        elif kind == "hash":
            uid, epoch, seq, chain = fields(message, str, int, int, bytes)
            entry = self._feeds.get(uid)
            if entry is not None and entry[0].engine.epoch == epoch:
                entry[0].on_hash(seq, chain)
        elif kind == "seeding":
            uid, epoch, number, pages = fields(message, str, int, int, int)
            entry = self._feeds.get(uid)
            if entry is not None and entry[0].engine.epoch == epoch:
                entry[0].on_seeding(number, pages)
        elif kind == "refuse":
            uid, _, reason = fields(message, str, int, str)
            entry = self._feeds.get(uid)
            if reason != BASE_DIFFERS:
                self._drop(uid)
            elif entry is not None:
                entry[1].doubted(entry[0].member)
            elif uid in self._early:
                self._early[uid].doubts = True
        elif kind == "ping":
            await self.channel.send(["pong", *fields(message, int)])

    async def _subscribe(self, asked: _Subscription) -> None:
        if asked.last_seq < -1:
            raise ChannelClosed(f"subscribe: last seq {asked.last_seq}")
        self._drop(asked.uid)
        owned = self._lookup(asked.uid)
        if owned is None and self._expects(asked.uid):
            # Both heard of the grant at once, and who was granted first makes its promise: to dial again and again
            # until then would leave the new owner without a standby for longer than it takes.
            self._early[asked.uid] = _Early(asked)
        elif owned is None:
            await self._refuse(asked.uid, 0, "not-owner")
        elif reason := self._admit(asked, owned):
            await self._refuse(asked.uid, owned.engine.epoch, reason)

    def _admit(self, asked: _Subscription, owned: Owned) -> str:
        """Has a standby follow; gives why not, empty if it does."""
        if asked.promised > owned.engine.epoch or asked.last_epoch > owned.engine.epoch:
            return "stale-epoch"
        feed = Feed(
            channel=self.channel,
            owned=owned,
            uid=asked.uid,
            number=asked.number,
            pod=self.session.pod,
            replica_id=asked.replica_id,
            last_seq=asked.last_seq,
            chain=asked.chain,
            voice=self._voice,
            version=self._version,
        )
        owned.attach(feed.member, feed)
        self._feeds[asked.uid] = feed, owned, self._spawn(self._run(feed))
        return ""

    async def _refuse(self, uid: str, epoch: int, reason: str) -> None:
        with contextlib.suppress(ChannelClosed):  # which whoever receives on it notices as well
            await self.channel.send(["refuse", uid, epoch, reason])

    async def _run(self, feed: Feed) -> None:
        with contextlib.suppress(ChannelClosed):
            await feed.run()

    def _drop(self, uid: str) -> None:
        self._early.pop(uid, None)
        entry = self._feeds.pop(uid, None)
        if entry is not None:
            feed, owned, task = entry
            task.cancel()
            owned.detach(feed.member, feed)


def fields(message: Message, *types: type) -> list[Any]:
    """The message's fields, checked. Raises ChannelClosed: the other side speaks another language."""
    fields = message[1:]
    if len(fields) != len(types) or not all(type(f) is t for f, t in zip(fields, types, strict=True)):
        raise ChannelClosed(f"malformed {message[0]!r}")
    return fields
