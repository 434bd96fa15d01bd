"""Where blocking work runs: a few writer threads, each partition always on the same one.

LMDB wants a write transaction begun and committed by one thread. A pool of single threads gives that without a
thread for each partition.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from fencekv_shard import limits

T = TypeVar("T")


class Executor(Protocol):
    """Runs one partition's blocking work, one piece at a time."""

    async def run(self, work: Callable[[], T]) -> T:
        """Runs `work` and gives its result or its error."""
        ...


class WriterThreads:
    """The shard's writer threads."""

    def __init__(self, threads: int = limits.WRITER_THREADS) -> None:
        self._pools = [ThreadPoolExecutor(1, thread_name_prefix=f"writer-{index}") for index in range(threads)]

    def of(self, uid: str) -> Executor:
        """The executor of a partition."""
        return _OneThread(self._pools[zlib.crc32(uid.encode()) % len(self._pools)])

    def close(self) -> None:
        """Waits for what runs, and ends the threads."""
        for pool in self._pools:
            pool.shutdown()


class _OneThread:
    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool

    async def run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)
