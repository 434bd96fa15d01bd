"""Whether all replicas of a partition hold the same journal, compared by hash.

The chain hash of an entry covers every entry up to it. So one hash of each replica, at a seq that all have, says
whether they are the same; where they are not, halving finds the first entry that differs.

Invariants:
  * Replicas are compared up to what is committed: what lies above may still be cut off, and rightly so.
  * `Same` is said only if every replica that the partition should have gave its hash.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fencekv_operator.reports import OWNING, Replica

SAME: Final = "Same"
DIFFERENT: Final = "Different"
INCOMPLETE: Final = "Incomplete"
HALVINGS_MAX: Final = 64
PARTITIONS_SHOWN_MAX: Final = 64

Chain = Callable[[str, int], Awaitable[str | None]]
"""The chain hash of the entry `seq` at a pod; None: no answer, or it does not have that entry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What was found of one partition. `seq`: up to where they agree, or the first entry that differs."""

    partition: str
    verdict: str
    seq: int
    message: str

    def document(self) -> dict[str, Any]:
        """As the status carries it."""
        return {
            "partition": self.partition,
            "verdict": self.verdict,
            "seq": self.seq,
            "message": self.message[:512],
        }


def common_seq(replicas: Mapping[str, Replica]) -> int:
    """The last committed seq that every replica has; -1: there is none."""
    committed = max((one.commit_seq for one in replicas.values()), default=-1)
    owners = [one.commit_seq for one in replicas.values() if one.role in OWNING]
    return min(min((one.last_seq for one in replicas.values()), default=-1), *(owners or [committed]))


async def compare(
    partition: str, replicas: Mapping[str, Replica], *, wanted: Sequence[str], chain: Chain
) -> Compared:
    """Compares the replicas (by pod) of a partition that should have one on each `wanted` pod."""
    missing = sorted(set(wanted) - replicas.keys())
    seq = common_seq(replicas)

    def found(verdict: str, at: int, message: str) -> Compared:
        return Compared(partition=partition, verdict=verdict, seq=at, message=message)

    if len(replicas) == 0 or seq < 0:
        return found(INCOMPLETE, seq, f"nothing to compare; no report of {', '.join(missing) or 'anybody'}")
    hashes = {pod: await chain(pod, seq) for pod in sorted(replicas)}
    silent = [pod for pod, one in hashes.items() if one is None]
    told = {pod: one for pod, one in hashes.items() if one is not None}
    if len(set(told.values())) > 1:
        first, odd = await _first_difference(told, replicas, seq, chain)
        return found(DIFFERENT, first, f"{', '.join(odd)} differs from the owner at seq {first}")
    if silent or missing:
        return found(INCOMPLETE, seq, f"no hash of {', '.join(sorted({*silent, *missing}))}")
    return found(SAME, seq, f"{len(told)} replicas agree")


async def _first_difference(
    told: Mapping[str, str], replicas: Mapping[str, Replica], seq: int, chain: Chain
) -> tuple[int, list[str]]:
    """The first seq at which a replica differs from the owner, and who does at the seq given."""
    owner = next((pod for pod in told if replicas[pod].role in OWNING), min(told))
    odd = sorted(pod for pod in told if told[pod] != told[owner])
    low, high = -1, seq  # they agree at low, and differ at high
    for _ in range(HALVINGS_MAX):
        if high - low <= 1:
            break
        middle = (low + high) // 2
        ours, theirs = await chain(owner, middle), await chain(odd[0], middle)
        if ours is None or theirs is None or ours == theirs:
            low = middle  # trimmed, so it was committed and is the same
        else:
            high = middle
    return high, odd


def result(compared: Sequence[Compared]) -> dict[str, Any]:
    """The result of an operation over several partitions, the worst first."""
    order = (DIFFERENT, INCOMPLETE, SAME)
    ranked = sorted(compared, key=lambda one: (order.index(one.verdict), one.partition))
    verdict = ranked[0].verdict if ranked else INCOMPLETE
    return {"verdict": verdict, "partitions": [one.document() for one in ranked[:PARTITIONS_SHOWN_MAX]]}


def summary(compared: Sequence[Compared]) -> str:
    """A sentence over all of them."""
    if not compared:
        return "there is no partition to compare"
    bad = [one for one in compared if one.verdict != SAME]
    if not bad:
        return f"all replicas of {len(compared)} partitions hold the same journal"
    return "; ".join(f"{one.partition}: {one.message}" for one in bad[:5])
