"""Finding the last common entry where either side has trimmed, and receiving a base message by message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from engines import settle, turns
from storage import UID, Inline, ids, txn
from stream_standby import Standby
from trimming import applied, checkpoint, checkpoint_of, fold

from fencekv_shard import limits
from fencekv_shard.base import Base, encode_base
from fencekv_shard.feed import Feed
from fencekv_shard.journal import Entry, encode_entry
from fencekv_shard.owned import Owned, Voice
from fencekv_shard.peer import Channel, Message
from fencekv_shard.replica import Replica
from fencekv_shard.tail import BACKOFF_SECONDS_MIN

AT = 8  # where the checkpoint stands
LAST = 14


def entries_of(fork: int, epoch: int, *, last: int = LAST) -> list[Entry]:
    """Entries 0 to `last`, from `fork` on those of `epoch`."""
    entries: list[Entry] = [txn(seq) for seq in range(AT + 1)]
    entries.append(checkpoint(entries, AT))
    entries += [txn(seq) for seq in range(len(entries), last + 1)]
    return [*entries[: min(fork, last + 1)], *(txn(seq, epoch=epoch) for seq in range(fork, last + 1))]


async def replica_of(folder: Path, entries: list[Entry], *, trimmed: int, epoch: int) -> Replica:
    """A replica with these entries, folded up to the checkpoint and trimmed up to `trimmed` (-1: neither)."""
    replica = await Replica.open(folder, UID, executor=Inline(), new_id=ids())
    await replica.promise(epoch)
    await replica.append_copied([encode_entry(entry) for entry in entries], epoch=epoch)
    if trimmed >= 0:
        await applied(replica, AT + 1)
        await fold(replica, AT)
        while await replica.trim_step(trimmed):
            pass
        assert replica.first_seq == trimmed + 1
    return replica


class Between:
    """The owner's feed, whose probes the standby answers at once."""

    def __init__(self, own: Replica, standby: Replica) -> None:
        self._standby = standby
        engine = SimpleNamespace(replica=own, epoch=9)
        self.feed = Feed(
            channel=cast("Channel", self),
            owned=cast("Owned", SimpleNamespace(engine=engine)),
            uid=UID,
            number=1,
            pod="sample-1",
            replica_id="b",
            last_seq=standby.last.seq,
            chain=standby.chain,
            voice=Voice(),
        )

    async def send(self, message: Message) -> None:
        assert message[0] == "probe", message
        self.feed.on_hash(message[4], self._standby.chain_at(min(message[4], self._standby.last.seq)))


@pytest.mark.parametrize("theirs", [-1, 3, AT])
@pytest.mark.parametrize("ours", [-1, 3, AT])
@pytest.mark.parametrize("fork", [10, 12, LAST + 1])
async def test_the_last_common_entry_is_found_though_either_side_has_trimmed(
    tmp_path: Path, fork: int, ours: int, theirs: int
) -> None:
    own = await replica_of(tmp_path / "own", entries_of(fork, 3), trimmed=ours, epoch=3)
    standby = await replica_of(tmp_path / "standby", entries_of(fork, 2), trimmed=theirs, epoch=2)
    expected = fork - 1
    assert await Between(own, standby).feed._common() == expected
    for replica in (own, standby):
        await replica.close()


@pytest.mark.parametrize(
    ("fork", "last", "ours", "expected"),
    [
        (LAST, -1, -1, -1),  # an empty standby, and a whole journal
        (LAST, -1, 3, None),
        (LAST, -1, AT, None),
        (LAST, 2, -1, 2),
        (LAST, 2, 3, None),
        (LAST, 4, 3, 4),
        (LAST, 7, AT, None),
        (LAST, AT, AT, AT),  # it ends where the base stands
        (2, LAST, -1, 1),
        (2, LAST, 3, None),  # the fork lies where nothing is kept
        (6, LAST, 3, 5),
        (6, LAST, AT, None),
        (0, LAST, -1, -1),
    ],
)
async def test_a_standby_that_ends_or_forks_below_what_is_kept_needs_a_seed(
    tmp_path: Path, fork: int, last: int, ours: int, expected: int | None
) -> None:
    own = await replica_of(tmp_path / "own", entries_of(LAST, 3), trimmed=ours, epoch=3)
    standby = await Replica.open(tmp_path / "standby", UID, executor=Inline(), new_id=ids())
    await standby.promise(2)
    if last >= 0:
        raw = [encode_entry(entry) for entry in entries_of(fork, 2, last=last)]
        await standby.append_copied(raw, epoch=2)
    assert await Between(own, standby).feed._common() == expected
    for replica in (own, standby):
        await replica.close()


# -- the standby's side -----------------------------------------------------------------------------------------


@pytest.fixture
async def standby(tmp_path: Path) -> AsyncIterator[Standby]:
    one = await Standby.following(tmp_path / "partitions")
    yield one
    await one.end()


@pytest.fixture
async def source(tmp_path: Path) -> AsyncIterator[Replica]:
    replica = await replica_of(tmp_path / "source", entries_of(LAST, 1), trimmed=AT, epoch=1)
    yield replica
    await replica.close()


async def test_each_page_is_told_of_when_it_is_durable_and_nothing_is_confirmed(
    standby: Standby, source: Replica
) -> None:
    rows = [list(row) for row in source.base_page(b"")]
    assert await standby.hears("seed", UID, 1, 1, encode_base(source.base)) == []
    assert await standby.hears("rows", UID, 1, 1, rows[:4]) == [["seeding", UID, 1, 1, 1]]
    assert await standby.hears("rows", UID, 1, 1, rows[4:]) == [["seeding", UID, 1, 1, 2]]
    point = checkpoint_of(entries_of(LAST, 1), AT)
    answers = await standby.hears("seeded", UID, 1, 1, point.at, point.keys, point.digest)
    assert [one[0] for one in answers] == ["subscribe"]
    assert len(standby.follower.seeds) == 1


async def test_a_seed_whose_hash_is_another_takes_no_ones_place(standby: Standby, source: Replica) -> None:
    rows = [list(row) for row in source.base_page(b"")]
    await standby.hears("seed", UID, 1, 1, encode_base(source.base))
    await standby.hears("rows", UID, 1, 1, rows)
    point = checkpoint_of(entries_of(LAST, 1), AT)
    await standby.hears("seeded", UID, 1, 1, point.at, point.keys, bytes(32))
    await standby.hears("seeded", UID, 1, 1, point.at, point.keys, point.digest)
    assert standby.follower.seeds == []


@pytest.mark.parametrize("end", ["hash", "rows", "subscription", "connection", "unfollowed", "unfollowed at once"])
async def test_nothing_of_a_seed_stays_that_was_given_up(
    standby: Standby, source: Replica, tmp_path: Path, end: str
) -> None:
    rows, point = [list(row) for row in source.base_page(b"")], checkpoint_of(entries_of(LAST, 1), AT)
    seed = tmp_path / "partitions" / f"{UID}.seed"
    if end == "unfollowed at once":
        standby.wire.inbox.put_nowait(["seed", UID, 1, 1, encode_base(source.base)])
        await settle(seed.exists)
        standby.link.unfollow(UID)
    else:
        await standby.hears("seed", UID, 1, 1, encode_base(source.base))
        await standby.hears("rows", UID, 1, 1, rows[:4])
        assert seed.exists()
    if end == "hash":
        await standby.hears("seeded", UID, 1, 1, point.at, point.keys, bytes(32))
    elif end == "rows":
        await standby.hears("rows", UID, 1, 1, rows[:4])  # once more
    elif end == "subscription":
        await standby.hears("refuse", UID, 1, "stale-epoch")
        await asyncio.sleep(BACKOFF_SECONDS_MIN)
    elif end == "connection":
        standby.wire.inbox.put_nowait(None)
    elif end == "unfollowed":
        standby.link.unfollow(UID)
    await settle(lambda: not seed.exists())
    assert standby.follower.seeds == []
    assert (tmp_path / "partitions" / UID).exists()  # what the replica holds stays


async def test_a_seed_of_an_earlier_subscription_or_epoch_changes_nothing(
    standby: Standby, source: Replica
) -> None:
    rows = [list(row) for row in source.base_page(b"")]
    assert await standby.hears("seed", UID, 1, 0, encode_base(source.base)) == []
    assert await standby.hears("rows", UID, 1, 1, rows) == []
    await standby.follower.replica.promise(5)
    assert await standby.hears("seed", UID, 4, 1, encode_base(source.base)) == [["refuse", UID, 5, "stale-epoch"]]
    assert standby.follower.seeds == []


@pytest.mark.parametrize(
    "message",
    [
        ["seed", UID, 1, 1],
        ["seed", UID, 1, 1, b"garbage"],
        ["seed", UID, 1, 1, encode_base(Base())],
        ["rows", UID, 1, 1, [[b"k"]]],
        ["rows", UID, 1, 1, [[b"k", b"short"]]],
        ["rows", UID, 1, 1, ["k"]],
        ["seeded", UID, 1, 1, -1, -1, b""],
    ],
)
async def test_a_malformed_seed_is_no_reason_to_end_the_process(
    standby: Standby, source: Replica, message: Message
) -> None:
    await standby.hears("seed", UID, 1, 1, encode_base(source.base))
    await standby.hears(*message)
    assert standby.follower.seeds == []
    assert standby.follower.replica.last.seq == -1


# -- the owner's side -------------------------------------------------------------------------------------------


class Slow:
    """A channel to a standby that tells of durable pages when the test says so."""

    def __init__(self) -> None:
        self.sent: list[Message] = []

    async def send(self, message: Message) -> None:
        self.sent.append(message)


async def test_only_so_many_pages_are_on_their_way_and_the_base_stays_as_it_is(
    source: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cast("Any", Replica.base_page).__kwdefaults__, "count_max", 1)
    monkeypatch.setattr(limits, "SEED_PAGES_WINDOW", 3)
    channel = Slow()
    engine = SimpleNamespace(replica=source, epoch=1, spec=SimpleNamespace(name="orders-0"))
    feed = Feed(
        channel=cast("Channel", channel),
        owned=cast("Owned", SimpleNamespace(engine=engine)),
        uid=UID,
        number=7,
        pod="sample-1",
        replica_id="b",
        last_seq=-1,
        chain=bytes(32),
        voice=Voice(),
    )
    running = asyncio.ensure_future(feed.run())
    await turns()
    assert [message[0] for message in channel.sent] == ["seed", "rows", "rows", "rows"]
    assert await source.fold_step(LAST, old=lambda _entry: True) == 0
    feed.on_seeding(6, 3)  # of an earlier subscription
    await turns()
    assert len(channel.sent) == 4
    feed.on_seeding(7, 2)
    await turns()
    assert len(channel.sent) == 6
    feed.on_seeding(7, 9)
    await turns()
    assert [message[0] for message in channel.sent[6:]] == ["rows"] * 4 + ["seeded"]
    point = checkpoint_of(entries_of(LAST, 1), AT)
    assert channel.sent[-1] == ["seeded", UID, 1, 7, point.at, point.keys, point.digest]
    feed.ended = True
    feed.wake.set()
    await running
    assert channel.sent[-1][0] == "refuse"
