"""What `kubectl fencekv why` goes by, and what it finds. Values, and the reading of objects.

Invariants:
  * Nothing is judged by a moment that another machine wrote down: who renews is seen by looking twice.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from fencekv import leases

Object = Mapping[str, Any]

REPLICATED: Final = "replicated"


class State(enum.StrEnum):
    """What a partition, or something that it needs, can be in. Each has its text in docs/kubectl.md."""

    # of the partition
    SERVING = "Serving"
    DELETING = "Deleting"
    NOT_GRANTED = "NotGranted"
    RECORD_GONE = "RecordGone"
    RECORD_MALFORMED = "RecordMalformed"
    OTHER_PARTITION = "OtherPartition"
    RECORD_SUSPECT = "RecordSuspect"
    EARLIER_SESSION = "EarlierSession"
    MOVING = "Moving"
    OWNER_OVER = "OwnerOver"
    OWNER_REPLACED = "OwnerReplaced"
    OWNER_SILENT = "OwnerSilent"
    FELL_TOGETHER = "FellTogether"
    NO_CANDIDATE = "NoCandidate"
    HELD = "Held"
    OWNER_ALONE = "OwnerAlone"
    ASKED_TO_RELEASE = "AskedToRelease"
    OWNER_STARTING = "OwnerStarting"
    TOO_FEW_STANDBYS = "TooFewStandbys"
    COPIES_MISSING = "CopiesMissing"
    UNPROTECTED = "Unprotected"
    DISK_RESERVE = "DiskReserve"
    BASE_DAMAGED = "BaseDamaged"
    BASE_DIFFERS = "BaseDiffers"
    ACCEPTANCE_SPENT = "AcceptanceSpent"
    WILL_BE_HELD = "WillBeHeld"
    OPERATION = "Operation"
    OTHER = "Other"
    # around it
    OPERATOR_AWAY = "OperatorAway"
    PAUSED = "Paused"
    TABLE_STALLED = "TableStalled"
    TABLE_DEGRADED = "TableDegraded"
    NAMESPACE_MISSING = "NamespaceMissing"
    NAMESPACE_STALLED = "NamespaceStalled"
    NAMESPACE_CHANGING = "NamespaceChanging"
    # of a pod that is to hold a replica
    POD_MISSING = "PodMissing"
    POD_UNSCHEDULABLE = "PodUnschedulable"
    VOLUME_PENDING = "VolumePending"
    VOLUME_LOST = "VolumeLost"
    POD_TERMINATING = "PodTerminating"
    NODE_GONE = "NodeGone"
    CONTAINER_WAITING = "ContainerWaiting"
    CONTAINER_ENDED = "ContainerEnded"
    NO_SESSION = "NoSession"
    SESSION_OVER = "SessionOver"
    SESSION_SILENT = "SessionSilent"
    NOT_OPENED = "NotOpened"
    PROMISED_HIGHER = "PromisedHigher"
    NOT_ANSWERING = "NotAnswering"
    BEHIND = "Behind"
    POD_NOT_READY = "PodNotReady"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One thing that blocks a partition, or that is worth knowing of it."""

    state: State
    step: str  # the gate or step of the protocol, or the part of the cluster, that it is about
    what: str  # a sentence
    do: str  # a sentence; empty: nothing
    blocks: bool  # whether the partition does not do what its table promises, because of this
    since: str = ""  # when it was first seen, as the API server has it; empty: not known
    pod: str = ""

    def document(self) -> dict[str, object]:
        """For `-o json` and `-o yaml`."""
        return {
            "state": str(self.state),
            "step": self.step,
            "blocks": self.blocks,
            "since": self.since or None,
            "pod": self.pod or None,
            "what": self.what,
            "do": self.do or None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """Objects as they were read; where a kind could not be read, it is as if there were none."""

    partition: Object
    table: Object | None = None
    namespace: Object | None = None
    record: Object | None = None  # the partition's Lease
    sessions: Mapping[str, Object] = field(default_factory=dict)  # session Leases of the KVNamespace, by pod
    renewed: frozenset[str] = frozenset()  # names of Leases whose renewal rose between two looks
    looked_seconds: float = 0.0  # between the two looks; 0: there was one
    pods: Mapping[str, Object] = field(default_factory=dict)
    claims: Mapping[str, Object] = field(default_factory=dict)  # PersistentVolumeClaims by pod
    operator: Object | None = None  # the operator's own Lease
    operations: Sequence[Object] = ()
    reports: Mapping[str, Object] = field(default_factory=dict)  # of shards that answered, by pod

    @property
    def name(self) -> str:
        """Of the partition."""
        return str(self.partition["metadata"]["name"])

    @property
    def uid(self) -> str:
        """Of the partition."""
        return str(self.partition["metadata"].get("uid", ""))

    @property
    def replicas(self) -> tuple[str, ...]:
        """The pods that are to hold it."""
        return tuple(self.partition["spec"].get("replicas") or ())

    def annotation(self, name: str) -> str | None:
        """Of the partition."""
        value = (self.partition["metadata"].get("annotations") or {}).get(name)
        return None if value is None else str(value)

    def is_still(self, lease: str) -> bool:
        """Whether a Lease was looked at twice and was not renewed in between."""
        return self.looked_seconds > 0 and lease not in self.renewed

    def session(self, pod: str) -> leases.SessionLease | None:
        """A pod's session Lease; None: there is none that can be read."""
        raw = self.sessions.get(pod)
        try:
            return leases.SessionLease.parse(raw) if raw is not None else None
        except leases.MalformedLease:
            return None

    def replica(self, pod: str) -> Object | None:
        """What a shard reports of its replica of this partition; None: it does not answer, or has none."""
        entries = (self.reports.get(pod) or {}).get("replicas") or ()
        return next((entry for entry in entries if entry.get("uid") == self.uid), None)


def condition(item: Object | None, kind: str) -> Object:
    """A condition of an object; empty: it has none of that type."""
    conditions = ((item or {}).get("status") or {}).get("conditions") or ()
    return next((each for each in conditions if each.get("type") == kind), {})


def holds(item: Object | None, kind: str) -> bool:
    """Whether a condition is True."""
    return condition(item, kind).get("status") == "True"


def since(of: Object) -> str:
    """Since when a condition is what it is."""
    return str(of.get("lastTransitionTime") or "")


def listed(pods: Sequence[str]) -> str:
    """Names for a sentence."""
    return ", ".join(pods) if pods else "nobody"
