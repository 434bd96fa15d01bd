"""What a KVOperation asks for, how far it is, and what its status says. Pure.

Invariants:
  * A phase goes Pending -> Running -> Succeeded or Failed, and never back; a final one is not written again.
  * What a step needs to go on after a restart of the operator stands in the status, or the operation ends there.
"""

from __future__ import annotations

import datetime
import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from fencekv.faults import Fault
from fencekv.kube import KV_OPERATIONS
from fencekv_operator.events import Notice, notice
from fencekv_operator.facts import PartitionFacts, Trouble
from fencekv_operator.status import Condition, timestamp, with_times

Object = dict[str, Any]

TTL_SECONDS: Final = 86400
DRILL_STANDBYS_MIN: Final = 2
MESSAGE_CHARACTERS_MAX: Final = 1000
SCHEDULED: Final = "fencekv.io/scheduled-by"  # label: the KVTable whose schedule made it


class Kind(enum.StrEnum):
    """What is to be done."""

    SWITCHOVER = "switchover"
    DRILL = "drill"
    VERIFY = "verify"


class Phase(enum.StrEnum):
    """How far an operation is."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


FINAL: Final = frozenset({Phase.SUCCEEDED, Phase.FAILED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A KVOperation, as the API server, which has checked it, gives it."""

    namespace: str  # Kubernetes namespace
    name: str
    uid: str
    created_unix: float
    kind: Kind
    table: str
    partition: str  # empty: not named
    target: str  # of a switchover; empty: the best
    fault: Fault | None  # None: no drill
    puts_per_second: int
    rto_seconds_max: int
    ttl_seconds: int
    scheduled_by: str  # a KVTable; empty: a person made it
    phase: Phase
    status: Mapping[str, Any]
    raw: Mapping[str, Any]

    @classmethod
    def parse(cls, item: Mapping[str, Any]) -> Self:
        """Reads a KVOperation."""
        metadata, spec, status = item["metadata"], item["spec"], item.get("status") or {}
        drill = spec.get("drill") or {}
        return cls(
            namespace=metadata["namespace"],
            name=metadata["name"],
            uid=metadata["uid"],
            created_unix=_unix(metadata.get("creationTimestamp")),
            kind=Kind(spec["type"]),
            table=spec["table"],
            partition=spec.get("partition") or "",
            target=(spec.get("switchover") or {}).get("to") or "",
            fault=Fault(drill["fault"]) if drill else None,
            puts_per_second=int(drill.get("putsPerSecond") or 200),
            rto_seconds_max=int(drill.get("rtoSecondsMax") or 10),
            ttl_seconds=int(spec.get("ttlSecondsAfterFinished") or TTL_SECONDS),
            scheduled_by=(metadata.get("labels") or {}).get(SCHEDULED, ""),
            phase=Phase(status.get("phase") or Phase.PENDING),
            status=status,
            raw=item,
        )

    @property
    def key(self) -> tuple[str, str]:
        """Where it is."""
        return self.namespace, self.name

    @property
    def is_final(self) -> bool:
        """Whether it has ended."""
        return self.phase in FINAL

    @property
    def runner(self) -> str:
        """The operator process that carries it out; empty: none yet."""
        return str(self.status.get("runner") or "")

    @property
    def started_unix(self) -> float:
        """When it began to run; when it was made, if it did not."""
        return _unix(self.status.get("startedAt")) or self.created_unix

    @property
    def expires_unix(self) -> float:
        """When it is deleted, once it has ended."""
        return _unix(self.status.get("finishedAt")) + self.ttl_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How an operation stands from now on. `fields` are members of the status, kept until they are changed."""

    phase: Phase
    step: str
    message: str
    fields: Mapping[str, Any]
    reason: str = ""  # of the conditions; empty: the step


def running(step: str, message: str = "", **fields: Any) -> Progress:
    """It goes on."""
    return Progress(phase=Phase.RUNNING, step=step, message=message, fields=fields)


def waiting(step: str, message: str) -> Progress:
    """It has not begun."""
    return Progress(phase=Phase.PENDING, step=step, message=message, fields={})


def succeeded(message: str, result: Mapping[str, Any], **fields: Any) -> Progress:
    """It is done."""
    return Progress(phase=Phase.SUCCEEDED, step="Done", message=message, fields={"result": dict(result), **fields})


def failed(reason: str, message: str, result: Mapping[str, Any] | None = None, **fields: Any) -> Progress:
    """It has ended otherwise."""
    told = {"result": dict(result)} if result else {}
    return Progress(phase=Phase.FAILED, step="Ended", message=message, fields={**told, **fields}, reason=reason)


def new_status(operation: Operation, progress: Progress, *, now_unix: float) -> Object | None:
    """The status that says so; None: it says so already."""
    assert not operation.is_final, operation
    old, now = operation.status, timestamp(now_unix)
    generation = int(operation.raw["metadata"].get("generation") or 1)
    status: Object = {
        **{key: value for key, value in old.items() if key != "conditions"},
        **progress.fields,
        "observedGeneration": generation,
        "phase": str(progress.phase),
        "step": progress.step,
        "message": progress.message[:MESSAGE_CHARACTERS_MAX],
    }
    if progress.phase is not Phase.PENDING:
        status.setdefault("startedAt", now)
    if progress.phase in FINAL:
        status["finishedAt"] = now
    conditions = _conditions(progress)
    status["conditions"] = with_times(old.get("conditions") or (), conditions, generation=generation, now=now)
    return None if status == old else status


def _conditions(progress: Progress) -> list[Condition]:
    """In kstatus' words: what goes on is Reconciling, what failed is Stalled, for it will not be tried again."""
    phase, message = progress.phase, progress.message
    reason = progress.reason or progress.step

    def flag(kind: str, holds: bool) -> Condition:
        return Condition(type=kind, status=holds, reason=reason, message=message)

    return [
        flag("Ready", phase is Phase.SUCCEEDED),
        flag("Reconciling", phase not in FINAL),
        flag("Stalled", phase is Phase.FAILED),
        flag("Complete", phase is Phase.SUCCEEDED),
        flag("Failed", phase is Phase.FAILED),
    ]


def end_notice(operation: Operation, progress: Progress) -> Notice | None:
    """The Event of an operation's beginning or end; None: nobody need hear of it."""
    if progress.phase is Phase.RUNNING and operation.phase is Phase.PENDING:
        words = ("Started", progress.message or f"{operation.kind} of {operation.partition or operation.table}")
    elif progress.phase is Phase.SUCCEEDED:
        words = ("Succeeded", progress.message)
    elif progress.phase is Phase.FAILED:
        words = (progress.reason or "Failed", progress.message)
    else:
        return None
    obj = {"apiVersion": KV_OPERATIONS.api_version, "kind": KV_OPERATIONS.kind, **operation.raw}
    return notice(obj, warning=progress.phase is Phase.FAILED, reason=words[0], message=words[1], once=words[0])


def unhealthy(facts: PartitionFacts | None, *, standbys_min: int = DRILL_STANDBYS_MIN) -> str:
    """Why a drill would harm a partition, or prove nothing; empty: it is healthy."""
    if facts is None or facts.lease is None or facts.lease.session is None:
        return "nobody owns it"
    if facts.trouble is not Trouble.NONE:
        return facts.detail or str(facts.trouble)
    if not facts.owner_alive or facts.lease.is_released:
        return "its owner is not heard, or is handing it over"
    owner = facts.lease.session.pod
    if not any(replica.pod == owner and replica.serving for replica in facts.replicas):
        return f"its owner, {owner}, does not say that it serves"
    standbys = len(facts.lease.in_sync) - 1
    if standbys < standbys_min:
        return f"{max(standbys, 0)} standbys are in sync, a drill needs {standbys_min}"
    return ""


def _unix(text: str | None) -> float:
    return datetime.datetime.fromisoformat(text).timestamp() if text else 0.0
