"""What a pod runner can be told, and what all of its parts share."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Final

import aiohttp

from fencekv.kube import Kube

from . import status
from .addresses import Addresses
from .backoff import Backoff

COMMANDS: Final[Mapping[str, Sequence[str]]] = MappingProxyType(
    {
        "fencekv-shard": (sys.executable, "-m", "fencekv_shard"),
        "python": (sys.executable,),
        "python3": (sys.executable,),
    }
)


class Ticker:
    """The kubelet's look at all containers, once a period: what happened is reported at the next tick."""

    def __init__(self, period_seconds: float) -> None:
        self.period_seconds = period_seconds
        self._loop = asyncio.get_running_loop()
        self._start = self._loop.time()

    async def next(self) -> None:
        """Waits for the next tick; all who wait share it."""
        passed = (self._loop.time() - self._start) % self.period_seconds
        await asyncio.sleep(self.period_seconds - passed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """How pods reach the API server."""

    host: str
    port: int
    authority: str  # PEM; empty: plain HTTP


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What every pod's worker uses."""

    kube: Kube
    api: Api
    data: Path
    ticker: Ticker
    addresses: Addresses
    backoff: Backoff
    commands: Mapping[str, Sequence[str]]
    inherited: Mapping[str, str]
    environment: Mapping[str, str] = field(default_factory=dict)  # set for every container
    runner: str  # mark of this runner's processes
    probes: aiohttp.ClientSession
    wall: Callable[[], datetime]

    def now(self) -> str:
        """The time as Kubernetes writes it."""
        return status.timestamp(self.wall())
