"""The OpenAPI document of a shard, made from the routing table: it lists what is served and nothing else."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

from fencekv import wire
from fencekv.errors import ERRORS
from fencekv_shard import limits
from fencekv_shard.api import Consistency, Durability
from fencekv_shard.http_requests import ROUTES, Route

_SUMMARIES: Final = {
    "get": "Read a key",
    "put": "Set a key",
    "delete": "Remove a key",
    "list": "A page of keys, in the order of their bytes",
    "txn": "Compare, then do one thing or the other, atomically in one partition",
    "history": "Versions of a key, newest first",
    "route": "Who owns the partitions of a table",
    "healthz": "Whether the process works",
    "readyz": "Whether the shard serves",
    "metrics": "Counters in the text form of Prometheus",
    "openapi": "This document",
    "report": "What this shard holds of each partition; for the operator",
    "chain": "The chain hash of a journal entry; for the operator",
    "release": "Give a partition away in a planned move; for the operator",
}
_TEXT: Final = {"type": "string"}
_PAIR: Final = {"type": "string", "pattern": r"^(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)$"}
_NULLABLE_PAIR: Final = {"type": ["string", "null"]}
_QUERY: Final[dict[str, dict[str, Any]]] = {
    "prefix": _TEXT | {"description": "Keys that begin with it"},
    "start": _TEXT | {"description": "First key"},
    "end": _TEXT | {"description": "Key to stop before"},
    "limit": {"type": "integer", "minimum": 1, "maximum": limits.LIST_ITEMS_MAX},
    "cursor": _TEXT | {"description": "The cursor of the page before"},
    "partition": {"type": "integer", "minimum": 0, "description": "Keys of this partition only"},
    "key": _TEXT | {"description": "The partition of this key only"},
    "uid": _TEXT | {"description": "UID of a KVPartition"},
    "seq": {"type": "integer", "minimum": 0, "description": "Number of a journal entry"},
}
_HEADERS: Final[dict[str, dict[str, Any]]] = {
    wire.MIN_TOKEN: _PAIR,
    wire.CONSISTENCY: {"type": "string", "enum": list(Consistency)},
    wire.DURABILITY: {"type": "string", "enum": list(Durability)},
    wire.EPOCH: {"type": "integer", "minimum": 0},
}
_VALUE: Final = {"value": _TEXT, "base64": {"type": "string", "contentEncoding": "base64"}}


@lru_cache(maxsize=1)
def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.template, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "FenceKV shard",
            "version": "v1",
            "summary": "Fenced key-value partitions over HTTP",
        },
        "paths": paths,
        "components": {"schemas": _schemas()},
    }


def _operation(route: Route) -> dict[str, Any]:
    names = [part[1:-1] for part in route.template.split("/") if part.startswith("{")]
    parameters = [_parameter(name, "path", _TEXT) for name in names]
    parameters += [_parameter(name, "query", _QUERY[name]) for name in route.query]
    if route.template.startswith("/v1/"):
        parameters += [_parameter(name, "header", schema) for name, schema in _HEADERS.items()]
    if route.writes:
        schema = {"type": "string", "minLength": 1, "maxLength": limits.IDEMPOTENCY_KEY_BYTES_MAX}
        parameters.append(_parameter(wire.IDEMPOTENCY_KEY, "header", schema))
    if route.preconditions:
        parameters += [_parameter(name, "header", _TEXT) for name in (wire.IF_MATCH, wire.IF_NONE_MATCH)]
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": _SUMMARIES[route.name],
        "parameters": parameters,
        "responses": _responses(route),
    }
    if route.name == "put":
        value = {"schema": {"type": "string", "format": "binary", "maxLength": limits.VALUE_BYTES_MAX}}
        operation["requestBody"] = {"content": {wire.OCTETS: value}}
    if route.name == "release":
        members = {"uid": _TEXT, "epoch": {"type": "integer", "minimum": 0}, "target": _TEXT}
        schema = _object(members, "uid", "epoch", "target")
        operation["requestBody"] = {"required": True, "content": {wire.JSON: {"schema": schema}}}
    if route.name == "txn":
        schema = {"$ref": "#/components/schemas/Transaction"}
        content = {wire.JSON: {"schema": schema}, wire.CBOR: {"schema": schema}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _parameter(name: str, place: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "schema": schema}


def _responses(route: Route) -> dict[str, Any]:
    error = {"schema": {"$ref": "#/components/schemas/Problem"}}
    refusal = {"description": "A problem document", "content": {wire.PROBLEM: error}}
    if route.name in {"healthz", "readyz"}:
        return {"200": {"description": "Yes"}, "503": {"description": "No"}}
    if route.name == "get":
        content: dict[str, Any] = {wire.OCTETS: {"schema": {"type": "string", "format": "binary"}}}
    elif route.name == "metrics":
        content = {"text/plain": {"schema": _TEXT}}
    else:
        named = route.name.capitalize() if route.template.startswith("/v1/") else ""
        schema = {"$ref": f"#/components/schemas/{named}Answer"} if named else {"type": "object"}
        content = {wire.JSON: {"schema": schema}}
        if route.name == "txn":
            content[wire.CBOR] = {"schema": schema}
    done: dict[str, Any] = {"description": "Done", "content": content}
    if route.name in {"get", "put", "delete", "list", "txn", "history"}:
        done["headers"] = {name: {"schema": _TEXT} for name in (wire.TOKEN, wire.EPOCH, wire.PARTITION)}
    return {"202" if route.name == "release" else "200": done, "default": refusal}


def _schemas() -> dict[str, Any]:
    write = {"version": _NULLABLE_PAIR, "token": _PAIR, "partition": _TEXT}
    page = {"cursor": {"type": ["string", "null"]}, "token": _PAIR, "partition": _TEXT}
    item = _object({"key": _TEXT, "version": _PAIR, **_VALUE}, "key", "version")
    change = _object({"version": _PAIR, "deleted": {"const": True}, **_VALUE}, "version")
    tokens = {"type": "object", "additionalProperties": _PAIR}
    partition = {
        "partition": _TEXT,
        "index": {"type": "integer"},
        "epoch": {"type": "integer"},
        "owner": {"type": ["string", "null"]},
        "http": {"type": ["string", "null"]},
        "token": _NULLABLE_PAIR,
    }
    existed = {"type": "boolean"}
    results = {"type": "array", "items": {"type": "object"}}
    answer = {"succeeded": {"type": "boolean"}, "results": results, **write}
    problem = {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string", "enum": list(ERRORS)},
        "status": {"type": "integer"},
        "detail": _TEXT,
        "field": _TEXT,
        "limit": {},
        "owner": _TEXT,
        "epoch": {"type": "integer"},
    }
    return {
        "PutAnswer": _object(write, *write),
        "DeleteAnswer": _object({"existed": existed, **write}, "existed", *write),
        "TxnAnswer": _object(answer, *answer),
        "ListAnswer": _object({"items": _array(item), "tokens": tokens, **page}, "items", "cursor"),
        "HistoryAnswer": _object({"items": _array(change), **page}, "items", *page),
        "RouteAnswer": _object(
            {"partitions": _array(_object(partition, *partition)), "partitioning": {"type": "object"}},
            "partitions",
            "partitioning",
        ),
        "Transaction": _transaction_schema(),
        "Problem": _object(problem, "type", "title", "status", "detail"),
    }


def _transaction_schema() -> dict[str, Any]:
    compare = {
        "key": _TEXT,
        "target": {"type": "string", "enum": ["version", "value", "exists"]},
        "op": {"type": "string", "enum": ["==", "!=", "<", ">"]},
        "version": _PAIR,
        "exists": {"type": "boolean"},
        **_VALUE,
    }
    key = _object({"key": _TEXT}, "key") | {"additionalProperties": False}
    put = _object({"key": _TEXT, **_VALUE}, "key") | {"additionalProperties": False}
    operation = {
        "type": "object",
        "properties": {"put": put, "delete": key, "get": key},
        "minProperties": 1,
        "maxProperties": 1,
        "additionalProperties": False,
    }
    condition = _object(compare, "key", "target", "op") | {"additionalProperties": False}
    members = {"compare": _array(condition), "then": _array(operation), "else": _array(operation)}
    return _object(members) | {"additionalProperties": False}


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


def _array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}
