"""HTTP requests, read into calls. Pure: no sockets, no tables.

Invariants:
  * A request that is not understood as a whole is refused: unknown parameters, members and `FenceKV-` headers are
    errors, because each of them could be a condition that the caller relies on.
  * Every refusal names the field, and the limit where there is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fencekv import wire
from fencekv.codec import decode, decode_json
from fencekv.errors import FenceKVError, Invalid, TooLarge
from fencekv.token import Token, Version
from fencekv_shard import limits
from fencekv_shard.api import Consistency, Durability, Options
from fencekv_shard.calls import Call, Get, History, List, WhereIs, Write, WriteKind
from fencekv_shard.transaction import Compare, Delete, Put, Relation, Target, Transaction, validate, validate_key
from fencekv_shard.transaction import Get as GetOperation
from fencekv_shard.txn_document import parse_transaction
from fencekv_shard.values import Value

NAME_CHARS_MAX: Final = 253  # of namespaces, tables and pods, as Kubernetes has it
EPOCH_MAX: Final = 2**31 - 1
PARTITION_INDEX_MAX: Final = 1023
SEQ_MAX: Final = 2**63 - 1
RELEASE_BYTES_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class Route:
    """A line of the routing table."""

    method: str
    template: str
    name: str
    query: tuple[str, ...] = ()
    body_bytes_max: int = 0
    preconditions: bool = False  # If-Match and If-None-Match
    writes: bool = False


ROUTES: Final = (
    Route("GET", "/v1/{namespace}/{table}/keys/{key}", "get"),
    Route(
        "PUT",
        "/v1/{namespace}/{table}/keys/{key}",
        "put",
        body_bytes_max=limits.VALUE_BYTES_MAX,
        preconditions=True,
        writes=True,
    ),
    Route("DELETE", "/v1/{namespace}/{table}/keys/{key}", "delete", preconditions=True, writes=True),
    Route(
        "GET",
        "/v1/{namespace}/{table}/keys",
        "list",
        query=("prefix", "start", "end", "limit", "cursor", "partition"),
    ),
    Route("POST", "/v1/{namespace}/{table}/txn", "txn", body_bytes_max=limits.BODY_BYTES_MAX, writes=True),
    Route("GET", "/v1/{namespace}/{table}/history/{key}", "history", query=("limit", "cursor")),
    Route("GET", "/v1/route/{namespace}/{table}", "route", query=("key",)),
    Route("GET", "/healthz", "healthz"),
    Route("GET", "/readyz", "readyz"),
    Route("GET", "/metrics", "metrics"),
    Route("GET", "/openapi.json", "openapi"),
    Route("GET", "/peer/v1/report", "report"),
    Route("GET", "/peer/v1/chain", "chain", query=("uid", "seq")),
    Route("POST", "/peer/v1/release", "release", body_bytes_max=RELEASE_BYTES_MAX),
)

_KINDS: Final = {kind.value: kind for kind in WriteKind}  # by their routes' names

_NAMES: Final = ("namespace", "table")
_Shape = tuple[str | None, ...]  # a template's parts; None: any text


def _shapes() -> dict[_Shape, dict[str, Route]]:
    shapes: dict[_Shape, dict[str, Route]] = {}
    for route in ROUTES:
        parts = route.template[1:].split("/")
        shape = tuple(None if part.startswith("{") else part for part in parts)
        shapes.setdefault(shape, {})[route.method] = route
    return shapes


_SHAPES: Final = _shapes()
_LABELS: Final = {
    route.template: [
        (at, part[1:-1]) for at, part in enumerate(route.template[1:].split("/")) if part.startswith("{")
    ]
    for route in ROUTES
}


class Matched(Value):
    """A request whose path and method are known. `names`: what stands in the path."""

    __match_args__ = ("route", "names", "query")
    __slots__ = __match_args__

    def __init__(self, route: Route, names: Mapping[str, str], query: Mapping[str, str]) -> None:
        self.route, self.names, self.query = route, names, query


class NoSuchPath(FenceKVError):
    """404 and 405 of paths, not of keys: `Invalid` with a status of its own."""

    name = "Invalid"
    default_status = 404


def match(method: str, target: str) -> Matched:
    """Finds the route of a request target.

    Raises:
        NoSuchPath: 404, or 405 with `allow`.
        Invalid: the path or the query is malformed.
    """
    path, _, query = target.partition("?")
    parts = path[1:].split("/") if path.startswith("/") else []
    methods = _methods(parts)
    if methods is None:
        if len(parts) > 5 and parts[0] == "v1" and parts[3] in {"keys", "history"}:
            raise Invalid("key: '/' in a key is written %2F", field="key")
        raise NoSuchPath(f"path: no such path: {path[:200]!r}", field="path")
    route = methods.get(method)
    if route is None:
        allow = ", ".join(sorted(methods))
        raise NoSuchPath(f"method: {method[:20]!r} is not one of {allow}", status=405, field="method", allow=allow)
    names = {label: _unquote(parts[at], label) for at, label in _LABELS[route.template]}
    for label in _NAMES:
        name = names.get(label)
        if name is not None and not 0 < len(name) <= NAME_CHARS_MAX:
            limit = NAME_CHARS_MAX
            raise Invalid(f"{label}: want 1 to {limit} characters", status=404, field=label, limit=limit)
    return Matched(route=route, names=names, query=_query(query, route.query))


def _methods(parts: Sequence[str]) -> Mapping[str, Route] | None:
    exact = _SHAPES.get(tuple(parts))
    if exact is not None:
        return exact
    if len(parts) == 4:
        return _SHAPES.get((parts[0], parts[1], None, None)) or _SHAPES.get((parts[0], None, None, parts[3]))
    return _SHAPES.get((parts[0], None, None, parts[3], None)) if len(parts) == 5 else None


def parse(matched: Matched, headers: Iterable[tuple[str, str]], body: bytes) -> Call:
    """Reads a matched request of `/v1`, whose body was read up to the route's limit.

    Raises:
        Invalid, TooLarge: naming the field, and the limit.
    """
    route, query = matched.route, matched.query
    fields = _Fields(headers, route)
    namespace, table = matched.names["namespace"], matched.names["table"]
    options, forwarded = fields.options(), fields.forwarded()
    if body and not route.body_bytes_max:
        raise Invalid("body: this request has none", field="body", limit=0)
    key = matched.names.get("key", "")
    if route.name in {"get", "put", "delete", "history"}:
        validate_key(key)
    if route.name == "get":
        return Get(namespace, table, options, key, forwarded)
    if route.writes:
        transaction = _transaction(route, fields, key, body)
        return Write(namespace, table, options, _KINDS[route.name], transaction, forwarded)
    shared: dict[str, Any] = {
        "namespace": namespace,
        "table": table,
        "options": options,
        "forwarded": forwarded,
    }
    if route.name == "history":
        return History(key=key, limit=_limit(query), cursor=query.get("cursor", ""), **shared)
    if route.name == "list":
        return _list(query, shared)
    assert route.name == "route", route
    if "key" in query:
        validate_key(query["key"])
    return WhereIs(key=query.get("key"), **shared)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseAsked:
    """The operator wants a partition given away that is owned under `epoch`; `target`: a pod, or empty."""

    uid: str
    epoch: int
    target: str


def parse_release(body: bytes) -> ReleaseAsked:
    """Reads the body of `POST /peer/v1/release`, passing over what it does not know. Raises Invalid."""
    document = decode_json(body)
    if not isinstance(document, dict) or not {"uid", "epoch"} <= document.keys():
        raise Invalid("body: want an object with uid, epoch and perhaps target", field="body")
    uid, epoch, target = document["uid"], document["epoch"], document.get("target", "")
    if not isinstance(uid, str) or not isinstance(target, str) or max(len(uid), len(target)) > NAME_CHARS_MAX:
        limit = NAME_CHARS_MAX
        raise Invalid(f"uid, target: want texts of at most {limit} characters", field="uid", limit=limit)
    if not isinstance(epoch, int) or isinstance(epoch, bool) or not 0 <= epoch <= EPOCH_MAX:
        raise Invalid(f"epoch: want a number from 0 to {EPOCH_MAX}", field="epoch", limit=EPOCH_MAX)
    return ReleaseAsked(uid=uid, epoch=epoch, target=target)


def parse_chain(query: Mapping[str, str]) -> tuple[str, int]:
    """Reads uid and seq of `GET /peer/v1/chain`. Raises Invalid."""
    uid, text = query.get("uid", ""), query.get("seq", "")
    if not 0 < len(uid) <= NAME_CHARS_MAX:
        raise Invalid(f"uid: want 1 to {NAME_CHARS_MAX} characters", field="uid", limit=NAME_CHARS_MAX)
    if not re.fullmatch("0|[1-9][0-9]{0,18}", text) or int(text) > SEQ_MAX:
        raise Invalid(f"seq: want a number from 0 to {SEQ_MAX}", field="seq", limit=SEQ_MAX)
    return uid, int(text)


def check_body_size(route: Route, size: int) -> None:
    """Refuses a body that is larger than the route takes, by its announced size or while it is being read."""
    if size > route.body_bytes_max > 0:
        name, limit = ("value" if route.name == "put" else "body"), route.body_bytes_max
        raise TooLarge(f"{name}: more than {limit} bytes", field=name, limit=limit)
    if size > route.body_bytes_max:
        raise Invalid("body: this request has none", field="body", limit=0)


def _transaction(route: Route, fields: _Fields, key: str, body: bytes) -> Transaction:
    idempotency_key = fields.idempotency_key()
    if route.name == "txn":
        transaction = parse_transaction(fields.document(body), idempotency_key=idempotency_key)
    else:
        condition = fields.precondition(key)
        transaction = Transaction(
            compare=condition,
            then=(Put(key, body) if route.name == "put" else Delete(key),),
            # A condition that does not hold is answered with the version that stands there.
            otherwise=(GetOperation(key),) if condition else (),
            idempotency_key=idempotency_key,
        )
    validate(transaction)
    return transaction


def _list(query: Mapping[str, str], shared: Mapping[str, Any]) -> List:
    for name in ("prefix", "start", "end"):
        text = query.get(name, "")
        if "\x00" in text:
            raise Invalid(f"{name}: has a NUL", field=name)
        size, limit = len(text.encode()), limits.KEY_BYTES_MAX
        if size > limit:
            raise TooLarge(f"{name}: {size} bytes, at most {limit}", field=name, limit=limit)
    start, end = wire.bounds(query.get("prefix", ""), query.get("start", ""), query.get("end", ""))
    partition = query.get("partition")
    return List(
        start=start,
        end=end,
        limit=_limit(query),
        cursor=query.get("cursor", ""),
        partition=None
        if partition is None
        else _number(partition, "partition", least=0, most=PARTITION_INDEX_MAX),
        **shared,
    )


def _limit(query: Mapping[str, str]) -> int:
    text = query.get("limit")
    return (
        limits.LIST_ITEMS_DEFAULT if text is None else _number(text, "limit", least=1, most=limits.LIST_ITEMS_MAX)
    )


def _number(text: str, field: str, *, least: int, most: int) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text, re.ASCII) or not least <= int(text) <= most:
        raise Invalid(f"{field}: want a number from {least} to {most}, got {text[:64]!r}", field=field, limit=most)
    return int(text)


def _unquote(text: str, field: str) -> str:
    if "%" in text or not text.isascii():
        try:
            raw = re.sub(rb"%(..?)?", _octet, text.encode("utf-8", "surrogateescape"), flags=re.DOTALL)
            return raw.decode()
        except UnicodeError as error:
            raise Invalid(f"{field}: not UTF-8", field=field) from error
        except ValueError as error:
            raise Invalid(f"{field}: malformed percent-encoding", field=field) from error
    return text


def _octet(match: re.Match[bytes]) -> bytes:
    digits = match[1] or b""
    if not re.fullmatch(rb"[0-9A-Fa-f]{2}", digits):
        raise ValueError(digits)
    return bytes([int(digits, 16)])


def _query(text: str, known: Sequence[str]) -> Mapping[str, str]:
    query: dict[str, str] = {}
    for part in text.split("&") if text else ():
        raw_name, _, raw_value = part.partition("=")
        name = _unquote(raw_name.replace("+", " "), "query")
        if name not in known:
            choice = f"one of {', '.join(known)}" if known else "none"
            raise Invalid(f"query: unknown parameter {name[:64]!r}, want {choice}", field=name[:64])
        if name in query:
            raise Invalid(f"{name}: given twice", field=name)
        query[name] = _unquote(raw_value.replace("+", " "), name)
    return query


_CONDITIONS: Final = (wire.IF_MATCH, wire.IF_NONE_MATCH)
_KNOWN: Final = {
    name.lower(): name
    for name in (
        wire.MIN_TOKEN,
        wire.CONSISTENCY,
        wire.DURABILITY,
        wire.EPOCH,
        wire.FORWARDED,
        wire.IDEMPOTENCY_KEY,
        *_CONDITIONS,
        "Content-Type",
        "Content-Encoding",
    )
}
_OPTIONS: Final = frozenset({wire.MIN_TOKEN, wire.CONSISTENCY, wire.DURABILITY, wire.EPOCH})
_NO_OPTIONS: Final = Options()
_ONLY_FOR: Final = {
    wire.IF_MATCH: "PUT and DELETE of a key",
    wire.IF_NONE_MATCH: "PUT and DELETE of a key",
    wire.IDEMPOTENCY_KEY: "writes",
}


class _Fields:
    """The headers that mean something, each at most once."""

    def __init__(self, headers: Iterable[tuple[str, str]], route: Route) -> None:
        self._values: dict[str, str] = {}
        for raw_name, value in headers:
            lower = raw_name.lower()
            name = _KNOWN.get(lower)
            if name is None:
                if lower.startswith("fencekv-"):
                    raise Invalid(f"{raw_name[:64]}: unknown header", field=raw_name[:64])
                continue
            if name in self._values:
                raise Invalid(f"{name}: given twice", field=name)
            self._values[name] = value
        if self._values.get("Content-Encoding", "identity") != "identity":
            raise Invalid("Content-Encoding: want none", field="Content-Encoding")
        for name, use in _ONLY_FOR.items():
            allowed = route.writes if name == wire.IDEMPOTENCY_KEY else route.preconditions
            if not allowed and name in self._values:
                raise Invalid(f"{name}: only for {use}", field=name)

    def options(self) -> Options:
        values = self._values
        if _OPTIONS.isdisjoint(values):
            return _NO_OPTIONS
        token, epoch = values.get(wire.MIN_TOKEN), values.get(wire.EPOCH)
        consistency, durability = values.get(wire.CONSISTENCY), values.get(wire.DURABILITY)
        return Options(
            consistency=Consistency.PRIMARY if consistency is None else _consistency(consistency),
            durability=None if durability is None else _durability(durability),
            min_token=None if token is None else Token.parse(token, field=wire.MIN_TOKEN),
            epoch=None if epoch is None else _number(epoch, wire.EPOCH, least=0, most=EPOCH_MAX),
        )

    def forwarded(self) -> str:
        pod = self._values.get(wire.FORWARDED)
        if pod is not None and not 0 < len(pod) <= NAME_CHARS_MAX:
            limit = NAME_CHARS_MAX
            raise Invalid(f"{wire.FORWARDED}: want 1 to {limit} characters", field=wire.FORWARDED, limit=limit)
        return pod or ""

    def idempotency_key(self) -> bytes:
        text = self._values.get(wire.IDEMPOTENCY_KEY)
        if text == "":
            raise Invalid(f"{wire.IDEMPOTENCY_KEY}: empty", field=wire.IDEMPOTENCY_KEY)
        return b"" if text is None else text.encode("utf-8", "surrogateescape")

    def precondition(self, key: str) -> tuple[Compare, ...]:
        given = [name for name in _CONDITIONS if name in self._values]
        if len(given) > 1:
            raise Invalid("If-None-Match: does not go with If-Match", field=wire.IF_NONE_MATCH)
        if not given:
            return ()
        name, text = given[0], self._values[given[0]]
        if text == "*":
            return (Compare(key, Target.EXISTS, Relation.EQUAL, name == wire.IF_MATCH),)
        quoted = re.fullmatch(r'"([0-9.]{1,64})"', text, re.ASCII)
        if name == wire.IF_NONE_MATCH or quoted is None:
            want = "*" if name == wire.IF_NONE_MATCH else '"<version>" or *'
            raise Invalid(f"{name}: want {want}, got {text[:64]!r}", field=name)
        version = Version.parse(quoted[1], field=name)
        return (Compare(key, Target.VERSION, Relation.EQUAL, version),)

    def document(self, body: bytes) -> object:
        content_type = self._values.get("Content-Type", "").lower().replace(" ", "")
        if content_type == wire.CBOR:
            return decode(body)
        if content_type in {wire.JSON, f"{wire.JSON};charset=utf-8"}:
            return decode_json(_utf8(body))
        got = content_type[:64] or "none"
        raise Invalid(f"Content-Type: want {wire.JSON} or {wire.CBOR}, got {got}", field="Content-Type")


def _utf8(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise Invalid("body: not UTF-8", field="body") from error


def _consistency(text: str) -> Consistency:
    try:
        return Consistency(text)
    except ValueError as error:
        detail = f"{wire.CONSISTENCY}: want one of {', '.join(Consistency)}, got {text[:64]!r}"
        raise Invalid(detail, field=wire.CONSISTENCY) from error


def _durability(text: str) -> Durability:
    try:
        return Durability(text)
    except ValueError as error:
        detail = f"{wire.DURABILITY}: want one of {', '.join(Durability)}, got {text[:64]!r}"
        raise Invalid(detail, field=wire.DURABILITY) from error
