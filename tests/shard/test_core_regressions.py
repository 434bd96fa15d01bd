"""What a search for holes in the core found: a test for each."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from engines import B, C, bench, put, settle, turns
from fake_node import FakeNode, serving
from frame_asker import connected
from storage import UID, Holding, open_replica, txn
from trio import Trio, free_ports, until

from fencekv import messages as m
from fencekv import operations
from fencekv.errors import Exhausted, FenceKVError, Invalid, NotOwner
from fencekv.partitioning import parse_partitioning
from fencekv.token import Token, Version
from fencekv_shard import limits
from fencekv_shard.api import Durability, Options
from fencekv_shard.freshness import Freshness, judge
from fencekv_shard.journal import ZERO_HASH, chain_hash, encode_entry, leaf_hash
from fencekv_shard.peer import Message
from fencekv_shard.replica import Replica
from fencekv_shard.rows import seq_key
from fencekv_shard.server import start_server
from fencekv_shard.store import Unreadable
from fencekv_shard.tail import _Stream
from fencekv_shard.transaction import Compare, Delete, Put, Record, Relation, Target, Transaction


def if_exists(key: str, exists: bool, *then: Put | Delete, **options: Any) -> Transaction:
    return Transaction(compare=(Compare(key, Target.EXISTS, Relation.EQUAL, exists),), then=then, **options)


class Owner:
    """The other end of a standby's link."""

    def __init__(self) -> None:
        self.sent: list[Message] = []

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.ensure_future(work)

    def next_number(self) -> int:
        return 1

    def hang_up(self) -> None:
        raise AssertionError


class Standby:
    """`tail.Following`."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica

    async def reseed(self, epoch: int) -> None:
        raise Unreadable("too many open files")

    def committed(self, seq: int) -> None:
        self.replica.commit(seq)

    def stale(self) -> None:
        raise AssertionError

    def fatal(self, error: BaseException) -> None:
        raise error


# -- the lane of a replica


@pytest.mark.parametrize("turn_had_come", [False, True])
async def test_a_task_cancelled_while_it_waits_for_a_replicas_lane_does_not_block_it(
    tmp_path: Path, turn_had_come: bool
) -> None:
    disk = Holding()
    world = await bench(tmp_path, executor=disk)
    disk.hold()
    writing = asyncio.ensure_future(world.replica.promise(2))
    await disk.held.wait()
    waiting = asyncio.ensure_future(world.replica.settled())  # as a new epoch's opening does
    await turns(5)
    if turn_had_come:
        disk.release()
        await settle(lambda: not world.replica._lane._waiting)
        waiting.cancel()
    else:
        waiting.cancel()  # as the end of the shard does
        await turns(5)
        disk.release()
    await asyncio.gather(waiting, return_exceptions=True)
    async with asyncio.timeout(2):
        await writing
        await world.replica.close()
    assert world.replica.closed


async def test_a_shard_stops_although_a_writer_thread_is_stuck(tmp_path: Path) -> None:
    class Disk(Holding):
        def close(self) -> None: ...

    disk = Disk()
    trio = Trio(tmp_path, threads=disk)  # type: ignore[arg-type]
    await trio.namespace()
    await trio.start("sample-0", port=free_ports(1)[0])
    uid = await trio.partition(durability="standard", replicas=["sample-0"])
    await trio.grant("sample-0", uid)
    partition = await trio.owner("sample-0", uid)
    disk.hold()
    asking = asyncio.ensure_future(partition.submit(put("k"), Options()))
    await disk.held.wait()
    stopping = asyncio.ensure_future(trio.stop("sample-0"))
    done, _ = await asyncio.wait([stopping], timeout=10)
    disk.release()
    await asyncio.gather(asking, stopping, return_exceptions=True)
    assert done, "it waits for the thread"


# -- outcomes


@pytest.mark.parametrize("write", ["put if absent", "delete"])
async def test_an_idempotency_key_has_one_outcome_also_if_it_is_that_nothing_was_written(
    tmp_path: Path, write: str
) -> None:
    world = await bench(tmp_path, durability=Durability.STANDARD)
    await world.opened(B)
    if write == "delete":
        asked = Transaction(then=(Delete("k"),), idempotency_key=b"key")
        meanwhile = put("k", b"another client's")
    else:
        await world.submit(put("k", b"another client's"))
        asked = if_exists("k", False, Put("k", b"mine"), idempotency_key=b"key")
        meanwhile = Transaction(then=(Delete("k"),))
    told = await world.submit(asked)  # the repetition, which came first
    await world.submit(meanwhile)
    late = await world.submit(asked)  # an attempt that its client has given up long ago
    assert (late.effect.succeeded, late.effect.results) == (told.effect.succeeded, told.effect.results)
    record = world.replica.read("k", world.replica.last.seq)
    assert (record and record.value) == (b"another client's" if write == "delete" else None)


async def test_a_write_asked_to_be_replicated_is_not_acknowledged_without_a_standby(tmp_path: Path) -> None:
    trio = Trio(tmp_path)
    await trio.namespace()
    node = await trio.start("sample-0", port=free_ports(1)[0])
    await trio.start("sample-1", port=free_ports(1)[0])
    # The table becomes `replicated`: the operator has come to its first partition, not yet to the second.
    split = {"strategy": "hash", "count": 2}
    pods = ["sample-0", "sample-1"]
    await trio.partition("orders-0", replicas=pods, partitioning=split, durability="replicated")
    uid = await trio.partition("orders-1", replicas=pods, partitioning=split, durability="standard")
    await trio.grant("sample-0", uid, "orders-1")
    partition = await trio.in_sync("sample-0", uid, 2)
    assert partition.owned is not None
    engine = partition.owned.engine
    engine.confirm = lambda *_: None  # type: ignore[method-assign]
    running = await start_server(node, host="127.0.0.1", port=0)
    key = next(f"k{n}" for n in range(99) if parse_partitioning(split).partition_of(f"k{n}") == 1)
    try:
        async with connected(running.port) as client:
            asking = asyncio.ensure_future(client.put(key, durability=m.DURABILITIES.index(Durability.REPLICATED)))
            done, _ = await asyncio.wait([asking], timeout=1)
            assert not done, (asking.result(), engine.replicated_seq, engine.replica.last)
            asking.cancel()
    finally:
        await running.close()
        await trio.close()


async def test_a_damaged_record_is_no_fault_of_the_request_that_meets_it(tmp_path: Path) -> None:
    world = await bench(tmp_path, durability=Durability.STANDARD)
    await world.opened(B)
    await world.submit(put("k"))
    seq = world.replica.last.seq
    while await world.replica.apply_step():
        pass
    store = world.replica._store
    record = store.record(seq)
    assert record is not None
    with store._env.begin(write=True) as transaction:
        transaction.put(seq_key(seq), record[:-3] + b"\xff\xff\xff", db=store._db["journal"])
    with pytest.raises(Exception) as caught:  # noqa: PT011
        await world.submit(if_exists("k", True, Delete("k")))
    assert not isinstance(caught.value, Invalid), caught.value


async def test_a_relayed_answer_of_the_largest_size_does_not_break_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A shard of another version may have another limit; the frame's is what counts on the way.
    monkeypatch.setattr(limits, "TXN_RESULT_BYTES_MAX", m.FRAME_BYTES_MAX)
    first, second = FakeNode(pod="sample-0"), FakeNode(pod="sample-1")
    first.add_table(owned=False)
    second.add_table()
    partition = second.replicas["orders", 0]
    record = Record(b"x" * (1 << 20), Version(1, 1))
    partition.state |= {f"k{n}": record for n in range(15)}
    gets = tuple(operations.Get(f"k{n}") for n in range(16))
    async with serving(first, second) as (relay, owner):
        first.point("orders", 0, owner="sample-1", http=f"127.0.0.1:{owner.port}")
        async with connected(owner.port) as client:
            room = m.FRAME_BYTES_MAX - 15 * ((1 << 20) + 20)
            while True:  # as large as fits at the owner
                partition.state["k15"] = Record(b"x" * room, Version(1, 1))
                answer = await client.ask(m.Txn(client.next(), "orders", None, (), gets, ()))
                if isinstance(answer, m.Committed):
                    break
                room -= 1 if room < 200 else 100
        async with connected(relay.port) as client:
            largest = partition.state["k15"].value
            for more in range(120):  # the frame that just fits is among these
                partition.state["k15"] = Record(largest + b"x" * more, Version(1, 1))
                asked = m.Txn((1 << 50) + more, "orders", None, (), gets, ())
                answer = await client.ask(asked)
                assert answer is not None, "the connection was broken off"
                if isinstance(answer, m.Refusal):
                    break


# -- the beginning of an epoch, and the in-sync set


class FullDisk:
    f_blocks, f_bavail, f_frsize = 10**8, 1, 4096


async def test_an_epoch_says_where_the_one_before_ended_whatever_is_journaled_before_its_opening_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await bench(tmp_path, durability=Durability.STANDARD)
    await first.opened(B)
    token = (await first.submit(put("k"))).token
    first.engine.stop(NotOwner("granted anew"))
    world = await bench(tmp_path, epoch=2, replica=first.replica, durability=Durability.STANDARD)
    engine, members = world.engine, (world.engine.member, B)
    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", lambda _: FullDisk)
        with pytest.raises(Exhausted):
            await engine.open(session="s", members=members, set_version=2)
    with contextlib.suppress(FenceKVError):
        await engine.record_set((*members, C), 3)  # there is room again, and the membership is first
    opening = asyncio.ensure_future(engine.open(session="s", members=(*members, C), set_version=3))
    await turns()
    world.confirm(B, C)
    await opening
    at = world.replica.committed
    fresh = judge(token, at=Token(at.epoch, at.txid), ends=world.replica.ends)  # raises Lost
    assert fresh is Freshness.SATISFIED


async def test_a_standby_counts_although_its_joining_could_not_be_journaled_at_once(tmp_path: Path) -> None:
    trio = Trio(tmp_path)
    await trio.namespace()
    await trio.start("sample-0", port=free_ports(1)[0])
    uid = await trio.partition(replicas=["sample-0", "sample-1"])
    await trio.grant("sample-0", uid)
    partition = await trio.owner("sample-0", uid)
    assert partition.owned is not None
    engine = partition.owned.engine
    record_set = engine.record_set

    async def full(members: tuple[str, ...], set_version: int) -> int:
        engine.record_set = record_set  # type: ignore[method-assign]
        raise Exhausted("the disk of the owner is full")

    engine.record_set = full  # type: ignore[method-assign]
    try:
        await trio.start("sample-1", port=free_ports(1)[0])
        await until(lambda: engine.standbys_in_set == 1, seconds=6)
        await partition.submit(put("k"), Options())
    finally:
        await trio.close()


# -- limits, and a disk that does not let one look


async def test_a_standby_that_catches_up_keeps_its_overlay_within_its_limit(tmp_path: Path) -> None:
    replica = await open_replica(tmp_path)
    stream = _Stream(UID, Standby(replica), Owner())  # type: ignore[arg-type]
    chain, seq, most = ZERO_HASH, 0, 0
    for _ in range(40):
        entries = []
        for _ in range(limits.SHIP_ENTRIES_MAX):
            entries.append(encode_entry(txn(seq)))
            chain = chain_hash(chain, leaf_hash(entries[-1]))
            seq += 1
        await stream._append(1, seq - 1, chain, entries)
        most = max(most, replica.last.seq - replica.applied_seq)
    await replica.close()
    assert most <= limits.OVERLAY_ENTRIES_MAX + limits.SHIP_ENTRIES_MAX, most


async def test_a_look_at_the_disk_is_not_believed_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = await bench(tmp_path, durability=Durability.STANDARD)
    await world.opened(B)

    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", lambda _: FullDisk)
        await world.submit(if_exists("k", True, Delete("k")))  # writes nothing
    await world.replica.promise(7)  # there is room by now
    assert world.replica.promised == 7


async def test_a_disk_that_cannot_be_read_for_a_moment_is_tried_again(tmp_path: Path) -> None:
    replica = await open_replica(tmp_path)
    await replica.promise(1)
    await replica.append_own([txn(0), txn(1)], epoch=1)
    replica.commit(1)
    await replica.apply_step()
    stream = _Stream(UID, Standby(replica), Owner())  # type: ignore[arg-type]
    await stream.put(["truncate", UID, 1, 0, -1])
    working = stream._working
    assert working is not None
    await asyncio.wait([working])
    error = working.exception()
    stream.stop()
    await replica.close()
    assert error is None, error
