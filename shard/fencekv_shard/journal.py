"""The journal's bytes: entries, records, the hash chain and the Merkle mountain range. Pure.

Invariants:
  * An entry has one encoding. What `decode_entry` accepts, `encode_entry` gives back byte for byte.
  * A record is a function of its entry and of the records before it: two replicas with the same entries hold the
    same bytes, and one changed byte anywhere changes every chain hash after it.
  * The nodes in a record are those interior nodes that its leaf completes; so the peaks over the first n entries
    can be read from at most 63 records, without the peaks that `meta` holds.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from fencekv.codec import decode, decode_own, encode, octets, text, uint
from fencekv.errors import Invalid
from fencekv.token import NUMBER_MAX
from fencekv_shard import limits
from fencekv_shard.transaction import Delete, Put, Write
from fencekv_shard.values import Value

HASH_BYTES: Final = 32
FINGERPRINT_BYTES: Final = 16
EPOCH_MAX: Final = 2**31 - 1  # a Lease's leaseTransitions is an int32
ZERO_HASH: Final = bytes(HASH_BYTES)  # the chain before entry 0, and the root of nothing

_LEAF_TAG: Final = b"fencekv.journal.v1"
_CHAIN_TAG: Final = b"fencekv.chain.v1"
_NODE_TAG: Final = b"fencekv.node.v1"
_NODES_MAX: Final = 63
_HEAD_BYTES: Final = 2 * HASH_BYTES + 1
_ARRAY_OF_8: Final = b"\x88"


class Kind(enum.IntEnum):
    """What an entry is about; the number that stands in the journal."""

    TRANSACTION = 0
    OWNERSHIP = 1
    IN_SYNC = 2
    ACCEPTED_LOSS = 3
    CHECKPOINT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Ownership:
    """A new owner began, and this is where the epoch before it ended. Epoch 0, seq -1: nothing was before."""

    previous_epoch: int
    previous_seq: int
    previous_txid: int
    previous_chain: bytes
    session: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InSync:
    """The in-sync set changed. `members` are sorted and occur once."""

    version: int
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedLoss:
    """A person accepted the loss of what only missing replicas hold, at this epoch of the Lease."""

    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """All keys as of seq `at`, by their number and one hash: what lies below may be trimmed."""

    at: int
    keys: int
    digest: bytes


Operations = tuple[Write, ...] | Ownership | InSync | AcceptedLoss | Checkpoint


class Entry(Value):
    """One committed transaction, change of ownership or of the in-sync set, accepted loss, or checkpoint.

    `idempotency`: (key, fingerprint); None: the request had no key. `writes`: what it writes to keys;
    nothing, unless it is a transaction.
    """

    __match_args__ = ("seq", "txid", "epoch", "kind", "unix_ns", "actor", "operations", "idempotency")
    __slots__ = (*__match_args__, "writes")

    def __init__(
        self,
        seq: int,
        txid: int,
        epoch: int,
        kind: Kind,
        unix_ns: int,
        actor: str,
        operations: Operations,
        idempotency: tuple[bytes, bytes] | None,
    ) -> None:
        self.seq, self.txid, self.epoch, self.kind = seq, txid, epoch, kind
        self.unix_ns, self.actor = unix_ns, actor
        self.operations, self.idempotency = operations, idempotency
        self.writes: tuple[Write, ...] = operations if isinstance(operations, tuple) else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalRecord:
    """A record as it lies on disk, taken apart. `entry` is still encoded."""

    leaf: bytes
    chain: bytes
    nodes: tuple[bytes, ...]
    entry: bytes


def transaction_entry(
    *,
    seq: int,
    txid: int,
    epoch: int,
    unix_ns: int,
    writes: Sequence[Write],
    actor: str = "",
    idempotency: tuple[bytes, bytes] | None = None,
) -> Entry:
    """An entry for a transaction that writes; `idempotency` = (key, fingerprint of the request)."""
    return Entry(seq, txid, epoch, Kind.TRANSACTION, unix_ns, actor, tuple(writes), idempotency)


def ownership_entry(
    *, seq: int, txid: int, epoch: int, unix_ns: int, actor: str = "", ownership: Ownership
) -> Entry:
    """An entry for the begin of an epoch."""
    return _plain(seq, txid, epoch, Kind.OWNERSHIP, unix_ns, actor, ownership)


def in_sync_entry(
    *, seq: int, txid: int, epoch: int, unix_ns: int, actor: str = "", version: int, members: Iterable[str]
) -> Entry:
    """An entry for a change of the in-sync set; sorts the members."""
    change = InSync(version=version, members=tuple(sorted(set(members))))
    return _plain(seq, txid, epoch, Kind.IN_SYNC, unix_ns, actor, change)


def accepted_loss_entry(
    *, seq: int, txid: int, epoch: int, unix_ns: int, actor: str = "", accepted_epoch: int
) -> Entry:
    """An entry for a loss that a person accepted."""
    return _plain(seq, txid, epoch, Kind.ACCEPTED_LOSS, unix_ns, actor, AcceptedLoss(epoch=accepted_epoch))


def checkpoint_entry(
    *, seq: int, txid: int, epoch: int, unix_ns: int, actor: str = "", checkpoint: Checkpoint
) -> Entry:
    """An entry for a checkpoint below itself."""
    assert checkpoint.at < seq, (checkpoint, seq)
    return _plain(seq, txid, epoch, Kind.CHECKPOINT, unix_ns, actor, checkpoint)


def _plain(seq: int, txid: int, epoch: int, kind: Kind, unix_ns: int, actor: str, operations: Operations) -> Entry:
    return Entry(seq, txid, epoch, kind, unix_ns, actor, operations, None)


def encode_entry(entry: Entry) -> bytes:
    """The entry's one encoding: canonical CBOR of an array of eight."""
    idempotency = b"\xf6"  # null
    if entry.idempotency is not None:
        idempotency = b"\x82" + octets(entry.idempotency[0]) + octets(entry.idempotency[1])
    parts = (
        _ARRAY_OF_8,
        uint(entry.seq),
        uint(entry.txid),
        uint(entry.epoch),
        uint(int(entry.kind)),
        uint(entry.unix_ns),
        text(entry.actor),
        _encode_operations(entry),
        idempotency,
    )
    return b"".join(parts)


def decode_entry(data: bytes) -> Entry:
    """Reads an entry, from another process or from disk.

    Raises:
        Invalid: it is not an entry in its one encoding.
    """
    shape = decode(data, what="entry")
    if not isinstance(shape, list) or len(shape) != 8:
        raise Invalid("entry: not an array of 8", field="entry")
    seq, txid, epoch, number, unix_ns, actor, operations, idempotency = shape
    _integer(seq, "seq", low=0, high=NUMBER_MAX)
    _integer(txid, "txid", low=0, high=NUMBER_MAX)
    _integer(epoch, "epoch", low=1, high=EPOCH_MAX)
    _integer(number, "kind", low=0, high=max(Kind))
    _integer(unix_ns, "unix_ns", low=0, high=NUMBER_MAX)
    _text(actor, "actor", empty=True)
    kind = Kind(number)
    if idempotency is not None:
        if kind is not Kind.TRANSACTION:
            raise Invalid("entry.idempotency: not on a transaction", field="entry.idempotency")
        _array(idempotency, 2, "idempotency")
        _octets(idempotency[0], "idempotency.key", low=1, high=limits.IDEMPOTENCY_KEY_BYTES_MAX)
        _octets(idempotency[1], "idempotency.fingerprint", low=FINGERPRINT_BYTES, high=FINGERPRINT_BYTES)
    return Entry(
        seq=seq,
        txid=txid,
        epoch=epoch,
        kind=kind,
        unix_ns=unix_ns,
        actor=actor,
        operations=_operations(kind, operations, seq),
        idempotency=None if idempotency is None else (idempotency[0], idempotency[1]),
    )


class Written(NamedTuple):
    """One write of a journal entry, and whose."""

    epoch: int
    seq: int
    write: Write


def own_shape(entry: bytes) -> Any:
    """An encoded entry of a record on this disk, taken apart for `written`. It was checked when it was written.

    Raises:
        Invalid: it is damaged.
    """
    return decode_own(entry, what="entry")


def written(shape: Any, index: int) -> Written:
    """One write of an entry, without making values of all the others: a transaction may have a thousand.

    Raises:
        Invalid: it has none there.
    """
    match shape:
        case [int(seq), _, int(epoch), Kind.TRANSACTION.value, _, _, [*operations], _] if index < len(operations):
            match operations[index]:
                case [0, str(key), bytes(value)]:
                    return Written(epoch, seq, Put(key, value))
                case [1, str(key)]:
                    return Written(epoch, seq, Delete(key))
    raise Invalid(f"entry: no operation {index}", field="entry.operations")


def leaf_hash(entry: bytes) -> bytes:
    """The hash of an encoded entry."""
    return hashlib.sha256(_LEAF_TAG + entry).digest()


def chain_hash(previous: bytes, leaf: bytes) -> bytes:
    """The chain after a leaf. `previous` is ZERO_HASH before entry 0."""
    return hashlib.sha256(_CHAIN_TAG + previous + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """An interior node of the Merkle mountain range."""
    return hashlib.sha256(_NODE_TAG + left + right).digest()


def append(peaks: Sequence[bytes], count: int, leaf: bytes) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """Adds a leaf to a range of `count` leaves: the new peaks, and the nodes that it completes, lowest first.

    Peaks stand left to right: the highest mountain first, as the bits of `count`.
    """
    if not count & 1:
        return (*peaks, leaf), ()
    assert len(peaks) == count.bit_count(), (len(peaks), count)
    rest = list(peaks)
    nodes: list[bytes] = []
    node = leaf
    while count & 1:
        node = node_hash(rest.pop(), node)
        nodes.append(node)
        count >>= 1
    return (*rest, node), tuple(nodes)


def root(peaks: Sequence[bytes]) -> bytes:
    """One hash for the whole range: its peaks, bagged from right to left. ZERO_HASH for an empty one."""
    if not peaks:
        return ZERO_HASH
    bag = peaks[-1]
    for peak in reversed(peaks[:-1]):
        bag = node_hash(peak, bag)
    return bag


def peak_leaves(count: int) -> list[tuple[int, int]]:
    """Where the peaks over `count` leaves lie: for each, left to right, (seq of its last leaf, height).

    A peak of height h > 0 is node h - 1 in the record of its last leaf; one of height 0 is that leaf.
    """
    places = []
    end = 0
    for height in range(count.bit_length() - 1, -1, -1):
        if count >> height & 1:
            end += 1 << height
            places.append((end - 1, height))
    return places


def encode_record(leaf: bytes, chain: bytes, nodes: Sequence[bytes], entry: bytes) -> bytes:
    """A record's bytes on disk; `decode_record` takes them apart."""
    assert len(nodes) <= _NODES_MAX, len(nodes)
    return b"".join((leaf, chain, bytes((len(nodes),)), *nodes, entry))


def decode_record(data: bytes) -> JournalRecord:
    """Takes a record apart. Its entry is not looked at.

    Raises:
        Invalid: it is too short for what it says it holds.
    """
    if len(data) < _HEAD_BYTES:
        raise Invalid(f"record: {len(data)} bytes, too short", field="record")
    count = data[2 * HASH_BYTES]
    end = _HEAD_BYTES + count * HASH_BYTES
    if count > _NODES_MAX or len(data) <= end:
        raise Invalid(f"record: {len(data)} bytes cannot hold {count} nodes and an entry", field="record")
    nodes = tuple(data[at : at + HASH_BYTES] for at in range(_HEAD_BYTES, end, HASH_BYTES))
    return JournalRecord(
        leaf=data[:HASH_BYTES], chain=data[HASH_BYTES : 2 * HASH_BYTES], nodes=nodes, entry=data[end:]
    )


def record_entry(data: bytes) -> bytes:
    """The encoded entry in a record that this process or an earlier one wrote."""
    return data[_HEAD_BYTES + data[2 * HASH_BYTES] * HASH_BYTES :]


def record_chain(data: bytes) -> bytes:
    """The chain hash in a record."""
    return data[HASH_BYTES : 2 * HASH_BYTES]


def _encode_operations(entry: Entry) -> bytes:
    operations = entry.operations
    if isinstance(operations, tuple):
        assert entry.kind is Kind.TRANSACTION, entry.kind
        problem = writes_problem(operations)
        assert not problem, problem
        return _array_head(len(operations)) + b"".join([_encode_write(write) for write in operations])
    return encode(_operations_shape(entry.kind, operations))


def _array_head(size: int) -> bytes:
    head = uint(size)
    return bytes((head[0] | 0x80,)) + head[1:]


def _encode_write(write: Write) -> bytes:
    if isinstance(write, Put):
        return b"\x83\x00" + text(write.key) + octets(write.value)
    return b"\x82\x01" + text(write.key)


def _operations_shape(kind: Kind, operations: Ownership | InSync | AcceptedLoss | Checkpoint) -> list[Any]:
    match operations:
        case Ownership():
            assert kind is Kind.OWNERSHIP, kind
            return [
                operations.previous_epoch,
                operations.previous_seq,
                operations.previous_txid,
                operations.previous_chain,
                operations.session,
            ]
        case InSync():
            assert kind is Kind.IN_SYNC, kind
            return [operations.version, list(operations.members)]
        case AcceptedLoss():
            assert kind is Kind.ACCEPTED_LOSS, kind
            return [operations.epoch]
        case Checkpoint():
            assert kind is Kind.CHECKPOINT, kind
            return [operations.at, operations.keys, operations.digest]


def writes_problem(writes: Sequence[Write]) -> str:
    """Why these writes cannot be stored (empty: they can).

    The order of `versions` and LMDB's longest key rest on this, so it is held for copies as for own entries.
    """
    for write in writes:
        key = write.key
        if not key or "\x00" in key:
            return f"key {key[:64]!r} is empty or has a NUL"
        if len(key) > limits.KEY_CHARS_SURELY_SHORT and len(key.encode()) > limits.KEY_BYTES_MAX:
            return f"key {key[:64]!r}… has more than {limits.KEY_BYTES_MAX} bytes"
    if len(writes) > 1 and len({write.key for write in writes}) != len(writes):
        return "a key is written twice"
    return ""


def _operations(kind: Kind, shape: Any, seq: int) -> Operations:
    if kind is Kind.TRANSACTION:
        return _writes(shape)
    if kind is Kind.OWNERSHIP:
        _array(shape, 5, "operations")
        epoch, seq, txid, chain, session = shape
        _integer(epoch, "operations.epoch", low=0, high=EPOCH_MAX)
        _integer(seq, "operations.seq", low=-1, high=NUMBER_MAX)
        _integer(txid, "operations.txid", low=0, high=NUMBER_MAX)
        _octets(chain, "operations.chain", low=HASH_BYTES, high=HASH_BYTES)
        _text(session, "operations.session", empty=False)
        return Ownership(
            previous_epoch=epoch, previous_seq=seq, previous_txid=txid, previous_chain=chain, session=session
        )
    if kind is Kind.IN_SYNC:
        _array(shape, 2, "operations")
        version, members = shape
        _integer(version, "operations.version", low=0, high=NUMBER_MAX)
        _array(members, None, "operations.members")
        for member in members:
            _text(member, "operations.members", empty=False)
        if members != sorted(set(members)):
            raise Invalid("entry.operations.members: not sorted", field="entry.operations.members")
        return InSync(version=version, members=tuple(members))
    if kind is Kind.CHECKPOINT:
        _array(shape, 3, "operations")
        at, keys, digest = shape
        _integer(at, "operations.at", low=0, high=seq - 1)
        _integer(keys, "operations.keys", low=0, high=NUMBER_MAX)
        _octets(digest, "operations.digest", low=HASH_BYTES, high=HASH_BYTES)
        return Checkpoint(at=at, keys=keys, digest=digest)
    _array(shape, 1, "operations")
    _integer(shape[0], "operations.epoch", low=0, high=EPOCH_MAX)
    return AcceptedLoss(epoch=shape[0])


def _writes(shape: Any) -> tuple[Write, ...]:
    _array(shape, None, "operations")
    writes: list[Write] = []
    for part in shape:
        match part:
            case [0, str(key), bytes(value)] if type(part[0]) is int:
                writes.append(Put(key, value))
            case [1, str(key)] if type(part[0]) is int:
                writes.append(Delete(key))
            case _:
                raise Invalid("entry.operations: neither a put nor a delete", field="entry.operations")
    problem = writes_problem(writes)
    if problem:
        raise Invalid(f"entry.operations: {problem}", field="entry.operations")
    return tuple(writes)


def _integer(value: Any, name: str, *, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise Invalid(f"entry.{name}: want an integer from {low} to {high}", field=f"entry.{name}")


def _text(value: Any, name: str, *, empty: bool) -> None:
    if not isinstance(value, str) or not (value or empty):
        raise Invalid(f"entry.{name}: want a text", field=f"entry.{name}")


def _octets(value: Any, name: str, *, low: int, high: int) -> None:
    if not isinstance(value, bytes) or not low <= len(value) <= high:
        raise Invalid(f"entry.{name}: want {low} to {high} bytes", field=f"entry.{name}")


def _array(value: Any, length: int | None, name: str) -> None:
    if not isinstance(value, list) or (length is not None and len(value) != length):
        size = "" if length is None else f" of {length}"
        raise Invalid(f"entry.{name}: want an array{size}", field=f"entry.{name}")
