"""Ownership between real shards: grants, moves, replicas that diverged, records that change at a bad moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from engines import turns
from trio import NAMESPACE, OPTIONS, PODS, Trio, free_ports, held, put, running_trio, until

from fencekv import leases
from fencekv.errors import FenceKVError, NotOwner, Unavailable, Unknown
from fencekv.kube import KV_PARTITIONS, LEASES, Unclear
from fencekv.leases import PartitionLease, SessionLease
from fencekv_shard import granting, limits
from fencekv_shard.api import Committed, Consistency, Options
from fencekv_shard.fence import Role
from fencekv_shard.greeting import PROTOCOL
from fencekv_shard.journal import Ownership
from fencekv_shard.partition import Partition
from fencekv_shard.peer import Message, TcpTransport
from fencekv_shard.store import DiskFull, PromiseMoved

NAME = leases.partition_lease_name("orders-0")


@pytest.fixture
async def trio(tmp_path: Path, unused_tcp_ports: list[int]) -> AsyncIterator[Trio]:
    async with running_trio(tmp_path, unused_tcp_ports) as three:
        yield three


@pytest.fixture
def unused_tcp_ports() -> list[int]:
    return free_ports(4)


async def owned(trio: Trio, **spec: Any) -> tuple[str, Partition]:
    """A partition that sample-0 owns, with all three in sync."""
    uid = await trio.partition(**spec)
    await trio.grant("sample-0", uid)
    return uid, await trio.in_sync("sample-0", uid, 3)


def seq_of(done: Committed) -> int:
    assert done.version is not None, done
    return done.version.number


def stands_at(trio: Trio, pod: str, uid: str, epoch: int) -> bool:
    return held(trio, pod, uid).fence.epoch == epoch


def holds_as_committed(partition: Partition, seq: int) -> bool:
    return partition.replica.commit_seq >= seq


async def value(partition: Partition, key: str) -> bytes | None:
    found = (await partition.read(key, OPTIONS)).record
    return found.value if found else None


async def released(trio: Trio, epoch: int) -> None:
    """Waits until the Lease says that `epoch` was given away."""
    async with asyncio.timeout(5):
        while not ((lease := await trio.lease()).is_released and lease.epoch == epoch):
            await asyncio.sleep(0.01)


def cut_off(trio: Trio, pod: str, uid: str) -> None:
    """The pod's replica follows nobody any more, and hears of no Lease."""
    partition = held(trio, pod, uid)
    partition.lease_changed = lambda raw: None  # type: ignore[method-assign]
    partition._around.links.unfollow(partition.spec.uid)


# -- the way to the first owner, and to the next one


async def test_standbys_join_and_hold_what_is_acknowledged(trio: Trio) -> None:
    uid, owner = await owned(trio)
    done = await owner.submit(put("a", b"1"), OPTIONS)
    for pod in PODS[1:]:
        assert held(trio, pod, uid).replica.last.seq >= seq_of(done)
        assert held(trio, pod, uid).replica.promised == 1
    assert len((await trio.lease()).in_sync) == 3


async def test_the_report_tells_what_opening_took_and_how_late_renewals_were(
    trio: Trio, unused_tcp_ports: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "APPLY_IDLE_SECONDS", 60.0)
    uid, owner = await owned(trio)
    await owner.submit(put("a", b"1"), OPTIONS)
    last = owner.replica.last.seq
    [replica] = trio.shards["sample-0"].node.report()["replicas"]  # type: ignore[misc, attr-defined]
    assert replica["overlayEntries"] == last - replica["appliedSeq"]
    assert replica["rounds"] >= 2
    await trio.stop("sample-0")
    node = await trio.start("sample-0", port=unused_tcp_ports[6])
    await until(lambda: trio.held("sample-0", uid))
    report = node.report()
    [replica] = report["replicas"]  # type: ignore[misc, attr-defined]
    assert replica["openSeconds"] > 0
    assert replica["replayedEntries"] == replica["lastSeq"] - replica["appliedSeq"] > 0
    assert "rounds" not in replica  # it owns nothing
    await until(lambda: node.report()["renewalLateness"]["count"])  # type: ignore[index]


async def test_epochs_rise_with_each_grant_and_the_journal_says_where_each_ended(trio: Trio) -> None:
    uid, owner = await owned(trio)
    await owner.submit(put("a", b"1"), OPTIONS)
    for epoch, pod in ((2, "sample-1"), (3, "sample-1"), (4, "sample-0")):
        last = held(trio, pod, uid).replica.last
        assert await trio.grant(pod, uid) == epoch
        await until(partial(stands_at, trio, pod, uid, epoch))
        owner = await trio.owner(pod, uid)
        assert owner.replica.ends[-1].epoch == epoch - 1
        assert owner.replica.ends[-1].seq >= last.seq
        await owner.submit(put("a", b"%d" % epoch), OPTIONS)
    assert await value(owner, "a") == b"4"
    assert owner.replica.closed_epoch == 0
    with pytest.raises(NotOwner):
        await held(trio, "sample-1", uid).submit(put("a", b"stale"), OPTIONS)


async def test_a_standby_takes_nothing_of_an_epoch_below_its_promise(trio: Trio) -> None:
    uid, owner = await owned(trio)
    standby = held(trio, "sample-1", uid)
    await standby.replica.promise(7)
    last = standby.replica.last
    answer = asyncio.ensure_future(owner.submit(put("a", b"1"), OPTIONS))
    await until(lambda: owner.replica.last.seq > last.seq)
    entry = owner.replica.raw(last.seq + 1, 1, 1 << 20)
    with pytest.raises(PromiseMoved):
        await standby.replica.append_copied(entry, epoch=1)
    # It leaves the set, because it confirms nothing any more; then the write is acknowledged.
    await answer
    assert standby.replica.last == last
    assert standby.member not in (await trio.lease()).in_sync


async def test_a_client_that_saw_a_newer_epoch_is_refused(trio: Trio) -> None:
    _, owner = await owned(trio)
    for work in (owner.submit(put("a", b"1"), Options(epoch=2)), owner.read("a", Options(epoch=2))):
        with pytest.raises(NotOwner, match="newer owner"):
            await work


async def test_a_deposed_owner_follows_and_sets_its_divergent_tail_aside(trio: Trio) -> None:
    uid, first = await owned(trio)
    kept = await first.submit(put("a", b"kept"), OPTIONS)
    for pod in PODS[1:]:
        cut_off(trio, pod, uid)
    lost = asyncio.ensure_future(first.submit(put("a", b"lost"), OPTIONS))
    await until(lambda: first.replica.last.seq == seq_of(kept) + 1)
    for pod in PODS[1:]:
        del held(trio, pod, uid).lease_changed
    await trio.grant("sample-1", uid)
    second = await trio.owner("sample-1", uid)
    with pytest.raises(Unknown):
        await lost
    after = await second.submit(put("a", b"after"), OPTIONS)
    await until(lambda: first.replica.last.seq >= seq_of(after))
    assert first.fence.role is Role.STANDBY
    tails = list((trio.folder / "sample-0" / "partitions").glob(f"{uid}.tail-1-*.cbor"))
    assert len(tails) == 1
    assert b"lost" in tails[0].read_bytes()
    assert first.replica.chain_at(seq_of(after)) == second.replica.chain_at(seq_of(after))
    assert first.replica.read("a", seq_of(after)).value == b"after"  # type: ignore[union-attr]


async def test_a_replica_that_applied_what_is_lost_is_made_anew_under_another_id(trio: Trio) -> None:
    uid, first = await owned(trio, durability="standard")
    for pod in PODS[1:]:
        cut_off(trio, pod, uid)
    await first.submit(put("a", b"lost"), OPTIONS)  # acknowledged under `standard`, and nowhere else
    while await first.replica.apply_step():
        pass
    before = first.replica.replica_id
    for pod in PODS[1:]:
        del held(trio, pod, uid).lease_changed
    await trio.grant("sample-1", uid, in_sync=(held(trio, "sample-1", uid).member,))
    second = await trio.in_sync("sample-1", uid, 3)
    assert first.replica.replica_id != before
    assert first.replica.promised == 2
    assert (first.replica.chain, first.replica.last) == (second.replica.chain, second.replica.last)
    aside = trio.folder / "sample-0" / "partitions" / f"{uid}.aside-{before}"
    assert aside.is_dir()


async def test_a_replica_that_cannot_be_made_anew_yet_is_not_lost(
    trio: Trio, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid, _ = await owned(trio)
    standby = held(trio, "sample-2", uid)
    before, whole = standby.replica.replica_id, type(standby.replica).reseed

    async def full(*_: object, **__: object) -> None:
        raise DiskFull("full")

    monkeypatch.setattr(type(standby.replica), "reseed", full)
    with pytest.raises(DiskFull):
        await standby.reseed(1)
    assert standby.replica.replica_id == before
    assert not standby.replica.closed
    monkeypatch.setattr(type(standby.replica), "reseed", whole)
    await standby.reseed(1)
    assert standby.replica.replica_id != before
    assert standby.replica.promised == 1


# -- planned moves


async def test_a_planned_move_loses_and_refuses_nothing(trio: Trio) -> None:
    uid, first = await owned(trio)
    await first.submit(put("a", b"1"), OPTIONS)
    assert await first.move("sample-2")
    lease = await trio.lease()
    assert lease.released == f"1.{first.replica.last.seq}"
    assert lease.release_target == "sample-2"
    assert (first.fence.role, first.replica.closed_epoch) == (Role.CLOSED, 1)
    held = asyncio.ensure_future(first.hold())
    await trio.grant("sample-2", uid)
    second = await trio.owner("sample-2", uid)
    assert await value(second, "a") == b"1"
    await asyncio.wait_for(held, 1)
    assert first.fence.role is Role.STANDBY


async def test_standbys_that_hear_of_a_grant_first_are_not_sent_away(
    trio: Trio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would ask again later and later, while the new owner can serve nobody without them."""
    monkeypatch.setattr(limits, "EARLY_SECONDS_MAX", 3600.0)
    uid, first = await owned(trio)
    assert await first.move("sample-2")
    target, read = trio.shards["sample-2"].node, granting.current_grant

    async def when_all_are_there(*args: Any, **options: Any) -> Any:
        await until(lambda: sum(uid in link._early for link in target._feeds._links.values()) == 2)
        return await read(*args, **options)

    monkeypatch.setattr(granting, "current_grant", when_all_are_there)
    await trio.grant("sample-2", uid)
    second = await trio.owner("sample-2", uid)
    assert second.owned is not None
    assert len(second.owned.followers) == 2


async def test_an_epoch_that_was_closed_appends_nothing_more(trio: Trio) -> None:
    _, first = await owned(trio)
    engine = first.owned.engine  # type: ignore[union-attr]
    assert await first.move()
    last = first.replica.last
    with pytest.raises(NotOwner):
        await first.submit(put("a", b"late"), OPTIONS)
    with pytest.raises(NotOwner):
        await engine.record_set(("x/y",), 99)
    assert first.replica.last == last


async def test_a_move_without_a_wish_names_a_standby_that_holds_everything(trio: Trio) -> None:
    uid, first = await owned(trio)
    await first.submit(put("a", b"1"), OPTIONS)
    await until(lambda: first.owned and first.owned.in_sync_target(first.spec.replicas))
    assert await first.move()
    target = (await trio.lease()).release_target
    assert target in PODS[1:]
    assert held(trio, target, uid).replica.last == first.replica.last


async def test_the_releaser_can_be_granted_again_with_a_new_epoch(trio: Trio) -> None:
    uid, owner = await owned(trio)
    await owner.submit(put("a", b"1"), OPTIONS)
    assert await owner.move()
    await trio.grant("sample-0", uid)
    await until(lambda: owner.fence == owner.fence.__class__(role=Role.OWNER, epoch=2))
    await owner.submit(put("a", b"2"), OPTIONS)
    assert await value(owner, "a") == b"2"


async def test_a_release_that_learns_late_of_the_next_grant_does_not_end_that_one(trio: Trio) -> None:
    uid, owner = await owned(trio)
    before = owner.owned
    assert before is not None
    # The answer to the release is lost, and before it is read again the releaser is granted the next epoch.
    replace, get, granted = trio.kube.replace, trio.kube.get, asyncio.Event()

    async def lossy(resource: Any, namespace: Any, body: Any, **options: Any) -> Any:
        done = await replace(resource, namespace, body, **options)
        if leases.RELEASED in body["metadata"].get("annotations", {}):
            trio.kube.replace = replace  # type: ignore[method-assign]
            trio.kube.get = late  # type: ignore[method-assign]
            raise Unclear("no answer")
        return done

    async def late(resource: Any, namespace: Any, name: str, **options: Any) -> Any:
        trio.kube.get = get  # type: ignore[method-assign]
        await trio.grant("sample-0", uid)
        await until(lambda: owner.owned is not None and owner.owned is not before)
        granted.set()
        return await get(resource, namespace, name, **options)

    trio.kube.replace = lossy  # type: ignore[method-assign]
    moving = asyncio.ensure_future(owner.move())
    await asyncio.wait_for(granted.wait(), 5)
    await asyncio.wait_for(moving, 5)
    await until(lambda: owner.fence.role is Role.OWNER and owner.fence.epoch == 2)
    await owner.submit(put("a", b"2"), OPTIONS)


async def test_a_set_change_beside_a_move_does_not_leave_a_closed_epoch_on_the_lease(trio: Trio) -> None:
    uid, owner = await owned(trio)
    membership = owner.owned.membership  # type: ignore[union-attr]
    # The owner begins to drop a standby; its answer comes slowly, and meanwhile the partition is moved.
    replace = trio.kube.replace

    async def slow(resource: Any, namespace: Any, body: Any, **options: Any) -> Any:
        done = await replace(resource, namespace, body, **options)
        if resource is LEASES and leases.IN_SYNC in body["metadata"]["annotations"]:
            await asyncio.sleep(0.3)
        return done

    trio.kube.replace = slow  # type: ignore[method-assign]
    cut_off(trio, "sample-2", uid)
    await until(lambda: owner.owned is not None and not owner.owned._quiet.is_set())
    assert await owner.move()
    assert (await trio.lease()).is_released
    assert len(membership.members) == 2


@pytest.mark.parametrize(("asked", "alone", "target"), [(1, 1, "s-1"), (1, None, ""), (0, 1, ""), (1, 0, "")])
async def test_an_owner_is_asked_to_let_go_only_while_it_is_alone_and_under_its_epoch(
    asked: int, alone: int | None, target: str, trio: Trio
) -> None:
    await owned(trio)
    raw = await trio.kube.get(LEASES, NAMESPACE, leases.partition_lease_name("orders-0"))
    said = leases.with_alone_since(leases.with_release_asked(raw, epoch=asked, target="s-1"), alone)
    assert PartitionLease.parse(said).asked_target == target


@pytest.mark.parametrize("way", ["over HTTP", "by its Lease"])
async def test_an_owner_out_of_reach_of_its_standbys_lets_go_when_it_is_asked_to(
    way: str, trio: Trio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ALONE_SECONDS", 0.5)
    monkeypatch.setattr(limits, "HELD_SECONDS_MAX", 0.5)
    uid, owner = await owned(trio)
    for pod in PODS[1:]:
        cut_off(trio, pod, uid)
    under_way = asyncio.ensure_future(owner.submit(put("a", b"nobody has it"), OPTIONS))
    await until(lambda: owner.owned and owner.owned.membership.seen.alone_since == 1)
    if way == "over HTTP":
        assert await trio.shards["sample-0"].node.release(uid, 1, "sample-1")
    else:
        raw = await trio.kube.get(LEASES, NAMESPACE, leases.partition_lease_name("orders-0"))
        await trio.kube.replace(LEASES, NAMESPACE, leases.with_release_asked(raw, epoch=1, target="sample-1"))
    with pytest.raises(Unknown):
        await under_way
    await until(lambda: owner.fence.role is Role.CLOSED)
    for pod in PODS[1:]:
        del held(trio, pod, uid).lease_changed
    await until(lambda: owner.replica.closed_epoch == 1)
    async with asyncio.timeout(5):
        while not (await trio.lease()).is_released:
            await asyncio.sleep(0.01)
    in_sync = (await trio.lease()).in_sync
    survivor = next(pod for pod in PODS[1:] if held(trio, pod, uid).member in in_sync)
    await trio.grant(survivor, uid)
    second = await trio.owner(survivor, uid)
    assert await value(second, "a") is None


async def test_a_standard_table_is_not_moved_away_from_what_only_its_owner_holds(
    trio: Trio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ALONE_SECONDS", 0.5)
    monkeypatch.setattr(limits, "HELD_SECONDS_MAX", 0.5)
    uid, owner = await owned(trio, durability="standard")
    for pod in PODS[1:]:
        cut_off(trio, pod, uid)
    await owner.submit(put("a", b"acknowledged"), OPTIONS)
    await until(lambda: owner.owned and owner.owned.membership.seen.alone_since == 1)
    assert not await owner.move("sample-1")
    assert not (await trio.lease()).is_released
    assert owner.fence.role is Role.OWNER


async def test_a_draining_shard_gives_its_partitions_away_before_its_session_ends(trio: Trio) -> None:
    uid, owner = await owned(trio)
    await owner.submit(put("a", b"1"), OPTIONS)
    draining = asyncio.ensure_future(trio.shards["sample-0"].node.drain())
    async with asyncio.timeout(5):
        while not (await trio.lease()).is_released:
            await asyncio.sleep(0.01)
    assert not draining.done(), "its successor counts it, and would wait for it"
    assert trio.shards["sample-0"].node.live()
    await trio.grant("sample-1", uid)
    after = await trio.owner("sample-1", uid)
    await asyncio.wait_for(draining, limits.SUCCESSION_SECONDS_MAX / 2)
    await trio.stop("sample-0", release=True)
    assert await value(after, "a") == b"1"


async def test_a_draining_shard_moves_its_few_partitions_one_after_the_other(
    trio: Trio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moves that are under way together make each other's pauses longer."""
    monkeypatch.setattr("fencekv_shard.node.NEXT_MOVE_SECONDS", limits.SUCCESSION_SECONDS_MAX)
    names = ("orders-0", "other-0")
    uids = [await trio.partition(name) for name in names]
    for name, uid in zip(names, uids, strict=True):
        await trio.grant("sample-0", uid, name)
        await trio.in_sync("sample-0", uid, 3)
    here = [held(trio, "sample-0", uid) for uid in uids]
    draining = asyncio.ensure_future(trio.shards["sample-0"].node.drain())
    await until(lambda: any(each.fence.role is Role.CLOSED for each in here))
    await turns(100)
    # Which of them goes first is as they happened to be opened.
    first, second = sorted(range(len(here)), key=lambda each: here[each].fence.role is not Role.CLOSED)
    assert here[second].fence.role is Role.OWNER
    await trio.grant("sample-1", uids[first], names[first])
    await trio.owner("sample-1", uids[first])
    await until(lambda: here[second].fence.role is Role.CLOSED)
    await trio.grant("sample-1", uids[second], names[second])
    await asyncio.wait_for(draining, limits.SUCCESSION_SECONDS_MAX)


async def test_a_draining_shard_does_not_wait_for_ever_for_a_successor(
    trio: Trio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SUCCESSION_SECONDS_MAX", 0.2)
    await owned(trio)
    await asyncio.wait_for(trio.shards["sample-0"].node.drain(), 5)
    assert (await trio.lease()).is_released


async def test_sigterm_while_an_epoch_is_opened_ends_cleanly(trio: Trio) -> None:
    uid = await trio.partition()
    await until(lambda: all(trio.held(pod, uid) for pod in PODS))
    for pod in PODS[1:]:
        cut_off(trio, pod, uid)
    members = [held(trio, pod, uid).member for pod in PODS]
    await trio.grant("sample-0", uid, in_sync=members)
    await until(lambda: held(trio, "sample-0", uid).fence.role is Role.GRANTED)
    await asyncio.wait_for(trio.shards["sample-0"].node.drain(), 5)
    await asyncio.wait_for(trio.stop("sample-0", release=True), 5)
    lease = SessionLease.parse(await trio.kube.get(LEASES, NAMESPACE, leases.session_lease_name("sample-0")))
    assert lease.over(lease.session)


# -- grants that cannot be taken, records that change under an owner


async def test_a_grant_to_another_replica_of_this_pod_is_given_back(trio: Trio) -> None:
    uid = await trio.partition()
    await trio.grant("sample-0", uid, in_sync=("sample-0/ffffffffffffffff",))
    async with asyncio.timeout(5):
        while not (await trio.lease()).is_released:
            await asyncio.sleep(0.01)
    partition = held(trio, "sample-0", uid)
    assert (partition.fence.role, partition.fence.epoch) == (Role.STANDBY, 1)
    assert await trio.grant("sample-0", uid, in_sync=(partition.member,)) == 2
    assert (await trio.owner("sample-0", uid)).fence.epoch == 2


async def test_a_grant_below_its_own_promise_is_not_taken_and_the_report_says_why(trio: Trio) -> None:
    uid = await trio.partition()
    await until(lambda: trio.held("sample-0", uid))
    partition = held(trio, "sample-0", uid)
    await partition.replica.promise(5)
    await trio.grant("sample-0", uid)
    await until(lambda: partition.fence.epoch == 1 and partition.fence.role is Role.STANDBY)
    assert partition.report()["epoch"] == 5
    await trio.grant("sample-0", uid, epoch=6)
    assert (await trio.owner("sample-0", uid)).fence.epoch == 6


async def test_an_owner_goes_on_without_its_record_and_takes_the_next_grant(trio: Trio) -> None:
    uid, owner = await owned(trio)
    await trio.kube.delete(LEASES, NAMESPACE, NAME)
    await owner.submit(put("a", b"1"), OPTIONS)
    fresh = leases.new_partition_lease(
        partition="orders-0", partition_uid=uid, table="orders", kvns="sample", namespace=NAMESPACE
    )
    members = owner.owned.membership.members  # type: ignore[union-attr]
    await trio.kube.create(LEASES, NAMESPACE, fresh)
    await trio.grant("sample-0", uid, epoch=2, in_sync=members)
    await until(lambda: owner.fence.role is Role.OWNER and owner.fence.epoch == 2)
    assert await value(owner, "a") == b"1"


async def test_a_record_that_was_put_back_does_not_make_an_owner(trio: Trio) -> None:
    uid, first = await owned(trio)
    old = await trio.kube.get(LEASES, NAMESPACE, NAME)
    await trio.grant("sample-1", uid)
    second = await trio.owner("sample-1", uid)
    await until(lambda: first.fence.role is Role.STANDBY)
    now = await trio.kube.get(LEASES, NAMESPACE, NAME)
    old["metadata"]["resourceVersion"] = now["metadata"]["resourceVersion"]
    await trio.kube.replace(LEASES, NAMESPACE, old)
    await asyncio.sleep(0.3)
    assert first.fence.role is Role.STANDBY
    assert second.fence.role is Role.OWNER
    await second.submit(put("a", b"1"), OPTIONS)


async def test_a_shard_that_restarts_under_its_pods_name_is_no_owner_by_that(trio: Trio) -> None:
    uid, owner = await owned(trio)
    await owner.submit(put("a", b"1"), OPTIONS)
    port = int(trio.shards["sample-0"].node.config.http.rpartition(":")[2])
    replica_id, promised = owner.replica.replica_id, owner.replica.promised
    await trio.stop("sample-0")
    await trio.start("sample-0", port=port)
    await until(lambda: trio.held("sample-0", uid))
    again = held(trio, "sample-0", uid)
    assert (again.replica.replica_id, again.replica.promised) == (replica_id, promised)
    assert again.fence.role is Role.STANDBY
    with pytest.raises(NotOwner):
        await again.submit(put("a", b"2"), OPTIONS)
    await trio.grant("sample-0", uid)
    again = await trio.owner("sample-0", uid)
    assert await value(again, "a") == b"1"


async def test_a_partition_that_is_deleted_while_it_is_written_to_ends_nothing_else(trio: Trio) -> None:
    uid, owner = await owned(trio, deletionPolicy="Delete")
    writing = [asyncio.ensure_future(owner.submit(put(f"k{n}", b"x" * 4096), OPTIONS)) for n in range(200)]
    await asyncio.sleep(0.01)
    await trio.kube.delete(KV_PARTITIONS, NAMESPACE, "orders-0")
    outcomes = await asyncio.gather(*writing, return_exceptions=True)
    assert all(not isinstance(one, BaseException) or isinstance(one, FenceKVError) for one in outcomes)
    folders = [trio.folder / pod / "partitions" / uid for pod in PODS]
    await until(lambda: not any(folder.exists() for folder in folders))
    assert all(running.node.live() for running in trio.shards.values())


async def test_a_partition_that_is_deleted_during_a_move_ends_nothing_else(trio: Trio) -> None:
    _, owner = await owned(trio)
    moving = asyncio.ensure_future(owner.move())
    await trio.kube.delete(KV_PARTITIONS, NAMESPACE, "orders-0")
    await asyncio.wait_for(asyncio.gather(moving, return_exceptions=True), 5)
    assert all(running.node.live() for running in trio.shards.values())


# -- peers that hang, and readers


async def test_a_peer_that_reads_nothing_does_not_stop_the_clockwork(trio: Trio) -> None:
    _, owner = await owned(trio)
    link = next(iter(trio.shards["sample-0"].node._feeds._links.values()))

    async def never(message: object) -> None:
        await asyncio.Event().wait()

    link.channel.send = never  # type: ignore[method-assign]
    answer = await asyncio.wait_for(owner.submit(put("a", b"1"), OPTIONS), 8)
    assert answer.version is not None
    assert len((await trio.lease()).in_sync) == 2


async def test_a_cached_read_shows_only_what_is_committed(trio: Trio) -> None:
    uid, owner = await owned(trio)
    await owner.submit(put("a", b"old"), OPTIONS)
    for pod in PODS[1:]:
        await until(partial(holds_as_committed, held(trio, pod, uid), owner.replica.last.seq))
    cut_off(trio, "sample-2", uid)
    answer = asyncio.ensure_future(owner.submit(put("a", b"new"), OPTIONS))
    one = held(trio, "sample-1", uid)
    await until(lambda: one.replica.last.seq == owner.replica.last.seq)
    cached = Options(consistency=Consistency.CACHED)
    assert (await one.read("a", cached)).record.value == b"old"  # type: ignore[union-attr]
    assert await value(owner, "a") == b"old"
    assert not answer.done()
    await answer
    assert await value(owner, "a") == b"new"


async def test_a_read_waits_for_its_minimum_token_and_says_where_it_got_stuck(
    trio: Trio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FRESH_SECONDS_MAX", 0.1)
    uid, owner = await owned(trio)
    done = await owner.submit(put("a", b"1"), OPTIONS)
    one = held(trio, "sample-1", uid)
    cached = Options(consistency=Consistency.CACHED, min_token=done.token)
    monkeypatch.setattr(limits, "FRESH_SECONDS_MAX", 5)
    assert (await one.read("a", cached)).record.value == b"1"  # type: ignore[union-attr]
    monkeypatch.setattr(limits, "FRESH_SECONDS_MAX", 0.05)
    ahead = type(done.token)(done.token.epoch, done.token.number + 10)
    with pytest.raises(NotOwner, match="not reached in time"):
        await one.read("a", Options(consistency=Consistency.CACHED, min_token=ahead))
    with pytest.raises(Unavailable, match="not reached in time"):
        await owner.read("a", Options(min_token=ahead))
    newer = type(done.token)(done.token.epoch + 1, 0)
    with pytest.raises(NotOwner, match="newer owner"):
        await owner.read("a", Options(min_token=newer))


async def test_one_ownership_entry_stands_for_each_epoch(trio: Trio) -> None:
    uid, _ = await owned(trio)
    await trio.grant("sample-1", uid)
    await trio.owner("sample-1", uid)
    await trio.grant("sample-2", uid)
    last = await trio.owner("sample-2", uid)
    epochs = [
        last.replica.entry(seq).epoch
        for seq in range(last.replica.last.seq + 1)
        if isinstance(last.replica.entry(seq).operations, Ownership)
    ]
    assert epochs == [1, 2, 3]
    assert PartitionLease.parse(await trio.kube.get(LEASES, NAMESPACE, NAME)).epoch == 3


async def test_a_full_disk_gives_a_grant_to_another_member_and_ends_no_process(
    trio: Trio, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid, owner = await owned(trio)
    await owner.submit(put("a", b"1"), OPTIONS)
    one = held(trio, "sample-1", uid)

    async def full(epoch: int) -> None:
        raise DiskFull("full")

    monkeypatch.setattr(one.replica, "promise", full)
    await trio.grant("sample-1", uid)
    await released(trio, 2)
    lease = await trio.lease()
    assert lease.release_target in {"sample-0", "sample-2"}
    assert one.fence.role is Role.STANDBY
    await trio.grant(lease.release_target, uid)
    assert await value(await trio.owner(lease.release_target, uid), "a") == b"1"


async def test_an_epoch_that_cannot_be_closed_on_a_full_disk_goes_on(
    trio: Trio, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, owner = await owned(trio)

    async def full(epoch: int) -> None:
        raise DiskFull("full")

    with monkeypatch.context() as patched:
        patched.setattr(owner.replica, "close_epoch", full)
        assert not await owner.move()
    await owner.submit(put("a", b"1"), OPTIONS)
    assert await owner.move()


@pytest.mark.parametrize(
    "message",
    [
        ["subscribe", "uid", 1, "r", 0, -5, 0, b""],
        ["subscribe", "uid"],
        ["confirm", [], 1, "r", 1],
        ["hash", "uid", 1, 1, "no bytes"],
        ["ping"],
        ["nonsense", 1],
    ],
)
async def test_a_malformed_follower_harms_only_its_own_connection(trio: Trio, message: Message) -> None:
    _, owner = await owned(trio)
    filled = [owner.spec.uid if part == "uid" else part for part in message]
    address = trio.shards["sample-0"].node.config.peer
    channel = await TcpTransport().connect(address)
    await channel.send(["hello", PROTOCOL, "stranger/uid/n", "stranger", "sample"])
    await channel.send(filled)
    await owner.submit(put("a", b"1"), OPTIONS)
    assert trio.shards["sample-0"].node.live()
    channel.close()
