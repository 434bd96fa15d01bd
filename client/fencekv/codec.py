"""Strict decoding of everything that comes from outside, and the one way to encode it.

Invariants:
  * A decoded CBOR document has exactly one encoding, the one that was read: no trailing bytes, no tags, no
    indefinite lengths, no duplicate keys, shortest integers (held by encoding it again and comparing).
  * No nesting beyond DEPTH_MAX, in CBOR or JSON; JSON has no duplicate keys and no NaN.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import cbor2

from fencekv.errors import Invalid

DEPTH_MAX: Final = 16


def encode(value: Any) -> bytes:
    """Canonical CBOR."""
    return cbor2.dumps(value, canonical=True)


def decode(data: bytes, *, what: str = "body") -> Any:
    """Decodes one canonical CBOR document.

    Raises:
        Invalid: if it is not CBOR, or not canonical, or nested too deeply.
    """
    try:
        value = cbor2.loads(data)
        _check_depth(value, what=what)
        canonical = cbor2.dumps(value, canonical=True)
    except Invalid:
        raise
    except Exception as error:  # cbor2 raises many sorts for hostile input; all mean the same to the sender
        raise Invalid(f"{what}: malformed CBOR", field=what) from error
    if canonical != data:
        raise Invalid(f"{what}: CBOR is not in canonical form", field=what)
    return value


def decode_json(data: bytes | str, *, what: str = "body") -> Any:
    """Decodes one JSON document.

    Raises:
        Invalid: if it is malformed, has a duplicate key or a NaN, or is nested too deeply.
    """
    try:
        value = json.loads(data, object_pairs_hook=_no_duplicates, parse_constant=_no_constants)
    except Invalid:
        raise
    except (ValueError, RecursionError) as error:
        raise Invalid(f"{what}: malformed JSON: {error}", field=what) from error
    _check_depth(value, what=what)
    return value


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: the form of annotations."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise Invalid("body: duplicate key in JSON object", field="body")
    return result


def _no_constants(name: str) -> Any:
    raise Invalid(f"body: {name} is not JSON", field="body")


def _check_depth(value: Any, *, what: str) -> None:
    level = [value]
    for _ in range(DEPTH_MAX + 1):
        if not level:
            return
        level = [
            child
            for item in level
            if isinstance(item, list | tuple | Mapping)
            for child in (item.values() if isinstance(item, Mapping) else item)
        ]
    raise Invalid(f"{what}: nested deeper than {DEPTH_MAX}", field=what, limit=DEPTH_MAX)
