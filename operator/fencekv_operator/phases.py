"""How long each part of an owner change took, on this operator's own clock. Pure.

    last renewal heard -> noticed -> proven over -> granted -> serving

A part ends when this operator learns of it: a renewal is heard once a second, a serving owner by the next report.
A planned move and a lost record have no silent session, and so only the last two parts.

Invariants:
  * What is remembered of changes that are under way is bounded; the oldest is forgotten first.
"""

from __future__ import annotations

import enum
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from fencekv.exposition import Histogram
from fencekv.leases import Session
from fencekv_operator.facts import Reason
from fencekv_operator.reports import Replica

K = TypeVar("K")
V = TypeVar("V")

REMEMBERED_MAX: Final = 4096
BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 30.0, 60.0)


class Phase(enum.StrEnum):
    """A part of an owner change."""

    NOTICED = "noticed"  # from the last renewal heard to the first doubt
    PROVEN = "proven"  # to the proof that the session is over, fenced where that is due
    GRANTED = "granted"  # to the grant on the partition Lease
    SERVING = "serving"  # to the first report of the new owner that it serves


@dataclass(frozen=True, slots=True)
class _Grant:
    epoch: int
    reason: Reason
    at: float


class Phases:
    """What one operator process has seen. Moments are seconds of its clock."""

    def __init__(self) -> None:
        self.changes: Counter[Reason] = Counter()
        self.seconds: dict[tuple[Phase, Reason], Histogram] = {}
        self._doubted: OrderedDict[Session, float] = OrderedDict()
        self._over: OrderedDict[Session, float] = OrderedDict()
        self._grants: OrderedDict[str, _Grant] = OrderedDict()  # by partition UID, until it is served

    def doubted(self, session: Session, *, heard_at: float, at: float) -> None:
        """A session is looked at for proof of its end; the first time since its last renewal counts."""
        if self._doubted.get(session, heard_at - 1) < heard_at:
            _remember(self._doubted, session, at)

    def over(self, session: Session, reason: Reason, *, heard_at: float, at: float) -> None:
        """A session is proven over; `heard_at`: when the last renewal of it was heard."""
        doubted = max(self._doubted.pop(session, at), heard_at)
        self._add(Phase.NOTICED, reason, doubted - heard_at)
        self._add(Phase.PROVEN, reason, at - doubted)
        _remember(self._over, session, at)

    def granted(
        self, uid: str, *, epoch: int, reason: Reason, before: Session | None, began: float, at: float
    ) -> None:
        """A partition was granted; `before`: its earlier owner's session, `began`: when a grant was wanted."""
        self.changes[reason] += 1
        if reason is Reason.CREATED:
            return
        since = max(began, self._over.get(before, began)) if before is not None else began
        self._add(Phase.GRANTED, reason, at - since)
        _remember(self._grants, uid, _Grant(epoch, reason, at))

    def reported(self, replicas: Mapping[str, Replica], *, at: float) -> None:
        """A shard reported its replicas (by partition UID)."""
        for uid in [uid for uid in self._grants if uid in replicas]:
            grant, replica = self._grants[uid], replicas[uid]
            if replica.serving and replica.epoch >= grant.epoch:
                self._add(Phase.SERVING, grant.reason, at - grant.at)
                del self._grants[uid]

    def _add(self, phase: Phase, reason: Reason, seconds: float) -> None:
        histogram = self.seconds.get((phase, reason))
        if histogram is None:
            histogram = self.seconds[phase, reason] = Histogram(BUCKETS)
        histogram.add(max(0.0, seconds))


def _remember(memory: OrderedDict[K, V], key: K, value: V) -> None:
    memory[key] = value
    memory.move_to_end(key)
    while len(memory) > REMEMBERED_MAX:
        memory.popitem(last=False)
