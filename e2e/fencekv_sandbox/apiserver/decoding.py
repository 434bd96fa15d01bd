"""Bodies into documents, and the errors a typed server finds while it decodes.

Invariants:
  * A body is one document, in JSON, or in YAML where the real server takes it. Protobuf is understood for the few
    kinds that `kubectl create` sends in it; answers are never protobuf.
"""

from __future__ import annotations

import base64
import json
import re
from typing import Any, Final

import yaml

from .errors import ApiError, bad_request, unsupported_media_type
from .message import Request
from .schema import resolved, type_name, type_of
from .store import Object

BODY_BYTES_MAX: Final = 3 * 1024 * 1024
BODY_TYPES: Final = ("application/json", "application/yaml")
PROTOBUF_TYPE: Final = "application/vnd.kubernetes.protobuf"
PATCH_TYPES: Final = (
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
)

_TIME: Final = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$")
_MICRO_TIME: Final = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d\d:\d\d)$")
_MICRO_LAYOUT: Final = "2006-01-02T15:04:05.000000Z07:00"
_LAYOUT: Final = "2006-01-02T15:04:05Z07:00"
_INTEGERS: Final = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1)}


def media_type(request: Request) -> str:
    """The body's media type without parameters."""
    return request.headers.get("content-type", "").split(";", 1)[0].strip().lower()


def document_of(request: Request, kind: str = "") -> Object:
    """The body of a create, update or delete."""
    media = media_type(request) or "application/json"
    if media == PROTOBUF_TYPE:
        document = protobuf_document(request.body)
        if document is not None:
            return document
    if media not in BODY_TYPES:
        raise unsupported_media_type([*BODY_TYPES])
    return load(request.body, yaml_too=media == "application/yaml", kind=kind)


def load(body: bytes, *, yaml_too: bool = False, kind: str = "") -> Object:
    """One document; it must be an object."""
    head = f"the object provided is unrecognized (must be of type {kind}): " if kind else ""
    try:
        document = load_any(body, yaml_too=yaml_too)
    except ApiError as error:
        shown = body[:24].decode("utf-8", "replace") or "<empty>"
        raise bad_request(f"{head}couldn't get version/kind; json parse error: {error} ({shown})") from error
    if not isinstance(document, dict):
        raise bad_request(
            f"{head}couldn't get version/kind; json parse error: json: cannot unmarshal {type_of(document)} "
            "into an object"
        )
    return document


def load_any(body: bytes, *, yaml_too: bool = False) -> Any:
    """One document of any type."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise bad_request(f"the body is not UTF-8: {error}") from error
    try:
        return json.loads(text)
    except ValueError as error:
        if not yaml_too:
            raise bad_request(f"the body is not JSON: {error}") from error
    except RecursionError as error:
        raise bad_request("the body is nested too deep") from error
    try:
        return json.loads(json.dumps(yaml.safe_load(text), default=_yaml_text))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise bad_request(f"error decoding YAML: {error}") from error


def _yaml_text(value: Any) -> str:
    """Timestamps are text in Kubernetes' YAML."""
    return str(value.isoformat()) if hasattr(value, "isoformat") else str(value)


def decode_error(value: Any, shape: Object, owner: str, path: str = "") -> str | None:
    """The first field whose JSON type is not that of the built-in type; None: all are well.

    `owner` is the name of the type that has the field, as errors tell it.
    """
    name = type_name(shape).rsplit(".", 1)[-1]
    where = f"{owner}.{path}" if path else owner
    if value is None:
        return None
    if name in {"MicroTime", "Time"}:
        return _time_error(value, name, where)
    if name in {"Quantity", "IntOrString"}:
        if isinstance(value, dict | list | bool):
            return f"json: cannot unmarshal {_go(value)} into Go struct field {where} of type {name}"
        return None
    shape = resolved(shape)
    if shape.get("type") is not None and not _fits(value, shape):
        kind = _go_type(shape)
        return f"json: cannot unmarshal {_go_value(value, shape)} into Go struct field {where} of type {kind}"
    if isinstance(value, dict):
        properties = shape.get("properties")
        inner = shape.get("additionalProperties")
        owner = owner if properties is None else name or owner
        for field, item in value.items():
            below = (properties or {}).get(field) or (inner if isinstance(inner, dict) else None)
            if below is not None:
                deeper = path if properties is None else f"{path}.{field}" if path else field
                error = decode_error(item, below, owner, deeper)
                if error is not None:
                    return error
    elif isinstance(value, list) and isinstance(shape.get("items"), dict):
        for item in value:
            error = decode_error(item, shape["items"], owner, path)
            if error is not None:
                return error
    return None


def _time_error(value: Any, name: str, where: str) -> str | None:
    if not isinstance(value, str):
        return f"json: cannot unmarshal {_go(value)} into Go struct field {where} of type string"
    micro = name == "MicroTime"
    if (_MICRO_TIME if micro else _TIME).match(value):
        return None
    layout = _MICRO_LAYOUT if micro else _LAYOUT
    rest = value
    for pattern, element in _LAYOUT_STEPS if micro else _LAYOUT_STEPS[:-2] + _LAYOUT_STEPS[-1:]:
        match = re.match(pattern, rest)
        if match is None:
            return f'parsing time "{value}" as "{layout}": cannot parse "{rest}" as "{element}"'
        rest = rest[match.end() :]
    return f'parsing time "{value}": extra text: "{rest}"'


_LAYOUT_STEPS: Final = (
    (r"\d{4}", "2006"), ("-", "-"), (r"\d\d", "01"), ("-", "-"), (r"\d\d", "02"), ("T", "T"),
    (r"\d\d", "15"), (":", ":"), (r"\d\d", "04"), (":", ":"), (r"\d\d", "05"),
    (r"\.\d{6}(?!\d)", ".000000"), (r"Z|[+-]\d\d:\d\d", "Z07:00"),
)  # fmt: skip


def _fits(value: Any, shape: Object) -> bool:
    wanted, found = shape["type"], type_of(value)
    if wanted == "integer":
        if found != "integer" or isinstance(value, float):
            return False
        least, most = _INTEGERS.get(shape.get("format", "int64"), _INTEGERS["int64"])
        return bool(least <= value <= most)
    return found == wanted or (wanted == "number" and found == "integer")


def _go(value: Any) -> str:
    return {"integer": "number", "boolean": "bool"}.get(type_of(value), type_of(value))


def _go_value(value: Any, shape: Object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool) and shape.get("type") == "integer":
        return f"number {value}"
    return _go(value)


def _go_type(shape: Object) -> str:
    match shape.get("type"):
        case "integer":
            return str(shape.get("format", "int64"))
        case "boolean":
            return "bool"
        case "array":
            return "[]" + _go_type(resolved(shape.get("items") or {}))
        case "object":
            inner = shape.get("additionalProperties")
            return "map[string]" + _go_type(resolved(inner)) if isinstance(inner, dict) else "struct"
        case other:
            return str(other)


# Protobuf: fields by number, for the kinds that kubectl makes from its arguments. A type is a text, or a message;
# "*" stands for repeated, "map" for texts by texts, "map bytes" for base64 by texts.

_Message = dict[int, tuple[str, Any]]

_METADATA: Final[_Message] = {
    1: ("name", "text"), 2: ("generateName", "text"), 3: ("namespace", "text"), 5: ("uid", "text"),
    6: ("resourceVersion", "text"), 11: ("labels", "map"), 12: ("annotations", "map"), 14: ("finalizers", "text*"),
}  # fmt: skip
_ASKED: Final[_Message] = {
    number: (name, "text")
    for number, name in enumerate(
        ("namespace", "verb", "group", "version", "resource", "subresource", "name"), start=1
    )
}
_KINDS: Final[dict[tuple[str, str], _Message]] = {
    ("v1", "Namespace"): {1: ("metadata", _METADATA)},
    ("v1", "ServiceAccount"): {1: ("metadata", _METADATA)},
    ("v1", "ConfigMap"): {
        1: ("metadata", _METADATA), 2: ("data", "map"), 3: ("binaryData", "map bytes"), 4: ("immutable", "flag"),
    },
    ("v1", "Secret"): {
        1: ("metadata", _METADATA), 2: ("data", "map bytes"), 3: ("type", "text"), 4: ("stringData", "map"),
        5: ("immutable", "flag"),
    },
    ("authentication.k8s.io/v1", "TokenRequest"): {
        1: ("metadata", _METADATA),
        2: ("spec", {1: ("audiences", "text*"), 4: ("expirationSeconds", "number")}),
    },
    ("authorization.k8s.io/v1", "SelfSubjectAccessReview"): {
        1: ("metadata", _METADATA),
        2: ("spec", {1: ("resourceAttributes", _ASKED)}),
    },
}  # fmt: skip
_MAGIC: Final = b"k8s\x00"
_ENVELOPE: Final[_Message] = {
    1: ("type", {1: ("apiVersion", "text"), 2: ("kind", "text")}),
    2: ("raw", "bytes"),
}


def protobuf_document(body: bytes) -> Object | None:
    """A protobuf body as a document; None: its kind is not understood."""
    if not body.startswith(_MAGIC):
        raise bad_request("the body has no protobuf magic")
    try:
        envelope = _message(body[len(_MAGIC) :], _ENVELOPE)
        named = envelope.get("type", {})
        shape = _KINDS.get((named.get("apiVersion", ""), named.get("kind", "")))
        if shape is None:
            return None
        document = _message(base64.b64decode(envelope.get("raw", "")), shape)
    except (IndexError, UnicodeDecodeError, ValueError) as error:
        raise bad_request(f"the body is no protobuf: {error}") from error
    # A field that is empty on the wire was not set.
    kept = {name: value for name, value in document.items() if value not in ("", {}, [])}
    return {**named, "metadata": {}, **kept}


def _message(data: bytes, shape: _Message) -> Object:
    document: Object = {}
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        value: int | bytes
        match tag & 7:
            case 0:
                value, at = _varint(data, at)
            case 2:
                length, at = _varint(data, at)
                if at + length > len(data):
                    raise ValueError("a field is longer than its message")
                value, at = data[at : at + length], at + length
            case other:
                raise ValueError(f"wire type {other}")
        name, kind = shape.get(tag >> 3, ("", None))
        if name:
            _put(document, name, kind, value)
    return document


def _put(document: Object, name: str, kind: Any, value: int | bytes) -> None:
    if isinstance(value, int):
        document[name] = bool(value) if kind == "flag" else value
    elif isinstance(kind, dict):
        document[name] = _message(value, kind)
    elif kind == "text":
        document[name] = value.decode()
    elif kind == "text*":
        document.setdefault(name, []).append(value.decode())
    elif kind == "bytes":
        document[name] = base64.b64encode(value).decode()
    else:
        pair = _message(value, {1: ("key", "text"), 2: ("value", "bytes" if kind == "map bytes" else "text")})
        document.setdefault(name, {})[pair.get("key", "")] = pair.get("value", "")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
        if shift > 63:
            raise ValueError("a number is too long")
