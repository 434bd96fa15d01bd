"""The session Lease in its holder's hands: when a renewal counts, and what ends a session."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from memory_kube import HandClock, MemoryKube

from fencekv import leases
from fencekv.kube import LEASES, Unclear
from fencekv.leases import LastWord, Session, SessionLease
from fencekv_shard.session import LATENESS_BUCKETS, LeaseTimes, SessionKeeper, SessionOver

ONE = Session("sample-0", "uid-1", "n1")
TWO = Session("sample-0", "uid-1", "n2")
NAME = leases.session_lease_name("sample-0")


class Remembered:
    def __init__(self, renewal: int = 0) -> None:
        self.renewal = renewal
        self.suspected = 0

    def remember(self, renewal: int) -> None:
        self.renewal = max(self.renewal, renewal)

    def suspect(self) -> None:
        self.suspected += 1


class World:
    def __init__(self) -> None:
        self.clock = HandClock()
        self.kube = MemoryKube(self.clock)
        self.memory = Remembered()

    def keeper(self, session: Session = ONE, *, valid: int = 4) -> SessionKeeper:
        return SessionKeeper(
            kube=self.kube,
            clock=self.clock,
            memory=self.memory,
            session=session,
            kvns="sample",
            namespace="default",
            times=LeaseTimes(valid_seconds=valid, renew_seconds=1),
        )

    async def taken(self, session: Session = ONE, *, valid: int = 4) -> SessionKeeper:
        keeper = self.keeper(session, valid=valid)
        await keeper.take(http="h:1", peer="h:2")
        return keeper

    async def lease(self) -> dict[str, Any]:
        return await self.kube.get(LEASES, "default", NAME)

    async def seen(self) -> SessionLease:
        return SessionLease.parse(await self.lease())

    def once(self, method: str, act: Callable[[], None], *, after: bool = False) -> None:
        """Runs `act` at the next request of that method, before or after it is carried out."""
        done: list[bool] = []

        def hook(asked: str, path: str) -> None:
            if asked == method and "leases" in path and not done:
                done.append(True)
                act()

        if after:
            self.kube.after = hook
        else:
            self.kube.before = hook


def lose() -> None:
    raise Unclear("no answer")


@pytest.fixture
def world() -> World:
    return World()


async def test_the_deadline_counts_from_the_sending_of_the_renewal(world: World) -> None:
    keeper = await world.taken()
    sent = world.clock.now()
    world.once("PUT", lambda: setattr(world.clock, "seconds", sent + 3.0))  # the API server is slow
    await keeper.renew()
    assert keeper.deadline == sent + 4.0
    assert world.clock.now() == sent + 3.0


async def test_a_session_without_renewals_is_not_valid_from_its_deadline_on(world: World) -> None:
    keeper = await world.taken()
    world.clock.seconds += 3.99
    assert keeper.valid()
    world.clock.seconds += 0.01
    assert not keeper.valid()


async def test_a_lost_request_does_not_move_the_deadline(world: World) -> None:
    keeper = await world.taken()
    before = keeper.deadline
    world.clock.seconds += 1
    world.once("PUT", lose)
    await keeper.renew()
    assert keeper.deadline == before


async def test_a_lost_reply_counts_after_reading_its_very_number_back(world: World) -> None:
    keeper = await world.taken()
    world.clock.seconds += 1
    sent = world.clock.now()
    world.once("PUT", lose, after=True)
    await keeper.renew()
    assert keeper.deadline == sent + 4.0
    assert (await world.seen()).renewal == keeper.number


async def test_the_number_of_an_earlier_renewal_does_not_count_for_a_later_one(world: World) -> None:
    keeper = await world.taken()
    before = keeper.deadline
    for _ in range(2):  # both are lost on the way; what is read back is an older number
        world.clock.seconds += 1
        world.once("PUT", lose)
        await keeper.renew()
    assert keeper.deadline == before
    assert world.memory.suspected == 0


async def test_numbers_rise_over_sessions(world: World) -> None:
    first = await world.taken(ONE)
    await first.renew()
    second = await world.taken(TWO)
    assert (await world.seen()).renewal > first.number
    assert second.number == (await world.seen()).renewal


@pytest.mark.parametrize("how", ["deleted", "made anew", "taken over", "fenced"])
async def test_a_lost_lease_ends_the_session_for_good(world: World, how: str) -> None:
    keeper = await world.taken()
    lease = await world.lease()
    if how == "fenced":
        await world.kube.replace(LEASES, "default", leases.fenced_session(lease, ONE))
    elif how == "taken over":
        await world.taken(TWO)
    else:
        await world.kube.delete(LEASES, "default", NAME)
        if how == "made anew":
            fresh = {**lease, "metadata": {k: lease["metadata"][k] for k in ("name", "namespace", "annotations")}}
            await world.kube.create(LEASES, "default", fresh)
    with pytest.raises(SessionOver):
        await keeper.renew()
    assert keeper.deadline == 0.0
    with pytest.raises(SessionOver):
        await keeper.renew()
    writes = [w for w in world.kube.writes if w[0] == "POST"]
    assert len(writes) == (2 if how == "made anew" else 1), "it never creates its Lease again"


async def test_the_fence_or_release_of_an_earlier_session_ends_nobody_else(world: World) -> None:
    await world.taken(ONE)
    await world.kube.replace(LEASES, "default", leases.fenced_session(await world.lease(), ONE))
    second = await world.taken(TWO)
    await second.renew()
    seen = await world.seen()
    assert seen.over(ONE)
    assert not seen.over(TWO)


async def test_a_smaller_v_counts_at_once_and_a_larger_one_only_with_its_renewal(world: World) -> None:
    keeper = await world.taken(valid=4)
    sent = world.clock.now()
    keeper.times = LeaseTimes(valid_seconds=2)
    assert keeper.deadline == sent + 2
    keeper.times = LeaseTimes(valid_seconds=8)
    assert keeper.deadline == sent + 4
    await keeper.renew()
    assert keeper.deadline == sent + 8
    assert (await world.seen()).valid_seconds == 8


async def test_a_lease_behind_what_the_pod_remembers_makes_the_records_suspect(world: World) -> None:
    await world.taken(Session("sample-0", "uid-1", "n0"))
    first = await world.taken(ONE)
    old = await world.lease()
    for _ in range(3):
        await first.renew()
    current = await world.lease()
    back = {**old, "metadata": {**old["metadata"], "resourceVersion": current["metadata"]["resourceVersion"]}}
    await world.kube.replace(LEASES, "default", back)  # as a restored etcd shows it
    await world.taken(TWO)
    assert world.memory.suspected == 1
    assert (await world.seen()).taken_from is None, "it was not the last that its predecessor wrote"


async def test_a_successor_says_which_renewal_it_replaced_and_keeps_saying_it(world: World) -> None:
    first = await world.taken(ONE)
    assert (await world.seen()).taken_from is None
    await first.renew()
    replaced = await world.seen()
    second = await world.taken(TWO)
    word = LastWord(ONE, first.number, replaced.resource_version)
    assert (await world.seen()).taken_from == word
    await second.renew()
    assert (await world.seen()).taken_from == word


async def test_a_renewal_that_lands_before_the_takeover_is_the_one_that_is_named(world: World) -> None:
    """Between the successor's reading and its write: the write fails, and what is named is read anew."""
    first = await world.taken(ONE)
    late: list[dict[str, Any]] = []

    async def renewed_meanwhile(group: Any, namespace: str, body: dict[str, Any], **more: Any) -> dict[str, Any]:
        if not late:
            late.append(body)
            await first.renew()
        return await replace(group, namespace, body, **more)

    keeper, replace = world.keeper(TWO), world.kube.replace
    keeper._kube = SimpleNamespace(get=world.kube.get, replace=renewed_meanwhile)  # type: ignore[assignment]
    await keeper.take(http="h:1", peer="h:2")
    assert first.number == 2
    word = (await world.seen()).taken_from
    assert word is not None
    assert (word.session, word.renewal) == (ONE, 2)
    assert late[0]["metadata"]["annotations"][leases.TAKEN_FROM].startswith(f"{ONE} 1 ")


async def test_an_absent_lease_is_suspect_only_to_a_pod_that_had_one(world: World) -> None:
    await world.taken(ONE)
    assert world.memory.suspected == 0
    await world.kube.delete(LEASES, "default", NAME)
    await world.taken(TWO)
    assert world.memory.suspected == 1
    assert not (await world.seen()).over(TWO)


# -- when renewals leave


class Sent(Exception):
    """Enough renewals were sent."""


async def departures(
    world: World, monkeypatch: pytest.MonkeyPatch, *took: float
) -> tuple[SessionKeeper, list[float]]:
    """When renewals leave, from the taking of the Lease on, if each takes that long by a clock that is ours."""

    async def sleep(seconds: float) -> None:
        world.clock.seconds += seconds

    left: list[float] = []

    def hook(method: str, path: str) -> None:
        if method == "PUT":
            left.append(round(world.clock.now() - began, 6))
            if len(left) > len(took):
                raise Sent
            world.clock.seconds += took[len(left) - 1]

    monkeypatch.setattr("fencekv_shard.session.asyncio", SimpleNamespace(sleep=sleep))
    keeper = await world.taken()
    began = world.clock.now()
    world.kube.before = hook
    with pytest.raises(Sent):
        await keeper.run()
    return keeper, left


async def test_what_a_renewal_takes_does_not_put_off_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper, left = await departures(world, monkeypatch, 0.3, 0.9, 0.0)
    assert left == [1.0, 2.0, 3.0, 4.0]
    told = keeper.lateness.report()
    assert told["count"] == 4
    assert told["sum"] == pytest.approx(0.0)


async def test_a_renewal_that_takes_too_long_makes_the_next_late_and_that_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper, left = await departures(world, monkeypatch, 2.2, 0.0, 0.0)
    assert left == [1.0, 3.2, 4.0, 5.0]  # due at 2 and left at once; the one of 3 is not made up for
    told = keeper.lateness.report()
    assert told["sum"] == pytest.approx(1.2)
    assert told["buckets"] == [[bound, 3] for bound in LATENESS_BUCKETS]  # 1.2 s is above the last bound
    assert told["count"] == 4


async def test_a_renewal_that_the_process_was_too_busy_to_send_is_late(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = await world.taken()

    async def sleep(seconds: float) -> None:
        world.clock.seconds += seconds + 0.02
        if keeper.number > 3:
            raise Sent

    monkeypatch.setattr("fencekv_shard.session.asyncio", SimpleNamespace(sleep=sleep))
    with pytest.raises(Sent):
        await keeper.run()
    told = keeper.lateness.report()
    assert [0.01, 0] in told["buckets"]  # type: ignore[operator]
    assert [0.05, 3] in told["buckets"]  # type: ignore[operator]


async def test_a_released_session_is_over_on_its_lease_and_a_successor_keeps_that_word(world: World) -> None:
    keeper = await world.taken(ONE)
    keeper.end("drained")
    assert not keeper.valid()
    await keeper.release()
    assert (await world.seen()).over(ONE)
    await world.taken(TWO)
    assert (await world.seen()).over(ONE)
