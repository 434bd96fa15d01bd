"""Structural schemas: defaults, pruning and validation.

The same interpreter serves custom resources (their `openAPIV3Schema`) and built-in kinds (the field names and
types in kubernetes.json).

Invariants:
  * `prune` and `fill_defaults` work in place on a copy that their caller owns; `causes_of` changes nothing.
  * Rules (CEL) of a node run only if nothing else is wrong in the whole object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from . import cel
from .errors import (
    Cause,
    field_duplicate,
    field_invalid,
    field_not_supported,
    field_required,
    field_too_long,
    field_too_many,
    field_type,
)
from .store import Object, copied

DEFINITIONS_PREFIX: Final = "#/components/schemas/"
META: Final = "io.k8s.apimachinery.pkg.apis.meta.v1."


@lru_cache(maxsize=1)
def builtin_types() -> dict[str, Object]:
    """Names and types of the fields of all built-in kinds."""
    types: dict[str, Object] = json.loads(Path(__file__).with_name("kubernetes.json").read_text("utf-8"))
    return types


@lru_cache(maxsize=1)
def _names_by_kind() -> dict[tuple[str, str, str], str]:
    return {
        (one["group"], one["version"], one["kind"]): name
        for name, schema in builtin_types().items()
        for one in schema.get("x-kubernetes-group-version-kind") or ()
    }


def builtin_schema(group: str, version: str, kind: str) -> Object | None:
    """The schema of a built-in kind, None if it has none here."""
    name = _names_by_kind().get((group, version, kind))
    return None if name is None else builtin_types()[name]


def type_name(schema: Object) -> str:
    """The name of the type that a schema refers to, empty if it is written out."""
    reference: str = schema.get("$ref", "")
    return reference.removeprefix(DEFINITIONS_PREFIX)


def resolved(schema: Object) -> Object:
    """Follow a reference; list and patch extensions beside it stay visible."""
    name = type_name(schema)
    if not name:
        return schema
    return builtin_types()[name]


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _value_schema(schema: Object) -> Object | None:
    inner = schema.get("additionalProperties")
    return inner if isinstance(inner, dict) else None


# Pruning


def prune(value: Any, schema: Object, path: str, unknown: list[str], *, builtin: bool = False) -> None:
    """Remove the fields that the schema does not know, and note their paths.

    A built-in type without any property takes every document; a custom one takes none.
    """
    schema = resolved(schema)
    if isinstance(value, dict):
        properties = schema.get("properties") or {}
        inner = _value_schema(schema)
        free = builtin and "properties" not in schema
        keep = free or schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("additionalProperties")
        embedded = _EMBEDDED if schema.get("x-kubernetes-embedded-resource") else frozenset()
        for name in list(value):
            where = _join(path, name)
            below = properties.get(name, inner)
            if below is not None:
                prune(value[name], below, where, unknown, builtin=builtin)
            elif not keep and name not in embedded:
                del value[name]
                unknown.append(where)
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for index, item in enumerate(value):
            prune(item, schema["items"], f"{path}[{index}]", unknown, builtin=builtin)


_EMBEDDED: Final = frozenset({"apiVersion", "kind", "metadata"})


# Defaults


def fill_defaults(value: Any, schema: Object) -> Any:
    """Put the schema's defaults where values are missing (or null and may not be)."""
    schema = resolved(schema)
    if isinstance(value, dict):
        for name, inner in (schema.get("properties") or {}).items():
            if "default" in inner and (name not in value or (value[name] is None and not _nullable(inner))):
                value[name] = copied(inner["default"])
            elif name in value and value[name] is None and not _nullable(inner) and "default" not in inner:
                continue
            if name in value:
                value[name] = fill_defaults(value[name], inner)
        inner_schema = _value_schema(schema)
        if inner_schema is not None:
            known = schema.get("properties") or {}
            for name in value:
                if name not in known:
                    value[name] = fill_defaults(value[name], inner_schema)
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for index, item in enumerate(value):
            value[index] = fill_defaults(item, schema["items"])
    return value


def _nullable(schema: Object) -> bool:
    return bool(schema.get("nullable"))


# Validation


def type_of(value: Any) -> str:
    """The JSON Schema type of a value."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "integer" if value.is_integer() else "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def _is_type(value: Any, wanted: str) -> bool:
    found = type_of(value)
    return found == wanted or (wanted == "number" and found == "integer")


def causes_of(value: Any, schema: Object, path: str) -> Iterator[Cause]:
    """Everything but rules that is wrong with a value."""
    schema = resolved(schema)
    if value is None and _nullable(schema):
        return
    if schema.get("x-kubernetes-int-or-string"):
        if type_of(value) not in {"integer", "string"}:
            yield _wrong_type(path, value, "integer,string")
            return
    elif "type" in schema and not _is_type(value, schema["type"]):
        yield _wrong_type(path, value, schema["type"])
        return
    match value:
        case str():
            yield from _text_causes(value, schema, path)
        case bool():
            pass
        case int() | float():
            yield from _number_causes(value, schema, path)
        case list():
            yield from _list_causes(value, schema, path)
        case dict():
            yield from _object_causes(value, schema, path)
    if "enum" in schema and value not in schema["enum"]:
        yield field_not_supported(path, value, schema["enum"])
    yield from _combined_causes(value, schema, path)


def _wrong_type(path: str, value: Any, wanted: str) -> Cause:
    found = type_of(value)
    return field_type(path, found, f'{path} in body must be of type {wanted}: "{found}"')


def _text_causes(value: str, schema: Object, path: str) -> Iterator[Cause]:
    length = len(value)
    if "maxLength" in schema and length > schema["maxLength"]:
        yield field_too_long(path, schema["maxLength"])
    if "minLength" in schema and length < schema["minLength"]:
        text = f"{path} in body should be at least {schema['minLength']} chars long"
        yield field_invalid(path, value, text)
    if "pattern" in schema and not _pattern(schema["pattern"]).search(value):
        yield field_invalid(path, value, f"{path} in body should match '{schema['pattern']}'")
    if "format" in schema and not _has_format(value, schema["format"]):
        wanted = schema["format"]
        yield field_type(path, value, f'{path} in body must be of type {wanted}: "{value}"')


@lru_cache(maxsize=512)
def _pattern(source: str) -> re.Pattern[str]:
    # RE2's `$` is the end of the text, Python's may stand before a last newline.
    return re.compile(re.sub(r"(?<!\\)\$(?=$|\))", r"\\Z", source))


_UUID: Final = re.compile(r"^[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}$", re.IGNORECASE)
_DATE_TIME: Final = re.compile(r"^\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)$")


def _has_format(value: str, form: str) -> bool:
    match form:
        case "date-time":
            return bool(_DATE_TIME.match(value)) and _is_moment(value)
        case "date":
            return bool(re.fullmatch(r"\d{4}-\d\d-\d\d", value)) and _is_moment(value)
        case "uuid":
            return bool(_UUID.match(value))
        case "duration":
            return bool(re.fullmatch(r"-?([0-9.]+(ns|us|µs|ms|s|m|h))+|0", value))
        case _:
            return True  # As the real server: an unknown format is no rule.


def _is_moment(value: str) -> bool:
    try:
        datetime.fromisoformat(re.sub(r"\.\d+", "", value.upper().replace("Z", "+00:00")))
    except ValueError:
        return False
    return True


_BOUNDS: Final = {
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
}


def _number_causes(value: float, schema: Object, path: str) -> Iterator[Cause]:
    if "minimum" in schema:
        least, open_end = schema["minimum"], schema.get("exclusiveMinimum")
        if value < least or (open_end and value == least):
            words = "greater than" if open_end else "greater than or equal to"
            yield field_invalid(path, value, f"{path} in body should be {words} {least}")
    if "maximum" in schema:
        most, open_end = schema["maximum"], schema.get("exclusiveMaximum")
        if value > most or (open_end and value == most):
            words = "less than" if open_end else "less than or equal to"
            yield field_invalid(path, value, f"{path} in body should be {words} {most}")
    if "multipleOf" in schema and value % schema["multipleOf"] != 0:
        yield field_invalid(path, value, f"{path} in body should be a multiple of {schema['multipleOf']}")
    bounds = _BOUNDS.get(schema.get("format", ""))
    if bounds and not bounds[0] <= value <= bounds[1]:
        text = f"{path} in body must be of type {schema['format']}: {json.dumps(value)}"
        yield field_invalid(path, value, text)


def _list_causes(value: list[Any], schema: Object, path: str) -> Iterator[Cause]:
    if "maxItems" in schema and len(value) > schema["maxItems"]:
        yield field_too_many(path, len(value), schema["maxItems"])
    if "minItems" in schema and len(value) < schema["minItems"]:
        text = f"{path} in body should have at least {schema['minItems']} items"
        yield field_invalid(path, len(value), text)
    if isinstance(schema.get("items"), dict):
        for index, item in enumerate(value):
            yield from causes_of(item, schema["items"], f"{path}[{index}]")
    kind = schema.get("x-kubernetes-list-type")
    if kind in {"set", "map"}:
        seen: list[Any] = []
        for index, item in enumerate(value):
            mark = item if kind == "set" else _map_key(item, schema)
            if mark in seen:
                yield field_duplicate(f"{path}[{index}]", mark)
            seen.append(mark)


def _map_key(item: Any, schema: Object) -> Any:
    keys = schema.get("x-kubernetes-list-map-keys") or ()
    return {key: item.get(key) for key in keys} if isinstance(item, dict) else item


def _object_causes(value: Object, schema: Object, path: str) -> Iterator[Cause]:
    properties = schema.get("properties") or {}
    inner = _value_schema(schema)
    for name in schema.get("required") or ():
        if name not in value:
            yield field_required(_join(path, name))
    if "maxProperties" in schema and len(value) > schema["maxProperties"]:
        yield field_too_many(path, len(value), schema["maxProperties"])
    if "minProperties" in schema and len(value) < schema["minProperties"]:
        text = f"{path} in body should have at least {schema['minProperties']} properties"
        yield field_invalid(path, len(value), text)
    for name, item in value.items():
        if name in properties:
            yield from causes_of(item, properties[name], _join(path, name))
        elif inner is not None:
            yield from causes_of(item, inner, _join(path, name))


def _combined_causes(value: Any, schema: Object, path: str) -> Iterator[Cause]:
    for part in schema.get("allOf") or ():
        yield from causes_of(value, part, path)
    for words, most in (("anyOf", None), ("oneOf", 1)):
        parts = schema.get(words)
        if not parts:
            continue
        held = sum(1 for part in parts if next(causes_of(value, part, path), None) is None)
        if held == 0 or (most is not None and held > most):
            which = "at least one" if words == "anyOf" else "one and only one"
            text = f'"{path}" must validate {which} schema ({words})'
            yield field_invalid(path, type_of(value) if held == 0 else value, text)
    if "not" in schema and next(causes_of(value, schema["not"], path), None) is None:
        yield field_invalid(path, value, f'"{path}" must not validate the schema (not)')


# Rules


_MISSING: Final = object()


def rule_causes(
    value: Any, schema: Object, path: str, old: Any = _MISSING, *, correlated: bool = False
) -> Iterator[Cause]:
    """What CEL rules refuse, from the outside in. `correlated`: `old` is this place's earlier value."""
    if value is None:
        return
    if schema.get("x-kubernetes-validations"):
        place = cel.Place(path=path, value=value, old=old if correlated else None, correlated=correlated)
        yield from cel.broken_rules(schema, place)
    if isinstance(value, dict):
        properties = schema.get("properties") or {}
        inner = _value_schema(schema)
        for name in sorted(value):
            below = properties.get(name, inner)
            if below is not None:
                was, known = _earlier(old, name, correlated=correlated)
                yield from rule_causes(value[name], below, _join(path, name), was, correlated=known)
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        by_key = schema.get("x-kubernetes-list-type") == "map"
        for index, item in enumerate(value):
            was, known = _earlier_item(old, item, schema) if correlated and by_key else (None, False)
            yield from rule_causes(item, schema["items"], f"{path}[{index}]", was, correlated=known)


def _earlier(old: Any, name: str, *, correlated: bool) -> tuple[Any, bool]:
    if correlated and isinstance(old, dict) and old.get(name) is not None:
        return old[name], True
    return None, False


def _earlier_item(old: Any, item: Any, schema: Object) -> tuple[Any, bool]:
    if isinstance(old, list):
        for was in old:
            if _map_key(was, schema) == _map_key(item, schema):
                return was, True
    return None, False
