"""Which owners are to be asked now to hand a partition over. Pure.

A planned move costs its partition a pause and its requests nothing, so it is worth having where it is asked for,
and not worth having twice: what fails over must not go back and forth.

Invariants:
  * A few moves of a KVNamespace are under way at a time.
  * Nothing moves to a pod that is not in sync, and nothing moves that was not calm for a while: the same owner,
    the same sessions at both ends, nothing wrong.
  * What moves for balance alone leaves the owner's pod with no fewer partitions than the target then has, so that
    no move is ever undone by another one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from fencekv_operator.placing import Preference

Space = tuple[str, str]  # Kubernetes namespace and KVNamespace

# Moves that are under way together make each other's pauses longer; one after the other, many would take too long.
OWNER_MOVES_AT_ONCE_MAX: Final = 4
OWNER_MOVES_IN_A_ROW: Final = 20
# How long nothing may have changed before an owner is moved: soon where rules demand it, later where they wish it.
SETTLED_SECONDS: Final = 2.0
CALM_SECONDS: Final = 30.0
# A move that was asked for and did not come to its end counts as under way for so long, and is not asked for again
# for longer.
MOVE_SECONDS_MAX: Final = 10.0
RETRY_SECONDS: Final = 60.0
BALANCE_MIN: Final = 2  # by how many partitions the owner's pod must be ahead of the target


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A partition whose owner is not its first pod, while the first pod could own it."""

    namespace: str  # Kubernetes namespace
    name: str
    uid: str
    kvns: str
    owner: str  # pod
    target: str  # pod
    epoch: int
    http: str  # of the owner
    preference: Preference
    calm_seconds: float

    @property
    def space(self) -> Space:
        """Whose limit it counts against."""
        return self.namespace, self.kvns


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A move that was asked for."""

    space: Space
    epoch: int
    at: float  # on the operator's own clock
    owner: str
    target: str


def next_moves(
    candidates: Iterable[Candidate],
    *,
    owned: Mapping[Space, Mapping[str, int]],
    asked: Mapping[str, Asked],
    epochs: Mapping[str, int],
    now: float,
) -> list[Candidate]:
    """The moves to ask for now, the most wanted first.

    `owned` is how many partitions each pod owns, `asked` holds earlier requests by the partition's UID, and
    `epochs` the present epoch of those partitions: a move is at its end once the epoch is higher.
    """
    counts = {space: dict(pods) for space, pods in owned.items()}
    underway: dict[Space, int] = {}
    for uid, one in asked.items():
        if epochs.get(uid, one.epoch) == one.epoch and now < one.at + MOVE_SECONDS_MAX:
            underway[one.space] = underway.get(one.space, 0) + 1
            _count(counts, one.space, one.owner, one.target)
    chosen: list[Candidate] = []
    candidates = list(candidates)
    waiting = Counter(one.space for one in candidates)
    for each in sorted(candidates, key=lambda one: (-one.preference, -one.calm_seconds, one.namespace, one.name)):
        last = asked.get(each.uid)
        if last is not None and last.epoch == each.epoch and now < last.at + RETRY_SECONDS:
            continue
        at_once = min(OWNER_MOVES_AT_ONCE_MAX, 1 + waiting[each.space] // OWNER_MOVES_IN_A_ROW)
        if underway.get(each.space, 0) >= at_once or not _is_wanted(each, counts):
            continue
        underway[each.space] = underway.get(each.space, 0) + 1
        _count(counts, each.space, each.owner, each.target)
        chosen.append(each)
    return chosen


def _is_wanted(each: Candidate, counts: Mapping[Space, Mapping[str, int]]) -> bool:
    if each.preference is Preference.NONE or each.owner == each.target:
        return False
    if each.preference is Preference.REQUIRED:
        return each.calm_seconds >= SETTLED_SECONDS
    if each.calm_seconds < CALM_SECONDS:
        return False
    if each.preference is Preference.PREFERRED:
        return True
    pods = counts.get(each.space, {})
    return pods.get(each.owner, 0) - pods.get(each.target, 0) >= BALANCE_MIN


def _count(counts: dict[Space, dict[str, int]], space: Space, owner: str, target: str) -> None:
    pods = counts.setdefault(space, {})
    pods[owner] = pods.get(owner, 0) - 1
    pods[target] = pods.get(target, 0) + 1
