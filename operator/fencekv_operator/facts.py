"""What the failover loop knows of each partition, for the reconciler to show. Values only.

The failover loop makes these; the reconciler turns them into status, conditions and Events. Nothing flows
back: no ownership decision depends on a status that was written.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from fencekv.leases import PartitionLease


class Reason(enum.StrEnum):
    """Why an owner changed."""

    CREATED = "Created"  # first grant
    RELEASED = "Released"  # the owner closed its epoch: a planned move
    SESSION_RELEASED = "SessionReleased"  # proof (a)
    TERMINATED = "ContainerTerminated"  # proof (b)
    SILENT = "Silent"  # proof (c)
    RECORD_LOST = "RecordLost"  # the partition Lease was lost or fell back
    LOSS_ACCEPTED = "LossAccepted"  # by a person


class Trouble(enum.StrEnum):
    """Why a partition is not as it should be; each maps to a condition."""

    NONE = ""
    WAITING = "Waiting"  # the owner's session fell silent: waiting for proof or D
    DEGRADED = "Degraded"  # no member of the in-sync set is reachable
    BLOCKED = "Blocked"  # the owner cannot reach minInSync standbys
    SUSPECT = "RecordSuspect"  # not every replica has reported
    HELD = "Held"  # a person holds its failover


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """An owner change that was carried out; becomes an Event and `status.lastFailover`."""

    partition: str
    partition_uid: str
    reason: Reason
    from_pod: str  # empty: nobody owned it
    to_pod: str
    from_epoch: int
    to_epoch: int
    seconds: float  # from the first sign to the grant, on the operator's own clock


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaFacts:
    """A replica as its shard last reported it."""

    pod: str
    replica_id: str
    role: str
    serving: bool
    known_epoch: int
    last_epoch: int
    last_seq: int
    last_txid: int
    commit_seq: int
    set_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionFacts:
    """A partition as the failover loop sees it."""

    name: str
    uid: str
    lease: PartitionLease | None  # None: there is none.
    owner_alive: bool
    replicas: tuple[ReplicaFacts, ...]  # the last reports, fresh or not
    trouble: Trouble
    detail: str  # a sentence for people; names the pods that are missing
    is_new: bool = False  # the loop is about to make its record, with its first grant
    planned: bool = False  # the epoch was granted because the earlier owner let go
