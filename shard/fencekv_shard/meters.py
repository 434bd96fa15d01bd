"""What a shard counts about ownership and its disk: plain numbers, read when somebody asks for /metrics.

The wire's own counts, and the text, are in `metrics`; replicas tell their state in the shard's report.
"""

from __future__ import annotations

import enum
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fencekv.exposition import Histogram
from fencekv_shard import limits
from fencekv_shard.fence import Role

COMMIT_BUCKETS: Final = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0)
ROUND_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
GATHER_BUCKETS: Final = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01)
TAKEOVER_BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Gate(enum.StrEnum):
    """What refused somebody who would act as the owner."""

    ROLE = "role"  # this replica is not the owner: no gate of the protocol, just the wrong address
    DEADLINE = "deadline"  # gate 1: the session's deadline has passed
    FSYNCED = "fsynced"  # gate 1 again, after the fsync: written, not acknowledged
    PROMISE = "promise"  # gate 2: a newer epoch is promised here, found inside the write transaction
    STANDBY = "standby"  # gate 3: as a standby, this replica has promised a newer epoch than its owner's
    CLIENT = "client"  # gate 5: the client saw a newer epoch


class Change(enum.StrEnum):
    """What happened to this shard's ownership of a partition."""

    GRANTED = "granted"
    OPENED = "opened"  # it serves
    DEPOSED = "deposed"
    MOVING = "moving"  # a planned move away began
    MOVED = "moved"  # and succeeded


class Meters:
    """One for a shard."""

    def __init__(self) -> None:
        self.refusals: Counter[Gate] = Counter()
        self.changes: Counter[Change] = Counter()
        self.commit_seconds = Histogram(COMMIT_BUCKETS)
        self.round_entries = Histogram(ROUND_BUCKETS)
        self.round_seconds = Histogram(COMMIT_BUCKETS)
        self.gather_seconds = Histogram(GATHER_BUCKETS)
        self.takeover_seconds = Histogram(TAKEOVER_BUCKETS)
        self.move_seconds = Histogram(TAKEOVER_BUCKETS)
        self.depths: dict[str, Callable[[], int]] = {}  # by queue

    def refused(self, *, role: Role, now: float, deadline: float) -> None:
        """Counts what `Fence.admit` refused under these, by the check that did."""
        self.refusals[refusing_gate(role=role, now=now, deadline=deadline)] += 1

    def grew(self, last: int, *, since: int) -> int:
        """Counts the round that brought the journal from `since` to `last`, if there was one; gives `last`."""
        if last > since:
            self.round_entries.add(last - since)
        return last

    def opened(self, seconds: float) -> None:
        """This shard serves a partition, so long after it learned of the grant."""
        self.changes[Change.OPENED] += 1
        self.takeover_seconds.add(seconds)

    def moved(self, seconds: float) -> None:
        """A planned move away took so long."""
        self.changes[Change.MOVED] += 1
        self.move_seconds.add(seconds)

    def report(self) -> dict[str, object]:
        """For the shard's report."""
        return {
            "refusals": {str(gate): self.refusals[gate] for gate in Gate},
            "changes": {str(change): self.changes[change] for change in Change},
            "commitSeconds": self.commit_seconds.report(),
            "roundEntries": self.round_entries.report(),
            "roundSeconds": self.round_seconds.report(),
            "gatherSeconds": self.gather_seconds.report(),
            "takeoverSeconds": self.takeover_seconds.report(),
            "moveSeconds": self.move_seconds.report(),
            "depths": {queue: depth() for queue, depth in sorted(self.depths.items())},
        }


def disk_report(folder: Path) -> dict[str, int]:
    """Bytes that are free where `folder` lies, and those of them that are kept for deletes and ownership."""
    disk = os.statvfs(folder)
    total = disk.f_blocks * disk.f_frsize
    return {
        "diskFreeBytes": disk.f_bavail * disk.f_frsize,
        "diskReserveBytes": max(limits.DISK_RESERVE_BYTES, int(total * limits.DISK_RESERVE_SHARE)),
    }


def refusing_gate(*, role: Role, now: float, deadline: float) -> Gate:
    """Which of the checks of `Fence.admit`, in its order, refused."""
    if role is not Role.OWNER:
        return Gate.ROLE
    return Gate.DEADLINE if now >= deadline else Gate.CLIENT
