"""Merging pages of several partitions, for every way in which keys can lie and pages can end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fencekv.partitioning import HashPartitioning, RangePartitioning
from fencekv.token import Version
from fencekv_shard.api import Item
from fencekv_shard.listing import Merged, Part, candidates, merge
from fencekv_shard.transaction import Record

KEYS = st.lists(st.text(alphabet="abé\uffff\U00010000", min_size=1, max_size=3), max_size=12, unique=True)


def item(key: str, size: int = 1) -> Item:
    return Item(key, Record(b"v" * size, Version(1, 1)))


@given(KEYS, st.integers(1, 4), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
def test_following_the_pages_gives_all_keys_in_order_once(
    keys: list[str], partitions: int, limit: int, part_max: int, at_once: int
) -> None:
    split = HashPartitioning(partitions)
    held = {n: sorted((k for k in keys if split.partition_of(k) == n), key=str.encode) for n in range(partitions)}
    found: list[str] = []
    open_partitions = list(range(partitions))
    after = b""
    while open_partitions:
        merged = Merged()
        for start in range(0, len(open_partitions), at_once):
            parts = {}
            for n in open_partitions[start : start + at_once]:
                rest = [key for key in held[n] if key.encode() > after]
                parts[n] = Part([item(key) for key in rest[:part_max]], len(rest) > part_max)
            merged = merge(merged, parts, limit=limit)
        assert len(merged.items) <= limit
        assert merged.items or not merged.unfinished  # each page goes on
        found += [entry.key for entry in merged.items]
        after = found[-1].encode() if found else b""
        open_partitions = sorted(merged.unfinished)
    assert found == sorted(keys, key=str.encode)


def test_a_page_ends_before_its_bytes_pass_the_bound_but_holds_one_item_at_least() -> None:
    parts = {0: Part([item("a", 90), item("c", 5)], False), 1: Part([item("b", 20)], False)}
    merged = merge(Merged(), parts, limit=10, bytes_max=100)
    assert [entry.key for entry in merged.items] == ["a"]
    assert merged.unfinished == {0, 1}
    assert [entry.key for entry in merge(Merged(), parts, limit=10, bytes_max=1).items] == ["a"]


def test_only_partitions_that_can_hold_keys_of_the_span_are_asked() -> None:
    split = RangePartitioning(("h", "p"))
    assert candidates(split, start="", end="") == [[0], [1], [2]]
    assert candidates(split, start="h", end="i") == [[1]]
    assert candidates(split, start="i", end="q") == [[1], [2]]
    assert candidates(HashPartitioning(3), start="h", end="i") == [[0, 1, 2]]
