"""One replica of a partition: its store, the overlay of what is not applied yet, and where its journal ends.

The owner's engine and a standby's replication both work on this. It decides nothing about ownership.

Invariants:
  * What the properties show is durable (commit_seq and what is staged excepted). They change on the event loop,
    after the write.
  * One write transaction at a time, and a write once begun is carried to its end, also if its caller is
    cancelled: memory never lags behind the disk.
  * What is staged, and on no disk yet, lies in the overlay above last.seq; only a round's evaluation sees it.
  * applied_seq <= commit_seq <= last.seq; what is applied can no longer be cut off.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

from fencekv.codec import encode
from fencekv.errors import Invalid
from fencekv_shard import folder as files
from fencekv_shard import journal, limits
from fencekv_shard.api import Change
from fencekv_shard.audit import audit, checked_tail, peaks_at
from fencekv_shard.executor import Executor, Lane, run
from fencekv_shard.folder import Lock
from fencekv_shard.journal import Entry, InSync
from fencekv_shard.overlay import Overlay
from fencekv_shard.reader import Reader
from fencekv_shard.rows import batch_of
from fencekv_shard.state import NOTHING, EpochEnd, Growth, Position, State, successor_problem, truncated
from fencekv_shard.store import BelowApplied, Corrupt, Prepared, PromiseMoved, StalePromise, StorageError, Store
from fencekv_shard.transaction import Record

T = TypeVar("T")


class Closed(StorageError):
    """The replica was closed before the write began: nothing was done."""


class Replica:
    """An open replica. What is no coroutine is quick enough for the event loop."""

    discard = staticmethod(files.discard)
    retain = staticmethod(files.retain)

    def __init__(
        self, *, folder: Path, uid: str, executor: Executor, lock: Lock, store: Store, tail: Sequence[Entry]
    ) -> None:
        self.uid = uid
        self._folder = folder
        self._executor = executor
        self._lock = lock
        self._store = store
        self._state = store.state
        self._commit_seq = store.state.commit_seq
        self._overlay = Overlay(store.state.applied_seq)
        self._overlay.extend(tail)
        self._reader = Reader(store, self._overlay)
        self._lane = Lane()
        self._tasks: set[asyncio.Task[object]] = set()
        self._closed = False

    @classmethod
    async def open(cls, folder: Path, uid: str, *, executor: Executor, new_id: Callable[[], str]) -> Self:
        """Opens the replica, or creates an empty one; checks the journal above applied_seq and replays it.

        Raises:
            FolderInUse: somebody has it open.
            UnknownFormat: what lies there is not ours.
            Corrupt: the disk contradicts its hashes; `reseed` is the way on.
            DiskFull: there is no room for a new one.
        """
        return await cls._opened(folder, uid, executor, partial(files.open_or_create, folder, uid, new_id=new_id))

    @classmethod
    async def reseed(
        cls, folder: Path, uid: str, *, executor: Executor, new_id: Callable[[], str], promised: int
    ) -> Self:
        """Sets the whole replica aside and opens an empty one, with a new id and the highest promise known.

        The old one must be closed.

        Raises:
            FolderInUse, DiskFull: the old one is still in place.
        """
        make = partial(files.replace_environment, folder, uid, new_id=new_id, promised=promised)
        return await cls._opened(folder, uid, executor, make)

    @classmethod
    async def _opened(cls, folder: Path, uid: str, executor: Executor, make: Callable[[], Store]) -> Self:
        def work() -> tuple[Lock, Store, list[Entry]]:
            folder.mkdir(parents=True, exist_ok=True)
            lock = Lock.take(folder, uid)
            try:
                store = make()
                try:
                    return lock, store, checked_tail(store)
                except BaseException:
                    store.close()
                    raise
            except BaseException:
                lock.release()
                raise

        def give_back(task: asyncio.Task[tuple[Lock, Store, list[Entry]]]) -> None:
            if not task.cancelled() and task.exception() is None:
                lock, store, _ = task.result()
                store.close()
                lock.release()

        opening = asyncio.ensure_future(run(executor, work))
        try:
            lock, store, tail = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(give_back)
            raise
        return cls(folder=folder, uid=uid, executor=executor, lock=lock, store=store, tail=tail)

    async def close(self) -> None:
        """Ends the replica, after the write that is under way, and gives its lock back."""

        async def step() -> None:
            self._closed = True
            await run(self._executor, self._store.close)
            self._lock.release()

        if not self._closed:
            await self._exclusively(step)

    def abandon(self) -> None:
        """Ends the replica at once, as the death of its process would.

        Only where no work can be running in a thread: writes that wait find it closed.
        """
        if not self._closed:
            self._closed = True
            self._store.close()
            self._lock.release()

    # -- what it knows ---------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether it was closed: nothing can be read or written any more."""
        return self._closed

    @property
    def replica_id(self) -> str:
        """The id made when it was created or seeded anew."""
        return self._state.replica_id

    @property
    def promised(self) -> int:
        """The highest epoch promised."""
        return self._state.promised

    @property
    def last(self) -> Position:
        """The last entry's epoch, seq and txid; seq -1: there is none."""
        return self._state.last

    @property
    def chain(self) -> bytes:
        """The chain hash of the last entry."""
        return self._state.chain

    @property
    def commit_seq(self) -> int:
        """The highest seq known to be committed."""
        return self._commit_seq

    @property
    def applied_seq(self) -> int:
        """Up to here the derived tables hold everything."""
        return self._state.applied_seq

    @property
    def set_version(self) -> int:
        """The version of the in-sync set in the journal."""
        return self._state.set_version

    @property
    def members(self) -> tuple[str, ...]:
        """The in-sync set in the journal."""
        return self._state.members

    @property
    def closed_epoch(self) -> int:
        """No append under this epoch or a lower one."""
        return self._state.closed_epoch

    @property
    def ends(self) -> tuple[EpochEnd, ...]:
        """Where earlier epochs ended."""
        return self._state.ends

    @property
    def known_epoch(self) -> int:
        """The highest epoch that it knows of."""
        return max(self.promised, self.last.epoch, self.closed_epoch)

    @property
    def needs_apply(self) -> bool:
        """Whether an apply step has something to do."""
        return self.commit_seq > self.applied_seq

    @property
    def overlay_full(self) -> bool:
        """Whether writers should wait for apply steps."""
        return self._overlay.full

    @property
    def overlay_fill(self) -> float:
        """How full the overlay is, 1.0: writers wait."""
        return self._overlay.fill

    def in_reserve(self) -> bool:
        """Whether the disk is so full that only what frees room, or keeps ownership going, may be written."""
        return not self._closed and self._store.in_reserve()

    def root(self) -> bytes:
        """The root of the Merkle mountain range over the whole journal."""
        return journal.root(self._state.peaks)

    # -- writing ---------------------------------------------------------------------------------------------

    async def promise(self, epoch: int) -> None:
        """Promises not to take anything of a lower epoch; durable when it returns.

        Raises:
            StalePromise: a higher epoch was promised.
        """

        async def step() -> None:
            if epoch < self.promised:  # raised by another task meanwhile
                raise StalePromise(epoch, self.promised)
            if epoch > self.promised:
                self._state = await self._written(self._store.promise(epoch))

        if epoch < self.promised:
            raise StalePromise(epoch, self.promised)
        if epoch > self.promised:
            await self._exclusively(step)

    async def close_epoch(self, epoch: int) -> None:
        """Ends an epoch here for good: no append under it any more; durable when it returns."""

        async def step() -> None:
            if epoch > self.closed_epoch:
                self._state = await self._written(self._store.close_epoch(epoch))

        await self._exclusively(step)

    async def append_own(self, entries: Sequence[Entry], *, epoch: int) -> None:
        """Appends entries that the owner of `epoch` made, numbered from last.seq + 1; durable when it returns.

        Raises:
            PromiseMoved: another epoch is promised, or this one is closed. Nothing was written.
            DiskFull: nothing was written.
            CommitFailed: whether they were written is not known.
        """
        assert all(entry.epoch == epoch for entry in entries), epoch
        pairs = [(entry, journal.encode_entry(entry)) for entry in entries]

        async def step() -> None:
            await self._append(pairs, epoch)

        if pairs:
            await self._exclusively(step)

    # -- rounds of an owner: staged first, then appended by callback -------------------------------------------

    def stage(self, entry: Entry, growth: Growth) -> None:
        """Adds an entry to a round that is being built. Reads of later requests see it, nobody else does."""
        growth.add(entry, journal.encode_entry(entry))
        self._overlay.add(entry)

    def unstage(self, seq: int) -> None:
        """Forgets what was staged above `seq`."""
        assert seq >= self.last.seq, (seq, self.last)
        if self._overlay.last_seq > seq:
            self._overlay.cut(seq)

    def read_staged(self, key: str, at: int | None = None) -> Record | None:
        """What a key holds after all that is staged, or at a seq of it."""
        return self._reader.read(key, self._overlay.last_seq if at is None else at)

    def entry_staged(self, seq: int) -> Entry:
        """An entry, one that is staged included."""
        return self._reader.entry(seq)

    def growth(self) -> Growth:
        """Nothing yet, behind what is durable. Nothing may be staged or be under way."""
        assert self._overlay.last_seq == self.last.seq, (self._overlay.last_seq, self.last)
        return Growth.behind(self._state)

    async def settled(self) -> None:
        """Waits until what is being written now has ended."""
        await self._lane.entered()
        self._lane.leave()

    def enter(self, begin: Callable[[], None]) -> None:
        """Calls `begin` once nothing is being written here; it must come to `append_staged` or `leave`."""
        self._lane.enter(begin)

    def leave(self) -> None:
        """Lets the next write begin."""
        self._lane.leave()

    def append_staged(self, growth: Growth, *, epoch: int, done: Callable[[BaseException | None], None]) -> None:
        """Appends a round, from within `enter`; then leaves, and calls `done` on the loop.

        `done` gets None, or PromiseMoved, DiskFull, Closed, Corrupt (nothing was written), or CommitFailed.
        """

        def finished(state: State | None, error: BaseException | None) -> None:
            if error is None:
                assert state is not None
                self._state = state
            self._lane.leave()
            done(error)

        try:
            if self._closed:
                raise Closed(f"{self.uid}: closed")
            self._check_promise(epoch)
            state = growth.onto(self._state, commit_seq=self._commit_seq)
            prepared = self._store.append(growth.records, state, promised=epoch)
        except StorageError as error:
            finished(None, error)
        else:
            self._executor.submit(prepared.commit, finished)

    # -- rounds of another owner --------------------------------------------------------------------------------

    async def append_copied(self, raw: Sequence[bytes], *, epoch: int, chain: bytes | None = None) -> int:
        """Appends entries as the owner of `epoch` sent them; durable when it returns. Gives the last one's seq.

        `chain`: the chain hash that the owner has at the last of them; None: it was not told.

        Raises:
            Invalid: one is malformed, does not follow, or has another hash than at the owner. Nothing was written.
            PromiseMoved, DiskFull, CommitFailed: as `append_own`.
        """
        pairs = [(journal.decode_entry(data), data) for data in raw]
        assert pairs, "nothing to append"

        async def step() -> int:
            last = self.last
            for entry, _ in pairs:
                problem = successor_problem(last, entry)
                if not problem and entry.epoch > epoch:
                    problem = f"epoch {entry.epoch} of seq {entry.seq} is above the sender's {epoch}"
                if problem:
                    raise Invalid(f"entry: {problem}", field="entry")
                last = Position(entry.epoch, entry.seq, entry.txid)
            await self._append(pairs, epoch, chain=chain)
            return last.seq

        return await self._exclusively(step)

    async def _append(
        self, pairs: Sequence[tuple[Entry, bytes]], epoch: int, *, chain: bytes | None = None
    ) -> None:
        self._check_promise(epoch)
        assert self._overlay.last_seq == self.last.seq, (self._overlay.last_seq, self.last)
        growth = Growth.behind(self._state)
        for entry, data in pairs:
            growth.add(entry, data)
        if chain is not None and chain != growth.chain:
            raise Invalid("entries: their chain hash is not the one that the owner has", field="entries")
        state = growth.onto(self._state, commit_seq=self._commit_seq)
        self._state = await self._written(self._store.append(growth.records, state, promised=epoch))
        self._overlay.extend(entry for entry, _ in pairs)

    def _check_promise(self, epoch: int) -> None:
        """Cheap; the store asks the disk once more."""
        if self.promised != epoch or self.closed_epoch >= epoch:
            raise PromiseMoved(epoch, promised=self.promised, closed=self.closed_epoch)

    async def _written(self, prepared: Prepared) -> State:
        return await run(self._executor, prepared.commit)

    def commit(self, seq: int) -> None:
        """Entries up to `seq` are committed. Held in memory; written with the next append or apply step."""
        assert seq <= self.last.seq, (seq, self.last)
        self._commit_seq = max(self._commit_seq, seq)

    async def apply_step(self) -> int:
        """Brings the derived tables further up to commit_seq, by a bounded step; how many entries remain.

        Raises:
            DiskFull: nothing was written. CommitFailed: the process must end.
        """

        async def step() -> int:
            entries = self._overlay.step(self._commit_seq)
            if entries:
                applied = entries[-1].seq
                state = replace(self._state, applied_seq=applied, commit_seq=self._commit_seq)
                self._state = await self._written(self._store.apply(batch_of(entries), state))
                self._overlay.drop_applied(applied)
            return self._commit_seq - self.applied_seq

        return await self._exclusively(step)

    async def truncate(self, seq: int, *, epoch: int) -> Path | None:
        """Cuts off the entries above `seq` and sets them aside in a file: its path; None: there were none.

        The file is a sequence of CBOR byte strings, a record each.

        Raises:
            PromiseMoved: `epoch` is not the promised one. Nothing was done.
            BelowApplied: the derived tables hold some of them. Nothing was done; seed anew.
            DiskFull: the journal is whole.
        """
        assert seq >= -1, seq

        async def step() -> Path | None:
            if self.promised != epoch:
                # A newer owner, perhaps this replica itself, has come since the one of `epoch` asked for this.
                raise PromiseMoved(epoch, promised=self.promised, closed=self.closed_epoch)
            if seq >= self.last.seq:
                return None
            if seq < self.applied_seq:
                raise BelowApplied(f"cut at {seq}, applied up to {self.applied_seq}")
            cut = self._overlay.above(seq)
            last = self.position_at(seq)  # here, for it may fill the loop's cache
            path, state = await run(self._executor, lambda: self._set_aside(last, cut))
            self._state = await self._written(self._store.cut(seq, state, promised=epoch))
            self._commit_seq = min(self._commit_seq, seq)
            self._overlay.cut(seq)
            return path

        return await self._exclusively(step)

    def _set_aside(self, last: Position, cut: Sequence[Entry]) -> tuple[Path, State]:
        """Writes the entries `cut` to a file; gives the state without them. Runs in a thread, nothing writes."""
        seq = last.seq
        base = replace(self._state, commit_seq=self._commit_seq)
        in_sync = None
        if any(isinstance(entry.operations, InSync) for entry in cut):
            in_sync = self._in_sync_at(seq)
        state = truncated(
            base,
            last=last,
            peaks=peaks_at(self._store, seq + 1),
            chain=self._chain_on_disk(seq),
            cut=cut,
            in_sync=in_sync,
        )
        records = self._store.records(seq + 1, count_max=len(cut), bytes_max=2**63)
        assert len(records) == len(cut), (len(records), len(cut))
        data = b"".join(encode(record) for record in records)
        return files.write_tail(self._folder, self.uid, epoch=cut[0].epoch, seq=seq + 1, data=data), state

    def _in_sync_at(self, seq: int) -> InSync | None:
        """The last change of the in-sync set up to `seq`; None: there was none."""
        for at in range(seq, -1, -1):
            operations = self._entry_on_disk(at).operations
            if isinstance(operations, InSync):
                return operations
        return None

    async def verify(self) -> None:
        """Walks the whole journal and compares all that is derived from it. Writes wait meanwhile.

        Raises:
            Corrupt: naming the first contradiction.
        """

        async def step() -> None:
            await run(self._executor, partial(audit, self._store))

        await self._exclusively(step)

    async def _exclusively(self, step: Callable[[], Awaitable[T]]) -> T:
        """Runs one write to its end, also if the caller is cancelled: a thread cannot be called back."""

        async def locked() -> T:
            await self._lane.entered()
            try:
                if self._closed:
                    raise Closed(f"{self.uid}: closed")
                return await step()
            finally:
                self._lane.leave()

        task = asyncio.ensure_future(locked())
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    def _finished(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # a caller that was cancelled does not ask for it

    # -- reading ---------------------------------------------------------------------------------------------

    def read(self, key: str, at: int) -> Record | None:
        """What a key holds at a seq; None: it is absent."""
        assert at <= self.last.seq, (at, self.last)
        return self._reader.read(key, at)

    def scan(
        self,
        *,
        start: str = "",
        end: str = "",
        after: str = "",
        limit: int,
        bytes_max: int = limits.LIST_BYTES_MAX,
        at: int,
    ) -> tuple[list[tuple[str, Record]], bool]:
        """Keys of start <= key < end behind `after`, in the order of their bytes, and whether there are more."""
        assert at <= self.last.seq, (at, self.last)
        return self._reader.scan(start=start, end=end, after=after, limit=limit, bytes_max=bytes_max, at=at)

    def history(
        self, key: str, *, before: int | None = None, limit: int, at: int, bytes_max: int = limits.LIST_BYTES_MAX
    ) -> tuple[list[Change], bool]:
        """Versions of a key up to `at` and below seq `before`, newest first, and whether there are more."""
        assert at <= self.last.seq, (at, self.last)
        return self._reader.history(key, before=before, limit=limit, at=at, bytes_max=bytes_max)

    def idempotent(self, key: bytes) -> tuple[int, bytes] | None:
        """The last entry with this idempotency key: (seq, fingerprint); None: there is none."""
        return self._reader.idempotent(key)

    def entry(self, seq: int) -> Entry:
        """An entry of the journal, 0 <= seq <= last.seq."""
        assert 0 <= seq <= self.last.seq, (seq, self.last)
        return self._reader.entry(seq)

    def position_at(self, seq: int) -> Position:
        """Epoch, seq and txid of an entry; of nothing for -1."""
        if seq == self.last.seq:
            return self.last
        if seq == -1:
            return NOTHING
        entry = self.entry(seq)
        return Position(entry.epoch, seq, entry.txid)

    @property
    def committed(self) -> Position:
        """Epoch, seq and txid at commit_seq."""
        return self.position_at(self.commit_seq)

    def txid_seq(self, txid: int) -> int:
        """The last seq whose txid is not above `txid`; -1: there is none."""
        return bisect_right(range(self.last.seq + 1), txid, key=lambda seq: self.position_at(seq).txid) - 1

    def raw(self, first: int, entries_max: int, bytes_max: int) -> list[bytes]:
        """Encoded entries from `first` on, for shipping: one at least, if there is any."""
        count = min(entries_max, self.last.seq - first + 1)
        records = self._store.records(first, count_max=count, bytes_max=bytes_max)
        return [journal.record_entry(record) for record in records]

    def chain_at(self, seq: int) -> bytes:
        """The chain hash of an entry; ZERO_HASH for -1."""
        assert -1 <= seq <= self.last.seq, (seq, self.last)
        return self.chain if seq == self.last.seq else self._chain_on_disk(seq)

    def _chain_on_disk(self, seq: int) -> bytes:
        return journal.ZERO_HASH if seq == -1 else journal.record_chain(self._record(seq))

    def _entry_on_disk(self, seq: int) -> Entry:
        return journal.decode_entry(journal.record_entry(self._record(seq)))

    def _record(self, seq: int) -> bytes:
        data = self._store.record(seq)
        if data is None:
            raise Corrupt(f"{self.uid}: seq {seq} is missing")
        return data
