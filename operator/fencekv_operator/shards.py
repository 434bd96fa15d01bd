"""How the operator talks to shards: their reports, and the one request that it makes of them.

Invariants:
  * Nothing here is proof: a shard that does not answer may live. No answer is `None` or False, never an error.
  * Every request ends within REQUEST_SECONDS.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

import aiohttp

from fencekv.codec import decode_json
from fencekv.errors import Invalid
from fencekv_operator.reports import MalformedReport, Report

REQUEST_SECONDS: Final = 1.0
REPORT_BYTES_MAX: Final = 64 * 1024 * 1024
CHAIN_BYTES_MAX: Final = 4096
CONNECTIONS_MAX: Final = 128


class ShardClient(Protocol):
    """What the failover loop asks of shards."""

    async def report(self, http_address: str) -> Report | None:
        """What the shard at `host:port` says of itself; None: no proper answer."""
        ...

    async def release(self, http_address: str, uid: str, epoch: int, target: str) -> bool:
        """Asks the owner to close `epoch` and release the partition to `target`; whether it agreed."""
        ...


class HttpShardClient:
    """`ShardClient` over HTTP. Close it when done."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()

    async def report(self, http_address: str) -> Report | None:
        """What the shard at `host:port` says of itself; None: no proper answer."""
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                async with self._client().get(f"http://{http_address}/peer/v1/report") as response:
                    if response.status != 200:
                        return None
                    raw = await response.content.read(REPORT_BYTES_MAX)
                    while not response.content.at_eof():
                        raw += await response.content.read(REPORT_BYTES_MAX)
                        if len(raw) > REPORT_BYTES_MAX:
                            return None
            return Report.parse(decode_json(raw, what="report"))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, Invalid, MalformedReport):
            return None

    async def release(self, http_address: str, uid: str, epoch: int, target: str) -> bool:
        """Asks the owner to close `epoch` and release the partition to `target`; whether it agreed."""
        body = {"uid": uid, "epoch": epoch, "target": target}
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                async with self._client().post(f"http://{http_address}/peer/v1/release", json=body) as response:
                    return response.status < 300
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return False

    async def chain(self, http_address: str, uid: str, seq: int) -> str | None:
        """The chain hash of a journal entry, in hex; None: no answer, or the shard does not have that entry."""
        query = {"uid": uid, "seq": str(seq)}
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                url = f"http://{http_address}/peer/v1/chain"
                async with self._client().get(url, params=query) as response:
                    if response.status != 200:
                        return None
                    document = decode_json(await response.content.read(CHAIN_BYTES_MAX), what="chain")
            return str(document["chain"])
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, Invalid, KeyError, TypeError):
            return None

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX))
        return self._session
