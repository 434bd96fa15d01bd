"""Bodies into documents, and the errors a typed server finds while it decodes.

Invariants:
  * Only JSON, and YAML where the real server takes it, are decoded; a body is one document.
"""

from __future__ import annotations

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
