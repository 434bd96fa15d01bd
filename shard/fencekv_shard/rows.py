"""The rows of the derived tables: how entries become rows, and how rows are read. Pure.

  current      key                               -> seq, operation's index
  versions     key 0x00 (2^64 - 1 - seq)         -> operation's index
  idempotency  idempotency key                   -> seq

Numbers are big-endian and of fixed width. Keys of clients have no NUL, so that a key's versions lie together.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from fencekv_shard.journal import Entry
from fencekv_shard.transaction import Put

_NEWEST: Final = 2**64 - 1
_WHERE: Final = struct.Struct(">QI")
_INDEX: Final = struct.Struct(">I")
SUFFIX_BYTES: Final = 9  # behind a key in `versions`

Where = tuple[int, int]  # (seq, operation's index): which operation of which entry wrote a key


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What some entries change in the derived tables: each list in the order of its keys."""

    puts: Sequence[tuple[bytes, bytes]] = field(default=())
    deletes: Sequence[bytes] = field(default=())
    versions: Sequence[tuple[bytes, bytes]] = field(default=())
    idempotency: Sequence[tuple[bytes, bytes]] = field(default=())


def batch_of(entries: Sequence[Entry]) -> Batch:
    """The changes of consecutive entries, the last write of a key winning. Pure."""
    current: dict[bytes, bytes] = {}
    deleted: set[bytes] = set()
    versions: list[tuple[bytes, bytes]] = []
    idempotency: dict[bytes, bytes] = {}
    for entry in entries:
        seq = entry.seq
        suffix = _version_suffix(seq)
        for index, write in enumerate(entry.writes):
            key = write.key.encode()
            if isinstance(write, Put):
                current[key] = pack_where((seq, index))
                deleted.discard(key)
            else:
                current.pop(key, None)
                deleted.add(key)
            versions.append((key + suffix, pack_index(index)))
        if entry.idempotency is not None:
            idempotency[entry.idempotency[0]] = seq_key(seq)
    versions.sort()
    puts = list(current.items())
    puts.sort()
    return Batch(puts=puts, deletes=sorted(deleted), versions=versions, idempotency=sorted(idempotency.items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Trim:
    """What goes from the derived tables together with some records of the journal.

    The newest version below the base stays where it is a put: the base holds its value.
    """

    versions: Sequence[tuple[bytes, bytes]]  # the first row that goes; all of that prefix behind it go too
    idempotency: Sequence[tuple[bytes, bytes]]  # a row that goes, unless a later entry has changed it


def trim_of(entries: Sequence[Entry]) -> Trim:
    """What consecutive entries leave behind, which are being trimmed and lie in the base. Pure."""
    newest: dict[bytes, tuple[int, bool]] = {}
    idempotency: dict[bytes, bytes] = {}
    for entry in entries:
        for write in entry.writes:
            newest[write.key.encode()] = (entry.seq, isinstance(write, Put))
        if entry.idempotency is not None:
            idempotency[entry.idempotency[0]] = seq_key(entry.seq)
    firsts = ((key, seq - 1 if put else seq) for key, (seq, put) in newest.items())
    versions = sorted((version_key(key, first), key + b"\x00") for key, first in firsts if first >= 0)
    return Trim(versions=versions, idempotency=sorted(idempotency.items()))


def seq_key(seq: int) -> bytes:
    """A seq as a key of `journal`."""
    return seq.to_bytes(8, "big")


def unpack_seq(key: bytes) -> int:
    """A seq from a key or a value."""
    return int.from_bytes(key, "big")


def pack_where(where: Where) -> bytes:
    """A value of `current`."""
    return _WHERE.pack(*where)


def pack_index(index: int) -> bytes:
    """A value of `versions`."""
    return _INDEX.pack(index)


def unpack_where(value: bytes) -> Where:
    """A value of `current`."""
    seq, index = _WHERE.unpack(value)
    return seq, index


def version_key(key: bytes, seq: int) -> bytes:
    """A key of `versions`; the newest version of a key comes first."""
    return key + _version_suffix(seq)


def _version_suffix(seq: int) -> bytes:
    return b"\x00" + (_NEWEST - seq).to_bytes(8, "big")


def unpack_version(key: bytes, value: bytes) -> tuple[bytes, Where]:
    """Key and place of a row of `versions`."""
    seq = _NEWEST - int.from_bytes(key[-8:], "big")
    return key[:-SUFFIX_BYTES], (seq, _INDEX.unpack(value)[0])
