"""Why a partition does not serve, or what it lacks: each state of the protocol in words. Pure.

The first cause is the one to look at. What blocks comes before what is only worth knowing; a cause in the
partition itself comes before those of the pods that it waits for.

Invariants:
  * Ownership is read from the Leases; a status that the operator wrote fills in what only it knows.
  * A state that nobody foresaw is shown with the operator's own words, never as health.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fencekv import leases
from fencekv.cli.observed import REPLICATED, Cause, Object, Observed, State, condition, holds, listed, since
from fencekv.cli.why_pods import explain_pod

PROOF: Final = "proof that the owner's session is over"
GRANT: Final = "grant"
RECORD: Final = "ownership record"
SET: Final = "in-sync set"
DEADLINE: Final = "gate 1: the session's deadline"
PLACEMENT: Final = "reconciling"


def explain(seen: Observed) -> list[Cause]:
    """All causes, the first one to look at first; never empty."""
    causes = [*_of_partition(seen)]
    blocked = any(cause.blocks for cause in causes)
    causes += _around(seen, blocked=blocked)
    if not any(cause.blocks for cause in causes):
        causes.insert(0, _serving(seen))
    return sorted(causes, key=lambda cause: not cause.blocks) if blocked else causes


def is_blocked(causes: list[Cause]) -> bool:
    """Whether the partition does not do what its table promises."""
    return any(cause.blocks for cause in causes)


def _serving(seen: Observed) -> Cause:
    ready = condition(seen.partition, "Ready")
    record = _record(seen)
    what = (
        f"{record.session.pod} serves it with epoch {record.epoch}"
        if record and record.session
        else "it is served"
    )
    last = (seen.partition.get("status") or {}).get("lastFailover")
    if last:
        what += f"; its owner last changed at {last.get('when')} ({last.get('reason')}, {last.get('seconds')} s)"
    return Cause(
        state=State.SERVING,
        step="",
        what=what,
        do="",
        blocks=False,
        since=since(ready) if holds(seen.partition, "Ready") else "",
    )


def _record(seen: Observed) -> leases.PartitionLease | None:
    try:
        return leases.PartitionLease.parse(seen.record) if seen.record is not None else None
    except (leases.MalformedLease, ValueError):
        return None


def _of_partition(seen: Observed) -> Iterator[Cause]:
    deleted = seen.partition["metadata"].get("deletionTimestamp")
    if deleted:
        what = "it is being deleted: its table shrank or is deleted"
        yield Cause(state=State.DELETING, step=PLACEMENT, what=what, do="", blocks=True, since=str(deleted))
        return
    record = _record(seen)
    main = _of_record(seen, record)
    if main is None and record is not None:
        main = _of_owner(seen, record) or _of_copies(seen, record) or _said(seen)
    if main is not None:
        yield main
        pods = _waited_for(seen, record, main)
        yield from (explain_pod(seen, pod, blocks=main.blocks) for pod in pods)
    yield from _notes(seen, record, known=main)


# -- the record


def _of_record(seen: Observed, record: leases.PartitionLease | None) -> Cause | None:
    """What is wrong with the ownership record itself; None: it names an owner that is to be believed."""
    status = seen.partition.get("status") or {}
    known, ready = int(status.get("epoch") or 0), condition(seen.partition, "Ready")
    if seen.record is not None and record is None:
        what = (
            f"Lease {leases.partition_lease_name(seen.name)} is not one of ours: nobody is granted anything on it"
        )
        do = "find out who wrote it; deleted, it is made anew from the replicas' reports"
        return _cause(State.RECORD_MALFORMED, RECORD, what, do, ready)
    if record is not None and record.partition_uid != seen.uid:
        what = "its Lease belongs to an earlier partition of this name"
        return _cause(State.OTHER_PARTITION, RECORD, what, "wait: the Lease is deleted with that one", ready)
    if holds(seen.partition, "RecordSuspect"):
        return _suspect(seen)
    if record is None:
        if known == 0:
            return _cause(
                State.NOT_GRANTED,
                GRANT,
                "it was never granted: its Lease is not there yet",
                "wait a moment",
                ready,
            )
        what = f"its Lease is gone; epoch {known} is the last that is known"
        do = "nothing: the operator makes it anew once every replica has reported"
        return _cause(State.RECORD_GONE, RECORD, what, do, ready)
    if record.session is None:
        missing = [pod for pod in seen.replicas if pod not in seen.reports and seen.session(pod) is None]
        what = "it was never granted: a first grant waits until every pod of spec.replicas has reported"
        what += f"; not there yet: {listed(missing)}" if missing else ""
        return _cause(State.NOT_GRANTED, GRANT, what, "see the pods below", ready)
    return None


def _suspect(seen: Observed) -> Cause:
    told = condition(seen.partition, "RecordSuspect")
    words = str(told.get("message") or "the ownership record was lost or fell back")
    if "may not be over" in words or "may still take it up" in words or "older epoch" in words:
        do = "wait: that session is heard for D, and fenced if it stays silent; deleting its pod makes it faster"
        return _cause(State.EARLIER_SESSION, PROOF, words, do, told)
    do = (
        "bring the missing pods back, so that each replica can say what it knows; only if one is lost for good: "
        f"`kubectl fencekv promote {seen.name} --accept-loss EPOCH` with the epoch that is named here"
    )
    return _cause(State.RECORD_SUSPECT, RECORD, words, do, told)


# -- the owner


def _of_owner(seen: Observed, record: leases.PartitionLease) -> Cause | None:
    """Why its owner does not serve; None: it does, as far as can be seen."""
    assert record.session is not None, record
    ready, pod = condition(seen.partition, "Ready"), record.session.pod
    if condition(seen.partition, "Blocked").get("reason") == "Held" and holds(seen.partition, "Blocked"):
        return _held(seen)
    if condition(seen.partition, "Degraded").get("reason") == "NoCandidate" and holds(seen.partition, "Degraded"):
        return _no_candidate(seen)
    if record.is_released:
        to = f" to {record.release_target}" if record.release_target else ""
        what = f"{pod} closed epoch {record.epoch} and gave it away{to}: the grant comes next"
        return _cause(State.MOVING, GRANT, what, "wait a moment; if it stays so, look at the operator", ready)
    session = seen.session(pod)
    if session is None or session.session != record.session:
        return _replaced(seen, record, session)
    if session.over(record.session):
        word = "fenced" if session.fenced == str(record.session) else "released"
        what = f"the session of {pod} is over ({word}); another replica is granted next"
        return _cause(State.OWNER_OVER, GRANT, what, "wait a moment; if it stays so, look at the operator", ready)
    if seen.is_still(leases.session_lease_name(pod)):
        return _silent(seen, pod)
    if record.alone_since == record.epoch:
        return _alone(seen, record)
    replica = seen.replica(pod)
    starting = ready.get("reason") == "OwnerStarting" if replica is None else replica.get("role") == "granted"
    if starting and not holds(seen.partition, "Ready"):
        what = f"{pod} was granted epoch {record.epoch} and serves once all its journal is committed under it"
        do = "wait; if it stays so, a member of the in-sync set does not confirm: see the pods below"
        return _cause(State.OWNER_STARTING, "commit of the ownership entry", what, do, ready)
    return None


def _held(seen: Observed) -> Cause:
    told = condition(seen.partition, "Blocked")
    why = seen.annotation(leases.HOLD_FAILOVER)
    what = str(told.get("message") or "its failover is held")
    if why and why not in what:
        what += f" ({why})"
    do = f"`kubectl annotate kvp {seen.name} {leases.HOLD_FAILOVER}-` lets it go on"
    return _cause(State.HELD, GRANT, what, do, told)


def _no_candidate(seen: Observed) -> Cause:
    told = condition(seen.partition, "Degraded")
    do = (
        "bring one of the missing pods back with its volume; nothing is lost then. Only if all are lost for good: "
        f"`kubectl fencekv promote {seen.name} --accept-loss EPOCH` with the epoch that is named here"
    )
    return _cause(State.NO_CANDIDATE, GRANT, str(told.get("message")), do, told)


def _replaced(seen: Observed, record: leases.PartitionLease, session: leases.SessionLease | None) -> Cause:
    assert record.session is not None, record
    ready, pod = condition(seen.partition, "Ready"), record.session.pod
    if session is None:
        what = f"the session Lease of {pod}, which owns it, is gone or cannot be read"
    else:
        what = f"a new session of {pod} has begun, and the end of the one that owns it is not proven"
    said = str(ready.get("message") or "")
    do = "wait: the old session is over when its container's end is reported, or when D was heard"
    return _cause(State.OWNER_REPLACED, PROOF, f"{what}{_as_said(said)}", do, ready)


def _silent(seen: Observed, pod: str) -> Cause:
    ready = condition(seen.partition, "Ready")
    still = [
        name for name in seen.sessions if seen.is_still(leases.session_lease_name(name)) and _is_live(seen, name)
    ]
    live = [name for name in seen.sessions if _is_live(seen, name)]
    said = _as_said(str(ready.get("message") or "")) if not holds(seen.partition, "Ready") else ""
    looked = f"in the {seen.looked_seconds:.1f} s that were looked at"
    if len(still) >= 2 and 2 * len(still) > len(live):
        what = f"{len(still)} of {len(live)} sessions did not renew {looked}, {pod} among them{said}"
        do = (
            "so many at once point at the network or the API server, so look there first: a further D is waited "
            "before any is fenced"
        )
        return _cause(State.FELL_TOGETHER, PROOF, what, do, ready)
    what = f"{pod} did not renew its session {looked}: past its deadline it serves nothing{said}"
    do = (
        "wait: it is fenced once the operator has heard D of silence, and another replica is granted; at once, if "
        f"the kubelet reports its container's end. Where the node answers, `kubectl delete pod {pod}` is faster"
    )
    return _cause(State.OWNER_SILENT, DEADLINE, what, do, ready)


def _is_live(seen: Observed, pod: str) -> bool:
    session = seen.session(pod)
    return session is not None and not session.over(session.session)


def _alone(seen: Observed, record: leases.PartitionLease) -> Cause:
    assert record.session is not None, record
    told, pod = condition(seen.partition, "Blocked"), record.session.pod
    words = str(told.get("message") or f"{pod} cannot reach enough standbys")
    if record.release_asked or "asked" in words or "release" in words:
        what = f"{pod} cannot reach its standbys, which the operator can: {words}"
        return _cause(State.ASKED_TO_RELEASE, SET, what, f"look at the network of {pod}", told)
    do = f"bring the missing pods back, or look at the network between them and {pod}"
    return _cause(State.OWNER_ALONE, SET, words, do, told)


# -- the copies


def _of_copies(seen: Observed, record: leases.PartitionLease) -> Cause | None:
    assert record.session is not None, record
    spec, ready, owner = seen.partition["spec"], condition(seen.partition, "Ready"), record.session.pod
    pods = {leases.pod_of(member) for member in record.in_sync}
    standbys, wanted = len(pods - {owner}), int(spec.get("minInSync") or 0)
    missing = [pod for pod in seen.replicas if pod not in pods]
    if spec.get("durability") == REPLICATED and standbys < wanted:
        what = f"{standbys} standbys are in sync, {wanted} are needed: writes are refused"
        what += f"; not in sync: {listed(missing)}"
        return _cause(State.TOO_FEW_STANDBYS, SET, what, "see the pods below", ready)
    if missing:
        told = condition(seen.partition, "Degraded")
        what = f"it is served, with fewer copies than asked for; not in sync: {listed(missing)}"
        cause = _cause(State.COPIES_MISSING, SET, what, "see the pods below", told)
        return None if not _is_ready(seen) else _noted(cause)
    return None


def _said(seen: Observed) -> Cause | None:
    """Nothing of the above, and the operator says that it is not ready."""
    ready = condition(seen.partition, "Ready")
    if _is_ready(seen):
        return None
    what = ": ".join(filter(None, (str(ready.get("reason") or "not Ready"), str(ready.get("message") or ""))))
    return _cause(State.OTHER, "", what, "`kubectl describe kvp` shows its Events", ready)


def _is_ready(seen: Observed) -> bool:
    return holds(seen.partition, "Ready")


def _waited_for(seen: Observed, record: leases.PartitionLease | None, main: Cause) -> list[str]:
    """The pods whose state explains the main cause."""
    if main.state in {State.HELD, State.MOVING, State.OTHER_PARTITION, State.RECORD_MALFORMED}:
        return []
    members = sorted({leases.pod_of(member) for member in record.in_sync}) if record else []
    owner = record.session.pod if record and record.session else ""
    if main.state in {State.OWNER_SILENT, State.FELL_TOGETHER, State.OWNER_REPLACED, State.OWNER_OVER}:
        return [owner]
    if main.state is State.NO_CANDIDATE:
        return members
    if main.state in {State.OWNER_ALONE, State.ASKED_TO_RELEASE, State.OWNER_STARTING}:
        return [pod for pod in members if pod != owner]
    if main.state in {State.TOO_FEW_STANDBYS, State.COPIES_MISSING}:
        return [pod for pod in seen.replicas if pod not in members]
    told = f"{main.what} "
    return [pod for pod in seen.replicas if f"{pod} " in told or f"{pod}," in told or f"{pod};" in told]


# -- what is worth knowing


def _notes(seen: Observed, record: leases.PartitionLease | None, *, known: Cause | None) -> Iterator[Cause]:
    if holds(seen.partition, "Unprotected"):
        what = "a lost node loses every write: there is no standby"
        do = "give the table replicas: 1 or more"
        told = condition(seen.partition, "Unprotected")
        yield _noted(_cause(State.UNPROTECTED, "durability", what, do, told))
    held = seen.annotation(leases.HOLD_FAILOVER)
    if held is not None and (known is None or known.state is not State.HELD):
        what = f"its next failover will be held by the annotation {leases.HOLD_FAILOVER}" + (
            f": {held}" if held else ""
        )
        do = f"`kubectl annotate kvp {seen.name} {leases.HOLD_FAILOVER}-` when it is not meant any more"
        yield _noted(_cause(State.WILL_BE_HELD, GRANT, what, do, {}))
    accepted, epoch = seen.annotation(leases.ACCEPT_LOSS), record.epoch if record else 0
    if accepted is not None and accepted != str(epoch) and not (accepted.isdigit() and int(accepted) > epoch):
        what = f"a loss was accepted for epoch {accepted}; that is spent, the epoch is {epoch}"
        do = f"`kubectl annotate kvp {seen.name} {leases.ACCEPT_LOSS}-`"
        yield _noted(_cause(State.ACCEPTANCE_SPENT, RECORD, what, do, {}))
    yield from _disk(seen, record)
    yield from _bases(seen, record)
    for operation in seen.operations:
        status, spec = operation.get("status") or {}, operation.get("spec") or {}
        about = status.get("partition") or spec.get("partition")
        if about == seen.name and status.get("phase") not in {"Succeeded", "Failed"}:
            name, step = operation["metadata"]["name"], status.get("step") or "not begun"
            what = f"KVOperation {name} ({spec.get('type')}) is under way: {step}"
            yield _noted(_cause(State.OPERATION, "operation", what, "", {}))


def _disk(seen: Observed, record: leases.PartitionLease | None) -> Iterator[Cause]:
    owner = record.session.pod if record and record.session else ""
    report = seen.reports.get(owner) or {}
    free, reserve = report.get("diskFreeBytes"), report.get("diskReserveBytes")
    if free is not None and reserve is not None and free < reserve:
        have, kept = free >> 20, reserve >> 20
        what = f"the disk of {owner} has {have} MiB left, less than its reserve of {kept}: it takes deletes alone"
        do = "delete keys, shorten the history window, or let spec.shards.storage.size grow"
        yield Cause(state=State.DISK_RESERVE, step="disk", what=what, do=do, blocks=True, pod=owner)


def _bases(seen: Observed, record: leases.PartitionLease | None) -> Iterator[Cause]:
    """What the replicas say of what lies below their journals."""
    owner = record.session.pod if record and record.session else ""
    for pod in sorted(seen.reports):
        base = (seen.replica(pod) or {}).get("base")
        if base == "damaged":
            what = f"the base of {pod} is not what was written there"
            blocks, do = pod == owner, "nothing: a standby is set aside and seeded anew"
            if blocks:
                what += ", and it owns the partition: what it reads may be wrong"
                do = "bring a standby of the in-sync set back: it gets the partition, and this one is seeded anew"
            yield Cause(state=State.BASE_DAMAGED, step="base", what=what, do=do, blocks=blocks, pod=pod)
        elif base == "differs":
            what = f"the base of {pod} is another one than that of {owner or 'the owner'}, and both are as written"
            do = (
                f"compare what both answer; if {pod} is right, `kubectl fencekv promote {seen.name} --to {pod}`; "
                "then name the wrong one's pod in the table's placement.excludePods for a while: it is seeded anew"
            )
            yield Cause(state=State.BASE_DIFFERS, step="base", what=what, do=do, blocks=True, pod=pod)


# -- what is around it


def _around(seen: Observed, *, blocked: bool) -> Iterator[Cause]:
    yield from _operator(seen, blocked=blocked)
    table, namespace = seen.table, seen.namespace
    for kind, item in (("KVNamespace", namespace), ("KVTable", table)):
        if item is not None and (item.get("spec") or {}).get("paused"):
            what = (
                f"{kind} {item['metadata']['name']} is paused: nothing is made, changed or moved, failover goes on"
            )
            yield _noted(_cause(State.PAUSED, PLACEMENT, what, "set spec.paused to false to go on", {}))
    if table is not None and holds(table, "Stalled"):
        told = condition(table, "Stalled")
        yield _noted(
            _cause(State.TABLE_STALLED, PLACEMENT, f"its table: {_words(told)}", "change the table", told)
        )
    if (
        table is not None
        and holds(table, "Degraded")
        and condition(table, "Degraded").get("reason") != "Partitions"
    ):
        told = condition(table, "Degraded")
        do = "make room for what the placement asks, or change it"
        yield _noted(_cause(State.TABLE_DEGRADED, PLACEMENT, f"its table: {_words(told)}", do, told))
    name = seen.partition["spec"].get("namespace")
    if namespace is None:
        what = f"KVNamespace {name} does not exist: nobody runs the shards of this partition"
        yield _noted(_cause(State.NAMESPACE_MISSING, PLACEMENT, what, "make it again, under the same name", {}))
    elif holds(namespace, "Stalled"):
        told = condition(namespace, "Stalled")
        what = f"its namespace: {_words(told)}"
        yield _noted(_cause(State.NAMESPACE_STALLED, PLACEMENT, what, "change the namespace's spec", told))
    elif holds(namespace, "Reconciling"):
        told = condition(namespace, "Reconciling")
        yield _noted(_cause(State.NAMESPACE_CHANGING, PLACEMENT, f"its namespace: {_words(told)}", "", told))


def _operator(seen: Observed, *, blocked: bool) -> Iterator[Cause]:
    lease = seen.operator
    holder = ((lease or {}).get("spec") or {}).get("holderIdentity")
    if lease is not None and holder and not seen.is_still(str(lease["metadata"]["name"])):
        return
    if lease is None and not blocked:
        return  # it may lie in a namespace that we do not know, or must not read
    if lease is None:
        what = (
            "no Lease of an operator could be read: is one running, and in which namespace (--operator-namespace)?"
        )
    elif not holder:
        what = "no operator leads: nobody fences, grants or reconciles"
    else:
        what = f"{holder} leads and did not renew in the {seen.looked_seconds:.1f} s that were looked at"
    do = "`kubectl get pods -A -l app.kubernetes.io/name=fencekv-operator`, and their logs"
    yield Cause(state=State.OPERATOR_AWAY, step="operator", what=what, do=do, blocks=blocked and lease is not None)


def _words(told: Object) -> str:
    return ": ".join(filter(None, (str(told.get("reason") or ""), str(told.get("message") or ""))))


def _as_said(message: str) -> str:
    return f" (the operator: {message})" if message else ""


def _cause(state: State, step: str, what: str, do: str, told: Object) -> Cause:
    return Cause(state=state, step=step, what=what, do=do, blocks=True, since=since(told))


def _noted(cause: Cause) -> Cause:
    return Cause(
        state=cause.state,
        step=cause.step,
        what=cause.what,
        do=cause.do,
        blocks=False,
        since=cause.since,
        pod=cause.pod,
    )
