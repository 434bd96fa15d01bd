"""Answers as frames have them. Pure.

Invariants:
  * Every answer fits into a frame: one that does not becomes an error, which claims nothing about a write that was
    carried out but that it is `Unknown` to the client.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from struct import Struct
from typing import Any, Final

from fencekv import codec, frames, messages
from fencekv.codec import octets, uint
from fencekv.errors import ERRORS, FenceKVError, TooLarge, Unavailable, Unknown
from fencekv.partitioning import RangePartitioning
from fencekv.token import Version
from fencekv_shard.api import Durability
from fencekv_shard.calls import (
    Answer,
    Failed,
    Found,
    Histories,
    Listed,
    Relayed,
    Routes,
    WriteKind,
    Written,
)
from fencekv_shard.transaction import DeleteResult, GetResult, Result

_DURABILITIES: Final[Mapping[Durability, int]] = {
    Durability(name): place for place, name in enumerate(messages.DURABILITIES)
}
_BODY_AT: Final = 4  # behind the length


def encode(number: int, answer: Answer) -> bytes:
    """The frame of the answer to request `number`."""
    if isinstance(answer, Written) and answer.kind is WriteKind.PUT:
        assert answer.version is not None, answer
        durability = uint(_DURABILITIES[answer.durability])
        return _short_form(number, answer, b"", answer.version, durability)
    if isinstance(answer, Found):
        record = answer.record
        return _short_form(number, answer, octets(record.value), record.version, b"")
    frame = frames.encode(render(number, answer))
    if len(frame) - _BODY_AT <= messages.FRAME_BYTES_MAX:
        return frame
    return frames.encode(render(number, _without_content(answer)))


def outcome(answer: Answer) -> str:
    """What counters call it: `ok`, or the error's name."""
    if isinstance(answer, Failed):
        return answer.error.name
    if isinstance(answer, Relayed) and isinstance(answer.reply, messages.Refusal):
        name = answer.reply.name  # another shard said it: no label is made from what is not known
        return name if name in ERRORS else "Unknown"
    return "ok"


def render(number: int, answer: Answer) -> messages.Answer:
    """The message of the answer to request `number`."""
    if isinstance(answer, Relayed):
        return _relayed(number, answer)
    if isinstance(answer, Written):
        return _written(number, answer)
    about = number, answer.partition, answer.token, answer.epoch
    if isinstance(answer, Found):
        return messages.Got(*about, answer.record.value, answer.record.version)
    if isinstance(answer, Failed):
        return _refusal(number, answer)
    if isinstance(answer, Listed):
        items = [messages.Item(item.key, item.record.value, item.record.version) for item in answer.items]
        tokens = answer.tokens
        if tokens is None:
            tokens = {answer.partition: answer.token} if answer.token is not None else {}
        return messages.Listed(*about, items, answer.cursor, tokens, answer.seq)
    if isinstance(answer, Histories):
        changes = [messages.Change(change.version, change.value) for change in answer.changes]
        return messages.Changes(*about, changes, answer.cursor)
    assert isinstance(answer, Routes), answer
    how: dict[str, Any] = {"strategy": "hash", "count": answer.partitioning.count}
    if isinstance(answer.partitioning, RangePartitioning):
        how = {"strategy": "range", "splitPoints": list(answer.partitioning.split_points)}
    located = [
        messages.Located(route.partition, route.index, route.epoch, route.owner, route.http, token)
        for route, token in answer.routes
    ]
    return messages.Routes(*about, how, located)


def _written(number: int, answer: Written) -> messages.Answer:
    about = number, answer.partition, answer.token, answer.epoch
    version, durability = answer.version, _DURABILITIES[answer.durability]
    if answer.kind is WriteKind.PUT:
        assert version is not None, answer
        return messages.Written(*about, version, durability)
    if answer.kind is WriteKind.DELETE:
        result = answer.effect.results[0]
        assert isinstance(result, DeleteResult), result
        return messages.Deleted(*about, result.existed, version, durability)
    results = [_done(result) for result in answer.effect.results]
    return messages.Committed(*about, answer.effect.succeeded, results, version, durability)


def _short_form(number: int, answer: Written | Found, value: bytes, version: Version, last: bytes) -> bytes:
    """What `frames.encode` makes of the answers to puts and gets, in a third of the time. Most are these."""
    token = answer.token
    body = b"\x87%b\x00%b\x82%b%b%b%b\x82%b%b%b" % (  # an array of 7, with two of 2 in it
        uint(number),
        _name(answer.partition),
        uint(token.epoch),
        uint(token.number),
        uint(answer.epoch),
        value,
        uint(version.epoch),
        uint(version.number),
        last,
    )
    return _PACK_LENGTH(len(body)) + body


@lru_cache(maxsize=1024)
def _name(text: str) -> bytes:
    """CBOR of a partition's name."""
    return codec.text(text)


_PACK_LENGTH: Final = Struct(">I").pack


def _done(result: Result) -> messages.Done:
    if isinstance(result, GetResult):
        return messages.GetDone(result.value, result.version)
    return messages.DeleteDone(result.existed) if isinstance(result, DeleteResult) else messages.PutDone()


def _refusal(number: int, answer: Failed) -> messages.Refusal:
    error = answer.error
    extra = {name: member for name, member in error.extra.items() if type(member) in {str, int, bool}}
    if error.retry_after_seconds is not None:
        extra.setdefault("retryAfter", round(error.retry_after_seconds * 1000))
    return messages.Refusal(
        number,
        error.name,
        error.status,
        error.detail,
        answer.partition,
        answer.token,
        answer.epoch,
        extra,
    )


def _relayed(number: int, answer: Relayed) -> messages.Answer:
    reply = answer.reply
    assert isinstance(reply, tuple), reply  # a named tuple of the codec: Relayed goes back by the wire it came by
    return reply._replace(number=number)  # type: ignore[attr-defined,no-any-return]


def _without_content(answer: Answer) -> Failed:
    limit = messages.FRAME_BYTES_MAX
    reason = f"the answer is larger than {limit} bytes"
    error: FenceKVError = Unavailable(reason)
    if isinstance(answer, Written):
        error = TooLarge(reason, field="txn", limit=limit)
        if answer.version is not None:
            error = Unknown(f"carried out as version {answer.version}, but {reason}", version=str(answer.version))
    elif isinstance(answer, Relayed):  # its number is longer here
        version = getattr(answer.reply, "version", None)
        unknown = Unknown(f"carried out as version {version}, but {reason}")
        return Failed.nowhere(unknown if version else TooLarge(reason, limit=limit))
    elif isinstance(answer, Listed | Histories):
        error = TooLarge(f"{reason}: ask with a lower limit", field="limit", limit=limit)
    return Failed(answer.partition, answer.token, answer.epoch, error)
