"""Where blocking work runs: a pool of writer threads that all partitions of a shard share.

A store begins its LMDB transactions on the event loop and only commits them here, so any thread may take any
partition's commit. One that is stuck in the disk is set aside: its own partition waits, the others go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

from fencekv_shard import limits
from fencekv_shard.meters import Meters

logger = logging.getLogger(__name__)

T = TypeVar("T")
Work = Callable[[], Any]
Done = Callable[[Any, BaseException | None], None]


class Executor(Protocol):
    """Runs blocking work beside the event loop."""

    def submit(self, work: Work, done: Done) -> None:
        """Runs `work`; then `done(result, error)`, on the loop, in a turn of its own."""
        ...


async def run(executor: Executor, work: Callable[[], T]) -> T:
    """Runs `work` and gives its result, or raises its error."""
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def done(result: T, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    executor.submit(work, done)
    return await future


@dataclass(slots=True, eq=False)
class _Slot:
    """One thread. `since`: when it began what it does; None: it waits for work."""

    since: float | None = None
    aside: bool = False


class WriterThreads:
    """The shard's writer threads.

    Args:
        clock: seconds that go on while the machine sleeps or not; read from the threads too.
        meters: gets what each piece of work took, and how many wait; None: nobody asks.
    """

    def __init__(
        self, *, clock: Callable[[], float], threads: int = limits.WRITER_THREADS, meters: Meters | None = None
    ) -> None:
        self._clock, self._meters = clock, meters or Meters()
        self._queue: SimpleQueue[tuple[Work, Done, asyncio.AbstractEventLoop] | None] = SimpleQueue()
        self._wanted = threads
        self._slots: list[_Slot] = []
        self._meters.depths["commits"] = self._queue.qsize
        for _ in range(threads):
            self._start()

    @property
    def set_aside(self) -> int:
        """How many threads are stuck now."""
        return sum(slot.aside for slot in self._slots)

    def submit(self, work: Work, done: Done) -> None:
        """Runs `work` on the next free thread."""
        self._queue.put((work, done, asyncio.get_running_loop()))

    def tick(self) -> None:
        """Sets aside what has been stuck for too long, and starts a fresh thread in its place."""
        stuck_before = self._clock() - limits.WRITER_STUCK_SECONDS
        for slot in list(self._slots):
            since = slot.since  # a thread may set it meanwhile
            if since is None or since > stuck_before or slot.aside:
                continue
            if len(self._slots) >= limits.WRITER_THREADS_MAX:
                return
            logger.warning("a commit has taken over %g s: its thread is set aside", limits.WRITER_STUCK_SECONDS)
            slot.aside = True
            self._start()

    def close(self) -> None:
        """Has the threads end; those that are stuck do when they can, or with the process."""
        for _ in self._slots:
            self._queue.put(None)

    def _start(self) -> None:
        slot = _Slot()
        self._slots.append(slot)
        name = f"writer-{len(self._slots)}"
        # A daemon: a disk that does not answer must not hold up the end of the process.
        threading.Thread(target=self._work, args=(slot,), name=name, daemon=True).start()

    def _work(self, slot: _Slot) -> None:
        while (item := self._queue.get()) is not None:
            work, done, loop = item
            began = slot.since = self._clock()
            result, error = None, None
            try:
                result = work()
            except BaseException as caught:
                error = caught
            slot.since = None
            seconds = self._clock() - began
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
                loop.call_soon_threadsafe(self._done, done, result, error, seconds)
            del item, work, done, result, error  # what waits in a queue holds nothing alive
            if slot.aside:
                break  # a fresh one has taken its place
        self._slots.remove(slot)

    def _done(self, done: Done, result: Any, error: BaseException | None, seconds: float) -> None:
        # Not in the thread: of the additions of two threads one could get lost.
        self._meters.commit_seconds.add(seconds)
        done(result, error)


class Lane:
    """One piece of work at a time, in the order of asking: a replica's writes."""

    def __init__(self) -> None:
        self._busy = False
        self._waiting: list[Callable[[], None]] = []

    def enter(self, begin: Callable[[], None]) -> None:
        """Calls `begin` once nobody else is inside: now, or in the turn in which the one before leaves."""
        if self._busy:
            self._waiting.append(begin)
        else:
            self._busy = True
            begin()

    async def entered(self) -> None:
        """Waits until nobody else is inside. One that is cancelled meanwhile is not inside."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def begin() -> None:
            if future.done():
                self.leave()
            else:
                future.set_result(None)

        self.enter(begin)
        try:
            await future
        except asyncio.CancelledError:
            if not future.cancelled():
                self.leave()  # its turn had come
            raise

    def leave(self) -> None:
        """Lets the next one in."""
        assert self._busy, "nobody is inside"
        if self._waiting:
            self._waiting.pop(0)()
        else:
            self._busy = False
