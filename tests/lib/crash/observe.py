"""Opening what a crash left, as the next process would, and telling what is there.

Invariants:
  * The replica is opened by its own code alone, and audited: journal, hashes, derived tables against a rebuild.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from memory_kube import HandClock
from storage import UID, Inline, txn

from crash.story import Found
from fencekv_shard import journal
from fencekv_shard.base import unpack_row
from fencekv_shard.memory import PodMemory
from fencekv_shard.replica import Replica
from fencekv_shard.store import Corrupt

NEW_ID: Final = "found-nothing"  # of a replica that the opening had to make anew
_PAGE: Final = 1000


def digest_of(entry: bytes) -> str:
    """Stands for an encoded entry in a log."""
    return hashlib.sha256(entry).hexdigest()[:20]


async def observe(folder: Path, *, go_on: bool = False) -> Found:
    """What lies in a data folder. `go_on`: also lets the replica work on, and opens it once more."""
    try:
        renewal, suspect = await _memory(folder)
        replica = await _opened(folder)
    except Exception as error:  # whatever stops an opening is the finding
        return Found(problem=f"it cannot be opened: {type(error).__name__}: {error}")
    try:
        await replica.verify()
        found = Found(
            replica_id=replica.replica_id,
            promised=replica.promised,
            closed_epoch=replica.closed_epoch,
            applied_seq=replica.applied_seq,
            commit_seq=replica.commit_seq,
            base_seq=replica.base.seq,
            first_seq=replica.first_seq,
            journal=_journal(replica),
            items=_items(replica),
            base=_base(replica),
            tails=_tails(folder),
            renewal=renewal,
            suspect=suspect,
        )
        if go_on:
            replica = await _gone_on(folder, replica)
    except Exception as error:
        return Found(problem=f"it contradicts itself: {type(error).__name__}: {error}")
    finally:
        await replica.close()
    return found


async def _opened(folder: Path) -> Replica:
    return await Replica.open(folder, UID, executor=Inline(), new_id=lambda: NEW_ID)


async def _gone_on(folder: Path, replica: Replica) -> Replica:
    """The next owner's first steps; then it is closed, opened and audited once more."""
    epoch = replica.known_epoch + 1
    await replica.promise(epoch)
    last = replica.last
    await replica.append_own([txn(last.seq + 1, epoch=epoch, txid=last.txid + 1)], epoch=epoch)
    replica.commit(replica.last.seq)
    while replica.needs_apply:
        await replica.apply_step()
    chain, applied = replica.chain, replica.applied_seq
    await replica.close()
    again = await _opened(folder)
    try:
        await again.verify()
        if (again.promised, again.last.seq, again.chain, again.applied_seq) != (
            epoch,
            last.seq + 1,
            chain,
            applied,
        ):
            raise Corrupt("what was written after the crash is not there")
    except BaseException:
        await again.close()
        raise
    return again


def _journal(replica: Replica) -> tuple[str, ...]:
    digests: list[str] = []
    while (following := replica.first_seq + len(digests)) <= replica.last.seq:
        raw = replica.raw(following, _PAGE, 1 << 30)
        assert raw, following
        digests += [digest_of(entry) for entry in raw]
    return tuple(digests)


def _base(replica: Replica) -> tuple[tuple[str, str], ...]:
    page = replica.base_page(b"", count_max=_PAGE, bytes_max=1 << 30)
    assert len(page) < _PAGE
    return tuple((key.decode(), unpack_row(row).value.hex()) for key, row in page)


def _items(replica: Replica) -> tuple[tuple[str, str], ...]:
    page, more = replica.scan(start="", end="", after="", limit=_PAGE, bytes_max=1 << 30, at=replica.last.seq)
    assert not more
    return tuple((key, record.value.hex()) for key, record in page)


async def _memory(folder: Path) -> tuple[int, bool]:
    memory = PodMemory(folder, epochs=dict)
    await memory.open(HandClock())
    try:
        return memory.renewal, memory.is_suspect(UID)
    finally:
        memory.close()


def _tails(folder: Path) -> frozenset[tuple[str, ...]]:
    return frozenset(_tail(path.read_bytes()) for path in folder.glob(f"{UID}.tail-*.cbor"))


def _tail(data: bytes) -> tuple[str, ...]:
    """The entries' digests of the records in a file: a sequence of CBOR byte strings, read by hand."""
    digests: list[str] = []
    at = 0
    while at < len(data):
        head = data[at]
        width = {24: 1, 25: 2, 26: 4}.get(head & 31, 0)
        size = int.from_bytes(data[at + 1 : at + 1 + width], "big") if width else head & 31
        at += 1 + width
        record = data[at : at + size]
        if head >> 5 != 2 or len(record) < size:
            raise Corrupt("a torn tail")
        digests.append(digest_of(journal.record_entry(record)))
        at += size
    return tuple(digests)
