"""The connections to the owners whose partitions this shard follows: one an address."""

from __future__ import annotations

from fencekv.leases import Session
from fencekv_shard.feed import Spawn
from fencekv_shard.peer import Transport
from fencekv_shard.tail import Following, Link


class Links:
    """All links of a shard."""

    def __init__(self, *, transport: Transport, session: Session, kvns: str, spawn: Spawn) -> None:
        self._spawn = spawn
        self._transport, self._session, self._kvns = transport, session, kvns
        self._links: dict[str, Link] = {}

    def follow(self, uid: str, following: Following, address: str, *, urgent: bool) -> None:
        """Has a partition follow the owner at `address`, and no other one. `urgent`: at once, not in its turn."""
        for other in self._links.values():
            if other.address != address:
                other.unfollow(uid)
        link = self._links.get(address)
        if link is None:
            link = Link(
                address=address,
                transport=self._transport,
                session=self._session,
                kvns=self._kvns,
                spawn=self._spawn,
            )
            self._links[address] = link
        if not link.follows(uid):
            link.follow(uid, following, urgent=urgent)
        elif urgent:
            link.hasten(uid)
        self._close_idle()

    def unfollow(self, uid: str) -> None:
        """Has a partition follow nobody."""
        for link in self._links.values():
            link.unfollow(uid)
        self._close_idle()

    def tick(self, slice_seconds: float) -> None:
        """Looks for silent owners."""
        for link in self._links.values():
            link.tick(slice_seconds)

    def ping(self, number: int) -> None:
        """Asks all owners for a sign of life; waits for none."""
        for link in self._links.values():
            link.ping(number)

    def close(self) -> None:
        """Ends all connections."""
        for link in self._links.values():
            link.close()
        self._links.clear()

    def _close_idle(self) -> None:
        for address, link in list(self._links.items()):
            if link.idle:
                link.close()
                del self._links[address]
