"""One HTTP request, sent exactly once, and what became of it. Shards forward with it, the SDK asks with it.

Invariants:
  * A request is sent at most once: nothing below repeats it, whatever its method.
  * `Refused` means that not a byte of it left; `Broken` that it may have been carried out.
  * An answer is read up to a bound.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import aiohttp
from yarl import URL

from fencekv.sending import CONNECT_SECONDS
from fencekv.sending import Broken as Broken  # noqa: PLC0414 (part of this module's interface)
from fencekv.sending import Refused as Refused  # noqa: PLC0414

ANSWER_BYTES_MAX: Final = 64 << 20
CONNECTIONS_MAX: Final = 512
PIECE_BYTES_MAX: Final = 256 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer, whatever its status."""

    status: int
    headers: Mapping[str, str]  # looked up without regard to case
    body: bytes


def make_session() -> aiohttp.ClientSession:
    """Connections for `send`. Close it when done."""
    connector = aiohttp.TCPConnector(limit=CONNECTIONS_MAX, keepalive_timeout=30)
    session = aiohttp.ClientSession(
        connector=connector, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
    )
    # aiohttp repeats a PUT or DELETE by itself when a kept connection breaks, and there is no public way to stop
    # it: a write that was carried out would be carried out again. tests/client/test_transport.py holds it.
    session._retry_connection = False
    return session


async def send(
    session: aiohttp.ClientSession,
    *,
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes = b"",
    timeout: float,
) -> Reply:
    """Sends a request once. `url` is taken as it is, already encoded.

    Raises:
        Refused: nothing was sent.
        Broken: it may have been carried out.
    """
    limits = aiohttp.ClientTimeout(total=timeout, sock_connect=min(CONNECT_SECONDS, timeout))
    try:
        async with session.request(
            method,
            URL(url, encoded=True),
            data=_payload(body),
            headers=headers,
            timeout=limits,
            allow_redirects=False,
        ) as response:
            received = await _read(response)
            return Reply(status=response.status, headers=response.headers, body=received)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL) as error:
        raise Refused(f"{method} {url}: {error}") from error
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        raise Broken(f"{method} {url}: {error!r}") from error


def _payload(body: bytes) -> bytes | io.BytesIO | None:
    # aiohttp writes bytes in one piece, which holds up the loop when they are many.
    return (io.BytesIO(body) if len(body) > PIECE_BYTES_MAX else body) or None


async def _read(response: aiohttp.ClientResponse) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := await response.content.readany():
        size += len(part)
        if size > ANSWER_BYTES_MAX:
            raise Broken(f"{response.url}: answer larger than {ANSWER_BYTES_MAX} bytes")
        parts.append(part)
    return b"".join(parts)
