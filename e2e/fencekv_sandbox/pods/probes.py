"""Probes of a running container: startup, readiness, liveness; httpGet and tcpSocket.

Invariants:
  * A result changes only after as many answers of one kind in a row as the probe's thresholds say.
  * Nothing is asked of a container whose startup probe has not succeeded, but that probe.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from .addresses import Address
from .environment import NotProvided, probe_port

Object = dict[str, Any]

# A kubelet asks more often until the container is first ready.
FIRST_SECONDS_MAX: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A probe as it is carried out."""

    url: str | None  # None: a connection alone is asked for.
    host: str
    port: int
    headers: tuple[tuple[str, str], ...]
    delay_seconds: float
    period_seconds: float
    timeout_seconds: float
    failures: int
    successes: int


@dataclass(slots=True)
class Streak:
    """Counts answers of one kind in a row."""

    result: bool | None = None  # None: there is no result yet.
    count: int = 0
    last: bool | None = None  # None: there was no answer yet.

    def take(self, good: bool, probe: Probe) -> bool:
        """Notes an answer; true if the result changed by it."""
        self.count = self.count + 1 if good == self.last else 1
        self.last = good
        needed = probe.successes if good else probe.failures
        if self.count < needed or good == self.result:
            return False
        self.result = good
        return True


def parse(pod: Object, spec: Object, *, address: Address) -> Probe:
    """A probe of the pod's specification."""
    http, tcp = spec.get("httpGet"), spec.get("tcpSocket")
    if not http and not tcp:
        raise NotProvided("of probes only httpGet and tcpSocket are provided here")
    means: Object = http or tcp or {}
    port = probe_port(pod, means["port"], address=address)
    host = means.get("host") or address.ip
    scheme = means.get("scheme", "HTTP").lower()
    headers = tuple((h["name"], h["value"]) for h in means.get("httpHeaders") or [])
    return Probe(
        url=f"{scheme}://{host}:{port}{means.get('path') or '/'}" if http else None,
        host=host,
        port=port,
        headers=headers,
        delay_seconds=float(spec.get("initialDelaySeconds") or 0),
        period_seconds=float(spec.get("periodSeconds") or 10),
        timeout_seconds=float(spec.get("timeoutSeconds") or 1),
        failures=int(spec.get("failureThreshold") or 3),
        successes=int(spec.get("successThreshold") or 1),
    )


async def follow(
    probe: Probe,
    session: aiohttp.ClientSession,
    *,
    changed: Callable[[bool], None],
    once: bool = False,
    hurry: bool = False,
) -> None:
    """Asks again and again, tells each changed result.

    `once`: returns at the first good one. `hurry`: asks more often until then.
    """
    await asyncio.sleep(probe.delay_seconds)
    streak = Streak()
    while True:
        if streak.take(await ask(probe, session), probe):
            assert streak.result is not None
            hurry = hurry and not streak.result
            changed(streak.result)
            if once and streak.result:
                return
        period = probe.period_seconds
        await asyncio.sleep(min(period, FIRST_SECONDS_MAX) if hurry else period)


async def ask(probe: Probe, session: aiohttp.ClientSession) -> bool:
    """One question, one answer."""
    try:
        async with asyncio.timeout(probe.timeout_seconds):
            if probe.url is None:
                _, writer = await asyncio.open_connection(probe.host, probe.port)
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
                return True
            # A probe does not check certificates.
            async with session.get(
                probe.url, headers=list(probe.headers), allow_redirects=False, ssl=False
            ) as answer:
                return 200 <= answer.status < 400
    except (aiohttp.ClientError, OSError, TimeoutError):
        return False
