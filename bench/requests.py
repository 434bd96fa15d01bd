"""The requests of a run, as bytes: the same keys and values for every system. Pure.

Invariants:
  * All requests of one kind have the same size, so that nobody is measured on lucky sizes.
  * The same seed gives the same keys and values in the same order, whatever the system.
"""

from __future__ import annotations

import base64
import json
import random
from functools import cache
from typing import Final, Literal

Kind = Literal["fencekv", "etcd"]

NAMESPACE: Final = "sample"
TABLE: Final = "bench"
KEYS: Final = 10_000
VALUE_BYTES: Final = 256


@cache
def build(kind: Kind, *, host: str, seed: int, keys: int = KEYS) -> tuple[bytes, ...]:
    """One put for each key, in the order in which they are sent."""
    chance = random.Random(seed)
    order = list(range(keys))
    chance.shuffle(order)
    make = _fencekv if kind == "fencekv" else _etcd
    return tuple(make(host, f"bench-{number:08d}", chance.randbytes(VALUE_BYTES)) for number in order)


def _fencekv(host: str, key: str, value: bytes) -> bytes:
    return _request("PUT", f"/v1/{NAMESPACE}/{TABLE}/keys/{key}", host, "application/octet-stream", value)


def _etcd(host: str, key: str, value: bytes) -> bytes:
    document = {"key": base64.b64encode(key.encode()).decode(), "value": base64.b64encode(value).decode()}
    body = json.dumps(document, separators=(",", ":")).encode()
    return _request("POST", "/v3/kv/put", host, "application/json", body)


def _request(method: str, path: str, host: str, content_type: str, body: bytes) -> bytes:
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
