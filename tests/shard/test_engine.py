"""The owner's commit rounds: what is acknowledged, when, and what is refused without a trace."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from engines import B, Bench, C, bench, put, settle, turns
from storage import Holding, open_replica, txn

from fencekv.errors import Exhausted, FenceKVError, Invalid, NotOwner, TooLarge, Unavailable, Unknown
from fencekv.token import Token, Version
from fencekv_shard import limits
from fencekv_shard.api import Durability
from fencekv_shard.journal import AcceptedLoss, InSync, Ownership
from fencekv_shard.store import CommitFailed, Corrupt, DiskFull
from fencekv_shard.transaction import (
    Compare,
    Delete,
    Get,
    GetResult,
    Put,
    Relation,
    Target,
    Transaction,
)


def if_exists(key: str, *then: Put | Delete | Get, exists: bool = True, **options: Any) -> Transaction:
    compare = (Compare(key, Target.EXISTS, Relation.EQUAL, exists),)
    return Transaction(compare=compare, then=then, **options)


async def opened(folder: Path, **changes: Any) -> Bench:
    world = await bench(folder, **changes)
    await world.opened(B)
    return world


# -- gate 1: the deadline


async def test_past_its_deadline_an_owner_writes_nothing(tmp_path: Path) -> None:
    world = await opened(tmp_path)
    last = world.replica.last
    world.clock.seconds = world.session.deadline
    with pytest.raises(NotOwner, match="deadline"):
        await world.submit(put("k"))
    assert world.replica.last == last


async def test_a_deadline_that_passes_during_the_commit_leaves_the_outcome_unknown(tmp_path: Path) -> None:
    disk = Holding()
    world = await opened(tmp_path, executor=disk, durability=Durability.STANDARD)
    disk.hold()
    answer = world.submit(put("k"))
    await disk.held.wait()
    world.clock.seconds = world.session.deadline
    disk.release()
    with pytest.raises(Unknown, match="deadline"):
        await answer
    assert world.replica.read("k", world.replica.last.seq) is not None  # it was written, and nobody was told


async def test_a_deadline_that_passes_before_the_confirmation_leaves_the_outcome_unknown(tmp_path: Path) -> None:
    world = await opened(tmp_path)
    answer = world.submit(put("k"))
    await turns()
    world.clock.seconds = world.session.deadline
    world.confirm(B)
    with pytest.raises(Unknown, match="deadline"):
        await answer


async def test_what_is_under_way_at_the_deadline_does_not_wait_for_standbys_that_never_confirm(
    tmp_path: Path,
) -> None:
    disk = Holding()
    world = await opened(tmp_path, executor=disk)
    first = world.submit(put("a"))
    await turns()
    disk.hold()
    second, third = world.submit(put("b")), world.submit(put("c"))
    await disk.held.wait()
    fourth = world.submit(put("d"))
    await turns()
    world.clock.seconds = world.session.deadline
    world.engine.expire()
    disk.release()
    outcomes = await asyncio.gather(first, second, third, fourth, return_exceptions=True)
    assert [type(one) for one in outcomes] == [Unknown, Unknown, Unknown, NotOwner]


# -- gate 2: the promised epoch, inside the transaction


@pytest.mark.parametrize("end", ["promise", "close_epoch"])
async def test_an_epoch_that_is_over_on_disk_appends_nothing(tmp_path: Path, end: str) -> None:
    world = await opened(tmp_path)
    remembered, last = world.replica._state, world.replica.last
    if end == "promise":
        await world.replica.promise(2)
    else:
        await world.replica.close_epoch(1)
    world.replica._state = remembered  # the cheap check before the transaction knows nothing of it
    with pytest.raises(NotOwner, match="newer epoch"):
        await world.submit(put("k"))
    assert world.deposed == [1]
    assert world.replica._store.state.last == last
    with pytest.raises(NotOwner):
        await world.submit(put("again"))


# -- rounds


async def test_requests_of_a_round_share_a_txid_and_see_each_other(tmp_path: Path) -> None:
    disk = Holding()
    world = await opened(tmp_path, executor=disk, durability=Durability.STANDARD)
    disk.hold()
    before = world.submit(put("a"))
    await disk.held.wait()
    round_ = [
        world.submit(if_exists("a", Put("b", b"1"))),
        world.submit(if_exists("b", Put("c", b"2"), exists=False)),
        world.submit(if_exists("b", Get("b"), Delete("b"))),
        world.submit(if_exists("b", Put("d", b"3"))),
    ]
    await turns()
    disk.release()
    first, chained, failed, deleted, gone = await asyncio.gather(before, *round_)
    assert first.version is not None
    assert [one.effect.succeeded for one in (chained, failed, deleted, gone)] == [True, False, True, False]
    assert {one.token for one in (chained, failed, deleted, gone)} == {Token(1, first.token.number + 1)}
    assert (chained.version, failed.version) == (Version(1, first.version.number + 1), None)
    assert deleted.version == Version(1, first.version.number + 2)


async def test_a_request_that_fails_its_checks_fails_alone(tmp_path: Path) -> None:
    disk = Holding()
    world = await opened(tmp_path, executor=disk, durability=Durability.STANDARD)
    await world.submit(put("a", idempotency_key=b"key"))
    disk.hold()
    world.submit(put("b")).add_done_callback(lambda done: done.exception())
    await disk.held.wait()
    wrong = world.submit(put("c", idempotency_key=b"key"))
    right = world.submit(put("d"))
    await turns()
    disk.release()
    with pytest.raises(Invalid, match="Idempotency-Key"):
        await wrong
    assert (await right).version is not None
    assert world.replica.read("c", world.replica.last.seq) is None


async def test_a_repeated_request_gets_the_answer_of_the_first(tmp_path: Path) -> None:
    disk = Holding()
    world = await opened(tmp_path, executor=disk, durability=Durability.STANDARD)
    await world.submit(put("a", b"old"))
    counter = Transaction(then=(Get("a"), Put("a", b"new")), idempotency_key=b"key")
    disk.hold()
    world.submit(put("b")).add_done_callback(lambda done: done.exception())
    await disk.held.wait()
    twice = [world.submit(counter), world.submit(counter)]
    await turns()
    disk.release()
    one, two = await asyncio.gather(*twice)
    last = world.replica.last
    later = await world.submit(counter)
    assert one == two == later
    assert later.effect.results[0] == GetResult("a", b"old", Version(1, 2))
    assert world.replica.last == last


@pytest.mark.parametrize("key", [b"", b"key"], ids=["no key", "a key"])
async def test_gets_that_find_too_much_refuse_the_whole_transaction_also_when_it_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: bytes
) -> None:
    monkeypatch.setattr(limits, "TXN_RESULT_BYTES_MAX", 10)
    world = await opened(tmp_path, durability=Durability.STANDARD)
    await world.submit(put("large", b"123456"))
    greedy = Transaction(then=(Put("a", b"new"), Get("large"), Get("large")), idempotency_key=key)
    with pytest.raises(TooLarge, match="its gets find more than 10 bytes"):
        await world.submit(greedy)
    if key:  # the repeated one finds the outcome of the first, and not what would come of it now
        await world.submit(put("large", b"1"))
        with pytest.raises(TooLarge, match="its gets find more than 10 bytes"):
            await world.submit(greedy)
    assert world.replica.read("a", world.replica.last.seq) is None
    await world.submit(Transaction(then=(Put("a", b"new"), Get("large"))))
    assert world.replica.read("a", world.replica.last.seq) is not None


async def test_answers_wait_until_every_counted_standby_has_confirmed(tmp_path: Path) -> None:
    world = await bench(tmp_path)
    await world.opened(B, C)
    first = world.submit(put("a"))
    await turns()
    second = world.submit(if_exists("a", Put("b", b"")))
    await turns()
    assert world.replica.last.seq == world.replica.commit_seq + 2  # the second was built on the first
    world.confirm(B)
    await turns()
    assert not first.done()
    world.engine.confirm(C, world.replica.last.seq - 1)
    await turns()
    assert first.done()
    assert not second.done()
    world.confirm(C)
    assert (await second).effect.succeeded


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(if_exists("a", Put("b", b""), exists=False), id="failed condition"),
        pytest.param(Transaction(then=(Get("a"),)), id="read"),
        pytest.param(put("a", idempotency_key=b"key"), id="replay"),
        pytest.param(put("other", idempotency_key=b"key"), id="another request under the same key"),
    ],
)
async def test_no_answer_shows_what_a_failover_could_take_back(tmp_path: Path, asked: Transaction) -> None:
    world = await opened(tmp_path)
    world.submit(put("a", idempotency_key=b"key")).add_done_callback(lambda done: done.exception())
    await turns()
    answer = world.submit(asked)
    await turns()
    assert not answer.done()
    world.confirm(B)
    await asyncio.wait([answer], timeout=1)
    assert answer.done()
    answer.exception()


async def test_a_request_can_raise_the_durability_of_a_standard_table(tmp_path: Path) -> None:
    world = await opened(tmp_path, durability=Durability.STANDARD)
    await world.submit(put("a"))
    raised = world.submit(put("b"), durability=Durability.REPLICATED)
    await turns()
    assert not raised.done()
    world.confirm(B)
    await raised


async def test_a_request_cannot_lower_the_durability_of_a_replicated_table(tmp_path: Path) -> None:
    world = await opened(tmp_path)
    answer = world.submit(put("a"), durability=Durability.STANDARD)
    await turns()
    assert not answer.done()
    world.confirm(B)
    await answer


async def test_a_client_that_goes_away_disturbs_nobody_else(tmp_path: Path) -> None:
    disk = Holding()
    world = await opened(tmp_path, executor=disk, durability=Durability.STANDARD)
    disk.hold()
    under_way = world.submit(put("a"))
    await disk.held.wait()
    queued, other = world.submit(put("b")), world.submit(put("c"))
    await turns()
    under_way.cancel()
    queued.cancel()
    await turns()
    disk.release()
    await other
    last = world.replica.last.seq
    assert world.replica.read("a", last) is not None
    assert world.replica.read("b", last) is not None  # what was taken is carried out


# -- bounds


@pytest.mark.parametrize(
    ("name", "value"),
    [("QUEUE_TRANSACTIONS_MAX", 2), ("QUEUE_BYTES_MAX", 4), ("UNCOMMITTED_TRANSACTIONS_MAX", 1)],
)
async def test_beyond_its_bounds_a_partition_takes_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: int
) -> None:
    disk = Holding()
    world = await opened(tmp_path, executor=disk)
    first = world.submit(put("a"))
    await turns()
    monkeypatch.setattr(limits, name, value)
    disk.hold()
    if name != "UNCOMMITTED_TRANSACTIONS_MAX":
        world.submit(put("b")).add_done_callback(lambda done: done.exception())
        await disk.held.wait()
    waiting = [] if name == "UNCOMMITTED_TRANSACTIONS_MAX" else [world.submit(put(key)) for key in "cd"]
    await turns()
    with pytest.raises(Exhausted):
        await world.submit(put("e"))
    disk.release()
    await turns()
    world.confirm(B)
    await asyncio.gather(first, *waiting)


async def test_fewer_standbys_than_the_minimum_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    world = await bench(tmp_path)
    await world.opened()
    last = world.replica.last
    with pytest.raises(Unavailable, match="0 standbys in sync, 1 needed"):
        await world.submit(put("k"))
    assert world.replica.last == last


async def test_a_standard_table_stops_acknowledging_when_its_last_copy_is_too_old(tmp_path: Path) -> None:
    world = await opened(tmp_path, durability=Durability.STANDARD)
    world.engine.heard(B)
    await world.submit(put("a"))
    world.clock.seconds += 1.01
    world.engine.heard(B)  # it lives, but what was written last is nowhere else
    with pytest.raises(Unavailable, match="maxUnshippedSeconds"):
        await world.submit(put("b"))
    world.confirm(B)
    await world.submit(put("c"))


async def test_a_table_without_standbys_remembers_no_copies_to_wait_for(tmp_path: Path) -> None:
    world = await bench(tmp_path, durability=Durability.STANDARD, replicas=("sample-0",), min_in_sync=0)
    await world.opened()
    for number in range(20):
        await world.submit(put(f"k{number}"))
    assert not world.engine._unshipped
    assert not world.engine._round_ends


async def test_on_a_full_disk_deletes_go_on_and_puts_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await opened(tmp_path, durability=Durability.STANDARD)
    await world.submit(put("a"))
    monkeypatch.setattr(type(world.replica), "in_reserve", lambda self: True)
    with pytest.raises(Exhausted, match="full"):
        await world.submit(put("b"))
    deleted = await world.submit(Transaction(then=(Delete("a"),)))
    assert deleted.version is not None
    assert await world.engine.record_set(world.members, 2) == world.replica.last.seq


# -- the end of an ownership


async def test_after_the_end_nothing_is_acknowledged_and_nothing_committed(tmp_path: Path) -> None:
    disk = Holding()
    world = await opened(tmp_path, executor=disk)
    pending = world.submit(put("a"))
    await turns()
    disk.hold()
    under_way = world.submit(put("b"))
    await disk.held.wait()
    queued = world.submit(put("c"))
    await turns()
    world.engine.stop(NotOwner("another session owns it"))
    disk.release()
    outcomes = await asyncio.gather(pending, under_way, queued, return_exceptions=True)
    assert [type(one) for one in outcomes] == [Unknown, Unknown, NotOwner]
    committed = world.replica.commit_seq
    world.confirm(B)  # on its way when the end came
    assert world.replica.commit_seq == committed


async def test_a_standard_round_in_flight_at_the_end_is_not_acknowledged(tmp_path: Path) -> None:
    disk = Holding()
    world = await opened(tmp_path, executor=disk, durability=Durability.STANDARD)
    disk.hold()
    under_way = world.submit(put("a"))
    await disk.held.wait()
    world.engine.stop(NotOwner("another session owns it"))
    disk.release()
    with pytest.raises(Unknown):
        await under_way


async def test_a_replica_that_is_closed_under_an_engine_stops_it_without_a_crash(tmp_path: Path) -> None:
    world = await opened(tmp_path)
    await world.replica.close()
    with pytest.raises(NotOwner):
        await world.submit(put("a"))
    assert not world.fatal


@pytest.mark.parametrize("error", [CommitFailed("EIO"), Corrupt("another process wrote")])
async def test_a_disk_that_cannot_be_trusted_ends_the_process_and_answers_nothing_certain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    world = await opened(tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(world.replica._store, "append", fail)
    with pytest.raises(Unknown):
        await world.submit(put("a"))
    assert world.fatal == [error]
    with pytest.raises(NotOwner):
        await world.submit(put("b"))


# -- the overlay


async def full_of_uncommitted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A replica with more from the owner of epoch 1 than its overlay takes, nothing of it committed."""
    monkeypatch.setattr(limits, "OVERLAY_ENTRIES_MAX", 4)
    replica = await open_replica(folder)
    await replica.promise(1)
    await replica.append_own([txn(seq) for seq in range(6)], epoch=1)
    assert replica.overlay_full
    return await bench(folder, epoch=2, replica=replica)


async def test_an_epoch_opens_though_the_overlay_is_full_of_what_is_not_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await full_of_uncommitted(tmp_path, monkeypatch)
    async with asyncio.timeout(5):
        await world.opened(B)
    assert world.replica.commit_seq == world.replica.last.seq == 7
    answer = world.submit(put("k"))
    await settle(lambda: world.replica.last.seq == 8)
    world.confirm(B)
    await answer


async def test_a_standby_that_died_under_load_can_leave_though_the_overlay_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await bench(tmp_path)
    await world.opened(B, C)
    monkeypatch.setattr(limits, "OVERLAY_ENTRIES_MAX", 4)
    answers = []
    for number in range(6):
        answers.append(world.submit(put(f"k{number}")))
        await turns()
        world.confirm(B)
    await turns()
    assert world.replica.overlay_full
    async with asyncio.timeout(5):
        seq = await world.engine.record_set((world.engine.member, B), 2)
    world.engine.relax(seq=seq, standbys=[B])
    world.confirm(B)
    await settle(lambda: all(answer.done() for answer in answers) or world.confirm(B))
    assert all(answer.exception() is None for answer in answers)


@pytest.mark.parametrize("error", [DiskFull("full"), CommitFailed("EIO")])
async def test_an_apply_step_that_fails_is_no_endless_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    world = await opened(tmp_path, durability=Durability.STANDARD)
    monkeypatch.setattr(limits, "OVERLAY_ENTRIES_MAX", 1)
    calls: list[int] = []

    async def fail(self: object) -> int:
        calls.append(1)
        raise error

    monkeypatch.setattr(type(world.replica), "apply_step", fail)
    with pytest.raises(FenceKVError) as refused:
        await world.submit(put("a"))
    await turns(200)
    assert len(calls) == 1
    assert isinstance(refused.value, Exhausted) == isinstance(error, DiskFull)
    assert world.fatal == ([] if isinstance(error, DiskFull) else [error])


# -- opening, and the counted ones


async def test_an_opening_that_met_a_full_disk_can_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await bench(tmp_path)
    store, whole = world.replica._store, world.replica._store.append
    failures, rounds = iter([True]), 0

    def sometimes(*args: Any, **options: Any) -> Any:
        nonlocal rounds
        if next(failures, False):
            raise DiskFull("full")
        rounds += 1
        return whole(*args, **options)

    monkeypatch.setattr(store, "append", sometimes)
    with pytest.raises(Exhausted):
        await world.engine.open(session="s", members=(world.engine.member,), set_version=1)
    assert world.replica.last.seq == -1
    await world.engine.open(session="s", members=(world.engine.member,), set_version=1)
    kinds = [type(world.replica.entry(seq).operations) for seq in range(world.replica.last.seq + 1)]
    assert kinds == [Ownership, InSync]
    assert rounds == 1, "whoever waits for the new owner waits for each fsync"


async def test_a_loss_that_a_person_accepted_stands_in_the_journal_once(tmp_path: Path) -> None:
    world = await bench(tmp_path, epoch=5)
    for _ in range(2):
        await world.engine.open(session="s", members=(world.engine.member,), set_version=1, accepted_loss=4)
    entries = [world.replica.entry(seq).operations for seq in range(world.replica.last.seq + 1)]
    assert [entry for entry in entries if isinstance(entry, AcceptedLoss)] == [AcceptedLoss(epoch=4)]
    assert isinstance(entries[0], Ownership)


async def test_an_epoch_is_open_only_when_its_whole_journal_is_confirmed(tmp_path: Path) -> None:
    replica = await open_replica(tmp_path)
    await replica.promise(1)
    await replica.append_own([txn(0), txn(1)], epoch=1)
    world = await bench(tmp_path, epoch=2, replica=replica)
    opening = asyncio.ensure_future(
        world.engine.open(session="s", members=(world.engine.member, B), set_version=1)
    )
    await turns()
    assert world.replica.last.seq == 3
    world.engine.confirm(B, 1)
    await turns()
    assert (opening.done(), world.replica.commit_seq) == (False, -1)
    world.engine.confirm(B, 3)
    await opening
    ownership = world.replica.entry(2).operations
    assert isinstance(ownership, Ownership)
    assert (ownership.previous_epoch, ownership.previous_seq, ownership.previous_txid) == (1, 1, 1)


async def test_a_standby_counts_until_all_who_remain_have_the_entry_that_lets_it_go(tmp_path: Path) -> None:
    world = await bench(tmp_path)
    await world.opened(B, C)
    seq = await world.engine.record_set((world.engine.member, B), 2)
    world.engine.relax(seq=seq, standbys=[B])
    answer = world.submit(put("a"))
    await turns()
    world.engine.confirm(B, seq - 1)
    assert world.engine.counted == {B, C}
    world.engine.confirm(B, world.replica.last.seq)
    assert world.engine.counted == {B}
    await answer


async def test_whoever_is_counted_meanwhile_stays_counted(tmp_path: Path) -> None:
    world = await bench(tmp_path)
    await world.opened(B, C)
    seq = await world.engine.record_set((world.engine.member, B), 2)
    world.engine.relax(seq=seq, standbys=[B])
    world.engine.count(["sample-3/d"])
    world.engine.confirm(B, seq)
    assert world.engine.counted == {B, C, "sample-3/d"}
    world.engine.confirm("sample-3/d", seq)
    assert world.engine.counted == {B, "sample-3/d"}


async def test_what_was_never_sent_cannot_be_confirmed(tmp_path: Path) -> None:
    world = await opened(tmp_path)
    world.engine.confirm(B, world.replica.last.seq + 100)
    answer = world.submit(put("a"))
    await turns()
    assert not answer.done()
    world.confirm(B)
    await answer


async def test_drained_means_that_every_counted_standby_has_everything(tmp_path: Path) -> None:
    world = await opened(tmp_path, durability=Durability.STANDARD)
    await world.submit(put("a"))
    drained = asyncio.ensure_future(world.engine.drained())
    await turns()
    assert not drained.done()
    world.confirm(B)
    await drained


async def test_a_change_of_the_table_counts_at_once(tmp_path: Path) -> None:
    world = await opened(tmp_path, durability=Durability.STANDARD)
    world.engine.spec = dataclasses.replace(world.engine.spec, durability=Durability.REPLICATED)
    answer = world.submit(put("a"))
    await turns()
    assert not answer.done()
    world.confirm(B)
    await answer
