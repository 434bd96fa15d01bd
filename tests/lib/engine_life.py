"""One life of an owner's process, from its replica's opening to its death, with disk and clock in a test's hands.

Everything that it tells its clients is compared with the model in the moment in which it is told.

Invariants:
  * Nothing happens outside of `turn` and `quiet`: a life has its own event loop, no timer and no thread.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lmdb
from engine_model import Asked, Model
from engines import Term, spec
from memory_kube import HandClock
from storage import UID, outcome

from fencekv.errors import Exhausted, FenceKVError, Invalid, NotOwner, Unavailable, Unknown
from fencekv_shard import limits
from fencekv_shard.api import Committed, Durability, Options
from fencekv_shard.base import Base, Digest
from fencekv_shard.engine import Engine
from fencekv_shard.executor import Done, Work
from fencekv_shard.replica import Replica
from fencekv_shard.state import State
from fencekv_shard.store import CommitFailed, DiskFull, Prepared
from fencekv_shard.transaction import Transaction
from fencekv_shard.view import Closed

B, C = "sample-1/b", "sample-2/c"
QUIET_TURNS_MAX = 5000


@dataclass(slots=True)
class Disk:
    """What the disk does; it outlives the processes. `state`: what lies on it."""

    full: bool = False  # no room for a write that begins
    reserve: bool = False  # room for deletes only
    commit: str = ""  # what the next commit does: "full", "lost" (fails), "kept" (fails, yet it is done)
    state: State | None = None  # None: nobody looked yet
    base: Base | None = None

    @property
    def cramped(self) -> bool:
        """Whether a refusal for want of room is right."""
        return self.full or self.reserve or self.commit == "full"

    def require_room(self, *_args: object) -> None:
        """Stands in for the store's look at the file system."""
        if self.full:
            raise DiskFull("no room")

    def in_reserve(self, *_args: object) -> bool:
        """Stands in for the store's look at the file system."""
        return self.reserve


class FailingTransaction:
    """An LMDB transaction whose commit fails."""

    def __init__(self, transaction: Any, how: str) -> None:
        self._transaction, self._how = transaction, how

    def commit(self) -> None:
        if self._how == "kept":
            self._transaction.commit()
        else:
            self._transaction.abort()
        raise lmdb.MapFullError("full") if self._how == "full" else OSError(errno.EIO, "input/output error")


class Gate:
    """An executor that is open, or holds what comes: before it is done, or after it, before anybody is told."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self.holds = ""  # "", "before", "after"
        self.broken = False  # a commit has failed
        self._held: list[tuple[Work, Done, tuple[Any, BaseException | None] | None]] = []

    @property
    def holding(self) -> bool:
        return bool(self._held)

    def submit(self, work: Work, done: Done) -> None:
        if self.holds == "before":
            self._held.append((work, done, None))
            return
        told = self._do(work)
        if self.holds == "after":
            self._held.append((work, done, told))
        else:
            asyncio.get_running_loop().call_soon(done, *told)

    def release(self, loop: asyncio.AbstractEventLoop) -> None:
        self.holds = ""
        held, self._held = self._held, []
        for work, done, told in held:
            loop.call_soon(done, *(told or self._do(work)))

    def die(self, *, kept: bool) -> None:
        """The process dies; what was on the way to the disk arrives there, or not."""
        held, self._held = self._held, []
        for work, _, told in held:
            if told is None and kept:
                self._do(work)

    def _do(self, work: Work) -> tuple[Any, BaseException | None]:
        prepared = getattr(work, "__self__", None)
        if not isinstance(prepared, Prepared):
            return outcome(work)
        how, self._disk.commit = self._disk.commit, ""
        if how:
            prepared._txn = FailingTransaction(prepared._txn, how)
            self.broken |= how != "full"
        told = outcome(work)
        if how in ("", "kept"):
            self._disk.state, self._disk.base = prepared.state, prepared._base or self._disk.base
        return told


class Client:
    """`api.Waiter`: compares what it is told with the model."""

    def __init__(self, life: Life, asked: Asked) -> None:
        self._life, self._asked = life, asked

    def committed(self, answer: Committed) -> None:
        self._life.hear(lambda: self._life.told(self._asked, answer))

    def refused(self, error: FenceKVError) -> None:
        self._life.hear(lambda: self._life.refused(self._asked, error))


@dataclass(slots=True, kw_only=True)
class Life:
    """A process: its replica, and an engine for each epoch that it was granted."""

    loop: asyncio.AbstractEventLoop
    clock: HandClock
    model: Model
    disk: Disk
    gate: Gate
    replica: Replica
    durability: Durability
    session: Term
    engine: Engine | None = None  # None: it owns nothing
    fatal: list[BaseException] = field(default_factory=list)
    findings: list[object] = field(default_factory=list)  # what must never be, where nobody could raise it
    untold: set[Asked] = field(default_factory=set)
    confirmed: dict[str, int] = field(default_factory=dict)  # by those whose confirmation is needed
    leaving: int | None = None  # the entry that takes C out of the set, once B has it; None: C is not leaving
    acknowledged_seq: int = -1  # what a client was told rests on
    confirmed_seq: int = -1  # each standby that counted had confirmed so much under this epoch, at some time
    opened_seq: int = -1  # what was committed before this epoch
    copied_at: float = 0.0  # when a standby had confirmed everything last
    changing: bool = False  # the in-sync set
    cramped: bool = False  # there was no room on the disk, or little, at some time since nobody waited
    giving_up: bool = False  # on those who have waited for too long
    outdone: bool = False  # a higher epoch is promised here than the engine's
    dead: bool = False

    @classmethod
    def begin(
        cls, folder: Path, model: Model, disk: Disk, durability: Durability, new_id: Callable[[], str]
    ) -> Life:
        """Opens the replica, which must hold exactly what lies on the disk."""
        loop, gate, clock = asyncio.new_event_loop(), Gate(disk), HandClock()
        replica = loop.run_until_complete(Replica.open(folder, UID, executor=gate, new_id=new_id))
        assert replica.last.seq >= model.last_seq, f"lost from {replica.last.seq} to {model.last_seq}"
        life = cls(
            loop=loop,
            clock=clock,
            model=model,
            disk=disk,
            gate=gate,
            replica=replica,
            durability=durability,
            session=Term(clock.now() + 4.0),
        )
        loop.set_exception_handler(lambda _loop, context: life.findings.append(context))
        before = disk.state
        if before is not None:
            assert (replica._state, replica.base) == (before, disk.base), (replica._state, before)
        disk.state, disk.base = replica._state, replica.base
        model.floor = replica.base.seq
        life.follow()
        for asked in model.waiting:
            assert asked.gone, asked
        model.waiting.clear()
        return life

    # -- time

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Runs something to its end; the gate must be open."""
        task = self.loop.create_task(work)
        self.turn(0)
        assert task.done(), f"it waits for ever: {task}"
        return task.result()

    def do(self, step: Callable[[], Any]) -> None:
        """Does something on the loop, within one turn of it."""

        async def within() -> None:
            step()

        self.loop.run_until_complete(within())

    def turn(self, count: int) -> None:
        """Lets so many turns of the loop pass; 0: until nothing can run any more."""
        self.loop.run_until_complete(self._turns(count) if count else self._until_quiet())

    async def _turns(self, count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    async def _until_quiet(self) -> None:
        ready: Any = self.loop._ready  # type: ignore[attr-defined]
        for _ in range(QUIET_TURNS_MAX):
            await asyncio.sleep(0)
            if not ready:
                return
        raise AssertionError("it never gets quiet")

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Begins something that may need the gate; what the world may do to it is no failure."""

        async def guarded() -> None:
            try:
                await work
            except CommitFailed as error:
                self.fatal.append(error)
            except (FenceKVError, DiskFull, Closed):
                pass

        return self.loop.create_task(guarded())

    # -- ownership

    def own(self, epoch: int) -> None:
        """A new epoch is granted: promised, opened, confirmed by B. The gate must be open and the disk well."""
        self.run(self.replica.promise(epoch))
        self.opened_seq, self.confirmed_seq = self.replica.commit_seq, -1
        engine = Engine(
            replica=self.replica,
            epoch=epoch,
            member=f"sample-0/{self.replica.replica_id}",
            session=self.session,
            clock=self.clock,
            spec=spec(durability=self.durability),
            on_growth=lambda: None,
            on_deposed=self._deposed,
            on_fatal=self.fatal.append,
        )
        self.engine, self.confirmed, self.leaving, self.changing = engine, {B: -1}, None, False
        self.outdone = False
        self.session.deadline = self.clock.now() + 4.0
        opening = engine.open(session="s", members=self.members, set_version=self.replica.set_version + 1)
        task = self.loop.create_task(opening)
        self.turn(0)
        self.do(lambda: self.confirm(B, 0))
        self.turn(0)
        task.result()
        self.follow()

    @property
    def epoch(self) -> int:
        """The engine's; 0: there is none."""
        return self.engine.epoch if self.engine is not None else 0

    def _deposed(self) -> None:
        assert self.outdone, "deposed, and nothing newer was promised"

    @property
    def members(self) -> tuple[str, ...]:
        return (f"sample-0/{self.replica.replica_id}", *self.confirmed)

    def depose(self) -> None:
        """The engine ends; what is being written may still become durable."""

        def stop() -> None:
            assert self.engine is not None
            engine, self.engine = self.engine, None
            engine.stop(NotOwner("another session owns the partition"))

        self.do(stop)

    def forget(self) -> None:
        """Everybody of the epoch before was told something, and nothing of it is under way any more."""
        assert not self.untold, [asked.actor for asked in self.untold]
        self.follow()
        assert all(asked.gone for asked in self.model.waiting), self.model.waiting
        self.model.waiting.clear()

    def confirm(self, member: str, back: int) -> None:
        """A standby has everything but the last `back` entries."""
        if self.engine is None or member not in self.confirmed:
            return
        seq = self.replica.last.seq - back
        self.confirmed[member] = max(seq, self.confirmed[member])
        self._take_out()
        self.confirmed_seq = max(self.confirmed_seq, min(self.confirmed.values()))
        if back == 0:
            self.copied_at = self.clock.now()
        self.engine.confirm(member, seq)

    def change_set(self) -> None:
        """C joins the set, or leaves it."""
        engine = self.engine
        assert engine is not None
        if self.changing or engine.relaxing:
            return
        self.changing = True
        if C in self.confirmed:
            engine.standbys_in_set = 1
            self.spawn(self._leave(engine))
        else:
            engine.standbys_in_set, self.confirmed[C] = 2, -1
            engine.count([C])
            self.spawn(self._record_set(engine, self.members))

    async def _leave(self, engine: Engine) -> None:
        seq = await self._record_set(engine, self.members[:2])
        if engine is self.engine:
            self.leaving = seq
            self._take_out()
            engine.relax(seq=seq, standbys=[B])

    def _take_out(self) -> None:
        """C need not confirm any more once B has the entry that says so."""
        if self.leaving is not None and self.confirmed[B] >= self.leaving:
            del self.confirmed[C]
            self.leaving = None
            self.confirmed_seq = max(self.confirmed_seq, self.confirmed[B])

    async def _record_set(self, engine: Engine, members: tuple[str, ...]) -> int:
        try:
            return await self._journaled(engine, engine.record_set(members, self.replica.set_version + 1))
        finally:
            self.changing = False

    async def _journaled(self, engine: Engine, work: Awaitable[int]) -> int:
        """Waits for an entry of the engine's own."""
        marker, waiting = Asked("", engine.epoch, None), self.model.waiting
        waiting.insert(len(waiting) - len(engine._pipeline._queue), marker)  # those without room come behind it
        try:
            return await work
        except FenceKVError:
            marker.gone = True
            if marker in waiting:
                waiting.remove(marker)
            raise

    # -- the base

    async def fold(self, limit: int) -> None:
        """Folds one step; a checkpoint says so if the whole history up to `limit` is folded then."""
        assert not self.untold, "whose answer would depend on what is forgotten"
        replica, engine = self.replica, self.engine
        try:
            if await replica.fold_step(limit, old=lambda _entry: True) and engine is not None:
                digest = Digest()
                digest.add(replica.base_page(b""))
                await self._journaled(engine, engine.journal_checkpoint(digest.checkpoint(replica.base.seq)))
        finally:
            self.model.floor = replica.base.seq

    # -- requests

    def ask(self, asked: Asked, transaction: Transaction) -> None:
        """Has a request taken, or refused at once."""
        engine = self.engine
        assert engine is not None
        if not self.untold:
            self.cramped = False
        self.cramped |= self.disk.cramped
        options = Options(durability=Durability.REPLICATED if asked.replicated else None)
        self.model.waiting.append(asked)
        self.untold.add(asked)
        try:
            engine.begin(transaction, options, Client(self, asked))
        except FenceKVError as error:
            self.refused(asked, error)

    def give_up(self) -> None:
        """Whoever has waited for too long is told so."""
        if self.engine is not None:
            self.giving_up = True
            self.engine.give_up_overdue()
            self.giving_up = False

    def follow(self) -> None:
        """The model follows what is durable here."""
        if not self.replica.closed:
            while self.model.last_seq < self.replica.last.seq:
                self.model.follow(self.replica.entry(self.model.last_seq + 1))

    def hear(self, look: Callable[[], None]) -> None:
        """Looks at what a client is told; the engine takes what is raised there for its own."""
        if self.dead:
            return
        try:
            look()
        except AssertionError as error:
            self.findings.append(error)

    def told(self, asked: Asked, answer: Committed) -> None:
        """Holds an answer against the model."""
        self._close(asked)
        engine, model = self.engine, self.model
        assert engine is not None
        assert engine.epoch == asked.epoch
        self.follow()
        model.settle(asked)
        want = model.outcomes.pop(asked.actor)
        assert want.answer is not None, f"a key of another request: {asked}"
        assert (answer.effect.succeeded, answer.effect.results) == want.answer, (asked, answer, want)
        assert answer.version == want.version, (asked, answer, want)
        assert answer.token == model.token(want.needs_seq), (asked, answer, want)
        self._check_acknowledged(asked, want.needs_seq)

    def _check_acknowledged(self, asked: Asked, seq: int) -> None:
        assert self.clock.now() < self.session.deadline, asked
        assert seq <= self.replica.commit_seq, (asked, seq)
        if asked.replicated or self.durability is Durability.REPLICATED:
            assert seq <= self.confirmed_seq, (asked, seq, self.confirmed)
        self.acknowledged_seq = max(seq, self.acknowledged_seq)

    def refused(self, asked: Asked, error: FenceKVError) -> None:
        """Holds a refusal against what the world is like."""
        self._close(asked)
        self.follow()
        if isinstance(error, Unknown):
            asked.gone = True
            return
        if isinstance(error, Invalid):
            self.model.settle(asked)
            want = self.model.outcomes.pop(asked.actor)
            assert want.answer is None, (asked, error)
            self._check_acknowledged(asked, want.needs_seq)
            return
        assert asked in self.model.waiting, f"refused, and yet it is done: {asked}, {error}"
        self.model.waiting.remove(asked)
        assert self._is_right(error), (asked, error)

    def _is_right(self, error: FenceKVError) -> bool:
        if isinstance(error, Exhausted):
            bound = min(limits.QUEUE_TRANSACTIONS_MAX, limits.UNCOMMITTED_TRANSACTIONS_MAX)
            return self.cramped or self.disk.cramped or len(self.untold) >= bound
        if isinstance(error, NotOwner):
            return (
                self.engine is None
                or self.gate.broken
                or self.outdone
                or self.clock.now() >= self.session.deadline
            )
        assert isinstance(error, Unavailable), error
        return self.giving_up or self.clock.now() - self.copied_at > 1.0

    def _close(self, asked: Asked) -> None:
        assert asked in self.untold, f"told twice: {asked}"
        self.untold.discard(asked)

    # -- its end

    def die(self, *, kept: bool) -> None:
        """The process is killed; what was on the way to the disk arrives there, or not."""
        for asked in self.model.waiting:
            asked.gone = True
        self.dead = True
        self.gate.die(kept=kept)
        self.replica.abandon()
        self._end()

    def close(self) -> None:
        """The process ends in order."""
        self.dead = True
        self.run(self.replica.close())
        self._end()

    def _end(self) -> None:
        self.loop.set_exception_handler(lambda _loop, _context: None)  # nobody is there to hear of it
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.turn(50)
        self.loop.close()
