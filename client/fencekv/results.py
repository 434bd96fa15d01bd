"""What the SDK answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fencekv import messages as m
from fencekv.errors import Unknown
from fencekv.operations import Transaction
from fencekv.token import Token, Version


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A key with its value. `token` None: of a listing over several partitions."""

    key: str
    value: bytes
    version: Version
    token: Token | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A put that was acknowledged."""

    version: Version
    token: Token
    partition: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Deleted:
    """A delete that was acknowledged. `version` None: there was nothing to delete."""

    existed: bool
    version: Version | None
    token: Token
    partition: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PutDone:
    """A put within a transaction."""

    version: Version


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteDone:
    """A delete within a transaction."""

    existed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GetDone:
    """A get within a transaction. `value` None: the key does not exist."""

    key: str
    value: bytes | None
    version: Version | None


Done = PutDone | DeleteDone | GetDone


@dataclass(frozen=True, slots=True, kw_only=True)
class TxnAnswer:
    """A transaction that was carried out. `version` None: it wrote nothing."""

    succeeded: bool
    results: Sequence[Done]
    version: Version | None
    token: Token
    partition: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page of a listing. `cursor` None: it is the last one."""

    entries: Sequence[Entry]
    cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A version of a key. `value` None: deleted."""

    version: Version
    value: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryPage:
    """Versions of a key, newest first. `cursor` None: it is the last page."""

    changes: Sequence[Change]
    cursor: str | None


def entry(key: str, answer: m.Got) -> Entry:
    """Reads the answer to a get."""
    return Entry(key=key, value=answer.value, version=answer.version, token=_token(answer))


def written(answer: m.Written) -> Written:
    """Reads the answer to a put."""
    return Written(version=answer.version, token=_token(answer), partition=answer.partition)


def deleted(answer: m.Deleted) -> Deleted:
    """Reads the answer to a delete."""
    return Deleted(
        existed=answer.existed, version=answer.version, token=_token(answer), partition=answer.partition
    )


def txn_answer(asked: Transaction, answer: m.Committed) -> TxnAnswer:
    """Reads the answer to a transaction."""
    parts = asked.then if answer.succeeded else asked.otherwise
    if len(parts) != len(answer.results):
        raise Unknown(f"an answer that cannot be read: {len(answer.results)} results of {len(parts)} operations")
    return TxnAnswer(
        succeeded=answer.succeeded,
        results=[_done(part.key, result, answer) for part, result in zip(parts, answer.results, strict=True)],
        version=answer.version,
        token=_token(answer),
        partition=answer.partition,
    )


def page(answer: m.Listed) -> Page:
    """Reads a page of a listing."""
    entries = [
        Entry(key=item.key, value=item.value, version=item.version, token=answer.token) for item in answer.items
    ]
    return Page(entries=entries, cursor=answer.cursor or None)


def history_page(answer: m.Changes) -> HistoryPage:
    """Reads a page of a history."""
    changes = [Change(version=item.version, value=item.value) for item in answer.items]
    return HistoryPage(changes=changes, cursor=answer.cursor or None)


def route_document(answer: m.Routes) -> Mapping[str, Any]:
    """Who owns what, as a document; None: unknown."""
    partitions = [
        {
            "partition": located.partition,
            "index": located.place,
            "epoch": located.epoch,
            "owner": located.owner or None,
            "http": located.http or None,
            "token": None if located.token is None else str(located.token),
        }
        for located in answer.partitions
    ]
    return {"partitions": partitions, "partitioning": answer.partitioning}


def _done(key: str, result: m.Done, answer: m.Committed) -> Done:
    if isinstance(result, m.GetDone):
        # A value without a version of its own is what this transaction wrote.
        version = answer.version if result.version is None and result.value is not None else result.version
        return GetDone(key=key, value=result.value, version=version)
    if isinstance(result, m.DeleteDone):
        return DeleteDone(existed=result.existed)
    if answer.version is None:
        raise Unknown("an answer that cannot be read: a put without a version")
    return PutDone(version=answer.version)


def _token(answer: m.Got | m.Written | m.Deleted | m.Committed) -> Token:
    if answer.token is None:
        raise Unknown("an answer that cannot be read: it has no token")
    return answer.token
