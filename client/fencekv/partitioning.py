"""Which partition a key lies in. Shards, SDK and operator must agree on it, byte for byte."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class HashPartitioning:
    """`count` partitions by hash of the key, or of what stands in its first braces."""

    count: int

    def partition_of(self, key: str) -> int:
        """Index of the key's partition."""
        digest = hashlib.sha256(_hashed_part(key).encode()).digest()
        return int.from_bytes(digest[:8], "big") % self.count


@dataclass(frozen=True, slots=True)
class RangePartitioning:
    """`len(split_points) + 1` partitions; partition i begins at split point i - 1."""

    split_points: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many partitions there are."""
        return len(self.split_points) + 1

    def partition_of(self, key: str) -> int:
        """Index of the key's partition."""
        return bisect.bisect_right([point.encode() for point in self.split_points], key.encode())


Partitioning = HashPartitioning | RangePartitioning


def parse_partitioning(spec: Mapping[str, Any]) -> Partitioning:
    """Reads `spec.partitioning` of a KVTable or KVPartition; the API server has checked it."""
    if spec.get("strategy", "hash") == "range":
        return RangePartitioning(tuple(spec.get("splitPoints") or ()))
    return HashPartitioning(int(spec.get("count", 1)))


def _hashed_part(key: str) -> str:
    start = key.find("{")
    end = key.find("}", start + 1) if start >= 0 else -1
    return key[start + 1 : end] if end > start + 1 else key
