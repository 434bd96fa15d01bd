"""The virtual-time loop: order, processes that pause and crash, and traces that repeat."""

from __future__ import annotations

import asyncio
import random
import warnings
from collections.abc import Coroutine
from typing import Any

import pytest
from simulation.loop import Deadlock, ProcessClock, SimulationLoop, require_alive


def test_time_jumps_to_the_next_timer() -> None:
    loop = SimulationLoop(1)

    async def main() -> float:
        began = loop.time()
        await asyncio.sleep(3600)
        return loop.time() - began

    assert loop.run(main()) == pytest.approx(3600)


def test_equal_times_run_in_the_order_of_scheduling() -> None:
    loop = SimulationLoop(1)
    order: list[int] = []

    async def main() -> None:
        for number in range(50):
            loop.call_later(1.0, order.append, number)
        await asyncio.sleep(2)

    loop.run(main())
    assert order == list(range(50))


def test_a_paused_process_holds_its_timers_back_and_goes_on_in_order() -> None:
    loop = SimulationLoop(1)
    seen: dict[str, list[float]] = {"a": [], "b": []}

    async def tick(name: str) -> None:
        for _ in range(4):
            await asyncio.sleep(1)
            seen[name].append(loop.time() - 1000)

    async def main() -> None:
        a, b = loop.process("a"), loop.process("b")
        a.spawn(tick("a"))
        b.spawn(tick("b"))
        await asyncio.sleep(1.5)
        a.pause()
        await asyncio.sleep(5)
        a.resume()
        await asyncio.sleep(5)

    loop.run(main())
    assert seen == {"a": pytest.approx([1, 6.5, 7.5, 8.5]), "b": pytest.approx([1, 2, 3, 4])}


def test_pauses_nest() -> None:
    loop = SimulationLoop(1)
    ran: list[str] = []

    async def main() -> None:
        process = loop.process("a")
        process.pause()
        process.pause()
        process.spawn(note(ran))
        process.resume()
        await asyncio.sleep(1)
        assert ran == []
        process.resume()
        await asyncio.sleep(1)

    loop.run(main())
    assert ran == ["ran"]


async def note(ran: list[str]) -> None:
    ran.append("ran")


def test_a_crashed_process_never_runs_again_and_has_no_effect_while_it_is_taken_apart() -> None:
    loop = SimulationLoop(1)
    effects: list[str] = []

    def effect(what: str) -> None:
        require_alive()
        effects.append(what)

    async def stubborn() -> None:
        try:
            effect("began")
            await asyncio.sleep(10)
            effect("slept")
        finally:
            await asyncio.sleep(0)
            effect("cleaned")

    async def parent() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(stubborn())
            group.create_task(asyncio.sleep(1000))

    async def main() -> None:
        process = loop.process("a")
        process.at_exit.append(lambda status: effects.append(f"exit {status}"))
        process.spawn(parent())
        await asyncio.sleep(1)
        process.crash()
        process.spawn(stubborn())  # comes too late
        await asyncio.sleep(100)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop.run(main())
    assert effects == ["began"] * 3 + ["exit 137"]
    assert loop.errors == []


def test_a_process_ends_by_system_exit_with_its_status() -> None:
    loop = SimulationLoop(1)

    async def fatal() -> None:
        await asyncio.sleep(1)
        raise SystemExit(74)

    async def main() -> int | None:
        process = loop.process("a")
        process.spawn(fatal())
        await asyncio.sleep(2)
        assert not process.alive
        return process.status

    assert loop.run(main()) == 74


def test_nothing_left_to_wait_for_is_an_error_not_a_hang() -> None:
    loop = SimulationLoop(1)

    async def main() -> None:
        await loop.create_future()

    with pytest.raises(Deadlock):
        loop.run(main())


def test_threads_are_refused() -> None:
    loop = SimulationLoop(1)

    async def main() -> None:
        await asyncio.to_thread(print)

    with pytest.raises(AssertionError, match="no threads"):
        loop.run(main())


def test_the_clock_of_a_process_goes_on_through_its_pause_and_drifts() -> None:
    loop = SimulationLoop(1)
    clock = ProcessClock(loop=loop, boot_offset=50, drift=0.01)

    async def main() -> None:
        process = loop.process("a")
        process.pause()
        await asyncio.sleep(100)

    before = clock.now()
    loop.run(main())
    assert clock.now() - before == pytest.approx(101)


def test_an_exception_that_nobody_retrieved_is_noted() -> None:
    loop = SimulationLoop(1)

    async def broken() -> None:
        raise ValueError("broken")

    async def main() -> None:
        loop.process("a").spawn(broken())
        await asyncio.sleep(1)

    loop.run(main())
    assert len(loop.errors) == 1
    assert "broken" in loop.errors[0]


def test_one_seed_gives_one_trace_and_another_seed_another() -> None:
    assert busy(7) == busy(7)
    assert busy(7) != busy(8)


def busy(seed: int) -> list[str]:
    """Tasks in sets, cancellations, stalls, a crash: whatever could depend on addresses."""
    loop = SimulationLoop(seed)

    async def work(name: int, chance: random.Random) -> None:
        try:
            while True:
                await asyncio.sleep(chance.random())
                loop.trace(f"work {name}")
        finally:
            loop.trace(f"end {name}")

    async def main() -> None:
        process = loop.process("a")
        process.stall_chance, process.stall_seconds_max = 0.1, 0.5
        doomed = loop.process("doomed")
        running: set[asyncio.Task[Any]] = set()
        for number in range(20):
            coroutine: Coroutine[Any, Any, None] = work(number, loop.rng(str(number)))
            running.add((process if number % 2 else doomed).spawn(coroutine))
        await asyncio.sleep(5)
        doomed.crash()
        done, pending = await asyncio.wait(running, timeout=5)
        assert not done
        for task in pending:
            task.cancel()
        await asyncio.sleep(5)

    loop.run(main())
    assert len(loop.lines) > 100
    return loop.lines
