"""Operators as processes of their own: started, killed, frozen, and never left behind."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from .pods.container import Container, Launch
from .pods.environment import INHERITED

GRACE_SECONDS_MAX: Final = 3.0


class OperatorProcess:
    """One operator. It dies with this process."""

    def __init__(
        self, *, number: int, kubeconfig: Path, data: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.number = number
        self.log = data / "logs" / f"operator-{number}.log"
        data = data.resolve()
        self._folder = data
        self._launch = Launch(
            container=f"operator-{number}-{data}",
            command=[
                *(sys.executable, "-m", "fencekv_operator"),
                *("--kubeconfig", str(kubeconfig.resolve())),
                *("--identity", f"operator-{number}"),
                *("--probe-port", "0"),
            ],
            environment={
                **{name: os.environ[name] for name in INHERITED if name in os.environ},
                **(environment or {}),
            },
            folder=data,
            log=self.log,
        )
        self._container: Container | None = None  # None: it was never started

    @property
    def is_running(self) -> bool:
        """Whether it lives."""
        return self._container is not None and self._container.exit_status is None

    @property
    def exit_status(self) -> int | None:
        """How it ended; None: it lives, or was never started."""
        return self._container.exit_status if self._container else None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._container is not None, "the operator was not started"
        return self._container.pid

    def start(self) -> None:
        """Starts it; it must not run already."""
        assert not self.is_running, f"operator {self.number} runs already"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._container = Container(self._launch, on_exit=lambda: None)

    def freeze(self) -> None:
        """SIGSTOP."""
        assert self._container is not None
        self._container.signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        assert self._container is not None
        self._container.signal_all(signal.SIGCONT)

    async def kill(self) -> None:
        """SIGKILL, and waits for its end."""
        if self._container is not None:
            await self._container.kill()

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL if that does not do, and waits for its end."""
        if self._container is not None:
            await self._container.stop(GRACE_SECONDS_MAX)
