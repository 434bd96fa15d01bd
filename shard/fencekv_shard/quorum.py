"""Which change of the in-sync set an owner should ask for next, and for which standbys it waits. Pure.

Invariants (`check_invariants` holds the first two over every change):
  * The owner is always a member.
  * A change never leaves fewer than minInSync standbys, unless there were fewer before and it only adds.
  * A standby is counted before it becomes a member, and a member until it is certain that it is none: so the
    counted ones are always a superset of the members other than the owner.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from fencekv.leases import pod_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Standby:
    """What the owner knows of a replica: connected ones, and members it has not heard of."""

    caught_up: bool
    silent_seconds: float  # heard slices without a word; a long pause of the owner itself counts as one slice
    session_over: bool = False


def next_set(
    *,
    own: str,
    members: Collection[str],
    counted: Collection[str],
    standbys: Mapping[str, Standby],
    replicas: Collection[str],
    min_in_sync: int,
    timeout_seconds: float,
) -> tuple[str, ...] | None:
    """The set to ask for, sorted; None: all is as it should be.

    The answer can equal `members`: then a standby is counted that did not make it into the set, and only a CAS
    that succeeds makes certain that its join cannot land any more.
    """
    joining = {
        member
        for member, standby in standbys.items()
        if member not in members
        and standby.caught_up
        and standby.silent_seconds < timeout_seconds
        and not standby.session_over
        and pod_of(member) in replicas
    }
    if joining:
        return _checked(own, members, {*members, *joining}, min_in_sync)
    leaving = sorted(
        member for member in members if member != own and _gone(member, standbys, replicas, timeout_seconds)
    )
    kept = set(members)
    for member in leaving:
        if len(kept) - 2 >= min_in_sync:
            kept.discard(member)
    if kept != set(members) or {*counted, own} - {*members}:
        return _checked(own, members, kept, min_in_sync)
    return None


def is_needed(member: str, *, members: Collection[str], has_epoch: bool, min_in_sync: int) -> bool:
    """Whether the owner may wait for this replica to follow: to open its epoch, or to acknowledge.

    `has_epoch`: whether the replica has an entry of the owner's epoch.
    """
    standbys = len(members) - 1
    if member in members:
        return not has_epoch or standbys <= min_in_sync
    return standbys < max(1, min_in_sync)


def _gone(member: str, standbys: Mapping[str, Standby], replicas: Collection[str], timeout_seconds: float) -> bool:
    standby = standbys.get(member)
    if standby is None:
        return False  # not judged yet
    return standby.session_over or standby.silent_seconds >= timeout_seconds or pod_of(member) not in replicas


def _checked(own: str, before: Collection[str], after: Collection[str], min_in_sync: int) -> tuple[str, ...]:
    assert own in after, (own, after)
    shrinks = bool(set(before) - set(after))
    assert not shrinks or len(after) - 1 >= min_in_sync, (before, after, min_in_sync)
    return tuple(sorted(after))
