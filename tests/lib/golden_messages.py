"""One message of each kind, and of each form that a kind has; `python golden_messages.py` prints their vectors."""

from __future__ import annotations

import json
from typing import Any

from cbor2 import loads

from fencekv import frames
from fencekv import messages as m
from fencekv.operations import Compare, Delete, Get, Put
from fencekv.token import Token, Version

_OPTIONS = m.Options(1, 1, Token(3, 41), 3, "b3f1", "sample-0")

FROM_CLIENT: dict[str, m.ClientMessage] = {
    "hello": m.Hello((1,), "sample", "example 1.0"),
    "get": m.Get(1, "orders", None, "order-17"),
    "get with options": m.Get(2, "orders", _OPTIONS, "a/é"),
    "put": m.Put(3, "orders", None, "order-17", b"new", None),
    "put if absent": m.Put(4, "orders", None, "order-17", b"\x00\xff", True),
    "put if version": m.Put(5, "orders", m.Options(idempotency_key="k-5"), "order-17", b"", Version(3, 2**40)),
    "delete": m.Delete(6, "orders", None, "order-17", None),
    "delete if version": m.Delete(7, "orders", None, "order-17", Version(3, 41)),
    "txn": m.Txn(
        8,
        "orders",
        None,
        [
            Compare("a", "version", "<", Version(3, 41)),
            Compare("a", "value", "!=", b"x"),
            Compare("b", "exists", "==", False),
            Compare("a", "value", ">", b""),
        ],
        [Put("b", b"1"), Delete("c"), Get("b")],
        [Get("a")],
    ),
    "list": m.List(9, "orders", None, "order-", "order.", 20, "", None),
    "list of a partition": m.List(10, "orders", m.Options(consistency=1), "", "", 0, "Y3Vyc29y", 3),
    "history": m.History(11, "orders", None, "order-17", 0, ""),
    "route": m.Route(12, "orders", None, "order-17"),
    "route of all": m.Route(2**63 - 1, "orders", None, None),
    "cancel": m.Cancel(3),
    "ping": m.Ping(23),
    "goodbye of a client": m.Goodbye("done"),
}

FROM_SHARD: dict[str, m.ShardMessage] = {
    "welcome": m.Welcome(1, "sample-0", m.Limits()),
    "pong": m.Pong(23),
    "goodbye": m.Goodbye("frame: 0 bytes, want 1 to 16000000"),
    "goodbye of a drain": m.Goodbye("drain", 5),
}

# By name: the operation that was asked, and its answer.
ANSWERS: dict[str, tuple[int, m.Answer]] = {
    "got": (m.GET, m.Got(1, "orders-0", Token(3, 42), 3, b"new", Version(3, 41))),
    "written": (m.PUT, m.Written(3, "orders-0", Token(3, 42), 3, Version(3, 41), 0)),
    "deleted": (m.DELETE, m.Deleted(6, "orders-0", Token(3, 42), 3, True, Version(3, 41), 1)),
    "deleted nothing": (m.DELETE, m.Deleted(7, "orders-0", Token(3, 42), 3, False, None, 0)),
    "committed": (
        m.TXN,
        m.Committed(
            8,
            "orders-0",
            Token(3, 42),
            3,
            True,
            [m.PutDone(), m.DeleteDone(False), m.GetDone(b"1", None), m.GetDone(b"2", Version(3, 4))],
            Version(3, 41),
            0,
        ),
    ),
    "committed nothing": (
        m.TXN,
        m.Committed(8, "orders-0", Token(3, 42), 3, False, [m.GetDone(None, None)], None, 1),
    ),
    "listed": (
        m.LIST,
        m.Listed(
            9,
            "",
            None,
            0,
            [m.Item("order-17", b"new", Version(3, 41))],
            "Y3Vyc29y",
            {"orders-0": Token(3, 42), "orders-1": Token(7, 1)},
            None,
        ),
    ),
    "listed of a partition": (m.LIST, m.Listed(10, "orders-3", Token(3, 42), 3, [], "", {}, 41)),
    "changes": (
        m.HISTORY,
        m.Changes(
            11,
            "orders-0",
            Token(3, 42),
            3,
            [m.Change(Version(3, 41), None), m.Change(Version(3, 4), b"new")],
            "",
        ),
    ),
    "routes": (
        m.ROUTE,
        m.Routes(
            12,
            "",
            None,
            0,
            {"strategy": "range", "splitPoints": ["m"]},
            [
                m.Located("orders-0", 0, 3, "sample-0", "10.0.0.7:7443", Token(3, 42)),
                m.Located("orders-1", 1, 0, "", "", None),
            ],
        ),
    ),
    "refused": (
        m.PUT,
        m.Refusal(
            4,
            "Conflict",
            412,
            "key: the condition does not hold",
            "orders-0",
            None,
            3,
            {"field": "key", "version": "3.41", "limit": 1024},
        ),
    ),
    "not found": (m.GET, m.Refusal(1, "NotFound", 404, "key", "orders-0", Token(3, 42), 3, {"field": "key"})),
}


def vectors() -> list[dict[str, Any]]:
    """What golden_frames.json holds. `cbor` is RFC 8949's diagnostic notation, for people."""
    rows = [("client", name, None, message) for name, message in FROM_CLIENT.items()]
    rows += [("shard", name, None, message) for name, message in FROM_SHARD.items()]
    rows += [("shard", name, operation, answer) for name, (operation, answer) in ANSWERS.items()]
    found = []
    for side, name, operation, message in rows:
        frame = frames.encode(message)
        entry = {"name": name, "from": side, "cbor": _notation(loads(frame[4:])), "frame": frame.hex()}
        found.append(entry if operation is None else {**entry, "operation": operation})
    return found


def _notation(value: Any) -> str:
    if isinstance(value, bytes):
        return f"h'{value.hex()}'"
    if isinstance(value, list):
        return f"[{', '.join(_notation(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_notation(k)}: {_notation(v)}' for k, v in value.items())}}}"
    return json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    print(json.dumps(vectors(), indent=2, ensure_ascii=False))
