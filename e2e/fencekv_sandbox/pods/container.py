"""One instance of a container: a process, everything that it started, and its log.

Invariants:
  * The first process's end is everyone's end, as in a PID namespace: the rest gets SIGKILL at once.
  * `ended` returns only when no process of the instance is alive and the first one is reaped.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from . import processes

_SHIM: Final = str(Path(__file__).with_name("child.py"))
_LOOK_SECONDS: Final = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What to start."""

    container: str  # its id; processes carry it as their mark
    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    log: Path


class Container:
    """A started instance. `on_exit` is called on the loop when the first process has ended."""

    def __init__(self, launch: Launch, *, on_exit: Callable[[], None]) -> None:
        self.launch = launch
        self._on_exit = on_exit
        self._exited = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._pipe = -1
        launch.log.parent.mkdir(parents=True, exist_ok=True)
        with launch.log.open("ab") as log:
            self._process = self._spawn(log.fileno())
        self.pid = self._process.pid
        self._watch()

    @property
    def exit_status(self) -> int | None:
        """Of the first process; negative: ended by that signal; None: it lives."""
        return self._process.returncode

    def pids(self) -> list[int]:
        """Every living process, the first one first."""
        return processes.members(leader=self.pid, container=self.launch.container)

    def signal_first(self, number: signal.Signals) -> None:
        """Signals the first process alone, as a runtime does with SIGTERM."""
        if self._process.returncode is None:
            processes.send([self.pid], number)

    def signal_all(self, number: signal.Signals) -> None:
        """Signals every process."""
        processes.send(self.pids(), number)

    async def ended(self) -> None:
        """Waits for the end of the first process, ends the rest and waits until nobody is left."""
        await self._exited.wait()
        while pids := self.pids():
            processes.send(pids, signal.SIGKILL)
            await asyncio.sleep(_LOOK_SECONDS)

    async def stop(self, grace_seconds: float) -> None:
        """SIGTERM to the first process, SIGKILL to all when the grace is over; waits until nobody is left."""
        self.signal_first(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                await self._exited.wait()
        await self.kill()

    async def kill(self) -> None:
        """Ends every process and waits until nobody is left."""
        self.signal_all(signal.SIGKILL)
        await self.ended()

    def _spawn(self, log: int) -> subprocess.Popen[bytes]:
        reading = -1
        if not sys.platform.startswith("linux"):
            reading, self._pipe = os.pipe()
        try:
            return subprocess.Popen(  # noqa: S603  (running what pods say is its purpose)
                [sys.executable, "-I", "-S", _SHIM, str(os.getpid()), str(reading), *self.launch.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**self.launch.environment, processes.CONTAINER_MARK: self.launch.container},
                cwd=self.launch.folder,
                start_new_session=True,
                pass_fds=[reading] if reading >= 0 else [],
            )
        finally:
            if reading >= 0:
                os.close(reading)

    def _watch(self) -> None:
        if hasattr(os, "pidfd_open"):
            descriptor = os.pidfd_open(self.pid)
            self._loop.add_reader(descriptor, self._readable, descriptor)
        else:
            threading.Thread(target=self._wait_in_thread, daemon=True).start()

    def _readable(self, descriptor: int) -> None:
        self._loop.remove_reader(descriptor)
        os.close(descriptor)
        self._process.wait()
        self._gone()

    def _wait_in_thread(self) -> None:
        self._process.wait()
        with contextlib.suppress(RuntimeError):  # the loop was closed in the meantime
            self._loop.call_soon_threadsafe(self._gone)

    def _gone(self) -> None:
        processes.send(self.pids(), signal.SIGKILL)
        if self._pipe >= 0:
            with contextlib.suppress(OSError):
                os.write(self._pipe, b".")
            os.close(self._pipe)
            self._pipe = -1
        self._exited.set()
        self._on_exit()
