"""The parts of a transaction, as callers of the SDK write them, and their form on the wire.

await table.txn(
    compare=[exists("order-17", False)],
    then=[Put("order-17", b"new")],
    otherwise=[Get("order-17")],
)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

from fencekv.errors import Invalid, TooLarge
from fencekv.token import Version
from fencekv.wire import kind_of, value_of

Target = Literal["version", "value", "exists"]
Relation = Literal["==", "!=", "<", ">"]
TARGETS: Final[tuple[Target, ...]] = ("version", "value", "exists")  # in frames: by their places
RELATIONS: Final[tuple[Relation, ...]] = ("==", "!=", "<", ">")
Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Put:
    """Set a key."""

    key: str
    value: bytes

    def document(self) -> Document:
        """Its form on the wire."""
        return {"put": {"key": self.key, "value": self.value}}


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a key."""

    key: str

    def document(self) -> Document:
        """Its form on the wire."""
        return {"delete": {"key": self.key}}


@dataclass(frozen=True, slots=True)
class Get:
    """Read a key, after the operations before it."""

    key: str

    def document(self) -> Document:
        """Its form on the wire."""
        return {"get": {"key": self.key}}


Operation = Put | Delete | Get


@dataclass(frozen=True, slots=True)
class Compare:
    """A condition on one key; `exists`, `at_version` and `has_value` make them."""

    key: str
    target: Target
    op: Relation
    operand: Version | bytes | bool

    def document(self) -> Document:
        """Its form on the wire."""
        operand = str(self.operand) if isinstance(self.operand, Version) else self.operand
        return {"key": self.key, "target": self.target, "op": self.op, self.target: operand}


def exists(key: str, expected: bool = True) -> Compare:
    """The key exists, or does not."""
    return Compare(key, "exists", "==", expected)


def at_version(key: str, version: Version, op: Relation = "==") -> Compare:
    """The key's version; an absent key is at 0.0."""
    return Compare(key, "version", op, version)


def has_value(key: str, value: bytes, op: Relation = "==") -> Compare:
    """The key's value, by the order of bytes."""
    return Compare(key, "value", op, value)


def txn_document(
    compare: Iterable[Compare], then: Iterable[Operation], otherwise: Iterable[Operation]
) -> Document:
    """A transaction's form on the wire."""
    return {
        "compare": [part.document() for part in compare],
        "then": [part.document() for part in then],
        "else": [part.document() for part in otherwise],
    }


@dataclass(frozen=True, slots=True)
class Transaction:
    """If all of `compare` hold, `then`, else `otherwise`."""

    compare: Sequence[Compare]
    then: Sequence[Operation]
    otherwise: Sequence[Operation]

    def key(self) -> str | None:
        """A key that it names; None: it names none."""
        parts = (*self.compare, *self.then, *self.otherwise)
        return parts[0].key if parts else None


def parse_txn(document: object, *, operations_max: int | None = None) -> Transaction:
    """Reads a transaction's form on the wire: `{"compare": […], "then": […], "else": […]}`.

    Unknown members are refused at every level: a misspelt condition must not silently be none. How many operations
    there may be a shard says (None: any number); how large they may be is not looked at here.

    Raises:
        Invalid: naming the member that does not fit.
        TooLarge: more operations than `operations_max`.
    """
    body = _object(document, "body", ("compare", "then", "else"))
    compare, then, otherwise = (_list(body.get(name, []), name) for name in ("compare", "then", "else"))
    count = len(compare) + len(then) + len(otherwise)
    if operations_max is not None and count > operations_max:
        raise TooLarge(f"txn: {count} operations, at most {operations_max}", field="txn", limit=operations_max)
    return Transaction(
        [_compare(item, f"compare[{at}]") for at, item in enumerate(compare)],
        [_operation(item, f"then[{at}]") for at, item in enumerate(then)],
        [_operation(item, f"else[{at}]") for at, item in enumerate(otherwise)],
    )


def _compare(item: object, field: str) -> Compare:
    body = _object(item, field, ("key", "target", "op", "version", "value", "base64", "exists"))
    key = _text(body, "key", field)
    target = cast(Target, _word(body, "target", field, TARGETS))
    relation = cast(Relation, _word(body, "op", field, RELATIONS))
    allowed = ("value", "base64") if target == "value" else (target,)
    for name in ("version", "value", "base64", "exists"):
        if name in body and name not in allowed:
            raise Invalid(f"{field}.{name}: does not go with target {target}", field=f"{field}.{name}")
    if target == "value":
        return Compare(key, target, relation, value_of(body, field=field))
    if target == "version":
        return Compare(
            key, target, relation, Version.parse(_text(body, "version", field), field=f"{field}.version")
        )
    expected = body.get("exists")
    if not isinstance(expected, bool):
        raise Invalid(f"{field}.exists: want true or false, got {kind_of(expected)}", field=f"{field}.exists")
    if relation not in {"==", "!="}:
        raise Invalid(f"{field}.op: exists knows == and != only", field=f"{field}.op")
    return Compare(key, target, relation, expected)


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
    if not isinstance(item, Mapping):
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


def _word(body: Mapping[str, Any], name: str, field: str, words: Sequence[str]) -> str:
    text = _text(body, name, field)
    if text not in words:
        choice = ", ".join(words)
        raise Invalid(f"{field}.{name}: want one of {choice}, got {text[:64]!r}", field=f"{field}.{name}")
    return text
