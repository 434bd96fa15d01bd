"""The operator's own endpoints: /livez, /readyz and /metrics.

Invariants:
  * Liveness asks whether the failover loop still turns, never whether the API server answers: a restart would not
    bring that back, and would forget the silence that was heard.
  * Readiness asks for a quorum read within D.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from fencekv.clock import Clock
from fencekv.exposition import CONTENT_TYPE

GRACE_SECONDS: Final = 6.0  # D by default


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What the probes ask; each is called at each request."""

    ticked_at: Callable[[], float]
    quorum_read_at: Callable[[], float]
    metrics: Callable[[], bytes]


def recent(clock: Clock, moment: float, *, started_at: float, within: float = GRACE_SECONDS) -> bool:
    """Whether a moment of our clock is recent; before the first one, the start counts."""
    return clock.now() - max(moment, started_at) < within


def application(health: Health, clock: Clock) -> web.Application:
    """The endpoints."""
    started_at = clock.now()

    async def livez(_: web.Request) -> web.Response:
        if recent(clock, health.ticked_at(), started_at=started_at):
            return web.Response(text="ok\n")
        return web.Response(status=500, text="the failover loop does not turn\n")

    async def readyz(_: web.Request) -> web.Response:
        # A reader that never read is not ready, however young it is.
        if health.quorum_read_at() > 0 and recent(clock, health.quorum_read_at(), started_at=0.0):
            return web.Response(text="ok\n")
        return web.Response(status=503, text="no quorum read lately\n")

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=health.metrics(), headers={"Content-Type": CONTENT_TYPE})

    app = web.Application()
    app.add_routes([web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    return app


async def serve(app: web.Application, *, port: int, host: str | None = None) -> None:
    """Serves until it is cancelled; `host` None: all addresses."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
