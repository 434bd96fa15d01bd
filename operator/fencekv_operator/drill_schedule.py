"""When a KVTable's drills are due, and what it keeps of their results. Pure.

Invariants:
  * A due drill has one name, made of its table and its minute: whoever makes it twice makes it once.
  * What was missed for longer than LATE_SECONDS_MAX is not made up for.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cronsim import CronSim, CronSimError

from fencekv.kube import KV_OPERATIONS
from fencekv_operator.operations import SCHEDULED, Kind, Operation, Phase

Object = dict[str, Any]

LATE_SECONDS_MAX: Final = 300.0
RESULTS_MAX: Final = 10
LABEL_TABLE: Final = "fencekv.io/table"


def due(table: Mapping[str, Any], *, now_unix: float) -> list[Object]:
    """The KVOperations that should exist now, one for each of the table's schedules at most."""
    if table["metadata"].get("deletionTimestamp") or table["spec"].get("paused"):
        return []
    bodies = []
    for drill in table["spec"].get("drills") or ():
        last = last_time(drill["schedule"], now_unix=now_unix)
        born = datetime.datetime.fromisoformat(table["metadata"]["creationTimestamp"]).timestamp()
        if last is not None and max(born, now_unix - LATE_SECONDS_MAX) <= last:
            bodies.append(_operation(table, drill, last))
    return bodies


def last_time(schedule: str, *, now_unix: float) -> float | None:
    """When a schedule last came due, unix seconds; None: never, or it cannot be read."""
    now = datetime.datetime.fromtimestamp(now_unix, datetime.UTC)
    # It looks at the times before the one given: this very minute counts.
    start = now.replace(second=0, microsecond=0) + datetime.timedelta(minutes=1)
    try:
        return next(CronSim(schedule, start, reverse=True)).timestamp()
    except (CronSimError, StopIteration):
        return None


def unreadable(table: Mapping[str, Any]) -> list[str]:
    """The schedules that are not cron's."""
    bad = []
    for drill in table["spec"].get("drills") or ():
        try:
            CronSim(drill["schedule"], datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC))
        except CronSimError:
            bad.append(str(drill["schedule"]))
    return bad


def _operation(table: Mapping[str, Any], drill: Mapping[str, Any], when: float) -> Object:
    metadata = table["metadata"]
    which = hashlib.sha256(f"{drill['schedule']} {drill['fault']}".encode()).hexdigest()[:6]
    stamp = datetime.datetime.fromtimestamp(when, datetime.UTC).strftime("%Y%m%d%H%M")
    return {
        "apiVersion": KV_OPERATIONS.api_version,
        "kind": KV_OPERATIONS.kind,
        "metadata": {
            "name": f"{metadata['name']}-drill-{stamp}-{which}",
            "namespace": metadata["namespace"],
            "labels": {LABEL_TABLE: metadata["name"], SCHEDULED: metadata["name"]},
        },
        "spec": {
            "type": str(Kind.DRILL),
            "table": metadata["name"],
            "drill": {"fault": drill["fault"], "rtoSecondsMax": int(drill.get("rtoSecondsMax") or 10)},
        },
    }


def with_result(results: Sequence[Mapping[str, Any]], operation: Operation) -> list[Object] | None:
    """The table's results with that of a scheduled drill that has ended; None: they have it, or had it."""
    assert operation.is_final, operation
    entry = _entry(operation)
    if any(one.get("operation") == operation.name for one in results):
        return None
    if len(results) >= RESULTS_MAX and str(entry.get("finishedAt")) < str(results[-1].get("finishedAt") or ""):
        return None
    newest_first = sorted(
        [entry, *map(dict, results)], key=lambda one: str(one.get("finishedAt") or ""), reverse=True
    )
    return newest_first[:RESULTS_MAX]


def _entry(operation: Operation) -> Object:
    status = operation.status
    result = status.get("result") or {}
    entry: Object = {
        "operation": operation.name,
        "fault": str(operation.fault or ""),
        "partition": str(status.get("partition") or operation.partition),
        "verdict": str(result.get("verdict") or "Refused"),
        "passed": operation.phase is Phase.SUCCEEDED,
        "finishedAt": status.get("finishedAt"),
    }
    if "rtoSeconds" in result:
        entry["rtoSeconds"] = result["rtoSeconds"]
    return entry
