"""Answers as HTTP has them: status, headers, and a document or bytes; and as they go over the connection. Pure.

Invariants:
  * Headers name the partition, its token and its epoch wherever the answer is about one partition.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from http import HTTPStatus
from json.encoder import encode_basestring as quoted
from typing import Any, Final

from fencekv import codec, wire
from fencekv.errors import ERRORS, FenceKVError
from fencekv.partitioning import RangePartitioning
from fencekv_shard.api import Item
from fencekv_shard.calls import Answer, Failed, Found, Histories, Listed, Relayed, Routes, WriteKind, Written
from fencekv_shard.transaction import DeleteResult
from fencekv_shard.txn_document import result_document
from fencekv_shard.values import Value

Document = Mapping[str, Any]
_Told = Found | Written | Listed | Histories | Routes | Failed
_NO_HEADERS: Final[Mapping[str, str]] = {}
_JOINED_BYTES_MAX: Final = 16 * 1024  # head and body go as one piece: copying so much costs less than a second one


class HttpAnswer(Value):
    """An answer of HTTP. A mapping is a document that is still to be encoded; `value` members are bytes in it.

    `content_type`: of bytes. `outcome`: ok, or the error's name, for the counters.
    """

    __match_args__ = ("status", "body", "content_type", "headers", "outcome")
    __slots__ = __match_args__

    def __init__(
        self,
        status: int,
        body: bytes | Document,
        content_type: str = "",
        headers: Mapping[str, str] = _NO_HEADERS,
        outcome: str = "ok",
    ) -> None:
        self.status, self.body, self.content_type = status, body, content_type
        self.headers, self.outcome = headers, outcome


def problem(error: FenceKVError, headers: Mapping[str, str] | None = None) -> HttpAnswer:
    """The answer that an error is."""
    return HttpAnswer(status=error.status, body=error.to_problem(), headers=headers or {}, outcome=error.name)


def render(answer: Answer) -> HttpAnswer:
    """A call's answer."""
    if isinstance(answer, Relayed):
        assert isinstance(answer.reply, HttpAnswer), answer.reply
        return answer.reply
    headers = _headers(answer)
    if isinstance(answer, Failed):
        if answer.durability is not None:
            headers[wire.DURABILITY] = answer.durability
        return problem(answer.error, headers)
    if isinstance(answer, Found):
        headers[wire.VERSION] = str(answer.record.version)
        return HttpAnswer(status=200, body=answer.record.value, content_type=wire.OCTETS, headers=headers)
    if isinstance(answer, Written):
        headers[wire.DURABILITY] = answer.durability
        if answer.version is not None:
            headers[wire.VERSION] = str(answer.version)
        return HttpAnswer(status=200, body=_written(answer, headers), headers=headers)
    if isinstance(answer, Listed):
        if answer.seq is not None:
            headers[wire.SEQ] = str(answer.seq)
        return HttpAnswer(status=200, body=_listed(answer), headers=headers)
    if isinstance(answer, Histories):
        return HttpAnswer(status=200, body=_histories(answer), headers=headers)
    assert isinstance(answer, Routes), answer
    return HttpAnswer(status=200, body=_routes(answer))


def encode(
    answer: HttpAnswer, *, cbor: bool, version: str, keep_alive: bool, headless: bool, date: str
) -> list[bytes]:
    """An answer's bytes, in pieces.

    `version` is that of the request's HTTP, `headless`: it asked for the head alone, `keep_alive`: another
    request may follow.
    """
    body, headers = content(answer, cbor=cbor)
    fields = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    ending = ""
    if keep_alive and version == "1.0":
        ending = "Connection: keep-alive\r\n"
    elif not keep_alive and version == "1.1":
        ending = "Connection: close\r\n"
    head = (
        f"HTTP/{version} {answer.status} {_REASONS.get(answer.status, '')}\r\n{fields}"
        f"Content-Length: {len(body)}\r\nDate: {date}\r\nServer: fencekv\r\n{ending}\r\n"
    ).encode()
    if headless or not body:
        return [head]
    return [head + body] if len(body) <= _JOINED_BYTES_MAX else [head, body]


def content(answer: HttpAnswer, *, cbor: bool) -> tuple[bytes, dict[str, str]]:
    """Body and headers as they are sent; `cbor`: a document goes in the form that the request came in."""
    headers = dict(answer.headers)
    document, content_type = answer.body, answer.content_type
    if isinstance(document, bytes):
        body = document
    else:
        if cbor and answer.status < 400:
            body, content_type = codec.encode(document), wire.CBOR
        else:
            content_type = wire.PROBLEM if "title" in document else wire.JSON
            # What a problem quotes of a request need be no text: a header may hold any bytes.
            body = _json(document).encode(errors="replace")
        if answer.status == _METHOD_NOT_ALLOWED:
            headers["Allow"] = str(document["allow"])
        seconds = ERRORS[answer.outcome].retry_after_seconds if answer.outcome in ERRORS else None
        if seconds is not None:
            headers["Retry-After"] = str(math.ceil(seconds))
    headers["Content-Type"] = content_type
    return body, headers


def _json(document: Document) -> str:
    members: list[str] = []
    for name, member in document.items():
        if type(member) is not str:
            return JSON.encode(wire.json_form(document))
        members.append(f"{quoted(name)}:{quoted(member)}")
    return f"{{{','.join(members)}}}"  # most answers to writes: an encoder would take longer to be made


JSON: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_METHOD_NOT_ALLOWED: Final = 405
_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}


def _headers(answer: _Told) -> dict[str, str]:
    if not answer.partition:
        return {}
    headers = {wire.PARTITION: answer.partition}
    if answer.token is not None:
        headers[wire.TOKEN] = str(answer.token)
    headers[wire.EPOCH] = str(answer.epoch)
    return headers


def _written(answer: Written, headers: Mapping[str, str]) -> Document:
    """Of the headers it repeats version and token."""
    effect = answer.effect
    body: dict[str, Any] = {
        "version": headers.get(wire.VERSION),
        "token": headers[wire.TOKEN],
        "partition": answer.partition,
    }
    if answer.kind is WriteKind.DELETE:
        result = effect.results[0]
        assert isinstance(result, DeleteResult), result
        body = {"existed": result.existed, **body}
    elif answer.kind is WriteKind.TXN:
        results = [result_document(result, answer.version) for result in effect.results]
        body = {"succeeded": effect.succeeded, "results": results, **body}
    return body


def _listed(answer: Listed) -> Document:
    body: dict[str, Any] = {"items": [_item(item) for item in answer.items], "cursor": answer.cursor or None}
    if answer.tokens is not None:
        return {**body, "tokens": {name: str(token) for name, token in answer.tokens.items()}}
    return {**body, "token": str(answer.token), "partition": answer.partition}


def _item(item: Item) -> Document:
    return {"key": item.key, "value": item.record.value, "version": str(item.record.version)}


def _histories(answer: Histories) -> Document:
    items: list[dict[str, Any]] = [
        {"version": str(change.version)} | ({"deleted": True} if change.value is None else {"value": change.value})
        for change in answer.changes
    ]
    return {
        "items": items,
        "cursor": answer.cursor or None,
        "token": str(answer.token),
        "partition": answer.partition,
    }


def _routes(answer: Routes) -> Document:
    how: dict[str, Any] = {"strategy": "hash", "count": answer.partitioning.count}
    if isinstance(answer.partitioning, RangePartitioning):
        how = {"strategy": "range", "splitPoints": list(answer.partitioning.split_points)}
    partitions = [
        {
            "partition": route.partition,
            "index": route.index,
            "epoch": route.epoch,
            "owner": route.owner or None,
            "http": route.http or None,
            "token": None if token is None else str(token),
        }
        for route, token in answer.routes
    ]
    return {"partitions": partitions, "partitioning": how}
