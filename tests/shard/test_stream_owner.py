"""Feeding standbys, message by message: what an owner believes, and what it does not wait for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from engines import Bench, bench, put, turns
from storage import UID
from stream_owner import OwnerSide, Standby
from trimming import applied, checkpoint_of, damage_base, fold, trim

from fencekv_shard import limits
from fencekv_shard.api import Durability
from fencekv_shard.base import Standing
from fencekv_shard.greeting import PROTOCOL
from fencekv_shard.journal import ZERO_HASH

EPOCH = 3


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[Bench]:
    owner = await bench(tmp_path / "own", epoch=EPOCH, durability=Durability.STANDARD, replicas=("sample-0",))
    await owner.opened()
    for number in range(9):
        await owner.submit(put(f"k{number}", b"v%d" % number))
    yield owner
    await owner.replica.close()


@pytest.fixture
async def side(own: Bench) -> AsyncIterator[OwnerSide]:
    owner = OwnerSide(own)
    yield owner
    await owner.end()


async def greeted(side: OwnerSide, pod: str = "sample-1") -> Standby:
    standby = side.dialled()
    await standby.says("hello", PROTOCOL, f"{pod}/uid/0000000000000004", pod, "sample")
    return standby


async def following(side: OwnerSide, *, replica: str = "r1", last: int = -1, chain: bytes = ZERO_HASH) -> Standby:
    standby = await greeted(side)
    await standby.says("subscribe", UID, 1, replica, 0, last, 0, chain)
    return standby


async def test_a_confirmation_of_another_replica_counts_for_nobody(own: Bench, side: OwnerSide) -> None:
    """A replica that was made anew meanwhile does not hold what the one before it had fsynced."""
    standby = await following(side, replica="r2")
    await standby.says("confirm", UID, EPOCH, "r1", own.replica.last.seq)
    assert own.engine.confirmed == {}
    await standby.says("confirm", UID, EPOCH, "r2", 4)
    assert own.engine.confirmed == {"sample-1/r2": 4}


async def test_an_answer_to_another_probe_decides_nothing(own: Bench, side: OwnerSide) -> None:
    replica, last = own.replica, own.replica.last.seq
    standby = await greeted(side)
    heard = await standby.says("subscribe", UID, 1, "r1", 0, last, 0, b"x" * 32)  # it diverged at the last entry
    for _ in range(10):
        [message] = heard or [None]
        assert message is not None
        if message[0] != "probe":
            break
        seq = message[4]
        assert await standby.says("hash", UID, EPOCH, seq - 1, b"y" * 32) == []
        heard = await standby.says("hash", UID, EPOCH, seq, replica.chain_at(seq) if seq < last else b"x" * 32)
        heard = heard[:1]
    assert heard[0] is not None
    assert heard[0][:5] == ["truncate", UID, EPOCH, 1, last - 1]


async def test_a_standby_that_dials_again_is_heard_on_the_new_connection_alone(side: OwnerSide) -> None:
    first, other = await following(side), await greeted(side, "sample-2")
    second = await following(side)
    assert first.heard() == [None]
    assert await second.says("ping", 7) == [["pong", 7]]
    assert await other.says("ping", 8) == [["pong", 8]]


async def test_a_session_that_is_released_a_moment_after_its_process_ended_is_noticed(side: OwnerSide) -> None:
    """The supervisor has to see the end of its process first: the owner's first question may come too early."""
    side.over_at = 3
    standby = await following(side)
    standby.hangs_up()
    assert await asyncio.wait_for(side.owning.ended.get(), 5) == "sample-1/r1"
    assert side.asked == 3


async def test_a_standby_that_takes_no_seed_does_not_hold_trimming_up(
    own: Bench, side: OwnerSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SEED_PAGES_WINDOW", 1)
    monkeypatch.setattr(limits, "SEED_STALL_SECONDS", 0.05)
    replica, at = own.replica, own.replica.last.seq
    await applied(replica, at)
    await fold(replica, at)
    await own.engine.journal_checkpoint(checkpoint_of([replica.entry(seq) for seq in range(at + 1)], at))
    await applied(replica, at + 1)
    await trim(replica)
    frozen = await following(side)
    assert [message and message[0] for message in frozen.heard()] == []
    assert await replica.fold_step(at + 1, old=lambda _entry: True) == 0, "the base is not being sent"
    await asyncio.wait_for(ended(frozen), 5)
    await turns()
    assert await replica.fold_step(at + 1, old=lambda _entry: True) == 1


async def test_a_standby_that_has_another_base_says_so_and_is_fed_on(own: Bench, side: OwnerSide) -> None:
    last, chain = own.replica.last.seq, own.replica.chain
    standby = await following(side, last=last, chain=chain)
    await standby.says("refuse", UID, EPOCH - 1, "base-differs")
    assert side.owning.doubters == ["sample-1/r1"]
    await own.submit(put("more"))
    side.owning.feeds[-1].wake.set()
    await turns(100)
    assert [message and message[0] for message in standby.heard()] == ["append"]
    await standby.says("refuse", UID, EPOCH - 1, "unknown-partition")
    assert side.owning.feeds[-1].ended
    assert side.owning.doubters == ["sample-1/r1"]


@pytest.mark.parametrize("is_known", [True, False])
async def test_no_seed_is_completed_from_a_base_that_is_not_what_was_written(
    own: Bench, side: OwnerSide, is_known: bool
) -> None:
    replica, at = own.replica, own.replica.last.seq
    await applied(replica, at)
    await fold(replica, at)
    await own.engine.journal_checkpoint(checkpoint_of([replica.entry(seq) for seq in range(at + 1)], at))
    await applied(replica, at + 1)
    await trim(replica)
    await damage_base(replica)
    if is_known:
        replica.standing = Standing.DAMAGED
    standby = await greeted(side)
    heard = await standby.says("subscribe", UID, 1, "r1", 0, -1, 0, ZERO_HASH)
    assert [message and message[0] for message in heard] == ([] if is_known else ["seed", "rows"])
    assert side.owning.doubters == ([] if is_known else ["sample-1/r1"])


async def ended(standby: Standby) -> None:
    """Waits until the connection has ended."""
    while await standby.next() is not None:
        pass


async def test_who_comes_before_the_grant_follows_as_soon_as_it_is_there(own: Bench, side: OwnerSide) -> None:
    """Both heard of the grant at once: who was granted promises first, and the other need not ask again."""
    side.owns = False
    standby = await following(side, last=own.replica.last.seq, chain=own.replica.chain)
    side.feeds.tick(limits.EARLY_SECONDS_MAX / 2)
    await turns()
    assert standby.heard() == []
    side.owns = True
    side.feeds.begun(UID)
    await turns(100)
    assert [message and message[0] for message in standby.heard()] == ["truncate", "append"]
    side.feeds.begun(UID)
    side.feeds.tick(limits.EARLY_SECONDS_MAX)
    await turns(100)
    assert (standby.heard(), len(side.owning.feeds)) == ([], 1)


async def test_a_doubt_that_is_said_before_the_grant_is_heard_with_it(own: Bench, side: OwnerSide) -> None:
    side.owns = False
    standby = await following(side, last=own.replica.last.seq, chain=own.replica.chain)
    await standby.says("refuse", UID, EPOCH - 1, "base-differs")
    assert side.owning.doubters == []
    side.owns = True
    side.feeds.begun(UID)
    assert side.owning.doubters == ["sample-1/r1"]


@pytest.mark.parametrize("expects", [True, False])
async def test_who_comes_to_the_wrong_shard_is_told_so(own: Bench, side: OwnerSide, expects: bool) -> None:
    side.owns, side.expects = False, expects
    standby = await greeted(side)
    told = await standby.says("subscribe", UID, 1, "r1", 0, -1, 0, ZERO_HASH)
    if expects:
        side.feeds.tick(limits.EARLY_SECONDS_MAX / 2)
        assert told == standby.heard() == []
        side.feeds.tick(limits.EARLY_SECONDS_MAX / 2)
        await turns()
        told = standby.heard()
    assert told == [["refuse", UID, 0, "not-owner"]]
    side.owns = True
    side.feeds.begun(UID)
    assert side.owning.feeds == [], "whoever was refused subscribes anew"


async def test_only_the_last_of_several_early_ones_follows(own: Bench, side: OwnerSide) -> None:
    side.owns = False
    last, chain = own.replica.last.seq, own.replica.chain
    standby = await following(side, last=last, chain=chain)
    await standby.says("subscribe", UID, 2, "r2", 0, last, 0, chain)
    side.owns = True
    side.feeds.begun(UID)
    await turns(100)
    assert standby.heard()[0] == ["truncate", UID, EPOCH, 2, last]
    assert [feed.member for feed in side.owning.feeds] == ["sample-1/r2"]


async def test_who_promised_more_meanwhile_is_refused_when_the_grant_is_there(own: Bench, side: OwnerSide) -> None:
    side.owns = False
    standby = await greeted(side)
    await standby.says("subscribe", UID, 1, "r1", EPOCH + 1, -1, 0, ZERO_HASH)
    side.owns = True
    side.feeds.begun(UID)
    await turns()
    assert standby.heard() == [["refuse", UID, EPOCH, "stale-epoch"]]
