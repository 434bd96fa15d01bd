"""How a drill reaches the shards: through the SDK as any client does, and past it, one pod alone.

Invariants:
  * A probe is never carried out by another pod: it is marked as forwarded already, and forwarding goes one hop.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Final, cast

import aiohttp

from fencekv import wire
from fencekv.caller import Settings
from fencekv.client import FenceKV
from fencekv.linearizable import Outcome
from fencekv.token import Version
from fencekv_operator.drill_load import Table

REQUEST_SECONDS: Final = 15.0  # with all attempts: longer than most failovers, so that few outcomes stay unknown
PROBE_SECONDS: Final = 10.0
FORWARDED_BY: Final = "drill"
UNKNOWN_STATUS: Final = 504


@contextlib.asynccontextmanager
async def connect(kvns: str, *, kubeconfig: str, kube_namespace: str) -> AsyncIterator[Callable[[str], Table]]:
    """The tables of a KVNamespace, through the SDK."""
    client = FenceKV.connect(
        namespace=kvns,
        kubeconfig=kubeconfig,
        kube_namespace=kube_namespace,
        settings=Settings(timeout_seconds=REQUEST_SECONDS),
    )
    async with client:
        yield lambda name: cast(Table, client.table(name))


async def probe(
    http: str, path: str, value: bytes, *, epoch: int, key: str
) -> tuple[Outcome, tuple[int, int] | None]:
    """Asks the shard at `host:port` alone to set a key, as a client that has seen `epoch`.

    Gives the outcome, and the version if it was acknowledged. `path` is the key's, percent-encoded.
    """
    headers = {
        wire.FORWARDED: FORWARDED_BY,
        wire.EPOCH: str(epoch),
        wire.DURABILITY: "replicated",
        wire.IDEMPOTENCY_KEY: key,
    }
    timeout = aiohttp.ClientTimeout(total=PROBE_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.put(f"http://{http}{path}", data=value, headers=headers) as answer,
        ):
            raw = await answer.read()
            if answer.status == UNKNOWN_STATUS:
                return Outcome.UNKNOWN, None
            if answer.status >= 300:
                return Outcome.REFUSED, None
            version = Version.parse(json.loads(raw)["version"], field="version")
            return Outcome.OK, (version.epoch, version.number)
    except aiohttp.ClientConnectorError:
        return Outcome.REFUSED, None  # nothing was sent
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError):
        return Outcome.UNKNOWN, None
