"""What a client asks of a shard, parsed: the form that every wire hands to the dispatcher, and what comes back.

Invariants:
  * A call was checked as far as that is possible without knowing its table; the dispatcher checks the rest.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from fencekv.errors import FenceKVError
from fencekv_shard.api import Options, Page, Range
from fencekv_shard.transaction import Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What all calls have."""

    namespace: str
    table: str
    options: Options
    forwarded: str = ""  # the shard that forwarded it; empty: a client sent it


@dataclass(frozen=True, slots=True, kw_only=True)
class Get(Call):
    """Read a key."""

    key: str


class WriteKind(enum.StrEnum):
    """Which request a transaction was; it decides the answer's shape."""

    PUT = "put"
    DELETE = "delete"
    TXN = "txn"


@dataclass(frozen=True, slots=True, kw_only=True)
class Write(Call):
    """Commit a transaction. For PUT and DELETE: one write under a condition at most, else a get of that key."""

    kind: WriteKind
    transaction: Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class List(Call):
    """A page of keys: start <= key < end (empty: no bound)."""

    start: str
    end: str
    limit: int
    cursor: str
    partition: int | None  # None: of all partitions


@dataclass(frozen=True, slots=True, kw_only=True)
class History(Call):
    """Versions of a key."""

    key: str
    limit: int
    cursor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WhereIs(Call):
    """Who owns the partitions of a table, or the one of a key."""

    key: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer of any wire. A mapping is a document: the wire encodes it, `value` members are bytes in it."""

    status: int
    body: bytes | Mapping[str, Any]
    content_type: str = ""  # of bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    outcome: str = "ok"  # or the error's name, for the counters


def problem(error: FenceKVError, headers: Mapping[str, str] | None = None) -> Answer:
    """The answer that an error is."""
    return Answer(status=error.status, body=error.to_problem(), headers=headers or {}, outcome=error.name)


Relay = Callable[[str], Awaitable[Answer]]
"""Sends the call that is being answered, as it came, to the shard at an address."""


class Peers(Protocol):
    """The other shards, as far as a listing over several partitions needs them."""

    async def page(self, http: str, call: List, index: int, span: Range, options: Options) -> Page:
        """A page of one partition from the shard at `http`. Raises what that shard raised, or Unavailable."""
        ...
