"""The messages of the frames protocol, as values. docs/frames.md says what they mean.

They are named tuples, not dataclasses, because one is made for every request and every answer: that is four times
as fast. Their fields stand in the order of the wire.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from fencekv.operations import Compare, Operation
from fencekv.token import Token, Version

PROTOCOL: Final = "fencekv"
VERSION: Final = 1
VERSIONS_MAX: Final = 8  # that a client may name
NAME_BYTES_MAX: Final = 128

FRAME_BYTES_MAX: Final = 16_000_000
IN_FLIGHT_MAX: Final = 1024
IDLE_SECONDS: Final = 300

GET: Final = 1
PUT: Final = 2
DELETE: Final = 3
TXN: Final = 4
LIST: Final = 5
HISTORY: Final = 6
ROUTE: Final = 7

CONSISTENCIES: Final = ("primary", "cached")  # the number on the wire is the place
DURABILITIES: Final = ("standard", "replicated")
STANDARD: Final = 0


class Malformed(Exception):
    """What was received breaks a rule of the protocol: say goodbye with this text, and close."""


Condition = Version | Literal[True] | None
"""None: none. A version: the key is at it. True: the key does not exist."""


class Limits(NamedTuple):
    """What a shard allows on a connection."""

    frame_bytes: int = FRAME_BYTES_MAX
    in_flight: int = IN_FLIGHT_MAX
    idle_seconds: int = IDLE_SECONDS


class Options(NamedTuple):
    """What a request asks for besides its operation. None: as an HTTP request without that header."""

    consistency: int | None = None  # place in CONSISTENCIES
    durability: int | None = None  # place in DURABILITIES
    min_token: Token | None = None
    epoch: int | None = None
    idempotency_key: str | None = None
    forwarded: str | None = None


# -- what a client says


class Hello(NamedTuple):
    """The first message of a client."""

    versions: Sequence[int]
    namespace: str
    name: str


class Get(NamedTuple):
    """Read a key."""

    number: int
    table: str
    options: Options | None
    key: str


class Put(NamedTuple):
    """Set a key."""

    number: int
    table: str
    options: Options | None
    key: str
    value: bytes
    condition: Condition


class Delete(NamedTuple):
    """Remove a key."""

    number: int
    table: str
    options: Options | None
    key: str
    condition: Condition


class Txn(NamedTuple):
    """If all of `compare` hold, do `then`, else `otherwise`."""

    number: int
    table: str
    options: Options | None
    compare: Sequence[Compare]
    then: Sequence[Operation]
    otherwise: Sequence[Operation]


class List(NamedTuple):
    """A page of keys. `end` empty: no bound; `limit` 0: the shard's default; `partition` None: all."""

    number: int
    table: str
    options: Options | None
    start: str
    end: str
    limit: int
    cursor: str
    partition: int | None


class History(NamedTuple):
    """Versions of a key. `limit` 0: the shard's default."""

    number: int
    table: str
    options: Options | None
    key: str
    limit: int
    cursor: str


class Route(NamedTuple):
    """Who owns the partitions of a table, or the one of a key."""

    number: int
    table: str
    options: Options | None
    key: str | None


class Cancel(NamedTuple):
    """The client does not wait for a request any more."""

    number: int


class Ping(NamedTuple):
    """Asks for a Pong with the same number."""

    number: int


Request = Get | Put | Delete | Txn | List | History | Route

# -- what a shard says


class Welcome(NamedTuple):
    """The first message of a shard."""

    version: int
    pod: str
    limits: Limits


class Pong(NamedTuple):
    """The answer to a Ping."""

    number: int


class Goodbye(NamedTuple):
    """The last message of either side. `last`: the highest request that was taken; None: it is not said."""

    reason: str
    last: int | None = None


class Got(NamedTuple):
    """The answer to Get; an absent key is a Refusal named NotFound."""

    number: int
    partition: str
    token: Token | None
    epoch: int
    value: bytes
    version: Version


class Written(NamedTuple):
    """The answer to Put."""

    number: int
    partition: str
    token: Token | None
    epoch: int
    version: Version
    durability: int  # place in DURABILITIES


class Deleted(NamedTuple):
    """The answer to Delete. `version` None: there was nothing to delete."""

    number: int
    partition: str
    token: Token | None
    epoch: int
    existed: bool
    version: Version | None
    durability: int


class PutDone(NamedTuple):
    """A put within a transaction."""


class DeleteDone(NamedTuple):
    """A delete within a transaction."""

    existed: bool


class GetDone(NamedTuple):
    """A get within a transaction. `version` None beside a value: this transaction wrote it."""

    value: bytes | None
    version: Version | None


Done = PutDone | DeleteDone | GetDone


class Committed(NamedTuple):
    """The answer to Txn. `version` None: it wrote nothing."""

    number: int
    partition: str
    token: Token | None
    epoch: int
    succeeded: bool
    results: Sequence[Done]
    version: Version | None
    durability: int


class Item(NamedTuple):
    """A key of a listing."""

    key: str
    value: bytes
    version: Version


class Listed(NamedTuple):
    """The answer to List. `cursor` empty: no more; `seq` None: not of one partition."""

    number: int
    partition: str
    token: Token | None
    epoch: int
    items: Sequence[Item]
    cursor: str
    tokens: Mapping[str, Token]
    seq: int | None


class Change(NamedTuple):
    """A version of a key. `value` None: deleted."""

    version: Version
    value: bytes | None


class Changes(NamedTuple):
    """The answer to History, newest first. `cursor` empty: no more."""

    number: int
    partition: str
    token: Token | None
    epoch: int
    items: Sequence[Change]
    cursor: str


class Located(NamedTuple):
    """A partition and its owner; empty texts: unknown."""

    partition: str
    place: int  # its index in the table
    epoch: int
    owner: str
    http: str
    token: Token | None


class Routes(NamedTuple):
    """The answer to Route."""

    number: int
    partition: str
    token: Token | None
    epoch: int
    partitioning: Mapping[str, Any]
    partitions: Sequence[Located]


class Refusal(NamedTuple):
    """The answer that an error is; `extra` as in the problem document."""

    number: int
    name: str
    status: int
    detail: str
    partition: str
    token: Token | None
    epoch: int
    extra: Mapping[str, Any]


Success = Got | Written | Deleted | Committed | Listed | Changes | Routes
Answer = Success | Refusal
ClientMessage = Hello | Request | Cancel | Ping | Goodbye
ShardMessage = Welcome | Answer | Pong | Goodbye
