"""What a shard reports of itself and its replicas. Values, and the strict reading of them.

Invariants:
  * A report that is not of the documented shape is no report: `MalformedReport`, and nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from fencekv.leases import MalformedLease, Session

T = TypeVar("T")

OWNER: Final = "owner"
STANDBY: Final = "standby"
GRANTED: Final = "granted"
CLOSED: Final = "closed"  # it owned, and closed its epoch
ROLES: Final = frozenset({OWNER, STANDBY, GRANTED, CLOSED})
OWNING: Final = frozenset({OWNER, GRANTED})  # it owns, or is about to
REPLICAS_MAX: Final = 100_000
MEMBERS_MAX: Final = 64


class MalformedReport(ValueError):
    """What came is not a report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One replica, as the shard that holds it says. Sequence numbers are -1 where there is no entry yet."""

    uid: str
    partition: str
    replica: str
    promised: int
    epoch: int  # the highest that it knows of
    last_epoch: int
    last_seq: int
    last_txid: int
    applied_seq: int
    commit_seq: int
    set_version: int
    members: tuple[str, ...]
    role: str
    serving: bool
    closed_epoch: int
    suspect: bool
    damaged: bool = False  # its base is not what it wrote; a shard of an earlier version does not say

    @property
    def empty(self) -> bool:
        """Whether it holds nothing and has promised nothing."""
        return self.epoch == 0 and self.last_seq < 0

    @classmethod
    def parse(cls, document: Any) -> Replica:
        """Reads one element of `replicas`."""
        entry = _typed(document, dict, "replica")
        members = _typed(entry.get("members"), list, "members")
        if len(members) > MEMBERS_MAX or not all(isinstance(member, str) for member in members):
            raise MalformedReport("members: not a short list of texts")
        role = _typed(entry.get("role"), str, "role")
        if role not in ROLES:
            raise MalformedReport(f"role: {role[:40]!r}")
        return cls(
            uid=_typed(entry.get("uid"), str, "uid"),
            partition=_typed(entry.get("partition"), str, "partition"),
            replica=_typed(entry.get("replica"), str, "replica"),
            promised=_number(entry, "promised", 0),
            epoch=_number(entry, "epoch", 0),
            last_epoch=_number(entry, "lastEpoch", 0),
            last_seq=_number(entry, "lastSeq", -1),
            last_txid=_number(entry, "lastTxid", -1),
            applied_seq=_number(entry, "appliedSeq", -1),
            commit_seq=_number(entry, "commitSeq", -1),
            set_version=_number(entry, "setVersion", 0),
            members=tuple(members),
            role=role,
            serving=_typed(entry.get("serving"), bool, "serving"),
            closed_epoch=_number(entry, "closedEpoch", 0),
            suspect=_typed(entry.get("suspect"), bool, "suspect"),
            damaged=entry.get("base") == "damaged",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one session says of its pod."""

    session: Session
    pod: str
    ready: bool
    renewal: int
    replicas: Mapping[str, Replica]  # by partition UID

    @classmethod
    def parse(cls, document: Any) -> Report:
        """Reads the answer of `GET /peer/v1/report`."""
        report = _typed(document, dict, "report")
        entries = _typed(report.get("replicas"), list, "replicas")
        if len(entries) > REPLICAS_MAX:
            raise MalformedReport(f"replicas: more than {REPLICAS_MAX}")
        replicas = [Replica.parse(entry) for entry in entries]
        by_uid = {replica.uid: replica for replica in replicas}
        if len(by_uid) != len(replicas):
            raise MalformedReport("replicas: a partition stands there twice")
        try:
            session = Session.parse(_typed(report.get("session"), str, "session"))
        except MalformedLease as error:
            raise MalformedReport(str(error)) from error
        pod = _typed(report.get("pod"), str, "pod")
        if pod != session.pod:
            raise MalformedReport(f"pod: {pod[:80]!r} is not the session's")
        return cls(
            session=session,
            pod=pod,
            ready=_typed(report.get("ready"), bool, "ready"),
            renewal=_number(report, "renewal", 0),
            replicas=by_uid,
        )


def _typed(value: Any, kind: type[T], field: str) -> T:
    if not isinstance(value, kind):
        raise MalformedReport(f"{field}: not a {kind.__name__}")
    return value


def _number(entry: Mapping[str, Any], field: str, least: int) -> int:
    value = entry.get(field)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise MalformedReport(f"{field}: not a number of at least {least}")
    return value
