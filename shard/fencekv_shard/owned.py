"""An owned partition: its engine, its Lease, and the standbys that follow it, for one epoch.

`tick` looks at everything that needs time rather than an event: silent standbys, the set that should change, the
word on the Lease that the owner is alone. Nothing here has a timer: `Rota`, of which a shard has one, calls it on
the node's.

Invariants:
  * What an idle partition costs does not depend on time: it is on the rota only while a look at it might find
    something, and whatever could change that puts it there again.
  * Silence is counted by connection, not by partition: what a standby says on it about one partition is heard for
    all of them, on the rota or not.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

from fencekv.clock import Clock
from fencekv.errors import FenceKVError
from fencekv.leases import pod_of
from fencekv_shard import limits
from fencekv_shard.api import Committed, Durability, Options, Waiter
from fencekv_shard.engine import Engine
from fencekv_shard.membership import Membership
from fencekv_shard.quorum import Standby, next_set
from fencekv_shard.transaction import Transaction

logger = logging.getLogger(__name__)


class Voice:
    """What is heard on one connection of a standby's, whichever of its replicas it is about."""

    def __init__(self) -> None:
        self.heard = True  # since the last tick
        self.heard_at = -math.inf  # on the node's clock, as of a tick
        self.silent_seconds = 0.0
        self.listeners: dict[Wakeable, Owned] = {}


class Wakeable:
    """What a feed looks like from here: it sends when it is woken, on a connection that has a voice."""

    def __init__(self, voice: Voice) -> None:
        self.wake = asyncio.Event()
        self.voice = voice
        self.ended = False  # the owner it belongs to is one no more


class Rota:
    """The owned partitions of a shard that are to be looked at, and the connections of those who follow any."""

    def __init__(self, clock: Clock, *, taking_over: Callable[[], bool]) -> None:
        """`taking_over`: whether grants to this shard are being taken."""
        self._clock, self._taking_over = clock, taking_over
        self._due: dict[Owned, None] = {}  # ordered, unlike a set
        self._voices: dict[Voice, None] = {}
        self._spare = float(limits.SPARE_CHANGES_MAX)

    @property
    def due(self) -> int:
        """How many partitions the next tick looks at."""
        return len(self._due)

    def spare_change(self) -> bool:
        """Whether a change of a set that nobody waits for may be asked for now; if so, it counts as asked for.

        When a pod dies, the API server has more urgent things to do: grants, and changes that somebody waits for.
        """
        if self._spare < 1:
            return False
        self._spare -= 1
        return True

    def rouse(self, owned: Owned) -> None:
        """Has a partition looked at on the next tick."""
        self._due[owned] = None

    def leave(self, owned: Owned) -> None:
        """A partition is owned no more."""
        self._due.pop(owned, None)

    def listen(self, feed: Wakeable, owned: Owned) -> None:
        """A standby has just spoken, to follow `owned`."""
        voice = feed.voice
        if voice.silent_seconds > 0:
            self._due.update(dict.fromkeys(voice.listeners.values()))
        voice.heard, voice.heard_at, voice.silent_seconds = True, self._clock.now(), 0.0
        voice.listeners[feed] = owned
        self._voices[voice] = None

    def forget(self, feed: Wakeable) -> None:
        """It follows no more."""
        feed.voice.listeners.pop(feed, None)
        if not feed.voice.listeners:
            self._voices.pop(feed.voice, None)

    def tick(self, slice_seconds: float, *, valid: bool) -> None:
        """Looks at what is due. `valid`: whether the session may act; else nothing can be acknowledged.

        `slice_seconds` passed; a long pause of this process counts as a short one.
        """
        now = self._clock.now()
        if not self._taking_over():
            earned = slice_seconds * limits.SPARE_CHANGES_PER_SECOND
            self._spare = min(self._spare + earned, limits.SPARE_CHANGES_MAX)
        for voice in self._voices:
            was_silent = voice.silent_seconds > 0
            if voice.heard:
                voice.heard, voice.heard_at, voice.silent_seconds = False, now, 0.0
            else:
                voice.silent_seconds += slice_seconds
            if was_silent != (voice.silent_seconds > 0):
                self._due.update(dict.fromkeys(voice.listeners.values()))
        due, self._due = self._due, {}
        for owned in due:
            if not valid:
                owned.engine.expire()
            if owned.tick(slice_seconds):
                self._due[owned] = None


@dataclass(slots=True, eq=False)
class Follower:
    """A replica that follows this owner, or a member of the set that should."""

    feed: Wakeable | None = None  # None: it is not connected
    unconnected_seconds: float = 0.0
    session_over: bool = False
    furthest: int = -1  # the highest seq that it ever confirmed
    stalled_seconds: float = 0.0  # how long it has lacked something without coming further
    doubts: bool = False  # it says that its base is sound, and another than this owner's checkpoint says
    differs: bool = False  # and the owner's is sound as well

    @property
    def silent_seconds(self) -> float:
        """How long nothing has been heard of it."""
        return self.unconnected_seconds if self.feed is None else self.feed.voice.silent_seconds


class Owned:
    """One partition under one epoch of this shard."""

    def __init__(
        self,
        *,
        engine: Engine,
        membership: Membership,
        rota: Rota,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        on_doubt: Callable[[], None] = lambda: None,
    ) -> None:
        self.engine, self.membership = engine, membership
        self._on_doubt = on_doubt  # a standby has another base
        self.told_damaged = False
        self._rota = rota
        self._resting = False  # off the rota
        self._stopped = False
        self.followers: dict[str, Follower] = {}
        self._changing = False
        self._put_off = False  # a change of the set that nobody waits for
        self._closing = False
        self._quiet = asyncio.Event()  # nothing is being written on the Lease
        self._quiet.set()
        self._alone_seconds = 0.0
        self._spawn = spawn
        rota.rouse(self)

    def begin(self, transaction: Transaction, options: Options, waiter: Waiter) -> None:
        """`Engine.begin`."""
        self.rouse()
        self.engine.begin(transaction, options, waiter)

    async def submit(self, transaction: Transaction, options: Options) -> Committed:
        """`Engine.submit`."""
        self.rouse()
        return await self.engine.submit(transaction, options)

    def rouse(self) -> None:
        """Something happened: what takes time may begin."""
        if self._resting and not self._stopped:
            self._resting = False
            self._hear()
            self._rota.rouse(self)

    def attach(self, member: str, feed: Wakeable) -> None:
        """A replica begins to follow. An older connection of the same replica is forgotten."""
        earlier = self.followers.get(member) or Follower()
        if earlier.feed is not None:
            self._end(earlier.feed)
        # Who only ever connects anew makes no progress by that.
        self.followers[member] = replace(
            earlier, feed=feed, unconnected_seconds=0.0, session_over=False, doubts=False, differs=False
        )
        self._rota.listen(feed, self)
        # What an earlier connection confirmed is certain only as far as this one confirms it again: the
        # replica may have been cut back meanwhile.
        self.engine.confirmed.pop(member, None)
        self.engine.heard(member)
        self.rouse()

    def detach(self, member: str, feed: Wakeable) -> None:
        """A connection ended."""
        self._end(feed)
        follower = self.followers.get(member)
        if follower is not None and follower.feed is feed:
            self.followers[member] = replace(follower, feed=None, unconnected_seconds=0.0)
            self.rouse()

    def session_ended(self, member: str) -> None:
        """The session of a replica whose connection ended is over: it need not be waited for."""
        follower = self.followers.get(member)
        if follower is not None and follower.feed is None:
            self.followers[member] = replace(follower, session_over=True)
            self.rouse()
            self.tick(0.0)

    def doubted(self, member: str) -> None:
        """A replica has another base: it stays where it is until this owner has looked at its own."""
        follower = self.followers.get(member)
        if follower is not None:
            self.followers[member] = replace(follower, doubts=True)
        self._on_doubt()

    def sound(self) -> None:
        """This owner's base is what it wrote: who has another is not counted on."""
        for member, follower in self.followers.items():
            if follower.doubts:
                follower.differs = True
                logger.error("%s: the base of %s is another one: a person decides", self.engine.spec.name, member)
        self.rouse()

    def doubter(self) -> str:
        """The pod of a member that has another base than this owner; empty: there is none."""
        return next(
            (
                pod_of(one)
                for one in self.membership.members
                if one in self.followers and self.followers[one].doubts
            ),
            "",
        )

    @property
    def has_standby(self) -> bool:
        """Whether another member of the in-sync set follows now."""
        return any(
            member != self.engine.member
            and (follower := self.followers.get(member)) is not None
            and follower.feed is not None
            and follower.silent_seconds < limits.STANDBY_TIMEOUT_SECONDS
            for member in self.membership.members
        )

    def grown(self) -> None:
        """The journal or commit_seq grew: feeds have something to send."""
        self.rouse()
        for follower in self.followers.values():
            if follower.feed is not None:
                follower.feed.wake.set()

    def stop(self, error: FenceKVError) -> None:
        """Ends the ownership: requests fail, feeds say so to their standbys."""
        self._stopped = True
        self._rota.leave(self)
        self.engine.stop(error)
        for follower in self.followers.values():
            if follower.feed is not None:
                self._end(follower.feed)

    async def drained(self) -> bool:
        """Prepares the end of the epoch: begins nothing more on the Lease, and waits until all is confirmed.

        True as well if standbys are out of reach and nobody was told of what they lack. False: all goes on.
        """
        self._closing = True
        # What a standard table acknowledged may lie here alone: it is kept rather than moved away from.
        replicated = self.engine.spec.durability is Durability.REPLICATED
        alone = replicated and self.membership.seen.alone_since == self.engine.epoch
        try:
            # Standbys that were called lost long ago are not waited for as those are that may confirm any moment.
            async with asyncio.timeout(limits.ALONE_DRAIN_SECONDS if alone else limits.HELD_SECONDS_MAX):
                await self._quiet.wait()
                await self.engine.drained()
        except (TimeoutError, FenceKVError) as error:
            alone = replicated and self.membership.seen.alone_since == self.engine.epoch
            if alone and self._quiet.is_set():
                return True
            logger.warning("%s: not moved, standbys do not confirm: %r", self.engine.spec.name, error)
            self.resume()
            return False
        return True

    def resume(self) -> None:
        """The epoch does not end after all."""
        self._closing = False
        self.rouse()

    def tick(self, slice_seconds: float) -> bool:
        """Looks at the followers, for the rota; whether the next tick should look again.

        `slice_seconds` passed; a long pause of this process counts as a short one.
        """
        engine = self.engine
        if self._stopped:
            return False
        for member in sorted({*self.membership.members, *engine.counted}):
            if member != engine.member and member not in self.followers:
                self.followers[member] = Follower()
        self._hear()
        for member, follower in list(self.followers.items()):
            follower.unconnected_seconds += slice_seconds if follower.feed is None else 0.0
            self._look_for_progress(member, follower, slice_seconds)
            stranger = member not in engine.counted and member not in self.membership.members
            if stranger and follower.feed is None:
                del self.followers[member]
                engine.confirmed.pop(member, None)
                engine.heard_at.pop(member, None)
        engine.give_up_overdue()
        engine.advance()
        if not self._closing:
            self._consider_set()
            self._consider_word(slice_seconds)
        self._resting = not self._passing()
        return not self._resting

    def _passing(self) -> bool:
        """Whether the mere passing of time may still change something."""
        engine, last = self.engine, self.engine.replica.last.seq
        return not self._stopped and (
            engine.busy
            or engine.relaxing
            or self.membership.unclear
            or self._put_off
            or 0.0 < self._alone_seconds < limits.ALONE_SECONDS
            or any(self._changes(member, follower, last) for member, follower in self.followers.items())
        )

    def _changes(self, member: str, follower: Follower, last: int) -> bool:
        if follower.feed is None:
            return follower.unconnected_seconds < limits.STANDBY_TIMEOUT_SECONDS
        silent, lacks = follower.silent_seconds, self.engine.confirmed.get(member, -1) < last
        return silent < limits.STANDBY_TIMEOUT_SECONDS and (silent > 0 or lacks)

    def _hear(self) -> None:
        """Tells the engine when its standbys were heard."""
        for member, follower in self.followers.items():
            if follower.feed is not None:
                heard_at = self.engine.heard_at.get(member, -math.inf)
                self.engine.heard_at[member] = max(heard_at, follower.feed.voice.heard_at)

    def _end(self, feed: Wakeable) -> None:
        self._rota.forget(feed)
        feed.ended = True
        feed.wake.set()

    def _look_for_progress(self, member: str, follower: Follower, slice_seconds: float) -> None:
        """One that answers but confirms nothing, its disk being full say, holds up every acknowledgement."""
        confirmed = self.engine.confirmed.get(member, -1)
        if confirmed > follower.furthest or confirmed >= self.engine.replica.last.seq:
            follower.furthest, follower.stalled_seconds = max(confirmed, follower.furthest), 0.0
        elif follower.feed is not None:
            follower.stalled_seconds += slice_seconds

    def in_sync_target(self, replicas: tuple[str, ...]) -> str:
        """The pod of a standby that holds everything, the first by `replicas`; empty: there is none."""
        last = self.engine.replica.last.seq
        ready = {
            pod_of(member)
            for member in self.membership.members
            if member != self.engine.member and self.engine.confirmed.get(member, -1) >= last
        }
        return next((pod for pod in replicas if pod in ready), "")

    def _next_set(self) -> tuple[str, ...] | None:
        engine = self.engine
        return next_set(
            own=engine.member,
            members=self.membership.members,
            counted=engine.counted,
            standbys=self._standbys(),
            replicas=engine.spec.replicas,
            min_in_sync=engine.spec.min_in_sync,
            timeout_seconds=limits.STANDBY_TIMEOUT_SECONDS,
        )

    def _consider_set(self) -> None:
        engine = self.engine
        self._put_off = False
        if self._changing:
            return
        target, members = self._next_set(), self.membership.members
        if target is None and self.membership.unclear:
            target = members  # only a CAS that succeeds makes certain that the lost one cannot land any more
        if target is None or (target == members and engine.relaxes_to({*members} - {engine.member})):
            return
        shrinks = set(target) < set(members)
        if self._can_wait({*target} - {*members}) and not self._rota.spare_change():
            self._put_off = True
            return
        self._begin(lambda: self._change(target, wanted=lambda: not shrinks or self._next_set() == target))

    def _can_wait(self, joining: set[str]) -> bool:
        """Whether nobody waits for a change of the set in which these join."""
        engine = self.engine
        if engine.lacks_copies:
            return False  # requests are refused until somebody joins
        if joining:
            return not joining <= engine.counted  # who counts already holds requests up if it falls behind
        return not engine.unsettled

    def _begin(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def alone() -> None:
            try:
                await work()
            finally:
                self._changing = False
                self._quiet.set()
                self.rouse()  # whether it succeeded or not, what follows is to be considered

        self._changing = True
        self._quiet.clear()
        self._spawn(alone())

    def _standbys(self) -> dict[str, Standby]:
        engine = self.engine
        last = engine.replica.last.seq
        return {
            member: Standby(
                caught_up=follower.feed is not None
                and engine.confirmed.get(member, -1) >= last - limits.JOIN_LAG_ENTRIES_MAX,
                silent_seconds=math.inf
                if follower.differs or follower.stalled_seconds >= limits.STANDBY_STALL_SECONDS
                else follower.silent_seconds,
                session_over=follower.session_over,
            )
            for member, follower in sorted(self.followers.items())
        }

    async def _change(self, target: tuple[str, ...], *, wanted: Callable[[], bool]) -> None:
        before = self.membership.members
        if await self.membership.change(target, wanted=wanted):
            logger.info("%s: in-sync set %s -> %s", self.engine.spec.name, before, target)

    def _consider_word(self, slice_seconds: float) -> None:
        engine = self.engine
        reachable = sum(
            1
            for member, follower in self.followers.items()
            if member in engine.counted and follower.silent_seconds < limits.STANDBY_TIMEOUT_SECONDS
        )
        if reachable >= engine.spec.min_in_sync:
            self._alone_seconds = 0.0
        else:
            self._alone_seconds += slice_seconds
        alone = self._alone_seconds >= limits.ALONE_SECONDS
        if alone != (self.membership.seen.alone_since is not None) and not self._changing:
            self._begin(lambda: self.membership.say_alone(alone=alone))
