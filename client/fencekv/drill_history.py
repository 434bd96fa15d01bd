"""The history of a drill: every request with what it was answered, as a file, and what a reader can prove from it.

The operator writes it while a drill runs; `fencekv check-history` judges it without a server and without
trusting the drill's own result.

Invariants:
  * A document that is read is exactly of the documented form, or `Invalid` says what is wrong with it.
  * The verdict depends on the document alone.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from fencekv.codec import decode, encode
from fencekv.errors import Invalid
from fencekv.linearizable import (
    History,
    Kind,
    Operation,
    Outcome,
    Value,
    Version,
    check_linearizable,
    check_versions,
    stale_acknowledgements,
)

FORMAT: Final = "fencekv.history.v1"
# A ConfigMap holds a mebibyte; the rest is for its own fields.
HISTORY_BYTES_MAX: Final = 900 * 1024
DECODED_BYTES_MAX: Final = 64 * 1024 * 1024
OPERATIONS_MAX: Final = 100_000
PROBLEMS_MAX: Final = 20
PROBE: Final = "probe"  # the client that asks a deposed owner itself to write
_KINDS: Final = tuple(Kind)
_OUTCOMES: Final = tuple(Outcome)
_MICRO: Final = 1_000_000


@dataclass(slots=True, kw_only=True)
class DrillHistory:
    """What a drill did to one partition.

    `head` says which drill it was; its members are texts and numbers. `left` is what the table held in the end:
    for each key its versions, newest first, with their values (None: deleted).
    """

    head: dict[str, str | int]
    history: History = field(default_factory=History)
    left: dict[str, list[tuple[Version, Value]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a history proves. `problems`: sentences, at most PROBLEMS_MAX; none: all is as promised."""

    acknowledged: int  # writes of the load; those that a deposed owner was asked for are not counted
    unknown: int  # of them: the outcome was never learned
    refused: int
    lost: int  # writes that were acknowledged and are not there
    stale: int  # writes that were acknowledged under an epoch that had been succeeded
    problems: tuple[str, ...]

    @property
    def good(self) -> bool:
        """Whether nothing was found."""
        return not self.problems


def judge(drill: DrillHistory) -> Verdict:
    """Checks every promise that a history can speak of."""
    operations = drill.history.operations
    writes = [one for one in operations if one.kind is not Kind.GET]
    load = [one for one in writes if one.client != PROBE]
    counts = {outcome: sum(one.outcome is outcome for one in load) for outcome in Outcome}
    lost = [one for one in writes if one.outcome is Outcome.OK and not _is_left(drill, one)]
    shown = [one for one in operations if one.kind is Kind.GET and one.outcome is Outcome.OK and one.version]
    stale = stale_acknowledgements(operations)
    problems = [f"acknowledged write lost: {one}" for one in lost]
    problems += [f"acknowledged under an epoch that had been succeeded: {one}" for one in stale]
    problems += [f"a read showed what was taken back: {one}" for one in shown if not _is_left(drill, one)]
    problems += check_versions(drill.history)
    problems += check_linearizable(drill.history)
    problems += [f"no client should be told this: {text}" for text in drill.history.oddities]
    return Verdict(
        acknowledged=counts[Outcome.OK],
        unknown=counts[Outcome.UNKNOWN] + counts[Outcome.PENDING],
        refused=counts[Outcome.REFUSED],
        lost=len(lost),
        stale=len(stale),
        problems=tuple(problems[:PROBLEMS_MAX]),
    )


def _is_left(drill: DrillHistory, one: Operation) -> bool:
    return (one.version, one.value) in drill.left.get(one.key, ())


def to_bytes(drill: DrillHistory) -> bytes:
    """The file: canonical CBOR, gzipped."""
    operations = drill.history.operations
    keys = sorted({one.key for one in operations} | drill.left.keys())
    clients = sorted({one.client for one in operations})
    places = {key: place for place, key in enumerate(keys)}
    numbers = {client: number for number, client in enumerate(clients)}
    rows, called, sent = [], 0, 0
    for one in operations:
        at = max(sent, round(one.time * _MICRO))
        rows.append(
            [
                numbers[one.client],
                _KINDS.index(one.kind),
                places[one.key],
                one.value,
                one.expected,
                _OUTCOMES.index(one.outcome),
                list(one.version) if one.version else None,
                one.called - called,
                None if one.answered is None else one.answered - one.called,
                at - sent,
                round(one.seconds * _MICRO),
            ]
        )
        called, sent = one.called, at
    left = [[places[key], [[*version, value] for version, value in drill.left[key]]] for key in sorted(drill.left)]
    document = [FORMAT, drill.head, keys, clients, rows, left, drill.history.oddities]
    return gzip.compress(encode(document), mtime=0)


def from_bytes(data: bytes) -> DrillHistory:
    """Reads a file.

    Raises:
        Invalid: it is no history, or larger than DECODED_BYTES_MAX.
    """
    document = decode(_unpacked(data), what="history")
    try:
        return _parsed(document)
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise Invalid(f"history: not of the form {FORMAT}: {error}", field="history") from error


def _unpacked(data: bytes) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        raw = unpacker.decompress(data, DECODED_BYTES_MAX)
    except zlib.error as error:
        raise Invalid(f"history: not gzip: {error}", field="history") from error
    if unpacker.unconsumed_tail or not unpacker.eof or unpacker.unused_data:
        detail = f"history: cut short, followed by something else, or over {DECODED_BYTES_MAX} bytes"
        raise Invalid(detail, field="history", limit=DECODED_BYTES_MAX)
    return raw


def _parsed(document: Any) -> DrillHistory:
    form, head, keys, clients, rows, left, oddities = document
    if form != FORMAT:
        raise ValueError(f"form {form!r:.40}")
    if not isinstance(head, dict) or not all(isinstance(one, str | int) for one in head.values()):
        raise TypeError("head: not a map of texts and numbers")
    if len(rows) > OPERATIONS_MAX:
        raise ValueError(f"{len(rows)} operations, at most {OPERATIONS_MAX}")
    _texts(keys, "keys")
    _texts(clients, "clients")
    _texts(oddities, "oddities")
    drill = DrillHistory(head=dict(head))
    drill.history.oddities.extend(oddities)
    called, sent = 0, 0
    for row in rows:
        client, kind, key, value, expected, outcome, version, call, answer, at, took = row
        called, sent = called + _natural(call), sent + _natural(at)
        operation = Operation(
            client=clients[_natural(client)],
            kind=_KINDS[_natural(kind)],
            key=keys[_natural(key)],
            value=_value(value),
            expected=_value(expected),
            outcome=_OUTCOMES[_natural(outcome)],
            version=_version(version),
            called=called,
            answered=None if answer is None else called + _natural(answer),
            time=sent / _MICRO,
            seconds=_natural(took) / _MICRO,
        )
        if operation.answered is None and operation.outcome in {Outcome.OK, Outcome.NO}:
            raise ValueError("an operation that succeeded has no answer")
        drill.history.operations.append(operation)
    for key, versions in left:
        drill.left[keys[_natural(key)]] = [
            ((_natural(epoch), _natural(seq)), _value(value)) for epoch, seq, value in versions
        ]
    return drill


def _texts(values: Sequence[Any], what: str) -> None:
    if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
        raise TypeError(f"{what}: not a list of texts")


def _natural(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"not a number from 0: {value!r:.40}")
    return value


def _value(value: Any) -> Value:
    if value is not None and not isinstance(value, bytes):
        raise TypeError(f"not bytes: {value!r:.40}")
    return value


def _version(value: Any) -> Version | None:
    if value is None:
        return None
    epoch, seq = value
    return _natural(epoch), _natural(seq)


def summary(verdict: Verdict) -> Mapping[str, Any]:
    """The verdict as programs read it."""
    return {
        "verdict": "good" if verdict.good else "bad",
        "writesAcknowledged": verdict.acknowledged,
        "unknown": verdict.unknown,
        "refused": verdict.refused,
        "lost": verdict.lost,
        "staleAcknowledged": verdict.stale,
        "problems": list(verdict.problems),
    }
