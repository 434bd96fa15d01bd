"""Requests that wait to ask a partition again: how long, and what wakes them."""

from __future__ import annotations

import asyncio
import time

import pytest

from fencekv.resting import AT_PACE, LAST_TRY_SECONDS, REST_SECONDS_MAX, Resting

FOREVER = 1e9
LONG = 60.0


def resting() -> Resting:
    return Resting(asyncio.get_running_loop().time)


async def rested(among: Resting, *, pause: float, table: str = "t", deadline: float = FOREVER) -> float:
    began = time.monotonic()
    await among.rest(table, 0, pause, deadline)
    return time.monotonic() - began


async def test_the_more_there_are_the_less_often_each_one_asks() -> None:
    among, pause = resting(), 0.01
    waited = await asyncio.gather(*(rested(among, pause=pause) for _ in range(4 * AT_PACE)))
    assert min(waited[:AT_PACE]) < 2 * pause, "a few keep the usual pace"
    assert waited[-1] >= 4 * pause * 0.99
    assert among.places == {}


async def test_whoever_had_an_answer_wakes_all_who_wait_for_that_partition() -> None:
    among = resting()
    waiting = [asyncio.ensure_future(rested(among, pause=LONG)) for _ in range(20)]
    other = asyncio.ensure_future(rested(among, pause=LONG, table="other"))
    await asyncio.sleep(0)
    among.served("t", 0)
    assert max(await asyncio.wait_for(asyncio.gather(*waiting), 5)) < LONG
    assert not other.done()
    among.served("other", 0)
    await other
    among.served("nobody", 3)
    assert among.places == {}


async def test_one_that_comes_after_the_answer_waits_for_the_next_one() -> None:
    among = resting()
    first = asyncio.ensure_future(rested(among, pause=LONG))
    await asyncio.sleep(0)
    among.served("t", 0)
    second = asyncio.ensure_future(rested(among, pause=LONG))
    await first
    assert not second.done()
    among.served("t", 0)
    await asyncio.wait_for(second, 5)


@pytest.mark.parametrize(
    ("left", "seconds"), [(LAST_TRY_SECONDS + 0.05, 0.05), (LAST_TRY_SECONDS / 2, 0.02), (LONG, 0.2)]
)
async def test_a_request_asks_once_more_before_its_time_is_up(left: float, seconds: float) -> None:
    among = resting()
    crowd = [asyncio.ensure_future(rested(among, pause=LONG)) for _ in range(10 * AT_PACE)]
    await asyncio.sleep(0)
    now = asyncio.get_running_loop().time()
    took = await rested(among, pause=0.02, deadline=now + left)
    assert seconds * 0.99 <= took < REST_SECONDS_MAX
    among.served("t", 0)
    await asyncio.gather(*crowd)


async def test_nobody_is_waited_for_where_no_partition_was_asked() -> None:
    among = resting()
    await asyncio.wait_for(among.rest("t", None, 0.0, FOREVER), 5)
    assert among.places == {}


async def test_whoever_gives_up_is_not_counted_any_more() -> None:
    among = resting()
    waiting = asyncio.ensure_future(rested(among, pause=LONG))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert among.places == {}
