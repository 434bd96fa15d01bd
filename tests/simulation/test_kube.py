"""The simulated way to the API server: compare-and-swap, lost and late requests, watches that are cut."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from simulation.kube import HOST, ApiFaults, ApiHost, SimKube
from simulation.loop import Process, SimulationLoop
from simulation.network import Network

from fencekv.kube import LEASES, KubeConflict, KubeGone, KubeNotFound, Unclear


class World:
    """An API server and one client process."""

    def __init__(self) -> None:
        self.loop = SimulationLoop(1)
        self.network = Network(self.loop)
        self.api = ApiHost(self.loop, self.network)
        self.process: Process = self.loop.process("a")
        self.kube: SimKube = self.api.kube(self.process)


def run(main: Callable[[World], Awaitable[Any]]) -> Any:
    """Runs `main` inside the client process."""
    world = World()

    async def inside() -> Any:
        return await main(world)

    async def whole() -> Any:
        return await world.process.spawn(inside())

    result = world.loop.run(whole())
    assert world.loop.errors == []
    return result


def lease(name: str = "x", **notes: str) -> dict[str, Any]:
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, "namespace": "default", "annotations": notes},
        "spec": {},
    }


def test_a_compare_and_swap_on_an_old_version_conflicts() -> None:
    async def main(world: World) -> None:
        first = await world.kube.create(LEASES, "default", lease())
        second = await world.kube.replace(LEASES, "default", first)
        assert second["metadata"]["uid"] == first["metadata"]["uid"]
        second["metadata"]["annotations"] = {"n": "1"}
        await world.kube.replace(LEASES, "default", second)
        with pytest.raises(KubeConflict):
            await world.kube.replace(LEASES, "default", second)
        assert (await world.kube.get(LEASES, "default", "x"))["metadata"]["annotations"] == {"n": "1"}
        await world.kube.delete(LEASES, "default", "x")
        with pytest.raises(KubeNotFound):
            await world.kube.get(LEASES, "default", "x")

    run(main)


@pytest.mark.parametrize(
    ("faults", "exists"), [(ApiFaults(request_lost=1), False), (ApiFaults(reply_lost=1), True)]
)
def test_a_lost_request_and_a_lost_reply_are_both_unclear(faults: ApiFaults, exists: bool) -> None:
    async def main(world: World) -> None:
        world.api.faults = faults
        with pytest.raises(Unclear):
            await world.kube.create(LEASES, "default", lease(), timeout=1)
        world.api.faults = ApiFaults()
        assert bool((await world.kube.list(LEASES, "default")).items) == exists

    run(main)


@pytest.mark.parametrize("how", ["late", "frozen", "parted"])
def test_a_request_can_be_carried_out_after_its_sender_gave_up(how: str) -> None:
    async def main(world: World) -> None:
        if how == "late":
            world.api.faults = ApiFaults(request_late=1, late_seconds_max=20)
        elif how == "frozen":
            world.api.freeze()
            world.loop.call_outside(5, world.api.thaw)
        else:
            world.network.block("a", HOST)
            world.loop.call_outside(5, world.network.unblock, "a", HOST)
        with pytest.raises(Unclear):
            await world.kube.create(LEASES, "default", lease(), timeout=0.05)
        assert world.api.server.core.store.list("leases.coordination.k8s.io") == []
        await asyncio.sleep(21)
        world.api.faults = ApiFaults()
        assert len((await world.kube.list(LEASES, "default")).items) == 1

    run(main)


def test_a_watch_shows_what_happened_in_order_and_ends_when_it_is_cut() -> None:
    async def main(world: World) -> list[str]:
        version = (await world.kube.list(LEASES, "default")).resource_version
        seen: list[str] = []

        async def watch() -> None:
            async for event in world.kube.watch(LEASES, "default", resource_version=version):
                seen.append(f"{event.type} {event.object['metadata']['name']}")  # noqa: PERF401 - it is cut

        watching = world.process.spawn(watch())
        for name in ("x", "y", "z"):
            await world.kube.create(LEASES, "default", lease(name))
        await world.kube.delete(LEASES, "default", "y")
        await asyncio.sleep(1)
        world.api.cut_watches()
        with pytest.raises(Unclear):
            await watching
        return seen

    assert run(main) == ["ADDED x", "ADDED y", "ADDED z", "DELETED y"]


def test_a_watch_from_a_forgotten_version_is_gone() -> None:
    async def main(world: World) -> None:
        await world.kube.create(LEASES, "default", lease("x"))
        await world.kube.create(LEASES, "default", lease("y"))
        world.api.forget_events()
        with pytest.raises(KubeGone):
            async for _ in world.kube.watch(LEASES, "default", resource_version="1"):
                pass

    run(main)
