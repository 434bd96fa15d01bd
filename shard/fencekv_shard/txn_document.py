"""A transaction as clients name its parts, and as a shard carries it out; and its answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fencekv import operations
from fencekv.errors import Invalid
from fencekv.token import Version
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


def parse_transaction(document: object, *, idempotency_key: bytes) -> Transaction:
    """Reads a transaction from JSON or CBOR; sizes and keys are checked by `validate`.

    Raises:
        Invalid: naming the member that does not fit.
        TooLarge: more operations than a transaction may have.
    """
    parts = operations.parse_txn(document, operations_max=limits.TXN_OPERATIONS_MAX)
    return transaction_of(parts.compare, parts.then, parts.otherwise, idempotency_key=idempotency_key)


def transaction_of(
    compare: Iterable[operations.Compare],
    then: Iterable[operations.Operation],
    otherwise: Iterable[operations.Operation],
    *,
    idempotency_key: bytes,
) -> Transaction:
    """The transaction of these parts. Raises Invalid: a relation does not go with its target."""
    return Transaction(
        compare=tuple(map(_compare, compare)),
        then=tuple(map(_operation, then)),
        otherwise=tuple(map(_operation, otherwise)),
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


def _compare(part: operations.Compare) -> Compare:
    target, relation = Target(part.target), Relation(part.op)
    if target is Target.EXISTS and relation not in {Relation.EQUAL, Relation.UNEQUAL}:
        raise Invalid("compare: exists knows == and != only", field="compare")
    return Compare(part.key, target, relation, part.operand)


def _operation(part: operations.Operation) -> Operation:
    if isinstance(part, operations.Put):
        return Put(part.key, part.value)
    return Delete(part.key) if isinstance(part, operations.Delete) else Get(part.key)
