"""A transaction as clients write it, in JSON or CBOR: read with an error that names what is wrong, and answered.

Invariants:
  * Unknown members are refused at every level: a misspelt condition must not silently be none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from fencekv.errors import Invalid, TooLarge
from fencekv.token import Version
from fencekv.wire import kind_of, value_of
from fencekv_shard import limits
from fencekv_shard.transaction import (
    Compare,
    Delete,
    DeleteResult,
    Get,
    GetResult,
    Operation,
    Put,
    Relation,
    Result,
    Target,
    Transaction,
)

_Word = TypeVar("_Word", Target, Relation)


def parse_transaction(document: object, *, idempotency_key: bytes) -> Transaction:
    """Reads `{"compare": […], "then": […], "else": […]}`; sizes and keys are checked by `validate`.

    Raises:
        Invalid: naming the member that does not fit.
        TooLarge: more operations than a transaction may have.
    """
    body = _object(document, "body", ("compare", "then", "else"))
    compare, then, otherwise = (_list(body.get(name, []), name) for name in ("compare", "then", "else"))
    count, limit = len(compare) + len(then) + len(otherwise), limits.TXN_OPERATIONS_MAX
    if count > limit:
        raise TooLarge(f"txn: {count} operations, at most {limit}", field="txn", limit=limit)
    return Transaction(
        compare=tuple(_compare(item, f"compare[{at}]") for at, item in enumerate(compare)),
        then=tuple(_operation(item, f"then[{at}]") for at, item in enumerate(then)),
        otherwise=tuple(_operation(item, f"else[{at}]") for at, item in enumerate(otherwise)),
        idempotency_key=idempotency_key,
    )


def result_document(result: Result, version: Version | None) -> dict[str, Any]:
    """One operation's result; `version` is the transaction's own."""
    if isinstance(result, DeleteResult):
        return {"existed": result.existed}
    if not isinstance(result, GetResult):
        return {"version": str(version)}
    if result.value is None:
        return {"key": result.key, "found": False, "version": None}
    # A get after a put of the same transaction found what this transaction wrote.
    found = result.version or version
    return {"key": result.key, "found": True, "value": result.value, "version": str(found)}


def _compare(item: object, field: str) -> Compare:
    body = _object(item, field, ("key", "target", "op", "version", "value", "base64", "exists"))
    key = _text(body, "key", field)
    target = _word(body, "target", field, Target)
    relation = _word(body, "op", field, Relation)
    allowed = ("value", "base64") if target is Target.VALUE else (target.value,)
    for name in ("version", "value", "base64", "exists"):
        if name in body and name not in allowed:
            raise Invalid(f"{field}.{name}: does not go with target {target}", field=f"{field}.{name}")
    if target is Target.VALUE:
        return Compare(key, target, relation, value_of(body, field=field))
    if target is Target.VERSION:
        version = Version.parse(_text(body, "version", field), field=f"{field}.version")
        return Compare(key, target, relation, version)
    exists = body.get("exists")
    if not isinstance(exists, bool):
        raise Invalid(f"{field}.exists: want true or false, got {kind_of(exists)}", field=f"{field}.exists")
    if relation not in {Relation.EQUAL, Relation.UNEQUAL}:
        raise Invalid(f"{field}.op: exists knows == and != only", field=f"{field}.op")
    return Compare(key, target, relation, exists)


def _operation(item: object, field: str) -> Operation:
    body = _object(item, field, ("put", "delete", "get"))
    if len(body) != 1:
        raise Invalid(f"{field}: want one of put, delete, get", field=field)
    kind, inner = next(iter(body.items()))
    field = f"{field}.{kind}"
    if kind == "put":
        members = _object(inner, field, ("key", "value", "base64"))
        return Put(_text(members, "key", field), value_of(members, field=field))
    key = _text(_object(inner, field, ("key",)), "key", field)
    return Delete(key) if kind == "delete" else Get(key)


def _object(item: object, field: str, known: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(item, dict):
        raise Invalid(f"{field}: want an object, got {kind_of(item)}", field=field)
    for name in item:
        if name not in known:
            path = f"{field}.{name}" if field != "body" else str(name)
            raise Invalid(f"{path[:200]}: unknown, want one of {', '.join(known)}", field=path[:200])
    return item


def _list(item: object, field: str) -> Sequence[object]:
    if not isinstance(item, list):
        raise Invalid(f"{field}: want an array, got {kind_of(item)}", field=field)
    return item


def _text(body: Mapping[str, Any], name: str, field: str) -> str:
    if name not in body:
        raise Invalid(f"{field}.{name}: missing", field=f"{field}.{name}")
    value = body[name]
    if not isinstance(value, str):
        raise Invalid(f"{field}.{name}: want a text, got {kind_of(value)}", field=f"{field}.{name}")
    return value


def _word(body: Mapping[str, Any], name: str, field: str, words: type[_Word]) -> _Word:
    text = _text(body, name, field)
    try:
        return words(text)
    except ValueError as error:
        choice = ", ".join(words)
        raise Invalid(
            f"{field}.{name}: want one of {choice}, got {text[:64]!r}", field=f"{field}.{name}"
        ) from error
