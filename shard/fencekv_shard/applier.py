"""When the derived tables of a replica follow its journal.

Below `APPLY_FILL` of the overlay one waits for a quiet moment: a step holds up the rounds for its commit. Above
it, steps and rounds take turns, so that the overlay stays within its limit.

Few entries wait longer, for more to come: a step costs a commit, as each of their rounds did, and where many
partitions are written to now and then every second fsync would be such a step's. How long they wait differs by
partition: when a shard has started, or another one died, a thousand begin to wait at once.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Callable, Coroutine
from typing import Any

from fencekv_shard import limits
from fencekv_shard.replica import Replica
from fencekv_shard.store import CommitFailed, DiskFull
from fencekv_shard.view import Closed

logger = logging.getLogger(__name__)


class Applier:
    """Applies what is committed, for one partition.

    Args:
        replica: gives the replica of the moment.
        on_applied: called when some steps have ended.
    """

    def __init__(
        self,
        *,
        name: str,
        replica: Callable[[], Replica],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        on_fatal: Callable[[BaseException], None],
        on_applied: Callable[[], None],
    ) -> None:
        self._name, self._replica, self._on_applied = name, replica, on_applied
        self._spawn, self._on_fatal = spawn, on_fatal
        self._timer: asyncio.TimerHandle | None = None
        self._seen = -1  # commit_seq when the timer was set
        self._patient = False  # the timer waits for few entries to become more
        share = zlib.crc32(name.encode()) / (1 << 32)
        self._few_seconds = limits.APPLY_FEW_SECONDS * (1 + share) / 2
        self._applying = False
        self._stopped = False

    def progressed(self) -> None:
        """commit_seq rose."""
        replica = self._replica()
        if self._applying or self._stopped or not replica.needs_apply:
            return
        if replica.overlay_fill >= limits.APPLY_FILL:
            self._begin(everything=False)
        else:
            self._wait_if_need_be()

    def stop(self) -> None:
        """Begins no further step."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    @property
    def _few(self) -> bool:
        replica = self._replica()
        waiting = replica.commit_seq - replica.applied_seq
        return waiting <= limits.APPLY_FEW_ENTRIES and replica.overlay_bytes <= limits.APPLY_FEW_BYTES

    def _wait_if_need_be(self) -> None:
        if self._timer is None or (self._patient and not self._few):
            self._wait(patient=self._few)

    def _wait(self, *, patient: bool) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._seen, self._patient = self._replica().commit_seq, patient
        seconds = self._few_seconds if self._patient else limits.APPLY_IDLE_SECONDS
        self._timer = asyncio.get_running_loop().call_later(seconds, self._waited)

    def _waited(self) -> None:
        self._timer = None
        if self._applying or self._stopped:
            return
        if self._patient or self._replica().commit_seq == self._seen:
            self._begin(everything=True)
        else:
            self._wait(patient=False)  # not quiet yet

    def _begin(self, *, everything: bool) -> None:
        self._applying = True
        self._spawn(self._apply(everything=everything))

    async def _apply(self, *, everything: bool) -> None:
        failed = False
        try:
            while not self._stopped and (everything or self._replica().overlay_fill >= limits.APPLY_FILL):
                if await self._replica().apply_step() == 0:
                    break
        except (DiskFull, Closed) as error:
            logger.warning("%s: not applied: %s", self._name, error)
            failed = True
        except CommitFailed as error:
            self._on_fatal(error)
        finally:
            self._applying = False
        self._on_applied()
        if self._stopped or not self._replica().needs_apply:
            return
        if failed:
            self._wait(patient=False)
        else:
            self._wait_if_need_be()
