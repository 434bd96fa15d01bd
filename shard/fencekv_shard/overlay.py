"""The part of the journal that the derived tables do not hold yet, in memory. Pure.

Invariants:
  * It holds exactly the entries above applied_seq, in order and without a gap: those of rounds that are being
    built or written at the end.
  * Its indexes are functions of those entries.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import Final

from fencekv_shard import limits
from fencekv_shard.journal import Entry
from fencekv_shard.transaction import Put, Write

_ENTRY_BYTES: Final = 400  # what an entry takes in memory besides keys and values, roughly


class Overlay:
    """Entries above `applied_seq` with indexes by key and by idempotency key."""

    def __init__(self, applied_seq: int) -> None:
        self.applied_seq = applied_seq
        self._clear()

    def _clear(self) -> None:
        self.size_bytes = 0
        self._entries: dict[int, Entry] = {}
        self._changes: dict[str, list[tuple[int, int]]] = {}  # key -> (seq, operation's index), rising
        self._idempotency: dict[bytes, int] = {}
        self._sorted: list[str] = []  # keys in order, as of the last listing
        self._added: set[str] = set()  # and what came
        self._dropped = False  # or went since then

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def full(self) -> bool:
        """Whether writers should wait until some of it is applied."""
        count, size = len(self._entries), self.size_bytes  # asked for with each request: `fill` takes longer
        return (
            count >= limits.OVERLAY_ENTRIES_MAX
            or size >= limits.OVERLAY_BYTES_MAX
            or count * limits.REPLAY_ENTRY_SECONDS + size * limits.REPLAY_BYTE_SECONDS >= limits.REPLAY_SECONDS_MAX
        )

    @property
    def fill(self) -> float:
        """How full it is, by the nearest limit: entries, bytes, or the time that replaying it would take."""
        seconds = len(self._entries) * limits.REPLAY_ENTRY_SECONDS + self.size_bytes * limits.REPLAY_BYTE_SECONDS
        return max(
            len(self._entries) / limits.OVERLAY_ENTRIES_MAX,
            self.size_bytes / limits.OVERLAY_BYTES_MAX,
            seconds / limits.REPLAY_SECONDS_MAX,
        )

    def extend(self, entries: Iterable[Entry]) -> None:
        """Adds the entries that follow the last one."""
        for entry in entries:
            self.add(entry)

    def add(self, entry: Entry) -> None:
        """Adds the entry that follows the last one."""
        seq, entries = entry.seq, self._entries
        assert seq == self.applied_seq + len(entries) + 1, (seq, self.applied_seq)
        entries[seq] = entry
        self.size_bytes += entry_bytes(entry)
        for index, write in enumerate(entry.writes):
            key = write.key
            changes = self._changes.get(key)
            if changes is None:
                self._changes[key] = [(seq, index)]
                self._added.add(key)
            else:
                changes.append((seq, index))
        if entry.idempotency is not None:
            self._idempotency[entry.idempotency[0]] = seq

    def entry(self, seq: int) -> Entry | None:
        """An entry; None: it is applied, or not there yet."""
        return self._entries.get(seq)

    def above(self, seq: int) -> list[Entry]:
        """The entries above `seq`, in order."""
        first = max(seq, self.applied_seq) + 1
        return [self._entries[at] for at in range(first, self.applied_seq + len(self._entries) + 1)]

    def step(self, commit_seq: int) -> list[Entry]:
        """What one apply step should take: bounded in entries and in writes."""
        taken: list[Entry] = []
        writes = 0
        last = min(commit_seq, self.applied_seq + min(len(self._entries), limits.APPLY_ENTRIES))
        for seq in range(self.applied_seq + 1, last + 1):
            writes += len(self._entries[seq].writes)
            if taken and writes > limits.APPLY_WRITES:
                break
            taken.append(self._entries[seq])
        return taken

    @property
    def last_seq(self) -> int:
        """The seq of its last entry; applied_seq if it is empty."""
        return self.applied_seq + len(self._entries)

    def holds(self, key: str) -> bool:
        """Whether any entry here changes the key."""
        return key in self._changes

    def change(self, key: str, seq: int) -> tuple[Entry, Write] | None:
        """What changed the key last at or before `seq`; None: nothing here."""
        changes = self._changes.get(key)
        if not changes:
            return None
        at = bisect_right(changes, seq, key=lambda where: where[0])
        if at == 0:
            return None
        where, index = changes[at - 1]
        entry = self._entries[where]
        return entry, entry.writes[index]

    def changes(self, key: str, seq: int) -> list[tuple[Entry, Write]]:
        """All that changed the key at or before `seq`, newest first."""
        found = [(self._entries[at], index) for at, index in self._changes.get(key, ()) if at <= seq]
        return [(entry, entry.writes[index]) for entry, index in reversed(found)]

    def idempotent(self, key: bytes) -> tuple[int, bytes] | None:
        """The last entry with this idempotency key: its seq and fingerprint; None: not here."""
        seq = self._idempotency.get(key)
        if seq is None:
            return None
        idempotency = self._entries[seq].idempotency
        assert idempotency is not None, seq
        return seq, idempotency[1]

    def keys(self, start: str, end: str) -> list[str]:
        """Changed keys of start <= key < end (empty end: no bound), in order.

        Texts compare by code points, which is the order of their UTF-8 bytes.
        """
        if self._dropped:
            self._sorted = [key for key in self._sorted if key in self._changes and key not in self._added]
            self._dropped = False
        if self._added:
            self._sorted.extend(self._added)
            self._sorted.sort()
            self._added.clear()
        low = bisect_left(self._sorted, start)
        high = bisect_left(self._sorted, end) if end else len(self._sorted)
        return self._sorted[low:high]

    def drop_applied(self, applied_seq: int) -> None:
        """Forgets the entries up to `applied_seq`: the derived tables hold them now."""
        for seq in range(self.applied_seq + 1, applied_seq + 1):
            entry = self._entries.pop(seq)
            self.size_bytes -= entry_bytes(entry)
            for write in entry.writes:
                key = write.key
                changes = self._changes[key]
                assert changes[0][0] == seq, (changes[0], seq)
                if len(changes) > 1:
                    del changes[0]
                    continue
                del self._changes[key]
                self._added.discard(key)
                self._dropped = True
            if entry.idempotency is not None and self._idempotency.get(entry.idempotency[0]) == seq:
                del self._idempotency[entry.idempotency[0]]
        self.applied_seq = applied_seq

    def cut(self, seq: int) -> None:
        """Forgets the entries above `seq`."""
        kept = [entry for entry in self.above(self.applied_seq) if entry.seq <= seq]
        self._clear()  # rare: the indexes are made anew rather than undone
        self.extend(kept)


def entry_bytes(entry: Entry) -> int:
    """About how much memory an entry takes."""
    size = _ENTRY_BYTES
    for write in entry.writes:
        size += len(write.key) + 200 + (len(write.value) if isinstance(write, Put) else 0)
    return size
