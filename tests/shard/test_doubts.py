"""Bases that are not what they should be, between real shards: nobody throws one away on the word of another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trimming import damage_base, quick_trimming
from trio import OPTIONS, PODS, Trio, free_ports, held, put, running_trio, until

from fencekv_shard.base import Fold, Row, Standing, pack_row
from fencekv_shard.journal import Entry
from fencekv_shard.partition import Partition
from fencekv_shard.replica import Replica


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_trimming(monkeypatch)


@pytest.fixture
async def trio(tmp_path: Path) -> AsyncIterator[Trio]:
    async with running_trio(tmp_path, free_ports(3)) as three:
        yield three


async def owned(trio: Trio, **spec: Any) -> tuple[str, Partition]:
    """A partition of sample-0 whose history is kept for a second, and which was trimmed once."""
    uid = await trio.partition(**{"history": {"windowSeconds": 1}, **spec})
    await trio.grant("sample-0", uid)
    partition = await trio.in_sync("sample-0", uid, len(spec.get("replicas", PODS)))
    await write(partition)
    last = partition.replica.last.seq
    holding = [pod for pod in PODS if trio.held(pod, uid) is not None]
    await until(lambda: all(held(trio, pod, uid).replica.first_seq > last for pod in holding))
    return uid, partition


def ids(trio: Trio, uid: str) -> dict[str, str]:
    return {pod: held(trio, pod, uid).replica.replica_id for pod in PODS}


async def write(partition: Partition) -> None:
    for number in range(10):
        await partition.submit(put(f"key-{number}", b"%d" % number), OPTIONS)


LYING: ContextVar[bool] = ContextVar("LYING", default=False)


def lie(monkeypatch: pytest.MonkeyPatch, wrong: Replica) -> None:
    """A replica folds something else than was written: a bug, whose base is sound by its own record."""
    right, stepped = Fold.of, Replica.fold_step

    def lying(entries: Sequence[Entry]) -> Fold:
        fold = right(entries)
        if not LYING.get() or not fold.puts:
            return fold
        return replace(fold, puts=[(fold.puts[0][0], pack_row(Row(1, 1, 0, b"lie"))), *fold.puts[1:]])

    async def stepping(self: Replica, limit: int, **named: Any) -> int:
        LYING.set(self is wrong)  # for this task
        return await stepped(self, limit, **named)

    monkeypatch.setattr(Fold, "of", lying)
    monkeypatch.setattr(Replica, "fold_step", stepping)


async def released(trio: Trio) -> str:
    """The pod that the owner wishes as its successor, once it has given the partition away."""
    async with asyncio.timeout(10.0):
        while not (lease := await trio.lease()).is_released:
            await asyncio.sleep(0.005)
    return lease.release_target


async def test_a_standby_whose_base_is_not_what_it_wrote_is_set_aside_and_seeded(trio: Trio) -> None:
    uid, partition = await owned(trio)
    before = ids(trio, uid)
    await damage_base(held(trio, "sample-1", uid).replica)
    await write(partition)
    last = partition.replica.last.seq
    await until(lambda: ids(trio, uid)["sample-1"] != before["sample-1"])
    await trio.in_sync("sample-0", uid, 3)
    await until(lambda: all(held(trio, pod, uid).replica.first_seq > last for pod in PODS))
    assert {pod: ids(trio, uid)[pod] for pod in ("sample-0", "sample-2")} == {
        pod: before[pod] for pod in ("sample-0", "sample-2")
    }
    for pod in PODS:
        await held(trio, pod, uid).replica.verify()


@pytest.mark.parametrize("found", ["by itself", "asked by a standby"])
async def test_an_owner_whose_base_is_not_what_it_wrote_steps_down_and_is_seeded(trio: Trio, found: str) -> None:
    uid, partition = await owned(trio)
    before = ids(trio, uid)
    await damage_base(partition.replica)
    if found == "by itself":
        await write(partition)
    else:
        assert partition.owned is not None
        partition.owned.doubted(f"sample-2/{before['sample-2']}")
    expected = "sample-1" if found == "by itself" else "sample-2"
    assert await released(trio) == expected
    await trio.grant(expected, uid)
    after = await trio.in_sync(expected, uid, 3)
    await write(after)
    last = after.replica.last.seq
    await until(lambda: all(held(trio, pod, uid).replica.first_seq > last for pod in PODS))
    changed = {pod for pod in PODS if ids(trio, uid)[pod] != before[pod]}
    assert changed == {"sample-0"}, "the damaged base, and no other, was set aside"
    for pod in PODS:
        await held(trio, pod, uid).replica.verify()


async def test_sound_bases_that_differ_are_all_kept_and_not_counted_on(
    trio: Trio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner is the wrong one, which nobody can know: its standbys keep what they have."""
    uid, partition = await owned(trio)
    before, wrong = ids(trio, uid), partition.replica
    lie(monkeypatch, wrong)
    await write(partition)
    last = wrong.last.seq
    standbys = [held(trio, pod, uid).replica for pod in PODS[1:]]
    await until(lambda: all(one.standing is Standing.DIFFERS for one in standbys))
    await trio.in_sync("sample-0", uid, 2)  # down to minInSync
    await write(partition)
    assert ids(trio, uid) == before
    assert all(one.first_seq <= last for one in standbys), "what could show who is right is kept"
    assert held(trio, "sample-1", uid).report()["base"] == "differs"
    # A person moves the ownership to a standby: now that one's base counts, and still nobody loses any.
    await partition.move()
    target = (await trio.lease()).release_target
    await trio.grant(target, uid)
    after = await trio.owner(target, uid)
    other = next(pod for pod in PODS[1:] if pod != target)
    await until(lambda: wrong.standing is Standing.DIFFERS)
    await until(lambda: held(trio, other, uid).replica.standing is Standing.SOUND)
    await until(lambda: after.owned and other in {one.split("/")[0] for one in after.owned.membership.members})
    assert ids(trio, uid) == before
    assert after.replica.standing is Standing.SOUND


async def test_an_owner_without_standbys_stays_the_owner_and_seeds_nobody(trio: Trio) -> None:
    _, partition = await owned(trio, replicas=["sample-0"], durability="standard", minInSync=0)
    await damage_base(partition.replica)
    await write(partition)
    await until(lambda: partition.replica.standing is Standing.DAMAGED)
    seq, first = partition.replica.base.seq, partition.replica.first_seq
    await asyncio.sleep(0.5)  # several times as long as until the next try: nothing may happen in it
    await write(partition)
    lease = await trio.lease()
    assert (lease.epoch, lease.is_released, partition.serving) == (1, False, True)
    assert (partition.replica.base.seq, partition.replica.first_seq) == (seq, first)
    assert partition.report()["base"] == "damaged"
