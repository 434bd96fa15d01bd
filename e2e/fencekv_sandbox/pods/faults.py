"""Faults that a test or a drill makes a pod suffer, and what it may look at.

Invariants:
  * A handle follows the pod's name: it always means the incarnation that is there at the call.
  * Only processes of that pod are signalled.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from . import processes
from .container import Container
from .kubelet import PodWorker


class NotRunning(Exception):
    """The pod has no process now."""


class PodHandle:
    """One pod of the runner, by name."""

    def __init__(self, name: str, find: Callable[[], PodWorker]) -> None:
        self.name = name
        self._find = find

    @property
    def uid(self) -> str:
        """UID of the incarnation that is there now."""
        return self._find().uid

    @property
    def ip(self) -> str:
        """Its address."""
        return self._find().address.ip

    @property
    def volume(self) -> Path:
        """The folder of its first claim."""
        worker = self._find()
        return worker.folders.volume(min(worker.claims))

    @property
    def log(self) -> Path:
        """The log of its current or last container."""
        worker = self._find()
        if worker.number is None:
            raise NotRunning(f"{self.name}: nothing was started yet")
        return worker.folders.log(worker.number)

    @property
    def is_running(self) -> bool:
        """Whether it has a container with a living first process."""
        container = self._find().container
        return container is not None and container.exit_status is None

    def pids(self) -> list[int]:
        """Its living processes, the supervisor first."""
        return self._container().pids()

    @property
    def supervisor(self) -> int:
        """The first process."""
        return self._container().pid

    def children(self) -> list[int]:
        """Its living processes but the first."""
        supervisor = self.supervisor
        return [pid for pid in self.pids() if pid != supervisor]

    def kill(self, what: Literal["child", "supervisor", "all"] = "all") -> list[int]:
        """SIGKILL to the supervisor's children, to the supervisor, or to all; says whom it met."""
        chosen = {"child": self.children, "supervisor": lambda: [self.supervisor], "all": self.pids}[what]()
        processes.send(chosen, signal.SIGKILL)
        return chosen

    def freeze(self) -> None:
        """SIGSTOP to all of its processes."""
        processes.send(self.pids(), signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT to all of its processes."""
        processes.send(self.pids(), signal.SIGCONT)

    async def lose_volume(self) -> None:
        """Ends the container and empties its volumes before the next one starts; returns when that one has."""
        worker = self._find()
        before = worker.container
        worker.lose_volume_next = True
        if before is not None:
            before.signal_all(signal.SIGKILL)
        while worker.lose_volume_next or worker.container in (None, before):  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    def run_beside(self, command: Sequence[str] = (), *, environment: dict[str, str] | None = None) -> Container:
        """Starts a second container on the same folder with the same environment; the caller ends it."""
        worker = self._find()
        if worker.launch is None:
            raise NotRunning(f"{self.name}: nothing was started yet")
        launch = replace(
            worker.launch,
            container=f"{worker.launch.container}-beside",
            command=list(command) or worker.launch.command,
            environment={**worker.launch.environment, **(environment or {})},
            log=worker.folders.logs / "beside.log",
        )
        return Container(launch, on_exit=lambda: None)

    def _container(self) -> Container:
        container = self._find().container
        if container is None:
            raise NotRunning(f"{self.name} has no process now")
        return container
