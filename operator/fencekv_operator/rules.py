"""What a KVTable asks of the places of its partitions: `spec.placement`, as values.

Three strengths, and nothing between them:
  * required: a pod that does not keep it holds no replica. Where it cannot be kept, the partition stays where it
    is, and `lacking` says what is missing.
  * preferred: replicas and owners are moved to keep it, as far as what is required allows.
  * spread under `Preferred`: counts where a replica is to be placed anyway, and moves nothing.

Invariants:
  * What is not known of a pod (its node, its zone, its node's labels) is neither for nor against a replica that it
    holds already, because a pod that starts anew has no node for a while; a new replica it does not get.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

NAMES_SHOWN_MAX: Final = 5


class Spread(enum.StrEnum):
    """How far replicas of a partition are to be apart."""

    REQUIRED = "Required"
    PREFERRED = "Preferred"
    IGNORED = "Ignored"


class Fit(enum.Enum):
    """Whether a pod may hold a replica, as far as the rules go that name pods, zones and labels."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A pod that may hold replicas, and where it runs."""

    pod: str
    node: str = ""  # empty: not known
    zone: str = ""  # empty: not known
    labels: Mapping[str, str] | None = None  # of the node. None: not known
    away: bool = False  # gone for so long that its replicas are made anew elsewhere


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """Where a partition should be. Empty: anywhere."""

    owner: str = ""  # pod
    pods: frozenset[str] = frozenset()
    zones: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, spec: Mapping[str, Any] | None) -> Self:
        """Reads `required` or `preferred`."""
        spec = spec or {}
        return cls(
            owner=spec.get("owner", ""),
            pods=frozenset(spec.get("pods") or ()),
            zones=frozenset(spec.get("zones") or ()),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """All that holds for one partition."""

    zones: Spread = Spread.PREFERRED
    nodes: Spread = Spread.PREFERRED
    node_labels: Mapping[str, str] = field(default_factory=dict)
    excluded_pods: frozenset[str] = frozenset()
    excluded_zones: frozenset[str] = frozenset()
    required: Wish = Wish()
    preferred: Wish = Wish()

    @property
    def owner(self) -> str:
        """The pod that is to own the partition, by a pin or else by preference; empty: any."""
        return self.required.owner or self.preferred.owner

    def fit(self, place: Place) -> Fit:
        """Whether a pod may hold a replica."""
        must = self.required
        if place.away or place.pod in self.excluded_pods or (must.pods and place.pod not in must.pods):
            return Fit.NO
        known = True
        if self.excluded_zones or must.zones:
            known = bool(place.zone)
            if known and (place.zone in self.excluded_zones or (must.zones and place.zone not in must.zones)):
                return Fit.NO
        if self.node_labels:
            if place.labels is not None and not self.node_labels.items() <= place.labels.items():
                return Fit.NO
            known = known and place.labels is not None
        return Fit.YES if known else Fit.UNKNOWN

    def apart(self, place: Place, others: Iterable[Place]) -> bool:
        """Whether a pod is as far from the others as is required. One whose zone or node is unknown is."""
        return not any(
            (self.zones is Spread.REQUIRED and place.zone and place.zone == other.zone)
            or (self.nodes is Spread.REQUIRED and place.node and place.node == other.node)
            for other in others
        )

    def placeable(self, place: Place) -> bool:
        """Whether enough is known of a pod to give it a new replica."""
        return (
            self.fit(place) is Fit.YES
            and (self.zones is not Spread.REQUIRED or bool(place.zone))
            and (self.nodes is not Spread.REQUIRED or bool(place.node))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TablePlacement:
    """`KVTable.spec.placement`."""

    common: Rules = Rules()
    entries: tuple[tuple[int, int, Rules], ...] = ()  # first and last partition, and their rules

    @classmethod
    def parse(cls, spec: Mapping[str, Any] | None) -> Self:
        """Reads `spec.placement`, which the API server has checked."""
        spec = spec or {}
        spread = spec.get("spread") or {}
        common = Rules(
            zones=Spread(spread.get("zone", Spread.PREFERRED)),
            nodes=Spread(spread.get("node", Spread.PREFERRED)),
            node_labels=dict(spec.get("nodeSelector") or {}),
            excluded_pods=frozenset(spec.get("excludePods") or ()),
            excluded_zones=frozenset(spec.get("excludeZones") or ()),
        )
        return cls(common=common, entries=tuple(_entry(each, common) for each in spec.get("partitions") or ()))

    def of(self, index: int) -> Rules:
        """The rules of one partition: of several entries that name it the first counts."""
        found = (rules for first, last, rules in self.entries if first <= index <= last)
        return next(found, self.common)


def lacking(rules: Rules, *, size: int, places: Sequence[Place], room: int) -> list[str]:
    """What is missing so that the required rules could be kept; empty: nothing. Sentences for people.

    `room` is how many replicas can be placed under them.
    """
    by_pod = {place.pod: place for place in places}
    must, found = rules.required, list[str]()
    for pod in sorted({must.owner, *must.pods} - {""}):
        place = by_pod.get(pod)
        if place is None:
            found.append(f"there is no pod {pod}")
        elif place.away:
            found.append(f"pod {pod} is away")
    owner = by_pod.get(must.owner)
    if owner is not None and not owner.away and rules.fit(owner) is Fit.NO:
        found.append(f"pod {must.owner} is to own it, and other rules keep it away from there")
    known = {place.zone for place in places if place.zone and not place.away}
    empty = sorted(must.zones - known)
    if empty:
        found.append(f"no pod runs in zone {_names(empty)}")
    labelled = [place for place in places if rules.node_labels.items() <= (place.labels or {}).items()]
    if rules.node_labels and not labelled:
        wanted = ",".join(f"{key}={value}" for key, value in sorted(rules.node_labels.items()))
        found.append(f"no pod runs on a node with {wanted}")
    wanted_size = min(size, len(places))
    if room < wanted_size and not found:
        found.append(f"{wanted_size} replicas are wanted, the rules leave room for {room}")
        if rules.zones is Spread.REQUIRED:
            found[-1] += f" (zones with pods: {_names(sorted(known)) or 'none known'})"
    return found


def _entry(spec: Mapping[str, Any], common: Rules) -> tuple[int, int, Rules]:
    span = spec.get("range") or {}
    first = int(spec["index"] if "index" in spec else span["first"])
    rules = replace(common, required=Wish.parse(spec.get("required")), preferred=Wish.parse(spec.get("preferred")))
    return first, int(span.get("last", first)), rules


def _names(names: Sequence[str]) -> str:
    more = len(names) - NAMES_SHOWN_MAX
    shown = ", ".join(names[:NAMES_SHOWN_MAX])
    return f"{shown} and {more} more" if more > 0 else shown
