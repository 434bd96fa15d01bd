"""Strict decoding of everything that comes from outside, and the one way to encode it.

Invariants:
  * A decoded CBOR document has exactly one encoding, the one that was read: no trailing bytes, no tags, no
    indefinite lengths, no duplicate keys, shortest integers.
  * No nesting beyond DEPTH_MAX levels, in CBOR or JSON: a number in an array makes two. JSON has no duplicate keys
    and no NaN.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from struct import Struct
from typing import Any, Final

import cbor2

from fencekv.errors import Invalid

DEPTH_MAX: Final = 16


def _refuse_tag(*_: Any) -> Any:
    raise ValueError("a tag")


class _EveryTag(dict[int, Any]):
    """Has an entry for all tags, those too that a later cbor2 may know: none is to be acted on."""

    def __missing__(self, tag: int) -> Any:
        return _refuse_tag

    def __contains__(self, tag: object) -> bool:
        return True

    def get(self, key: int, default: Any = None) -> Any:
        return _refuse_tag


_NO_TAGS: Final = _EveryTag()


_PACK_H: Final = Struct(">BH").pack
_PACK_I: Final = Struct(">BI").pack
_PACK_Q: Final = Struct(">BQ").pack


def _heads(major: int) -> list[bytes]:
    """The heads of one major type for 0 to 255."""
    short = [bytes((major << 5 | number,)) for number in range(24)]
    return short + [bytes((major << 5 | 24, number)) for number in range(24, 256)]


_SMALL: Final = _heads(0)
_OCTETS: Final = _heads(2)
_TEXTS: Final = _heads(3)

_OTHER: Final = -(1 << 62)


def _shortest(items: list[Any]) -> int:
    """How many bytes the canonical encoding of an array has; negative: it holds what is not counted here.

    Arrays, texts, bytes, numbers from 0, true, false and null can be encoded otherwise only by longer heads, once
    tags and indefinite lengths are refused: of the canonical length, an encoding is the canonical one. To count is
    three times as fast as to encode again. Maps have an order too, and could have a key twice: they are encoded
    again.
    """
    count = len(items)
    total = 1 if count < 24 else 2 if count < 1 << 8 else 3 if count < 1 << 16 else 5
    for item in items:
        kind = type(item)
        if kind is int:
            if item < 0:
                return _OTHER
            total += (
                1 if item < 24 else 2 if item < 1 << 8 else 3 if item < 1 << 16 else 5 if item < 1 << 32 else 9
            )
        elif kind is bytes or kind is str:
            size = len(item) if kind is bytes or item.isascii() else len(item.encode())
            total += size + (1 if size < 24 else 2 if size < 1 << 8 else 3 if size < 1 << 16 else 5)
        elif item is None or kind is bool:
            total += 1
        elif kind is list:
            total += _shortest(item)
        else:
            return _OTHER
    return total


def _plain(value: Any) -> bool:
    """Whether it holds only what JSON knows, and bytes: a simple value 1 passes for the number 1 in Python."""
    if type(value) is list:
        return all(_plain(item) for item in value)
    if type(value) is dict:
        return all(_plain(key) and _plain(member) for key, member in value.items())
    return value is None or type(value) in {int, str, bytes, bool, float}


def encode(value: Any) -> bytes:
    """Canonical CBOR."""
    return cbor2.dumps(value, canonical=True)


def uint(number: int) -> bytes:
    """Canonical CBOR of a number from 0 to 2^64 - 1.

    This, `octets` and `text` are for the few messages that are made for every write: put together from them, one
    takes a third of the time that `encode` takes.
    """
    if number < len(_SMALL):
        return _SMALL[number]
    if number < 1 << 16:
        return _PACK_H(0x19, number)
    return _PACK_I(0x1A, number) if number < 1 << 32 else _PACK_Q(0x1B, number)


def octets(value: bytes) -> bytes:
    """Canonical CBOR of bytes."""
    size = len(value)
    if size < len(_OCTETS):
        return _OCTETS[size] + value
    return (_PACK_H(0x59, size) if size < 1 << 16 else _PACK_I(0x5A, size)) + value


def text(value: str) -> bytes:
    """Canonical CBOR of a text."""
    data = value.encode()
    size = len(data)
    if size < len(_TEXTS):
        return _TEXTS[size] + data
    return (_PACK_H(0x79, size) if size < 1 << 16 else _PACK_I(0x7A, size)) + data


def decode(data: bytes, *, what: str = "body") -> Any:
    """Decodes one canonical CBOR document.

    Raises:
        Invalid: if it is not CBOR, or not canonical, or nested too deeply.
    """
    try:
        value = cbor2.loads(
            data,
            max_depth=DEPTH_MAX - 1,  # it counts what contains something
            allow_indefinite=False,
            semantic_decoders=_NO_TAGS,
            tag_hook=_refuse_tag,
        )
        size = _shortest(value) if type(value) is list else _OTHER
        if size >= 0:
            canonical = size == len(data)
        else:
            canonical = _plain(value) and cbor2.dumps(value, canonical=True) == data
    except Exception as error:  # cbor2 raises many sorts for hostile input; all mean the same to the sender
        raise Invalid(f"{what}: malformed CBOR", field=what) from error
    if not canonical:
        raise Invalid(f"{what}: CBOR is not in canonical form", field=what)
    return value


def decode_own(data: bytes, *, what: str) -> Any:
    """Decodes what this program has encoded, and checked when it was written: only its form is looked at.

    Large documents are read in a tenth of the time that `decode` takes.

    Raises:
        Invalid: it is not CBOR.
    """
    try:
        return cbor2.loads(data, max_depth=DEPTH_MAX, allow_indefinite=False, tag_hook=_refuse_tag)
    except Exception as error:
        raise Invalid(f"{what}: malformed CBOR", field=what) from error


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
