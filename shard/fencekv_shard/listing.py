"""Merging the pages of several partitions into one page. Pure.

Invariants:
  * Keys come out in the order of their bytes, each once, none left out up to the page's last key.
  * A partition that may have more keys is never passed: the merged page ends with the least of the last keys of
    such partitions, or earlier.
  * What is kept while pages come in is bounded by one page's limits, however many partitions there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fencekv.partitioning import Partitioning, RangePartitioning
from fencekv_shard import limits
from fencekv_shard.api import Item


@dataclass(frozen=True, slots=True)
class Part:
    """A partition's next keys in order, and whether there are more behind them (then there is one at least)."""

    items: Sequence[Item]
    more: bool


@dataclass(frozen=True, slots=True)
class Merged:
    """A page over several partitions, as far as their pages have come in."""

    entries: tuple[tuple[bytes, int, Item], ...] = ()  # key's bytes, partition's index, item; in order
    bound: bytes | None = None  # nothing above it may be on the page; None: no bound yet
    unfinished: frozenset[int] = frozenset()  # partitions that have, or may have, keys behind the page

    @property
    def items(self) -> list[Item]:
        """The page's items."""
        return [item for _, _, item in self.entries]


def merge(
    page: Merged, parts: Mapping[int, Part], *, limit: int, bytes_max: int = limits.LIST_BYTES_MAX
) -> Merged:
    """The page with further partitions' pages in it, all asked from the same key on."""
    ends = [part.items[-1].key.encode() for part in parts.values() if part.more]
    bound = min([*ends, *([] if page.bound is None else [page.bound])], default=None)
    new = [(item.key.encode(), index, item) for index, part in parts.items() for item in part.items]
    found = sorted([*page.entries, *new], key=lambda entry: entry[0])
    kept = 0
    size = 0
    for key, _, item in found:
        size += len(key) + len(item.record.value)
        # One item is always kept, however large, so that every page goes on.
        if kept == limit or (size > bytes_max and kept) or (bound is not None and key > bound):
            break
        kept += 1
    if kept < len(found):
        bound = found[kept - 1][0] if kept else bound
    dropped = {index for _, index, _ in found[kept:]}
    unfinished = page.unfinished | dropped | {index for index, part in parts.items() if part.more}
    return Merged(tuple(found[:kept]), bound, unfinished)


def candidates(partitioning: Partitioning, *, start: str, end: str) -> list[list[int]]:
    """The partitions that can hold keys of a span, in groups: a later group's keys come after an earlier one's."""
    if isinstance(partitioning, RangePartitioning):
        first = partitioning.partition_of(start)
        last = partitioning.partition_of(end) if end else partitioning.count - 1
        return [[index] for index in range(first, last + 1)]
    return [list(range(partitioning.count))]
