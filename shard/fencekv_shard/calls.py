"""What a client asks of a shard, parsed: the form that every wire hands to the dispatcher, and what comes back.

They are values or named tuples, not dataclasses, because one of each is made for every request.

Invariants:
  * Neither calls nor answers know a wire: each wire reads the ones and renders the others.
  * A call was checked as far as that is possible without knowing its table; the dispatcher checks the rest.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from fencekv.errors import FenceKVError
from fencekv.partitioning import Partitioning
from fencekv.token import Token, Version
from fencekv_shard.api import Change, Durability, Item, Options, Page, Range, Route
from fencekv_shard.transaction import Effect, Record, Transaction
from fencekv_shard.values import Value


class Get(Value):
    """Read a key. `forwarded`: the shard that forwarded it; empty: a client sent it."""

    __match_args__ = ("namespace", "table", "options", "key", "forwarded")
    __slots__ = __match_args__

    def __init__(self, namespace: str, table: str, options: Options, key: str, forwarded: str = "") -> None:
        self.namespace, self.table, self.options = namespace, table, options
        self.key, self.forwarded = key, forwarded


class WriteKind(enum.StrEnum):
    """Which request a transaction was; it decides the answer's shape."""

    PUT = "put"
    DELETE = "delete"
    TXN = "txn"


class Write(Value):
    """Commit a transaction. For PUT and DELETE: one write under a condition at most, else a get of that key."""

    __match_args__ = ("namespace", "table", "options", "kind", "transaction", "forwarded")
    __slots__ = __match_args__

    def __init__(
        self,
        namespace: str,
        table: str,
        options: Options,
        kind: WriteKind,
        transaction: Transaction,
        forwarded: str = "",
    ) -> None:
        self.namespace, self.table, self.options = namespace, table, options
        self.kind, self.transaction, self.forwarded = kind, transaction, forwarded


class List(NamedTuple):
    """A page of keys: start <= key < end (empty: no bound)."""

    namespace: str
    table: str
    options: Options
    start: str
    end: str
    limit: int
    cursor: str
    partition: int | None  # None: of all partitions
    forwarded: str = ""


class History(NamedTuple):
    """Versions of a key."""

    namespace: str
    table: str
    options: Options
    key: str
    limit: int
    cursor: str
    forwarded: str = ""


class WhereIs(NamedTuple):
    """Who owns the partitions of a table, or the one of a key."""

    namespace: str
    table: str
    options: Options
    key: str | None
    forwarded: str = ""


Call = Get | Write | List | History | WhereIs

# Answers begin with the partition that they are about (empty: no single one, or it is not known), the token that
# they were read at (None: at no state), and the highest epoch that is known of it.


class Found(Value):
    """A key that exists."""

    __match_args__ = ("partition", "token", "epoch", "record")
    __slots__ = __match_args__

    def __init__(self, partition: str, token: Token, epoch: int, record: Record) -> None:
        self.partition, self.token, self.epoch, self.record = partition, token, epoch, record


class Written(Value):
    """A transaction that was acknowledged under `durability`. `version` None: it wrote nothing."""

    __match_args__ = ("partition", "token", "epoch", "kind", "effect", "version", "durability")
    __slots__ = __match_args__

    def __init__(
        self,
        partition: str,
        token: Token,
        epoch: int,
        kind: WriteKind,
        effect: Effect,
        version: Version | None,
        durability: Durability,
    ) -> None:
        self.partition, self.token, self.epoch = partition, token, epoch
        self.kind, self.effect, self.version, self.durability = kind, effect, version, durability


class Listed(NamedTuple):
    """A page of keys."""

    partition: str
    token: Token | None
    epoch: int
    items: Sequence[Item]
    cursor: str  # empty: no more
    tokens: Mapping[str, Token] | None  # by partition; None: of one partition, at `token`
    seq: int | None  # of one partition: the state that the next page is asked at


class Histories(NamedTuple):
    """Versions of a key, newest first."""

    partition: str
    token: Token
    epoch: int
    changes: Sequence[Change]
    cursor: str  # empty: no more


class Routes(NamedTuple):
    """Who owns partitions, each with the token of this shard's own replica. None: it has none to tell."""

    partition: str
    token: Token | None
    epoch: int
    partitioning: Partitioning
    routes: Sequence[tuple[Route, Token | None]]


class Failed(NamedTuple):
    """An error."""

    partition: str
    token: Token | None
    epoch: int
    error: FenceKVError
    durability: Durability | None = None  # of a write whose condition did not hold

    @classmethod
    def nowhere(cls, error: FenceKVError) -> Failed:
        """An error about no partition."""
        return cls("", None, 0, error)


class Relayed(NamedTuple):
    """Another shard's answer, in the form of the wire that it came by: it goes back by the same."""

    reply: Any
    owner_http: str  # it says that it is not the owner, and who is; empty: it says something else


Answer = Found | Written | Listed | Histories | Routes | Failed | Relayed

Relay = Callable[[str], Awaitable[Answer]]
"""Sends the call that is being answered, as it came, to the shard at an address."""


class Taker(Protocol):
    """Who began a call; exactly one of these is called, once, perhaps before `begin` returns."""

    def answered(self, answer: Answer) -> None:
        """The answer."""
        ...

    def long_way(self) -> None:
        """Nothing was done: the call has to wait, or to go elsewhere; `Dispatcher.answer` does either."""
        ...


class Peers(Protocol):
    """The other shards, as far as a listing over several partitions needs them."""

    async def page(self, http: str, call: List, index: int, span: Range, options: Options) -> Page:
        """A page of one partition from the shard at `http`. Raises what that shard raised, or Unavailable."""
        ...
