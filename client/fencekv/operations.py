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
from typing import Any, Literal

from fencekv.token import Version

Relation = Literal["==", "!=", "<", ">"]
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
    target: Literal["version", "value", "exists"]
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


def keys_named(document: object) -> list[str]:
    """The keys that a transaction names, as far as they can be found: whether it is well-formed a shard says."""
    keys: list[str] = []
    for part in ("compare", "then", "else"):
        items = document.get(part) if isinstance(document, Mapping) else None
        for item in items if isinstance(items, Sequence) and not isinstance(items, str) else ():
            inner = [item, *item.values()] if isinstance(item, Mapping) else []
            found = [entry.get("key") for entry in inner if isinstance(entry, Mapping)]
            keys += [key for key in found if isinstance(key, str) and key]
    return keys
