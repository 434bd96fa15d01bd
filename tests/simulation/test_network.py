"""The simulated network: order, partitions, breaks, crashes, and requests that get lost on either way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from simulation.loop import Process, SimulationLoop
from simulation.network import Faults, Network, NoAnswer, NotSent

from fencekv_shard.peer import Channel, ChannelClosed

World = tuple[SimulationLoop, Network, Process, Process]


def run(main: Callable[[World], Awaitable[Any]], *, seed: int = 1, faults: Faults | None = None) -> Any:
    """Runs `main` with two processes: a asks, b serves."""
    loop = SimulationLoop(seed)
    network = Network(loop, faults=faults)
    world = (loop, network, loop.process("a"), loop.process("b"))

    async def whole() -> Any:
        return await main(world)

    result = loop.run(whole())
    assert loop.errors == []
    return result


async def collect(world: World, into: list[Any]) -> Channel:
    """A channel from a to b; what b gets lands in `into`, at the end "closed"."""
    _, network, a, b = world

    async def on_channel(channel: Channel) -> None:
        try:
            while True:
                into.append((await channel.receive())[0])
        except ChannelClosed:
            into.append("closed")

    await b.spawn(network.transport(b).listen("b:1", on_channel))
    return await a.spawn(network.transport(a).connect("b:1"))


def test_a_channel_is_first_in_first_out_and_shares_nothing() -> None:
    got: list[Any] = []

    async def main(world: World) -> None:
        channel = await collect(world, got)
        body: list[Any] = [0, {"x": 1}]
        for number in range(100):
            body[0] = number
            await world[2].spawn(channel.send(body))
        await asyncio.sleep(1)

    run(main, faults=Faults(slow_chance=0.3))
    assert got == list(range(100))


def test_a_blocked_link_holds_messages_back_and_delivers_them_in_order() -> None:
    got: list[Any] = []

    async def main(world: World) -> None:
        channel = await collect(world, got)
        world[1].block("a", "b")
        for number in range(10):
            await world[2].spawn(channel.send([number]))
        await asyncio.sleep(5)
        assert got == []
        world[1].unblock("a", "b")
        await world[2].spawn(channel.send([10]))
        await asyncio.sleep(1)

    run(main)
    assert got == list(range(11))


def test_a_link_is_one_way() -> None:
    async def main(world: World) -> list[Any]:
        _, network, a, b = world
        echoed: list[Any] = []

        async def on_channel(channel: Channel) -> None:
            while True:
                await channel.send(await channel.receive())

        await b.spawn(network.transport(b).listen("b:1", on_channel))
        channel = await a.spawn(network.transport(a).connect("b:1"))
        network.block("b", "a")
        await a.spawn(channel.send([1]))
        receiving = a.spawn(channel.receive())
        await asyncio.sleep(1)
        assert not receiving.done()
        network.unblock("b", "a")
        echoed.append(await receiving)
        return echoed

    assert run(main) == [[1]]


@pytest.mark.parametrize("how", ["close", "crash"])
def test_the_other_side_hears_the_end_after_everything_sent(how: str) -> None:
    got: list[Any] = []

    async def main(world: World) -> None:
        channel = await collect(world, got)
        await world[2].spawn(channel.send([1]))
        if how == "close":
            channel.close()
        else:
            world[2].crash()
        await asyncio.sleep(1)

    run(main)
    assert got == [1, "closed"]


def test_a_sender_learns_that_the_receiver_died() -> None:
    async def main(world: World) -> None:
        channel = await collect(world, [])
        world[3].crash()
        await asyncio.sleep(1)
        with pytest.raises(ChannelClosed):
            await world[2].spawn(channel.send([1]))

    run(main)


def test_channels_break_by_chance_and_both_sides_learn_it() -> None:
    got: list[Any] = []

    async def main(world: World) -> int:
        channel = await collect(world, got)
        sent = 0
        while await world[2].spawn(delivers(channel, sent)):
            sent += 1
        await asyncio.sleep(1)
        return sent

    sent = run(main, faults=Faults(break_chance=0.1))
    assert got == [*range(sent), "closed"]


def test_dialling_nobody_or_through_a_cut_fails() -> None:
    async def main(world: World) -> None:
        _, network, a, _ = world
        with pytest.raises(ChannelClosed, match="refused"):
            await a.spawn(network.transport(a).connect("b:9"))
        network.block("b", "a")
        with pytest.raises(ChannelClosed, match="no answer"):
            await a.spawn(network.transport(a).connect("b:9"))

    run(main)


async def delivers(channel: Channel, number: int) -> bool:
    try:
        await channel.send([number])
    except ChannelClosed:
        return False
    return True


async def serve(world: World, seen: list[Any]) -> None:
    """b answers requests by their double."""
    _, network, _, b = world

    async def double(number: int) -> int:
        seen.append(number)
        await asyncio.sleep(0.1)
        return 2 * number

    async def begin() -> None:
        network.serve(b, "b:1", double)

    await b.spawn(begin())


def test_a_request_is_answered() -> None:
    async def main(world: World) -> Any:
        await serve(world, [])
        return await world[2].spawn(world[1].request("b:1", 21, timeout=1))

    assert run(main) == 42


@pytest.mark.parametrize(
    ("faults", "seen_by_server"),
    [(Faults(request_lost=1.0), []), (Faults(reply_lost=1.0), [21])],
    ids=["request lost", "reply lost"],
)
def test_a_lost_request_and_a_lost_reply_look_alike(faults: Faults, seen_by_server: list[int]) -> None:
    seen: list[Any] = []

    async def main(world: World) -> None:
        await serve(world, seen)
        with pytest.raises(NoAnswer):
            await world[2].spawn(world[1].request("b:1", 21, timeout=1))

    run(main, faults=faults)
    assert seen == seen_by_server


def test_a_server_that_dies_while_it_answers_leaves_the_outcome_open() -> None:
    async def main(world: World) -> None:
        loop, network, a, b = world
        await serve(world, [])
        loop.call_outside(0.05, b.crash)
        with pytest.raises(NoAnswer):
            await a.spawn(network.request("b:1", 21, timeout=10))
        with pytest.raises(NotSent):
            await a.spawn(network.request("b:1", 21, timeout=10))

    run(main)


def test_a_paused_server_answers_late() -> None:
    async def main(world: World) -> float:
        loop, network, a, b = world
        await serve(world, [])
        b.pause()
        loop.call_outside(5, b.resume)
        began = loop.time()
        assert await a.spawn(network.request("b:1", 1, timeout=10)) == 2
        return loop.time() - began

    assert 5 < run(main) < 5.5
