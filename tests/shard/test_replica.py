"""A replica answers as a plain list of its entries would, whatever is appended, applied, cut off or reopened."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import cbor2
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule
from replica_life import ReplicaLife
from storage import (
    UID,
    Holding,
    Inline,
    Model,
    assert_equals_model,
    histories,
    ids,
    open_replica,
    owner,
    pages,
    txn,
)

from fencekv.clock import SystemClock
from fencekv.errors import Invalid
from fencekv_shard import journal, limits, reader
from fencekv_shard.audit import audit
from fencekv_shard.executor import WriterThreads
from fencekv_shard.journal import ZERO_HASH, Entry, encode_entry, in_sync_entry
from fencekv_shard.replica import Replica
from fencekv_shard.state import NOTHING, EpochEnd, Position
from fencekv_shard.store import (
    BelowApplied,
    Corrupt,
    FolderInUse,
    PromiseMoved,
    StalePromise,
    Store,
)
from fencekv_shard.transaction import Delete, Put, Write
from fencekv_shard.view import Closed

T = TypeVar("T")


async def filled(folder: Path, entries: list[Entry], *, commit: int = -1, apply: bool = False) -> Replica:
    """A replica with these entries of epoch 1."""
    replica = await open_replica(folder)
    await replica.promise(1)
    await replica.append_own(entries, epoch=1)
    replica.commit(commit)
    while apply and await replica.apply_step():
        pass
    return replica


def numbered(count: int) -> list[Entry]:
    return [txn(at, Put(f"k{at % 3}", b"v%d" % at), key=b"i%d" % (at % 4)) for at in range(count)]


# -- the model ------------------------------------------------------------------------------------------------

keys = st.sampled_from(["a", "a\x01", "ab", "b", "é", "日本", "🙂"])
write: st.SearchStrategy[Write] = st.one_of(
    st.builds(Put, keys, st.binary(max_size=12)), st.builds(Put, keys, st.just(b"x")), st.builds(Delete, keys)
)
writes = st.lists(write, min_size=1, max_size=3, unique_by=lambda one: one.key)
idempotency_keys = st.none() | st.sampled_from([b"once", b"twice"])


@settings(max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
class ReplicaMachine(ReplicaLife):
    """Small steps and pages, so that each boundary is met."""

    small = (
        (limits, "APPLY_ENTRIES", 3),
        (limits, "APPLY_WRITES", 4),
        (reader, "_PAGE_KEYS", 2),
        (reader, "_CACHE_ENTRIES", 2),
    )

    def __init__(self) -> None:
        super().__init__()
        self.committed = -1

    @rule(batch=st.lists(st.tuples(writes, idempotency_keys), min_size=1, max_size=4), copied=st.booleans())
    def append(self, batch: list[tuple[list[Write], bytes | None]], copied: bool) -> None:
        first = len(self.model.entries)
        entries = [txn(first + at, *changes, epoch=self.epoch, key=key) for at, (changes, key) in enumerate(batch)]
        if copied:
            self.run(self.replica.append_copied([encode_entry(one) for one in entries], epoch=self.epoch))
            self.model.entries += entries
        else:
            self.take_own(entries)

    @rule(share=st.floats(0, 1))
    def commit(self, share: float) -> None:
        seq = int(share * (len(self.model.entries) - 1))
        self.replica.commit(seq)
        self.committed = max(self.committed, seq)

    @rule()
    def apply(self) -> None:
        remain = self.run(self.replica.apply_step())
        assert remain == self.replica.commit_seq - self.replica.applied_seq

    @precondition(lambda self: self.replica.needs_apply)
    @rule()
    def read_while_a_step_is_on_disk_but_not_yet_in_memory(self) -> None:
        self.executor.hold()
        step = self.loop.create_task(self.replica.apply_step())
        self.run(self.executor.held.wait())
        before = self.replica.applied_seq
        assert self.replica._store.state.applied_seq > before
        assert_equals_model(self.replica, self.model, range(-1, len(self.model.entries)))
        assert self.replica.applied_seq == before
        self.executor.release()
        self.run(step)

    @rule()
    def open_again(self) -> None:
        before = self.replica
        self.run(self.replica.close())
        self.replica = self.open()
        assert self.replica.replica_id == before.replica_id
        # What was known as committed may be forgotten, never invented.
        assert self.replica.applied_seq <= self.replica.commit_seq <= self.committed
        self.committed = self.replica.commit_seq

    @rule(share=st.floats(0, 1))
    def truncate(self, share: float) -> None:
        applied, last = self.replica.applied_seq, self.replica.last.seq
        seq = max(0, applied) + int(share * (last - max(0, applied)))
        expected = [encode_entry(entry) for entry in self.model.entries[seq + 1 :]]
        path = self.run(self.replica.truncate(seq, epoch=self.epoch))
        assert (path is None) == (not expected)
        if path is not None:
            assert [journal.record_entry(record) for record in cbor_sequence(path)] == expected
            path.unlink()
        del self.model.entries[seq + 1 :]
        self.committed = min(self.committed, seq)

    @precondition(lambda self: self.replica.applied_seq > 0)
    @rule()
    def truncate_below_applied(self) -> None:
        before = self.replica.last
        with pytest.raises(BelowApplied):
            self.run(self.replica.truncate(self.replica.applied_seq - 1, epoch=self.epoch))
        assert self.replica.last == before

    @rule(share=st.floats(0, 1), start=keys | st.just(""), end=keys | st.just(""), limit=st.integers(1, 5))
    def read(self, share: float, start: str, end: str, limit: int) -> None:
        at = int(share * (len(self.model.entries) - 1))
        expected = self.model.scan(start=start, end=end, at=at)
        assert pages(self.replica, start=start, end=end, at=at, limit=limit) == expected
        assert pages(self.replica, start=start, end=end, at=at, limit=limit, bytes_max=8) == expected
        for key in self.model.names():
            assert self.replica.read(key, at) == self.model.state(at).get(key)
            assert histories(self.replica, key, at=at, limit=limit) == self.model.history(key, at=at)

    @rule(first=st.integers(0, 20), entries_max=st.integers(1, 9), bytes_max=st.integers(1, 2000))
    def ship(self, first: int, entries_max: int, bytes_max: int) -> None:
        raw = self.replica.raw(first, entries_max, bytes_max)
        expected = [encode_entry(entry) for entry in self.model.entries[first : first + entries_max]]
        assert raw == expected[: len(raw)]
        assert bool(raw) == bool(expected)

    @invariant()
    def knows_where_it_stands(self) -> None:
        entries, replica = self.model.entries, self.replica
        if not entries:
            assert (replica.last, replica.chain, replica.root()) == (NOTHING, ZERO_HASH, ZERO_HASH)
            return
        assert replica.last == Position(entries[-1].epoch, entries[-1].seq, entries[-1].txid)
        assert replica.applied_seq <= replica.commit_seq <= replica.last.seq
        assert replica.commit_seq == self.committed
        assert replica.known_epoch == replica.promised == self.epoch
        owners = [entry.operations for entry in entries if isinstance(entry.operations, journal.Ownership)]
        assert replica.ends == tuple(
            EpochEnd(one.previous_epoch, one.previous_seq, one.previous_txid) for one in owners[1:]
        )
        sets = [entry.operations for entry in entries if isinstance(entry.operations, journal.InSync)]
        expected = (sets[-1].version, sets[-1].members) if sets else (0, ())
        assert (replica.set_version, replica.members) == expected
        for key in (b"once", b"twice"):
            assert replica.idempotent(key) == self.model.idempotent(key)

    @invariant()
    def chains_as_the_entries_do(self) -> None:
        chain = ZERO_HASH
        peaks: tuple[bytes, ...] = ()
        for entry in self.model.entries:
            assert self.replica.chain_at(entry.seq - 1) == chain
            leaf = journal.leaf_hash(encode_entry(entry))
            chain = journal.chain_hash(chain, leaf)
            peaks, _ = journal.append(peaks, entry.seq, leaf)
        assert (self.replica.chain, self.replica.root()) == (chain, journal.root(peaks))

    def check_whole(self) -> None:
        assert_equals_model(self.replica, self.model, range(-1, len(self.model.entries)))


TestReplicaEqualsTheModel = ReplicaMachine.TestCase


def cbor_sequence(path: Path) -> list[bytes]:
    records = []
    with path.open("rb") as file:
        decoder = cbor2.CBORDecoder(file)
        while file.tell() < path.stat().st_size:
            records.append(decoder.decode())
    return records


@pytest.mark.parametrize("seed", range(6))
async def test_reads_before_during_and_after_each_apply_step(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine above meets these moments by chance; here each one is met."""
    monkeypatch.setattr(limits, "APPLY_ENTRIES", 3)
    monkeypatch.setattr(reader, "_PAGE_KEYS", 2)
    chance = random.Random(seed)
    model = Model([txn(at, *_some_writes(chance)) for at in range(14)])
    executor = Holding()
    replica = await Replica.open(tmp_path, UID, executor=executor, new_id=ids())
    await replica.promise(1)
    await replica.append_own(model.entries, epoch=1)
    everywhere = range(-1, len(model.entries))
    while replica.applied_seq < replica.last.seq:
        assert_equals_model(replica, model, everywhere)
        replica.commit(min(replica.commit_seq + chance.randint(1, 4), replica.last.seq))
        executor.hold()
        step = asyncio.create_task(replica.apply_step())
        await executor.held.wait()
        assert replica._store.state.applied_seq > replica.applied_seq
        assert_equals_model(replica, model, everywhere)
        executor.release()
        await step
        above = {write.key for entry in model.entries[replica.applied_seq + 1 :] for write in entry.writes}
        assert replica._overlay.keys("", "") == sorted(above)
    assert_equals_model(replica, model, everywhere)
    await replica.verify()
    await replica.close()


def _some_writes(chance: random.Random) -> list[Write]:
    names = chance.sample(["a", "a\x01", "b", "é"], chance.randint(1, 2))
    return [Delete(name) if chance.random() < 0.4 else Put(name, chance.randbytes(2)) for name in names]


# -- promises -------------------------------------------------------------------------------------------------


async def test_a_promise_is_durable_and_never_falls(tmp_path: Path) -> None:
    replica = await open_replica(tmp_path)
    await replica.promise(3)
    replica.abandon()
    replica = await open_replica(tmp_path)
    assert replica.promised == replica.known_epoch == 3
    with pytest.raises(StalePromise) as refused:
        await replica.promise(2)
    assert (refused.value.epoch, refused.value.promised) == (2, 3)
    await replica.promise(3)
    await replica.close()


async def test_whoever_is_not_promised_appends_nothing(tmp_path: Path) -> None:
    replica = await open_replica(tmp_path)
    await replica.promise(2)
    for epoch in (1, 3):
        with pytest.raises(PromiseMoved):
            await replica.append_own([txn(0, epoch=epoch)], epoch=epoch)
        with pytest.raises(PromiseMoved):
            await replica.append_copied([encode_entry(txn(0, epoch=1))], epoch=epoch)
    assert replica.last == NOTHING
    await replica.close()


async def test_a_promise_between_the_cheap_check_and_the_transaction_still_stops_the_append(
    tmp_path: Path,
) -> None:
    """The gate inside the transaction, alone: memory says yes, the disk says no."""
    replica = await filled(tmp_path, numbered(1))
    replica._store.promise(2).commit()
    assert replica.promised == 1
    with pytest.raises(PromiseMoved):
        await replica.append_own([txn(1)], epoch=1)
    assert replica._store.last_seq() == 0
    await replica.close()


async def test_a_closed_epoch_stays_closed_after_opening_again(tmp_path: Path) -> None:
    replica = await filled(tmp_path, numbered(2))
    await replica.close_epoch(1)
    replica.abandon()
    replica = await open_replica(tmp_path)
    assert replica.closed_epoch == 1
    with pytest.raises(PromiseMoved):
        await replica.append_own([txn(2)], epoch=1)
    await replica.promise(2)
    await replica.append_own([txn(2, epoch=2)], epoch=2)
    await replica.close()


async def test_promises_and_appends_at_once_leave_no_append_past_the_promise(tmp_path: Path) -> None:
    threads = WriterThreads(clock=SystemClock().now, threads=1)
    replica = await Replica.open(tmp_path, UID, executor=threads, new_id=ids())
    await replica.promise(1)

    async def append() -> None:
        for at in range(200):
            await replica.append_own([txn(at)], epoch=1)

    appending = asyncio.create_task(append())
    while replica.last.seq < 5:
        await asyncio.sleep(0)
    await replica.promise(2)
    last = replica.last
    with pytest.raises(PromiseMoved):
        await appending
    assert replica.last == last
    assert replica._store.last_seq() == last.seq
    await replica.close()
    threads.close()


async def test_nothing_is_cut_off_for_an_owner_that_is_no_longer_promised(tmp_path: Path) -> None:
    replica = await filled(tmp_path, numbered(3))
    replica._store.promise(2).commit()
    with pytest.raises(PromiseMoved):  # the gate inside the transaction, alone
        await replica.truncate(0, epoch=1)
    replica.abandon()
    replica = await open_replica(tmp_path)
    for epoch in (1, 3):
        with pytest.raises(PromiseMoved):
            await replica.truncate(0, epoch=epoch)
    assert (replica.last.seq, replica._store.last_seq()) == (2, 2)
    assert await replica.truncate(0, epoch=2) is not None
    await replica.close()


# -- copies ---------------------------------------------------------------------------------------------------


async def test_a_copy_has_the_bytes_of_the_original(tmp_path: Path) -> None:
    original = await filled(tmp_path / "a", [owner(0, epoch=1), *numbered(9)[1:]])
    copy = await open_replica(tmp_path / "b")
    await copy.promise(1)
    await copy.append_copied(original.raw(0, 4, 1 << 20), epoch=1)
    await copy.append_copied(original.raw(4, 99, 1 << 20), epoch=1)
    assert (copy.last, copy.chain, copy.root()) == (original.last, original.chain, original.root())
    read = {"count_max": 99, "bytes_max": 1 << 20}
    assert copy._store.records(0, **read) == original._store.records(0, **read)
    await original.close()
    await copy.close()


@pytest.mark.parametrize(
    "raw",
    [
        [encode_entry(txn(3))],
        [encode_entry(txn(1))],
        [encode_entry(txn(2)), encode_entry(txn(4))],
        [encode_entry(txn(2, epoch=3))],
        [encode_entry(txn(2, epoch=2)), encode_entry(txn(3, epoch=1))],
        [encode_entry(txn(2, txid=0))],
        [encode_entry(txn(2)), b""],
        [encode_entry(txn(2)) + b"\x00"],
    ],
    ids=[
        "gap",
        "again",
        "gap inside",
        "epoch above the sender's",
        "epoch falls",
        "txid falls",
        "empty",
        "trailing",
    ],
)
async def test_a_copy_that_does_not_follow_changes_nothing(raw: list[bytes], tmp_path: Path) -> None:
    replica = await filled(tmp_path, [txn(0), txn(1)])
    await replica.promise(2)
    with pytest.raises(Invalid):
        await replica.append_copied(raw, epoch=2)
    assert (replica.last.seq, replica._store.last_seq()) == (1, 1)
    await replica.append_copied([encode_entry(txn(2))], epoch=2)
    await replica.close()


# -- ends of epochs, positions -------------------------------------------------------------------------------


async def test_a_cut_takes_back_what_the_cut_entries_announced(tmp_path: Path) -> None:
    def members(seq: int, version: int) -> Entry:
        return in_sync_entry(seq=seq, txid=seq, epoch=1, unix_ns=0, version=version, members=[f"a/{version}"])

    replica = await filled(
        tmp_path, [owner(0, epoch=1), members(1, 5), txn(2), members(3, 6)], commit=2, apply=True
    )
    await replica.promise(2)
    await replica.append_own([owner(4, epoch=2, previous=(1, 3, 3))], epoch=2)
    assert (replica.ends, replica.set_version) == ((EpochEnd(1, 3, 3),), 6)
    path = await replica.truncate(2, epoch=2)
    assert path is not None
    assert path.name == f"{UID}.tail-1-3.cbor"
    assert (replica.ends, replica.set_version, replica.members) == ((), 5, ("a/5",))
    assert (replica.last, replica.promised) == (Position(1, 2, 2), 2)
    await replica.verify()
    await replica.close()


async def test_an_empty_journal_can_be_cut_to_nothing(tmp_path: Path) -> None:
    replica = await filled(tmp_path, numbered(3), commit=1)
    assert await replica.truncate(-1, epoch=1) is not None
    assert (replica.last, replica.commit_seq, replica.chain) == (NOTHING, -1, ZERO_HASH)
    assert await replica.truncate(-1, epoch=1) is None
    await replica.append_own(numbered(1), epoch=1)
    await replica.verify()
    await replica.close()


async def test_seqs_are_found_by_txid(tmp_path: Path) -> None:
    entries = [txn(0, txid=1), txn(1, txid=1), txn(2, txid=3), txn(3, txid=3), txn(4, txid=7)]
    replica = await filled(tmp_path, entries, commit=2, apply=True)
    assert [replica.txid_seq(txid) for txid in range(9)] == [-1, 1, 1, 3, 3, 3, 3, 4, 4]
    assert replica.committed == Position(1, 2, 3)
    assert replica.position_at(-1) == NOTHING
    await replica.close()


# -- one at a time, to the end --------------------------------------------------------------------------------


async def test_a_cancelled_append_is_carried_to_its_end(tmp_path: Path) -> None:
    executor = Holding()
    replica = await Replica.open(tmp_path, UID, executor=executor, new_id=ids())
    await replica.promise(1)
    executor.hold()
    appending = asyncio.create_task(replica.append_own([txn(0)], epoch=1))
    await executor.held.wait()
    appending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await appending
    assert replica.last == NOTHING
    executor.release()
    await replica.append_own([txn(1)], epoch=1)
    assert replica.last.seq == 1
    assert replica.read("k0", 1) is not None
    await replica.close()


async def test_closing_waits_for_the_write_under_way_and_refuses_later_ones(tmp_path: Path) -> None:
    executor = Holding()
    replica = await Replica.open(tmp_path, UID, executor=executor, new_id=ids())
    await replica.promise(1)
    executor.hold()
    appending = asyncio.create_task(replica.append_own([txn(0)], epoch=1))
    await executor.held.wait()
    closing = asyncio.create_task(replica.close())
    late = asyncio.create_task(replica.append_own([txn(1)], epoch=1))
    await asyncio.sleep(0)
    with pytest.raises(FolderInUse):
        await open_replica(tmp_path)
    executor.release()
    await asyncio.gather(appending, closing)
    with pytest.raises(Closed):
        await late
    replica = await open_replica(tmp_path)
    assert replica.last.seq == 0
    await replica.close()
    await replica.close()


async def test_a_cancelled_opening_gives_its_lock_back(tmp_path: Path) -> None:
    executor = Holding()
    executor.hold()
    opening = asyncio.create_task(Replica.open(tmp_path, UID, executor=executor, new_id=ids()))
    await executor.held.wait()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    executor.release()
    for _ in range(5):
        await asyncio.sleep(0)
    await (await open_replica(tmp_path)).close()


async def test_reads_on_the_loop_agree_with_the_journal_while_a_thread_writes(tmp_path: Path) -> None:
    threads = WriterThreads(clock=SystemClock().now, threads=1)
    replica = await Replica.open(tmp_path, UID, executor=threads, new_id=ids())
    await replica.promise(1)
    entries = [txn(at, Put(f"k{at % 7}", b"%d" % at)) for at in range(400)]

    async def write() -> None:
        for at in range(0, len(entries), 8):
            await replica.append_own(entries[at : at + 8], epoch=1)
            replica.commit(replica.last.seq)

    async def apply() -> None:
        while replica.applied_seq < len(entries) - 1:
            await replica.apply_step()
            await asyncio.sleep(0)

    working = asyncio.gather(write(), apply())
    looks = 0
    while not working.done():
        at = replica.last.seq
        values = [record.value for _, record in replica.scan(limit=9, at=at)[0]]
        assert sorted(map(int, values)) == list(range(max(0, at - 6), at + 1))
        looks += 1
        await asyncio.sleep(0)
    await working
    assert looks > 10
    await replica.verify()
    await replica.close()
    threads.close()


async def test_a_full_overlay_says_so_and_empties_by_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "OVERLAY_ENTRIES_MAX", 5)
    monkeypatch.setattr(limits, "APPLY_ENTRIES", 2)
    replica = await filled(tmp_path, numbered(4))
    assert not replica.overlay_full
    await replica.append_own([txn(4)], epoch=1)
    assert replica.overlay_full
    assert not replica.needs_apply, "nothing is committed"
    assert await replica.apply_step() == 0
    replica.commit(4)
    assert [await replica.apply_step() for _ in range(4)] == [3, 1, 0, 0]
    assert not replica.overlay_full
    monkeypatch.setattr(limits, "OVERLAY_BYTES_MAX", 1000)
    await replica.append_own([txn(5, Put("big", bytes(1000)))], epoch=1)
    assert replica.overlay_full
    await replica.close()


# -- seeding anew ---------------------------------------------------------------------------------------------


async def test_seeding_anew_keeps_the_promise_and_the_old_replica(tmp_path: Path) -> None:
    new_id = ids()
    replica = await open_replica(tmp_path, new_id)
    await replica.promise(4)
    await replica.append_own([txn(0, epoch=4)], epoch=4)
    old_id = replica.replica_id
    with pytest.raises(FolderInUse):
        await Replica.reseed(tmp_path, UID, executor=Inline(), new_id=new_id, promised=2)
    await replica.close()
    fresh = await Replica.reseed(tmp_path, UID, executor=Inline(), new_id=new_id, promised=2)
    assert (fresh.last, fresh.promised) == (NOTHING, 4)
    assert fresh.replica_id != old_id
    with pytest.raises(PromiseMoved):
        await fresh.append_own([txn(0, epoch=2)], epoch=2)
    await fresh.append_copied([encode_entry(txn(0, epoch=1))], epoch=4)
    await fresh.close()
    aside = Store.open(tmp_path / f"{UID}.aside-{old_id}")
    assert aside.state.last == Position(4, 0, 0)
    aside.close()
    again = await Replica.reseed(tmp_path, UID, executor=Inline(), new_id=new_id, promised=9)
    assert again.promised == 9
    await again.close()
    Replica.discard(tmp_path, UID)
    assert list(tmp_path.iterdir()) == []


# -- damage ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def damaged(tmp_path: Path) -> AsyncIterator[Store]:
    """A store with nine entries, five of them applied."""
    entries = [owner(0, epoch=1), txn(1, Put("a", b"1"), Delete("b"), key=b"once"), *map(txn, range(2, 9))]
    replica = await filled(tmp_path, entries, commit=4, apply=True)
    await replica.verify()
    await replica.close()
    store = Store.open(tmp_path / UID)
    yield store
    store.close()


def test_every_changed_byte_of_the_journal_is_found(damaged: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    records = damaged.records(0, count_max=99, bytes_max=1 << 20)
    audit(damaged)
    for seq, record in enumerate(records):
        for place in range(len(record)):
            changed = bytearray(record)
            changed[place] ^= 1 << (place % 8)
            lying = [*records[:seq], bytes(changed), *records[seq + 1 :]]
            _journal_reads(damaged, lying, monkeypatch)
            with pytest.raises(Corrupt):
                audit(damaged)


def test_missing_doubled_swapped_and_added_records_are_found(
    damaged: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = damaged.records(0, count_max=99, bytes_max=1 << 20)
    for lying in (
        records[1:],
        records[:-1],
        records[:3] + records[4:],
        [*records[:3], records[3], *records[3:]],
        [*records[:3], records[4], records[3], *records[5:]],
        [*records, records[-1]],
        [],
    ):
        _journal_reads(damaged, lying, monkeypatch)
        with pytest.raises(Corrupt):
            audit(damaged)


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("current", b"a", b"\x00" * 7 + b"\x02" + b"\x00" * 4),
        ("current", b"b", b"\x00" * 7 + b"\x01" + b"\x00" * 4),
        ("versions", b"a\x00" + b"\xff" * 8, b"\x00" * 4),
        ("idempotency", b"once", b"\x00" * 7 + b"\x02"),
        ("idempotency", b"never", b"\x00" * 8),
    ],
)
def test_derived_tables_that_differ_from_a_rebuild_are_found(
    damaged: Store, table: str, key: bytes, value: bytes
) -> None:
    _overwrite(damaged, table, key, value)
    with pytest.raises(Corrupt, match=table):
        audit(damaged)


@pytest.mark.parametrize("field", ["set_version", "members", "ends", "chain", "last", "applied_seq"])
def test_a_state_that_does_not_follow_from_the_journal_is_found(damaged: Store, field: str) -> None:
    wrong: dict[str, Any] = {
        "set_version": 9,
        "members": ("a/1",),
        "ends": (EpochEnd(1, 1, 1),),
        "chain": ZERO_HASH,
        "last": Position(1, 8, 9),
        "applied_seq": 3,
    }
    damaged.state = replace(damaged.state, **{field: wrong[field]})
    with pytest.raises(Corrupt):
        audit(damaged)


@pytest.mark.parametrize("seq", [5, 8])
@pytest.mark.parametrize("place", [0, 40, 64, -1])
async def test_damage_in_what_is_not_applied_is_found_when_opening(
    seq: int, place: int, damaged: Store, tmp_path: Path
) -> None:
    record = bytearray(damaged.record(seq) or b"")
    record[place] ^= 1
    _overwrite(damaged, "journal", seq.to_bytes(8, "big"), bytes(record))
    damaged.close()
    with pytest.raises(Corrupt):
        await open_replica(tmp_path)
    fresh = await Replica.reseed(tmp_path, UID, executor=Inline(), new_id=lambda: "anew", promised=0)
    assert (fresh.last, fresh.promised) == (NOTHING, 1)
    await fresh.close()


async def test_a_lost_tail_is_found_when_opening(damaged: Store, tmp_path: Path) -> None:
    with damaged._env.begin(write=True) as transaction:
        transaction.delete((8).to_bytes(8, "big"), db=damaged._db["journal"])
    damaged.close()
    with pytest.raises(Corrupt):
        await open_replica(tmp_path)


def _journal_reads(store: Store, records: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the store's journal read as these records."""

    def read(first: int, *, count_max: int, bytes_max: int) -> list[bytes]:
        return records[first : first + count_max]

    monkeypatch.setattr(store, "records", read)


def _overwrite(store: Store, table: str, key: bytes, value: bytes) -> None:
    with store._env.begin(write=True) as transaction:
        transaction.put(key, value, db=store._db[table])


async def test_entries_whose_chain_hash_is_not_the_owners_are_not_taken(tmp_path: Path) -> None:
    replica = await open_replica(tmp_path)
    await replica.promise(1)
    raw = [encode_entry(txn(0, epoch=1))]
    with pytest.raises(Invalid, match="chain hash"):
        await replica.append_copied(raw, epoch=1, chain=b"\x01" * 32)
    assert replica.last.seq == -1
    await replica.append_copied(raw, epoch=1)
    await replica.close()
