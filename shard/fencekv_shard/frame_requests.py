"""Requests that came as frames, read into calls. Pure.

What a frame's shape allows the codec has checked; here stand the limits and meanings that both wires share.

Invariants:
  * Every refusal names the field, and the limit where there is one, as HTTP's do.
  * A request means the same on both wires: the same call comes out.
"""

from __future__ import annotations

from typing import Final

from fencekv import messages
from fencekv.errors import Invalid, TooLarge
from fencekv.token import Version
from fencekv_shard import limits
from fencekv_shard.api import Consistency, Durability, Options
from fencekv_shard.calls import Call, Get, History, List, WhereIs, Write, WriteKind
from fencekv_shard.http_requests import EPOCH_MAX, NAME_CHARS_MAX, PARTITION_INDEX_MAX
from fencekv_shard.transaction import (
    Compare,
    Delete,
    Put,
    Relation,
    Target,
    Transaction,
    validate,
    validate_key,
)
from fencekv_shard.transaction import Get as GetOperation
from fencekv_shard.txn_document import transaction_of

NAMES: Final = {
    messages.Get: "get",
    messages.Put: "put",
    messages.Delete: "delete",
    messages.Txn: "txn",
    messages.List: "list",
    messages.History: "history",
    messages.Route: "route",
}
"""What requests are called in metrics: as on HTTP."""

_WRITES: Final = (messages.Put, messages.Delete, messages.Txn)
_PLAIN: Final = Options()
_CONSISTENCIES: Final = tuple(Consistency(name) for name in messages.CONSISTENCIES)
_DURABILITIES: Final = tuple(Durability(name) for name in messages.DURABILITIES)


def read(request: messages.Request, *, namespace: str) -> Call:
    """Reads a request of a connection that was opened for `namespace`.

    Raises:
        Invalid, TooLarge: naming the field, and the limit.
    """
    if not 0 < len(request.table) <= NAME_CHARS_MAX:
        limit = NAME_CHARS_MAX
        raise Invalid(f"table: want 1 to {limit} characters", status=404, field="table", limit=limit)
    asked, table = request.options, request.table
    options, forwarded, idempotency_key = _PLAIN, "", b""
    if asked is not None:
        options, forwarded = _options(asked), _forwarded(asked)
        idempotency_key = _idempotency_key(asked, writes=isinstance(request, _WRITES))
    if isinstance(request, messages.Put):
        key, value = request.key, request.value
        _check_key(key)
        size, limit = len(value), limits.VALUE_BYTES_MAX
        if size > limit:
            raise TooLarge(f"value: {size} bytes, at most {limit}", field="value", limit=limit)
        put = _one_write(Put(key, value), request.condition, idempotency_key)
        return Write(namespace, table, options, WriteKind.PUT, put, forwarded)
    if isinstance(request, messages.Get):
        _check_key(request.key)
        return Get(namespace, table, options, request.key, forwarded)
    if isinstance(request, messages.Delete):
        _check_key(request.key)
        delete = _one_write(Delete(request.key), request.condition, idempotency_key)
        return Write(namespace, table, options, WriteKind.DELETE, delete, forwarded)
    if isinstance(request, messages.Txn):
        transaction = transaction_of(
            request.compare, request.then, request.otherwise, idempotency_key=idempotency_key
        )
        validate(transaction)
        return Write(namespace, table, options, WriteKind.TXN, transaction, forwarded)
    return _other(request, namespace=namespace, options=options, forwarded=forwarded)


def _other(request: messages.Request, *, namespace: str, options: Options, forwarded: str) -> Call:
    if isinstance(request, messages.List):
        _check_list(request)
        return List(
            namespace=namespace,
            table=request.table,
            options=options,
            forwarded=forwarded,
            start=request.start,
            end=request.end,
            limit=_limit(request.limit),
            cursor=request.cursor,
            partition=request.partition,
        )
    if isinstance(request, messages.History):
        _check_key(request.key)
        return History(
            namespace=namespace,
            table=request.table,
            options=options,
            forwarded=forwarded,
            key=request.key,
            limit=_limit(request.limit),
            cursor=request.cursor,
        )
    assert isinstance(request, messages.Route), request
    if request.key is not None:
        _check_key(request.key)
    return WhereIs(namespace=namespace, table=request.table, options=options, forwarded=forwarded, key=request.key)


def _one_write(write: Put | Delete, condition: messages.Condition, idempotency_key: bytes) -> Transaction:
    if condition is None:
        return Transaction((), (write,), (), "", idempotency_key)
    if isinstance(condition, Version):
        compare = Compare(write.key, Target.VERSION, Relation.EQUAL, condition)
    else:
        compare = Compare(write.key, Target.EXISTS, Relation.EQUAL, False)
    # A condition that does not hold is answered with the version that stands there.
    return Transaction((compare,), (write,), (GetOperation(write.key),), "", idempotency_key)


def _check_key(key: str) -> None:
    # The codec has seen that it is UTF-8; nearly all keys need no closer look.
    short = 0 < len(key) <= limits.KEY_CHARS_SURELY_SHORT
    if not short or "\x00" in key or key.startswith(limits.KEY_RESERVED_PREFIX):
        validate_key(key)


def _options(asked: messages.Options) -> Options:
    epoch = asked.epoch
    if epoch is not None and epoch > EPOCH_MAX:
        raise Invalid(f"epoch: at most {EPOCH_MAX}", field="epoch", limit=EPOCH_MAX)
    return Options(
        consistency=Consistency.PRIMARY if asked.consistency is None else _CONSISTENCIES[asked.consistency],
        durability=None if asked.durability is None else _DURABILITIES[asked.durability],
        min_token=asked.min_token,
        epoch=epoch,
    )


def _forwarded(asked: messages.Options) -> str:
    pod = asked.forwarded
    if pod is not None and not 0 < len(pod) <= NAME_CHARS_MAX:
        limit = NAME_CHARS_MAX
        raise Invalid(f"forwarded by: want 1 to {limit} characters", field="forwarded", limit=limit)
    return pod or ""


def _idempotency_key(asked: messages.Options, *, writes: bool) -> bytes:
    text = asked.idempotency_key
    if text is None:
        return b""
    if not writes:
        raise Invalid("idempotency key: only for writes", field="idempotencyKey")
    key, limit = text.encode(), limits.IDEMPOTENCY_KEY_BYTES_MAX
    if not 0 < len(key) <= limit:
        raise Invalid(f"idempotency key: want 1 to {limit} bytes", field="idempotencyKey", limit=limit)
    return key


def _check_list(request: messages.List) -> None:
    for name, text in (("start", request.start), ("end", request.end)):
        if "\x00" in text:
            raise Invalid(f"{name}: has a NUL", field=name)
        size, limit = len(text.encode()), limits.KEY_BYTES_MAX
        if size > limit:
            raise TooLarge(f"{name}: {size} bytes, at most {limit}", field=name, limit=limit)
    if request.partition is not None and request.partition > PARTITION_INDEX_MAX:
        limit = PARTITION_INDEX_MAX
        raise Invalid(f"partition: at most {limit}", field="partition", limit=limit)


def _limit(asked: int) -> int:
    limit = limits.LIST_ITEMS_MAX
    if asked > limit:
        raise Invalid(f"limit: want a number from 1 to {limit}, or 0", field="limit", limit=limit)
    return asked or limits.LIST_ITEMS_DEFAULT
