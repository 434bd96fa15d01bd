"""The failover loop, the real one, over modelled shards. What always holds here: see `failover_world`."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import pytest
from failover_world import NAMESPACE, OperatorCrash, World
from simulation.loop import Process

from fencekv import leases
from fencekv.kube import KV_NAMESPACES, KV_PARTITIONS, LEASES, KubeNotFound
from fencekv.leases import SessionLease
from fencekv_operator.crowd import CHANGES, CROWD_SECONDS_MAX
from fencekv_operator.facts import Reason, Trouble
from fencekv_sandbox.apiserver import Request
from fencekv_shard.session import LeaseTimes


def test_a_new_partition_goes_to_its_preferred_pod() -> None:
    world = World()

    async def story() -> None:
        failover = await world.started()
        assert (world.owner(), world.epoch()) == ("s-0", 1)
        record = world.record("orders-0")
        assert record is not None
        assert [leases.pod_of(member) for member in record.in_sync] == ["s-0", "s-1", "s-2"]
        facts = world.facts(failover)
        assert (facts.trouble, facts.owner_alive, len(facts.replicas)) == (Trouble.NONE, True, 3)

    world.run(story)


def test_a_first_grant_waits_for_every_pod() -> None:
    world = World()

    async def story() -> None:
        for pod in world.pods:
            world.new_pod(pod)
        world.start("s-0")
        world.start("s-1")
        failover = world.operator()
        await asyncio.sleep(10)
        assert world.epoch() == 0
        assert "s-2" in world.facts(failover).detail
        world.start("s-2")
        assert await world.until(lambda: world.epoch() == 1) < 3

    world.run(story)


def test_partitions_that_stay_without_an_owner_are_no_crowd() -> None:
    """What they show would wait for ever."""
    world = World(partitions=CHANGES + 6)

    async def story() -> None:
        failover = await world.started()
        for shard in world.shards.values():
            shard.process.crash()
            world.release(shard.session)
        await world.until(lambda: failover.crowd.is_there)
        await asyncio.sleep(CROWD_SECONDS_MAX)
        assert world.facts(failover).trouble is Trouble.DEGRADED
        for _ in range(50):
            await asyncio.sleep(0.1)
            assert not failover.crowd.is_there

    world.run(story)


class TestAPartitionThatItMade:
    def test_its_record_and_its_first_grant_are_one_write(self) -> None:
        world = World()

        async def story() -> None:
            failover = await world.started()
            asked: list[str] = []
            carry_out = world.api._carry_out

            def count(source: Process, request: Request, answer: Any) -> None:
                if request.path.endswith(("/leases", "/partition-orders-1")):
                    asked.append(request.method)
                carry_out(source, request, answer)

            world.api._carry_out = count  # type: ignore[method-assign]
            assert failover.born(world.make_partition("orders-1", 1, recorded=False))
            assert await world.until(lambda: world.epoch("orders-1") == 1) < 0.5
            assert world.owner("orders-1") == "s-0"
            await asyncio.sleep(1)
            assert [each for each in asked if each != "GET"] == ["POST"]

        world.run(story)

    def test_without_all_its_sessions_it_is_left_to_be_recorded_first(self) -> None:
        world = World()

        async def story() -> None:
            failover = await world.started()
            world.shards["s-2"].process.crash()
            world.release(world.shards["s-2"].session)
            await asyncio.sleep(2)
            assert not failover.born(world.make_partition("orders-1", 1, recorded=False))

        world.run(story)

    def test_a_pod_that_began_anew_since_is_waited_for_as_ever(self) -> None:
        """Its session before may have been granted the partition, and live."""
        world = World()

        async def story() -> None:
            failover = await world.started()
            world.deaf.add("s-2")
            assert failover.born(world.make_partition("orders-1", 1, recorded=False))
            await asyncio.sleep(0.5)
            world.shards["s-2"].process.crash()
            world.start("s-2")
            world.deaf.discard("s-2")
            took = await world.until(lambda: world.epoch("orders-1") == 1)
            assert took > 2, took

        world.run(story)

    def test_a_record_whose_making_is_unclear_is_not_made_again_at_once(self) -> None:
        """It landed, and was lost: its owner may be about to begin, and the reports at hand are older."""
        world = World()

        async def story() -> None:
            failover = await world.started()
            lost_at: list[float] = []
            carry_out = world.api._carry_out

            def lose(source: Process, request: Request, answer: Any) -> None:
                if request.method == "POST" and request.path.endswith("/leases") and not lost_at:
                    lost_at.append(world.loop.time())
                    carry_out(source, request, world.loop.create_future())
                    world.put_record("orders-1", None)
                    world.api.cut_watches()  # nobody saw it
                else:
                    carry_out(source, request, answer)

            world.api._carry_out = lose  # type: ignore[method-assign]
            assert failover.born(world.make_partition("orders-1", 1, recorded=False))
            await world.until(lambda: world.epoch("orders-1") > 0)
            assert world.loop.time() - lost_at[0] > 2

        world.run(story)

    def test_somebody_elses_record_stands(self) -> None:
        """Another leader was faster: what it wrote is read, and is not granted again."""
        world = World()

        async def story() -> None:
            failover = await world.started()
            made = world.make_partition("orders-1", 1, recorded=False)
            first = world.shards["s-1"].session
            fresh = leases.new_partition_lease(
                partition="orders-1",
                partition_uid=made["metadata"]["uid"],
                table="orders",
                kvns="s",
                namespace=NAMESPACE,
            )
            world.api.cut_watches()
            body = leases.granted(
                fresh,
                session=first,
                epoch=1,
                in_sync=(f"s-1/{world.volumes['s-1'].replicas[made['metadata']['uid']]['replica']}",),
                set_version=1,
                http="s-1:7070",
                peer="s-1:7071",
                unix_seconds=0.0,
            )
            world.api.ask("POST", LEASES.path(NAMESPACE), body=body)
            failover.born(made)
            await asyncio.sleep(5)
            assert (world.owner("orders-1"), world.epoch("orders-1")) == ("s-1", 1)

        world.run(story)


class TestProofs:
    def test_a_released_session_is_followed_at_once(self) -> None:
        world = World()

        async def story() -> None:
            await world.started()
            world.join_all()
            owner = world.owning_shard()
            owner.process.crash()
            world.release(owner.session)
            assert await world.until(lambda: world.epoch() == 2) < 0.2
            assert world.owner() != owner.pod
            record = world.record("orders-0")
            assert record is not None
            assert len(record.in_sync) == 2
            await asyncio.sleep(1)
            assert world.reasons() == [Reason.SESSION_RELEASED]
            assert world.transitions[0].seconds < 0.2

        world.run(story)

    def test_a_terminated_container_is_fenced_and_followed(self) -> None:
        world = World()

        async def story() -> None:
            await world.started()
            world.join_all()
            owner = world.owning_shard()
            owner.process.crash()
            world.terminated(owner.pod, owner.session)
            assert await world.until(lambda: world.epoch() == 2) < 0.2
            lease = world.api.ask("GET", LEASES.path(NAMESPACE, leases.session_lease_name(owner.pod)))
            assert SessionLease.parse(lease).fenced == str(owner.session)
            await asyncio.sleep(1)
            assert world.reasons() == [Reason.TERMINATED]

        world.run(story)

    def test_the_termination_of_an_earlier_container_proves_nothing(self) -> None:
        """A lagging status pairs the new session with the old container."""
        world = World()

        async def story() -> None:
            await world.started()
            world.join_all()
            owner = world.owning_shard()
            earlier = leases.Session(owner.pod, owner.session.pod_uid, "0" * 16)
            world.terminated(owner.pod, earlier)
            owner.process.pause()
            await asyncio.sleep(5)
            assert world.epoch() == 1

        world.run(story)

    def test_the_termination_in_a_pod_of_the_same_name_proves_nothing(self) -> None:
        world = World()

        async def story() -> None:
            await world.started()
            world.join_all()
            owner = world.owning_shard()
            owner.process.pause()
            world.delete_pod(owner.pod)
            world.new_pod(owner.pod)
            world.terminated(owner.pod, owner.session)
            await asyncio.sleep(5)
            assert world.epoch() == 1
            assert await world.until(lambda: world.epoch() == 2) < 3

        world.run(story)

    def test_silence_is_followed_when_d_was_heard(self) -> None:
        world = World()

        async def story() -> None:
            failover = await world.started()
            world.join_all()
            owner = world.owning_shard()
            owner.process.pause()
            await asyncio.sleep(5)
            assert world.epoch() == 1
            assert world.facts(failover).trouble is Trouble.WAITING
            assert await world.until(lambda: world.epoch() == 2) < 3
            await asyncio.sleep(1)
            assert world.reasons() == [Reason.SILENT]
            assert 6 <= world.transitions[0].seconds < 8
            owner.process.resume()
            await asyncio.sleep(3)
            assert not owner.process.alive  # Fenced: it ended itself.

        world.run(story)

    def test_a_takeover_without_release_proves_no_death(self) -> None:
        """Force-deleted, and made again elsewhere: the old process may still run on a node cut off."""
        world = World()

        async def story() -> None:
            await world.started()
            world.join_all()
            old = world.owning_shard()
            world.delete_pod(old.pod)
            world.new_pod(old.pod)
            world.start(old.pod)
            took = await world.until(lambda: world.epoch() == 2)
            assert 6 <= took < 9
            await asyncio.sleep(1)
            assert world.reasons() == [Reason.SILENT]

        world.run(story)

    def test_a_release_is_still_seen_after_the_next_session_has_begun(self) -> None:
        world = World()

        async def story() -> None:
            await world.started()
            world.join_all()
            old = world.owning_shard()
            world.leading["operator-0"] = False
            old.process.crash()
            world.release(old.session)
            world.start(old.pod)
            await asyncio.sleep(3)
            world.leading["operator-0"] = True
            assert await world.until(lambda: world.epoch() == 2) < 2

        world.run(story)

    def test_a_deleted_session_lease_is_made_again_fenced(self) -> None:
        """Its process ends by itself; if it cannot, D of absence is waited, and then nobody can make the Lease."""
        world = World()

        async def story() -> None:
            await world.started()
            world.join_all()
            owner = world.owning_shard()
            owner.process.pause()
            path = LEASES.path(NAMESPACE, leases.session_lease_name(owner.pod))
            world.api.ask("DELETE", path)
            took = await world.until(lambda: world.epoch() == 2)
            assert 6 <= took < 9
            lease = SessionLease.parse(world.api.ask("GET", path))
            assert lease.over(owner.session)
            assert lease.renewal == 0

        world.run(story)

    def test_a_pod_whose_session_lease_was_deleted_comes_back(self) -> None:
        world = World()

        async def story() -> None:
            failover = await world.started()
            world.join_all()
            owner = world.owning_shard()
            world.api.ask("DELETE", LEASES.path(NAMESPACE, leases.session_lease_name(owner.pod)))
            await world.until(lambda: not owner.process.alive)
            world.terminated(owner.pod, owner.session)
            world.start(owner.pod)
            assert world.volumes[owner.pod].suspicious or await world.until(
                lambda: world.volumes[owner.pod].suspicious
            )
            await world.until(lambda: world.epoch() >= 2)
            await asyncio.sleep(5)
            epoch = world.epoch()
            assert world.facts(failover).trouble is Trouble.NONE
            await asyncio.sleep(10)
            assert world.epoch() == epoch <= 4  # The suspicion was answered, and did not go round in circles.

        world.run(story)


class TestSilenceThatIsNone:
    def test_a_frozen_api_server_deposes_nobody(self) -> None:
        world = World()

        async def story() -> None:
            await world.started()
            world.join_all()
            world.api.freeze()
            await asyncio.sleep(10)
            world.api.thaw()
            await asyncio.sleep(10)
            assert world.epoch() == 1
            assert world.transitions == []

        world.run(story)

    def test_an_operator_that_was_stopped_deposes_nobody(self) -> None:
        world = World()

        async def story() -> None:
            await world.started()
            world.join_all()
            process = world.operators[0][0]
            process.pause()
            await asyncio.sleep(60)
            process.resume()
            await asyncio.sleep(5)
            assert world.epoch() == 1

        world.run(story)

    def test_when_most_fall_silent_together_one_further_d_is_waited(self) -> None:
        world = World()

        async def story() -> None:
            failover = await world.started()
            world.join_all()
            owner = world.owning_shard()
            owner.process.pause()
            world.shards["s-1"].process.pause()
            await asyncio.sleep(11)
            assert world.epoch() == 1
            assert "together" in world.facts(failover).detail
            assert await world.until(lambda: world.epoch() == 2) < 4
            assert world.owner() == "s-2"

        world.run(story)

    def test_an_api_server_that_comes_back_is_given_time_to_be_heard(self) -> None:
        """All requests are lost for long, and after that the shards are slower to come back than the operator."""
        world = World()

        async def story() -> None:
            await world.started()
            world.join_all()
            world.api.faults.request_lost = 1.0
            await asyncio.sleep(10)
            for shard in world.shards.values():
                shard.process.pause()
            world.api.faults.request_lost = 0.0
            await asyncio.sleep(2)
            for shard in world.shards.values():
                shard.process.resume()
            await asyncio.sleep(5)
            assert world.epoch() == 1
            assert all(shard.process.alive for shard in world.shards.values())

        world.run(story)

    def test_a_renewal_that_lands_before_the_fence_starts_the_wait_again(self) -> None:
        """Not even one that lands after the last look at the Lease: the fence is a CAS on what was heard."""
        world = World()

        async def story() -> None:
            failover = await world.started()
            world.join_all()
            owner = world.owning_shard()
            owner.process.pause()
            landed = 0
            submit = world.api.submit

            def with_late_renewal(source: Process, request: Request, answer: Any) -> None:
                nonlocal landed
                track = failover._knows.book(NAMESPACE).tracks[owner.session]
                if source is world.operators[0][0] and track.heard.seconds >= 6 and not landed:
                    path = LEASES.path(NAMESPACE, leases.session_lease_name(owner.pod))
                    lease = world.api.ask("GET", path)
                    landed = SessionLease.parse(lease).renewal + 1
                    body = leases.renewed(lease, renewal=landed, valid_seconds=4, unix_seconds=0)
                    world.api.ask("PUT", path, body=body)
                submit(source, request, answer)

            world.api.submit = with_late_renewal  # type: ignore[method-assign]
            await world.until(lambda: landed > 0)
            await asyncio.sleep(5)
            assert world.epoch() == 1
            assert await world.until(lambda: world.epoch() == 2) < 4

        world.run(story)


class TestTimesChange:
    def test_d_and_v_lowered_while_running(self) -> None:
        world = World(durationSeconds=12, validSeconds=8)

        async def story() -> None:
            await world.started()
            world.join_all()
            owner = world.owning_shard()
            owner.process.pause()  # It never hears of the smaller V.
            times = {"spec": {"lease": {"durationSeconds": 3, "validSeconds": 2}}}
            world.patch(KV_NAMESPACES.path(NAMESPACE, "s"), times)
            for shard in world.shards.values():
                shard.keeper.times = LeaseTimes(valid_seconds=2)
            owner.keeper.times = LeaseTimes(valid_seconds=8)
            took = await world.until(lambda: world.epoch() == 2)
            assert 12 <= took < 15  # 1.5 times the V that its Lease shows

        world.run(story)

    def test_a_session_with_the_smaller_v_is_waited_for_shorter(self) -> None:
        world = World(durationSeconds=12, validSeconds=8)

        async def story() -> None:
            await world.started()
            world.join_all()
            times = {"spec": {"lease": {"durationSeconds": 3, "validSeconds": 2}}}
            world.patch(KV_NAMESPACES.path(NAMESPACE, "s"), times)
            for shard in world.shards.values():
                shard.keeper.times = LeaseTimes(valid_seconds=2)
            await asyncio.sleep(20)
            world.owning_shard().process.pause()
            assert await world.until(lambda: world.epoch() == 2) < 5

        world.run(story)


class TestOperators:
    @pytest.mark.parametrize("carried_out", [False, True])
    @pytest.mark.parametrize("at", range(8))
    def test_one_that_dies_at_any_step_of_a_grant_is_succeeded(self, at: int, carried_out: bool) -> None:
        world = World()

        async def story() -> None:
            await world.started()
            world.join_all()
            crash = OperatorCrash(world, world.operators[0][0], at=at, carried_out=carried_out)
            owner = world.owning_shard()
            owner.process.crash()
            world.terminated(owner.pod, owner.session)
            await world.until(lambda: bool(crash.hit))
            world.operator("operator-1")
            await world.until(lambda: world.epoch() >= 2, seconds=15)
            await asyncio.sleep(10)
            assert world.epoch() == 2
            assert world.owner() != owner.pod

        world.run(story)

    def test_two_leaders_at_once_only_waste_work(self) -> None:
        world = World(partitions=5)

        async def story() -> None:
            await world.started()
            world.join_all()
            world.operator("operator-1")
            await asyncio.sleep(3)

            def rose(before: dict[str, int]) -> bool:
                return all(world.epoch(name) > epoch for name, epoch in before.items())

            for _ in range(4):
                owner = world.owning_shard("orders-0")
                held = [name for name in world.names.values() if world.owner(name) == owner.pod]
                owner.process.crash()
                world.release(owner.session)
                before = {name: world.epoch(name) for name in held}
                await world.until(functools.partial(rose, before))
                world.start(owner.pod)
                await asyncio.sleep(3)
                for name in held:
                    assert world.epoch(name) == before[name] + 1
                    world.join(owner.pod, name)

        world.run(story)

    def test_one_that_does_not_lead_observes_and_writes_nothing(self) -> None:
        world = World()

        async def story() -> None:
            await world.started()
            world.join_all()
            world.leading["operator-0"] = False
            failover = world.operator("operator-1", leading=False)
            world.owning_shard().process.pause()
            await asyncio.sleep(10)
            assert world.epoch() == 1
            assert failover.quorum_read_at > 0
            world.leading["operator-1"] = True
            # It has heard the silence already: nothing is waited again.
            assert await world.until(lambda: world.epoch() == 2) < 2

        world.run(story)

    def test_it_ticks_while_the_api_server_is_frozen_and_says_that_it_reads_nothing(self) -> None:
        world = World()

        async def story() -> None:
            failover = await world.started()
            world.api.freeze()
            await asyncio.sleep(8)
            assert failover.ticked_at - failover.quorum_read_at > 5
            before = failover.ticked_at
            await asyncio.sleep(3)
            assert failover.ticked_at > before

        world.run(story)


class TestLostRecords:
    def test_a_deleted_partition_lease_goes_back_to_the_living_owner_with_a_higher_epoch(self) -> None:
        world = World()

        async def story() -> None:
            await world.started()
            world.join_all()
            owner = world.owning_shard()
            world.stubborn.add(owner.session)  # It goes on owning: it does not act on absence.
            world.put_record("orders-0", None)
            await world.until(lambda: world.epoch() == 2)
            assert world.owner() == owner.pod
            record = world.record("orders-0")
            assert record is not None
            assert len(record.in_sync) == 3
            await asyncio.sleep(1)
            assert world.reasons() == [Reason.RECORD_LOST]

        world.run(story)

    def test_record_and_status_wiped_the_replicas_still_know_the_epoch(self) -> None:
        world = World()

        async def story() -> None:
            await world.started()
            world.join_all()
            owner = world.owning_shard()
            owner.process.crash()
            world.release(owner.session)
            await world.until(lambda: world.epoch() == 2)
            world.operators[0][0].crash()  # And with it all that it remembered.
            world.start(owner.pod)
            world.patch(KV_PARTITIONS.path(NAMESPACE, "orders-0", "status"), {"status": None})
            world.put_record("orders-0", None)
            await asyncio.sleep(1)
            world.operator("operator-1")
            await world.until(lambda: world.epoch() > 0)
            assert world.epoch() == 3

        world.run(story)

    def test_nothing_is_granted_while_a_replica_is_silent(self) -> None:
        world = World()

        async def story() -> None:
            failover = await world.started()
            world.join_all()
            owner = world.owning_shard()
            owner.process.crash()
            world.put_record("orders-0", None)
            world.release(owner.session)
            await asyncio.sleep(20)
            assert world.epoch() == 0
            facts = world.facts(failover)
            assert facts.trouble is Trouble.SUSPECT
            assert owner.pod in facts.detail
            world.start(owner.pod)
            await world.until(lambda: world.epoch() > 0)
            assert world.epoch() == 2

        world.run(story)

    def test_an_owner_that_nothing_names_any_more_is_outlived(self) -> None:
        """Record gone, session taken over, operator new: only the time that the old owner still trusts is left."""
        world = World()

        async def story() -> None:
            await world.started()
            world.join_all()
            old = world.owning_shard()
            old.process.pause()  # Resumed, it would serve until its deadline.
            world.delete_pod(old.pod)
            world.new_pod(old.pod)
            world.start(old.pod)
            world.put_record("orders-0", None)
            world.operators[0][0].crash()
            world.operator("operator-1")
            took = await world.until(lambda: world.epoch() == 2)
            assert took >= 6

        world.run(story)

    def test_a_person_accepts_the_loss(self) -> None:
        world = World()

        async def story() -> None:
            failover = await world.started()
            owner = world.owning_shard()
            world.leave("s-1")
            world.leave("s-2")
            owner.process.crash()
            world.release(owner.session)
            world.lose_volume(owner.pod)
            await asyncio.sleep(5)
            facts = world.facts(failover)
            assert facts.trouble is Trouble.DEGRADED
            assert "accept-loss=1" in facts.detail
            note = {"metadata": {"annotations": {leases.ACCEPT_LOSS: "1"}}}
            world.patch(KV_PARTITIONS.path(NAMESPACE, "orders-0"), note)
            await world.until(lambda: world.epoch() == 2)
            await asyncio.sleep(1)
            assert world.reasons() == [Reason.LOSS_ACCEPTED]
            record = world.record("orders-0")
            assert record is not None
            assert len(record.in_sync) == 1

        world.run(story)

    def test_a_record_put_back_to_an_earlier_state_is_noticed(self) -> None:
        world = World()

        async def story() -> None:
            await world.started()
            world.join_all()
            old = world.raw_record("orders-0")
            owner = world.owning_shard()
            owner.process.crash()
            world.release(owner.session)
            await world.until(lambda: world.epoch() == 2)
            second = world.owning_shard()
            world.stubborn.add(second.session)
            world.operators[0][0].crash()
            world.put_record("orders-0", old)
            world.patch(KV_PARTITIONS.path(NAMESPACE, "orders-0", "status"), {"status": None})
            failover = world.operator("operator-1")
            await asyncio.sleep(10)
            assert world.epoch() == 1  # The third replica is away: it might know of an epoch 3.
            assert world.facts(failover).trouble is Trouble.SUSPECT
            world.start(owner.pod)
            await world.until(lambda: world.epoch() > 1)
            assert (world.epoch(), world.owner()) == (3, second.pod)

        world.run(story)


class TestRelease:
    def test_a_released_partition_moves_to_its_target_at_once(self) -> None:
        world = World()

        async def story() -> None:
            await world.started()
            world.join_all()
            world.change_record(
                "orders-0", lambda raw: leases.released_partition(raw, epoch=1, seq=5, target="s-2")
            )
            assert await world.until(lambda: world.epoch() == 2) < 0.1
            assert world.owner() == "s-2"
            record = world.record("orders-0")
            assert record is not None
            assert len(record.in_sync) == 3
            assert not record.is_released
            await asyncio.sleep(1)
            assert world.reasons() == [Reason.RELEASED]
            assert world.transitions[0].seconds < 0.1

        world.run(story)

    @pytest.mark.parametrize("changes", [False, True])
    def test_it_is_granted_on_as_a_watch_showed_it_unless_it_has_changed(self, changes: bool) -> None:
        """A CAS that succeeds proves that nothing else was there to be read; one that fails, that there is."""
        world = World()

        async def story() -> None:
            await world.started()
            world.join_all()
            await asyncio.sleep(1)
            asked: list[str] = []
            submit = world.api.submit
            path = LEASES.path(NAMESPACE, leases.partition_lease_name("orders-0"))

            def watched(source: Process, request: Request, answer: Any) -> None:
                if request.path == path and source is world.operators[0][0]:
                    asked.append(request.method)
                    if changes and asked == ["PUT"]:
                        world.change_record("orders-0", lambda raw: leases.with_alone_since(raw, 1))
                submit(source, request, answer)

            world.api.submit = watched  # type: ignore[method-assign]
            world.change_record(
                "orders-0", lambda raw: leases.released_partition(raw, epoch=1, seq=5, target="s-2")
            )
            await world.until(lambda: world.epoch() == 2)
            assert asked == (["PUT", "GET", "PUT"] if changes else ["PUT"])
            record = world.record("orders-0")
            assert record is not None
            assert (record.session and record.session.pod, record.is_released) == ("s-2", False)

        world.run(story)

    def test_an_owner_that_is_alone_is_asked_to_let_go(self) -> None:
        world = World()

        async def story() -> None:
            await world.started()
            world.join_all()
            world.change_record("orders-0", lambda raw: leases.with_alone_since(raw, 1))
            await world.until(lambda: world.epoch() == 2)
            assert [request[2:] for request in world.release_requests] == [(1, "s-1")]
            assert world.owner() == "s-1"
            await asyncio.sleep(3)
            world.change_record("orders-0", lambda raw: leases.with_alone_since(raw, 2))
            assert await world.until(lambda: world.epoch() == 3) < 3, (
                "another owner is asked as soon as the first was"
            )
            assert [request[2] for request in world.release_requests] == [1, 2]

        world.run(story)

    def test_one_that_is_out_of_reach_is_asked_by_its_lease(self) -> None:
        world = World()

        async def story() -> None:
            await world.started()
            world.join_all()
            world.deaf.add("s-0")
            world.change_record("orders-0", lambda raw: leases.with_alone_since(raw, 1))
            await world.until(
                lambda: (record := world.record("orders-0")) is not None and record.asked_target != ""
            )
            record = world.record("orders-0")
            assert record is not None
            assert (record.asked_target, record.epoch, world.release_requests) == ("s-1", 1, [])
            world.change_record(
                "orders-0", lambda raw: leases.released_partition(raw, epoch=1, seq=0, target="s-1")
            )
            await world.until(lambda: world.owner() == "s-1")
            after = world.record("orders-0")
            assert after is not None
            assert (after.epoch, after.release_asked) == (2, "")

        world.run(story)

    @pytest.mark.parametrize("lost", ["owner alone", "owner over"])
    def test_a_leader_whom_living_standbys_do_not_answer_lets_another_one_try(self, lost: str) -> None:
        world = World()

        async def story() -> None:
            await world.started()
            world.join_all()
            world.deaf |= {"s-1", "s-2"}
            await asyncio.sleep(1)
            assert world.step_downs == []
            if lost == "owner alone":
                world.change_record("orders-0", lambda raw: leases.with_alone_since(raw, 1))
            else:
                owner = world.owning_shard()
                owner.process.crash()
                world.release(owner.session)
            await world.until(lambda: world.step_downs != [], seconds=5)

        world.run(story)

    def test_a_leader_does_not_step_down_for_standbys_that_are_dead(self) -> None:
        world = World()

        async def story() -> None:
            await world.started()
            world.join_all()
            for pod in ("s-1", "s-2"):
                world.shards[pod].process.crash()
            await asyncio.sleep(4)
            world.change_record("orders-0", lambda raw: leases.with_alone_since(raw, 1))
            await asyncio.sleep(10)
            assert world.step_downs == []

        world.run(story)

    def test_one_that_does_not_let_go_is_shown_as_blocked_and_not_pestered(self) -> None:
        world = World()

        async def story() -> None:
            failover = await world.started()
            world.join_all()
            world.agrees = False
            world.change_record("orders-0", lambda raw: leases.with_alone_since(raw, 1))
            await asyncio.sleep(10)
            facts = world.facts(failover)
            assert facts.trouble is Trouble.BLOCKED
            assert "s-1" in facts.detail
            assert len(world.release_requests) == 1
            world.change_record("orders-0", lambda raw: leases.with_alone_since(raw, None))
            await asyncio.sleep(2)
            assert world.facts(failover).trouble is Trouble.NONE

        world.run(story)


def test_a_hundred_partitions_of_a_killed_shard_are_granted_within_a_second() -> None:
    world = World(partitions=100)

    async def story() -> None:
        await world.started()
        world.join_all()
        owner = world.owning_shard()
        owner.process.crash()
        world.release(owner.session)
        took = await world.until(lambda: all(world.epoch(name) == 2 for name in world.names.values()))
        assert took < 1

    world.run(story)


def test_a_shard_that_does_not_answer_holds_nobody_up_for_longer_than_one_time_out() -> None:
    world = World(partitions=10)

    async def story() -> None:
        await world.started()
        world.join_all()
        world.deaf.add("s-2")
        owner = world.owning_shard()
        owner.process.crash()
        world.release(owner.session)
        took = await world.until(lambda: all(world.epoch(name) == 2 for name in world.names.values()))
        assert took < 1.5
        assert {world.owner(name) for name in world.names.values()} == {"s-1"}

    world.run(story)


def test_session_leases_that_nothing_names_are_collected() -> None:
    world = World()

    async def story() -> None:
        await world.started()
        extra = leases.Session("s-7", "u", "0" * 16)
        body = leases.new_session_lease(
            session=extra,
            kvns="s",
            namespace=NAMESPACE,
            valid_seconds=4,
            renewal=1,
            http="",
            peer="",
            unix_seconds=0,
        )
        world.api.ask("POST", LEASES.path(NAMESPACE), body=body)

        def is_collected() -> bool:
            try:
                world.api.ask("GET", LEASES.path(NAMESPACE, "session-s-7"))
            except KubeNotFound:
                return True
            return False

        assert await world.until(is_collected) >= 6
        for pod in world.pods:
            world.api.ask("GET", LEASES.path(NAMESPACE, leases.session_lease_name(pod)))

    world.run(story)
