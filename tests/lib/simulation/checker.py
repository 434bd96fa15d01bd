"""What must hold for every history of a simulated FenceKV, whatever happened to it.

What clients asked and were told is judged by `fencekv.linearizable`, as a drill's history is; here are the checks
that need more than a client sees: the ownership record's own history in the API server, what shards acknowledged,
and the journal that is left when all is quiet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fencekv.linearizable import (
    History,
    Kind,
    Operation,
    Outcome,
    Value,
    Version,
    check_linearizable,
    check_versions,
    linearizable,
    step,
)

__all__ = [
    "Acknowledgement",
    "Grant",
    "History",
    "JournalEntry",
    "Kind",
    "Operation",
    "Outcome",
    "Value",
    "Version",
    "check_journal",
    "check_linearizable",
    "check_owners",
    "check_versions",
    "linearizable",
    "step",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """One state of a partition Lease in the API server's history."""

    partition: str
    epoch: int
    holder: str  # a session, or empty
    time: float = 0.0  # when it was committed


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledgement:
    """A shard's word that a write is done; whether it reached a client does not matter."""

    partition: str
    epoch: int  # under which it was given; a repeated write has an older version
    pod: str
    time: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """One entry of the journal that is left: what it wrote."""

    epoch: int
    writes: Mapping[str, Value] = field(default_factory=dict)


def check_owners(grants: Iterable[Grant], acknowledgements: Iterable[Acknowledgement] = ()) -> list[str]:
    """No (partition, epoch) has two owners; epochs only rise; each acknowledgement is its epoch's owner's own, and
    none comes after a higher epoch was granted to another session.
    """
    bad: list[str] = []
    granted: dict[str, dict[int, Grant]] = {}
    highest: dict[str, int] = {}
    for grant in grants:
        if not grant.holder:
            continue
        known = granted.setdefault(grant.partition, {})
        if grant.epoch not in known and grant.epoch < highest.get(grant.partition, 0):
            bad.append(f"{grant.partition}: epoch fell from {highest[grant.partition]} to {grant.epoch}")
        held = known.setdefault(grant.epoch, grant)
        if held.holder != grant.holder:
            bad.append(f"{grant.partition} epoch {grant.epoch} has two owners: {held.holder}, {grant.holder}")
        highest[grant.partition] = max(grant.epoch, highest.get(grant.partition, 0))
    for one in acknowledgements:
        of_partition = granted.get(one.partition, {})
        owner = of_partition.get(one.epoch)
        if owner is None:
            bad.append(f"acknowledged under an epoch that was never granted: {one}")
            continue
        if owner.holder.split("/")[0] != one.pod:
            bad.append(f"acknowledged under the epoch of {owner.holder}: {one}")
        # A lost record is written anew with a higher epoch for the same session: that takes nothing from it.
        taken = [g for g in of_partition.values() if g.epoch > one.epoch and g.holder != owner.holder]
        late = [g for g in taken if g.time < one.time]
        bad += [f"acknowledged after the right to write was lost: {one}; {g}" for g in late[:1]]
    return bad


def check_journal(history: History, journals: Mapping[str, Sequence[JournalEntry]]) -> list[str]:
    """No acknowledged write is lost, and no read showed what is not in the journal that is left.

    `journals`: for each key the final journal of its partition, by seq.
    """
    bad: list[str] = []
    for one in history.operations:
        if one.outcome is not Outcome.OK or one.version is None:
            continue
        if one.kind is not Kind.GET and not one.replicated:
            continue
        epoch, seq = one.version
        journal = journals[one.key]
        entry = journal[seq] if 0 <= seq < len(journal) else None
        there = entry is not None and entry.epoch == epoch and one.key in entry.writes
        if entry is None or not there or entry.writes[one.key] != one.value:
            what = "a read showed what was taken back" if one.kind is Kind.GET else "acknowledged write lost"
            bad.append(f"{what}: {one}; the journal has {entry}")
    return bad
