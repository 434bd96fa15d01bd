"""Whether a journal and its derived tables are what their hashes say. Reads only.

Invariants:
  * Nothing here trusts `meta.state` or a record's hashes: each is computed anew from the entries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from fencekv.errors import Invalid
from fencekv_shard import journal, limits
from fencekv_shard.base import Base, Digest, Fold, folded, noted, unpack_row
from fencekv_shard.journal import Entry
from fencekv_shard.rows import Where, batch_of, pack_index, pack_where, unpack_version, version_key
from fencekv_shard.state import State, appended, successor_problem
from fencekv_shard.store import Corrupt, Store

_CHUNK_RECORDS: Final = 256
_CHUNK_BYTES: Final = 4 << 20


def peaks_at(store: Store, count: int) -> tuple[bytes, ...]:
    """The peaks over the first `count` entries, from the records that complete them.

    `count` is not below the base; a mountain that ends there, or earlier, is one of the base's own.
    """
    base = store.base
    kept = dict(zip(journal.peak_leaves(base.seq + 1), base.peaks, strict=True))
    peaks = []
    for seq, height in journal.peak_leaves(count):
        if (seq, height) in kept:
            peaks.append(kept[seq, height])
            continue
        record = journal.decode_record(_record(store, seq))
        peaks.append(record.nodes[height - 1] if height else record.leaf)
    return tuple(peaks)


def checked_tail(store: Store) -> list[Entry]:
    """The entries above applied_seq, each checked against the chain, and the journal's end against the state.

    This is what every opening does: the tail is what a crash or a failed fsync can have damaged.

    Raises:
        Corrupt: it is not what it was when it was written.
    """
    state, base = store.state, store.base
    first = state.applied_seq + 1
    if not base.seq <= state.applied_seq:
        raise Corrupt(f"{store.path}: the base is at {base.seq}, applied is {state.applied_seq}")
    at_base = state.applied_seq == base.seq
    try:
        start = replace(
            state,
            last=state.last._replace(seq=state.applied_seq, epoch=0, txid=0),
            chain=base.chain if at_base else journal.record_chain(_record(store, state.applied_seq)),
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
    """Walks the whole journal, and compares all that is derived from it, and from the base, with a rebuild.

    Raises:
        Corrupt: naming the first thing that is not as it must be.
    """
    state, base = store.state, store.base
    start = Base() if base.first_seq == 0 else base
    entries, end = _walk(store, start.state(replica_id=state.replica_id))
    derived = replace(
        state,
        last=end.last,
        chain=end.chain,
        peaks=end.peaks,
        ends=end.ends,
        set_version=end.set_version,
        members=end.members,
    )
    known = len(state.ends)
    if len(derived.ends) == limits.ENDS_MAX and known < limits.ENDS_MAX:
        derived = replace(
            derived, ends=derived.ends[limits.ENDS_MAX - known :]
        )  # after a cut the oldest are missing
    if derived != state:
        raise Corrupt(f"{store.path}: the state does not follow from the journal: {state} is not {derived}")
    below = _checked_below(store, entries)
    rows = _checked_base(store, [entry for entry in entries if start.seq == -1 and entry.seq <= base.seq])
    _check_noted(store, [*below, *entries])
    above = [entry for entry in entries if base.seq < entry.seq <= state.applied_seq]
    _check_tables(store, rows, below, above)


def _checked_below(store: Store, entries: list[Entry]) -> list[Entry]:
    """The entries up to the base that were not trimmed yet: each follows by hash from the one before."""
    base = store.base
    if base.first_seq == 0:
        return [entry for entry in entries if entry.seq <= base.seq]
    below: list[Entry] = []
    chain: bytes | None = None  # of the record before; None: trimmed
    for seq in range(base.first_seq, base.seq + 1):
        try:
            record = journal.decode_record(_record(store, seq))
            below.append(journal.decode_entry(record.entry))
        except Invalid as error:
            raise Corrupt(f"{store.path}: seq {seq}: {error}") from error
        follows = chain is None or record.chain == journal.chain_hash(chain, record.leaf)
        if not follows or record.leaf != journal.leaf_hash(record.entry) or below[-1].seq != seq:
            raise Corrupt(f"{store.path}: seq {seq}: the record contradicts its hashes")
        chain = record.chain
    if chain is not None and chain != base.chain:
        raise Corrupt(f"{store.path}: the base stands elsewhere than the journal at {base.seq}")
    return below


def _checked_base(store: Store, entries: list[Entry]) -> dict[bytes, Where]:
    """Where each key of the base was written. `entries`: all up to the base, if the journal still has them."""
    base, digest = store.base, Digest()
    rows: dict[bytes, Where] = {}
    for page in _base_pages(store):
        digest.add(page)
        for key, data in page:
            row = unpack_row(data)
            rows[key] = (row.seq, row.operation)
    if base.total not in {None, digest.total}:
        raise Corrupt(f"{store.path}: the base is not what was written")
    known = base.noted.checkpoint if base.noted is not None else None
    if known is not None and known.at == base.seq and digest.checkpoint(base.seq) != known:
        raise Corrupt(f"{store.path}: the base is not what its checkpoint says")
    if entries:
        rebuilt, whole = Fold.of(entries), Digest()
        whole.add(rebuilt.puts)
        if whole.checkpoint(base.seq) != digest.checkpoint(base.seq):
            raise Corrupt(f"{store.path}: the base does not follow from the journal")
        records = appended(
            State(replica_id=""), [(one, journal.encode_entry(one)) for one in entries], commit_seq=-1
        )
        end = records[0]
        if folded(Base(), entries, chain=end.chain, peaks=end.peaks) != replace(base, noted=None):
            raise Corrupt(f"{store.path}: the base's place does not follow from the journal")
    return rows


def _check_noted(store: Store, entries: list[Entry]) -> None:
    """The checkpoint that was noted is the last one that was applied."""
    found = noted(Base(), [entry for entry in entries if entry.seq <= store.state.applied_seq]).noted
    if found is not None and found != store.base.noted:
        raise Corrupt(f"{store.path}: the checkpoint of seq {found.seq} was not noted")


def _check_tables(store: Store, rows: dict[bytes, Where], below: list[Entry], above: list[Entry]) -> None:
    """`rows`: those of the base. What trimming has still to remove lies below it, and is in the journal."""
    base, batch, tables = store.base, batch_of(above), store.tables()
    current = {key: pack_where(where) for key, where in rows.items()}
    for key in batch.deletes:
        current.pop(key, None)
    versions = {version_key(key, seq): pack_index(index) for key, (seq, index) in rows.items()}
    untrimmed = batch_of(below)
    versions |= dict(untrimmed.versions) | dict(batch.versions)
    rewritten = {key for key, _ in untrimmed.puts} | set(untrimmed.deletes)
    rebuilt = {
        "current": current | dict(batch.puts),
        "versions": versions,
        "idempotency": dict(untrimmed.idempotency) | dict(batch.idempotency),
    }
    for row, value in list(tables["versions"].items()):
        key, (seq, _) = unpack_version(row, value)
        if seq < base.first_seq and row not in versions and key in rewritten:
            del tables["versions"][row]  # what the base held before: it goes when what came later is trimmed
    for name, table in tables.items():
        if table != rebuilt[name]:
            raise Corrupt(f"{store.path}: table {name} does not follow from the journal")


def _base_pages(store: Store) -> Iterator[list[tuple[bytes, bytes]]]:
    after = b""
    while page := store.base_page(after, count_max=limits.BASE_PAGE_KEYS, bytes_max=limits.BASE_PAGE_BYTES):
        yield page
        after = page[-1][0]


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
