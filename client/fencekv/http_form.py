"""The SDK's requests and answers in their HTTP form. Pure.

Invariants:
  * A success that cannot be read is `Unknown`: the request was carried out. So is an error that cannot be read.
  * Headers that cannot be read change nothing about the answer that came with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fencekv import messages as m
from fencekv import wire
from fencekv.codec import decode, decode_json, encode
from fencekv.errors import Invalid, Unknown
from fencekv.operations import txn_document
from fencekv.token import Token, Version
from fencekv.transport import Reply

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A request as HTTP sends it; `target` is encoded."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b""


def request_form(namespace: str, request: m.Request) -> Form:
    """The HTTP form of a request.

    Raises:
        Invalid: a text of it is no UTF-8.
    """
    headers = _headers(request.options)
    try:
        place = f"{wire.segment(namespace)}/{wire.segment(request.table)}"
        if isinstance(request, m.Route):
            query = "" if request.key is None else f"?key={wire.segment(request.key)}"
            return Form(method="GET", target=f"/v1/route/{place}{query}", headers=headers)
        if isinstance(request, m.List):
            query = _query(request.limit, request.cursor, start=request.start, end=request.end)
            if request.partition is not None:
                query += f"&partition={request.partition}"
            return Form(method="GET", target=f"/v1/{place}/keys{query}", headers=headers)
        if isinstance(request, m.History):
            path = f"history/{wire.segment(request.key)}{_query(request.limit, request.cursor)}"
            return Form(method="GET", target=f"/v1/{place}/{path}", headers=headers)
        if isinstance(request, m.Txn):
            headers["Content-Type"] = wire.CBOR
            body = encode(txn_document(request.compare, request.then, request.otherwise))
            return Form(method="POST", target=f"/v1/{place}/txn", headers=headers, body=body)
        target = f"/v1/{place}/keys/{wire.segment(request.key)}"
    except (UnicodeEncodeError, ValueError) as error:
        raise Invalid(f"request: {error}", field="request") from error
    if isinstance(request, m.Get):
        return Form(method="GET", target=target, headers=headers)
    if request.condition is True:
        headers[wire.IF_NONE_MATCH] = "*"
    elif request.condition is not None:
        headers[wire.IF_MATCH] = f'"{request.condition}"'
    if isinstance(request, m.Delete):
        return Form(method="DELETE", target=target, headers=headers)
    return Form(method="PUT", target=target, headers=headers, body=request.value)


def read_answer(request: m.Request, reply: Reply) -> m.Answer:
    """What a shard answered.

    Raises:
        Unknown: a success that cannot be read.
    """
    if reply.status >= 400:
        return _refusal(reply)
    try:
        return _READERS[type(request)](reply)
    except (Invalid, KeyError, TypeError, ValueError, AttributeError) as error:
        raise Unknown(f"an answer that cannot be read: {error!r}") from error


def _headers(options: m.Options | None) -> dict[str, str]:
    if options is None:
        return {}
    named = {
        wire.CONSISTENCY: None if options.consistency is None else m.CONSISTENCIES[options.consistency],
        wire.DURABILITY: None if options.durability is None else m.DURABILITIES[options.durability],
        wire.MIN_TOKEN: options.min_token,
        wire.EPOCH: options.epoch,
        wire.IDEMPOTENCY_KEY: options.idempotency_key,
    }
    return {name: str(value) for name, value in named.items() if value is not None}


def _query(limit: int, cursor: str, **bounds: str) -> str:
    given = {"limit": str(limit or ""), "cursor": cursor, **bounds}
    return "?" + "&".join(f"{name}={wire.segment(value)}" for name, value in given.items() if value)


def _refusal(reply: Reply) -> m.Refusal:
    try:
        problem = decode_json(reply.body)
    except Invalid:
        problem = None
    document = problem if isinstance(problem, dict) else {}
    extra = {
        name: member for name, member in document.items() if name not in {"type", "title", "status", "detail"}
    }
    detail = str(document.get("detail", f"HTTP {reply.status}"))
    about = reply.headers.get(wire.PARTITION, ""), _token(reply), _epoch(reply)
    return m.Refusal(0, str(document.get("title", "")), reply.status, detail, *about, extra)


def _about(reply: Reply, document: Document) -> tuple[int, str, Token | None, int]:
    token = _token(reply)
    if token is None and document.get("token"):
        token = Token.parse(str(document["token"]), field="token")
    return 0, str(document.get("partition", "")), token, _epoch(reply)


def _got(reply: Reply) -> m.Got:
    version = Version.parse(reply.headers[wire.VERSION], field=wire.VERSION)
    return m.Got(0, reply.headers.get(wire.PARTITION, ""), _token(reply), _epoch(reply), reply.body, version)


def _written(reply: Reply) -> m.Written:
    document = decode_json(reply.body)
    return m.Written(*_about(reply, document), _version(document), _durability(reply))


def _deleted(reply: Reply) -> m.Deleted:
    document = decode_json(reply.body)
    existed = document["existed"] is True
    return m.Deleted(*_about(reply, document), existed, _version_or_none(document), _durability(reply))


def _committed(reply: Reply) -> m.Committed:
    document = decode(reply.body)
    results = [_done(result) for result in document["results"]]
    succeeded, version = document["succeeded"] is True, _version_or_none(document)
    return m.Committed(*_about(reply, document), succeeded, results, version, _durability(reply))


def _done(result: Document) -> m.Done:
    if "existed" in result:
        return m.DeleteDone(result["existed"] is True)
    if "found" not in result:
        return m.PutDone()
    if not result["found"]:
        return m.GetDone(None, None)
    return m.GetDone(wire.value_of(result, field="results"), _version(result))


def _listed(reply: Reply) -> m.Listed:
    document = decode_json(reply.body)
    items = [
        m.Item(str(item["key"]), wire.value_of(item, field="items"), _version(item)) for item in document["items"]
    ]
    tokens = {
        str(name): Token.parse(str(token), field="tokens") for name, token in document.get("tokens", {}).items()
    }
    return m.Listed(*_about(reply, document), items, document.get("cursor") or "", tokens, None)


def _changes(reply: Reply) -> m.Changes:
    document = decode_json(reply.body)
    changes = [
        m.Change(_version(item), None if item.get("deleted") else wire.value_of(item, field="items"))
        for item in document["items"]
    ]
    return m.Changes(*_about(reply, document), changes, document.get("cursor") or "")


def _routes(reply: Reply) -> m.Routes:
    document = decode_json(reply.body)
    located = [
        m.Located(
            str(entry["partition"]),
            int(entry["index"]),
            int(entry["epoch"]),
            str(entry["owner"] or ""),
            str(entry["http"] or ""),
            Token.parse(str(entry["token"]), field="token") if entry.get("token") else None,
        )
        for entry in document["partitions"]
    ]
    return m.Routes(0, "", None, 0, dict(document["partitioning"]), located)


_READERS: Final[Mapping[type, Callable[[Reply], m.Answer]]] = {
    m.Get: _got,
    m.Put: _written,
    m.Delete: _deleted,
    m.Txn: _committed,
    m.List: _listed,
    m.History: _changes,
    m.Route: _routes,
}


def _token(reply: Reply) -> Token | None:
    text = reply.headers.get(wire.TOKEN)
    try:
        return Token.parse(text, field=wire.TOKEN) if text else None
    except Invalid:
        return None


def _epoch(reply: Reply) -> int:
    text = reply.headers.get(wire.EPOCH, "")
    return int(text) if text.isdecimal() and len(text) < 19 else 0


def _durability(reply: Reply) -> int:
    # The weaker one where it is not said: then a success must come in time to be believed.
    text = reply.headers.get(wire.DURABILITY)
    return m.DURABILITIES.index(text) if text in m.DURABILITIES else 0


def _version(document: Document) -> Version:
    return Version.parse(str(document.get("version")), field="version")


def _version_or_none(document: Document) -> Version | None:
    return _version(document) if document.get("version") else None
