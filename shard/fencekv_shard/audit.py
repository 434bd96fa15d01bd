"""Whether a journal and its derived tables are what their hashes say. Reads only.

Invariants:
  * Nothing here trusts `meta.state` or a record's hashes: each is computed anew from the entries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from fencekv.errors import Invalid
from fencekv_shard import journal
from fencekv_shard.journal import Entry
from fencekv_shard.rows import batch_of
from fencekv_shard.state import State, appended, successor_problem
from fencekv_shard.store import Corrupt, Store

_CHUNK_RECORDS: Final = 256
_CHUNK_BYTES: Final = 4 << 20


def peaks_at(store: Store, count: int) -> tuple[bytes, ...]:
    """The peaks over the first `count` entries, from the records that complete them."""
    peaks = []
    for seq, height in journal.peak_leaves(count):
        record = journal.decode_record(_record(store, seq))
        peaks.append(record.nodes[height - 1] if height else record.leaf)
    return tuple(peaks)


def checked_tail(store: Store) -> list[Entry]:
    """The entries above applied_seq, each checked against the chain, and the journal's end against the state.

    This is what every opening does: the tail is what a crash or a failed fsync can have damaged.

    Raises:
        Corrupt: it is not what it was when it was written.
    """
    state = store.state
    first = state.applied_seq + 1
    try:
        start = replace(
            state,
            last=state.last._replace(seq=state.applied_seq, epoch=0, txid=0),
            chain=journal.record_chain(_record(store, state.applied_seq)) if first else journal.ZERO_HASH,
            peaks=peaks_at(store, first),
            commit_seq=state.applied_seq,
        )
    except (Invalid, IndexError) as error:
        raise Corrupt(f"{store.path}: seq {state.applied_seq}: {error}") from error
    entries, end = _walk(store, start)
    if (end.last.seq, end.chain, end.peaks) != (state.last.seq, state.chain, state.peaks):
        raise Corrupt(f"{store.path}: the journal ends at {end.last.seq}, its state says {state.last.seq}")
    if entries and end.last != state.last:
        raise Corrupt(f"{store.path}: the journal ends at {end.last}, its state says {state.last}")
    return entries


def audit(store: Store) -> None:
    """Walks the whole journal, and compares all that is derived from it with a rebuild.

    Raises:
        Corrupt: naming the first thing that is not as it must be.
    """
    state = store.state
    entries, end = _walk(store, State(replica_id=state.replica_id))
    derived = replace(
        state,
        last=end.last,
        chain=end.chain,
        peaks=end.peaks,
        ends=end.ends,
        set_version=end.set_version,
        members=end.members,
    )
    if derived != state:
        raise Corrupt(f"{store.path}: the state does not follow from the journal: {state} is not {derived}")
    batch = batch_of([entry for entry in entries if entry.seq <= state.applied_seq])
    rebuilt = {
        "current": dict(batch.puts),
        "versions": dict(batch.versions),
        "idempotency": dict(batch.idempotency),
    }
    for name, table in store.tables().items():
        if table != rebuilt[name]:
            raise Corrupt(f"{store.path}: table {name} does not follow from the journal")


def _walk(store: Store, start: State) -> tuple[list[Entry], State]:
    """The entries behind `start`, and the state that they lead to; each record is made anew and compared."""
    state = start
    entries: list[Entry] = []
    for data in _records(store, start.last.seq + 1):
        seq = state.last.seq + 1
        try:
            encoded = journal.decode_record(data).entry
            entry = journal.decode_entry(encoded)
        except Invalid as error:
            raise Corrupt(f"{store.path}: seq {seq}: {error}") from error
        problem = successor_problem(state.last, entry)
        if problem:
            raise Corrupt(f"{store.path}: {problem}")
        state, records = appended(state, [(entry, encoded)], commit_seq=state.commit_seq)
        if records[0][1] != data:
            raise Corrupt(f"{store.path}: seq {seq}: the record contradicts its hashes")
        entries.append(entry)
    return entries, state


def _records(store: Store, first: int) -> Iterator[bytes]:
    while chunk := store.records(first, count_max=_CHUNK_RECORDS, bytes_max=_CHUNK_BYTES):
        yield from chunk
        first += len(chunk)


def _record(store: Store, seq: int) -> bytes:
    data = store.record(seq)
    if data is None:
        raise Corrupt(f"{store.path}: seq {seq} is missing")
    return data
