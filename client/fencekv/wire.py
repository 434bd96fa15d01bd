"""The HTTP form of FenceKV, as far as shards and SDK must agree on it: headers, values, cursors, paths.

Invariants:
  * `value_of(value_member(value)) == value` for all bytes.
  * A cursor is good for the very listing (table, bounds, partition) that made it, and for no other one.
  * Everything that is read here from outside is checked; what does not fit raises `Invalid` and names its field.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from fencekv.codec import decode, encode
from fencekv.errors import Invalid
from fencekv.token import NUMBER_MAX, Token

TOKEN: Final = "FenceKV-Token"  # noqa: S105 (a header's name)
EPOCH: Final = "FenceKV-Epoch"
VERSION: Final = "FenceKV-Version"
PARTITION: Final = "FenceKV-Partition"
MIN_TOKEN: Final = "FenceKV-Min-Token"  # noqa: S105 (a header's name)
CONSISTENCY: Final = "FenceKV-Consistency"
DURABILITY: Final = "FenceKV-Durability"  # answers to writes carry the one that they were acknowledged under
FORWARDED: Final = "FenceKV-Forwarded"
SEQ: Final = "FenceKV-Seq"  # of a page of one partition: the state that its next page is asked at
IDEMPOTENCY_KEY: Final = "Idempotency-Key"
IF_MATCH: Final = "If-Match"
IF_NONE_MATCH: Final = "If-None-Match"

JSON: Final = "application/json"
CBOR: Final = "application/cbor"
PROBLEM: Final = "application/problem+json"
OCTETS: Final = "application/octet-stream"

CURSOR_CHARS_MAX: Final = 32 * 1024
_CODE_POINT_MAX: Final = 0x10FFFF

# A text with one of these would not survive terminals and editors.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def value_member(value: bytes) -> dict[str, str]:
    """A value as a member of a JSON object: `value` if it is plain text, else `base64`."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = "\x00"
    if _CONTROL.search(text):
        return {"base64": base64.b64encode(value).decode()}
    return {"value": text}


def value_of(document: Mapping[str, Any], *, field: str) -> bytes:
    """The value that a JSON or CBOR object holds in `value` or `base64`.

    Raises:
        Invalid: none of the two, both, of a wrong type, or not base64.
    """
    if ("value" in document) == ("base64" in document):
        raise Invalid(f"{field}: want one of value, base64", field=f"{field}.value")
    if "value" in document:
        value = document["value"]
        if isinstance(value, bytes):
            return value
        if not isinstance(value, str):
            raise Invalid(f"{field}.value: want a text, got {kind_of(value)}", field=f"{field}.value")
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise Invalid(f"{field}.value: not UTF-8", field=f"{field}.value") from error
    encoded = document["base64"]
    if not isinstance(encoded, str):
        raise Invalid(f"{field}.base64: want a text, got {kind_of(encoded)}", field=f"{field}.base64")
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Invalid(f"{field}.base64: {error}", field=f"{field}.base64") from error


def kind_of(value: object) -> str:
    """A value's type, in the words of JSON."""
    names: dict[type, str] = {dict: "an object", list: "an array", str: "a text", bytes: "bytes"}
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return names.get(type(value), "a number")


def json_form(document: Any) -> Any:
    """A document whose `value` members are bytes, as JSON can carry it."""
    if isinstance(document, Mapping):
        shaped: dict[str, Any] = {}
        for name, member in document.items():
            if isinstance(member, bytes):
                assert name == "value", name
                shaped.update(value_member(member))
            else:
                shaped[name] = json_form(member)
        return shaped
    if isinstance(document, list | tuple):
        return [json_form(item) for item in document]
    return document


def segment(text: str) -> str:
    """A part of a path, percent-encoded so that no client or proxy can read it as `.` or `..`."""
    if text in {".", ".."}:
        return text.replace(".", "%2E")
    return quote(text, safe="")


def after_prefix(prefix: str) -> str:
    """The least text, by code points, that is greater than all texts with this prefix; empty: there is none."""
    for place in range(len(prefix) - 1, -1, -1):
        code = ord(prefix[place])
        if code < _CODE_POINT_MAX:
            following = 0xE000 if code == 0xD7FF else code + 1  # UTF-8 has no surrogates
            return prefix[:place] + chr(following)
    return ""


def bounds(prefix: str, start: str, end: str) -> tuple[str, str]:
    """First key and key to stop before (empty: none) of a listing that was asked for by prefix, start and end."""
    bound = after_prefix(prefix)
    return max(start, prefix), min(end, bound) if end and bound else end or bound


@dataclass(frozen=True, slots=True)
class Position:
    """How far a listing is in one partition. `token` None: any state; `at` None: the state now."""

    index: int
    token: Token | None
    at: int | None


@dataclass(frozen=True, slots=True)
class ListCursor:
    """Where a listing goes on: after a key, in the partitions that may have more."""

    after: str
    positions: tuple[Position, ...]


def listing_id(table: str, start: str, end: str, partition: int | None) -> bytes:
    """What ties a cursor to its listing."""
    return hashlib.sha256(encode([table, start, end, partition])).digest()[:8]


def encode_list_cursor(cursor: ListCursor, listing: bytes) -> str:
    """A listing's cursor as text."""
    positions = [
        [
            p.index,
            p.token.epoch if p.token else -1,
            p.token.number if p.token else -1,
            -1 if p.at is None else p.at,
        ]
        for p in cursor.positions
    ]
    return _to_text([1, listing, cursor.after, positions])


def decode_list_cursor(text: str, listing: bytes, *, partitions: int) -> ListCursor:
    """Reads what `encode_list_cursor` made.

    Raises:
        Invalid: it has another shape, or is of another listing.
    """
    parts = _from_text(text, size=4, kind=1, listing=listing)
    after, positions = parts[2], parts[3]
    if not isinstance(after, str) or not isinstance(positions, list):
        raise _malformed()
    return ListCursor(after, tuple(_position(item, partitions) for item in positions))


def history_id(table: str, key: str) -> bytes:
    """What ties a cursor to its history."""
    return hashlib.sha256(encode([table, key])).digest()[:8]


def encode_history_cursor(before: int, history: bytes) -> str:
    """A history's cursor as text."""
    return _to_text([2, history, before])


def decode_history_cursor(text: str, history: bytes) -> int:
    """Reads what `encode_history_cursor` made."""
    before = _from_text(text, size=3, kind=2, listing=history)[2]
    if not _is_number(before):
        raise _malformed()
    return int(before)


def _position(item: object, partitions: int) -> Position:
    if not isinstance(item, list) or len(item) != 4 or not all(_is_number(n, least=-1) for n in item):
        raise _malformed()
    index, epoch, txid, at = item
    if not 0 <= index < partitions or (epoch < 0) != (txid < 0):
        raise _malformed()
    return Position(index, Token(epoch, txid) if epoch >= 0 else None, at if at >= 0 else None)


def _is_number(value: object, *, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= NUMBER_MAX


def _to_text(parts: Sequence[Any]) -> str:
    return base64.urlsafe_b64encode(encode(list(parts))).decode().rstrip("=")


def _from_text(text: str, *, size: int, kind: int, listing: bytes) -> list[Any]:
    if len(text) > CURSOR_CHARS_MAX:
        raise Invalid(f"cursor: longer than {CURSOR_CHARS_MAX}", field="cursor", limit=CURSOR_CHARS_MAX)
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise _malformed() from error
    parts = decode(data, what="cursor")
    if not isinstance(parts, list) or len(parts) != size or parts[0] != kind:
        raise _malformed()
    if parts[1] != listing:
        raise Invalid("cursor: of another request", field="cursor")
    return parts


def _malformed() -> Invalid:
    return Invalid("cursor: not one that a shard gave", field="cursor")
