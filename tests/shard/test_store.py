"""An environment keeps each write whole or not at all, and takes none past a moved promise or a failed commit."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import lmdb
import pytest
from hypothesis import given
from hypothesis import strategies as st
from storage import UID, ids, owner, txn

from fencekv.codec import encode
from fencekv.errors import Invalid
from fencekv_shard import folder as files
from fencekv_shard import limits
from fencekv_shard import store as store_module
from fencekv_shard.audit import audit, peaks_at
from fencekv_shard.base import Base, Fold, folded
from fencekv_shard.folder import Lock
from fencekv_shard.journal import Entry, encode_entry, record_chain
from fencekv_shard.rows import batch_of
from fencekv_shard.state import (
    EpochEnd,
    Position,
    State,
    appended,
    decode_state,
    encode_state,
    ends_rows,
    truncated,
)
from fencekv_shard.store import (
    BelowApplied,
    CommitFailed,
    DiskFull,
    FolderInUse,
    PromiseMoved,
    StalePromise,
    Store,
    UnknownFormat,
)
from fencekv_shard.transaction import Delete, Put


def made(path: Path, *, promised: int = 1, map_bytes: int = 16 << 30) -> Store:
    Store.create(path, State(replica_id="a3f0", promised=promised))
    return Store.open(path, map_bytes=map_bytes)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = made(tmp_path / "env")
    yield store
    store.close()


def put(store: Store, entries: Sequence[Entry], *, promised: int = 1) -> None:
    pairs = [(entry, encode_entry(entry)) for entry in entries]
    state, records = appended(store.state, pairs, commit_seq=store.state.commit_seq)
    store.append(records, state, promised=promised).commit()


def apply(store: Store, entries: Sequence[Entry]) -> None:
    seq = entries[-1].seq
    store.apply(batch_of(entries), replace(store.state, applied_seq=seq, commit_seq=seq)).commit()


# -- the gate inside the transaction --------------------------------------------------------------------------


def test_an_append_under_an_epoch_that_is_no_longer_promised_writes_nothing(store: Store) -> None:
    put(store, [txn(0)])
    believed = store.state
    store.promise(2).commit()
    state, records = appended(believed, [(txn(1), encode_entry(txn(1)))], commit_seq=-1)
    with pytest.raises(PromiseMoved) as refused:
        store.append(records, state, promised=1).commit()
    assert (refused.value.epoch, refused.value.promised) == (1, 2)
    assert store.last_seq() == 0
    assert store.state == replace(believed, promised=2)


def test_the_promise_that_counts_is_the_one_on_disk(store: Store) -> None:
    """Another process moved it; this one's memory knows nothing of that."""
    put(store, [txn(0)])
    believed = store.state
    _overwrite(store, "meta", b"state", encode_state(replace(believed, promised=9)))
    assert store.state == believed
    with pytest.raises(PromiseMoved):
        put(store, [txn(1)])
    assert store.last_seq() == 0


def test_an_append_under_a_closed_epoch_writes_nothing(store: Store) -> None:
    put(store, [txn(0)])
    store.close_epoch(1).commit()
    with pytest.raises(PromiseMoved):
        put(store, [txn(1)])
    assert store.last_seq() == 0
    store.promise(2).commit()
    put(store, [txn(1, epoch=2)], promised=2)
    assert store.last_seq() == 1


def test_promises_and_closed_epochs_only_rise(store: Store) -> None:
    store.promise(5).commit()
    store.promise(5).commit()
    with pytest.raises(StalePromise):
        store.promise(4).commit()
    store.close_epoch(5).commit()
    store.close_epoch(3).commit()
    assert (store.state.promised, store.state.closed_epoch) == (5, 5)


def test_a_record_that_does_not_follow_the_last_on_disk_is_our_bug(store: Store) -> None:
    put(store, [txn(0)])
    disk = store.state
    for seq in (0, 2):
        believed, _ = appended(State(replica_id="a3f0", promised=1), _pairs(seq), commit_seq=-1)
        state, records = appended(believed, [(txn(seq), encode_entry(txn(seq)))], commit_seq=-1)
        with pytest.raises(AssertionError):
            store.append(records, state, promised=1).commit()
        assert (store.last_seq(), store.state) == (0, disk)


# -- whole or not at all --------------------------------------------------------------------------------------


def test_a_full_map_refuses_cleanly_and_smaller_writes_go_on(tmp_path: Path) -> None:
    store = made(tmp_path / "env", map_bytes=1 << 20)
    put(store, [txn(0)])
    before = store.state
    with pytest.raises(DiskFull):
        put(store, [txn(1, Put("big", bytes(2 << 20)))])
    assert (store.state, store.last_seq()) == (before, 0)
    put(store, [txn(1)])
    assert store.last_seq() == 1
    store.close()


def test_a_disk_without_room_refuses_before_anything_is_written(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, [txn(0)])
    nearly_full = SimpleNamespace(f_bavail=300, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda path: nearly_full)
    with pytest.raises(DiskFull):
        put(store, [txn(1, Put("big", bytes(1 << 20)))])
    assert store.last_seq() == 0
    put(store, [txn(1, Delete("k0"))])
    assert store.last_seq() == 1


def test_after_a_failed_commit_nothing_is_written_any_more(tmp_path: Path) -> None:
    path = tmp_path / "env"
    store = made(path)
    put(store, [txn(0)])
    with _file_size_limit((path / "data.mdb").stat().st_size), pytest.raises(CommitFailed):
        put(store, [txn(1, Put("big", bytes(1 << 20)))])
    for write in (
        lambda: put(store, [txn(1)]),
        lambda: store.promise(7).commit(),
        lambda: store.cut(-1, State(replica_id=""), promised=1).commit(),
    ):
        with pytest.raises(CommitFailed):
            write()
    store.close()
    again = Store.open(path)
    assert (again.last_seq(), again.state.last) == (0, Position(1, 0, 0))
    put(again, [txn(1)])
    again.close()


def test_a_cut_removes_exactly_what_is_above(store: Store) -> None:
    put(store, [txn(at) for at in range(5)])
    two, _ = appended(State(replica_id="a3f0", promised=1), _pairs(2), commit_seq=-1)
    store.cut(1, two, promised=1).commit()
    assert store.last_seq() == 1
    assert len(store.records(0, count_max=10, bytes_max=1 << 20)) == 2
    put(store, [txn(2, Put("other", b""))])
    apply(store, [txn(0), txn(1), txn(2, Put("other", b""))])
    with pytest.raises(BelowApplied):
        store.cut(1, two, promised=1).commit()
    assert store.last_seq() == 2


def test_everything_is_there_after_opening_again(tmp_path: Path) -> None:
    store = made(tmp_path / "env")
    entries = [txn(0, Put("a", b"1"), Put("b", b"1")), txn(1, Delete("a"), key=b"once"), txn(2, Put("c", b"3"))]
    put(store, entries)
    apply(store, entries[:2])
    state = store.state
    store.close()
    store = Store.open(tmp_path / "env")
    assert store.state == state
    assert (store.current("a"), store.current("b"), store.current("c")) == (None, (0, 1), None)
    assert store.versions_of("a", seq=9, limit=9) == [(1, 0), (0, 0)]
    assert store.version_at("a", 0) == (0, 0)
    assert (store.idempotency(b"once"), store.idempotency(b"twice")) == (1, None)
    store.close()


def test_keys_with_one_beginning_do_not_mix(store: Store) -> None:
    names = ["a", "a\x01", "a\x01b", "aa", "b", "é"]
    entries = [txn(at, Put(name, b"")) for at, name in enumerate(names)]
    put(store, entries)
    apply(store, entries)
    assert [key for key, _ in store.current_page("", "", limit=9)] == names
    for at, name in enumerate(names):
        assert store.versions_of(name, seq=99, limit=9) == [(at, 0)]
        assert [key for key, _ in store.versions_page("", "", seq=at, limit=9)] == names[: at + 1]
    assert [key for key, _ in store.versions_page("a\x01", "b", seq=9, limit=2)] == ["a\x01", "a\x01b"]
    assert [key for key, _ in store.current_page("aa", "é", limit=9)] == ["aa", "b"]


def test_the_longest_key_fits(store: Store) -> None:
    entry = txn(0, Put("é" * 512, b"v"), key=bytes(256))
    put(store, [entry])
    apply(store, [entry])
    assert store.version_at("é" * 512, 0) == (0, 0)
    assert store.idempotency(bytes(256)) == 0


KILLED = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from storage import txn
from fencekv_shard.journal import encode_entry
from fencekv_shard.state import State, appended
from fencekv_shard.store import Store
path = Path(sys.argv[1])
Store.create(path, State(replica_id="a3f0", promised=1))
store = Store.open(path)
for seq in range(1_000_000):
    state, records = appended(store.state, [(txn(seq), encode_entry(txn(seq)))], commit_seq=-1)
    store.append(records, state, promised=1).commit()
    print(seq, flush=True)
"""


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    library = str(Path(__file__).parent.parent / "lib")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "env"), library]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        acknowledged = [int(process.stdout.readline()) for _ in range(50)]
        process.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in process.stdout if line.endswith("\n")]
    store = Store.open(tmp_path / "env")
    assert store.last_seq() >= acknowledged[-1]
    assert store.last_seq() == store.state.last.seq
    store.close()


# -- what is not ours -----------------------------------------------------------------------------------------


def _other_engine(path: Path) -> None:
    path.mkdir()
    with lmdb.open(str(path)) as env, env.begin(write=True) as transaction:
        transaction.put(b"a", b"b")


def _garbage(path: Path) -> None:
    path.mkdir()
    (path / "data.mdb").write_bytes(b"garbage" * 4096)


def _later_format(path: Path) -> None:
    store = made(path)
    shape = [2, *["later"] * 20]
    _overwrite(store, "meta", b"state", encode(shape))
    store.close()


def _other_tables(path: Path) -> None:
    path.mkdir()
    with lmdb.open(str(path), lib_version=1, max_dbs=1) as env:
        env.open_db(b"something")


@pytest.mark.parametrize("make", [Path.mkdir, _other_engine, _garbage, _later_format, _other_tables])
def test_a_foreign_environment_is_refused_and_left_alone(make: object, tmp_path: Path) -> None:
    path = tmp_path / "env"
    assert callable(make)
    make(path)
    before = {file.name: file.read_bytes() for file in path.iterdir() if file.name != "lock.mdb"}
    with pytest.raises(UnknownFormat, match="env"):
        Store.open(path)
    assert {file.name: file.read_bytes() for file in path.iterdir() if file.name != "lock.mdb"} == before


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_damaged_state_is_refused_or_reads_as_another_state(place: int, change: int) -> None:
    """Never an exception of another sort, whatever the bytes are."""
    state = State(replica_id="a3f0", promised=3, members=("a/1", "b/2"), ends=(EpochEnd(1, 5, 4),), closed_epoch=2)
    data = bytearray(encode_state(state))
    assert decode_state(bytes(data)) == state
    data[place % len(data)] ^= change
    with contextlib.suppress(Invalid):
        assert decode_state(bytes(data)) != state


ENDS = tuple(EpochEnd(epoch, 10 * epoch, 9 * epoch) for epoch in range(1, 31))


def _reign(store: Store, epochs: int) -> None:
    """Owners follow each other, and each writes once."""
    for _ in range(epochs):
        epoch, last = store.state.last.epoch + 1, store.state.last
        store.promise(epoch).commit()
        for entry in (owner(last.seq + 1, epoch=epoch, previous=last), txn(last.seq + 2, epoch=epoch)):
            put(store, [entry], promised=epoch)


def _meta(store: Store, key: bytes) -> bytes | None:
    with store._env.begin() as txn_:
        data: bytes | None = txn_.get(key, db=store._db["meta"])
        return data


def test_a_round_does_not_write_more_the_more_epochs_there_were(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    right = ends_rows

    def noted(ends: tuple[EpochEnd, ...]) -> list[tuple[bytes, bytes]]:
        written.extend([len(ends)] * len(right(ends)))
        return right(ends)

    monkeypatch.setattr(store_module, "ends_rows", noted)
    _reign(store, limits.ENDS_INLINE_MAX + 1)
    assert (len(store.state.ends), _meta(store, b"ends"), written) == (limits.ENDS_INLINE_MAX, None, [])
    _reign(store, 200)
    assert written == [*range(limits.ENDS_INLINE_MAX + 1, limits.ENDS_INLINE_MAX + 201)]
    assert len(_meta(store, b"state") or b"") < 500
    assert [end.epoch for end in store.state.ends] == [*range(1, limits.ENDS_INLINE_MAX + 201)]
    known, path = store.state, store.path
    store.close()
    again = Store.open(path)
    assert again.state == known
    again.close()


@pytest.mark.parametrize("fits", [True, False])
def test_ends_are_known_up_to_a_limit(store: Store, monkeypatch: pytest.MonkeyPatch, fits: bool) -> None:
    monkeypatch.setattr(limits, "ENDS_MAX", 30 if fits else 25)
    _reign(store, 31)
    expected = [*range(1 if fits else 6, 31)]
    assert [end.epoch for end in store.state.ends] == expected
    path = store.path
    store.close()
    again = Store.open(path)
    assert [end.epoch for end in again.state.ends] == expected
    audit(again)
    seq = again.state.last.seq - 2  # without the last epoch, the end of the one before is open again
    last, peaks = Position(30, seq, seq), peaks_at(again, seq + 1)
    chain = record_chain(again.record(seq) or b"")
    cut = [owner(seq + 1, epoch=31, previous=last), txn(seq + 2, epoch=31)]
    state = truncated(again.state, last=last, peaks=peaks, chain=chain, cut=cut, in_sync=None)
    again.cut(seq, state, promised=31).commit()
    assert [end.epoch for end in again.state.ends] == expected[:-1]
    audit(again)
    again.close()


@pytest.mark.parametrize(
    ("inline", "last_epoch", "apart", "expected"),
    [
        (ENDS, 31, None, ENDS),  # a version that knew no `meta.ends`
        (ENDS[14:], 31, ENDS, ENDS),
        (ENDS[10:], 31, ENDS[:26], ENDS),  # one has written since
        (ENDS[10:20], 21, ENDS[:26], ENDS[:20]),  # and has cut some off
        ((), 16, ENDS[:26], ENDS[:15]),
        ((), 1, None, ()),
    ],
)
def test_ends_of_both_places_make_one_list(
    inline: tuple[EpochEnd, ...],
    last_epoch: int,
    apart: tuple[EpochEnd, ...] | None,
    expected: tuple[EpochEnd, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = State(replica_id="a3f0", promised=40, last=Position(last_epoch, -1, 0), ends=inline)
    beside = None if apart is None else encode([1, [list(end) for end in apart]])
    with monkeypatch.context() as earlier:
        earlier.setattr(limits, "ENDS_INLINE_MAX", 1000)
        data = encode_state(state)
    assert decode_state(data, beside).ends == expected


@pytest.mark.parametrize(
    "damaged", [b"", b"\xf6", encode([2, []]), encode([1, [[1, 2]]]), encode([1, [["a", 2, 3]]])]
)
def test_damaged_ends_are_refused(damaged: bytes) -> None:
    with pytest.raises(Invalid, match=r"meta\.ends"):
        decode_state(encode_state(State(replica_id="a3f0")), damaged)


# -- the folder -----------------------------------------------------------------------------------------------


def test_two_cannot_hold_one_lock(tmp_path: Path) -> None:
    lock = Lock.take(tmp_path, UID)
    with pytest.raises(FolderInUse):
        Lock.take(tmp_path, UID)
    Lock.take(tmp_path, "another").release()
    lock.release()
    Lock.take(tmp_path, UID).release()


LOCKING = """
import sys
from pathlib import Path
from fencekv_shard.folder import Lock
Lock.take(Path(sys.argv[1]), sys.argv[2])
"""


def test_another_process_cannot_take_a_held_lock(tmp_path: Path) -> None:
    lock = Lock.take(tmp_path, UID)
    command = [sys.executable, "-c", LOCKING, str(tmp_path), UID]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "FolderInUse" in refused.stderr
    lock.release()
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


class Crash(Exception):
    """The process ends here."""


def crash_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends the process before the given one of the steps that change the folder."""
    steps = iter(range(1000))

    def counted(original: object) -> object:
        def call(*arguments: object, **names: object) -> object:
            if next(steps) == step:
                raise Crash
            assert callable(original)
            return original(*arguments, **names)

        return call

    for owner_, name in (
        (Path, "rename"),
        (Path, "mkdir"),
        (Path, "unlink"),
        (store_module, "encode_state"),
        (store_module, "sync_folder"),
        (files, "sync_folder"),
        (shutil, "rmtree"),
    ):
        monkeypatch.setattr(owner_, name, counted(getattr(owner_, name)))


@pytest.mark.parametrize("step", range(9))
def test_a_crash_while_a_replica_is_created_is_finished_or_undone(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_id = ids()
    with monkeypatch.context() as patch:
        crash_at(step, patch)
        try:
            files.open_or_create(tmp_path, UID, new_id=new_id).close()
            finished = True
        except Crash:
            finished = False
    assert finished == (step >= 7), "steps are missing in the parameters, or too many"
    store = files.open_or_create(tmp_path, UID, new_id=new_id)
    assert store.state == State(replica_id=store.state.replica_id)
    store.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [UID]


@pytest.mark.parametrize("promised", [2, 9])
@pytest.mark.parametrize("step", range(10))
def test_a_crash_while_seeding_anew_loses_no_promise(
    step: int, promised: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_id = ids()
    old = files.open_or_create(tmp_path, UID, new_id=new_id)
    old.promise(4).commit()
    put(old, [owner(0, epoch=4)], promised=4)
    old.close_epoch(3).commit()
    old_id = old.state.replica_id
    old.close()
    with monkeypatch.context() as patch:
        crash_at(step, patch)
        try:
            files.replace_environment(tmp_path, UID, new_id=new_id, promised=promised).close()
            finished = True
        except Crash:
            finished = False
    assert finished == (step >= 9), "steps are missing in the parameters, or too many"
    store = files.open_or_create(tmp_path, UID, new_id=new_id)
    state = store.state
    store.close()
    aside = [path.name for path in tmp_path.glob("*.aside-*")]
    if state.replica_id == old_id:
        assert (state.last.seq, state.promised, state.closed_epoch, aside) == (0, 4, 3, [])
    else:
        assert (state.last.seq, state.promised, state.closed_epoch) == (-1, max(promised, 4), 3)
        assert aside == [f"{UID}.aside-{old_id}"]
    assert not (tmp_path / f"{UID}.seed").exists()


@pytest.mark.parametrize("step", range(11))
def test_a_crash_while_a_base_is_received_leaves_the_old_replica_or_the_whole_seed(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_id = ids()
    old = files.open_or_create(tmp_path, UID, new_id=new_id)
    old.promise(4).commit()
    put(old, [owner(0, epoch=4)], promised=4)
    old.close_epoch(3).commit()
    old_id = old.state.replica_id
    old.close()
    entries = [txn(seq) for seq in range(4)]
    end, _ = appended(State(replica_id=""), [(entry, encode_entry(entry)) for entry in entries], commit_seq=-1)
    base = folded(Base(), entries, chain=end.chain, peaks=end.peaks)
    rows = Fold.of(entries).puts
    with monkeypatch.context() as patch:
        crash_at(step, patch)
        try:
            seed = files.Seed(tmp_path, UID, base)
            seed.begin()
            seed.add(rows[:2])
            seed.add(rows[2:])
            files.replace_environment(tmp_path, UID, new_id=new_id, promised=2, seed=seed).close()
            finished = True
        except Crash:
            finished = False
    store = files.open_or_create(tmp_path, UID, new_id=new_id)
    state, kept, found = store.state, store.base, store.base_page(b"", count_max=9, bytes_max=1 << 20)
    audit(store)
    store.close()
    aside = [path.name for path in tmp_path.glob("*.aside-*")]
    if state.replica_id == old_id:
        assert not finished
        assert (state.last.seq, state.promised, state.closed_epoch, aside) == (0, 4, 3, [])
    else:
        assert step >= 6, "it took the old one's place before it was complete"
        assert (state.last, state.promised, state.closed_epoch) == (base.last, 4, 3)
        assert (kept.seq, kept.first_seq, found) == (3, 4, rows)
        assert aside == [f"{UID}.aside-{old_id}"]
    assert finished == (step >= 9), "steps are missing in the parameters, or too many"
    assert not (tmp_path / f"{UID}.seed").exists()


def test_a_promise_outlives_the_loss_of_the_environment_that_made_it(tmp_path: Path) -> None:
    """Somebody removed the environment; what it had promised when it was set aside still counts."""
    new_id = ids()
    store = files.open_or_create(tmp_path, UID, new_id=new_id)
    store.promise(6).commit()
    store.close()
    files.replace_environment(tmp_path, UID, new_id=new_id, promised=5).close()
    shutil.rmtree(tmp_path / UID)
    store = files.open_or_create(tmp_path, UID, new_id=new_id)
    assert store.state.promised == 6
    store.close()


def test_an_unreadable_environment_is_set_aside_too(tmp_path: Path) -> None:
    _garbage(tmp_path / UID)
    store = files.replace_environment(tmp_path, UID, new_id=ids(), promised=3)
    assert store.state.promised == 3
    store.close()
    assert (tmp_path / f"{UID}.aside-unknown-0" / "data.mdb").exists()


@pytest.mark.parametrize(
    ("limit", "value", "kept"),
    [
        ("ASIDE_REPLICAS_MAX", 2, ["b", "c"]),
        ("ASIDE_REPLICAS_MAX", 0, ["b"]),  # what was set aside last is kept in any case
        ("ASIDE_BYTES_MAX", 1, ["b"]),
    ],
)
def test_of_replicas_set_aside_the_last_ones_are_kept(
    limit: str, value: int, kept: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_id = iter("edcba").__next__
    monkeypatch.setattr(limits, "ASIDE_REPLICAS_MAX", 9)
    stranger = tmp_path / f"{UID[:-1]}9.aside-0"
    stranger.mkdir()
    files.open_or_create(tmp_path, UID, new_id=new_id).close()
    for number in range(1, 5):
        os.utime(tmp_path / UID / "data.mdb", (number, number))
        if number == 4:
            monkeypatch.setattr(limits, limit, value)
        store = files.replace_environment(tmp_path, UID, new_id=new_id, promised=number)
        assert store.state.promised == number
        store.close()
    assert sorted(path.name[-1] for path in tmp_path.glob(f"{UID}.aside-*")) == kept
    assert stranger.is_dir()


@pytest.mark.parametrize(
    ("limit", "value", "kept"),
    [("TAILS_MAX", 2, [3, 4]), ("TAILS_BYTES_MAX", 9, [4]), ("TAILS_BYTES_MAX", 10, [3, 4])],
)
def test_of_tails_set_aside_the_last_ones_are_kept(
    limit: str, value: int, kept: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, limit, value)
    for seq in range(1, 5):
        path = files.write_tail(tmp_path, UID, epoch=9 - seq, seq=seq, data=b"%05d" % seq)
        os.utime(path, (seq, seq))
    assert sorted(int(path.read_bytes()) for path in tmp_path.glob(f"{UID}.tail-*")) == kept


def test_a_discarded_partition_leaves_nothing_and_its_neighbours_alone(tmp_path: Path) -> None:
    for uid in (UID, "another"):
        files.open_or_create(tmp_path, uid, new_id=ids()).close()
    files.replace_environment(tmp_path, UID, new_id=ids(), promised=1).close()
    files.write_tail(tmp_path, UID, epoch=1, seq=4, data=b"x")
    files.retain(tmp_path, "another")
    lock = Lock.take(tmp_path, UID)
    with pytest.raises(FolderInUse):
        files.discard(tmp_path, UID)
    lock.release()
    assert files.uids(tmp_path) == [UID, "another"]
    files.discard(tmp_path, UID)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["another", "another.retained"]
    assert files.is_retained(tmp_path, "another")
    assert not files.is_retained(tmp_path, UID)


def test_tails_never_overwrite_each_other(tmp_path: Path) -> None:
    paths = [files.write_tail(tmp_path, UID, epoch=2, seq=7, data=data) for data in (b"a", b"a", b"b", b"b")]
    assert [path.name for path in paths] == [f"{UID}.tail-2-7.cbor"] * 2 + [f"{UID}.tail-2-7.2.cbor"] * 2
    assert [path.read_bytes() for path in paths] == [b"a", b"a", b"b", b"b"]


# -- help -----------------------------------------------------------------------------------------------------


def _pairs(count: int) -> list[tuple[Entry, bytes]]:
    return [(txn(at), encode_entry(txn(at))) for at in range(count)]


def _overwrite(store: Store, table: str, key: bytes, value: bytes) -> None:
    with store._env.begin(write=True) as transaction:
        transaction.put(key, value, db=store._db[table])


class _file_size_limit:
    """Files cannot grow beyond this: the write inside a commit fails."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def __enter__(self) -> None:
        assert signal.getsignal(signal.SIGXFSZ) is signal.SIG_IGN
        resource.setrlimit(resource.RLIMIT_FSIZE, (self._size_bytes, self._before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)
