"""What the SDK answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fencekv.errors import Unknown
from fencekv.token import Token, Version
from fencekv.wire import value_of

Document = Mapping[str, Any]


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


def written(document: Document) -> Written:
    """Reads the answer to a put."""
    return Written(
        version=_version(document), token=_token(document), partition=str(document.get("partition", ""))
    )


def deleted(document: Document) -> Deleted:
    """Reads the answer to a delete."""
    return Deleted(
        existed=document.get("existed") is True,
        version=_version_or_none(document),
        token=_token(document),
        partition=str(document.get("partition", "")),
    )


def txn_answer(document: Document) -> TxnAnswer:
    """Reads the answer to a transaction."""
    return TxnAnswer(
        succeeded=document.get("succeeded") is True,
        results=[_done(result) for result in document.get("results", ())],
        version=_version_or_none(document),
        token=_token(document),
        partition=str(document.get("partition", "")),
    )


def page(document: Document) -> Page:
    """Reads a page of a listing."""
    token = _token(document) if document.get("token") else None
    entries = [
        Entry(key=str(item["key"]), value=value_of(item, field="items"), version=_version(item), token=token)
        for item in document["items"]
    ]
    return Page(entries=entries, cursor=document.get("cursor"))


def history_page(document: Document) -> HistoryPage:
    """Reads a page of a history."""
    changes = [
        Change(version=_version(item), value=None if item.get("deleted") else value_of(item, field="items"))
        for item in document["items"]
    ]
    return HistoryPage(changes=changes, cursor=document.get("cursor"))


def _done(result: Document) -> Done:
    if "existed" in result:
        return DeleteDone(existed=result["existed"] is True)
    if "found" not in result:
        return PutDone(version=_version(result))
    value = value_of(result, field="results") if result["found"] else None
    return GetDone(key=str(result["key"]), value=value, version=_version_or_none(result))


def _token(document: Document) -> Token:
    return Token.parse(str(document.get("token")), field="token")


def _version(document: Document) -> Version:
    return Version.parse(str(document.get("version")), field="version")


def _version_or_none(document: Document) -> Version | None:
    return _version(document) if document.get("version") else None


def unreadable(error: Exception) -> Unknown:
    """The error for an answer that says success and cannot be read."""
    return Unknown(f"an answer that cannot be read: {error!r}")
