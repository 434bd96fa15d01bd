"""The local copy of a collection: complete after every sort of broken watch."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from simulation.kube import ApiHost
from simulation.loop import SimulationLoop
from simulation.network import Network

from fencekv.informer import Informer
from fencekv.kube import Resource

MAPS = Resource("", "v1", "configmaps", "ConfigMap")


class World:
    def __init__(self) -> None:
        self.loop = SimulationLoop(1)
        self.api = ApiHost(self.loop, Network(self.loop))
        self.process = self.loop.process("informer")
        self.heard: list[tuple[str, str]] = []
        self.informer = Informer(
            self.api.kube(self.process), MAPS, None, labels="app=x", on_change=self._on_change, relist_seconds=30
        )

    def _on_change(self, kind: str, item: dict[str, Any]) -> None:
        self.heard.append((kind, item["metadata"]["name"]))

    def make(self, name: str, *, app: str = "x") -> None:
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"app": app}}}
        self.api.ask("POST", MAPS.path("default"), body=body)

    def names(self) -> list[str]:
        return sorted(name for _, name in self.informer.items)


def run(story: Callable[[World], Awaitable[None]]) -> None:
    world = World()

    async def whole() -> None:
        world.process.spawn(world.informer.run())
        await story(world)

    world.loop.run(whole())
    assert world.loop.errors == []


def test_it_lists_and_then_follows() -> None:
    async def story(world: World) -> None:
        world.make("a")
        world.make("other", app="y")
        await world.informer.synced.wait()
        world.make("b")
        await asyncio.sleep(0.1)
        world.api.ask("DELETE", MAPS.path("default", "a"))
        await asyncio.sleep(0.1)
        assert world.names() == ["b"]
        assert world.heard == [("ADDED", "a"), ("ADDED", "b"), ("DELETED", "a")]

    run(story)


def test_what_a_cut_watch_missed_is_found_by_the_list() -> None:
    async def story(world: World) -> None:
        world.make("a")
        await asyncio.sleep(1)
        world.api.cut_watches()
        world.make("b")
        world.api.ask("DELETE", MAPS.path("default", "a"))
        world.api.forget_events()  # And the watch from before is answered with 410.
        await asyncio.sleep(3)
        assert world.names() == ["b"]
        assert sorted(world.heard) == [("ADDED", "a"), ("ADDED", "b"), ("DELETED", "a")]

    run(story)


def test_a_watch_that_died_silently_is_outlived() -> None:
    async def story(world: World) -> None:
        await asyncio.sleep(1)
        for watch in list(world.api._watches):
            assert watch._watcher is not None
            watch._watcher.wake = lambda: None  # Nothing is delivered any more, and nobody says so.
        world.make("a")
        await asyncio.sleep(5)
        assert world.names() == []
        await asyncio.sleep(30)
        assert world.names() == ["a"]

    run(story)


def test_an_api_server_that_is_away_is_asked_a_few_times_and_not_without_end() -> None:
    async def story(world: World) -> None:
        await asyncio.sleep(1)
        world.api.faults.request_lost = 1.0
        world.api.cut_watches()
        world.make("a")
        await asyncio.sleep(60)
        world.api.faults.request_lost = 0.0
        await asyncio.sleep(8)
        assert world.names() == ["a"]

    run(story)


def test_what_its_owner_wrote_shows_at_once_and_only_once() -> None:
    async def story(world: World) -> None:
        world.make("a")
        await asyncio.sleep(1)
        item = world.informer.items["default", "a"]
        newer = {**item, "metadata": {**item["metadata"], "resourceVersion": "999"}}
        world.informer.seen(newer)
        world.informer.seen(newer)
        assert world.heard == [("ADDED", "a"), ("MODIFIED", "a")]

    run(story)
