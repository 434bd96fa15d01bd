"""What a partition does about a base that is not what somebody says it must be.

A checkpoint tells what the base of the owner that wrote it was, and that one can be the wrong one. So each replica
judges its own base by its own record of what it wrote (`Base.total`), and by nothing else.

| the base here | the owner | a standby |
|---|---|---|
| is not what was written | gives the partition to a standby, if one is there | is set aside and seeded |
| is; the other's is another one | goes on; the other leaves the set, down to minInSync | says so, keeps it all |

Invariants:
  * Nothing is set aside on the word of another replica.
"""

from __future__ import annotations

import logging
from typing import Protocol

from fencekv_shard.base import Standing
from fencekv_shard.folder import Seed
from fencekv_shard.owned import Owned
from fencekv_shard.replica import Replica

logger = logging.getLogger(__name__)


class Holder(Protocol):
    """A partition on this shard."""

    replica: Replica
    owned: Owned | None  # None: it is not the owner

    @property
    def name(self) -> str:
        """The KVPartition's name."""
        ...

    async def move(self, target: str = "") -> bool:
        """Gives the partition away."""
        ...

    async def reseed(self, epoch: int, seed: Seed | None = None) -> None:
        """Sets the replica aside."""
        ...

    def follow_anew(self) -> None:
        """Subscribes once more, if there is an owner to follow."""
        ...


async def settle(holder: Holder) -> None:
    """Does what follows from the standing of the base, which is new or could not be acted on before.

    Raises:
        DiskFull, Unreadable, Closed: the replica is as it was; to be tried again.
        CommitFailed: the process must end.
    """
    owned, standing = holder.owned, holder.replica.standing
    if owned is not None and standing is Standing.DAMAGED:
        if owned.has_standby:
            logger.error("%s: its base is damaged: it goes to a standby", holder.name)
            await holder.move(owned.doubter())
        elif not owned.told_damaged:
            owned.told_damaged = True
            text = "%s: its base is damaged and no standby is here: it serves on, trims nothing, and seeds nobody"
            logger.error(text, holder.name)
        return
    if owned is not None:
        owned.sound()
        return
    if standing is Standing.DAMAGED:
        await holder.reseed(holder.replica.promised)
    holder.follow_anew()
