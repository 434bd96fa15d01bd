"""The labels of the nodes that shards run on, for placement: read by name, and only where a table needs them.

Invariants:
  * What cannot be read is not known, and holds nothing up: rules that need it then give no new replica to its
    pods.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from typing import Final

from fencekv.clock import Clock
from fencekv.kube import Kube, KubeError, KubeNotFound, Resource, Unclear

log = logging.getLogger(__name__)

NODES: Final = Resource("", "v1", "nodes", "Node")
FRESH_SECONDS: Final = 60.0  # labels of a node may be so old
UNREADABLE_SECONDS: Final = 10.0  # between two attempts where the server refuses
READ_SECONDS: Final = 2.0
READS_AT_ONCE: Final = 8


class Nodes:
    """A small cache of labels, by the name of the node."""

    def __init__(self, kube: Kube, clock: Clock) -> None:
        self._kube, self._clock = kube, clock
        self._labels: dict[str, Mapping[str, str]] = {}
        self._due_at: dict[str, float] = {}

    @property
    def labels(self) -> Mapping[str, Mapping[str, str]]:
        """What is known."""
        return self._labels

    async def learn(self, names: Collection[str]) -> None:
        """Reads those of these nodes of which nothing fresh is known."""
        now = self._clock.now()
        due = sorted(name for name in set(names) - {""} if now >= self._due_at.get(name, now))
        gate = asyncio.Semaphore(READS_AT_ONCE)

        async def read(name: str) -> None:
            async with gate:
                await self._read(name)

        await asyncio.gather(*(read(name) for name in due))

    async def _read(self, name: str) -> None:
        pause = UNREADABLE_SECONDS
        try:
            node = await self._kube.get(NODES, None, name, timeout=READ_SECONDS)
            self._labels[name] = dict(node["metadata"].get("labels") or {})
            pause = FRESH_SECONDS
        except KubeNotFound:
            self._labels.pop(name, None)
        except (KubeError, Unclear) as error:
            log.warning("labels of node %s: %s", name, error)
        self._due_at[name] = self._clock.now() + pause
