"""Ending a run early: what it started ends with it, whoever tells it to.

Invariants:
  * SIGTERM and SIGINT cancel the work once, and the work clears up; whatever comes meanwhile does not break into
    that. `timeout make bench` sends two: its own, and the one that make passes on.
  * Clearing up is bounded: what hangs for longer is left to the kernel, which ends servers with this process.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from fencekv_sandbox.controlplane import tie_to_parent

T = TypeVar("T")

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
CLEAR_UP_SECONDS_MAX: Final = 60.0
STATUS: Final = 130  # of a run that was told to end


class Stopped(Exception):
    """A signal ended the work, which has cleared up."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, which SIGTERM and SIGINT end as well.

    Raises:
        Stopped: by one of them.
    """
    stopping = False

    async def until_told() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def stop() -> None:
            nonlocal stopping
            if not stopping:
                stopping = True
                loop.call_later(CLEAR_UP_SECONDS_MAX, os._exit, STATUS)
                task.cancel()

        for number in SIGNALS:
            loop.add_signal_handler(number, stop)
        return await work

    try:
        return asyncio.run(until_told())
    except asyncio.CancelledError as error:
        if not stopping:
            raise
        raise Stopped("told to end") from error


def end_with_parent() -> None:
    """Has SIGTERM sent to this process when its parent ends, where the platform can.

    For a shell that make started: it does not pass on what ends it.
    """
    tie = tie_to_parent(signal.SIGTERM)
    if tie is not None:
        tie()
