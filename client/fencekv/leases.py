"""The two sorts of Lease: what operator, shards and tools read and write there.

Invariants:
  * Parsing never guesses: a Lease that does not hold what it must raises `MalformedLease`.
  * The functions that build a changed Lease return a new object and keep its `resourceVersion`, so that every
    write of it is a compare-and-swap on exactly what was read.
"""

from __future__ import annotations

import copy
import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from fencekv.codec import canonical_json

GROUP: Final = "fencekv.io"
LABEL_NAMESPACE: Final = f"{GROUP}/namespace"
LABEL_TABLE: Final = f"{GROUP}/table"
LABEL_KIND: Final = f"{GROUP}/kind"
KIND_SESSION: Final = "session"
KIND_PARTITION: Final = "partition"
KIND_SHARD: Final = "shard"

RENEWAL: Final = f"{GROUP}/renewal"
HTTP: Final = f"{GROUP}/http"
PEER: Final = f"{GROUP}/peer"
RELEASED: Final = f"{GROUP}/released"
FENCED: Final = f"{GROUP}/fenced"
TAKEN_FROM: Final = f"{GROUP}/taken-from"
PARTITION_UID: Final = f"{GROUP}/partition-uid"
IN_SYNC: Final = f"{GROUP}/in-sync"
SET_VERSION: Final = f"{GROUP}/set-version"
OWNER_HTTP: Final = f"{GROUP}/owner-http"
OWNER_PEER: Final = f"{GROUP}/owner-peer"
RELEASE_TARGET: Final = f"{GROUP}/release-target"
ALONE_SINCE: Final = f"{GROUP}/alone-since"
RELEASE_ASKED: Final = f"{GROUP}/release-asked"  # by the operator: the owner, out of its reach, is to let go
ACCEPT_LOSS: Final = f"{GROUP}/accept-loss"  # on a KVPartition, by a person
HOLD_FAILOVER: Final = f"{GROUP}/hold-failover"  # on a KVPartition, by a person: why it is held
ACCEPTED_LOSS: Final = f"{GROUP}/accepted-loss"  # on its Lease, by the grant that rests on it

Object = dict[str, Any]


class MalformedLease(ValueError):
    """A Lease that neither operator nor shard can have written."""


def session_lease_name(pod: str) -> str:
    """Name of a pod's session Lease."""
    return f"session-{pod}"


def partition_lease_name(partition: str) -> str:
    """Name of a partition's Lease; `partition` is the KVPartition's name."""
    return f"partition-{partition}"


def pod_of(member: str) -> str:
    """The pod of a member of an in-sync set, `<pod>/<replica id>`."""
    return member.partition("/")[0]


def micro_time(unix_seconds: float) -> str:
    """A MicroTime: always six fractional digits, as the API server demands."""
    moment = datetime.datetime.fromtimestamp(unix_seconds, datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass(frozen=True, slots=True, order=True)
class Session:
    """One incarnation of a shard process. Never reused."""

    pod: str
    pod_uid: str
    nonce: str

    def __str__(self) -> str:
        return f"{self.pod}/{self.pod_uid}/{self.nonce}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `<pod>/<pod UID>/<nonce>`."""
        parts = text.split("/")
        if len(parts) != 3 or not all(parts):
            raise MalformedLease(f"not a session: {text[:200]!r}")
        return cls(*parts)


@dataclass(frozen=True, slots=True)
class LastWord:
    """What stood on a session Lease when a successor took it over: the last that `session` ever wrote there.

    True for good: the takeover was a CAS on that very version, so each later renewal of `session` fails.
    """

    session: Session
    renewal: int
    resource_version: str

    def __str__(self) -> str:
        return f"{self.session} {self.renewal} {self.resource_version}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Reads `<session> <renewal> <resourceVersion>`; None: nothing that we know how to read is said.

        It makes the operator faster and is believed by nobody else, so that a later form of it breaks nothing.
        """
        parts = text.split(" ")
        try:
            session, renewal, version = parts
            return cls(Session.parse(session), _number(renewal, TAKEN_FROM), version) if version else None
        except ValueError:  # also a MalformedLease
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLease:
    """What a session Lease says."""

    name: str
    uid: str
    resource_version: str
    session: Session
    valid_seconds: int
    renewal: int
    http: str
    peer: str
    released: str  # a session, or empty
    fenced: str  # a session, or empty
    taken_from: LastWord | None  # None: it was never taken over, or by a session that did not say what it replaced

    def over(self, session: Session) -> bool:
        """Whether the Lease itself says that `session` is over."""
        return str(session) in (self.released, self.fenced)

    @classmethod
    def parse(cls, lease: Mapping[str, Any]) -> Self:
        """Reads a Lease object as the API server gives it."""
        spec, notes = lease.get("spec") or {}, lease["metadata"].get("annotations") or {}
        return cls(
            name=lease["metadata"]["name"],
            uid=lease["metadata"]["uid"],
            resource_version=lease["metadata"]["resourceVersion"],
            session=Session.parse(spec.get("holderIdentity") or ""),
            valid_seconds=_number(spec.get("leaseDurationSeconds"), "leaseDurationSeconds"),
            renewal=_number(notes.get(RENEWAL), RENEWAL),
            http=notes.get(HTTP, ""),
            peer=notes.get(PEER, ""),
            released=notes.get(RELEASED, ""),
            fenced=notes.get(FENCED, ""),
            taken_from=LastWord.parse(notes.get(TAKEN_FROM, "")),
        )


def new_session_lease(
    *,
    session: Session,
    kvns: str,
    namespace: str,
    valid_seconds: int,
    renewal: int,
    http: str,
    peer: str,
    unix_seconds: float,
) -> Object:
    """The Lease that a session creates for its pod."""
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": session_lease_name(session.pod),
            "namespace": namespace,
            "labels": {LABEL_NAMESPACE: kvns, LABEL_KIND: KIND_SESSION},
            "annotations": {RENEWAL: str(renewal), HTTP: http, PEER: peer},
        },
        "spec": {
            "holderIdentity": str(session),
            "leaseDurationSeconds": valid_seconds,
            "leaseTransitions": 0,
            "acquireTime": micro_time(unix_seconds),
            "renewTime": micro_time(unix_seconds),
        },
    }


def renewed(lease: Mapping[str, Any], *, renewal: int, valid_seconds: int, unix_seconds: float) -> Object:
    """The Lease with its next renewal."""
    changed = _annotated(lease, {RENEWAL: str(renewal)})
    changed["spec"].update(leaseDurationSeconds=valid_seconds, renewTime=micro_time(unix_seconds))
    return changed


def taken_over(
    lease: Mapping[str, Any],
    *,
    session: Session,
    renewal: int,
    valid_seconds: int,
    http: str,
    peer: str,
    unix_seconds: float,
    is_last_word: bool = True,
) -> Object:
    """The Lease, taken over from an earlier session; what it says of that one's end stays.

    `is_last_word`: whether what stands there is the last that the earlier one wrote, as far as its pod remembers;
    it is then named. False where the Lease is known to be an earlier copy.
    """
    changed = _annotated(lease, {RENEWAL: str(renewal), HTTP: http, PEER: peer})
    notes = changed["metadata"]["annotations"]
    notes.pop(TAKEN_FROM, None)
    if is_last_word:
        seen = SessionLease.parse(lease)
        notes[TAKEN_FROM] = str(LastWord(seen.session, seen.renewal, seen.resource_version))
    changed["spec"].update(
        holderIdentity=str(session),
        leaseDurationSeconds=valid_seconds,
        leaseTransitions=int(changed["spec"].get("leaseTransitions") or 0) + 1,
        acquireTime=micro_time(unix_seconds),
        renewTime=micro_time(unix_seconds),
    )
    return changed


def released_session(lease: Mapping[str, Any], session: Session) -> Object:
    """The session Lease, saying that `session` released it."""
    return _annotated(lease, {RELEASED: str(session)})


def fenced_session(lease: Mapping[str, Any], session: Session) -> Object:
    """The session Lease, saying that the operator fenced `session`."""
    return _annotated(lease, {FENCED: str(session)})


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionLease:
    """What a partition Lease says: the ownership record."""

    name: str
    uid: str
    resource_version: str
    partition_uid: str
    session: Session | None  # None: never granted.
    epoch: int
    in_sync: tuple[str, ...]
    set_version: int
    owner_http: str
    owner_peer: str
    released: str  # "<epoch>.<seq>" or empty
    release_target: str  # a pod, or empty
    alone_since: int | None  # epoch for which the owner cannot reach minInSync standbys; None: it can.
    accepted_loss: int | None  # epoch whose loss a person accepted for this grant; None: nothing was lost.
    release_asked: str = ""  # "<epoch>/<pod>": the operator asks the owner of that epoch to release to that pod

    @property
    def asked_target(self) -> str:
        """The pod that the owner is asked to release to, because it is alone; empty: it is not asked."""
        epoch, _, target = self.release_asked.partition("/")
        return target if epoch == str(self.epoch) == str(self.alone_since) else ""

    @property
    def is_released(self) -> bool:
        """Whether the owner of the epoch that stands here closed it."""
        return self.session is not None and self.released.startswith(f"{self.epoch}.")

    @classmethod
    def parse(cls, lease: Mapping[str, Any]) -> Self:
        """Reads a Lease object as the API server gives it."""
        spec, notes = lease.get("spec") or {}, lease["metadata"].get("annotations") or {}
        holder = spec.get("holderIdentity")
        try:
            members = json.loads(notes.get(IN_SYNC, "[]"))
        except ValueError as error:
            raise MalformedLease(f"{IN_SYNC}: not JSON") from error
        if not isinstance(members, list) or not all(isinstance(member, str) for member in members):
            raise MalformedLease(f"{IN_SYNC}: not a list of members")
        return cls(
            name=lease["metadata"]["name"],
            uid=lease["metadata"]["uid"],
            resource_version=lease["metadata"]["resourceVersion"],
            partition_uid=notes.get(PARTITION_UID, ""),
            session=Session.parse(holder) if holder else None,
            epoch=_number(spec.get("leaseTransitions", 0), "leaseTransitions"),
            in_sync=tuple(members),
            set_version=_number(notes.get(SET_VERSION, "0"), SET_VERSION),
            owner_http=notes.get(OWNER_HTTP, ""),
            owner_peer=notes.get(OWNER_PEER, ""),
            released=notes.get(RELEASED, ""),
            release_target=notes.get(RELEASE_TARGET, ""),
            alone_since=_optional_number(notes, ALONE_SINCE),
            accepted_loss=_optional_number(notes, ACCEPTED_LOSS),
            release_asked=notes.get(RELEASE_ASKED, ""),
        )


def new_partition_lease(
    *, partition: str, partition_uid: str, table: str, kvns: str, namespace: str, owner: Object | None = None
) -> Object:
    """The Lease of a partition that was never granted; `owner` is an ownerReference."""
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": partition_lease_name(partition),
            "namespace": namespace,
            "labels": {LABEL_NAMESPACE: kvns, LABEL_KIND: KIND_PARTITION, LABEL_TABLE: table},
            "annotations": {PARTITION_UID: partition_uid, IN_SYNC: "[]", SET_VERSION: "0"},
            **({"ownerReferences": [owner]} if owner else {}),
        },
        "spec": {"leaseTransitions": 0},
    }


def granted(
    lease: Mapping[str, Any],
    *,
    session: Session,
    epoch: int,
    in_sync: tuple[str, ...],
    set_version: int,
    http: str,
    peer: str,
    unix_seconds: float,
    accepted_loss: int | None = None,
) -> Object:
    """The partition Lease, granted to `session` with `epoch`.

    `accepted_loss`: the epoch whose loss a person accepted for it; the new owner journals it.
    """
    assert epoch > int((lease.get("spec") or {}).get("leaseTransitions") or 0), (epoch, lease)
    changed = with_in_sync(lease, in_sync=in_sync, set_version=set_version)
    notes = changed["metadata"]["annotations"]
    for gone in (RELEASED, RELEASE_TARGET, ALONE_SINCE, ACCEPTED_LOSS, RELEASE_ASKED):
        notes.pop(gone, None)
    if accepted_loss is not None:
        notes[ACCEPTED_LOSS] = str(accepted_loss)
    notes.update({OWNER_HTTP: http, OWNER_PEER: peer})
    changed["spec"].update(
        holderIdentity=str(session), leaseTransitions=epoch, acquireTime=micro_time(unix_seconds)
    )
    return changed


def with_in_sync(lease: Mapping[str, Any], *, in_sync: tuple[str, ...], set_version: int) -> Object:
    """The partition Lease with another in-sync set."""
    return _annotated(lease, {IN_SYNC: canonical_json(sorted(in_sync)), SET_VERSION: str(set_version)})


def released_partition(lease: Mapping[str, Any], *, epoch: int, seq: int, target: str) -> Object:
    """The partition Lease after its owner closed `epoch` at `seq`; `target` may be empty."""
    notes = {RELEASED: f"{epoch}.{seq}"}
    return _annotated(lease, {**notes, RELEASE_TARGET: target} if target else notes)


def with_release_asked(lease: Mapping[str, Any], *, epoch: int, target: str) -> Object:
    """The partition Lease with the operator's wish that the owner of `epoch` release it to a pod."""
    return _annotated(lease, {RELEASE_ASKED: f"{epoch}/{target}"})


def with_alone_since(lease: Mapping[str, Any], epoch: int | None) -> Object:
    """The partition Lease with or without its owner's word that it cannot reach its standbys."""
    changed = _annotated(lease, {})
    if epoch is None:
        changed["metadata"]["annotations"].pop(ALONE_SINCE, None)
    else:
        changed["metadata"]["annotations"][ALONE_SINCE] = str(epoch)
    return changed


def _annotated(lease: Mapping[str, Any], notes: Mapping[str, str]) -> Object:
    changed = copy.deepcopy(dict(lease))
    changed["metadata"].setdefault("annotations", {}).update(notes)
    changed.setdefault("spec", {})
    return changed


def _optional_number(notes: Mapping[str, str], field: str) -> int | None:
    return _number(notes[field], field) if field in notes else None


def _number(value: Any, field: str) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError) as error:
        raise MalformedLease(f"{field}: not a number: {value!r}") from error
    if number < 0:
        raise MalformedLease(f"{field}: negative: {number}")
    return number
