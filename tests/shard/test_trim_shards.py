"""Trimming between real shards: all end with the same base, and who was away too long is seeded with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from trimming import quick_trimming
from trio import NAMESPACE, OPTIONS, PODS, Trio, free_ports, held, put, running_trio, until

from fencekv.errors import Lost
from fencekv.kube import KV_PARTITIONS
from fencekv_shard import limits
from fencekv_shard.api import Consistency, Options, Range
from fencekv_shard.base import encode_base
from fencekv_shard.journal import Kind
from fencekv_shard.partition import Partition
from fencekv_shard.replica import Replica
from fencekv_shard.transaction import Delete, Transaction

CACHED = Options(consistency=Consistency.CACHED)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_trimming(monkeypatch)


@pytest.fixture
async def ports() -> list[int]:
    return free_ports(3)


@pytest.fixture
async def trio(tmp_path: Path, ports: list[int]) -> AsyncIterator[Trio]:
    async with running_trio(tmp_path, ports) as three:
        yield three


async def owned(trio: Trio, **spec: Any) -> tuple[str, Partition]:
    """A partition that sample-0 owns, with all three in sync, whose history is kept for a second."""
    uid = await trio.partition(**{"history": {"windowSeconds": 1}, **spec})
    await trio.grant("sample-0", uid)
    return uid, await trio.in_sync("sample-0", uid, 3)


async def keep(trio: Trio, uid: str, *, seconds: int) -> None:
    """Has the history kept for so long, on all shards that run."""
    await trio.kube.patch(KV_PARTITIONS, NAMESPACE, "orders-0", {"spec": {"history": {"windowSeconds": seconds}}})
    await until(lambda: all(held(trio, pod, uid).spec.history_seconds == seconds for pod in trio.shards))


async def write(partition: Partition, count: int, *, name: str, **options: Any) -> None:
    """Puts keys, some of them again and again; every tenth is deleted at the end."""
    for number in range(count):
        await partition.submit(put(f"{name}-{number % 20:02d}", b"%d" % number, **options), OPTIONS)
    for number in range(0, 20, 10):
        await partition.submit(Transaction(then=(Delete(f"{name}-{number:02d}"),)), OPTIONS)


def rows(replica: Replica) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    while page := replica.base_page(found[-1][0] if found else b"", count_max=1000):
        found += page
    return found


async def listed(partition: Partition) -> dict[str, bytes]:
    page = await partition.scan(Range(limit=1000), CACHED)
    return {item.key: item.record.value for item in page.items}


def is_done(replica: Replica) -> bool:
    """Whether only checkpoints lie above the base, and the last one speaks of it."""
    base = replica.base
    kinds = {replica.entry(seq).kind for seq in range(base.seq + 1, replica.last.seq + 1)}
    noted_at = base.noted.checkpoint.at if base.noted else -1
    return kinds == {Kind.CHECKPOINT} and noted_at == base.seq and not base.to_trim


def trimmed(trio: Trio, uid: str, seq: int) -> bool:
    """Whether every shard that runs has trimmed up to `seq`."""
    return all(held(trio, pod, uid).replica.first_seq > seq for pod in trio.shards)


async def test_all_replicas_trim_what_is_older_than_the_window_and_have_the_same_base(trio: Trio) -> None:
    uid, partition = await owned(trio)
    await write(partition, 60, name="key")
    before, last = await listed(partition), partition.replica.last.seq
    await until(lambda: trimmed(trio, uid, last))
    await until(lambda: len({encode_base(held(trio, pod, uid).replica.base) for pod in PODS}) == 1)
    assert rows(held(trio, "sample-0", uid).replica) == rows(held(trio, "sample-2", uid).replica)
    for pod in PODS:
        one = held(trio, pod, uid)
        assert await listed(one) == before
        await one.replica.verify()
        with pytest.raises(Lost, match="history is gone") as lost:
            await one.scan(Range(limit=1, at=last - 1), CACHED)
        assert lost.value.status == 410
        [change], more = (await one.history("key-01", before=None, limit=9, options=CACHED)).changes, False
        assert (change.value, more) == (before["key-01"], False)
        gone = await one.history("key-00", before=None, limit=9, options=CACHED)
        assert gone.changes == []
    await write(partition, 30, name="more")
    assert (await listed(partition))["more-01"] == b"21"


async def test_an_idle_partition_journals_no_checkpoint_of_checkpoints(trio: Trio) -> None:
    _, partition = await owned(trio)
    await write(partition, 10, name="key")
    replica = partition.replica
    await until(lambda: is_done(replica))
    last = replica.last.seq
    await asyncio.sleep(1.5)  # longer than window and spare together: nothing may happen in it
    assert partition.replica.last.seq == last
    assert partition._trimmer._timer is None


async def test_without_a_window_and_with_a_key_that_may_be_repeated_nothing_is_trimmed(trio: Trio) -> None:
    uid, partition = await owned(trio)
    await partition.submit(put("once", b"1", idempotency_key=b"k"), OPTIONS)
    version = (await partition.submit(put("once", b"1", idempotency_key=b"k"), OPTIONS)).version
    kept = partition.replica.last.seq
    await write(partition, 10, name="key")
    await until(lambda: partition.replica.base.seq == kept - 1)
    await asyncio.sleep(0.5)
    assert partition.replica.base.seq == kept - 1
    assert (await partition.submit(put("once", b"1", idempotency_key=b"k"), OPTIONS)).version == version
    assert uid


async def test_a_window_that_is_set_later_is_acted_on(trio: Trio) -> None:
    uid, partition = await owned(trio, history={"windowSeconds": 0})
    await write(partition, 20, name="key")
    await asyncio.sleep(0.5)
    assert partition.replica.base.seq == -1
    last = partition.replica.last.seq
    await trio.kube.patch(KV_PARTITIONS, NAMESPACE, "orders-0", {"spec": {"history": {"windowSeconds": 1}}})
    await until(lambda: trimmed(trio, uid, last))


async def test_a_shard_that_was_away_too_long_is_seeded_and_joins_again(trio: Trio, ports: list[int]) -> None:
    uid, partition = await owned(trio)
    await write(partition, 40, name="first")
    was = held(trio, "sample-2", uid).replica
    id_before, seq_before = was.replica_id, was.last.seq
    await trio.stop("sample-2", release=True)
    await write(partition, 60, name="second")
    await until(lambda: trimmed(trio, uid, seq_before + 5))
    await keep(trio, uid, seconds=3600)  # What it is seeded with is not trimmed again before it has caught up.
    await trio.start("sample-2", port=ports[4])
    await trio.in_sync("sample-0", uid, 3)
    back = held(trio, "sample-2", uid)
    assert back.replica.replica_id != id_before
    assert back.replica.first_seq > seq_before
    await partition.submit(put("after", b"1"), OPTIONS)
    last = partition.replica.last
    await until(lambda: back.replica.commit_seq == last.seq)
    assert await listed(back) == await listed(partition)
    assert partition.replica.last == last, "nothing else is written meanwhile"
    assert back.replica.chain == partition.replica.chain
    assert back.replica.root() == partition.replica.root()
    await back.replica.verify()
    aside = [path.name for path in (trio.folder / "sample-2" / "partitions").glob(f"{uid}.aside-*")]
    assert aside == [f"{uid}.aside-{id_before}"]
    # The one that was seeded can be the owner, and trims on.
    await keep(trio, uid, seconds=1)
    await trio.grant("sample-2", uid)
    await trio.owner("sample-2", uid)
    await write(back, 20, name="third")
    written = back.replica.last.seq
    await until(lambda: trimmed(trio, uid, written))
    for pod in PODS:
        await held(trio, pod, uid).replica.verify()


async def test_a_seed_that_breaks_off_counts_for_nothing_and_is_sent_again(
    trio: Trio, ports: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    uid, partition = await owned(trio)
    await trio.stop("sample-2", release=True)
    await write(partition, 60, name="key")
    last = partition.replica.last.seq
    await until(lambda: trimmed(trio, uid, last))
    added = Replica.add_to_seed
    pages = 0

    async def breaking(self: Replica, *arguments: Any) -> None:
        nonlocal pages
        pages += 1
        if pages == 3:
            monkeypatch.setattr(Replica, "add_to_seed", added)
            await asyncio.sleep(0)
            [link] = trio.shards["sample-2"].node._links._links.values()
            link.hang_up()
        await added(self, *arguments)

    monkeypatch.setattr(Replica, "add_to_seed", breaking)
    confirmed: list[str] = []
    await trio.start("sample-2", port=ports[4])
    await until(lambda: pages == 3)
    confirmed += [member for member in partition.owned.engine.confirmed if member.startswith("sample-2")]  # type: ignore[union-attr]
    await trio.in_sync("sample-0", uid, 3)
    assert confirmed == []
    back = held(trio, "sample-2", uid)
    assert await listed(back) == await listed(partition)
    await back.replica.verify()


async def test_nothing_is_trimmed_that_a_counted_standby_lacks(
    trio: Trio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`standard` commits without its standbys; one that is counted and behind still finds all it needs."""
    monkeypatch.setattr(limits, "STANDBY_TIMEOUT_SECONDS", 60.0)
    monkeypatch.setattr(limits, "STANDBY_STALL_SECONDS", 60.0)
    uid, partition = await owned(trio, durability="standard", maxUnshippedSeconds=3600)
    await write(partition, 10, name="key")
    held_up = held(trio, "sample-2", uid)
    reached = held_up.replica.last.seq
    copied = Replica.append_copied

    async def stuck(self: Replica, *arguments: Any, **named: Any) -> int:
        while self is held_up.replica and partition.spec.history_seconds:
            await asyncio.sleep(0.01)
        return await copied(self, *arguments, **named)

    monkeypatch.setattr(Replica, "append_copied", stuck)
    await write(partition, 30, name="key")
    await asyncio.sleep(2.0)
    assert partition.replica.last.seq > reached + 5
    assert partition.replica.first_seq <= partition.replica.base.seq + 1 <= reached + 2
    monkeypatch.setattr(Replica, "append_copied", copied)
    held_up_id = held_up.replica.replica_id
    last = partition.replica.last.seq
    await trio.kube.patch(KV_PARTITIONS, NAMESPACE, "orders-0", {"spec": {"history": None}})
    await until(lambda: held_up.replica.last.seq >= last)
    assert held_up.replica.replica_id == held_up_id
