"""What a transaction is and what it does to the state it is evaluated on. Pure.

Invariants:
  * `evaluate` is a function of the transaction and the state alone: evaluating it again on the same state gives
    the same outcome. Replays of an idempotent request rest on this.
  * A transaction that fails validation was never evaluated; one that is evaluated fails only for the size of what
    its gets find.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from fencekv.codec import encode
from fencekv.errors import Invalid, TooLarge
from fencekv.token import Version
from fencekv_shard import limits
from fencekv_shard.values import Value


class Record(NamedTuple):
    """A key's value and the version that wrote it."""

    value: bytes
    version: Version


class Put(Value):
    """Set a key."""

    __match_args__ = ("key", "value")
    __slots__ = __match_args__

    def __init__(self, key: str, value: bytes) -> None:
        self.key, self.value = key, value


class Delete(Value):
    """Remove a key."""

    __match_args__ = ("key",)
    __slots__ = __match_args__

    def __init__(self, key: str) -> None:
        self.key = key


class Get(Value):
    """Read a key, after the operations before it."""

    __match_args__ = ("key",)
    __slots__ = __match_args__

    def __init__(self, key: str) -> None:
        self.key = key


Operation = Put | Delete | Get
Write = Put | Delete


class Target(enum.StrEnum):
    """What a compare looks at."""

    VERSION = "version"
    VALUE = "value"
    EXISTS = "exists"


class Relation(enum.StrEnum):
    """How a compare compares. `exists` knows EQUAL and UNEQUAL only."""

    EQUAL = "=="
    UNEQUAL = "!="
    LESS = "<"
    GREATER = ">"


@dataclass(frozen=True, slots=True)
class Compare:
    """A condition on one key. `operand` is a Version, bytes or bool, by `target`.

    An absent key has no value and version 0.0: it equals no value, and is unequal to each.
    """

    key: str
    target: Target
    relation: Relation
    operand: Version | bytes | bool


class Transaction(Value):
    """If all of `compare` hold, do `then`, else do `otherwise`; in one partition, atomically.

    `idempotency_key` empty: it has none.
    """

    __match_args__ = ("compare", "then", "otherwise", "actor", "idempotency_key")
    __slots__ = __match_args__

    def __init__(
        self,
        compare: tuple[Compare, ...] = (),
        then: tuple[Operation, ...] = (),
        otherwise: tuple[Operation, ...] = (),
        actor: str = "",
        idempotency_key: bytes = b"",
    ) -> None:
        self.compare, self.then, self.otherwise = compare, then, otherwise
        self.actor, self.idempotency_key = actor, idempotency_key

    def names(self) -> list[str]:
        """All keys that it names."""
        return [part.key for part in (*self.compare, *self.then, *self.otherwise)]

    def size_bytes(self) -> int:
        """Bytes of keys, values and operands: what the limits count."""
        size = 0
        for compare in self.compare:
            size += _bytes_of(compare.key)
            if isinstance(compare.operand, bytes):
                size += len(compare.operand)
        for branch in (self.then, self.otherwise):
            for part in branch:
                size += _bytes_of(part.key)
                if isinstance(part, Put):
                    size += len(part.value)
        return size

    def fingerprint(self) -> bytes:
        """16 bytes that tell this request from another one under the same idempotency key."""
        compares = [[c.key, c.target, c.relation, _plain(c.operand)] for c in self.compare]
        branches = [[_shape(part) for part in branch] for branch in (self.then, self.otherwise)]
        return hashlib.sha256(encode([compares, *branches])).digest()[:16]


@dataclass(frozen=True, slots=True)
class PutResult:
    """A put was done; its version is the transaction's."""


@dataclass(frozen=True, slots=True)
class DeleteResult:
    """A delete was done; `existed` says whether there was anything to delete."""

    existed: bool


@dataclass(frozen=True, slots=True)
class GetResult:
    """What a get found; `record` None: the key is absent. A version of None: written by this transaction."""

    key: str
    value: bytes | None
    version: Version | None


Result = PutResult | DeleteResult | GetResult


class Effect(Value):
    """What a transaction does to a state: which branch, what each operation answers, what is written.

    `writes` holds one write a key at most, the last one, in the order of the operations. A delete of an absent
    key is no write. Empty: nothing changes, and no journal entry is made.
    """

    __match_args__ = ("succeeded", "results", "writes")
    __slots__ = __match_args__

    def __init__(self, succeeded: bool, results: tuple[Result, ...], writes: tuple[Write, ...] = ()) -> None:
        self.succeeded, self.results, self.writes = succeeded, results, writes


Read = Callable[[str], Record | None]


_PUT_RESULTS: Final = (PutResult(),)


def evaluate(transaction: Transaction, read: Read) -> Effect:
    """Evaluates a valid transaction on the state that `read` shows.

    Raises:
        TooLarge: its gets find more than TXN_RESULT_BYTES_MAX. Nothing of it is to be written.
    """
    if not transaction.compare and len(transaction.then) == 1:
        only = transaction.then[0]
        if isinstance(only, Put):  # most transactions are this one
            return Effect(True, _PUT_RESULTS, (only,))
    succeeded = all(holds(compare, read(compare.key)) for compare in transaction.compare)
    written: dict[str, Write] = {}
    results: list[Result] = []
    found_bytes = 0
    for operation in transaction.then if succeeded else transaction.otherwise:
        key = operation.key
        before = written.get(key)
        if isinstance(operation, Put):
            written.pop(key, None)
            written[key] = operation
            results.append(PutResult())
        elif isinstance(operation, Delete):
            stored = read(key)
            existed = isinstance(before, Put) or (before is None and stored is not None)
            written.pop(key, None)
            if stored is not None:
                written[key] = operation
            results.append(DeleteResult(existed))
        elif isinstance(before, Put):
            results.append(GetResult(key, before.value, None))
            found_bytes += len(before.value)
        else:
            found = None if isinstance(before, Delete) else read(key)
            results.append(GetResult(key, found.value, found.version) if found else GetResult(key, None, None))
            found_bytes += len(found.value) if found else 0
        if found_bytes > limits.TXN_RESULT_BYTES_MAX:
            limit = limits.TXN_RESULT_BYTES_MAX
            raise TooLarge(f"txn: its gets find more than {limit} bytes", field="txn", limit=limit)
    return Effect(succeeded, tuple(results), tuple(written.values()))


def holds(compare: Compare, record: Record | None) -> bool:
    """Whether a condition holds for what a key holds."""
    operand = compare.operand
    if compare.target is Target.EXISTS:
        return ((record is not None) == operand) == (compare.relation is Relation.EQUAL)
    if compare.target is Target.VALUE:
        assert isinstance(operand, bytes), operand
        if record is None:
            return compare.relation is Relation.UNEQUAL
        return _related(compare.relation, (record.value > operand) - (record.value < operand))
    assert isinstance(operand, Version), operand
    version = Version(0, 0) if record is None else record.version
    return _related(compare.relation, (version > operand) - (version < operand))


def validate(transaction: Transaction, *, value_bytes_max: int = limits.VALUE_BYTES_MAX) -> None:
    """Checks shape and sizes.

    Raises:
        Invalid: a key is empty, has a NUL or a reserved prefix, or an operand does not fit its target.
        TooLarge: a key, a value, or the whole is over its limit.
    """
    operations = len(transaction.compare) + len(transaction.then) + len(transaction.otherwise)
    if operations == 0:
        raise Invalid("txn: no operation", field="then")
    if operations > limits.TXN_OPERATIONS_MAX:
        limit = limits.TXN_OPERATIONS_MAX
        raise TooLarge(f"txn: {operations} operations, at most {limit}", field="txn", limit=limit)
    for key in transaction.names():
        validate_key(key)
    for part in (*transaction.then, *transaction.otherwise):
        if isinstance(part, Put) and len(part.value) > value_bytes_max:
            text = f"value: {len(part.value)} bytes, at most {value_bytes_max}"
            raise TooLarge(text, field="value", limit=value_bytes_max)
    size, limit = transaction.size_bytes(), limits.TXN_BYTES_MAX
    if size > limit:
        raise TooLarge(f"txn: {size} bytes, at most {limit}", field="txn", limit=limit)
    if len(transaction.idempotency_key) > limits.IDEMPOTENCY_KEY_BYTES_MAX:
        limit = limits.IDEMPOTENCY_KEY_BYTES_MAX
        raise Invalid(f"Idempotency-Key: at most {limit} bytes", field="Idempotency-Key", limit=limit)


def validate_key(key: str, *, name: str = "key") -> None:
    """Checks one key.

    Raises:
        Invalid: empty, with a NUL, with the reserved prefix, or not encodable.
        TooLarge: over KEY_BYTES_MAX.
    """
    if not key:
        raise Invalid(f"{name}: empty", field=name)
    if "\x00" in key:
        raise Invalid(f"{name}: has a NUL", field=name)
    if key.startswith(limits.KEY_RESERVED_PREFIX):
        raise Invalid(f"{name}: begins with the reserved byte 0x01", field=name)
    try:
        size = len(key.encode())
    except UnicodeEncodeError as error:
        raise Invalid(f"{name}: not UTF-8", field=name) from error
    if size > limits.KEY_BYTES_MAX:
        limit = limits.KEY_BYTES_MAX
        raise TooLarge(f"{name}: {size} bytes, at most {limit}", field=name, limit=limit)


def _bytes_of(key: str) -> int:
    return len(key) if key.isascii() else len(key.encode())


def _related(relation: Relation, order: int) -> bool:
    return {
        Relation.EQUAL: order == 0,
        Relation.UNEQUAL: order != 0,
        Relation.LESS: order < 0,
        Relation.GREATER: order > 0,
    }[relation]


def _plain(operand: Version | bytes | bool) -> object:
    return [operand.epoch, operand.number] if isinstance(operand, Version) else operand


def _shape(part: Operation) -> list[object]:
    if isinstance(part, Put):
        return [0, part.key, part.value]
    return [1 if isinstance(part, Delete) else 2, part.key]
