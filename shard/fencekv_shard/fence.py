"""Who may write to a partition, as its replica on this shard sees it. Pure.

The five gates of the protocol, and where each is held:
  1. the session's deadline on this machine's own clock: `Fence.admit`, before a round and again after its fsync;
  2. the promised epoch inside the LMDB write transaction: `store.Store.append`;
  3. the promise that every standby keeps: `replica.Replica.append_copied`;
  4. the epoch in the object store's manifest: there is no object store yet;
  5. the epoch that the client saw: `Fence.admit`.

Invariants:
  * `epoch` never falls.
  * Only OWNER is ever admitted; the one way to it is a grant (a higher epoch) and then `OPENED`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Final

from fencekv.errors import NotOwner


class Role(enum.StrEnum):
    """What the replica is to its partition."""

    STANDBY = "standby"
    GRANTED = "granted"  # the Lease names us; our journal is not yet committed under our epoch
    OWNER = "owner"
    CLOSED = "closed"  # we closed our epoch in a planned move


class Event(enum.StrEnum):
    """What changes a role."""

    GRANT = "grant"  # the Lease names our session with a higher epoch
    OPENED = "opened"  # everything up to our ownership entry is committed
    CLOSE = "close"  # we closed our epoch durably
    DEPOSED = "deposed"  # a higher epoch exists, or the Lease names another session


TRANSITIONS: Final[dict[Role, dict[Event, Role]]] = {
    Role.STANDBY: {Event.GRANT: Role.GRANTED, Event.DEPOSED: Role.STANDBY},
    Role.GRANTED: {
        Event.GRANT: Role.GRANTED,
        Event.OPENED: Role.OWNER,
        Event.CLOSE: Role.CLOSED,
        Event.DEPOSED: Role.STANDBY,
    },
    Role.OWNER: {Event.GRANT: Role.GRANTED, Event.CLOSE: Role.CLOSED, Event.DEPOSED: Role.STANDBY},
    Role.CLOSED: {Event.GRANT: Role.GRANTED, Event.DEPOSED: Role.STANDBY},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """A replica's role, and the epoch of its last grant (0: never granted)."""

    role: Role = Role.STANDBY
    epoch: int = 0

    def on(self, event: Event, *, epoch: int = 0) -> Fence:
        """The fence after `event`; a grant names its epoch."""
        following = TRANSITIONS[self.role].get(event)
        assert following is not None, (self.role, event)
        if event is not Event.GRANT:
            return replace(self, role=following)
        assert epoch > self.epoch, (epoch, self.epoch)
        return Fence(role=following, epoch=epoch)

    def admit(self, *, now: float, deadline: float, client_epoch: int | None) -> None:
        """Lets an owner's work through.

        Args:
            now: CLOCK_BOOTTIME, in seconds.
            deadline: until when the session may trust its last renewal, same clock.
            client_epoch: the highest epoch that the client saw; None: it has seen none.

        Raises:
            NotOwner: this replica may not act as the owner now.
        """
        if self.role is not Role.OWNER:
            raise NotOwner(f"this replica is {self.role}, not the owner", epoch=self.epoch)
        if now >= deadline:
            raise NotOwner("the session's deadline has passed", epoch=self.epoch)
        if client_epoch is not None and client_epoch > self.epoch:
            raise NotOwner(f"a newer owner exists: epoch {client_epoch}, held {self.epoch}", epoch=client_epoch)
