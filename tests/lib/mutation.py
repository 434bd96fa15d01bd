"""Valid input, bent: the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Sequence

CBOR_PIECES: Sequence[bytes] = (
    b"\xf6",
    b"\xf5",
    b"\xff",
    b"\x80",
    b"\xa0",
    b"\x9f\xff",
    b"\xbf\xff",
    b"\x5f\x41a\xff",
    b"\xc0\x61a",
    b"\xc2\x41\x01",
    b"\xc4\x82\x1b\x7f\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\xd8\x1c\x81\xd8\x1d\x00",
    b"\xd8\x23\x65(a+)+",
    b"\xf9\x7e\x00",
    b"\xfb\x7f\xf0\x00\x00\x00\x00\x00\x00",
    b"\x18\x01",
    b"\x1b" + b"\xff" * 8,
    b"\x3b" + b"\xff" * 8,
    b"\x5b\x00\x00\x00\x7f\xff\xff\xff\xff",
    b"\x9b\x00\x00\x00\x7f\xff\xff\xff\xff",
    b"\xbb" + b"\xff" * 8,
    b"\x81" * 40,
    b"\xa1\x00" * 20,
    b"\xa2\x61a\x00\x61a\x00",
    b"\x62\xc3\x28",
    b"\x63\xed\xa0\x80",
    b"\x61\x00",
    b"\x00\x00\x00\x01",
    b"\x00\xf4\x24\x01",
)

HTTP_PIECES: Sequence[bytes] = (
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b"\x00",
    b"%",
    b"%00",
    b"%C3%28",
    b"%2F..%2F",
    b"?limit=-1",
    b"&cursor=AAAA",
    b"?prefix=a&prefix=b",
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 3\r\n",
    b"Content-Length: 99999999999999999999\r\n",
    b"Content-Encoding: gzip\r\n",
    b"Content-Type: application/cbor\r\n",
    b"Expect: 100-continue\r\n",
    b"Upgrade: websocket\r\nConnection: Upgrade\r\n",
    b"FenceKV-Epoch: 99999999999\r\n",
    b"FenceKV-Min-Token: 1.99999999999999999999\r\n",
    b"FenceKV-Consistency: cached\r\n",
    b"FenceKV-Unknown: 1\r\n",
    b"If-Match: *\r\n",
    b"If-None-Match: *\r\n",
    b"Idempotency-Key: \xff\xfe\r\n",
    b"A: " + b"a" * 20_000 + b"\r\n",
    b"HTTP/1.0",
    b"HTTP/9.9",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"PATCH ",
    b'{"a":' * 30,
    b'"\\ud800"',
    b"1e999",
)


def mutate(rng: random.Random, data: bytes, pieces: Sequence[bytes]) -> bytes:
    """Bends `data` in a few places, or in none."""
    for _ in range(rng.choice((0, 1, 1, 1, 1, 2, 3, 6))):
        data = _once(rng, data, pieces)
    return data


def _once(rng: random.Random, data: bytes, pieces: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    to = min(len(data), at + rng.choice((1, 1, 1, 2, 4, 16)))
    kind = rng.randrange(7)
    if kind == 0 and at < len(data):
        return data[:at] + bytes((data[at] ^ 1 << rng.randrange(8),)) + data[at + 1 :]
    if kind == 1 and at < len(data):
        return data[:at] + bytes((rng.randrange(256),)) + data[at + 1 :]
    if kind == 2:
        return data[:at] + data[to:]
    if kind == 3:
        return data[:at] + data[at:to] * rng.choice((2, 3, 50)) + data[to:]
    if kind == 4:
        return data[:at] + rng.choice(pieces) + data[at:]
    if kind == 5:
        return data[:at] + rng.choice(pieces) + data[to:]
    return data[:at] if rng.randrange(4) == 0 else data[:at] + rng.randbytes(rng.randrange(1, 9)) + data[at:]
