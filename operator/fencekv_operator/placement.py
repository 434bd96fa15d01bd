"""Which pods hold which partition.

Invariants:
  * A placement that stands changes only where it must: too few replicas, too many, one on a pod that is to go or
    is away, or rules that say so. What can stay under the rules stays.
  * A change adds before it removes. What it removes is neither the owner nor needed: the replicas that stay hold
    as many in-sync copies as the table wants, or lose none.
  * Where there is no better place, a replica stays where it is.
  * The first pod of a placement is preferred as owner. It changes only where it cannot stay, or where rules name
    another one.
  * Repeated steps come to rest (`tests/operator/test_placement_properties.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

from fencekv_operator.rules import Fit, Place, Rules, Spread

ANYWHERE: Final = Rules()


@dataclass(slots=True)
class Load:
    """How many replicas each pod holds, how many it is preferred to own, and for whom it stands by."""

    owners: dict[str, int] = field(default_factory=dict)
    replicas: dict[str, int] = field(default_factory=dict)
    pairs: dict[tuple[str, str], int] = field(default_factory=dict)  # by owner and standby
    heirs: dict[tuple[str, str], int] = field(default_factory=dict)  # by owner and first standby

    @classmethod
    def of(cls, placements: Iterable[Sequence[str]]) -> Load:
        """The load of placements that stand."""
        load = cls()
        for placement in placements:
            load.add(placement)
        return load

    def add(self, placement: Sequence[str]) -> None:
        """Counts one more placement."""
        for position, pod in enumerate(placement):
            self.replicas[pod] = self.replicas.get(pod, 0) + 1
            if position == 0:
                self.owners[pod] = self.owners.get(pod, 0) + 1
            else:
                pair = (placement[0], pod)
                self.pairs[pair] = self.pairs.get(pair, 0) + 1
                if position == 1:
                    self.heirs[pair] = self.heirs.get(pair, 0) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A placement that stands, and what is known of who holds what."""

    replicas: tuple[str, ...]
    owner: str  # pod, or empty: nobody owns it.
    in_sync: frozenset[str]  # pods


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """Pods and rules, prepared for many partitions that share them."""

    places: tuple[Place, ...]
    rules: Rules
    by_pod: dict[str, Place]
    fits: dict[str, Fit]
    room: tuple[Place, ...]  # where a new replica may go

    @classmethod
    def of(cls, places: Iterable[Place], rules: Rules = ANYWHERE) -> Self:
        """The ground that `places` are under `rules`."""
        found = tuple(places)
        return cls(
            places=found,
            rules=rules,
            by_pod={place.pod: place for place in found},
            fits={place.pod: rules.fit(place) for place in found},
            room=tuple(place for place in found if rules.placeable(place)),
        )

    def may_stay(self, pod: str) -> bool:
        """Whether a replica that a pod holds may stay there."""
        return self.fits.get(pod, Fit.NO) is not Fit.NO


def place(*, size: int, ground: Ground, load: Load) -> tuple[str, ...]:
    """A placement for a new partition: as many different pods as `size`, or as may be. Counts it in `load`.

    Empty: no pod may hold it.
    """
    nobody = Placed(replicas=(), owner="", in_sync=frozenset())
    placement = goal(nobody, size=size, ground=ground, load=load)
    load.add(placement)
    return placement


def goal(placed: Placed, *, size: int, ground: Ground, load: Load) -> tuple[str, ...]:
    """Where a partition is to be in the end; fewer than `size` pods where the rules or the pods leave no more."""
    standing = placed.replicas
    if _stands(placed, size, ground):
        return standing
    pool = [place for place in ground.places if place in ground.room or _stays(place, standing, ground)]
    chosen: list[Place] = []
    pinned = next((place for place in pool if place.pod == ground.rules.owner), None)
    if pinned is not None and size > 0:
        chosen.append(pinned)
    while len(chosen) < size:
        free = [place for place in pool if place not in chosen and ground.rules.apart(place, chosen)]
        if not free:
            break
        chosen.append(_next(chosen, free, placed, ground, load))
    pods = [place.pod for place in chosen]
    stays = [pod for pod in standing if pod in pods]
    first = pinned.pod if pinned else stays[0] if stays else pods[0] if pods else ""
    rest = [*stays, *(pod for pod in pods if pod not in stays)]
    return tuple(dict.fromkeys([first, *rest] if first else rest))


def adjust(placed: Placed, *, size: int, min_in_sync: int, ground: Ground, load: Load) -> tuple[str, ...]:
    """The placement after the next step towards `goal`; the same if there is none."""
    target = goal(placed, size=size, ground=ground, load=load)
    added = [pod for pod in target if pod not in placed.replicas]
    if added:
        for pod in added:
            load.replicas[pod] = load.replicas.get(pod, 0) + 1
        kept = placed.replicas
    else:
        kept = _shrunk(placed, target, min(size, len(ground.places)), min_in_sync, ground)
    # Where the rules leave too little room, who is preferred does not change with who happens to own it.
    is_whole = len(target) >= min(size, len(ground.places))
    first = target[0] if target and (is_whole or target[0] == ground.rules.owner) else kept[0]
    return tuple(dict.fromkeys((first, *kept, *added)))


def preferring(replicas: Sequence[str], pod: str) -> tuple[str, ...]:
    """The same placement with `pod`, which is one of it, preferred as owner."""
    assert pod in replicas, (pod, replicas)
    return tuple(dict.fromkeys((pod, *replicas)))


def _stays(place: Place, standing: Sequence[str], ground: Ground) -> bool:
    return place.pod in standing and ground.may_stay(place.pod)


def _stands(placed: Placed, size: int, ground: Ground) -> bool:
    """Whether a placement is as wanted. Nearly all are, nearly always."""
    rules, standing = ground.rules, placed.replicas
    if len(standing) != size or not all(ground.may_stay(pod) for pod in standing):
        return False
    if rules.owner != standing[0] and any(place.pod == rules.owner for place in ground.room):
        return False
    liked = rules.preferred
    if (liked.pods or liked.zones) and not all(_liked(ground.by_pod[pod], rules) == (0, 0) for pod in standing):
        return False
    if Spread.REQUIRED not in {rules.zones, rules.nodes}:
        return True
    places = [ground.by_pod[pod] for pod in standing]
    return all(rules.apart(place, places[:position]) for position, place in enumerate(places))


def _liked(place: Place, rules: Rules) -> tuple[int, int]:
    """How far a pod is from what is preferred; (0, 0): it is what is preferred."""
    liked = rules.preferred
    return (
        int(bool(liked.pods) and place.pod not in liked.pods),
        int(bool(liked.zones) and bool(place.zone) and place.zone not in liked.zones),
    )


def _next(chosen: Sequence[Place], free: Sequence[Place], placed: Placed, ground: Ground, load: Load) -> Place:
    """The best further pod. What counts, in this order: what is preferred, what stands, another zone, another
    node, the least loaded, the rarest with this owner, the rarest as its heir, the next. A lost owner's partitions
    should not all fall to the same standby: of those that hold all the same, the first placed takes over.
    """
    zones = {place.zone for place in chosen if place.zone} if ground.rules.zones is not Spread.IGNORED else set()
    nodes = {place.node for place in chosen if place.node} if ground.rules.nodes is not Spread.IGNORED else set()
    order = {place.pod: position for position, place in enumerate(ground.places)}
    counts = load.replicas if chosen else load.owners
    start = order[chosen[-1].pod] if chosen else -1
    owner = chosen[0].pod if chosen else ""

    def worth(pod: str) -> tuple[int, int]:
        """What is lost if a replica does not stay: the owner is worth most, then one in sync."""
        if pod not in placed.replicas:
            return 3, 0
        rank = 0 if pod == placed.owner else 1 if pod in placed.in_sync else 2
        return rank, placed.replicas.index(pod)

    def cost(place: Place) -> tuple[object, ...]:
        pod = place.pod
        circle = (order[pod] - start - 1) % len(order)
        return (
            *_liked(place, ground.rules),
            worth(pod),
            place.zone in zones,
            place.node in nodes,
            counts.get(pod, 0),
            load.replicas.get(pod, 0),
            load.pairs.get((owner, pod), 0),
            load.heirs.get((owner, pod), 0) if len(chosen) == 1 else 0,
            circle,
        )

    return min(free, key=cost)


def _shrunk(placed: Placed, target: Sequence[str], size: int, min_in_sync: int, ground: Ground) -> tuple[str, ...]:
    """Drops what is surplus: first pods that are to go, then those not in sync, then the last placed."""
    if not placed.owner:
        return placed.replicas
    kept = list(placed.replicas)

    def worth(pod: str) -> tuple[bool, bool, int]:
        return pod in ground.by_pod, pod in placed.in_sync, -placed.replicas.index(pod)

    for pod in sorted((pod for pod in kept if pod not in target and pod != placed.owner), key=worth):
        rest = [other for other in kept if other != pod]
        in_sync = [other for other in rest if other in placed.in_sync]
        needed = size if pod in placed.in_sync else 1 + min(min_in_sync, size - 1)
        if len(rest) >= size and len(in_sync) >= needed:
            kept = rest
    return tuple(kept)
