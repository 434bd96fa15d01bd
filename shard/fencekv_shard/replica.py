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
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

from fencekv.codec import encode
from fencekv.errors import Invalid
from fencekv_shard import folder as files
from fencekv_shard import journal, limits
from fencekv_shard.audit import audit, checked_tail, peaks_at
from fencekv_shard.base import Base, Fold, folded, noted, refolded
from fencekv_shard.executor import Executor, Lane, run
from fencekv_shard.folder import Lock, Seed
from fencekv_shard.journal import Entry, InSync
from fencekv_shard.rows import batch_of, trim_of
from fencekv_shard.state import Growth, Position, State, successor_problem, truncated
from fencekv_shard.store import BelowApplied, Prepared, PromiseMoved, StalePromise, StorageError, Store
from fencekv_shard.view import Closed, View

T = TypeVar("T")


class Replica(View):
    """An open replica. What is no coroutine is quick enough for the event loop."""

    discard = staticmethod(files.discard)
    retain = staticmethod(files.retain)

    def __init__(
        self, *, folder: Path, uid: str, executor: Executor, lock: Lock, store: Store, tail: Sequence[Entry]
    ) -> None:
        super().__init__(uid, store, tail)
        self._folder = folder
        self._executor = executor
        self._lock = lock
        self._lane = Lane()
        self._tasks: set[asyncio.Task[object]] = set()
        self._pins = 0  # who needs the base as it is
        self._seed: Seed | None = None  # None: none is being made

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
        cls,
        folder: Path,
        uid: str,
        *,
        executor: Executor,
        new_id: Callable[[], str],
        promised: int,
        seed: Seed | None = None,
    ) -> Self:
        """Sets the whole replica aside and opens an empty one, or `seed`, with a new id and the highest promise.

        The old one must be closed.

        Raises:
            FolderInUse, DiskFull: the old one is still in place.
        """
        make = partial(files.replace_environment, folder, uid, new_id=new_id, promised=promised, seed=seed)
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
                base = noted(self._base, entries)
                changed = None if base is self._base else base
                self._state = await self._written(self._store.apply(batch_of(entries), state, changed))
                self._adopt(base)
                self._overlay.drop_applied(applied)
            return self._commit_seq - self.applied_seq

        return await self._exclusively(step)

    async def fold_step(self, limit: int, *, old: Callable[[Entry], bool]) -> int:
        """Folds some more applied rounds into the base, whole ones, up to `limit` and up to one that is not `old`.

        Gives how many entries it took; 0: there is nothing more to fold, or the base is being sent.

        Raises:
            DiskFull, Closed: nothing was written. CommitFailed: the process must end.
        """
        if self._closed:
            raise Closed(f"{self.uid}: closed")
        entries = [] if self._pins else self._foldable(min(limit, self.applied_seq), old)
        if not entries:
            return 0
        before, last = self._base, entries[-1].seq
        base = folded(before, entries, chain=self._chain_on_disk(last), peaks=peaks_at(self._store, last + 1))
        fold = Fold.of(entries)
        base = replace(base, total=refolded(before.total, fold, self._store.base_rows(fold.keys)))

        async def step() -> int:
            if self._pins or self._base.seq != before.seq:
                return 0  # since this step asked for its turn
            self._reader.floor = last
            await self._rebased(lambda: self._store.fold(fold, replace(base, noted=self._base.noted)))
            return len(entries)

        return await self._exclusively(step)

    async def trim_step(self, limit: int) -> bool:
        """Trims some more of the journal, up to `limit` and the base. False: there was nothing to be trimmed.

        Raises:
            DiskFull, Closed: nothing was written. CommitFailed: the process must end.
        """
        if self._closed:
            raise Closed(f"{self.uid}: closed")
        count = min(limits.FOLD_ENTRIES, min(limit, self._base.seq) - self._base.first_seq + 1)
        if count <= 0:
            return False
        records = self._store.records(self._base.first_seq, count_max=count, bytes_max=limits.FOLD_BYTES)
        entries = [journal.decode_entry(journal.record_entry(record)) for record in records]

        async def step() -> None:
            first = entries[-1].seq + 1
            if first > self._base.first_seq:  # nobody else was here since
                self._first_seq = first
                trimmed = replace(self._base, first_seq=first)
                await self._rebased(lambda: self._store.trim(trim_of(entries), trimmed))

        await self._exclusively(step)
        return True

    async def _rebased(self, prepare: Callable[[], Prepared]) -> None:
        """Writes what changes the base. Until it is written, or was not, what may be gone is told as gone."""
        try:
            self._state = await self._written(prepare())
        finally:
            self._adopt(self._store.base)

    @contextlib.contextmanager
    def pinned(self) -> Iterator[Base]:
        """While this is entered, the base stays as it is: whoever sends or hashes it goes page by page."""
        self._pins += 1
        try:
            yield self._base
        finally:
            self._pins -= 1

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
        changed = any(isinstance(entry.operations, InSync) for entry in cut)
        in_sync = self._in_sync_at(seq) if changed else None
        peaks, chain = peaks_at(self._store, seq + 1), self._chain_on_disk(seq)
        state = truncated(base, last=last, peaks=peaks, chain=chain, cut=cut, in_sync=in_sync)
        records = self._store.records(seq + 1, count_max=len(cut), bytes_max=2**63)
        assert len(records) == len(cut), (len(records), len(cut))
        data = b"".join(encode(record) for record in records)
        return files.write_tail(self._folder, self.uid, epoch=cut[0].epoch, seq=seq + 1, data=data), state

    async def begin_seed(self, base: Base) -> Seed:
        """Begins a seed beside this replica, and gives up an earlier one.

        Raises:
            DiskFull, Closed: nothing was done.
        """

        async def step() -> Seed:
            self._seed = None
            seed = Seed(self._folder, self.uid, base)
            await run(self._executor, seed.begin)
            self._seed = seed
            return seed

        return await self._exclusively(step)

    async def add_to_seed(self, seed: Seed, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """Adds rows to a seed; durable when it returns.

        Raises:
            Invalid: they do not follow, or are none. DiskFull, Closed: the seed is given up.
        """
        await self._to_seed(seed, partial(seed.add, rows))

    async def drop_seed(self, seed: Seed) -> None:
        """Removes a seed that was given up. Raises Closed: there is nothing to remove any more."""
        await self._to_seed(seed, seed.drop)

    async def _to_seed(self, seed: Seed, work: Callable[[], None]) -> None:
        async def step() -> None:
            if self._seed is not seed:
                raise Closed(f"{self.uid}: another seed was begun")
            await run(self._executor, work)

        await self._exclusively(step)

    async def verify(self) -> None:
        """Walks the whole journal and compares all that is derived from it. Writes wait meanwhile.

        Raises:
            Corrupt: naming the first contradiction.
        """
        await self._exclusively(lambda: run(self._executor, partial(audit, self._store)))

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
