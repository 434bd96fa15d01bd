"""Frames, the protocol for programs: messages to bytes, and a stream of bytes to the bodies of frames. Pure.

Invariants:
  * A message has one encoding; `frame_reader` accepts that one and no other.
  * A splitter holds one frame at most, of a length that it has checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from struct import Struct
from typing import Any, Final

from fencekv import codec
from fencekv import messages as m
from fencekv.messages import Malformed
from fencekv.operations import RELATIONS, TARGETS, Delete, Operation, Put
from fencekv.token import Token, Version

_LENGTH: Final = Struct(">I")
HEAD_BYTES: Final = 4


class Splitter:
    """Cuts a stream of bytes into the bodies of frames."""

    def __init__(self, *, frame_bytes_max: int = m.FRAME_BYTES_MAX) -> None:
        self._most = frame_bytes_max
        self._rest = bytearray()
        self._want = HEAD_BYTES  # bytes that `_rest` must have before there is anything to do

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Gives the bodies that `data` completes. Take them all: what is not taken is lost.

        Raises:
            Malformed: a length is out of bounds; the bodies before it were given.
        """
        rest = self._rest
        if rest:
            rest += data
            if len(rest) < self._want:
                return
            data = bytes(rest)
            rest.clear()
        at, size = 0, len(data)
        while size - at >= HEAD_BYTES:
            length: int = _LENGTH.unpack_from(data, at)[0]
            if not 0 < length <= self._most:
                raise Malformed(f"frame: {length} bytes, want 1 to {self._most}")
            stop = at + HEAD_BYTES + length
            if stop > size:
                self._want = HEAD_BYTES + length
                break
            yield data[at + HEAD_BYTES : stop]
            at = stop
        else:
            self._want = HEAD_BYTES
        if at < size:
            rest += memoryview(data)[at:]


# -- to bytes


def encode(message: m.ClientMessage | m.ShardMessage) -> bytes:
    """The frame of a message, its length included."""
    body = codec.encode(_FORMS[type(message)](message))
    return _LENGTH.pack(len(body)) + body


def _hello(message: m.Hello) -> list[Any]:
    return [0, m.PROTOCOL, list(message.versions), message.namespace, message.name]


def _welcome(message: m.Welcome) -> list[Any]:
    limits = message.limits
    named = {
        "frameBytes": limits.frame_bytes,
        "inFlight": limits.in_flight,
        "idleSeconds": limits.idle_seconds,
    }
    return [0, m.PROTOCOL, message.version, message.pod, named]


def _goodbye(message: m.Goodbye) -> list[Any]:
    last = [] if message.last is None else [message.last]
    return [0, "goodbye", message.reason, *last]


def _start(operation: int, message: m.Request) -> list[Any]:
    options = message.options
    given = None
    if options is not None:
        given = [
            options.consistency,
            options.durability,
            _pair(options.min_token),
            options.epoch,
            options.idempotency_key,
            options.forwarded,
        ]
    return [message.number, operation, message.table, given]


def _one_key(operation: int, message: m.Get | m.Put | m.Delete) -> list[Any]:
    if not isinstance(message.key, str):
        raise TypeError("the key is no text")
    return [*_start(operation, message), message.key]


def _put(message: m.Put) -> list[Any]:
    if not isinstance(message.value, bytes):
        raise TypeError("the value is no bytes")
    return [*_one_key(m.PUT, message), message.value, _condition(message.condition)]


def _txn(message: m.Txn) -> list[Any]:
    compare = [
        [part.key, TARGETS.index(part.target), RELATIONS.index(part.op), _operand(part.operand)]
        for part in message.compare
    ]
    then, otherwise = ([_part(part) for part in side] for side in (message.then, message.otherwise))
    return [*_start(m.TXN, message), compare, then, otherwise]


def _list(message: m.List) -> list[Any]:
    page = [message.start, message.end, message.limit, message.cursor, message.partition]
    return [*_start(m.LIST, message), *page]


def _about(message: m.Success) -> list[Any]:
    return [message.number, 0, message.partition, _pair(message.token), message.epoch]


def _committed(message: m.Committed) -> list[Any]:
    results = [_done(result) for result in message.results]
    return [*_about(message), message.succeeded, results, _pair(message.version), message.durability]


def _listed(message: m.Listed) -> list[Any]:
    items = [[item.key, item.value, _pair(item.version)] for item in message.items]
    tokens = {partition: _pair(token) for partition, token in message.tokens.items()}
    return [*_about(message), items, message.cursor, tokens, message.seq]


def _routes(message: m.Routes) -> list[Any]:
    partitions = [[*entry[:5], _pair(entry.token)] for entry in message.partitions]
    return [*_about(message), dict(message.partitioning), partitions]


def _refusal(message: m.Refusal) -> list[Any]:
    head = [message.number, 1, message.name, message.status, message.detail]
    return [*head, message.partition, _pair(message.token), message.epoch, dict(message.extra)]


_FORMS: Final[Mapping[type, Callable[[Any], list[Any]]]] = {
    m.Hello: _hello,
    m.Get: lambda message: _one_key(m.GET, message),
    m.Put: _put,
    m.Delete: lambda message: [*_one_key(m.DELETE, message), _condition(message.condition)],
    m.Txn: _txn,
    m.List: _list,
    m.History: lambda message: [*_start(m.HISTORY, message), message.key, message.limit, message.cursor],
    m.Route: lambda message: [*_start(m.ROUTE, message), message.key],
    m.Cancel: lambda message: [0, "cancel", message.number],
    m.Ping: lambda message: [0, "ping", message.number],
    m.Pong: lambda message: [0, "pong", message.number],
    m.Goodbye: _goodbye,
    m.Welcome: _welcome,
    m.Got: lambda message: [*_about(message), message.value, _pair(message.version)],
    m.Written: lambda message: [*_about(message), _pair(message.version), message.durability],
    m.Deleted: lambda message: [*_about(message), message.existed, _pair(message.version), message.durability],
    m.Committed: _committed,
    m.Listed: _listed,
    m.Changes: lambda message: [
        *_about(message),
        [[_pair(item.version), item.value] for item in message.items],
        message.cursor,
    ],
    m.Routes: _routes,
    m.Refusal: _refusal,
}


MESSAGES: Final = frozenset(_FORMS)


def _pair(numbered: Token | Version | None) -> list[int] | None:
    return None if numbered is None else [numbered.epoch, numbered.number]


def _condition(condition: m.Condition) -> Any:
    return condition if condition is None or condition is True else _pair(condition)


def _operand(operand: Version | bytes | bool) -> Any:
    return _pair(operand) if isinstance(operand, Version) else operand


def _part(part: Operation) -> list[Any]:
    if isinstance(part, Put):
        return [0, part.key, part.value]
    return [1 if isinstance(part, Delete) else 2, part.key]


def _done(result: m.Done) -> list[Any]:
    if isinstance(result, m.GetDone):
        return [2, result.value, _pair(result.version)]
    return [1, result.existed] if isinstance(result, m.DeleteDone) else [0]
