"""The leader Lease: one leads, another takes over only from silence, and nobody leads without answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from simulation.kube import ApiHost
from simulation.loop import Process, ProcessClock, SimulationLoop
from simulation.network import Network

from fencekv.kube import LEASES
from fencekv_operator.leader import NAME, Leader
from fencekv_sandbox.apiserver import Request, Response

PATH = LEASES.path("default", NAME)


class World:
    def __init__(self) -> None:
        self.loop = SimulationLoop(1)
        self.api = ApiHost(self.loop, Network(self.loop))
        self.processes: dict[str, Process] = {}
        self.leaders: dict[str, Leader] = {}

    def candidate(self, name: str, *, identity: str = "") -> Leader:
        process = self.processes[name] = self.loop.process(name)
        leader = self.leaders[name] = Leader(
            self.api.kube(process),
            namespace="default",
            identity=identity or name,
            clock=ProcessClock(loop=self.loop, boot_offset=len(name) * 1000.0),
        )
        process.spawn(leader.run())
        return leader

    async def until(self, condition: Callable[[], bool], *, seconds: float = 30) -> float:
        began = self.loop.time()
        while not condition():
            assert self.loop.time() - began < seconds
            await asyncio.sleep(0.01)
        return self.loop.time() - began


def run(story: Callable[[World], Awaitable[None]]) -> None:
    world = World()

    async def whole() -> None:
        await story(world)

    world.loop.run(whole())
    assert world.loop.errors == []


def test_the_first_one_leads_and_the_second_one_waits() -> None:
    async def story(world: World) -> None:
        first = world.candidate("a")
        await world.until(lambda: first.leading)
        second = world.candidate("bb")
        for _ in range(300):
            await asyncio.sleep(0.1)
            assert first.leading
            assert not second.leading

    run(story)


def test_after_a_crash_the_other_one_hears_silence_first() -> None:
    async def story(world: World) -> None:
        first, second = world.candidate("a"), world.candidate("bb")
        await asyncio.sleep(5)
        leading, waiting = (first, second) if first.leading else (second, first)
        world.processes["a" if leading is first else "bb"].crash()
        took = await world.until(lambda: waiting.leading)
        assert 3 < took < 6  # before D has passed for a shard that ended at the same moment
        assert world.api.ask("GET", PATH)["spec"]["leaseTransitions"] == 1

    run(story)


def test_given_back_it_is_taken_at_the_next_look() -> None:
    async def story(world: World) -> None:
        first = world.candidate("a")
        await world.until(lambda: first.leading)
        second = world.candidate("bb")
        await asyncio.sleep(3)
        world.processes["a"].spawn(first.release())
        assert await world.until(lambda: second.leading) < 1.5
        assert not first.leading

    run(story)


def test_a_frozen_api_server_ends_the_leading_within_two_thirds() -> None:
    async def story(world: World) -> None:
        first = world.candidate("a")
        await asyncio.sleep(5)
        assert first.leading
        world.api.freeze()
        assert await world.until(lambda: not first.leading) <= 4.1
        await asyncio.sleep(10)
        world.api.thaw()
        assert await world.until(lambda: first.leading) < 2.5

    run(story)


def test_frozen_time_is_no_silence_for_the_other_one() -> None:
    async def story(world: World) -> None:
        first = world.candidate("a")
        await asyncio.sleep(3)
        second = world.candidate("bb")
        await asyncio.sleep(3)
        world.api.freeze()
        await asyncio.sleep(20)
        world.api.thaw()
        await world.until(lambda: first.leading or second.leading)
        assert first.leading

    run(story)


def test_a_paused_leader_does_not_lead_when_it_wakes() -> None:
    async def story(world: World) -> None:
        first = world.candidate("a")
        await world.until(lambda: first.leading)
        second = world.candidate("bb")
        await asyncio.sleep(3)
        world.processes["a"].pause()
        await world.until(lambda: second.leading)
        assert not first.leading  # By its own clock, before it has run a single step.
        world.processes["a"].resume()
        for _ in range(100):
            await asyncio.sleep(0.05)
            assert not first.leading

    run(story)


def test_who_steps_down_makes_room_for_another_one() -> None:
    async def story(world: World) -> None:
        first = world.candidate("a")
        await world.until(lambda: first.leading)
        second = world.candidate("bb")
        await asyncio.sleep(3)
        first.step_down("the shards do not answer here")
        assert not first.leading
        assert await world.until(lambda: second.leading) < 1.5
        second.step_down("nor here")
        await world.until(lambda: first.leading)
        first.step_down("once more, too soon")
        assert first.leading

    run(story)


def test_who_steps_down_and_is_alone_leads_again() -> None:
    async def story(world: World) -> None:
        only = world.candidate("a")
        await world.until(lambda: only.leading)
        only.step_down("the shards do not answer here")
        assert 2 < await world.until(lambda: only.leading) < 5

    run(story)


def test_lost_replies_count_for_nothing_and_do_not_end_the_candidacy() -> None:
    async def story(world: World) -> None:
        first = world.candidate("a")
        await world.until(lambda: first.leading)
        world.api.faults.reply_lost = 1.0
        await world.until(lambda: not first.leading)
        world.api.faults.reply_lost = 0.0
        await world.until(lambda: first.leading, seconds=4)

    run(story)


def test_a_deleted_lease_is_made_again() -> None:
    async def story(world: World) -> None:
        first = world.candidate("a")
        await world.until(lambda: first.leading)
        world.api.ask("DELETE", PATH)
        await asyncio.sleep(3)
        assert first.leading
        assert world.api.ask("GET", PATH)["spec"]["holderIdentity"] == "a"

    run(story)


def test_a_new_process_of_the_same_pod_need_not_wait() -> None:
    async def story(world: World) -> None:
        first = world.candidate("a", identity="pod-0")
        await world.until(lambda: first.leading)
        world.processes["a"].crash()
        again = world.candidate("bb", identity="pod-0")
        assert await world.until(lambda: again.leading) < 1

    run(story)


def test_a_renewal_is_one_request() -> None:
    """Under load each further one is a chance more to be late."""

    async def story(world: World) -> None:
        first = world.candidate("a")
        await world.until(lambda: first.leading)
        asked: list[str] = []
        carry_out = world.api._carry_out

        def count(source: Process, request: Request, answer: asyncio.Future[Response]) -> None:
            asked.append(request.method)
            carry_out(source, request, answer)

        world.api._carry_out = count  # type: ignore[method-assign]
        await asyncio.sleep(5)
        assert 4 <= len(asked) <= 5, asked
        assert set(asked) == {"PUT"}

    run(story)


def test_a_lease_that_somebody_else_wrote_is_read_in_the_same_step() -> None:
    async def story(world: World) -> None:
        first = world.candidate("a")
        await world.until(lambda: first.leading)
        lease = world.api.ask("GET", PATH)
        lease["spec"]["holderIdentity"] = "somebody"
        world.api.ask("PUT", PATH, body=lease)
        assert await world.until(lambda: not first.leading) < 1.2

    run(story)
