"""`python -m bench.gateway`: puts to etcd's JSON gateway from aiohttp, tasks of one process.

What a Python program without a gRPC client does; the counterpart of `fencekv bench`, driven in the same way.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import time
from collections import Counter
from typing import Final

import aiohttp
import click

from bench.figures import percentile

REQUEST_SECONDS_MAX: Final = 15.0


class Puts:
    """The tasks of a run, and what they saw."""

    def __init__(self, *, address: str, keys: int, value: bytes, opens: float, closes: float) -> None:
        self._url = f"http://{address}/v3/kv/put"
        self._keys = keys
        self._value = base64.b64encode(value).decode()
        self._opens, self._closes = opens, closes
        self._sent = 0
        self.seconds: list[float] = []
        self.errors: Counter[str] = Counter()

    async def task(self, session: aiohttp.ClientSession) -> None:
        """Puts in a closed loop."""
        while (began := time.perf_counter()) < self._closes:
            key = f"bench-{self._sent % self._keys:08d}".encode()
            self._sent += 1
            body = {"key": base64.b64encode(key).decode(), "value": self._value}
            try:
                async with session.post(self._url, json=body) as answer:
                    answer.raise_for_status()
                    await answer.json()
            except (aiohttp.ClientError, TimeoutError) as error:
                self.errors[type(error).__name__] += 1
                continue
            ended = time.perf_counter()
            if self._opens <= ended < self._closes:
                self.seconds.append(ended - began)


async def run(address: str, tasks: int, seconds: float, warmup: float, keys: int, value_bytes: int) -> str:
    """A run; gives its document."""
    opens = time.perf_counter() + warmup
    value = bytes(number * 7 % 256 for number in range(value_bytes))
    puts = Puts(address=address, keys=keys, value=value, opens=opens, closes=opens + seconds)
    limits = aiohttp.TCPConnector(limit=tasks)
    timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS_MAX)
    async with aiohttp.ClientSession(connector=limits, timeout=timeout) as session:
        running = asyncio.gather(*(puts.task(session) for _ in range(tasks)))
        await asyncio.sleep(warmup)
        before = time.process_time()
        await running
        cpu = time.process_time() - before
    found = {f"p{share}": percentile(puts.seconds, share / 100) * 1e3 for share in (50, 99)}
    latency = {**found, "max": max(puts.seconds, default=0.0) * 1e3}
    return json.dumps(
        {
            "operations": len(puts.seconds),
            "per_second": len(puts.seconds) / seconds,
            "seconds": seconds,
            "latency_ms": {name: 0.0 if math.isnan(value) else value for name, value in latency.items()},
            "errors": dict(puts.errors),
            "cpu_seconds": cpu,
        }
    )


@click.command()
@click.option("--address", required=True)
@click.option("--tasks", default=64)
@click.option("--seconds", default=4.0)
@click.option("--warmup", default=1.0)
@click.option("--keys", default=10_000)
@click.option("--value-bytes", default=256)
def main(address: str, tasks: int, seconds: float, warmup: float, keys: int, value_bytes: int) -> None:
    """Puts to etcd's JSON gateway; one JSON document on standard output."""
    click.echo(asyncio.run(run(address, tasks, seconds, warmup, keys, value_bytes)))


if __name__ == "__main__":
    main()
