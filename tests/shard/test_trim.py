"""A replica whose journal is folded and trimmed answers as one that kept everything, where it may still answer."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule
from replica_life import ReplicaLife
from storage import UID, Inline, Model, ids, open_replica, owner, txn
from trimming import always, applied, assert_equals_above, checkpoint, checkpoint_of, fold, trim

from fencekv.codec import encode
from fencekv.errors import Invalid, Lost
from fencekv_shard import journal, limits, reader
from fencekv_shard import store as store_module
from fencekv_shard.base import (
    Base,
    Digest,
    Fold,
    Row,
    changed_total,
    decode_base,
    encode_base,
    pack_row,
    unpack_row,
)
from fencekv_shard.folder import Seed
from fencekv_shard.journal import ZERO_HASH, Entry, decode_entry, encode_entry, in_sync_entry
from fencekv_shard.replica import Replica
from fencekv_shard.rows import unpack_seq, unpack_version
from fencekv_shard.state import EpochEnd
from fencekv_shard.store import Corrupt, DiskFull, Store
from fencekv_shard.transaction import Delete, Put, Write
from fencekv_shard.view import Closed

T = TypeVar("T")

keys = st.sampled_from(["a", "a\x01", "ab", "é", "🙂"])
write: st.SearchStrategy[Write] = st.one_of(st.builds(Put, keys, st.binary(max_size=6)), st.builds(Delete, keys))
writes = st.lists(write, min_size=1, max_size=3, unique_by=lambda one: one.key)
idempotency_keys = st.none() | st.sampled_from([b"once", b"twice"])


@settings(max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))
class TrimMachine(ReplicaLife):
    """Small steps and pages, so that each boundary is met."""

    small = (
        (limits, "APPLY_ENTRIES", 3),
        (limits, "FOLD_ENTRIES", 3),
        (limits, "FOLD_WRITES", 4),
        (reader, "_PAGE_KEYS", 2),
        (reader, "_CACHE_ENTRIES", 2),
    )

    @rule(batch=st.lists(st.tuples(writes, idempotency_keys), min_size=1, max_size=4))
    def commit_a_round(self, batch: list[tuple[list[Write], bytes | None]]) -> None:
        first = len(self.model.entries)
        self.take_own(
            [
                txn(first + at, *changes, epoch=self.epoch, key=key, txid=first)
                for at, (changes, key) in enumerate(batch)
            ]
        )

    @rule(share=st.floats(0, 1))
    def apply(self, share: float) -> None:
        self.replica.commit(int(share * (len(self.model.entries) - 1)))
        self.run(self.replica.apply_step())

    @rule(share=st.floats(0, 1), young=st.integers(0, 9))
    def fold(self, share: float, young: int) -> None:
        limit, first_young = int(share * self.replica.applied_seq), len(self.model.entries) - young
        before = self.replica.base.seq
        taken = self.run(self.replica.fold_step(limit, old=lambda entry: entry.seq < first_young))
        base = self.replica.base
        assert base.seq == before + taken
        assert base.seq <= max(before, min(limit, first_young - 1))
        if taken and base.seq + 1 < len(self.model.entries):
            assert self.model.entries[base.seq + 1].txid != base.last.txid, "a round was cut in two"

    @precondition(lambda self: self.replica.base.seq >= 0)
    @rule()
    def note(self) -> None:
        self.take_own([checkpoint(self.model.entries, self.replica.base.seq, epoch=self.epoch)])

    def noted_at(self) -> int:
        noted = self.replica.base.noted
        return noted.checkpoint.at if noted else -1

    @rule()
    def trim(self) -> None:
        before, at = self.replica.first_seq, self.noted_at()
        trimmed = self.run(self.replica.trim_step(at))
        assert trimmed == (self.replica.first_seq > before)
        assert trimmed == (before <= min(at, self.replica.base.seq))

    @rule()
    def read_while_a_fold_is_on_disk_but_not_yet_in_memory(self) -> None:
        self.executor.hold()
        step = self.loop.create_task(self.replica.fold_step(self.replica.applied_seq, old=always))
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.run_until_complete(asyncio.sleep(0))
        floor = self.replica._store.base.seq
        assert_equals_above(self.replica, self.model, floor)
        self.executor.release()
        assert self.run(step) == self.replica.base.seq - floor or floor == self.replica.base.seq

    @rule()
    def read_while_a_trim_is_on_disk_but_not_yet_in_memory(self) -> None:
        self.executor.hold()
        step = self.loop.create_task(self.replica.trim_step(self.noted_at()))
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.run_until_complete(asyncio.sleep(0))
        assert_equals_above(self.replica, self.model, self.replica.base.seq)
        assert self.replica.first_seq == self.replica._store.base.first_seq
        self.executor.release()
        self.run(step)

    @rule()
    def open_again(self) -> None:
        before = (self.replica.replica_id, self.replica.base)
        self.run(self.replica.close())
        self.replica = self.open()
        assert (self.replica.replica_id, self.replica.base) == before

    @rule(share=st.floats(0, 1))
    def truncate(self, share: float) -> None:
        applied_seq, last = max(0, self.replica.applied_seq), self.replica.last.seq
        seq = applied_seq + int(share * (last - applied_seq))
        self.run(self.replica.truncate(seq, epoch=self.epoch))
        del self.model.entries[seq + 1 :]

    @rule()
    def verify(self) -> None:
        self.run(self.replica.verify())

    @invariant()
    def knows_where_it_stands(self) -> None:
        entries, replica, base = self.model.entries, self.replica, self.replica.base
        if not entries:
            return
        assert replica.last.seq == len(entries) - 1
        sets = [entry.operations for entry in entries if isinstance(entry.operations, journal.InSync)]
        assert (replica.set_version, replica.members) == (
            (sets[-1].version, sets[-1].members) if sets else (0, ())
        )
        assert len(replica.ends) == self.epoch_count() - 1
        for key in (b"once", b"twice"):
            found = self.model.idempotent(key)
            assert replica.idempotent(key) == (found if found and found[0] > base.seq else None)
        raw = replica.raw(replica.first_seq, 1000, 1 << 20)
        assert raw == [encode_entry(entry) for entry in entries[replica.first_seq :]]

    def epoch_count(self) -> int:
        return sum(isinstance(entry.operations, journal.Ownership) for entry in self.model.entries)

    @invariant()
    def chains_as_the_entries_do(self) -> None:
        chain, peaks = ZERO_HASH, ()
        for seq in range(-1, len(self.model.entries)):
            if seq >= 0:
                entry = self.model.entries[seq]
                leaf = journal.leaf_hash(encode_entry(entry))
                chain = journal.chain_hash(chain, leaf)
                peaks, _ = journal.append(peaks, seq, leaf)  # type: ignore[assignment]
            known = self.replica.chain_at(seq)
            assert known in {chain, b""}, seq
            assert known or self.replica.base.first_seq > seq, seq
            if seq >= self.replica.base.known_from:
                assert known == chain
        assert (self.replica.chain, self.replica.root()) == (chain, journal.root(peaks))

    @invariant()
    def has_the_base_that_follows_from_the_journal(self) -> None:
        digest, after = Digest(), b""
        while page := self.replica.base_page(after, count_max=2):
            digest.add(page)
            after = page[-1][0]
        assert digest.checkpoint(0) == replace(checkpoint_of(self.model.entries, self.replica.base.seq), at=0)

    def check_whole(self) -> None:
        assert_equals_above(self.replica, self.model, self.replica.base.seq)


TestATrimmedReplicaEqualsTheModel = TrimMachine.TestCase


# -- steps ----------------------------------------------------------------------------------------------------


async def filled(folder: Path, entries: list[Entry]) -> Replica:
    """A replica with these entries of epoch 1, all of them applied."""
    replica = await open_replica(folder)
    await replica.promise(1)
    await replica.append_own(entries, epoch=1)
    await applied(replica, len(entries) - 1)
    return replica


def numbered(count: int) -> list[Entry]:
    return [txn(at, Put(f"k{at % 3}", b"v%d" % at), key=b"i%d" % (at % 4)) for at in range(count)]


async def trimmed(folder: Path, entries: list[Entry], at: int) -> Replica:
    """The same with a checkpoint at `at`, trimmed behind it."""
    replica = await filled(folder, entries)
    await fold(replica, at)
    await replica.append_own([checkpoint(entries, at)], epoch=1)
    await applied(replica, len(entries))
    await trim(replica)
    assert (replica.base.seq, replica.first_seq) == (at, at + 1)
    return replica


async def test_a_trimmed_replica_opens_again_as_it_was(tmp_path: Path) -> None:
    replica = await trimmed(tmp_path, numbered(9), 5)
    chain, root, base = replica.chain, replica.root(), replica.base
    await replica.close()
    replica = await open_replica(tmp_path)
    assert (replica.chain, replica.root(), replica.base) == (chain, root, base)
    assert replica.position_at(5) == base.last
    assert [replica.chain_at(seq) for seq in range(5)] == [b""] * 5
    await replica.append_own([txn(10)], epoch=1)
    await replica.verify()
    await replica.close()


async def test_a_journal_that_is_trimmed_to_its_end_takes_further_entries(tmp_path: Path) -> None:
    """The records are all gone; what comes next still follows by number and chain."""
    entries = numbered(6)
    replica = await trimmed(tmp_path / "a", entries, 5)
    await fold(replica, 6)
    assert replica.base.seq == 6
    assert await replica.trim_step(6)
    assert (replica.first_seq, replica.raw(0, 10, 1000)) == (7, [])
    await replica.close()
    replica = await open_replica(tmp_path / "a")
    await replica.append_own([txn(7)], epoch=1)
    assert replica.last.seq == 7
    await replica.verify()
    await replica.close()


@pytest.mark.parametrize("step", [1, 2, 3, 256])
async def test_trimming_leaves_of_each_key_what_the_base_holds_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    monkeypatch.setattr(limits, "FOLD_ENTRIES", step)
    entries = [
        txn(0, Put("again", b"1"), Put("gone", b"1"), key=b"once"),
        txn(1, Put("again", b"2"), Delete("gone"), key=b"twice"),
        txn(2, Put("again", b"3"), Delete("never"), Put("back", b"1")),
        txn(3, Delete("back"), key=b"twice"),
        txn(4, Put("back", b"2"), Put("later", b"1")),
        txn(5, Put("later", b"2"), Delete("again"), key=b"once"),
    ]
    replica = await trimmed(tmp_path, entries, 4)
    tables = replica._store.tables()
    rows = sorted(unpack_version(*row) for row in tables["versions"].items())
    assert rows == [
        (b"again", (2, 0)),
        (b"again", (5, 1)),
        (b"back", (4, 0)),
        (b"later", (4, 1)),
        (b"later", (5, 0)),
    ]
    assert {key: unpack_seq(seq) for key, seq in tables["idempotency"].items()} == {b"once": 5}
    base = [(key, unpack_row(row)) for key, row in replica.base_page(b"")]
    assert base == [
        (b"again", Row(1, 2, 0, b"3")),
        (b"back", Row(1, 4, 0, b"2")),
        (b"later", Row(1, 4, 1, b"1")),
    ]
    await replica.verify()
    await replica.close()


async def test_what_was_announced_below_the_base_is_still_known(tmp_path: Path) -> None:
    entries: list[Entry] = [owner(0, epoch=1), txn(1)]
    entries.append(in_sync_entry(seq=2, txid=2, epoch=1, unix_ns=0, version=7, members=["a/1", "b/2"]))
    entries += [owner(3, epoch=2, previous=(1, 2, 2)), txn(4, epoch=2)]
    replica = await open_replica(tmp_path)
    await replica.promise(2)
    await replica.append_copied([encode_entry(entry) for entry in entries], epoch=2)
    await applied(replica, 4)
    await fold(replica, 4)
    await replica.append_own([checkpoint(entries, 4, epoch=2)], epoch=2)
    await applied(replica, 5)
    await trim(replica)
    known = (replica.set_version, replica.members, replica.ends)
    assert known == (7, ("a/1", "b/2"), (EpochEnd(1, 2, 2),))
    assert (replica.base.set_version, replica.base.members, replica.base.ends) == known
    # A later change is cut off again: what was before it is known from the base alone.
    change = in_sync_entry(seq=6, txid=6, epoch=2, unix_ns=0, version=8, members=["c/3"])
    await replica.append_own([change], epoch=2)
    await replica.truncate(5, epoch=2)
    assert (replica.set_version, replica.members, replica.ends) == known
    await replica.verify()
    await replica.close()


async def test_a_txid_below_the_base_is_not_known_any_more(tmp_path: Path) -> None:
    replica = await trimmed(tmp_path, numbered(9), 5)
    assert [replica.txid_seq(txid) for txid in (5, 6, 9, 99)] == [5, 6, 9, 9]
    with pytest.raises(Lost):
        replica.txid_seq(4)
    await replica.close()


async def test_a_round_is_folded_whole_or_not_at_all(tmp_path: Path) -> None:
    entries = [txn(0, txid=0), txn(1, txid=1), txn(2, txid=1), txn(3, txid=1), txn(4, txid=4)]
    replica = await filled(tmp_path, entries)
    assert await replica.fold_step(2, old=always) == 1
    assert replica.base.seq == 0
    assert await replica.fold_step(0, old=always) == await replica.fold_step(-1, old=always) == 0
    assert await replica.fold_step(4, old=lambda entry: entry.seq != 3) == 0
    assert await replica.fold_step(3, old=always) == 3
    assert replica.base.seq == 3
    await replica.close()


async def test_a_full_disk_leaves_the_history_as_it_was(tmp_path: Path) -> None:
    replica = await filled(tmp_path, numbered(9))
    with mock.patch.object(store_module, "_require_room", side_effect=DiskFull("no room")):
        with pytest.raises(DiskFull):
            await replica.fold_step(5, old=always)
        assert replica.base.seq == -1
        assert_equals_above(replica, Model(numbered(9)), -1)
    await fold(replica, 5)
    await replica.append_own([checkpoint(numbered(9), 5)], epoch=1)
    await applied(replica, 9)
    with (
        mock.patch.object(store_module, "_require_room", side_effect=DiskFull("no room")),
        pytest.raises(DiskFull),
    ):
        await replica.trim_step(5)
    assert replica.first_seq == 0
    assert replica.entry(0) == numbered(9)[0]
    await replica.close()


async def test_a_pinned_base_is_not_folded_also_if_the_fold_waited_for_its_turn(tmp_path: Path) -> None:
    replica = await filled(tmp_path, numbered(9))
    replica._lane.enter(lambda: None)
    step = asyncio.ensure_future(replica.fold_step(5, old=always))
    await asyncio.sleep(0)
    with replica.pinned() as base:
        replica._lane.leave()
        assert await step == 0
        assert await replica.fold_step(5, old=always) == 0
        assert replica.base == base
    assert await replica.fold_step(5, old=always) == 6
    await replica.close()


async def test_a_replica_made_before_there_was_a_base_is_folded_like_any_other(tmp_path: Path) -> None:
    replica = await filled(tmp_path, numbered(9))
    with replica._store._env.begin(write=True) as txn_:
        txn_.drop(replica._store._db["base"])
    await replica.close()
    replica = await open_replica(tmp_path)
    assert "base" not in replica._store._db
    assert replica.base_page(b"") == []
    await replica.verify()
    await fold(replica, 8)
    await replica.close()
    replica = await open_replica(tmp_path)
    assert_equals_above(replica, Model(numbered(9)), 8)
    await replica.verify()
    await replica.close()


async def test_a_closed_replica_is_neither_folded_nor_trimmed(tmp_path: Path) -> None:
    replica = await filled(tmp_path, numbered(3))
    await replica.close()
    for step in (replica.fold_step(1, old=always), replica.trim_step(1)):
        with pytest.raises(Closed):
            await step
    with pytest.raises(Closed):
        replica.base_page(b"")


# -- what an audit finds ----------------------------------------------------------------------------------------


def _other_value(store: Store) -> None:
    _put_row(store, "base", b"k0", store.base_page(b"", count_max=1, bytes_max=1)[0][1] + b"!")


def _one_more_key(store: Store) -> None:
    _put_row(store, "base", b"zz", store.base_page(b"", count_max=1, bytes_max=1)[0][1])


def _another_place(store: Store) -> None:
    _put_row(store, "current", b"k0", bytes(12))


def _a_version_too_many(store: Store) -> None:
    _put_row(store, "versions", b"k0\x00" + bytes.fromhex("fffffffffffffffe"), bytes(4))


def _a_base_further_on(store: Store) -> None:
    _put_row(store, "meta", b"base", encode_base(replace(store.base, chain=bytes(32))))


def _a_checkpoint_that_never_was(store: Store) -> None:
    assert store.base.noted is not None
    noted = store.base.noted._replace(checkpoint=replace(store.base.noted.checkpoint, keys=9))
    _put_row(store, "meta", b"base", encode_base(replace(store.base, noted=noted)))


def _another_total(store: Store) -> None:
    _put_row(store, "meta", b"base-total", encode([1, store.base.seq, bytes(32)]))


def _put_row(store: Store, table: str, key: bytes, value: bytes) -> None:
    with store._env.begin(write=True) as txn_:
        txn_.put(key, value, db=store._db[table])


@pytest.mark.parametrize(
    "damage",
    [
        _other_value,
        _one_more_key,
        _another_place,
        _a_version_too_many,
        _a_base_further_on,
        _a_checkpoint_that_never_was,
        _another_total,
    ],
)
@pytest.mark.parametrize("is_trimmed", [True, False])
async def test_an_audit_finds_a_base_or_a_table_that_is_not_what_follows(
    tmp_path: Path, damage: Callable[[Store], None], is_trimmed: bool
) -> None:
    replica = await filled(tmp_path, numbered(9))
    await fold(replica, 5)
    await replica.append_own([checkpoint(numbered(9), 5)], epoch=1)
    await applied(replica, 9)
    if is_trimmed:
        await trim(replica)
    await replica.verify()
    damage(replica._store)
    await replica.close()
    replica = await open_replica(tmp_path)
    with pytest.raises(Corrupt):
        await replica.verify()
    await replica.close()


# -- formats ----------------------------------------------------------------------------------------------------


async def test_a_base_is_read_back_as_it_was_written_and_nothing_else_is_read(tmp_path: Path) -> None:
    replica = await trimmed(tmp_path, numbered(9), 5)
    for base in (Base(), replica.base):
        data = encode_base(base)
        assert decode_base(data) == base
        for at in range(0, len(data), 7):
            for damaged in (data[:at], data[:at] + b"\xf6" + data[at + 1 :]):
                try:
                    other = decode_base(damaged)
                except Invalid:
                    continue
                assert other != base or damaged == data
    await replica.close()


def test_the_hash_of_a_base_is_the_one_in_the_book() -> None:
    """Written out by hand, as docs/formats.md says."""
    digest = Digest()
    digest.add(Fold.of([txn(0, Put("b", b"xy")), txn(1, Put("a", b""), epoch=2)]).puts)
    rows = [(b"a", (2).to_bytes(4, "big") + (1).to_bytes(8, "big") + bytes(4))]
    rows.append((b"b", (1).to_bytes(4, "big") + bytes(8) + bytes(4) + b"xy"))
    told = b"".join(len(k).to_bytes(2, "big") + len(r).to_bytes(4, "big") + k + r for k, r in rows)
    expected = hashlib.sha256(b"fencekv.base.v1" + told).digest()
    assert digest.checkpoint(1) == journal.Checkpoint(at=1, keys=2, digest=expected)


def test_a_total_is_the_sum_in_the_book_whatever_the_order_of_folds() -> None:
    """SHA-256 over each row with its lengths, as numbers, added up modulo 2^256."""
    rows = [(b"a", pack_row(Row(1, 0, 0, b"x"))), (b"b", pack_row(Row(1, 1, 0, b"")))]
    hashes = [
        hashlib.sha256(b"fencekv.row.v1" + len(k).to_bytes(2) + len(v).to_bytes(4) + k + v).digest()
        for k, v in rows
    ]
    expected = (sum(map(int.from_bytes, hashes)) % 2**256).to_bytes(32)
    digest = Digest()
    digest.add(rows)
    assert digest.total == expected
    other = changed_total(bytes(32), came=reversed(rows))
    assert other == expected
    assert changed_total(other, went=rows) == bytes(32)


def test_a_checkpoint_is_an_entry_like_any_other() -> None:
    entry = checkpoint(numbered(4), 2)
    assert decode_entry(encode_entry(entry)) == entry
    assert (entry.kind, entry.writes) == (journal.Kind.CHECKPOINT, ())


# -- seeds ------------------------------------------------------------------------------------------------------


async def seeded(source: Replica, target: Replica, *, page: int = 2) -> Seed:
    """A seed beside `target`, with all of the source's base."""
    after, digest = b"", Digest()
    seed = await target.begin_seed(source.base)
    while rows := source.base_page(after, count_max=page):
        await target.add_to_seed(seed, rows)
        digest.add(rows)
        after = rows[-1][0]
    seed.check(digest.checkpoint(source.base.seq))
    return seed


async def test_a_seed_becomes_a_replica_with_all_that_the_base_holds(tmp_path: Path) -> None:
    entries = numbered(9)
    source = await trimmed(tmp_path / "source", entries, 5)
    entries.append(checkpoint(entries, 5))
    new_id = ids()
    target = await Replica.open(tmp_path / "target", UID, executor=Inline(), new_id=new_id)
    await target.promise(4)
    seed = await seeded(source, target)
    await target.close()
    target = await Replica.reseed(
        tmp_path / "target", UID, executor=Inline(), new_id=new_id, promised=3, seed=seed
    )
    assert (target.last, target.chain, target.promised) == (source.base.last, source.base.chain, 4)
    assert (target.applied_seq, target.commit_seq, target.first_seq) == (5, 5, 6)
    await target.append_copied(source.raw(6, 10, 1 << 20), epoch=4)
    await applied(target, target.last.seq)
    assert (target.chain, target.root(), target.base.noted) == (source.chain, source.root(), source.base.noted)
    assert_equals_above(target, Model(entries), 5)
    await target.verify()
    for replica in (source, target):
        await replica.close()


async def test_a_seed_takes_only_rows_of_the_base_in_their_order(tmp_path: Path) -> None:
    source = await trimmed(tmp_path / "source", numbered(9), 5)
    target = await open_replica(tmp_path / "target")
    rows = source.base_page(b"")
    bad = [
        [rows[1], rows[0]],
        [(b"", rows[0][1])],
        [(b"a\x00", rows[0][1])],
        [(b"\xff", rows[0][1])],
        [(b"k" * 1025, rows[0][1])],
        [(b"k0", rows[0][1][:15])],
        [(b"k0", pack_row(Row(1, 6, 0, b"")))],
        [(b"k0", pack_row(Row(2, 5, 0, b"")))],
        [(b"k0", pack_row(Row(0, 5, 0, b"")))],
    ]
    for page in bad:
        seed = await target.begin_seed(source.base)
        with pytest.raises(Invalid):
            await target.add_to_seed(seed, page)
    seed = await target.begin_seed(source.base)
    await target.add_to_seed(seed, rows[1:])
    with pytest.raises(Invalid, match="order"):
        await target.add_to_seed(seed, rows[:1])
    with pytest.raises(Invalid, match="hash"):
        seed.check(checkpoint_of(numbered(9), 5))
    later = await target.begin_seed(source.base)
    with pytest.raises(Closed):
        await target.add_to_seed(seed, rows)
    await target.add_to_seed(later, rows)
    later.check(checkpoint_of(numbered(9), 5))
    for replica in (source, target):
        await replica.close()
    assert target.last.seq == -1


async def test_a_full_disk_ends_a_seed_and_gives_its_room_back(tmp_path: Path) -> None:
    source = await trimmed(tmp_path / "source", numbered(9), 5)
    target = await open_replica(tmp_path / "target")
    seed = await target.begin_seed(source.base)
    path = tmp_path / "target" / f"{UID}.seed"
    assert path.exists()
    with (
        mock.patch.object(store_module, "_require_room", side_effect=DiskFull("no room")),
        pytest.raises(DiskFull),
    ):
        await target.add_to_seed(seed, source.base_page(b""))
    assert not path.exists()
    for replica in (source, target):
        await replica.close()
