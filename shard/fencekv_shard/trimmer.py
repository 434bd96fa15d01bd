"""When a partition's journal is folded into the base, and trimmed by the table's history window.

The owner folds what is older than the window, journals a checkpoint, and trims behind it. Every replica does the
same once it has applied the checkpoint, and compares its own hash first. Whoever hashes its base also compares it
with its own record of what it wrote: the owner before it says anything of it.

Invariants:
  * Nothing is trimmed that is no older than the window, nor a result that a repeated request may still ask for,
    nor what a counted standby lacks; and nothing before a committed checkpoint says what the base must be.
  * All of it goes step by step, each a small transaction, with pauses in which rounds go first. A crash between
    steps loses none: the next look goes on where the last step left it.
  * Behind a checkpoint that says something else than the base here, nothing is trimmed; of a damaged base nothing
    is folded or said.
  * An idle partition has no timer, and journals no checkpoint of checkpoints.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from fencekv.clock import Clock
from fencekv.errors import FenceKVError
from fencekv_shard import limits
from fencekv_shard.base import Digest, Noted, Standing
from fencekv_shard.engine import Engine
from fencekv_shard.journal import Checkpoint, Entry
from fencekv_shard.replica import Replica
from fencekv_shard.store import CommitFailed, Corrupt, DiskFull, Unreadable
from fencekv_shard.view import Closed

logger = logging.getLogger(__name__)


class Trimmer:
    """Folds and trims, for one partition.

    Args:
        replica: gives the replica of the moment.
        engine: gives the engine while this shard is the owner.
        window_seconds: how long the history is kept; 0: for ever.
        on_standing: the replica's `standing` is a new one, or a check that was asked for found the base sound.
            Called again and again while the base is damaged.
    """

    def __init__(
        self,
        *,
        name: str,
        replica: Callable[[], Replica],
        engine: Callable[[], Engine | None],
        window_seconds: Callable[[], float],
        clock: Clock,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        on_fatal: Callable[[BaseException], None],
        on_standing: Callable[[], Awaitable[None]],
    ) -> None:
        self._name, self._replica, self._engine = name, replica, engine
        self._window_seconds, self._clock = window_seconds, clock
        self._spawn, self._on_fatal, self._on_standing = spawn, on_fatal, on_standing
        self._timer: asyncio.TimerHandle | None = None
        self._working = False
        self._stopped = False
        self._known: Replica | None = None  # whose checkpoint `_compared` is; None: none yet
        self._compared: Noted | None = None  # the checkpoint that the base was compared with; None: none
        self._differs: Noted | None = None  # the checkpoint that says something else; None: the last one does not
        self._journaled: tuple[Engine, Checkpoint] | None = None  # the last one of ours, and whose; None: none
        self._asked = False  # the base is to be compared with what was written

    def progressed(self) -> None:
        """Something was committed or applied, or this shard became the owner."""
        if self._working or self._stopped:
            return
        replica = self._replica()
        if replica.standing is Standing.DAMAGED:
            if self._timer is None:
                self._begin()
        elif self._asked or self._is_noted(replica):
            self._begin()
        elif self._timer is None:
            self._look()

    def check(self) -> None:
        """Somebody has another base: has this one compared with what was written here."""
        self._asked = True
        self.progressed()

    def changed(self) -> None:
        """The window is another one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.progressed()

    def stop(self) -> None:
        """Begins no further step."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    # -- when ---------------------------------------------------------------------------------------------------

    def _is_noted(self, replica: Replica) -> bool:
        """Whether a checkpoint was applied that is still to be compared with the base, or trimmed behind."""
        noted = replica.base.noted
        if self._known is not replica:
            # Of what was trimmed already, the base was compared before.
            self._known, self._compared = replica, None if replica.base.to_trim else noted
            self._differs = None
        if noted is None or (noted == self._differs and self._engine() is None):
            return False
        return replica.base.to_trim or (noted != self._compared and noted.checkpoint.at >= replica.base.seq)

    def _look(self) -> None:
        """Sets the timer for the next pass, if there will be anything to do in it."""
        delay = self._delay()
        if delay is None:
            return
        seconds = max(limits.TRIM_SECONDS_MIN, min(delay, limits.FOLD_LOOK_SECONDS_MAX))
        self._timer = asyncio.get_running_loop().call_later(seconds, self._looked)

    def _looked(self) -> None:
        self._timer = None
        if self._working or self._stopped:
            return
        delay = self._delay()
        if delay is not None and delay <= 0:
            self._begin()
        else:
            self.progressed()

    def _delay(self) -> float | None:
        """In how many seconds the owner should trim; None: nothing is to be trimmed, or this is not the owner."""
        window, engine, replica = self._window_seconds(), self._engine(), self._replica()
        if not window or engine is None or replica.closed:
            return None
        if self._wants_checkpoint(replica, engine):
            return 0.0
        entry = _first_worth(replica)
        if entry is None:
            return None
        spare = max(limits.TRIM_SECONDS_MIN, limits.TRIM_SHARE * window)
        now_ns = self._clock.unix_ns()
        return (_written_ns(replica, entry, now_ns) - now_ns) / 1e9 + _kept_seconds(entry, window) + spare

    def _wants_checkpoint(self, replica: Replica, engine: Engine) -> bool:
        """Whether the base is ahead of what the last checkpoint says."""
        base = replica.base
        noted_at = base.noted.checkpoint.at if base.noted is not None else -1
        said = self._said(engine)
        return base.seq > noted_at and (said is None or said.at != base.seq)

    def _said(self, engine: Engine | None) -> Checkpoint | None:
        """The last checkpoint that was journaled here by `engine`; None: none."""
        journaled = self._journaled
        return journaled[1] if journaled is not None and journaled[0] is engine else None

    # -- what ---------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._working = True
        self._spawn(self._work())

    async def _work(self) -> None:
        done = False
        replica, engine = self._replica(), self._engine()
        try:
            if replica.standing is Standing.DAMAGED:
                await self._judged()
            elif self._asked:
                await self._check(replica)
                done = True
            elif self._is_noted(replica):
                done = await self._follow_checkpoint(replica)
            elif engine is not None:
                done = await self._make_checkpoint(replica, engine)
        except (DiskFull, Closed, FenceKVError) as error:
            logger.info("%s: not trimmed: %s", self._name, error)
        except CommitFailed as error:
            self._on_fatal(error)
        except Corrupt as error:
            logger.error("%s: %s", self._name, error)
            replica.standing, self._asked = Standing.DAMAGED, False
            await self._judged()
        finally:
            self._working = False
        if self._stopped:
            return
        if done:
            self.progressed()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(limits.FOLD_AGAIN_SECONDS, self._try_again)

    async def _judged(self) -> None:
        try:
            await self._on_standing()
        except (DiskFull, Unreadable, Closed) as error:  # the replica is still there; it is looked at again
            logger.warning("%s: not made anew: %s", self._name, error)
        except CommitFailed as error:
            self._on_fatal(error)

    def _try_again(self) -> None:
        self._timer = None
        self.progressed()

    async def _check(self, replica: Replica) -> None:
        """Compares the base with what was written."""
        await self._hash(replica)
        self._asked = False
        await self._judged()

    async def _make_checkpoint(self, replica: Replica, engine: Engine) -> bool:
        """The owner's part: folds what is old enough, and journals what the base is then."""
        window, now_ns = self._window_seconds(), self._clock.unix_ns()

        def old(entry: Entry) -> bool:
            kept_ns = int(_kept_seconds(entry, window) * 1e9)
            return _written_ns(replica, entry, now_ns) + kept_ns <= now_ns

        if not self._wants_checkpoint(replica, engine) and not await self._fold(replica, _held(engine), old):
            return False
        await self._fold(replica, _held(engine), old)
        await self._say(replica, engine, await self._hash(replica))
        return True

    async def _say(self, replica: Replica, engine: Engine, found: Digest) -> None:
        """Journals what the base here is."""
        checkpoint = found.checkpoint(replica.base.seq)
        await engine.journal_checkpoint(checkpoint)
        self._journaled = (engine, checkpoint)
        replica.vouched(found.total)
        logger.info("%s: checkpoint at seq %d with %d keys", self._name, checkpoint.at, checkpoint.keys)

    async def _follow_checkpoint(self, replica: Replica) -> bool:
        """Every replica's part: has the base at the checkpoint, as it says, and trims what lies below."""
        noted = replica.base.noted
        assert noted is not None, replica.base
        at, engine = noted.checkpoint.at, self._engine()
        await self._fold(replica, at, lambda _entry: True)
        if replica.base.seq < at:
            return False  # it is being sent
        if replica.base.seq == at and noted != self._compared:
            said = self._said(engine)
            if said is not None and said.at == at and said != noted.checkpoint:
                return False  # what an earlier owner said; ours is on its way
            if said != noted.checkpoint:
                found = await self._hash(replica)
                if found.checkpoint(at) != noted.checkpoint:
                    await self._differ(replica, noted, found)
                    return True
                replica.vouched(found.total)
                if replica.standing is not Standing.SOUND:
                    replica.standing = Standing.SOUND
                    await self._judged()
        self._compared = noted
        if engine is not None and _held(engine) < at:
            return False
        await self._trim(replica, at)
        return True

    async def _differ(self, replica: Replica, noted: Noted, found: Digest) -> None:
        """The base is what was written here, and not what the checkpoint says that an owner had."""
        engine = self._engine()
        if engine is not None:
            text = "%s: an earlier owner had another base at seq %d than this one: this one counts now"
            logger.error(text, self._name, noted.checkpoint.at)
            replica.standing = Standing.SOUND
            await self._say(replica, engine, found)
            return
        text = "%s: the base at seq %d is what was written here, and not what the owner says: it is kept"
        logger.error(text, self._name, noted.checkpoint.at)
        replica.standing, self._differs = Standing.DIFFERS, noted
        await self._judged()

    async def _fold(self, replica: Replica, limit: int, old: Callable[[Entry], bool]) -> bool:
        """Folds as far as it goes; whether anything was folded."""
        folded = False
        while not self._stopped and await replica.fold_step(limit, old=old):
            folded = True
            await asyncio.sleep(limits.FOLD_PAUSE_SECONDS)
        return folded

    async def _trim(self, replica: Replica, at: int) -> None:
        """Trims up to `at`."""
        more = True
        while more and not self._stopped:
            more = await replica.trim_step(at)
            await asyncio.sleep(limits.FOLD_PAUSE_SECONDS)

    async def _hash(self, replica: Replica) -> Digest:
        """What the base is, page by page; nobody else folds it meanwhile.

        Raises:
            Corrupt: it is not what was written here.
        """
        digest, after, at = Digest(), b"", replica.base.seq
        while rows := replica.base_page(after):
            digest.add(rows)
            after = rows[-1][0]
            await asyncio.sleep(limits.FOLD_PAUSE_SECONDS)
        assert replica.base.seq == at, (replica.base, at)
        if replica.base.total not in {None, digest.total}:
            raise Corrupt(f"the base at seq {at} is not what was written")
        return digest


def _kept_seconds(entry: Entry, window: float) -> float:
    """How long an entry is kept. The result of a request with a key can be asked for again for a day."""
    return window if entry.idempotency is None else max(window, limits.IDEMPOTENCY_SECONDS_MIN)


def _written_ns(replica: Replica, entry: Entry, now_ns: int) -> int:
    """When an entry was written, at the latest, in unix ns.

    One from the future was written by a clock that was wrong: what came behind it tells more, some of it is asked.
    """
    written, ahead, last = entry.unix_ns, 1, replica.last.seq
    while written > now_ns and entry.seq < last:
        seq = min(entry.seq + ahead, last)
        written = min(written, replica.entry(seq).unix_ns)
        if seq == last:
            break
        ahead *= 2
    return written


def _first_worth(replica: Replica) -> Entry | None:
    """The first entry above the base that is no checkpoint; None: there is none."""
    for seq in range(replica.base.seq + 1, replica.last.seq + 1):
        entry = replica.entry(seq)
        if not isinstance(entry.operations, Checkpoint):
            return entry
    return None


def _held(engine: Engine) -> int:
    """Up to where every counted standby has the journal."""
    replica = engine.replica
    return min((engine.confirmed.get(member, -1) for member in engine.counted), default=replica.commit_seq)
