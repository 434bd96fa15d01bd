"""Following an owner, message by message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engines import turns
from simulation.loop import in_virtual_time
from storage import UID, Holding, ids, open_replica, txn
from stream_standby import Follower, Standby, Wire

from fencekv.leases import Session
from fencekv_shard import limits
from fencekv_shard.base import Standing
from fencekv_shard.greeting import PROTOCOL
from fencekv_shard.journal import ZERO_HASH, chain_hash, encode_entry, leaf_hash
from fencekv_shard.links import Links
from fencekv_shard.peer import Message
from fencekv_shard.replica import Replica


@pytest.fixture
async def standby(tmp_path: Path) -> AsyncIterator[Standby]:
    one = await Standby.following(tmp_path / "partitions")
    yield one
    await one.end()


def append(number: int, commit: int, *seqs: int, chain: bytes | None = None) -> Message:
    """Entries of epoch 1 from a journal that has them all from 0 on; `chain`: not the one that it really has."""
    true = ZERO_HASH
    for seq in range(max(seqs, default=-1) + 1):
        true = chain_hash(true, leaf_hash(encode_entry(txn(seq))))
    return ["append", UID, 1, number, commit, chain or true, [encode_entry(txn(seq)) for seq in seqs]]


async def test_a_standby_promises_before_it_answers_and_confirms_what_is_on_disk(standby: Standby) -> None:
    replica = standby.follower.replica
    confirm = ["confirm", UID, 1, replica.replica_id]
    assert await standby.hears("truncate", UID, 1, 1, -1) == [[*confirm, -1]]
    assert replica.promised == 1
    assert await standby.hears(*append(1, -1, 0, 1)) == [[*confirm, 1]]
    assert replica._store.state.last.seq == 1
    assert await standby.hears(*append(1, 0)) == []
    assert standby.follower.commits == [-1, 0]


async def test_a_message_of_an_earlier_subscription_changes_nothing(standby: Standby) -> None:
    await standby.hears("truncate", UID, 1, 1, -1)
    await standby.hears(*append(1, -1, 0, 1))
    assert await standby.hears("truncate", UID, 1, 0, -1) == []
    assert await standby.hears(*append(0, 1, 2)) == []
    assert standby.follower.replica.last.seq == 1


async def test_entries_that_are_not_what_the_owner_has_are_neither_kept_nor_confirmed(standby: Standby) -> None:
    await standby.hears("truncate", UID, 1, 1, -1)
    answers = await standby.hears(*append(1, 0, 0, 1, chain=bytes(31) + b"x"))
    assert [one for one in answers if one[0] == "confirm"] == []
    assert standby.follower.replica.last.seq == -1
    assert standby.follower.commits == []


async def test_what_an_exchanged_replica_had_fsynced_is_not_confirmed(tmp_path: Path) -> None:
    """The replica was made anew while its last append was under way."""
    disk = Holding()
    old = await Replica.open(tmp_path / "old", UID, executor=disk, new_id=ids())
    standby = Standby(old)
    await turns(100)
    await standby.hears("truncate", UID, 1, 1, -1)
    disk.hold()
    assert await standby.hears(*append(1, -1, 0, 1)) == []
    standby.follower.replica = await open_replica(tmp_path / "new")
    before = len(standby.wire.sent)
    disk.release()
    await turns(100)
    assert standby.wire.sent[before:] == []
    await old.close()
    await standby.end()


async def test_an_owner_below_the_promise_is_told_so(standby: Standby) -> None:
    await standby.follower.replica.promise(5)
    assert await standby.hears("truncate", UID, 4, 1, -1) == [["refuse", UID, 5, "stale-epoch"]]
    assert standby.follower.replica.promised == 5


async def test_a_base_that_differs_is_said_with_each_subscription(standby: Standby) -> None:
    standby.follower.replica.standing = Standing.DIFFERS
    await standby.follower.replica.promise(3)
    before = len(standby.wire.sent)
    standby.link.follow(UID, standby.follower, urgent=True)
    await turns(100)
    [subscribed, refused] = standby.wire.sent[before:]
    assert subscribed[0] == "subscribe"
    assert refused == ["refuse", UID, 3, "base-differs"]


async def test_a_commit_beyond_what_is_here_is_not_believed(standby: Standby) -> None:
    await standby.hears("truncate", UID, 1, 1, -1)
    await standby.hears(*append(1, 9, 0))
    assert 9 not in standby.follower.commits


@pytest.mark.parametrize(
    "message",
    [
        ["probe", UID, 1, 1, -9],
        ["truncate", UID, 1, 1, -9],
        ["truncate", UID, 1, 1, "1"],
        ["append", UID, 1, 1],
        ["append", UID, 1, 1, 0, ZERO_HASH, [b"garbage"]],
        ["ping"],
        ["pong", []],
        ["append", [], 1, 1, 0, ZERO_HASH, []],
    ],
)
async def test_a_malformed_message_is_no_reason_to_end_the_process(standby: Standby, message: Message) -> None:
    await standby.hears(*message)
    assert standby.follower.replica.last.seq == -1


class Line(Wire):
    """One that ends when the test says so."""

    def close(self) -> None:
        self.closed += 1


def many_replicas() -> tuple[Line, Links, Follower]:
    """Connections whose owner has said hello, and a replica to follow with, for a test in virtual time."""
    last = SimpleNamespace(seq=-1, epoch=0)
    replica: Any = SimpleNamespace(last=last, replica_id="r", promised=0, chain=ZERO_HASH, standing=Standing.SOUND)
    wire, spawn = Line(), asyncio.get_running_loop().create_task
    wire.inbox.put_nowait(HELLO)
    session = Session("sample-1", "uid", "n")
    return wire, Links(transport=wire, session=session, kvns="sample", spawn=spawn), Follower(replica)


HELLO = ["hello", PROTOCOL, "sample-0/uid/n", "sample-0", "sample"]
OWNER = "a:1"


async def subscribed(wire: Wire, *, after: float) -> list[str]:
    """The UIDs that it has subscribed to by then, each as often as it did."""
    await asyncio.sleep(after)
    return [str(message[1]) for message in wire.sent if message[0] == "subscribe"]


@in_virtual_time
async def test_of_very_many_replicas_of_a_shard_that_is_back_so_many_a_second_follow() -> None:
    """The owners that they follow have just taken over, and others wait for them."""
    wire, links, follower = many_replicas()
    links.follow("first", follower, OWNER, urgent=False)
    assert await subscribed(wire, after=1.0) == ["first"]
    wire.sent.clear()
    most = limits.FOLLOWS_AT_ONCE_MAX + limits.FOLLOWS_PER_SECOND
    for number in range(most):
        links.follow(f"uid-{number}", follower, OWNER, urgent=False)
    gap = 1 / limits.FOLLOWS_PER_SECOND
    assert len(await subscribed(wire, after=gap / 2)) == limits.FOLLOWS_AT_ONCE_MAX
    assert len(await subscribed(wire, after=10 * gap)) == limits.FOLLOWS_AT_ONCE_MAX + 10
    assert len(await subscribed(wire, after=1.0)) == most
    wire.sent.clear()
    wire.inbox.put_nowait(None)
    wire.inbox.put_nowait(HELLO)
    assert len(await subscribed(wire, after=0.1)) == most + 1, "all of them have had their turns"
    links.close()


@in_virtual_time
async def test_whom_its_owner_waits_for_follows_before_its_turn() -> None:
    wire, links, follower = many_replicas()
    for number in range(limits.FOLLOWS_AT_ONCE_MAX):
        links.follow(f"uid-{number}", follower, OWNER, urgent=False)
    links.follow("later", follower, OWNER, urgent=False)
    links.follow("waits", follower, OWNER, urgent=False)
    links.follow("urgent", follower, OWNER, urgent=True)
    found = await subscribed(wire, after=0.5 / limits.FOLLOWS_PER_SECOND)
    assert "urgent" in found
    assert not {"later", "waits"} & set(found)
    links.follow("waits", follower, OWNER, urgent=False)  # a later word on its Lease
    found = await subscribed(wire, after=0.1 / limits.FOLLOWS_PER_SECOND)
    assert "waits" not in found
    links.follow("waits", follower, OWNER, urgent=True)
    found = await subscribed(wire, after=0.0001)
    assert "waits" in found
    assert "later" not in found
    links.follow("waits", follower, OWNER, urgent=True)
    found = await subscribed(wire, after=2.0)
    assert "later" in found
    assert len(found) == len(set(found)), "who has subscribed does not again"
    links.close()


@in_virtual_time
async def test_nobody_waits_for_a_turn_for_longer_than_its_limit() -> None:
    wire, links, follower = many_replicas()
    for _ in range(10):  # who follows to and fro uses turns up
        for number in range(2 * limits.FOLLOWS_AT_ONCE_MAX):
            links.unfollow(f"uid-{number}")
            links.follow(f"uid-{number}", follower, OWNER, urgent=False)
    found = await subscribed(wire, after=limits.FOLLOW_WAIT_SECONDS_MAX + 0.1)
    assert len(set(found)) == 2 * limits.FOLLOWS_AT_ONCE_MAX
    links.close()
