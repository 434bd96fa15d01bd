"""The bytes of the journal: they are final, so golden vectors and the rules as written down hold them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fencekv.errors import Invalid
from fencekv_shard import journal
from fencekv_shard.journal import (
    ZERO_HASH,
    Entry,
    JournalRecord,
    Ownership,
    accepted_loss_entry,
    decode_entry,
    decode_record,
    encode_entry,
    encode_record,
    in_sync_entry,
    ownership_entry,
    transaction_entry,
)
from fencekv_shard.state import State, appended
from fencekv_shard.transaction import Delete, Put, Write

GOLDEN = Path(__file__).parent / "golden_journal.json"


def golden_entries() -> list[Entry]:
    """One of each sort, and enough for a peak of height 3."""
    numbers: dict[str, Any] = {"epoch": 3, "unix_ns": 1_700_000_000_123_456_789}
    ownership = Ownership(
        previous_epoch=2,
        previous_seq=-1,
        previous_txid=0,
        previous_chain=ZERO_HASH,
        session="sample-0/5f0c0a3e-9a57-4c0e-8f6e-1d2b3c4d5e6f/9c01a2b3c4d5e6f7",
    )
    entries = [
        ownership_entry(seq=0, txid=1, ownership=ownership, **numbers),
        in_sync_entry(seq=1, txid=2, version=7, members=["b/2", "a/1"], **numbers),
        accepted_loss_entry(seq=2, txid=3, accepted_epoch=2, actor="kubectl", **numbers),
        transaction_entry(
            seq=3,
            txid=4,
            writes=[Put("orders/1", b"\x00\xff"), Delete("é/日本")],
            actor="alice",
            idempotency=(b"once", bytes(range(16))),
            **numbers,
        ),
    ]
    entries += [transaction_entry(seq=at, txid=5, writes=[Put(f"k{at}", b"v")], **numbers) for at in range(4, 9)]
    return entries


def golden() -> list[dict[str, Any]]:
    vectors = []
    state = State(replica_id="a3f0")
    for entry in golden_entries():
        data = encode_entry(entry)
        state, records = appended(state, [(entry, data)], commit_seq=-1)
        vectors.append(
            {
                "entry": data.hex(),
                "leaf": journal.leaf_hash(data).hex(),
                "chain": state.chain.hex(),
                "peaks": [peak.hex() for peak in state.peaks],
                "root": journal.root(state.peaks).hex(),
                "record": records[0][1].hex(),
            }
        )
    return vectors


def test_golden_vectors() -> None:
    assert golden() == json.loads(GOLDEN.read_text())


def test_golden_vectors_follow_from_the_rules_as_written() -> None:
    """Worked out here anew from docs/formats.md, with nothing of the journal's code."""
    chain = bytes(32)
    levels: list[list[bytes]] = [[]]  # levels[h] = all nodes of height h
    for seq, vector in enumerate(json.loads(GOLDEN.read_text())):
        entry = bytes.fromhex(vector["entry"])
        assert cbor2.loads(entry)[0] == seq
        leaf = hashlib.sha256(b"fencekv.journal.v1" + entry).digest()
        chain = hashlib.sha256(b"fencekv.chain.v1" + chain + leaf).digest()
        assert (vector["leaf"], vector["chain"]) == (leaf.hex(), chain.hex())
        levels[0].append(leaf)
        nodes = []
        height = 0
        while len(levels[height]) % 2 == 0:
            left, right = levels[height][-2:]
            nodes.append(hashlib.sha256(b"fencekv.node.v1" + left + right).digest())
            height += 1
            if len(levels) == height:
                levels.append([])
            levels[height].append(nodes[-1])
        assert vector["record"] == (leaf + chain + bytes([len(nodes)]) + b"".join(nodes) + entry).hex()


def test_the_entry_reads_as_written_down() -> None:
    shape = [cbor2.loads(encode_entry(entry)) for entry in golden_entries()[:4]]
    ns = 1_700_000_000_123_456_789
    session = "sample-0/5f0c0a3e-9a57-4c0e-8f6e-1d2b3c4d5e6f/9c01a2b3c4d5e6f7"
    assert shape == [
        [0, 1, 3, 1, ns, "", [2, -1, 0, ZERO_HASH, session], None],
        [1, 2, 3, 2, ns, "", [7, ["a/1", "b/2"]], None],
        [2, 3, 3, 3, ns, "kubectl", [2], None],
        [3, 4, 3, 0, ns, "alice", [[0, "orders/1", b"\x00\xff"], [1, "é/日本"]], [b"once", bytes(range(16))]],
    ]


texts = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1, max_size=8)
numbers = st.integers(0, 2**63 - 1)
write: st.SearchStrategy[Write] = st.one_of(
    st.builds(Put, texts, st.binary(max_size=32)), st.builds(Delete, texts)
)


@given(
    seq=numbers,
    txid=numbers,
    epoch=st.integers(1, 2**31 - 1),
    unix_ns=numbers,
    actor=st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    writes=st.lists(write, max_size=5, unique_by=lambda one: one.key),
    idempotency=st.none() | st.tuples(st.binary(min_size=1, max_size=9), st.binary(min_size=16, max_size=16)),
)
def test_every_transaction_survives_its_encoding(**fields: Any) -> None:
    entry = transaction_entry(**fields)
    assert decode_entry(encode_entry(entry)) == entry


@pytest.mark.parametrize("entry", golden_entries(), ids=lambda entry: f"{entry.seq}")
def test_every_kind_survives_its_encoding(entry: Entry) -> None:
    assert decode_entry(encode_entry(entry)) == entry


GOOD = [3, 4, 3, 0, 5, "alice", [[0, "a", b"x"], [1, "b"]], [b"once", bytes(16)]]


def changed(**changes: Any) -> list[Any]:
    names = ["seq", "txid", "epoch", "kind", "unix_ns", "actor", "operations", "idempotency"]
    return [changes.get(name, value) for name, value in zip(names, GOOD, strict=True)]


@pytest.mark.parametrize(
    ("shape", "field"),
    [
        (changed(seq=-1), "entry.seq"),
        (changed(seq=True), "entry.seq"),
        (changed(seq=2**63), "entry.seq"),
        (changed(txid="4"), "entry.txid"),
        (changed(epoch=0), "entry.epoch"),
        (changed(epoch=2**31), "entry.epoch"),
        (changed(kind=5), "entry.kind"),
        (changed(kind=False), "entry.kind"),
        (changed(unix_ns=1.5), "entry.unix_ns"),
        (changed(actor=b"alice"), "entry.actor"),
        (changed(operations={}), "entry.operations"),
        (changed(operations=[[0, "a"]]), "entry.operations"),
        (changed(operations=[[0, "a", "x"]]), "entry.operations"),
        (changed(operations=[[1, "a", b"x"]]), "entry.operations"),
        (changed(operations=[[2, "a"]]), "entry.operations"),
        (changed(operations=[[False, "a", b"x"]]), "entry.operations"),
        (changed(operations=[[True, "a"]]), "entry.operations"),
        (changed(operations=[[0.0, "a", b"x"]]), "entry.operations"),
        (changed(operations=[[0, "", b"x"]]), "entry.operations"),
        (changed(operations=[[0, "a\x00b", b"x"]]), "entry.operations"),
        (changed(operations=[[0, "a" * 1025, b"x"]]), "entry.operations"),
        (changed(operations=[[0, "é" * 513, b"x"]]), "entry.operations"),
        (changed(operations=[[0, "a", b"x"], [1, "a"]]), "entry.operations"),
        (changed(idempotency=[]), "entry.idempotency"),
        (changed(idempotency=[b"", bytes(16)]), "entry.idempotency.key"),
        (changed(idempotency=[bytes(257), bytes(16)]), "entry.idempotency.key"),
        (changed(idempotency=[b"once", bytes(15)]), "entry.idempotency.fingerprint"),
        (changed(kind=1), "entry.idempotency"),
        (changed(kind=1, idempotency=None), "entry.operations"),
        (changed(kind=1, idempotency=None, operations=[0, -2, 0, bytes(32), "s"]), "entry.operations.seq"),
        (changed(kind=1, idempotency=None, operations=[0, -1, 0, bytes(31), "s"]), "entry.operations.chain"),
        (changed(kind=1, idempotency=None, operations=[0, -1, 0, bytes(32), ""]), "entry.operations.session"),
        (changed(kind=2, idempotency=None, operations=[1]), "entry.operations"),
        (changed(kind=2, idempotency=None, operations=[1, ["b", "a"]]), "entry.operations.members"),
        (changed(kind=2, idempotency=None, operations=[1, ["a", "a"]]), "entry.operations.members"),
        (changed(kind=2, idempotency=None, operations=[1, [1]]), "entry.operations.members"),
        (changed(kind=3, idempotency=None, operations=[-1]), "entry.operations.epoch"),
        (changed(kind=4, idempotency=None, operations=[1]), "entry.operations"),
        (changed(kind=4, idempotency=None, operations=[GOOD[0], 1, bytes(32)]), "entry.operations.at"),
        (changed(kind=4, idempotency=None, operations=[0, -1, bytes(32)]), "entry.operations.keys"),
        (changed(kind=4, idempotency=None, operations=[0, 1, bytes(31)]), "entry.operations.digest"),
        (GOOD[:7], "entry"),
        ([*GOOD, None], "entry"),
        ({}, "entry"),
        (None, "entry"),
    ],
)
def test_a_wrong_shape_is_refused_and_named(shape: Any, field: str) -> None:
    with pytest.raises(Invalid) as refused:
        decode_entry(cbor2.dumps(shape, canonical=True))
    assert refused.value.extra["field"] == field


def test_other_encodings_of_a_right_shape_are_refused() -> None:
    data = cbor2.dumps(GOOD, canonical=True)
    decode_entry(data)
    for other in (data + b"\x00", data[:-1], b"\x9f" + data[1:] + b"\xff", b"\x98\x08" + data[1:], b""):
        with pytest.raises(Invalid):
            decode_entry(other)


def naive_root(leaves: list[bytes]) -> bytes:
    """The root by its definition: perfect trees over the bits of the count, bagged from the right."""
    peaks = []
    while leaves:
        size = 1 << (len(leaves).bit_length() - 1)
        level, leaves = leaves[:size], leaves[size:]
        while len(level) > 1:
            level = [journal.node_hash(*level[at : at + 2]) for at in range(0, len(level), 2)]
        peaks.append(level[0])
    if not peaks:
        return ZERO_HASH
    bag = peaks.pop()
    while peaks:
        bag = journal.node_hash(peaks.pop(), bag)
    return bag


def test_the_mountain_range_equals_its_definition_at_every_size() -> None:
    leaves: list[bytes] = []
    completed: list[tuple[bytes, tuple[bytes, ...]]] = []
    peaks: tuple[bytes, ...] = ()
    for at in range(131):
        assert journal.root(peaks) == naive_root(leaves)
        leaf = journal.leaf_hash(b"%d" % at)
        peaks, nodes = journal.append(peaks, at, leaf)
        leaves.append(leaf)
        completed.append((leaf, nodes))
        places = journal.peak_leaves(at + 1)
        found = [completed[seq][1][height - 1] if height else completed[seq][0] for seq, height in places]
        assert tuple(found) == peaks, "the peaks can be read from the records"


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=63), st.binary(min_size=1, max_size=40))
def test_every_record_survives_its_encoding(nodes: list[bytes], entry: bytes) -> None:
    record = JournalRecord(leaf=b"l" * 32, chain=b"c" * 32, nodes=tuple(nodes), entry=entry)
    data = encode_record(record.leaf, record.chain, record.nodes, record.entry)
    assert decode_record(data) == record
    assert journal.record_entry(data) == entry
    assert journal.record_chain(data) == record.chain


@pytest.mark.parametrize(
    "data", [b"", bytes(64), bytes(65), bytes(64) + b"\x01" + bytes(32), bytes(64) + b"\x40" + bytes(4096)]
)
def test_a_short_record_is_refused(data: bytes) -> None:
    with pytest.raises(Invalid):
        decode_record(data)
