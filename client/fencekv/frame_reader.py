"""The bodies of frames, read into messages. Pure.

Invariants:
  * Exactly the bodies that `frames.encode` can make are accepted: what is read, encoded again, is the same.
  * Everything is checked here but the limits of operations (sizes of keys, say), which are answered as over HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from fencekv import codec
from fencekv import messages as m
from fencekv.errors import Invalid
from fencekv.messages import Malformed
from fencekv.operations import RELATIONS, TARGETS, Compare, Delete, Get, Operation, Put
from fencekv.token import NUMBER_MAX, Token, Version


def read_message(body: bytes) -> m.ClientMessage:
    """What a client said.

    Raises:
        Malformed: it breaks a rule of the protocol.
    """
    items = _decoded(body)
    number = _uint(items[0], "number")
    if number == 0:
        return _from_client(items)
    if len(items) < 4:
        raise Malformed("request: too short")
    reader = _REQUESTS.get(_uint(items[1], "operation"))
    if reader is None:
        raise Malformed(f"operation: {items[1]} is unknown")
    size, read = reader
    if len(items) != size:
        raise Malformed(f"request: {len(items)} elements, operation {items[1]} has {size}")
    return read(number, _text(items[2], "table"), _options(items[3]), items)


def read_answer(body: bytes, asked: Callable[[int], int | None]) -> m.ShardMessage | None:
    """What a shard said; None: it answers a request that nobody waits for.

    `asked` gives the operation of a request by its number, None if nobody waits for it.

    Raises:
        Malformed: it breaks a rule of the protocol.
    """
    items = _decoded(body)
    number = _uint(items[0], "number")
    if number == 0:
        return _from_shard(items)
    operation = asked(number)
    if operation is None:
        return None
    failed = _uint(items[1], "answer") if len(items) > 1 else 2
    if failed == 1 and len(items) == 9:
        return _read_refusal(number, *items[2:])
    size, read = _ANSWERS[operation]
    if failed or len(items) != size:
        raise Malformed(f"answer: {len(items)} elements, want {size}")
    head = number, _text(items[2], "partition"), _token(items[3]), _uint(items[4], "epoch")
    return read(head, *items[5:])


def _decoded(body: bytes) -> list[Any]:
    try:
        items = codec.decode(body, what="frame")
    except Invalid as error:
        raise Malformed(error.detail) from error
    if type(items) is not list or not items:
        raise Malformed("frame: want an array that is not empty")
    return items


def _from_client(items: list[Any]) -> m.ClientMessage:
    word = items[1] if len(items) > 1 else None
    if word == m.PROTOCOL and len(items) == 5:
        versions = [_uint(version, "versions") for version in _array(items[2], "versions")]
        if not 0 < len(versions) <= m.VERSIONS_MAX:
            raise Malformed(f"versions: {len(versions)}, want 1 to {m.VERSIONS_MAX}")
        name = _text(items[4], "name")
        if len(name.encode()) > m.NAME_BYTES_MAX:
            raise Malformed(f"name: longer than {m.NAME_BYTES_MAX} bytes")
        return m.Hello(tuple(versions), _text(items[3], "namespace"), name)
    if word == "cancel" and len(items) == 3:
        return m.Cancel(_uint(items[2], "cancel"))
    if word == "ping" and len(items) == 3:
        return m.Ping(_uint(items[2], "ping"))
    return _goodbye_of(items)


def _from_shard(items: list[Any]) -> m.ShardMessage:
    word = items[1] if len(items) > 1 else None
    if word == "pong" and len(items) == 3:
        return m.Pong(_uint(items[2], "pong"))
    if word == m.PROTOCOL and len(items) == 5:
        given = _map(items[4], "limits")
        if given.keys() != {"frameBytes", "inFlight", "idleSeconds"}:
            raise Malformed("limits: want frameBytes, inFlight, idleSeconds")
        limits = m.Limits(*(_uint(given[name], name) for name in ("frameBytes", "inFlight", "idleSeconds")))
        return m.Welcome(_uint(items[2], "version"), _text(items[3], "pod"), limits)
    return _goodbye_of(items)


def _goodbye_of(items: list[Any]) -> m.Goodbye:
    if len(items) not in {3, 4} or items[1] != "goodbye":
        raise Malformed("message: unknown")
    return m.Goodbye(_text(items[2], "reason"), _uint(items[3], "last") if len(items) == 4 else None)


# What stands behind the options begins at 4.


def _read_get(number: int, table: str, options: m.Options | None, items: list[Any]) -> m.Get:
    return m.Get(number, table, options, _text(items[4], "key"))


def _read_put(number: int, table: str, options: m.Options | None, items: list[Any]) -> m.Put:
    return m.Put(number, table, options, _text(items[4], "key"), _bytes(items[5]), _condition_of(items[6]))


def _read_delete(number: int, table: str, options: m.Options | None, items: list[Any]) -> m.Delete:
    return m.Delete(number, table, options, _text(items[4], "key"), _condition_of(items[5]))


def _read_txn(number: int, table: str, options: m.Options | None, items: list[Any]) -> m.Txn:
    conditions = [_compare_of(part) for part in _array(items[4], "compare")]
    then = [_part_of(part, "then") for part in _array(items[5], "then")]
    otherwise = [_part_of(part, "else") for part in _array(items[6], "else")]
    return m.Txn(number, table, options, conditions, then, otherwise)


def _read_list(number: int, table: str, options: m.Options | None, items: list[Any]) -> m.List:
    start, end, limit = _text(items[4], "start"), _text(items[5], "end"), _uint(items[6], "limit")
    cursor = _text(items[7], "cursor")
    which = None if items[8] is None else _uint(items[8], "partition")
    return m.List(number, table, options, start, end, limit, cursor, which)


def _read_history(number: int, table: str, options: m.Options | None, items: list[Any]) -> m.History:
    key, limit = _text(items[4], "key"), _uint(items[5], "limit")
    return m.History(number, table, options, key, limit, _text(items[6], "cursor"))


def _read_route(number: int, table: str, options: m.Options | None, items: list[Any]) -> m.Route:
    return m.Route(number, table, options, None if items[4] is None else _text(items[4], "key"))


_ReadRequest = Callable[[int, str, m.Options | None, list[Any]], m.Request]

# By operation: how many elements the whole array has, and who reads them.
_REQUESTS: Final[Mapping[int, tuple[int, _ReadRequest]]] = {
    m.GET: (5, _read_get),
    m.PUT: (7, _read_put),
    m.DELETE: (6, _read_delete),
    m.TXN: (7, _read_txn),
    m.LIST: (9, _read_list),
    m.HISTORY: (7, _read_history),
    m.ROUTE: (5, _read_route),
}


_Head = tuple[int, str, Token | None, int]  # number, partition, token, epoch


def _read_got(head: _Head, value: Any, version: Any) -> m.Got:
    return m.Got(*head, _bytes(value), _version(version))


def _read_written(head: _Head, version: Any, durability: Any) -> m.Written:
    return m.Written(*head, _version(version), _place(durability, m.DURABILITIES, "durability"))


def _read_deleted(head: _Head, existed: Any, version: Any, durability: Any) -> m.Deleted:
    under = _place(durability, m.DURABILITIES, "durability")
    return m.Deleted(*head, _bool(existed, "existed"), _version_or_none(version), under)


def _read_committed(head: _Head, succeeded: Any, results: Any, version: Any, durability: Any) -> m.Committed:
    done = [_done_of(result) for result in _array(results, "results")]
    under = _place(durability, m.DURABILITIES, "durability")
    return m.Committed(*head, _bool(succeeded, "succeeded"), done, _version_or_none(version), under)


def _read_listed(head: _Head, items: Any, cursor: Any, tokens: Any, seq: Any) -> m.Listed:
    entries = []
    for item in _array(items, "items"):
        key, value, version = _sized(item, 3, "items")
        entries.append(m.Item(_text(key, "key"), _bytes(value), _version(version)))
    known = {
        _text(name, "tokens"): _pair_of(Token, token, "tokens") for name, token in _map(tokens, "tokens").items()
    }
    return m.Listed(*head, entries, _text(cursor, "cursor"), known, None if seq is None else _uint(seq, "seq"))


def _read_changes(head: _Head, items: Any, cursor: Any) -> m.Changes:
    changes = []
    for item in _array(items, "items"):
        version, value = _sized(item, 2, "items")
        changes.append(m.Change(_version(version), None if value is None else _bytes(value)))
    return m.Changes(*head, changes, _text(cursor, "cursor"))


def _read_routes(head: _Head, partitioning: Any, partitions: Any) -> m.Routes:
    located = []
    for item in _array(partitions, "partitions"):
        name, index, epoch, owner, http, token = _sized(item, 6, "partitions")
        place = _text(name, "partition"), _uint(index, "index"), _uint(epoch, "epoch")
        located.append(m.Located(*place, _text(owner, "owner"), _text(http, "http"), _token(token)))
    return m.Routes(*head, _map(partitioning, "partitioning"), located)


def _read_refusal(number: int, name: Any, status: Any, detail: Any, *about: Any) -> m.Refusal:
    partition, token, epoch, extra = about
    what = _text(name, "name"), _uint(status, "status"), _text(detail, "detail")
    return m.Refusal(
        number, *what, _text(partition, "partition"), _token(token), _uint(epoch, "epoch"), _map(extra, "extra")
    )


_ANSWERS: Final[Mapping[int, tuple[int, Callable[..., m.Answer]]]] = {
    m.GET: (7, _read_got),
    m.PUT: (7, _read_written),
    m.DELETE: (8, _read_deleted),
    m.TXN: (9, _read_committed),
    m.LIST: (9, _read_listed),
    m.HISTORY: (7, _read_changes),
    m.ROUTE: (7, _read_routes),
}


def _options(given: Any) -> m.Options | None:
    if given is None:
        return None
    consistency, durability, token, epoch, key, forwarded = _sized(given, 6, "options")
    return m.Options(
        None if consistency is None else _place(consistency, m.CONSISTENCIES, "consistency"),
        None if durability is None else _place(durability, m.DURABILITIES, "durability"),
        _token(token),
        None if epoch is None else _uint(epoch, "epoch"),
        None if key is None else _text(key, "idempotency key"),
        None if forwarded is None else _text(forwarded, "forwarded"),
    )


def _condition_of(given: Any) -> m.Condition:
    return given if given is None or given is True else _pair_of(Version, given, "condition")


def _compare_of(given: Any) -> Compare:
    key, target, relation, operand = _sized(given, 4, "compare")
    kind = TARGETS[_place(target, TARGETS, "target")]
    read: Version | bytes | bool
    if kind == "version":
        read = _pair_of(Version, operand, "operand")
    else:
        read = _bytes(operand) if kind == "value" else _bool(operand, "operand")
    return Compare(_text(key, "key"), kind, RELATIONS[_place(relation, RELATIONS, "relation")], read)


def _part_of(given: Any, name: str) -> Operation:
    part = _array(given, name)
    kind = _uint(part[0], name) if part else 3
    if kind == 0 and len(part) == 3:
        return Put(_text(part[1], "key"), _bytes(part[2]))
    if kind in {1, 2} and len(part) == 2:
        return Delete(_text(part[1], "key")) if kind == 1 else Get(_text(part[1], "key"))
    raise Malformed(f"{name}: no such operation")


def _done_of(given: Any) -> m.Done:
    result = _array(given, "results")
    kind = _uint(result[0], "results") if result else 3
    if kind == 0 and len(result) == 1:
        return m.PutDone()
    if kind == 1 and len(result) == 2:
        return m.DeleteDone(_bool(result[1], "existed"))
    if kind == 2 and len(result) == 3:
        value = None if result[1] is None else _bytes(result[1])
        return m.GetDone(value, _version_or_none(result[2]))
    raise Malformed("results: no such result")


# -- single values. `type(…) is` because true is an int to Python, and not to the protocol.


def _uint(value: Any, field: str) -> int:
    if type(value) is not int or not 0 <= value <= NUMBER_MAX:
        raise Malformed(f"{field}: want a number from 0 to 2^63 - 1")
    return value


def _place(value: Any, known: tuple[str, ...], field: str) -> int:
    if type(value) is not int or not 0 <= value < len(known):
        raise Malformed(f"{field}: want a number from 0 to {len(known) - 1}")
    return value


def _text(value: Any, field: str) -> str:
    if type(value) is not str:
        raise Malformed(f"{field}: want a text")
    return value


def _bytes(value: Any) -> bytes:
    if type(value) is not bytes:
        raise Malformed("value: want bytes")
    return value


def _bool(value: Any, field: str) -> bool:
    if type(value) is not bool:
        raise Malformed(f"{field}: want true or false")
    return value


def _array(value: Any, field: str) -> list[Any]:
    if type(value) is not list:
        raise Malformed(f"{field}: want an array")
    return value


def _sized(value: Any, size: int, field: str) -> list[Any]:
    if type(value) is not list or len(value) != size:
        raise Malformed(f"{field}: want an array of {size}")
    return value


def _map(value: Any, field: str) -> dict[str, Any]:
    if type(value) is not dict or not _plain(value):
        raise Malformed(f"{field}: want a map from texts to plain values")
    return value


def _plain(value: Any) -> bool:
    kind = type(value)
    if kind is dict:
        return all(type(name) is str and _plain(member) for name, member in value.items())
    return all(map(_plain, value)) if kind is list else value is None or kind in {int, str, bytes, bool}


_Numbered = TypeVar("_Numbered", Token, Version)


def _pair_of(kind: type[_Numbered], value: Any, field: str) -> _Numbered:
    pair = _sized(value, 2, field)
    made: _Numbered = kind(_uint(pair[0], field), _uint(pair[1], field))
    return made


def _token(value: Any) -> Token | None:
    return None if value is None else _pair_of(Token, value, "token")


def _version(value: Any) -> Version:
    return _pair_of(Version, value, "version")


def _version_or_none(value: Any) -> Version | None:
    return None if value is None else _pair_of(Version, value, "version")
