"""Which pods hold which partition.

Invariants:
  * A placement that stands changes only where it must: too few replicas, too many, or one on a pod that is to go.
  * A change adds before it removes, and what it removes is neither the owner nor needed: what stays holds the
    owner and at least the in-sync standbys that the table asks for.
  * The first pod of a placement is preferred as owner; a later change never moves it while it stays.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A pod that may hold replicas, and where it runs."""

    pod: str
    node: str = ""  # empty: not known
    zone: str = ""  # empty: not known


@dataclass(slots=True)
class Load:
    """How many replicas each pod holds, how many it is preferred to own, and for whom it stands by."""

    owners: dict[str, int] = field(default_factory=dict)
    replicas: dict[str, int] = field(default_factory=dict)
    pairs: dict[tuple[str, str], int] = field(default_factory=dict)  # by owner and standby

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A placement that stands, and what is known of who holds what."""

    replicas: tuple[str, ...]
    owner: str  # pod, or empty: nobody owns it.
    in_sync: frozenset[str]  # pods


def place(*, size: int, places: Sequence[Place], load: Load) -> tuple[str, ...]:
    """A placement for a new partition: as many different pods as `size`, or as there are. Counts it in `load`."""
    assert places, size
    chosen: list[Place] = []
    while len(chosen) < min(size, len(places)):
        chosen.append(_next(chosen, places, load))
    placement = tuple(place.pod for place in chosen)
    load.add(placement)
    return placement


def adjust(placed: Placed, *, size: int, min_in_sync: int, places: Sequence[Place], load: Load) -> tuple[str, ...]:
    """The placement after the next step towards `size` replicas on `places`; the same if there is none."""
    wanted = [place for place in places if place.pod in placed.replicas]
    wanted.sort(key=lambda place: placed.replicas.index(place.pod))
    target = min(size, len(places))
    if len(wanted) < target:
        return _grown(placed, wanted, target, places, load)
    if len(placed.replicas) > target:
        return _shrunk(placed, target, {place.pod for place in places}, min_in_sync)
    return placed.replicas


def may_stop(placed: Placed, *, pod: str, min_in_sync: int) -> bool:
    """Whether a pod that is to go for good may be stopped, as far as this partition is concerned.

    Also the owner may: stopping, it hands over to a member of the in-sync set. Without another one it may not.
    """
    if pod not in placed.replicas and pod not in placed.in_sync and pod != placed.owner:
        return True
    others = [other for other in placed.replicas if other in placed.in_sync and other != pod]
    return len(others) >= 1 + min_in_sync


def _next(chosen: Sequence[Place], places: Sequence[Place], load: Load) -> Place:
    """The best further pod: another zone, another node, the least loaded, the rarest with this owner, the next.

    A lost owner's partitions should not all fall to the same standby.
    """
    zones = {place.zone for place in chosen if place.zone}
    nodes = {place.node for place in chosen if place.node}
    taken = {place.pod for place in chosen}
    counts = load.replicas if chosen else load.owners
    start = next((i for i, place in enumerate(places) if chosen and place.pod == chosen[-1].pod), -1)

    def cost(position: int) -> tuple[bool, bool, int, int, int, int]:
        place = places[position]
        circle = (position - start - 1) % len(places)
        held = load.replicas.get(place.pod, 0)
        paired = load.pairs.get((chosen[0].pod, place.pod), 0) if chosen else 0
        return place.zone in zones, place.node in nodes, counts.get(place.pod, 0), held, paired, circle

    free = [position for position, place in enumerate(places) if place.pod not in taken]
    return places[min(free, key=cost)]


def _grown(
    placed: Placed, wanted: Sequence[Place], target: int, places: Sequence[Place], load: Load
) -> tuple[str, ...]:
    chosen = list(wanted)
    added: list[str] = []
    while len(chosen) < target:
        following = _next(chosen, places, load)
        chosen.append(following)
        added.append(following.pod)
        load.replicas[following.pod] = load.replicas.get(following.pod, 0) + 1
    return (*placed.replicas, *added)


def _shrunk(placed: Placed, target: int, staying: Collection[str], min_in_sync: int) -> tuple[str, ...]:
    """Drops what is surplus: first pods that are to go, then those not in sync, then the last placed."""

    def worth(position: int) -> tuple[bool, bool, bool, int]:
        pod = placed.replicas[position]
        return pod == placed.owner, pod in staying, pod in placed.in_sync, -position

    kept = set(placed.replicas)
    for position in sorted(range(len(placed.replicas)), key=worth):
        pod = placed.replicas[position]
        # An owner that is to go does not count: its place is taken by who was added for it.
        enough = len(kept & set(staying)) <= target if pod in staying else len(kept) <= target
        if enough or pod == placed.owner:
            break
        standbys = [other for other in kept if other in placed.in_sync and other not in {placed.owner, pod}]
        needed = min(target - 1, max(min_in_sync, int(pod in placed.in_sync)))
        if not placed.owner or len(standbys) < needed:
            break
        kept.discard(pod)
    return tuple(pod for pod in placed.replicas if pod in kept)
