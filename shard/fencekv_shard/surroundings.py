"""What all partitions of a shard share: its session, its disk, its network, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fencekv.clock import Clock
from fencekv_shard.executor import Executor
from fencekv_shard.links import Links
from fencekv_shard.memory import PodMemory
from fencekv_shard.meters import Meters
from fencekv_shard.owned import Rota
from fencekv_shard.session import SessionKeeper
from fencekv_shard.turns import Turns


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Given to each partition."""

    kube: Turns
    namespace: str
    clock: Clock
    session: SessionKeeper
    memory: PodMemory
    meters: Meters
    rota: Rota
    folder: Path
    executor: Executor
    new_id: Callable[[], str]
    links: Links
    begun: Callable[[str], None]  # this shard owns a partition, by UID, from here on
    spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
    on_fatal: Callable[[BaseException], None]
