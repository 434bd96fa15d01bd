"""Asks the shards for their reports, and takes them into what the failover loop knows.

Invariants:
  * A silent pod costs one time-out for all of its partitions, and after that hardly any until it answers again.
  * Only a report of the session that holds its pod's Lease, when the answer comes, counts.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable
from typing import Final

from fencekv.clock import Clock
from fencekv.leases import Session
from fencekv_operator.knowledge import Key, Knowledge, Reports
from fencekv_operator.phases import Phases
from fencekv_operator.reports import Report
from fencekv_operator.shards import ShardClient
from fencekv_operator.waiting import bounded

REPORT_SECONDS: Final = 1.0
MUTE_SECONDS: Final = 0.2  # what a round grants a shard that did not answer last time: the others are not to wait
REPORTS_AT_ONCE: Final = 64
# The rest after reports were asked for: of very many replicas they take much of what everybody waits for.
REST_SECONDS_PER_REPLICA: Final = 0.0003
REST_SECONDS_MAX: Final = 1.0


class Reporting:
    """The reports of all shards."""

    def __init__(
        self,
        *,
        shards: ShardClient,
        knows: Knowledge,
        phases: Phases,
        clock: Clock,
        on_change: Callable[[str, str], None],
        on_silence: Callable[[], None],
    ) -> None:
        """`on_change` gets the Kubernetes namespace and name of a partition that a report shows anew.

        `on_silence` is called when a shard begins to give no answer.
        """
        self._shards, self._knows, self._phases, self._clock = shards, knows, phases, clock
        self._on_change, self._on_silence = on_change, on_silence
        self._mute: set[tuple[str, Session]] = set()  # whose last report failed
        self._answered_at: dict[Key, float] = {}  # by pod

    async def fetch(self, pods: Iterable[Key], *, mute_seconds: float = REPORT_SECONDS) -> dict[Key, Report]:
        """Asks every one of these pods that has a live session; a silent one takes one time-out for all."""
        fresh: dict[Key, Report] = {}

        async def ask(key: Key) -> None:
            report = await self._ask(key, mute_seconds=mute_seconds)
            if report is not None:
                fresh[key] = report

        await bounded(REPORTS_AT_ONCE, (ask(key) for key in pods))
        return fresh

    async def poll(self) -> None:
        """Asks every pod that has not answered just now, for whatever reason it was asked."""
        now = self._clock.now()
        pods = [
            (namespace, pod)
            for namespace in self._knows.namespaces()
            for pod in sorted(self._knows.book(namespace).seen)
        ]
        rest, answered_at = rest_seconds(self._knows.reports), self._answered_at
        await self.fetch(key for key in pods if now >= answered_at.get(key, -math.inf) + rest)

    async def _ask(self, key: Key, *, mute_seconds: float) -> Report | None:
        book = self._knows.book(key[0])
        seen = book.live(key[1])
        if seen is None or not seen.lease.http:
            return None
        session = seen.lease.session
        try:
            async with asyncio.timeout(mute_seconds if (key[0], session) in self._mute else REPORT_SECONDS):
                report = await self._shards.report(seen.lease.http)
        except TimeoutError:
            report = None
        if report is None:
            if (key[0], session) not in self._mute:  # The first failure hints at something; the next ones not.
                self._mute.add((key[0], session))
                self._on_silence()
            return None
        self._mute.discard((key[0], session))
        now = book.live(key[1])
        if now is None or report.session != now.lease.session:
            return None
        self._answered_at[key] = self._clock.now()
        self._phases.reported(report.replicas, at=self._clock.now())
        for name in self._knows.reported(key[0], report):
            self._on_change(key[0], name)
        return report


def rest_seconds(reports: Reports) -> float:
    """How long to leave the shards alone after these reports."""
    replicas = sum(len(report.replicas) for report in reports.values())
    return min(REST_SECONDS_MAX, REST_SECONDS_PER_REPLICA * replicas)
