"""The disks of a simulation: real LMDB files, an executor in virtual time, and what a crash does to open files.

A commit is real; what is simulated is when. The time before and after it is drawn from seeded chance, so that a
pause or a crash can fall between the fsync and everything that follows from it. A crash keeps what was committed
and closes what the process had open, as an operating system would.

Invariants:
  * A dead process writes nothing.
  * Whatever a process opened is closed exactly once: by itself, or by its death.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final
from unittest import mock

from storage import outcome

from fencekv_shard.base import Base, Fold
from fencekv_shard.executor import Done, Work
from fencekv_shard.folder import Lock
from fencekv_shard.memory import PodMemory
from fencekv_shard.state import State
from fencekv_shard.store import DiskFull, Prepared, Store
from simulation.loop import SimulationLoop, current_process, require_alive

# What closes each kind of thing that a process can have open on a disk.
_CLOSERS: Final[tuple[tuple[type[Any], str], ...]] = (
    (Store, "close"),
    (Lock, "release"),
    (PodMemory, "close"),
)


@dataclass(slots=True, kw_only=True)
class Disks:
    """How the disks of all hosts behave. Times are seconds and of one commit."""

    before_max: float = 0.001  # until the fsync is done
    after_max: float = 0.001  # until the loop hears of it
    slow_chance: float = 0.02
    slow_max: float = 0.3
    full: set[str] = field(default_factory=set)  # hosts without room
    failing: dict[str, bool] = field(default_factory=dict)  # hosts whose next commit fails; True: once done
    folded: dict[str, dict[int, bytes]] = field(default_factory=dict)  # by partition: what any replica folded
    after_commit: dict[str, Callable[[], None]] = field(default_factory=dict)  # once, by process


class SimExecutor:
    """`fencekv_shard.executor.Executor`: inline, with time passing before and after."""

    def __init__(self, loop: SimulationLoop, name: str, disks: Disks) -> None:
        self._chance = loop.rng(f"disk-{name}")
        self._disks = disks

    def submit(self, work: Work, done: Done) -> None:
        """Does the work at one moment of virtual time."""
        asyncio.get_running_loop().create_task(self._run(work, done))

    async def _run(self, work: Work, done: Done) -> None:
        require_alive()
        await asyncio.sleep(self._seconds(self._disks.before_max))
        require_alive()
        result, failed = outcome(work)
        process = current_process()
        if process is not None and process.name in self._disks.after_commit:
            self._disks.after_commit.pop(process.name)()
        await asyncio.sleep(self._seconds(self._disks.after_max))
        done(result, failed)

    def _seconds(self, longest: float) -> float:
        if self._chance.random() < self._disks.slow_chance:
            longest = self._disks.slow_max
        return self._chance.random() * longest


@contextlib.contextmanager
def simulated(disks: Disks) -> Iterator[None]:
    """While this is entered, disks fail as `disks` says, and what a process opens is closed at its death."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_failing(disks))
        stack.enter_context(_remembering(disks))
        for kind, closer in _CLOSERS:
            stack.enter_context(_tracked(kind, closer))
        yield


@contextlib.contextmanager
def _failing(disks: Disks) -> Iterator[None]:
    begin, commit = Store._begin, Prepared.commit

    def cramped(self: Store, *args: Any, **named: Any) -> Prepared:
        if _host() in disks.full:
            raise DiskFull("no room")
        return begin(self, *args, **named)

    def troubled(self: Prepared) -> State:
        host = _host()
        if host in disks.failing:
            if disks.failing.pop(host):
                commit(self)
            raise self._store._fail(OSError(errno.EIO, "input/output error"))
        return commit(self)

    with mock.patch.object(Store, "_begin", cramped), mock.patch.object(Prepared, "commit", troubled):
        yield


@contextlib.contextmanager
def _remembering(disks: Disks) -> Iterator[None]:
    """What leaves a journal is remembered for the checks; whoever else trims it must have had the same.

    It is remembered as soon as it is part of a base: a replica can be seeded with that, in the place of one that
    had not trimmed it yet.
    """
    fold = Store.fold

    def remembered(self: Store, step: Fold, base: Base) -> Prepared:
        known, first = disks.folded.setdefault(self.path.name, {}), self.base.seq + 1
        for seq, record in enumerate(
            self.records(first, count_max=base.seq + 1 - first, bytes_max=1 << 40), first
        ):
            assert known.setdefault(seq, record) == record, f"seq {seq} was folded as something else before"
        return fold(self, step, base)

    with mock.patch.object(Store, "fold", remembered):
        yield


def _host() -> str:
    process = current_process()
    return process.host if process is not None else ""


@contextlib.contextmanager
def _tracked(kind: type[Any], closer: str) -> Iterator[None]:
    make, close = kind.__init__, getattr(kind, closer)
    open_ones: dict[int, Any] = {}

    def made(self: Any, *args: Any, **named: Any) -> None:
        make(self, *args, **named)
        open_ones[id(self)] = self
        process = current_process()
        if process is not None:
            process.at_exit.append(lambda _status: closed(self))

    def closed(self: Any) -> None:
        if open_ones.pop(id(self), None) is not None:
            close(self)

    with mock.patch.object(kind, "__init__", made), mock.patch.object(kind, closer, closed):
        yield
    assert not open_ones, f"{kind.__name__} left open: {len(open_ones)}"
