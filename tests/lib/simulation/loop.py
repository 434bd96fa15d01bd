"""A deterministic asyncio event loop in virtual time, with several processes living in it.

A *process* is a set of handles: each handle's context carries the process that made it, and whatever it
schedules inherits that. So a process can be paused (its handles and timers queue up) and crashed (they are
dropped, and its tasks never run again) without the code inside knowing of it.

Invariants:
  * One seed, one order: time moves only by jumping to the next timer; equal times run in the order in which they
    were scheduled; all chance comes from `chance`; tasks and futures hash by serial number, so that sets of them
    are walked in the same order in every run.
  * There is no real input or output, and there are no threads.
  * A dead process has no effect on the world: its handles never run, and everything that reaches outside
    (network, API server, disk) asks `require_alive` first.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import heapq
import random
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Final, NoReturn, ParamSpec, TypeVar

from fencekv_shard.store import CommitFailed

P = ParamSpec("P")
T = TypeVar("T")

START_SECONDS: Final = 1_000.0
UNIX_START_SECONDS: Final = 1_700_000_000.0
STEPS_MAX: Final = 5_000_000
CLOSES_MAX: Final = 20
SIGKILL_STATUS: Final = 137


class ProcessDead(Exception):
    """Code of a crashed process reached for the world while it was being taken apart."""


class Deadlock(AssertionError):
    """Nothing is ready and no timer is set: the simulation would never go on."""


class Process:
    """One process of the simulated world. Made by `SimulationLoop.process`."""

    def __init__(self, loop: SimulationLoop, name: str, host: str) -> None:
        self.loop, self.name, self.host = loop, name, host
        self.alive = True
        self.status: int | None = None  # None: it has not ended.
        self.pauses = 0
        self.held: deque[asyncio.Handle] = deque()
        self.tasks: list[_Task] = []
        self.stall_chance = 0.0  # that a handle finds its process descheduled for a moment
        self.stall_seconds_max = 0.0
        self.at_exit: list[Callable[[int], None]] = []  # called once, outside the process
        self._context = contextvars.Context()
        self._context.run(PROCESS.set, self)

    def context(self) -> contextvars.Context:
        """A fresh context of this process, for handles made on its behalf."""
        return self._context.copy()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Runs a coroutine in this process."""
        return self.loop.create_task(work, context=self.context())

    def pause(self) -> None:
        """As SIGSTOP: nothing of it runs until `resume`. Pauses nest."""
        self.pauses += 1

    def resume(self) -> None:
        """As SIGCONT: what queued up runs, in order."""
        assert self.pauses > 0, self.name
        self.pauses -= 1
        if self.pauses == 0:
            self.loop.release(self.held)

    def crash(self) -> None:
        """As kill -9: nothing of it ever runs again."""
        self.exit(SIGKILL_STATUS)

    def exit(self, status: int) -> None:
        """Ends with a status. May be called from inside."""
        if not self.alive:
            return
        self.alive, self.status = False, status
        self.held.clear()
        self.loop.trace(f"exit {self.name} {status}", process=None)
        self.loop.call_soon(self._reap, status, context=contextvars.Context())

    def _reap(self, status: int) -> None:
        self.loop.note_unretrieved(self.tasks)
        for task in reversed(self.tasks):
            _close(task, self.context())
        self.tasks.clear()
        callbacks, self.at_exit = self.at_exit, []
        for callback in callbacks:
            callback(status)

    def adopt(self, task: _Task) -> None:
        """Remembers a task, to take it apart when the process dies."""
        self.tasks.append(task)
        if len(self.tasks) > 64 and len(self.tasks) & (len(self.tasks) - 1) == 0:
            self.tasks = [one for one in self.tasks if not one.done() or one._log_traceback]


PROCESS: Final[contextvars.ContextVar[Process]] = contextvars.ContextVar("PROCESS")


def current_process() -> Process | None:
    """The process that is running; None: the world itself."""
    return PROCESS.get(None)


def require_alive() -> None:
    """Guards every effect. Raises ProcessDead."""
    process = PROCESS.get(None)
    if process is not None and not process.alive:
        raise ProcessDead(process.name)


class _Task(asyncio.Task[Any]):
    """A task with a hash that is the same in every run."""

    def __init__(self, coro: Any, *, loop: SimulationLoop, context: contextvars.Context | None) -> None:
        self.serial = loop.next_serial()
        self.process = (context or contextvars.copy_context()).get(PROCESS)
        super().__init__(coro, loop=loop, context=context)

    def __hash__(self) -> int:
        return self.serial


class _Future(asyncio.Future[Any]):
    """A future with a hash that is the same in every run."""

    def __init__(self, *, loop: SimulationLoop) -> None:
        self.loop = loop
        self.serial = loop.next_serial()
        self.process = PROCESS.get(None)
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self.serial

    def set_result(self, result: Any) -> None:
        """Settles it, and notes when: whoever waits may be paused before it runs."""
        super().set_result(result)
        self.loop.settled[id(result)] = self.loop.time()


class SimulationLoop(asyncio.BaseEventLoop):
    """The loop. `run` it once; what is left in it is taken apart afterwards."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.chance = random.Random(f"fencekv-{seed}")
        self.lines: list[str] = []
        self.errors: list[str] = []  # exceptions that nobody retrieved
        self.settled: dict[int, float] = {}  # id of a future's result -> when it was set
        self.steps = 0
        self.processes: list[Process] = []
        self._now = START_SECONDS
        self._serial = 0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._waiting: deque[asyncio.Handle] = deque()
        self._root_tasks: list[_Task] = []
        self._generators: dict[int, Process | None] = {}
        self.set_task_factory(self._make_task)  # type: ignore[arg-type]
        self.set_exception_handler(self._note_error)

    # The world's side

    def process(self, name: str, *, host: str = "") -> Process:
        """A new process; `host` is where it stands in the network, its own name by default."""
        process = Process(self, name, host or name)
        self.processes.append(process)
        return process

    def rng(self, name: str) -> random.Random:
        """Chance of its own for a part of the world, so that parts do not shift each other's."""
        return random.Random(f"fencekv-{self.seed}-{name}")

    def trace(self, event: str, *, process: Process | None = None) -> None:
        """Appends a line to the trace."""
        owner = process or PROCESS.get(None)
        self.lines.append(f"{self._now - START_SECONDS:.6f} {owner.name if owner else '-'} {event}")

    def call_outside(self, delay: float, callback: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        """Schedules something that belongs to no process."""
        return self.call_at(self._now + delay, callback, *args, context=contextvars.Context())

    def settled_at(self, result: object) -> float:
        """When the future that gave this very object was settled."""
        return self.settled[id(result)]

    def release(self, held: deque[asyncio.Handle]) -> None:
        """Makes the handles of a resumed process run."""
        self._waiting.extend(held)
        held.clear()

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Runs to the end of `main`, without garbage collections that would come at times of their own."""
        with collection_off():
            try:
                return self.run_until_complete(main)
            finally:
                self._take_apart()
                self.close()

    def next_serial(self) -> int:
        """Numbers tasks, futures and timers."""
        self._serial += 1
        return self._serial

    # asyncio's side

    def time(self) -> float:
        """Virtual seconds."""
        return self._now

    def create_future(self) -> asyncio.Future[Any]:
        """A future of this loop."""
        return _Future(loop=self)

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Schedules by virtual time; equal times in the order of these calls."""
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, self.next_serial(), timer))
        return timer

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """Schedules for this very moment, after all that is ready."""
        handle = asyncio.Handle(callback, args, self, context)
        self._waiting.append(handle)
        return handle

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """There is one thread."""
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> NoReturn:  # type: ignore[override]
        """Refused: threads have an order of their own."""
        raise AssertionError(f"no threads under simulation: {func!r}")

    def _asyncgen_firstiter_hook(self, agen: AsyncGenerator[Any, Any]) -> None:
        """Remembers whose an asynchronous generator is."""
        self._generators[id(agen)] = PROCESS.get(None)

    def _asyncgen_finalizer_hook(self, agen: AsyncGenerator[Any, Any]) -> None:
        """Closes a forgotten generator in its own process; one of a dead process just ends."""
        process = self._generators.pop(id(agen), None)
        if process is not None and process.alive and not self.is_closed():
            process.spawn(_finish(agen))

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Nothing to count: cancelled timers are dropped when they come up."""

    def _run_once(self) -> None:
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        if not self._waiting:
            if not self._timers:
                raise Deadlock("nothing is ready and no timer is set")
            self._now = max(self._now, self._timers[0][0])
        while self._timers and self._timers[0][0] <= self._now:
            self._waiting.append(heapq.heappop(self._timers)[2])
        for _ in range(len(self._waiting)):
            handle = self._waiting.popleft()
            if not handle.cancelled():
                self._step(handle)

    def _step(self, handle: asyncio.Handle) -> None:
        self.steps += 1
        assert self.steps < STEPS_MAX, "the simulation does not end"
        process = handle._context.get(PROCESS)  # type: ignore[attr-defined]
        if process is not None:
            if not process.alive:
                return
            if process.pauses:
                process.held.append(handle)
                return
            if process.stall_chance and self.chance.random() < process.stall_chance:
                self._stall(process, handle)
                return
        try:
            handle._run()
        except SystemExit as error:
            if process is None:
                raise
            process.exit(error.code if isinstance(error.code, int) else 1)

    def _stall(self, process: Process, handle: asyncio.Handle) -> None:
        process.pause()
        process.held.append(handle)
        self.call_outside(self.chance.random() * process.stall_seconds_max, process.resume)

    def _make_task(
        self, loop: SimulationLoop, coro: Any, context: contextvars.Context | None = None
    ) -> asyncio.Task[Any]:
        task = _Task(coro, loop=loop, context=context)
        if task.process is None:
            self._root_tasks.append(task)
        elif task.process.alive:
            task.process.adopt(task)
        else:
            _close(task, task.process.context())
        return task

    def _note_error(self, _loop: object, context: dict[str, Any]) -> None:
        source = context.get("task") or context.get("future")
        process = getattr(source, "process", None)
        if process is not None and not process.alive:
            return
        error = context.get("exception")
        self.errors.append(f"{process.name if process else '-'}: {context.get('message')}: {error!r}")

    def note_unretrieved(self, tasks: list[_Task]) -> None:
        """Notes errors of ended tasks that nobody looked at; leaving the process is none, nor is its cause."""
        for task in tasks:
            if task.done() and task._log_traceback:
                task._log_traceback = False
                error = task.exception()
                if not isinstance(error, SystemExit | CommitFailed):
                    name = task.process.name if task.process else "-"
                    self.errors.append(f"{name}: {getattr(task.get_coro(), '__qualname__', '')}: {error!r}")

    def _take_apart(self) -> None:
        for process in self.processes:
            process.alive = False
            process._reap(0)  # also one that died so late that it was not reaped yet
        self.note_unretrieved(self._root_tasks)
        for task in reversed(self._root_tasks):
            _close(task, contextvars.Context())
        self._waiting.clear()
        self._timers.clear()


def _close(task: _Task, context: contextvars.Context) -> None:
    """Ends a task's coroutine where it stands; what its `finally` blocks want from the world is refused."""
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    coro = task.get_coro()
    if task.done() or coro is None:
        return
    for _ in range(CLOSES_MAX):
        try:
            context.run(coro.close)
        except RuntimeError:  # it awaits while it is being closed: once more
            continue
        except BaseException:  # a dead process has nobody to tell
            return
        return


async def _finish(agen: AsyncGenerator[Any, Any]) -> None:
    await agen.aclose()


def in_virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Of a test that waits, one that takes no time and sees exact ones: for code that lives on a loop alone."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        SimulationLoop(1).run(test(*args, **kwargs))

    return run


@contextlib.contextmanager
def collection_off() -> Iterator[None]:
    """Collects before and after, not within."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessClock:
    """`fencekv.clock.Clock` of one process: offset and drift are its own, and it goes on through pauses."""

    loop: SimulationLoop
    boot_offset: float = 0.0
    unix_offset: float = 0.0
    drift: float = 0.0  # seconds gained a second

    def now(self) -> float:
        """CLOCK_BOOTTIME."""
        return self.boot_offset + self._elapsed()

    def unix(self) -> float:
        """Wall clock."""
        return UNIX_START_SECONDS + self.unix_offset + self._elapsed()

    def unix_ns(self) -> int:
        """Wall clock in nanoseconds."""
        return int(self.unix() * 1e9)

    def _elapsed(self) -> float:
        return (self.loop.time() - START_SECONDS) * (1.0 + self.drift)
