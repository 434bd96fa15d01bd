"""The writer threads: one that is stuck in the disk holds up its own work and nothing else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from engines import bench, put
from memory_kube import HandClock

from fencekv_shard import limits
from fencekv_shard.api import Durability
from fencekv_shard.executor import WriterThreads, run
from fencekv_shard.state import State
from fencekv_shard.store import Prepared

STUCK = limits.WRITER_STUCK_SECONDS


class Disk:
    """Work that is stuck until it is let go."""

    def __init__(self) -> None:
        self.entered, self._free = threading.Semaphore(0), threading.Event()

    def work(self) -> str:
        self.entered.release()
        assert self._free.wait(30), "never let go"
        return "late"

    def let_go(self) -> None:
        self._free.set()

    async def is_stuck(self, times: int = 1) -> None:
        """Waits until so many pieces of work have begun."""
        for _ in range(times):
            await asyncio.to_thread(self.entered.acquire, timeout=30)


@pytest.fixture(name="disk")
def make_disk() -> Iterator[Disk]:
    disk = Disk()
    yield disk
    disk.let_go()


async def test_work_is_done_and_told_with_its_result_or_its_error() -> None:
    threads = WriterThreads(clock=HandClock().now, threads=2)
    assert await run(threads, lambda: 7) == 7
    with pytest.raises(KeyError, match="missing"):
        await run(threads, lambda: {}["missing"])
    assert await run(threads, lambda: 8) == 8
    threads.close()


async def test_behind_a_stuck_thread_others_go_on_once_it_is_set_aside(disk: Disk) -> None:
    clock = HandClock()
    threads = WriterThreads(clock=clock.now, threads=1)
    late = asyncio.ensure_future(run(threads, disk.work))
    await disk.is_stuck()
    other = asyncio.ensure_future(run(threads, lambda: "on time"))

    clock.seconds += STUCK / 2
    threads.tick()
    assert threads.set_aside == 0, "it may still be but slow"
    clock.seconds += STUCK
    threads.tick()

    assert threads.set_aside == 1
    assert await asyncio.wait_for(other, 10) == "on time"
    assert not late.done()
    disk.let_go()
    assert await asyncio.wait_for(late, 10) == "late"  # what it did counts all the same
    assert await asyncio.wait_for(run(threads, lambda: 9), 10) == 9
    threads.close()


async def test_a_thread_is_set_aside_once_and_gives_its_place_up(disk: Disk) -> None:
    clock = HandClock()
    threads = WriterThreads(clock=clock.now, threads=1)
    late = asyncio.ensure_future(run(threads, disk.work))
    await disk.is_stuck()
    clock.seconds += 2 * STUCK
    for _ in range(5):
        threads.tick()
    assert (threads.set_aside, len(threads._slots)) == (1, 2)
    disk.let_go()
    await late
    while threads.set_aside:
        await asyncio.sleep(0)
    assert len(threads._slots) == 1
    threads.close()


async def test_the_number_of_threads_has_a_limit(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WRITER_THREADS_MAX", 3)
    clock = HandClock()
    threads = WriterThreads(clock=clock.now, threads=1)
    stuck = [asyncio.ensure_future(run(threads, disk.work)) for _ in range(4)]
    for _ in range(3):
        await disk.is_stuck()
        clock.seconds += 2 * STUCK
        threads.tick()
    assert (threads.set_aside, len(threads._slots)) == (2, 3)
    disk.let_go()
    assert await asyncio.gather(*stuck) == ["late"] * 4
    threads.close()


async def test_a_partition_whose_commit_is_stuck_holds_up_no_other_one(
    disk: Disk, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = HandClock()
    threads = WriterThreads(clock=clock.now, threads=1)
    alone = {"durability": Durability.STANDARD, "replicas": ("sample-0",), "min_in_sync": 0}
    slow, other = [
        await bench(tmp_path_factory.mktemp(name), executor=threads, **alone) for name in ("slow", "other")
    ]
    for world in (slow, other):
        opening = world.engine.open(session="s", members=(world.engine.member,), set_version=1)
        await asyncio.wait_for(opening, 10)
    commit = Prepared.commit

    def sometimes_stuck(self: Prepared) -> State:
        if self._store is slow.replica._store:
            disk.work()
        return commit(self)

    monkeypatch.setattr(Prepared, "commit", sometimes_stuck)
    waiting = slow.submit(put("a"))
    await disk.is_stuck()
    quick = other.submit(put("b"))
    clock.seconds += 2 * STUCK
    threads.tick()
    assert (await asyncio.wait_for(quick, 10)).version is not None
    assert not waiting.done()
    disk.let_go()
    assert (await asyncio.wait_for(waiting, 10)).version is not None
    for world in (slow, other):
        await world.replica.close()
    threads.close()
