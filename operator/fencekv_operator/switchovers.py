"""A switchover, step by step: what is to be done next, from the status and from what the failover loop sees. Pure.

Invariants:
  * All that it remembers is in the status (the epoch when it began), so any operator can go on with it.
  * It succeeds only when the new owner says that it serves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fencekv_operator.facts import PartitionFacts
from fencekv_operator.operations import Operation, Phase, Progress, failed, running, succeeded, waiting

SWITCHOVER_SECONDS_MAX: Final = 60.0
FACTS_SECONDS_MAX: Final = 30.0  # an operator that has just begun does not know the partitions yet


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """The owner is to be asked to hand the partition over; `target` empty: to the best pod."""

    target: str


def next_step(
    operation: Operation, facts: PartitionFacts | None, *, held: str | None, now_unix: float
) -> Progress | Ask:
    """What is to be done now. `held`: why a person holds the partition's failover; None: nobody does."""
    waited = now_unix - operation.started_unix
    lease = facts.lease if facts is not None else None
    if facts is None or lease is None or lease.session is None:
        if waited < FACTS_SECONDS_MAX and _fresh(operation):
            return waiting("Looking", "the partition's owner is not known yet")
        if waited < SWITCHOVER_SECONDS_MAX and not _fresh(operation):
            return running("Looking", "the partition's owner is not known now")
        return failed("NoOwner", f"{operation.partition}: there is no such partition, or nobody owns it")
    owner = lease.session.pod
    if _fresh(operation):
        return _begin(operation, owner=owner, epoch=lease.epoch, held=held)
    before = int(operation.status.get("epoch") or 0)
    if lease.epoch == before:
        if waited > SWITCHOVER_SECONDS_MAX:
            last = str(operation.status.get("message") or "the owner did not let go")
            told = f"after {SWITCHOVER_SECONDS_MAX:.0f} s: {last}"
            return failed("TimedOut", told, _result(before, before, owner))
        return Ask(target=operation.target)
    serving = any(replica.pod == owner and replica.serving for replica in facts.replicas)
    if not serving and waited <= SWITCHOVER_SECONDS_MAX:
        return running("Serving", f"{owner} was granted epoch {lease.epoch} and begins to serve")
    result = _result(before, lease.epoch, owner)
    if operation.target and owner != operation.target:
        return failed("WentElsewhere", f"{owner} owns it now, not {operation.target}", result)
    if not serving:
        return failed("TimedOut", f"{owner} was granted epoch {lease.epoch} and does not serve", result)
    return succeeded(f"{owner} owns it with epoch {lease.epoch}", {**result, "verdict": "Moved"})


def _fresh(operation: Operation) -> bool:
    return operation.phase is Phase.PENDING


def _begin(operation: Operation, *, owner: str, epoch: int, held: str | None) -> Progress:
    if held is not None:
        why = f": {held}" if held else ""
        return failed("Held", f"the annotation fencekv.io/hold-failover holds the partition{why}")
    if operation.target == owner:
        result = {**_result(epoch, epoch, owner), "verdict": "Moved"}
        return succeeded(f"{owner} owned it already", result, partition=operation.partition, epoch=epoch)
    return running("Asking", f"{owner} is asked to let it go", partition=operation.partition, epoch=epoch)


def _result(before: int, after: int, owner: str) -> dict[str, object]:
    return {"epochBefore": before, "epochAfter": after, "owner": owner}
