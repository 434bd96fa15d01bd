"""Requests that wait to ask a partition again: how long, and what wakes them."""

from __future__ import annotations

import asyncio

import pytest
from simulation.loop import in_virtual_time

from fencekv.resting import ALL_AT_PACE, AT_PACE, LAST_TRY_SECONDS, REST_SECONDS_MAX, Resting

FOREVER = 1e9
PAUSE = 0.02
CROWD = 100 * AT_PACE  # whose last ones wait for REST_SECONDS_MAX


def resting() -> Resting:
    return Resting(asyncio.get_running_loop().time)


async def rested(among: Resting, *, table: str = "t", write: bool = True, deadline: float = FOREVER) -> float:
    began = asyncio.get_running_loop().time()
    await among.rest(table, 0, PAUSE, deadline, write=write)
    return asyncio.get_running_loop().time() - began


def crowd(
    among: Resting, count: int = CROWD, *, table: str = "t", write: bool = True
) -> list[asyncio.Task[float]]:
    return [asyncio.ensure_future(rested(among, table=table, write=write)) for _ in range(count)]


@in_virtual_time
async def test_the_more_there_are_the_less_often_each_one_asks() -> None:
    among = resting()
    waited = await asyncio.gather(*crowd(among, 4 * AT_PACE))
    assert min(waited[:AT_PACE]) < 2 * PAUSE, "a few keep the usual pace"
    assert waited[-1] >= 4 * PAUSE * 0.99
    assert not among


@in_virtual_time
async def test_the_more_wait_for_any_partition_the_less_often_each_one_asks() -> None:
    among, began = resting(), asyncio.get_running_loop().time()

    async def alone(index: int) -> float:
        await among.rest("t", index, PAUSE, FOREVER, write=True)
        return asyncio.get_running_loop().time() - began

    waited = await asyncio.gather(*(alone(index) for index in range(4 * ALL_AT_PACE)))
    assert min(waited[: ALL_AT_PACE // 2]) < 2 * PAUSE, "a few keep the usual pace"
    assert waited[-1] >= 4 * PAUSE * 0.99


@in_virtual_time
async def test_an_answer_wakes_all_who_wait_for_the_same_but_not_before_the_usual_pause() -> None:
    among = resting()
    waiting, readers, others = crowd(among), crowd(among, write=False), crowd(among, table="other")
    await asyncio.sleep(0)
    among.served("t", 0, write=True)
    waited = await asyncio.wait_for(asyncio.gather(*waiting), REST_SECONDS_MAX / 2)
    assert min(waited) >= PAUSE * 0.99
    assert not readers[-1].done()
    assert not others[-1].done()
    among.served("t", 0, write=False)
    among.served("other", 0, write=True)
    among.served("nobody", 3, write=True)
    await asyncio.wait_for(asyncio.gather(*readers, *others), REST_SECONDS_MAX / 2)
    assert not among


@in_virtual_time
async def test_one_that_comes_after_the_answer_waits_for_the_next_one() -> None:
    among = resting()
    first = crowd(among)
    await asyncio.sleep(0)
    among.served("t", 0, write=True)
    second = crowd(among)
    await asyncio.wait_for(asyncio.gather(*first), REST_SECONDS_MAX / 2)
    assert not second[-1].done()
    among.served("t", 0, write=True)
    await asyncio.wait_for(asyncio.gather(*second), REST_SECONDS_MAX / 2)


@pytest.mark.parametrize(("left", "seconds"), [(LAST_TRY_SECONDS + 0.1, 0.1), (LAST_TRY_SECONDS / 2, PAUSE)])
@in_virtual_time
async def test_a_request_asks_once_more_before_its_time_is_up(left: float, seconds: float) -> None:
    among = resting()
    others = crowd(among)
    await asyncio.sleep(0)
    now = asyncio.get_running_loop().time()
    took = await rested(among, deadline=now + left)
    assert seconds * 0.99 <= took < REST_SECONDS_MAX / 2
    among.served("t", 0, write=True)
    await asyncio.gather(*others)


@in_virtual_time
async def test_nobody_is_waited_for_where_no_partition_was_asked() -> None:
    among = resting()
    await asyncio.wait_for(among.rest("t", None, 0.0, FOREVER, write=True), 5)
    assert not among


@in_virtual_time
async def test_whoever_gives_up_is_not_counted_any_more() -> None:
    among = resting()
    [waiting] = crowd(among, 1)
    await asyncio.sleep(0)
    assert among
    waiting.cancel()
    await asyncio.wait([waiting])
    assert not among
