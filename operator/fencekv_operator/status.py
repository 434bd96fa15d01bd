"""What the custom resources say of themselves: status and conditions, made from facts.

Invariants:
  * `status.epoch` never falls, whatever the facts say.
  * `lastTransitionTime` changes with a condition's status and with nothing else.
  * Token and lag alone are no reason to write: they move with every commit, and a custom resource carries no
    heartbeat. They go along with a change of anything else, and with the slow refresh.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fencekv.leases import pod_of
from fencekv_operator.facts import PartitionFacts, Reason, ReplicaFacts, Transition, Trouble
from fencekv_operator.reports import CLOSED, OWNER
from fencekv_operator.settings import REPLICATED, STANDARD

Object = dict[str, Any]

MESSAGE_CHARACTERS_MAX: Final = 1024
NAMES_SHOWN_MAX: Final = 5
VOLATILE: Final = frozenset({"token", "lag"})
MOVING: Final = "Moving"
MOVING_SECONDS_MAX: Final = 5.0
DRAINING: Final = frozenset({OWNER, CLOSED})
PLACEMENT_UNSATISFIABLE: Final = "PlacementUnsatisfiable"
REPLICAS_BEHIND: Final = "ReplicasBehind"

PAUSED: Final = "spec.paused: nothing is made, changed or moved; failover goes on"

PHASES: Final[Mapping[Trouble, str]] = {
    Trouble.WAITING: "FailingOver",
    Trouble.DEGRADED: "Degraded",
    Trouble.BLOCKED: "Blocked",
    Trouble.HELD: "Blocked",
    Trouble.SUSPECT: "Suspect",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One condition, without its times."""

    type: str
    status: bool
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failover:
    """An owner change and the wall-clock time at which this operator saw it carried out."""

    transition: Transition
    when: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolState:
    """A KVNamespace's shard pods, for people. Sentences are empty where there is nothing to say."""

    wanted: int
    there: int
    ready: int
    updated: int  # pods with the newest template
    rolling: str = ""  # how far an update of the pods has come
    scaling: str = ""  # what stopping surplus pods waits for
    growing: str = ""  # which volumes have not the wanted size yet
    troubles: str = ""  # which pods are not ready, and why
    hopeless: str = ""  # those of them that will not be by themselves


@dataclass(frozen=True, slots=True, kw_only=True)
class Placing:
    """How far a table's partitions are from where they are to be."""

    pending: tuple[str, ...]  # partitions whose replicas or owner are not where they are to be
    missing: str  # what the required rules lack, for people; empty: nothing
    size: int  # replicas of a partition, the owner counted


def timestamp(unix_seconds: float) -> str:
    """A Time as Kubernetes writes it: whole seconds, UTC."""
    moment = datetime.datetime.fromtimestamp(unix_seconds, datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def condition_status(obj: Mapping[str, Any], kind: str) -> str:
    """A condition's status as an object carries it: True, False, Unknown, or empty where it has none."""
    return str(_condition(obj, kind).get("status", ""))


def _condition(obj: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    conditions = (obj.get("status") or {}).get("conditions") or ()
    return next((each for each in conditions if each.get("type") == kind), {})


def with_times(
    old: Iterable[Mapping[str, Any]], new: Sequence[Condition], *, generation: int, now: str
) -> list[Object]:
    """The conditions as an object carries them."""
    before = {condition.get("type"): condition for condition in old}
    result: list[Object] = []
    for condition in new:
        status = "True" if condition.status else "False"
        was = before.get(condition.type) or {}
        since = was.get("lastTransitionTime") if was.get("status") == status else None
        result.append(
            {
                "type": condition.type,
                "status": status,
                "reason": condition.reason,
                "message": condition.message[:MESSAGE_CHARACTERS_MAX],
                "observedGeneration": generation,
                "lastTransitionTime": since or now,
            }
        )
    return result


def status_patch(
    old: Mapping[str, Any], new: Mapping[str, Any], *, volatile: frozenset[str] = frozenset()
) -> Object | None:
    """The merge patch that turns `old` into `new`; None: nothing differs, or `volatile` fields alone."""
    absent = {key: None for key in old if key not in new}
    if all(old.get(key) == value for key, value in new.items() if key not in volatile) and not (
        absent.keys() - volatile
    ):
        return None
    return {**new, **absent}


def partition_status(
    partition: Mapping[str, Any],
    facts: PartitionFacts | None,
    failover: Failover | None,
    *,
    now: str,
    refresh: bool,
) -> Object | None:
    """The patch of a KVPartition's status; None: it stands. `refresh`: also token and lag are reason enough."""
    old = partition.get("status") or {}
    if facts is None and "epoch" in old:
        return None
    new = _partition_facts_status(partition, old, facts)
    if failover is not None:
        new["lastFailover"] = _last_failover(failover)
    elif "lastFailover" in old:
        new["lastFailover"] = old["lastFailover"]
    generation = int(partition["metadata"].get("generation") or 1)
    conditions = partition_conditions(partition, facts, epoch=new["epoch"])
    if _is_moving(partition, facts, conditions[0], now=now):
        owner = new.get("owner", "")
        message = f"a planned move of the owner, now at {owner}: requests wait for its end"
        conditions[:2] = [
            Condition(type="Ready", status=True, reason=MOVING, message=message),
            _problem("Reconciling", True, MOVING, message),
        ]
    new["phase"] = _phase(partition, facts, conditions)
    new["observedGeneration"] = generation
    new["conditions"] = with_times(old.get("conditions") or (), conditions, generation=generation, now=now)
    return status_patch(old, new, volatile=frozenset() if refresh else VOLATILE)


def partition_conditions(
    partition: Mapping[str, Any], facts: PartitionFacts | None, *, epoch: int
) -> list[Condition]:
    """The conditions of a partition."""
    spec = partition["spec"]
    ready = _ready(spec, facts, epoch)
    trouble = facts.trouble if facts is not None else Trouble.NONE
    detail = facts.detail if facts is not None else ""
    in_sync = _in_sync(facts)
    missing = [pod for pod in spec["replicas"] if pod not in in_sync]
    if trouble is Trouble.DEGRADED:
        degraded = _problem("Degraded", True, "NoCandidate", detail or "no member of the in-sync set is reachable")
    elif missing and epoch > 0:
        degraded = _problem("Degraded", True, REPLICAS_BEHIND, f"not in sync: {_names(missing)}")
    else:
        degraded = _problem("Degraded", False, "InSync", "")
    unprotected = spec["durability"] == STANDARD and len(spec["replicas"]) < 2
    return [
        ready,
        _problem("Reconciling", not ready.status, ready.reason if not ready.status else "Settled", ""),
        _problem("Stalled", False, "Progressing", ""),
        degraded,
        _flag("Unprotected", unprotected, "NoStandby", "a lost node loses every write: there is no standby"),
        _blocked(trouble, detail),
        _flag("RecordSuspect", trouble is Trouble.SUSPECT, "RecordLost", detail),
    ]


def _blocked(trouble: Trouble, detail: str) -> Condition:
    reasons = {Trouble.BLOCKED: "TooFewStandbys", Trouble.HELD: "Held"}
    return _problem(
        "Blocked", trouble in reasons, reasons.get(trouble, "None"), detail if trouble in reasons else ""
    )


def table_status(
    table: Mapping[str, Any],
    partitions: Sequence[Mapping[str, Any]],
    *,
    wanted: int,
    unprotected: bool,
    stalled: Condition | None,
    short: str,
    now: str,
    placing: Placing | None = None,
    paused: bool = False,
) -> Object | None:
    """The patch of a KVTable's status; None: it stands.

    `stalled` says why nothing can be done for it, `short` what it lacks though it works, `placing` what is still
    on its way (None: nobody looked).
    """
    generation = int(table["metadata"].get("generation") or 1)
    ready = [partition for partition in partitions if condition_status(partition, "Ready") == "True"]
    complete = len(ready) == wanted and len(partitions) == wanted and stalled is None
    conditions = [
        *_table_head(ready=len(ready), wanted=wanted, complete=complete, stalled=stalled, placing=placing),
        _table_degraded(partitions, short=short, placing=placing),
        _flag("Unprotected", unprotected, "NoStandby", "a lost node loses every write: there is no standby"),
        _any("Blocked", partitions),
        _any("RecordSuspect", partitions),
        _flag("Paused", paused, "Requested", PAUSED),
        _drill_failed(table),
    ]
    # What drills came to is written where they are done.
    old = {key: value for key, value in (table.get("status") or {}).items() if key != "drills"}
    new = {
        "observedGeneration": generation,
        "partitions": len(partitions),
        "readyPartitions": len(ready),
        "conditions": with_times(old.get("conditions") or (), conditions, generation=generation, now=now),
    }
    return status_patch(old, new)


def _drill_failed(table: Mapping[str, Any]) -> Condition:
    """Whether the last scheduled drill failed."""
    last = next(iter((table.get("status") or {}).get("drills") or ()), None)
    if last is None or last.get("passed"):
        return _flag("DrillFailed", False, "DrillFailed", "")
    return _flag("DrillFailed", True, str(last.get("verdict") or "Failed"), f"{last['operation']} did not pass")


def _table_head(
    *, ready: int, wanted: int, complete: bool, stalled: Condition | None, placing: Placing | None
) -> list[Condition]:
    """Ready says whether it serves, Reconciling whether it is as asked for: while replicas move it is both."""
    if stalled is not None:
        return [
            Condition(type="Ready", status=False, reason=stalled.reason, message=stalled.message),
            _problem("Reconciling", False, "Stalled", ""),
            stalled,
        ]
    reason = "AllPartitionsReady" if complete else "PartitionsNotReady"
    waiting = "" if complete else f"{ready} of {wanted} partitions are ready"
    moving = ("", "")
    if placing is not None and placing.missing:
        moving = (PLACEMENT_UNSATISFIABLE, placing.missing)
    elif placing is not None and placing.pending:
        moving = (MOVING, f"{len(placing.pending)} partitions are moved: {_names(placing.pending)}")
    if complete and moving[0]:
        reconciling = _problem("Reconciling", True, *moving)
    else:
        reconciling = _problem("Reconciling", not complete, "Settled" if complete else reason, waiting)
    return [
        Condition(type="Ready", status=complete, reason=reason, message=waiting),
        reconciling,
        _problem("Stalled", False, "Progressing", ""),
    ]


def _table_degraded(partitions: Sequence[Mapping[str, Any]], *, short: str, placing: Placing | None) -> Condition:
    if placing is not None and placing.missing:
        return _problem("Degraded", True, PLACEMENT_UNSATISFIABLE, placing.missing)
    # A partition with a copy more than it needs, not yet in sync, is on its way and no worse than before.
    size = placing.size if placing is not None else 0
    worse = [
        each
        for each in partitions
        if not size
        or len((each.get("status") or {}).get("inSync") or ()) < min(size, len(each["spec"]["replicas"]))
        or _condition(each, "Degraded").get("reason") != REPLICAS_BEHIND
    ]
    return _any("Degraded", worse, short=short)


def namespace_status(
    kvns: Mapping[str, Any],
    pool: PoolState,
    *,
    tables: int,
    partitions: Sequence[Mapping[str, Any]],
    paused: bool,
    error: str,
    now: str,
) -> Object | None:
    """The patch of a KVNamespace's status; None: it stands. `error`: why the last attempt was refused."""
    generation = int(kvns["metadata"].get("generation") or 1)
    stalled, detail = _pool_stalled(pool, error=error)
    up = pool.ready >= pool.wanted and pool.there >= pool.wanted
    waiting = "; ".join(filter(None, (f"{pool.ready} of {pool.wanted} shards are ready", pool.troubles)))
    if up:
        ready = Condition(type="Ready", status=True, reason="AllShardsReady", message="")
    else:
        reason, message = (stalled, detail) if stalled else ("ShardsNotReady", waiting)
        ready = Condition(type="Ready", status=False, reason=reason, message=message)
    degraded = _any("Degraded", partitions)
    # A pool that starts is no worse than it was.
    was_up = "True" in {condition_status(kvns, "Ready"), condition_status(kvns, "Degraded")}
    if not degraded.status and pool.ready < pool.wanted and was_up:
        degraded = _problem("Degraded", True, "ShardsNotReady", waiting)
    conditions = [
        ready,
        _pool_reconciling(pool, "" if up else waiting, paused=paused, stalled=bool(stalled)),
        _problem("Stalled", bool(stalled), stalled or "Progressing", detail),
        degraded,
        _flag("Paused", paused, "Requested", PAUSED),
    ]
    old = kvns.get("status") or {}
    new = {
        "observedGeneration": generation,
        "shards": pool.there,
        "readyShards": pool.ready,
        "updatedShards": pool.updated,
        "tables": tables,
        "partitions": len(partitions),
        "conditions": with_times(old.get("conditions") or (), conditions, generation=generation, now=now),
    }
    return status_patch(old, new)


def _pool_stalled(pool: PoolState, *, error: str) -> tuple[str, str]:
    """Why a pool gets no further by itself: a word and a sentence; both empty: it does."""
    if error:
        return "Refused", error
    return ("ShardsFailing", pool.hopeless) if pool.hopeless else ("", "")


def _pool_reconciling(pool: PoolState, waiting: str, *, paused: bool, stalled: bool) -> Condition:
    if paused or stalled:
        return _problem("Reconciling", False, "Paused" if paused else "Stalled", "")
    going = pool.there - pool.wanted
    steps = (
        ("RollingUpdate", pool.rolling),
        ("ScalingDown", pool.scaling or (f"{going} shards are to go" if going > 0 else "")),
        ("ShardsNotReady", waiting),
        ("VolumesGrowing", pool.growing),
    )
    reason, message = next(((reason, text) for reason, text in steps if text), ("Settled", ""))
    return _problem("Reconciling", bool(message), reason, message)


def _partition_facts_status(
    partition: Mapping[str, Any], old: Mapping[str, Any], facts: PartitionFacts | None
) -> Object:
    lease = facts.lease if facts is not None else None
    new: Object = {"epoch": max(int(old.get("epoch") or 0), lease.epoch if lease else 0)}
    owner = ""
    if lease is not None and lease.session is not None:
        owner = lease.session.pod
        new["owner"], new["session"] = owner, str(lease.session)
    new["inSync"] = _in_sync(facts)
    new["standbys"] = [pod for pod in partition["spec"]["replicas"] if pod != owner]
    new["setVersion"] = max(int(old.get("setVersion") or 0), lease.set_version if lease else 0)
    holder = _replica(facts, owner)
    if holder is not None:
        new["token"] = f"{holder.last_epoch}.{holder.last_txid}"
        behind = [
            replica.last_seq
            for replica in (facts.replicas if facts else ())
            if replica.pod in new["inSync"] and replica.pod != owner
        ]
        new["lag"] = max(0, holder.last_seq - min(behind, default=holder.last_seq))
    else:
        # Who the owner is, or how far it is, is not known now: what was known stays.
        new.update({key: old[key] for key in VOLATILE if key in old})
    return new


def _last_failover(failover: Failover) -> Object:
    change = failover.transition
    return {
        "when": failover.when,
        "reason": str(change.reason),
        "seconds": round(change.seconds, 3),
        "fromEpoch": change.from_epoch,
        "toEpoch": change.to_epoch,
    }


def is_failover(transition: Transition) -> bool:
    """Whether an owner change belongs into `status.lastFailover`: all do but the first grant."""
    return transition.reason is not Reason.CREATED


def _ready(spec: Mapping[str, Any], facts: PartitionFacts | None, epoch: int) -> Condition:
    def no(reason: str, message: str) -> Condition:
        return Condition(type="Ready", status=False, reason=reason, message=message)

    if facts is None or facts.lease is None or facts.lease.session is None:
        detail = facts.detail if facts is not None else ""
        reason = "NotGranted" if epoch == 0 else "RecordLost"
        return no(reason, detail or "no shard was granted this partition yet")
    lease, owner = facts.lease, facts.lease.session.pod
    if facts.trouble is not Trouble.NONE:
        return no(str(facts.trouble), facts.detail)
    if not facts.owner_alive:
        return no("OwnerGone", f"the session of {owner} is over")
    if lease.is_released:
        return no("Released", f"{owner} closed epoch {lease.epoch}")
    replica = _replica(facts, owner)
    if replica is None or not replica.serving or replica.known_epoch < lease.epoch:
        return no("OwnerStarting", f"{owner} does not serve epoch {lease.epoch} yet")
    standbys = len({pod_of(member) for member in lease.in_sync} - {owner})
    if spec["durability"] == REPLICATED and standbys < int(spec["minInSync"]):
        return no("TooFewStandbys", f"{standbys} standbys are in sync, {spec['minInSync']} are needed")
    return Condition(type="Ready", status=True, reason="Serving", message=f"{owner} serves it")


def _phase(partition: Mapping[str, Any], facts: PartitionFacts | None, conditions: Sequence[Condition]) -> str:
    if "deletionTimestamp" in partition["metadata"]:
        return "Deleting"
    if facts is not None and facts.trouble in PHASES:
        return PHASES[facts.trouble]
    ready = conditions[0]
    if ready.status:
        return MOVING if ready.reason == MOVING else "Ready"
    return "Pending" if ready.reason in {"NotGranted", "OwnerStarting", "TooFewStandbys"} else "FailingOver"


def _is_moving(partition: Mapping[str, Any], facts: PartitionFacts | None, ready: Condition, *, now: str) -> bool:
    """Whether a partition that serves no one is in the middle of a planned move, which fails no request.

    It was ready just before: MOVING_SECONDS_MAX later it is no move any more.
    """
    lease = facts.lease if facts is not None else None
    if facts is None or lease is None or ready.reason not in {"Released", "OwnerStarting"}:
        return False
    holder = _replica(facts, lease.session.pod if lease.session else "")
    # An owner that drains, or has closed its epoch, does not say that it serves.
    drains = holder is not None and holder.known_epoch == lease.epoch and holder.role in DRAINING
    if not (lease.is_released or facts.planned or drains) or condition_status(partition, "Ready") != "True":
        return False
    going = _condition(partition, "Reconciling")
    if going.get("reason") != MOVING:
        return True
    began, at = (datetime.datetime.fromisoformat(each) for each in (going["lastTransitionTime"], now))
    return (at - began).total_seconds() <= MOVING_SECONDS_MAX


def _replica(facts: PartitionFacts | None, pod: str) -> ReplicaFacts | None:
    replicas = facts.replicas if facts is not None and pod else ()
    return next((replica for replica in replicas if replica.pod == pod), None)


def _in_sync(facts: PartitionFacts | None) -> list[str]:
    lease = facts.lease if facts is not None else None
    return sorted({pod_of(member) for member in lease.in_sync}) if lease else []


def _any(kind: str, partitions: Sequence[Mapping[str, Any]], *, short: str = "") -> Condition:
    names = [
        partition["metadata"]["name"] for partition in partitions if condition_status(partition, kind) == "True"
    ]
    if names:
        return _problem(kind, True, "Partitions", f"partitions: {_names(names)}")
    return _problem(kind, bool(short), "NotEnoughShards" if short else "None", short)


def _flag(kind: str, status: bool, reason: str, message: str) -> Condition:
    return _problem(kind, status, reason if status else "None", message if status else "")


def _problem(kind: str, status: bool, reason: str, message: str) -> Condition:
    """A condition that is good news while it is false."""
    return Condition(type=kind, status=status, reason=reason, message=message)


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN_MAX])
    rest = len(names) - NAMES_SHOWN_MAX
    return f"{shown} and {rest} more" if rest > 0 else shown
