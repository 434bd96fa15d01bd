"""The in-sync set in its owner's hands: changes by CAS, outcomes that are unclear, and who counts meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from engines import B, Bench, C, bench, put, settle, turns
from memory_kube import MemoryKube
from storage import Holding

from fencekv import leases
from fencekv.errors import NotOwner, Unavailable, Unknown
from fencekv.kube import LEASES, KubeError, Unclear
from fencekv.leases import PartitionLease, Session
from fencekv_shard import limits
from fencekv_shard.api import Committed, Durability, Options
from fencekv_shard.granting import current_grant, decline
from fencekv_shard.journal import InSync
from fencekv_shard.membership import Membership, NotOurs
from fencekv_shard.owned import Owned, Rota, Voice, Wakeable
from fencekv_shard.turns import Turns

OURS, OTHER = Session("sample-0", "uid-0", "n0"), Session("sample-1", "uid-1", "n1")
NAME = leases.partition_lease_name("orders-0")
D = "sample-3/d"
SILENT_TICKS = 5  # of 0.25 s, the first of which still heard something


@dataclass
class World:
    bench: Bench
    kube: MemoryKube
    turns: Turns
    membership: Membership
    rota: Rota
    owned: Owned
    tasks: list[asyncio.Task[None]]
    deposed: list[int]
    feeds: dict[str, Wakeable] = field(default_factory=dict)
    taking_over: bool = False

    async def lease(self) -> PartitionLease:
        return PartitionLease.parse(await self.kube.get(LEASES, "default", NAME))

    async def grant(self, session: Session, *, epoch: int, in_sync: tuple[str, ...]) -> None:
        await grant(self.kube, session, epoch=epoch, in_sync=in_sync)

    def once(self, method: str, act: Callable[[], None], *, after: bool = False) -> None:
        """Runs `act` at the next request of that method, before or after it is carried out."""
        done: list[bool] = []

        def hook(asked: str, path: str) -> None:
            if asked == method and not done:
                done.append(True)
                act()

        if after:
            self.kube.after = hook
        else:
            self.kube.before = hook

    def follow(self, *members: str) -> None:
        """These replicas connect, and have everything."""
        for member in members:
            self.feeds[member] = Wakeable(Voice())
            self.owned.attach(member, self.feeds[member])
        self.bench.confirm(*members)

    def tick(self, *alive: str, seconds: float = 0.25, confirm: bool = True) -> None:
        """Time passes, in which `alive` are heard and, unless told otherwise, confirm what there is."""
        self.bench.clock.seconds += seconds
        self.bench.session.deadline = self.bench.clock.now() + 4
        for member in alive:
            self.feeds[member].voice.heard = True
        if confirm:
            self.bench.confirm(*alive)
        self.rota.tick(seconds, valid=True)

    async def ticks(self, count: int, *alive: str, confirm: bool = True) -> None:
        for _ in range(count):
            self.tick(*alive, confirm=confirm)
            await turns()

    def request(self, key: str) -> asyncio.Task[Committed]:
        """A request by way of the partition's owner, as the wire sends it."""
        return asyncio.ensure_future(self.owned.submit(put(key), Options()))

    def journaled(self) -> list[tuple[str, ...]]:
        replica = self.bench.replica
        entries = [replica.entry(seq).operations for seq in range(replica.last.seq + 1)]
        return [operations.members for operations in entries if isinstance(operations, InSync)]


async def grant(kube: MemoryKube, session: Session, *, epoch: int, in_sync: tuple[str, ...]) -> dict[str, Any]:
    lease = await kube.get(LEASES, "default", NAME)
    body = leases.granted(
        lease,
        session=session,
        epoch=epoch,
        in_sync=in_sync,
        set_version=PartitionLease.parse(lease).set_version + 1,
        http="h:1",
        peer="h:2",
        unix_seconds=0.0,
    )
    return await kube.replace(LEASES, "default", body)


async def world(folder: Path, *standbys: str, **changes: Any) -> World:
    """An open owner of epoch 1 with these standbys in its set, all connected."""
    kube = MemoryKube()
    fresh = leases.new_partition_lease(
        partition="orders-0", partition_uid="uid", table="orders", kvns="sample", namespace="default"
    )
    await kube.create(LEASES, "default", fresh)
    replicas = ("sample-0", "sample-1", "sample-2", "sample-3")
    one = await bench(folder, **{"replicas": replicas, **changes})
    raw = await grant(kube, OURS, epoch=1, in_sync=(one.engine.member, *standbys))
    deposed: list[int] = []
    lease_turns = Turns(kube, writes=1)
    membership = Membership(
        kube=lease_turns,
        namespace="default",
        session=OURS,
        engine=one.engine,
        lease=raw,
        on_deposed=lambda: deposed.append(1),
    )
    tasks: list[asyncio.Task[None]] = []

    def spawn(work: Coroutine[Any, Any, None]) -> object:
        tasks.append(asyncio.ensure_future(work))
        return tasks[-1]

    rota = Rota(one.clock, taking_over=lambda: made.taking_over)
    owned = Owned(engine=one.engine, membership=membership, rota=rota, spawn=spawn)
    await one.opened(*standbys)
    made = World(one, kube, lease_turns, membership, rota, owned, tasks, deposed)
    made.follow(*standbys)
    await turns()
    return made


def lose() -> None:
    raise Unclear("no answer")


# -- joining


async def test_a_standby_counts_before_the_write_that_adds_it_is_sent(tmp_path: Path) -> None:
    w = await world(tmp_path, B)
    counted: list[set[str]] = []
    w.once("PUT", lambda: counted.append(set(w.bench.engine.counted)))
    w.follow(C)
    w.tick(B, C)
    await settle(lambda: w.membership.members == (w.bench.engine.member, B, C))
    assert counted == [{B, C}]
    await settle(lambda: w.bench.engine.standbys_in_set == 2)
    w.bench.confirm(B, C)
    assert w.journaled()[-1] == (w.bench.engine.member, B, C)


async def test_a_standby_that_lacks_an_acknowledged_write_counts_but_does_not_join_yet(tmp_path: Path) -> None:
    w = await world(tmp_path, B)
    answer = w.bench.submit(put("a"))
    await turns()
    w.bench.confirm(B)
    await answer
    w.feeds[C] = Wakeable(Voice())
    w.owned.attach(C, w.feeds[C])
    w.bench.engine.confirm(C, w.bench.replica.last.seq - 1)
    w.tick(B)
    await turns()
    assert w.bench.engine.counted == {B, C}
    assert (await w.lease()).in_sync == (w.bench.engine.member, B)
    w.bench.confirm(C)
    await w.ticks(1, B, C)
    assert (await w.lease()).in_sync == (w.bench.engine.member, B, C)


async def test_a_join_whose_answer_is_lost_stands_if_the_lease_shows_it(tmp_path: Path) -> None:
    w = await world(tmp_path, B)
    w.follow(C)
    w.once("PUT", lose, after=True)
    await w.ticks(1, B, C)
    assert w.membership.members == (w.bench.engine.member, B, C)
    assert w.bench.engine.counted == {B, C}


async def test_a_join_that_may_still_land_counts_until_a_later_write_made_sure(tmp_path: Path) -> None:
    w = await world(tmp_path, B)
    w.follow(C)
    bodies: list[dict[str, Any]] = []
    replace = w.kube.replace

    async def slow(resource: Any, namespace: Any, body: Any, **options: Any) -> Any:
        if not bodies:
            bodies.append(body)
            raise Unclear("no answer, and it is still on its way")
        return await replace(resource, namespace, body, **options)

    w.kube.replace = slow  # type: ignore[method-assign]
    w.tick(B, C)
    await turns()
    assert w.membership.members == (w.bench.engine.member, B)
    assert w.bench.engine.counted == {B, C}
    answer = w.bench.submit(put("a"))
    await turns()
    w.bench.confirm(B)
    await turns()
    assert not answer.done()  # C is gone, but its join may still land
    w.owned.detach(C, w.feeds[C])
    await w.ticks(8, B)
    await asyncio.wait_for(answer, 1)
    assert w.bench.engine.counted == {B}
    with pytest.raises(Exception, match="409"):
        await replace(LEASES, "default", bodies[0])
    assert (await w.lease()).in_sync == (w.bench.engine.member, B)


# -- leaving


async def test_a_silent_standby_is_asked_out_and_counts_until_that_is_confirmed(tmp_path: Path) -> None:
    w = await world(tmp_path, B, C)
    answer = w.bench.submit(put("a"))
    await turns()
    counted: list[set[str]] = []
    w.once("PUT", lambda: counted.append(set(w.bench.engine.counted)), after=True)
    for _ in range(SILENT_TICKS):
        w.tick(B)
    await settle(lambda: w.membership.members == (w.bench.engine.member, B))
    assert counted == [{B, C}]
    assert not answer.done()
    await w.ticks(2, B)
    await asyncio.wait_for(answer, 1)
    assert w.bench.engine.counted == {B}


async def test_a_standby_with_another_base_is_asked_out_once_the_owners_is_found_sound(tmp_path: Path) -> None:
    w = await world(tmp_path, B, C)
    w.owned.doubted(C)
    await w.ticks(20, B, C)
    assert C in w.membership.members, "it may be the one that is right"
    assert w.owned.doubter() == C.partition("/")[0]
    w.owned.sound()
    await settle(lambda: w.tick(B, C) or w.membership.members == (w.bench.engine.member, B))
    await w.ticks(20, B, C)
    assert w.membership.members == (w.bench.engine.member, B), "it does not join again"
    w.owned.attach(C, Wakeable(Voice()))  # its base was found to be the same
    await settle(lambda: w.tick(B, C) or C in w.membership.members)


async def test_a_standby_whose_session_is_over_is_asked_out_at_once(tmp_path: Path) -> None:
    w = await world(tmp_path, B, C)
    w.owned.detach(C, w.feeds[C])
    w.owned.session_ended(C)
    await settle(lambda: w.membership.members == (w.bench.engine.member, B))
    assert (await w.lease()).in_sync == (w.bench.engine.member, B)


async def test_who_is_back_before_its_leaving_is_written_stays(tmp_path: Path) -> None:
    """A dead pod's partitions all want to write; most of its standbys are back before their turn."""
    w = await world(tmp_path, B, C)
    before, written = w.bench.replica.last.seq, len(w.kube.writes)
    async with w.turns._writes:
        w.owned.detach(C, w.feeds[C])
        w.owned.session_ended(C)
        await turns()
        w.follow(C)
    await w.ticks(3, B, C)
    assert len(w.kube.writes) == written
    assert C in (await w.lease()).in_sync
    assert w.bench.replica.last.seq == before
    assert w.membership.unclear is False


async def busy_shard(folder: Path, *standbys: str, **changes: Any) -> World:
    """One that takes over so much that no change of a set is sent for nobody's sake."""
    w = await world(folder, *standbys, **changes)
    w.taking_over = True
    while w.rota.spare_change():
        pass
    return w


async def test_a_change_that_no_request_waits_for_waits_while_a_shard_takes_over(tmp_path: Path) -> None:
    w = await busy_shard(tmp_path, B, C)
    w.owned.detach(C, w.feeds[C])
    w.owned.session_ended(C)
    await w.ticks(40, B)
    assert C in (await w.lease()).in_sync
    w.taking_over = False
    await w.ticks(2, B)
    assert C not in (await w.lease()).in_sync
    w.taking_over = True
    while w.rota.spare_change():
        pass
    w.follow(C)
    answer = w.request("k")  # which waits for B alone
    await w.ticks(20, B, C, confirm=False)
    assert w.bench.engine.unsettled
    assert C not in (await w.lease()).in_sync
    assert C not in w.bench.engine.counted
    w.taking_over = False
    await w.ticks(2, B, C)
    assert C in (await w.lease()).in_sync
    await asyncio.wait_for(answer, 5)


async def test_a_change_that_a_request_waits_for_does_not(tmp_path: Path) -> None:
    w = await busy_shard(tmp_path, B, C)
    w.owned.detach(C, w.feeds[C])
    w.owned.session_ended(C)
    await w.ticks(4, B)
    answer = w.request("k")
    await w.ticks(4, B)
    assert C not in (await w.lease()).in_sync
    await asyncio.wait_for(answer, 5)


async def test_a_change_that_an_epoch_waits_for_before_it_is_open_does_not(tmp_path: Path) -> None:
    w = await busy_shard(tmp_path, B, C)
    w.owned.detach(C, w.feeds[C])
    opening = asyncio.ensure_future(
        w.bench.engine.open(session=str(OURS), members=(w.bench.engine.member, B, C), set_version=9)
    )
    await turns()
    assert not w.bench.engine.busy
    w.owned.session_ended(C)
    await w.ticks(4, B)
    assert C not in (await w.lease()).in_sync
    await asyncio.wait_for(opening, 5)


async def test_a_join_without_which_writes_are_refused_does_not(tmp_path: Path) -> None:
    w = await busy_shard(tmp_path, B, min_in_sync=2)
    with pytest.raises(Unavailable):
        await w.request("k")
    w.follow(C)
    await w.ticks(4, B, C)
    assert C in (await w.lease()).in_sync


async def test_a_join_of_one_that_counts_already_does_not(tmp_path: Path) -> None:
    w = await busy_shard(tmp_path, B)
    w.bench.engine.count([C])
    w.follow(C)
    await w.ticks(4, B, C)
    assert C in (await w.lease()).in_sync


async def test_a_member_that_lacks_what_was_acknowledged_under_standard_is_no_idle_one(tmp_path: Path) -> None:
    """Planned moves wait until all who count have everything."""
    w = await busy_shard(tmp_path, B, C, durability=Durability.STANDARD)
    w.owned.detach(C, w.feeds[C])
    w.owned.session_ended(C)
    await w.ticks(4, B)
    assert C in (await w.lease()).in_sync
    await w.request("k")
    await w.ticks(4, B)
    assert C not in (await w.lease()).in_sync


async def test_of_many_that_want_to_change_so_many_a_second_do(tmp_path: Path) -> None:
    rota = (await world(tmp_path, B)).rota
    at_once = sum(rota.spare_change() for _ in range(10 * limits.SPARE_CHANGES_MAX))
    assert at_once == limits.SPARE_CHANGES_MAX
    rota.tick(0.5, valid=True)
    later = sum(rota.spare_change() for _ in range(10 * limits.SPARE_CHANGES_MAX))
    assert later == limits.SPARE_CHANGES_PER_SECOND // 2


async def test_the_set_never_falls_below_the_minimum_and_the_owner_says_that_it_is_alone(tmp_path: Path) -> None:
    w = await world(tmp_path, B)
    await w.ticks(20)
    assert (await w.lease()).in_sync == (w.bench.engine.member, B)
    assert (await w.lease()).alone_since == 1
    await w.ticks(2, B)
    assert (await w.lease()).alone_since is None


async def test_a_leave_that_may_still_land_is_settled_by_a_later_write(tmp_path: Path) -> None:
    w = await world(tmp_path, B, C)
    for _ in range(SILENT_TICKS - 1):
        w.tick(B)
    w.once("PUT", lose)
    w.tick(B)
    await turns()
    assert w.membership.unclear
    await w.ticks(1, B, C)  # it is back before anything was decided
    assert not w.membership.unclear
    assert (await w.lease()).in_sync == (w.bench.engine.member, B, C)
    assert w.bench.engine.counted == {B, C}


async def test_another_standby_that_dies_while_one_leaves_can_leave_as_well(tmp_path: Path) -> None:
    w = await world(tmp_path, B, C, D)
    for _ in range(SILENT_TICKS):
        w.tick(C, D)
    await settle(lambda: B not in w.membership.members)
    await w.ticks(8, D)  # C dies before it has confirmed that B left
    await settle(lambda: w.membership.members == (w.bench.engine.member, D))
    answer = w.bench.submit(put("a"))
    await turns()
    await w.ticks(2, D)
    await asyncio.wait_for(answer, 1)
    assert w.bench.engine.counted == {D}


async def test_who_comes_back_while_another_leaves_can_take_its_place(tmp_path: Path) -> None:
    w = await world(tmp_path, B, C)
    for _ in range(SILENT_TICKS):
        w.tick(C)
    await settle(lambda: B not in w.membership.members)
    w.follow(B)
    await w.ticks(8, B)  # C dies before it has confirmed that B left
    await settle(lambda: w.membership.members == (w.bench.engine.member, B))
    await w.ticks(2, B)
    assert w.bench.engine.counted == {B}


async def test_a_change_that_only_waits_for_its_confirmation_is_not_written_again(tmp_path: Path) -> None:
    w = await world(tmp_path, B, C)
    for _ in range(SILENT_TICKS):
        w.tick(B)
    await settle(lambda: C not in w.membership.members)
    version = (await w.lease()).set_version
    for _ in range(3):  # B lives, and its confirmation is slow
        w.tick(B, confirm=False)
        await turns()
    assert (await w.lease()).set_version == version


async def test_a_standby_that_answers_but_confirms_nothing_is_asked_out(tmp_path: Path) -> None:
    w = await world(tmp_path, B, C)
    answer = w.bench.submit(put("a"))
    await turns()
    stalled = int(limits.STANDBY_STALL_SECONDS / 0.25)
    for number in range(stalled + 2):
        if number == stalled // 2:  # connecting anew is no progress
            w.feeds[C] = Wakeable(Voice())
            w.owned.attach(C, w.feeds[C])
            w.bench.engine.confirm(C, w.bench.replica.last.seq - 1)
        w.tick(B, C, confirm=False)
        w.bench.confirm(B)
        await turns()
    assert (await w.lease()).in_sync == (w.bench.engine.member, B)
    w.bench.confirm(B)
    await asyncio.wait_for(answer, 1)


async def test_a_standby_that_catches_up_slowly_is_not_asked_out(tmp_path: Path) -> None:
    w = await world(tmp_path, B, C, durability=Durability.STANDARD)
    for number in range(40):
        await asyncio.wait_for(w.bench.submit(put(f"k{number}")), 1)
        w.tick(B, C, confirm=False)
        w.bench.confirm(B)
        w.bench.engine.confirm(C, number)
        await turns()
    assert (await w.lease()).in_sync == (w.bench.engine.member, B, C)


# -- what an idle owner costs: it is looked at only while time may change something


FEW_TICKS = 8
LONG_TICKS = int(limits.UNCLEAN_ANSWER_SECONDS / 0.25) + FEW_TICKS


async def rested(w: World, *alive: str, confirm: bool = True) -> None:
    """Nothing happens until a look would find nothing, which is soon."""
    await w.ticks(FEW_TICKS, *alive, confirm=confirm)
    assert w.rota.due == 0


async def test_an_owner_that_is_idle_and_complete_is_not_looked_at(tmp_path: Path) -> None:
    w = await world(tmp_path, B, C)
    await rested(w, B, C)
    answer = w.request("a")
    await turns()
    assert w.rota.due == 1
    w.bench.confirm(B, C)
    await asyncio.wait_for(answer, 1)
    await rested(w, B, C)


@pytest.mark.parametrize("gone", ["silent", "disconnected"])
async def test_a_standby_that_falls_silent_while_the_owner_rests_is_asked_out(tmp_path: Path, gone: str) -> None:
    w = await world(tmp_path, B, C)
    await rested(w, B, C)
    if gone == "disconnected":
        w.owned.detach(C, w.feeds[C])
    await w.ticks(SILENT_TICKS, B)
    assert (await w.lease()).in_sync == (w.bench.engine.member, B)
    await rested(w, B)
    if gone == "silent":
        await w.ticks(2, B, C)
    else:
        w.follow(C)
        await w.ticks(2, B, C)
    assert (await w.lease()).in_sync == (w.bench.engine.member, B, C)


async def test_an_owner_that_rests_says_that_it_is_alone_and_that_it_is_not(tmp_path: Path) -> None:
    w = await world(tmp_path, B)
    await rested(w, B)
    await w.ticks(20)
    assert (await w.lease()).alone_since == 1
    await rested(w)
    await w.ticks(2, B)
    assert (await w.lease()).alone_since is None


async def test_an_owner_that_rested_knows_that_its_standbys_were_heard(tmp_path: Path) -> None:
    w = await world(tmp_path, B, durability=Durability.STANDARD)
    await w.ticks(1, B)
    await rested(w, B, confirm=False)
    await asyncio.wait_for(w.request("a"), 1)
    await rested(w, B)
    await w.ticks(8)
    with pytest.raises(Unavailable, match="maxUnshippedSeconds"):
        await asyncio.wait_for(w.request("b"), 1)


async def test_another_spec_is_looked_at_though_the_owner_rests(tmp_path: Path) -> None:
    w = await world(tmp_path, B, C)
    await rested(w, B, C)
    w.bench.engine.spec = replace(w.bench.engine.spec, replicas=("sample-0", "sample-1"))
    w.owned.rouse()
    await w.ticks(1, B, C)
    assert (await w.lease()).in_sync == (w.bench.engine.member, B)


async def test_a_request_that_comes_while_the_owner_rests_is_given_up_in_time(tmp_path: Path) -> None:
    w = await world(tmp_path, B)
    await rested(w, B)
    answer = w.request("a")
    await w.ticks(int(limits.UNCLEAN_ANSWER_SECONDS / 0.25) + 2, B, confirm=False)
    with pytest.raises(Unknown):
        await asyncio.wait_for(answer, 1)


async def test_a_disk_that_does_not_answer_an_owner_that_rested_is_given_up_in_time(tmp_path: Path) -> None:
    executor = Holding()
    w = await world(tmp_path, B, executor=executor)
    await rested(w, B)
    executor.hold()
    answer = w.request("a")
    await w.ticks(LONG_TICKS, B)
    with pytest.raises(Unknown, match="disk"):
        await asyncio.wait_for(answer, 1)


async def test_a_change_that_is_refused_for_long_is_tried_until_it_stands(tmp_path: Path) -> None:
    w = await world(tmp_path, B)

    def refuse(method: str, _path: str) -> None:
        if method == "PUT":
            raise KubeError(500, "InternalError", "not now")

    w.kube.before = refuse
    w.follow(C)
    await w.ticks(2 * LONG_TICKS, B, C)
    w.kube.before = lambda _method, _path: None
    await w.ticks(1, B, C)
    assert (await w.lease()).in_sync == (w.bench.engine.member, B, C)


async def test_an_owner_that_stays_after_all_does_what_it_put_off(tmp_path: Path) -> None:
    w = await world(tmp_path, B, C)
    await rested(w, B, C)
    assert await w.owned.drained()
    await rested(w, B)
    w.owned.resume()
    await w.ticks(1, B)
    assert (await w.lease()).in_sync == (w.bench.engine.member, B)


async def test_a_request_under_way_ends_with_the_session(tmp_path: Path) -> None:
    w = await world(tmp_path, B)
    await rested(w, B)
    answer = w.request("a")
    await turns()
    w.rota.tick(0.25, valid=False)
    with pytest.raises(Unknown):
        await asyncio.wait_for(answer, 1)


async def test_what_is_heard_on_a_connection_counts_for_all_who_follow_on_it(tmp_path: Path) -> None:
    w = await world(tmp_path, B, C)
    voice = Voice()
    for member in (B, C):
        w.feeds[member] = Wakeable(voice)
        w.owned.attach(member, w.feeds[member])
    w.bench.confirm(B, C)
    await w.ticks(2 * SILENT_TICKS, B, confirm=False)
    assert (await w.lease()).in_sync == (w.bench.engine.member, B, C)


async def test_who_speaks_again_of_one_partition_is_heard_of_the_others(tmp_path: Path) -> None:
    w, other = await world(tmp_path / "one", B, C), await world(tmp_path / "two", B)
    other.owned._rota = w.rota
    voice = Voice()
    w.feeds[C] = Wakeable(voice)
    w.owned.attach(C, w.feeds[C])
    await w.ticks(1, B, C)
    await w.ticks(SILENT_TICKS, B)
    await rested(w, B)
    other.owned.attach(C, Wakeable(voice))
    await w.ticks(2, B, C)
    assert (await w.lease()).in_sync == (w.bench.engine.member, B, C)


async def test_a_deposed_owner_is_not_looked_at_any_more(tmp_path: Path) -> None:
    w = await world(tmp_path, B)
    await rested(w, B)
    w.owned.stop(NotOwner("another session owns it"))
    w.owned.rouse()
    w.owned.detach(B, w.feeds[B])
    w.owned.session_ended(B)
    assert w.rota.due == 0


# -- the Lease's other writers


async def test_a_deposed_owners_change_fails(tmp_path: Path) -> None:
    w = await world(tmp_path, B)
    await w.grant(OTHER, epoch=2, in_sync=(B,))
    assert not await w.membership.change((w.bench.engine.member, B))
    assert w.deposed == [1]
    assert (await w.lease()).in_sync == (B,)


async def test_a_record_that_was_put_back_deposes_nobody(tmp_path: Path) -> None:
    w = await world(tmp_path, B)
    lease = await w.kube.get(LEASES, "default", NAME)
    lease["spec"].pop("holderIdentity")
    lease["spec"]["leaseTransitions"] = 0
    await w.kube.replace(LEASES, "default", lease)
    assert not await w.membership.change((w.bench.engine.member, B))
    assert w.deposed == []


async def test_a_lost_record_deposes_nobody(tmp_path: Path) -> None:
    w = await world(tmp_path, B)
    await w.kube.delete(LEASES, "default", NAME)
    assert not await w.membership.change((w.bench.engine.member, B))
    await w.membership.say_alone(alone=True)
    await w.membership.release(seq=1, target="")
    assert w.deposed == []


async def test_a_record_that_somebody_broke_is_no_reason_to_end(tmp_path: Path) -> None:
    w = await world(tmp_path, B)
    lease = await w.kube.get(LEASES, "default", NAME)
    lease["metadata"]["annotations"][leases.IN_SYNC] = "garbage"
    await w.kube.replace(LEASES, "default", lease)
    w.follow(C)
    await w.ticks(3, B, C)
    assert all(task.done() and task.exception() is None for task in w.tasks)


async def test_a_set_that_cannot_be_journaled_keeps_everyone_counted(tmp_path: Path) -> None:
    w = await world(tmp_path, B, C)
    w.once("PUT", lambda: w.bench.engine.stop(NotOwner("another session owns it")), after=True)
    await w.membership.change((w.bench.engine.member, B))
    assert w.bench.engine.counted == {B, C}


# -- giving the partition away


async def test_a_release_whose_answer_is_lost_is_seen_to_stand(tmp_path: Path) -> None:
    w = await world(tmp_path, B)
    w.once("PUT", lose, after=True)
    await w.membership.release(seq=7, target="sample-1")
    assert ((await w.lease()).released, (await w.lease()).release_target) == ("1.7", "sample-1")
    assert len([one for one in w.kube.writes if one[0] == "PUT"]) == 2  # the grant's and one release


async def test_a_release_is_repeated_until_it_stands(tmp_path: Path) -> None:
    w = await world(tmp_path, B)
    w.once("PUT", lose)
    await w.membership.release(seq=7, target="")
    assert (await w.lease()).released == "1.7"


async def test_a_closing_owner_begins_nothing_more_on_its_lease(tmp_path: Path) -> None:
    w = await world(tmp_path, B)
    w.bench.confirm(B)
    assert await w.owned.drained()
    w.follow(C)
    await w.ticks(12)
    assert (await w.lease()).in_sync == (w.bench.engine.member, B)
    assert (await w.lease()).alone_since is None


async def test_the_end_of_an_epoch_waits_for_a_change_that_is_under_way(tmp_path: Path) -> None:
    w = await world(tmp_path, B)
    w.follow(C)
    w.tick(B, C)
    drained = asyncio.ensure_future(w.owned.drained())
    await turns(1)
    assert not drained.done()
    await settle(lambda: w.bench.confirm(B, C) or drained.done())
    assert drained.result()
    assert w.journaled()[-1] == (w.bench.engine.member, B, C)


async def test_a_grant_is_acted_on_only_while_it_stands(tmp_path: Path) -> None:
    w = await world(tmp_path, B)
    ours = w.membership.seen

    async def current() -> dict[str, Any] | None:
        return await current_grant(w.kube, "default", ours, wanted=lambda: True)

    w.once("GET", lose)
    assert await current() == await w.kube.get(LEASES, "default", NAME)
    await decline(w.kube, "default", ours, seq=3, target="", wanted=lambda: True)
    assert (await w.lease()).released == "1.3"
    assert await current() is None
    await w.grant(OTHER, epoch=2, in_sync=(B,))
    await decline(w.kube, "default", ours, seq=3, target="", wanted=lambda: True)
    assert not (await w.lease()).is_released
    await w.kube.delete(LEASES, "default", NAME)
    assert await current() is None


async def test_nobody_writes_on_a_lease_that_names_somebody_else(tmp_path: Path) -> None:
    w = await world(tmp_path, B)
    await w.grant(OTHER, epoch=2, in_sync=(B,))
    with pytest.raises(NotOurs):
        await w.membership._swap(await w.kube.get(LEASES, "default", NAME) | {"spec": {}})
