"""An owned partition: its engine, its Lease, and the standbys that follow it, for one epoch.

`tick` looks at everything that needs time rather than an event: silent standbys, the set that should change, the
word on the Lease that the owner is alone. The node calls it for all its partitions; nothing here has a timer.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

from fencekv.errors import FenceKVError
from fencekv.leases import pod_of
from fencekv_shard import limits
from fencekv_shard.api import Durability
from fencekv_shard.engine import Engine
from fencekv_shard.membership import Membership
from fencekv_shard.quorum import Standby, next_set

logger = logging.getLogger(__name__)


class Wakeable:
    """What a feed looks like from here: it sends when it is woken, and remembers whether it was heard."""

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        self.heard = True
        self.ended = False  # the owner it belongs to is one no more


@dataclass(slots=True, eq=False)
class Follower:
    """A replica that follows this owner, or a member of the set that should."""

    feed: Wakeable | None = None  # None: it is not connected
    silent_seconds: float = 0.0
    session_over: bool = False
    furthest: int = -1  # the highest seq that it ever confirmed
    stalled_seconds: float = 0.0  # how long it has lacked something without coming further


class Owned:
    """One partition under one epoch of this shard."""

    def __init__(
        self, *, engine: Engine, membership: Membership, spawn: Callable[[Coroutine[Any, Any, None]], object]
    ) -> None:
        self.engine, self.membership = engine, membership
        self.followers: dict[str, Follower] = {}
        self._changing = False
        self._closing = False
        self._quiet = asyncio.Event()  # nothing is being written on the Lease
        self._quiet.set()
        self._alone_seconds = 0.0
        self._spawn = spawn

    def attach(self, member: str, feed: Wakeable) -> None:
        """A replica begins to follow. An older connection of the same replica is forgotten."""
        earlier = self.followers.get(member) or Follower()
        if earlier.feed is not None:
            _end(earlier.feed)
        # Who only ever connects anew makes no progress by that.
        self.followers[member] = replace(earlier, feed=feed, silent_seconds=0.0, session_over=False)
        # What an earlier connection confirmed is certain only as far as this one confirms it again: the
        # replica may have been cut back meanwhile.
        self.engine.confirmed.pop(member, None)
        self.engine.heard(member)

    def detach(self, member: str, feed: Wakeable, *, session_over: bool = False) -> None:
        """A connection ended."""
        _end(feed)
        follower = self.followers.get(member)
        if follower is not None and follower.feed is feed:
            self.followers[member] = replace(follower, feed=None, silent_seconds=0.0, session_over=session_over)
            if session_over:
                self.tick(0.0)

    def grown(self) -> None:
        """The journal or commit_seq grew: feeds have something to send."""
        for follower in self.followers.values():
            if follower.feed is not None:
                follower.feed.wake.set()

    def stop(self, error: FenceKVError) -> None:
        """Ends the ownership: requests fail, feeds say so to their standbys."""
        self.engine.stop(error)
        for follower in self.followers.values():
            if follower.feed is not None:
                _end(follower.feed)

    async def drained(self) -> bool:
        """Prepares the end of the epoch: begins nothing more on the Lease, and waits until all is confirmed.

        True as well if standbys are out of reach and nobody was told of what they lack. False: all goes on.
        """
        self._closing = True
        try:
            async with asyncio.timeout(limits.HELD_SECONDS_MAX):
                await self._quiet.wait()
                await self.engine.drained()
        except (TimeoutError, FenceKVError) as error:
            # What a standard table acknowledged may lie here alone: it is kept rather than moved away from.
            alone = self.membership.seen.alone_since == self.engine.epoch
            if alone and self._quiet.is_set() and self.engine.spec.durability is Durability.REPLICATED:
                return True
            logger.warning("%s: not moved, standbys do not confirm: %r", self.engine.spec.name, error)
            self.resume()
            return False
        return True

    def resume(self) -> None:
        """The epoch does not end after all."""
        self._closing = False

    def tick(self, slice_seconds: float) -> None:
        """Looks at the followers. `slice_seconds` passed; a long pause of this process counts as a short one."""
        engine = self.engine
        for member in sorted({*self.membership.members, *engine.counted}):
            if member != engine.member and member not in self.followers:
                self.followers[member] = Follower()
        for member, follower in list(self.followers.items()):
            if follower.feed is not None and follower.feed.heard:
                follower.feed.heard, follower.silent_seconds = False, 0.0
                engine.heard(member)
            else:
                follower.silent_seconds += slice_seconds
            self._look_for_progress(member, follower, slice_seconds)
            stranger = member not in engine.counted and member not in self.membership.members
            if stranger and follower.feed is None:
                del self.followers[member]
        engine.give_up_overdue()
        engine.advance()
        if not self._closing:
            self._consider_set()
            self._consider_word(slice_seconds)

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

    def _consider_set(self) -> None:
        engine = self.engine
        if self._changing:
            return
        target = next_set(
            own=engine.member,
            members=self.membership.members,
            counted=engine.counted,
            standbys=self._standbys(),
            replicas=engine.spec.replicas,
            min_in_sync=engine.spec.min_in_sync,
            timeout_seconds=limits.STANDBY_TIMEOUT_SECONDS,
        )
        members = self.membership.members
        if target is None and self.membership.unclear:
            target = members  # only a CAS that succeeds makes certain that the lost one cannot land any more
        if target is None or (target == members and engine.relaxes_to({*members} - {engine.member})):
            return
        self._begin(lambda: self._change(target))

    def _begin(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def alone() -> None:
            try:
                await work()
            finally:
                self._changing = False
                self._quiet.set()

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
                if follower.stalled_seconds >= limits.STANDBY_STALL_SECONDS
                else follower.silent_seconds,
                session_over=follower.session_over,
            )
            for member, follower in sorted(self.followers.items())
        }

    async def _change(self, target: tuple[str, ...]) -> None:
        before = self.membership.members
        if await self.membership.change(target):
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


def _end(feed: Wakeable) -> None:
    feed.ended = True
    feed.wake.set()
