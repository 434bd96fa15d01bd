"""What the operator shows Prometheus. Pure: a picture of one moment -> families with their samples.

Invariants:
  * The number of series is bounded by kinds of things (phases, reasons, conditions) and by tables; no partition
    and no pod has a series of its own: shards tell those.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fencekv.exposition import Family, Kind, Samples, text
from fencekv_operator.phases import Phases
from fencekv_operator.status import condition_status

Object = Mapping[str, Any]

SESSION_STATES: Final = ("live", "doubted", "over")
PARTITION_PHASES: Final = (
    "Pending",
    "Ready",
    "Moving",
    "FailingOver",
    "Blocked",
    "Degraded",
    "Suspect",
    "Deleting",
)
CONDITIONS: Final = ("Degraded", "Unprotected", "Blocked", "RecordSuspect")


def _gauge(name: str, what: str, labels: tuple[str, ...] = (), series: str = "1") -> Family:
    return Family(name=f"fencekv_operator_{name}", kind=Kind.GAUGE, text=what, labels=labels, series=series)


def _counter(name: str, what: str, labels: tuple[str, ...] = (), series: str = "1") -> Family:
    return Family(
        name=f"fencekv_operator_{name}_total", kind=Kind.COUNTER, text=what, labels=labels, series=series
    )


LEADING: Final = _gauge("leading", "1 if this operator leads; the others tell of nothing that they did.")
NAMESPACES: Final = _gauge("namespaces", "KVNamespaces.")
TABLES: Final = _gauge("tables", "KVTables.")
PARTITIONS: Final = _gauge("partitions", "KVPartitions by phase of their status.", ("phase",), "phases")
NOT_READY: Final = _gauge("partitions_not_ready", "KVPartitions whose phase is not Ready.")
TROUBLED: Final = _gauge(
    "partitions_troubled", "KVPartitions with a condition that is bad news.", ("condition",), "conditions"
)
TABLE_READY: Final = _gauge(
    "table_ready", "1 if all partitions of a table are ready.", ("kube_namespace", "table"), "tables"
)
SESSIONS: Final = _gauge(
    "sessions", "Sessions of shards: live, doubted (not heard for a while), over.", ("state",), "states"
)
OPERATIONS: Final = _gauge(
    "operations", "KVOperations that exist, by type and phase.", ("type", "phase"), "types x phases"
)
DRILLS: Final = _gauge(
    "drills", "Finished drills that exist, by fault and verdict.", ("fault", "verdict"), "faults x verdicts"
)
QUEUE: Final = _gauge("queue_length", "Objects that wait to be reconciled.")
TICK_AGE: Final = _gauge("failover_tick_age_seconds", "How long ago the failover loop last turned.")
READ_AGE: Final = _gauge("quorum_read_age_seconds", "How long ago session Leases were last read by quorum.")
ACTIONS: Final = _counter("actions", "Writes that reconciling made.")
FAILURES: Final = _counter("failures", "Reconciliations that failed and are tried again.")
DROPPED: Final = _counter("events_dropped", "Kubernetes Events that were not posted.")
CHANGES: Final = _counter(
    "owner_changes", "Grants that this operator made, by reason.", ("reason",), "reasons of an owner change"
)
FAILOVER_SECONDS: Final = Family(
    name="fencekv_operator_failover_seconds",
    kind=Kind.HISTOGRAM,
    text="Parts of an owner change: last renewal -> noticed -> proven (over) -> granted -> serving.",
    labels=("phase", "reason"),
    series="phases x reasons x 14 buckets",
)

FAMILIES: Final[tuple[Family, ...]] = (
    *(LEADING, NAMESPACES, TABLES, PARTITIONS, NOT_READY, TROUBLED, TABLE_READY, SESSIONS, OPERATIONS, DRILLS),
    *(QUEUE, TICK_AGE, READ_AGE, ACTIONS, FAILURES, DROPPED, CHANGES, FAILOVER_SECONDS),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What the operator knows at a moment."""

    leading: bool
    namespaces: int
    tables: Sequence[Object]
    partitions: Sequence[Object]
    operations: Sequence[Object]
    sessions: Mapping[str, int]  # by state
    queue_length: int
    actions: int
    failures: int
    events_dropped: int
    tick_age_seconds: float
    quorum_read_age_seconds: float
    phases: Phases


def render(picture: Picture) -> bytes:
    """The text of /metrics."""
    return text(collect(picture))


def collect(picture: Picture) -> Iterator[tuple[Family, Samples]]:
    """Every family with its samples."""
    phases = Counter(str((each.get("status") or {}).get("phase") or "Pending") for each in picture.partitions)
    yield LEADING, {(): float(picture.leading)}
    yield NAMESPACES, {(): picture.namespaces}
    yield TABLES, {(): len(picture.tables)}
    yield PARTITIONS, {(phase,): phases[phase] for phase in sorted({*PARTITION_PHASES, *phases})}
    yield NOT_READY, {(): len(picture.partitions) - phases["Ready"]}
    yield TROUBLED, {(kind,): _with_condition(picture.partitions, kind) for kind in CONDITIONS}
    yield (
        TABLE_READY,
        {_name(table): float(condition_status(table, "Ready") == "True") for table in picture.tables},
    )
    yield SESSIONS, {(state,): picture.sessions.get(state, 0) for state in SESSION_STATES}
    yield OPERATIONS, _operations(picture.operations)
    yield DRILLS, _drills(picture.operations)
    yield QUEUE, {(): picture.queue_length}
    yield TICK_AGE, {(): picture.tick_age_seconds}
    yield READ_AGE, {(): picture.quorum_read_age_seconds}
    yield ACTIONS, {(): picture.actions}
    yield FAILURES, {(): picture.failures}
    yield DROPPED, {(): picture.events_dropped}
    yield CHANGES, {(str(reason),): count for reason, count in sorted(picture.phases.changes.items())}
    yield (
        FAILOVER_SECONDS,
        {
            (str(phase), str(reason)): histogram.report()
            for (phase, reason), histogram in sorted(picture.phases.seconds.items())
        },
    )


def _with_condition(partitions: Iterable[Object], kind: str) -> int:
    return sum(condition_status(partition, kind) == "True" for partition in partitions)


def _name(table: Object) -> tuple[str, str]:
    return str(table["metadata"].get("namespace", "")), str(table["metadata"]["name"])


def _operations(operations: Iterable[Object]) -> Samples:
    return dict(
        Counter(
            (str(each["spec"]["type"]), str((each.get("status") or {}).get("phase") or "Pending"))
            for each in operations
        )
    )


def _drills(operations: Iterable[Object]) -> Samples:
    counts: Counter[tuple[str, ...]] = Counter()
    for each in operations:
        status = each.get("status") or {}
        if each["spec"]["type"] == "drill" and status.get("phase") in {"Succeeded", "Failed"}:
            fault = str((each["spec"].get("drill") or {}).get("fault", ""))
            counts[fault, "passed" if status["phase"] == "Succeeded" else "failed"] += 1
    return dict(counts)
