"""Waiting for several things at once, within bounds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterable

logger = logging.getLogger(__name__)


async def event_within(event: asyncio.Event, seconds: float) -> None:
    """Waits for an event, but not for longer than that."""
    if seconds <= 0:
        return
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


async def bounded(at_once: int, works: Iterable[Awaitable[None]]) -> None:
    """Runs them side by side, so many at once; an error in one is logged and does not stop the others."""
    gate = asyncio.Semaphore(at_once)

    async def run(work: Awaitable[None]) -> None:
        async with gate:
            try:
                await work
            except Exception:
                logger.exception("failed: one of many")

    await asyncio.gather(*(run(work) for work in works))
