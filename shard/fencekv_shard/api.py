"""What the wire (HTTP now, frames later) asks of a shard: requests, answers, and two interfaces.

The dispatcher turns bytes into these values, and these values into bytes; it decides nothing else. `Node` finds
the partition, `Partition` carries the request out. Neither knows a wire format.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from fencekv.errors import FenceKVError
from fencekv.partitioning import Partitioning
from fencekv.token import Token, Version
from fencekv_shard.transaction import Effect, Record, Transaction
from fencekv_shard.values import Value


class Consistency(enum.StrEnum):
    """How fresh a read must be."""

    PRIMARY = "primary"  # linearizable: the owner answers
    CACHED = "cached"  # any replica, never older than the minimum token


class Durability(enum.StrEnum):
    """When a write is acknowledged. A request raises its table's, never lowers it."""

    STANDARD = "standard"
    REPLICATED = "replicated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a request asks for besides its operation."""

    consistency: Consistency = Consistency.PRIMARY
    durability: Durability | None = None  # None: the table's own
    min_token: Token | None = None
    epoch: int | None = None  # the highest epoch that the client saw; None: it has seen none


class Committed(Value):
    """A transaction that was acknowledged. `version` None: it wrote nothing. `writes`: effect.writes have it."""

    __match_args__ = ("effect", "version", "token")
    __slots__ = __match_args__

    def __init__(self, effect: Effect, version: Version | None, token: Token) -> None:
        self.effect, self.version, self.token = effect, version, token


class ReadAnswer(NamedTuple):
    """A key at a token. `record` None: absent."""

    record: Record | None
    token: Token


@dataclass(frozen=True, slots=True)
class Item:
    """A key of a listing."""

    key: str
    record: Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page of a listing at one token, in the order of the keys' bytes. `more`: there are further keys.

    The next page is asked for with `after` = the last key and `at` = this page's `seq`.
    """

    items: Sequence[Item]
    more: bool
    token: Token
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Keys to list: start <= key < end (empty end: no bound), and only after `after` if that is not empty."""

    start: str = ""
    end: str = ""
    after: str = ""
    limit: int
    at: int | None = None  # a page's seq: go on at that state; None: the state now


@dataclass(frozen=True, slots=True)
class Change:
    """One version in a key's history. `value` None: deleted."""

    version: Version
    value: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryPage:
    """Versions of a key, newest first. `more`: go on with `before` = the last one's seq."""

    changes: Sequence[Change]
    more: bool
    token: Token


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Who owns a partition, as far as this shard knows. Empty strings: nobody."""

    partition: str
    index: int
    epoch: int
    owner: str  # pod
    http: str  # host:port
    local: bool  # this shard is it


class MustWait(Exception):
    """A request cannot be taken at once; its coroutine can wait."""


class Waiter(Protocol):
    """Who began a transaction; one of the two is called, once, on the loop."""

    def committed(self, answer: Committed) -> None:
        """It was acknowledged."""
        ...

    def refused(self, error: FenceKVError) -> None:
        """It was not done; or, `Unknown`, nobody can say."""
        ...


class Partition(Protocol):
    """A replica on this shard.

    `begin` and `read_now` are for wires that have no coroutine for each request; the others wait where they must.
    """

    @property
    def name(self) -> str:
        """The KVPartition's name."""
        ...

    @property
    def durability(self) -> Durability:
        """What writes are acknowledged under, unless they ask for more."""
        ...

    def committed_token(self) -> Token | None:
        """Where this replica's committed state stands; None: it is not open."""
        ...

    def begin(self, transaction: Transaction, options: Options, waiter: Waiter) -> None:
        """Takes a validated transaction as the owner; the waiter is told of its outcome.

        Raises:
            MustWait: the minimum token is not reached yet.
            NotOwner, Fenced, Unavailable, Exhausted, Lost: nothing was done, and the waiter is told nothing.
        """
        ...

    def read_now(self, key: str, options: Options) -> ReadAnswer:
        """Reads a key. Raises MustWait, NotOwner, Fenced, Unavailable, Lost."""
        ...

    async def submit(self, transaction: Transaction, options: Options) -> Committed:
        """Commits a validated transaction as the owner.

        Raises:
            NotOwner, Fenced, Unavailable, Exhausted: nothing was done.
            Unknown: the outcome is not known.
            Invalid: the idempotency key stands for another request.
        """
        ...

    async def read(self, key: str, options: Options) -> ReadAnswer:
        """Reads a key. Raises NotOwner, Fenced, Unavailable, Lost."""
        ...

    async def scan(self, span: Range, options: Options) -> Page:
        """Reads a page of keys."""
        ...

    async def history(self, key: str, *, before: int | None, limit: int, options: Options) -> HistoryPage:
        """Reads versions of a key, newest first."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table as this shard knows it."""

    name: str
    partitioning: Partitioning
    durability: Durability
    value_bytes_max: int
    key_pattern: str  # empty: any
    partitions: Sequence[str]  # names, by index


class Node(Protocol):
    """A shard as the wire sees it."""

    kvns: str
    pod: str

    def table(self, name: str) -> Table:
        """A table; Invalid with status 404 if there is none of that name."""
        ...

    def route(self, table: str, index: int) -> Route:
        """Who owns a partition of a table."""
        ...

    def local(self, table: str, index: int) -> Partition | None:
        """The replica on this shard; None: there is none."""
        ...

    def holding(self, table: str, index: int) -> bool:
        """Whether `hold` would wait."""
        ...

    async def hold(self, table: str, index: int) -> None:
        """Waits while a planned move of a partition that this shard owned is under way: at most 2 s.

        Returns at once otherwise. Afterwards the request is to be routed anew.
        """
        ...

    def report(self) -> dict[str, object]:
        """The body of /peer/v1/report."""
        ...

    def chain(self, uid: str, seq: int) -> str | None:
        """The chain hash of a journal entry, in hex; None: this shard has no such replica, or not that entry."""
        ...

    async def release(self, uid: str, epoch: int, target: str) -> bool:
        """Begins a planned move of a partition owned under `epoch`; False: it is not."""
        ...

    def live(self) -> bool:
        """For /healthz: the event loop answers and nothing fatal happened."""
        ...

    def ready(self) -> bool:
        """For /readyz: it holds its session and its folder, and has opened what it should serve."""
        ...
