"""What the API server says there is: the partitions of a namespace and the Leases that say who owns them. Pure.

Invariants:
  * A Lease of a lower epoch than one that was seen changes nothing.
  * A table is as its partitions describe it: the form that requests use is made anew whenever one of them changes.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from fencekv.leases import PartitionLease
from fencekv_shard.api import Table
from fencekv_shard.spec import PartitionSpec


class Catalog:
    """Partitions and their Leases, as they were seen last."""

    def __init__(self) -> None:
        self._specs: dict[str, PartitionSpec] = {}  # by UID
        self._tables: dict[str, dict[int, PartitionSpec]] = {}
        self._made_tables: dict[str, Table] = {}
        self._leases: dict[str, tuple[dict[str, Any], PartitionLease]] = {}  # by partition UID

    def uids(self) -> Collection[str]:
        """Of all partitions."""
        return self._specs.keys()

    def spec(self, uid: str) -> PartitionSpec | None:
        """A partition; None: there is none with this UID, or not any more."""
        return self._specs.get(uid)

    def at(self, table: str, index: int) -> PartitionSpec | None:
        """The partition at an index of a table; None: there is none."""
        return self._tables.get(table, {}).get(index)

    def table(self, name: str) -> Table | None:
        """A table; None: no partition names it."""
        made = self._made_tables.get(name)
        if made is None and (specs := self._tables.get(name)):
            made = self._made_tables[name] = _made(name, specs[min(specs)])
        return made

    def lease(self, uid: str) -> PartitionLease | None:
        """A partition's Lease; None: none was seen."""
        seen = self._leases.get(uid)
        return seen[1] if seen else None

    def raw_lease(self, uid: str) -> dict[str, Any] | None:
        """The same as the API server gave it."""
        seen = self._leases.get(uid)
        return seen[0] if seen else None

    def add(self, spec: PartitionSpec) -> bool:
        """Takes note of a partition. False: nothing about it has changed."""
        if self._specs.get(spec.uid) == spec:
            return False
        self._specs[spec.uid] = spec
        self._made_tables.pop(spec.table, None)
        self._tables.setdefault(spec.table, {})[spec.index] = spec
        return True

    def see(self, raw: dict[str, Any], lease: PartitionLease) -> bool:
        """Takes note of a Lease. False: it is older than what is known."""
        known = self.lease(lease.partition_uid)
        if known is not None and lease.epoch < known.epoch:
            return False
        self._leases[lease.partition_uid] = raw, lease
        return True

    def forget(self, spec: PartitionSpec) -> None:
        """A partition was deleted."""
        self._specs.pop(spec.uid, None)
        self._made_tables.pop(spec.table, None)
        self._leases.pop(spec.uid, None)
        known = self._tables.get(spec.table, {})
        if spec.index in known and known[spec.index].uid == spec.uid:
            del known[spec.index]
            if not known:
                del self._tables[spec.table]


def _made(name: str, spec: PartitionSpec) -> Table:
    return Table(
        name=name,
        partitioning=spec.partitioning,
        durability=spec.durability,
        value_bytes_max=spec.value_bytes_max,
        key_pattern=spec.key_pattern,
        partitions=[f"{name}-{index}" for index in range(spec.partitioning.count)],
    )
