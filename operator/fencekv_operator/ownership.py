"""Who shall own a partition: decided purely, from the record, the replicas' reports and the sessions' ends.

What holds of every `Grant` that `decide` returns:
  * Its epoch is above the partition Lease's, above `known_epoch` (KVPartition status, what this operator saw) and
    above what any replica reports. Its set version is above the Lease's and every reported one.
  * It goes to a session that holds its pod's Lease now, is not over, and answered itself with a replica of
    this partition.
  * While the record is trusted, the earlier owner is over (with proof) or has released the partition; the new
    owner is a member of the in-sync set by its replica id, not by its pod's name; the set after the grant is the
    set before it less the earlier owner's replica if its session is over, and nobody else, and nobody is added.
    The first grant of all has all placed replicas in it: each has said that it is empty, so nobody lacks a thing.
  * Without a record the first grant is made only of a partition that this operator made itself, a moment ago, and
    whose pods had the sessions that answer now when that was done: whoever held these pods before was deposed
    before this operator could have granted it.
  * While the record is suspect (absent, fallen back, or a replica says so), nothing is granted until every pod of
    `spec.replicas` has answered with its replica, or a person accepted the loss by naming the known epoch. Then:
      - a session that lives and says that it owns the highest epoch is the only one that may be granted: it may be
        acknowledging this very moment, under a record that is gone;
      - otherwise no session that might still own may live: not the holder that the record names, and no earlier
        session of any of these pods (`unsettled`), whose ends no record tells any more. A report from
        a session proves that it took its pod's Lease, not that its predecessor is dead;
      - the set that counts is the highest by (epoch of the last entry, set version). The epoch is that of the last
        entry and not the promised one, because a replica may have promised an epoch of which it holds
        nothing, and then knows an older set than its peers.
  * Loss that a person accepted: only where no member of the set can be reached; the set becomes the new owner.
  * While a person holds the failover, only a first grant and the end of a move that the owner began are granted.

Reports must be older than the Lease that they are compared with: an owner writes the Lease first and the replicas
learn of it afterwards, so a report above a *later* read Lease means that the Lease fell back. A grant on a Lease
that a watch showed obeys that too: by its CAS the Lease was still the same after the reports.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fencekv.leases import ACCEPT_LOSS, HOLD_FAILOVER, PartitionLease, Session, pod_of
from fencekv_operator.facts import Reason, Trouble
from fencekv_operator.reports import OWNING, Replica

# A Lease that is absent may only just have been made, or its deletion not have reached those who act on it.
ABSENT_SECONDS_MIN: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A KVPartition, as far as ownership goes."""

    namespace: str  # Kubernetes namespace
    name: str
    uid: str
    kvns: str
    table: str
    replicas: tuple[str, ...]  # pods; the first is preferred
    epoch: int  # of its status; 0: none
    accepted_loss: int | None  # None: no loss was accepted.
    deleting: bool
    held: str | None = None  # why a person holds its failover; None: nobody does.

    @classmethod
    def parse(cls, item: Mapping[str, Any]) -> Partition:
        """Reads a KVPartition as the API server, which has checked it, gives it."""
        metadata, spec = item["metadata"], item["spec"]
        notes = metadata.get("annotations") or {}
        accepted = notes.get(ACCEPT_LOSS, "")
        return cls(
            namespace=metadata["namespace"],
            name=metadata["name"],
            uid=metadata["uid"],
            kvns=spec["namespace"],
            table=spec["table"],
            replicas=tuple(spec["replicas"]),
            epoch=int((item.get("status") or {}).get("epoch") or 0),
            accepted_loss=int(accepted) if accepted.isascii() and accepted.isdigit() else None,
            deleting=bool(metadata.get("deletionTimestamp")),
            held=notes.get(HOLD_FAILOVER),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A session that holds its pod's Lease, is not over, and has just answered."""

    session: Session
    http: str
    peer: str
    replica: Replica | None  # None: it holds no replica of this partition, or could not open it.
    doubtful: bool = False  # It has not been seen to renew for a while: it may not learn of a grant.

    @property
    def member(self) -> str:
        """As the in-sync set names it."""
        assert self.replica is not None, self.session
        return f"{self.session.pod}/{self.replica.replica}"


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """All that a decision rests on."""

    partition: Partition
    lease: PartitionLease | None  # None: a quorum read found none.
    absent_seconds: float  # for how long there has been none; 0 where there is one
    answers: Mapping[str, Answer]  # by pod
    over: Reason | None  # proof that the Lease's holder is over; None: it may live.
    doubt: str  # why the holder is doubted, for people; empty: it is heard
    known_epoch: int  # the highest epoch known otherwise: status, earlier reads, earlier reports
    unsettled: frozenset[str]  # pods of which a session that did not answer may still live
    # Sessions whose suspicion this operator answered by granting the very epoch of the Lease: until they have
    # seen that grant they go on reporting it.
    cleared: frozenset[Session] = frozenset()
    # Of a partition that this operator made a moment ago, and of which it never saw a record: the sessions that
    # held its pods when that was done.
    born: frozenset[Session] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Nothing:
    """All is well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Not now."""

    detail: str
    trouble: Trouble = Trouble.WAITING


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """The record is not to be trusted, and not enough is known to replace it."""

    missing: tuple[str, ...]
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Degraded:
    """No member of the in-sync set can be reached."""

    missing: tuple[str, ...]
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocked:
    """The owner cannot reach its standbys, and neither can the operator."""

    missing: tuple[str, ...]
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """There would be something to do, but a person holds the failover."""

    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AskRelease:
    """The owner cannot reach its standbys, but the operator can: the owner is asked to let go."""

    http: str  # empty: it does not answer here, and is asked by its Lease
    epoch: int
    target: str  # a pod


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """One compare-and-swap on the partition Lease."""

    session: Session
    http: str
    peer: str
    epoch: int
    in_sync: tuple[str, ...]
    set_version: int
    reason: Reason
    from_pod: str  # empty: nobody owned it, or nobody knows who did


Decision = Nothing | Wait | Suspect | Degraded | Blocked | Held | AskRelease | Grant


def trouble_of(decision: Decision) -> tuple[Trouble, str]:
    """What people are shown of a decision."""
    match decision:
        case Wait():
            return decision.trouble, decision.detail
        case Suspect():
            return Trouble.SUSPECT, decision.detail
        case Degraded():
            return Trouble.DEGRADED, decision.detail
        case Blocked():
            return Trouble.BLOCKED, decision.detail
        case Held():
            return Trouble.HELD, decision.detail
        case _:
            return Trouble.NONE, ""


def decide(view: View) -> Decision:
    """What is to be done about one partition."""
    decision = _decide(view)
    if view.partition.held is None or not isinstance(decision, Grant | AskRelease):
        return decision
    if isinstance(decision, Grant) and decision.reason in {Reason.CREATED, Reason.RELEASED}:
        return decision
    where = decision.target if isinstance(decision, AskRelease) else decision.session.pod
    reason = f" ({view.partition.held})" if view.partition.held else ""
    return Held(
        detail=f"its failover to {where} is held{reason}; remove the annotation {HOLD_FAILOVER} to let it go on"
    )


def _decide(view: View) -> Decision:
    lease = view.lease
    if view.partition.deleting:
        return Nothing()
    if lease is None and _is_newborn(view):
        return _first_grant(view)
    if lease is None and view.absent_seconds < ABSENT_SECONDS_MIN:
        return Wait(detail="its Lease is not there yet, or not any more")
    if lease is not None and lease.partition_uid != view.partition.uid:
        detail = f"Lease {lease.name} belongs to another partition of this name; it goes with that one"
        return Suspect(missing=(), detail=detail)
    if lease is None or is_suspect(lease, view):
        return _replace_record(view)
    if lease.session is None:
        return _first_grant(view)
    if lease.is_released or view.over is not None:
        return _succeed(view, lease)
    if lease.alone_since == lease.epoch:
        return _owner_alone(view, lease)
    return Wait(detail=view.doubt) if view.doubt else Nothing()


def _is_newborn(view: View) -> bool:
    """Whether one without a record is new: all who answer were there when it was made, and know nothing."""
    return (
        bool(view.born)
        and view.known_epoch == 0
        and all(
            answer.session in view.born and answer.replica is not None and _is_blank(answer.replica)
            for answer in _holding(view)
        )
    )


def _is_blank(replica: Replica) -> bool:
    return replica.empty and replica.set_version == 0 and not replica.suspect


def is_suspect(lease: PartitionLease, view: View) -> bool:
    """Whether what is known contradicts the Lease: it was deleted and made again, or etcd was put back."""
    if view.known_epoch > lease.epoch or (lease.session is None) != (lease.epoch == 0):
        return True
    return any(
        answer.replica is not None and contradicts(answer.replica, lease, cleared=answer.session in view.cleared)
        for answer in view.answers.values()
    )


def contradicts(replica: Replica, lease: PartitionLease, *, cleared: bool = False) -> bool:
    """Whether a report that is older than the reading of the Lease speaks against it."""
    return (
        (replica.suspect and not cleared)
        or (replica.epoch, replica.set_version) > (lease.epoch, lease.set_version)
        or (lease.epoch == 0 and not replica.empty)
    )


def _holding(view: View) -> list[Answer]:
    """The answers with a replica, in placement order, then by pod."""
    order = {pod: number for number, pod in enumerate(view.partition.replicas)}
    pods = sorted(view.answers, key=lambda pod: (order.get(pod, len(order)), pod))
    return [view.answers[pod] for pod in pods if view.answers[pod].replica is not None]


def _placed(view: View) -> list[Answer]:
    """Those of the pods where the partition is to be."""
    return [answer for answer in _holding(view) if answer.session.pod in view.partition.replicas]


def _highest_epoch(view: View) -> int:
    reported = [answer.replica.epoch for answer in _holding(view) if answer.replica]
    return max([view.known_epoch, view.lease.epoch if view.lease else 0, *reported])


def _accepted(view: View) -> bool:
    """Whether a person accepted the loss under the epoch that is known now; an older acceptance is spent."""
    return view.partition.accepted_loss == _highest_epoch(view)


def _is_able(answer: Answer) -> bool:
    """Whether it is likely to act on a grant at once."""
    return not answer.doubtful and answer.replica is not None


def _best(answers: list[Answer], *, target: str = "") -> Answer:
    """The highest (epoch of the last entry, seq).

    Ties go to one whose base is not damaged, to one that acts at once, to `target`, to placement.
    """
    assert answers

    def rank(answer: Answer) -> tuple[int, int, bool, bool, bool]:
        replica = answer.replica
        assert replica is not None, answer
        able, wished = _is_able(answer), answer.session.pod == target
        return replica.last_epoch, replica.last_seq, not replica.damaged, able, wished

    best = answers[0]
    for answer in answers[1:]:
        if rank(answer) > rank(best):
            best = answer
    return best


def _grant(view: View, to: Answer, *, in_sync: Iterable[str], reason: Reason, from_pod: str) -> Grant:
    members = tuple(sorted(set(in_sync)))
    assert to.member in members, (to.member, members)
    reported = [answer.replica.set_version for answer in _holding(view) if answer.replica]
    version = max([view.lease.set_version if view.lease else 0, *reported])
    return Grant(
        session=to.session,
        http=to.http,
        peer=to.peer,
        epoch=_highest_epoch(view) + 1,
        in_sync=members,
        set_version=version + 1,
        reason=reason,
        from_pod=from_pod,
    )


def _first_grant(view: View) -> Decision:
    holding = _placed(view)
    answered = {answer.session.pod for answer in holding}
    missing = [pod for pod in view.partition.replicas if pod not in answered]
    if missing and not (_accepted(view) and holding):
        # A record at epoch 0 may be one that was made again: only all replicas together can say that they are new.
        detail = f"waiting for the first report of {', '.join(missing)}"
        return Wait(detail=detail, trouble=Trouble.NONE)
    return _grant_new(view, holding)


def _grant_new(view: View, holding: list[Answer]) -> Grant:
    """Nothing was ever acknowledged: whoever is new holds all of it, and need not be taken in one by one."""
    members = [answer.member for answer in holding]
    return _grant(view, holding[0], in_sync=members, reason=Reason.CREATED, from_pod="")


def _succeed(view: View, lease: PartitionLease) -> Decision:
    """The earlier owner is over, or has let go."""
    holder = lease.session
    assert holder is not None, lease
    holding = _holding(view)
    candidates = [answer for answer in holding if answer.member in lease.in_sync]
    if not candidates:
        return _without_members(view, lease.in_sync, from_pod=holder.pod)
    if lease.is_released:
        reason = Reason.RELEASED
        wished = [one for one in candidates if one.session.pod == lease.release_target]
        able = [one for one in wished if _is_able(one)]
        chosen = able[0] if able else _best(candidates)
    else:
        assert view.over is not None, lease
        reason, chosen = view.over, _best(candidates, target=lease.release_target)
    kept = [
        member
        for member in lease.in_sync
        if view.over is None or member == chosen.member or not member.startswith(f"{holder.pod}/")
    ]
    return _grant(view, chosen, in_sync=kept, reason=reason, from_pod=holder.pod)


def _without_members(view: View, members: Iterable[str], *, from_pod: str) -> Decision:
    """No member of the set can be reached: only a person can decide to go on."""
    holding = [answer for answer in _holding(view) if answer.session.pod in view.partition.replicas]
    if holding and _accepted(view):
        chosen = _best(holding)
        return _grant(view, chosen, in_sync=[chosen.member], reason=Reason.LOSS_ACCEPTED, from_pod=from_pod)
    pods = sorted({pod_of(member) for member in members})
    answered = {answer.session.pod for answer in holding}
    away = [pod for pod in pods if pod not in answered]
    anew = [pod for pod in pods if pod in answered]
    parts = [f"missing: {', '.join(away)}"] if away else []
    parts += [f"back without the data: {', '.join(anew)}"] if anew else []
    detail = f"no in-sync replica is reachable ({'; '.join(parts) or 'none is known'}); " + _way_out(view)
    return Degraded(missing=tuple(away or anew), detail=detail)


def _way_out(view: View) -> str:
    return f"to accept the loss annotate the KVPartition with {ACCEPT_LOSS}={_highest_epoch(view)}"


def _owner_alone(view: View, lease: PartitionLease) -> Decision:
    assert lease.session is not None, lease
    standbys = [
        answer
        for answer in _holding(view)
        if answer.member in lease.in_sync and answer.session.pod != lease.session.pod and _is_able(answer)
    ]
    if standbys:
        http = lease.owner_http if lease.session.pod in view.answers else ""
        return AskRelease(http=http, epoch=lease.epoch, target=_best(standbys).session.pod)
    pods = sorted({pod_of(member) for member in lease.in_sync} - {lease.session.pod})
    detail = f"{lease.session.pod} cannot reach enough standbys; missing: {', '.join(pods) or 'none is in sync'}"
    return Blocked(missing=tuple(pods), detail=detail)


def _replace_record(view: View) -> Decision:
    """The record is suspect. See the module's head."""
    holding = _placed(view)
    answered = {answer.session.pod for answer in holding}
    missing = tuple(pod for pod in view.partition.replicas if pod not in answered)
    if missing and not (_accepted(view) and holding):
        detail = f"the ownership record was lost or fell back; waiting for the reports of {', '.join(missing)}; "
        return Suspect(missing=missing, detail=detail + _way_out(view))
    owners = [one for one in _holding(view) if one.replica and one.replica.role in OWNING]
    if owners:
        return _regrant_owner(view, owners)
    living = _may_still_own(view)
    if living:
        return Suspect(missing=(), detail=f"the ownership record was lost or fell back; {living}")
    members = _highest_set(view, holding)
    candidates = [answer for answer in holding if answer.member in members]
    holder = view.lease.session if view.lease else None
    from_pod = holder.pod if holder else ""
    if not candidates:
        if _highest_epoch(view) == 0 and all(one.replica and one.replica.empty for one in holding):
            return _grant_new(view, holding)
        return _without_members(view, members, from_pod=from_pod)
    chosen = _best(candidates)
    if missing:  # Accepted: what the missing ones held, and which set they knew, is not asked any more.
        return _grant(view, chosen, in_sync=[chosen.member], reason=Reason.LOSS_ACCEPTED, from_pod=from_pod)
    kept = [
        member
        for member in members
        if view.over is None or member == chosen.member or not member.startswith(f"{from_pod}/")
    ]
    return _grant(view, chosen, in_sync=kept, reason=Reason.RECORD_LOST, from_pod=from_pod)


def _regrant_owner(view: View, owners: list[Answer]) -> Decision:
    highest = max(answer.replica.epoch for answer in _holding(view) if answer.replica)
    owner = owners[0]
    assert owner.replica is not None, owner
    if len(owners) > 1 or owner.replica.epoch < highest:
        pods = ", ".join(answer.session.pod for answer in owners)
        detail = (
            f"the ownership record was lost or fell back; {pods} owns under an older epoch: waiting for its end"
        )
        return Suspect(missing=(), detail=detail)
    return _grant(
        view,
        owner,
        in_sync=[*owner.replica.members, owner.member],
        reason=Reason.RECORD_LOST,
        from_pod=owner.session.pod,
    )


def _may_still_own(view: View) -> str:
    """Who might still own under a record that is gone, for people; empty: nobody."""
    unsettled = [pod for pod in view.partition.replicas if pod in view.unsettled]
    if unsettled:
        return f"an earlier session of {', '.join(unsettled)} may not be over yet"
    lease = view.lease
    if lease is None or lease.session is None or lease.is_released or view.over is not None:
        return ""
    own = view.answers.get(lease.session.pod)
    if own is None or own.session != lease.session:
        return f"{lease.session.pod}, its holder, may not be over yet"
    # It says that it does not own. Only if it knows a higher epoch can this record not make it owner any more.
    if own.replica is not None and own.replica.epoch > lease.epoch:
        return ""
    return f"{lease.session.pod} may still take it up"


def _highest_set(view: View, holding: list[Answer]) -> tuple[str, ...]:
    sets = [
        (one.replica.last_epoch, one.replica.set_version, one.replica.members)
        for one in holding
        if one.replica is not None
    ]
    if view.lease is not None:
        sets.append((view.lease.epoch, view.lease.set_version, view.lease.in_sync))
    return max(sets, default=(0, 0, ()))[2]
