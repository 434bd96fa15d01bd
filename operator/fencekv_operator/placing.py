"""The next step of a table's partitions towards their places, and how much an owner is wanted elsewhere. Pure.

Invariants:
  * A few partitions of a KVNamespace at a time get further copies; those that wait get theirs later, in order.
  * What is decided here rests on specs and statuses alone, so `kubectl fencekv plan`, which sees the same objects,
    comes to the same steps.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from fencekv_operator.placement import Ground, Load, Placed, adjust, goal, place
from fencekv_operator.rules import Place, Rules, lacking
from fencekv_operator.settings import TableSettings

Object = dict[str, Any]

# Partitions of a KVNamespace that may be without a copy in sync when one more is given a further copy.
COPIES_AT_ONCE_MAX: Final = 10
SENTENCES_MAX: Final = 4
ZONE: Final = "topology.kubernetes.io/zone"
HOLD_FAILOVER: Final = "fencekv.io/hold-failover"


class Preference(enum.IntEnum):
    """How much the placement of a partition asks for its first pod as owner."""

    NONE = 0  # not at all: its table is paused, or its failover is held
    BALANCED = 1  # where owners are spread unevenly
    PREFERRED = 2
    REQUIRED = 3  # a pin, or the owner's replica is to go


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """What is to be done for a table's partitions."""

    replicas: Mapping[int, tuple[str, ...]]  # of each that stands, after its next step
    made: Mapping[int, tuple[str, ...]]  # of each that is to be made
    waiting: int  # partitions whose next copy waits for others
    pending: Sequence[int]  # partitions whose replicas or owner are not where they are to be
    missing: str  # what the required rules lack, for people; empty: nothing


class Grounds:
    """The ground of each set of rules, made once."""

    def __init__(self, places: Sequence[Place]) -> None:
        self.places = tuple(places)
        self._grounds: dict[int, Ground] = {}

    def of(self, rules: Rules) -> Ground:
        """The ground under these very rules."""
        found = self._grounds.get(id(rules))
        if found is None or found.rules is not rules:
            found = self._grounds[id(rules)] = Ground.of(self.places, rules)
        return found


@dataclass(slots=True)
class _Lacking:
    """Sentences on what is missing, each with the partitions that it holds up."""

    sentences: dict[str, list[int]] = field(default_factory=dict)

    def add(self, index: int, sentences: Iterable[str]) -> None:
        for sentence in sentences:
            self.sentences.setdefault(sentence, []).append(index)

    def text(self, partitions: int) -> str:
        shown = []
        for sentence, indexes in list(self.sentences.items())[:SENTENCES_MAX]:
            whose = "" if len(indexes) == partitions else f"partition {_spans(indexes)}: "
            shown.append(whose + sentence)
        more = len(self.sentences) - SENTENCES_MAX
        return "; ".join(shown) + (f"; and {more} more" if more > 0 else "")


def placed(partition: Mapping[str, Any]) -> Placed:
    """Where a partition is, by its spec and its status."""
    seen = partition.get("status") or {}
    return Placed(
        replicas=tuple(partition["spec"]["replicas"]),
        owner=seen.get("owner", ""),
        in_sync=frozenset(seen.get("inSync") or ()),
    )


def places(
    pods: Sequence[str],
    seen: Mapping[str, Mapping[str, Any]],
    *,
    nodes: Mapping[str, Mapping[str, str]] | None = None,
    away: Collection[str] = (),
) -> list[Place]:
    """The wanted pods, with node, zone and the node's labels (`nodes`, by name) where they are known."""
    found = []
    for pod in pods:
        obj = seen.get(pod) or {}
        node = (obj.get("spec") or {}).get("nodeName", "")
        labels = (nodes or {}).get(node)
        zone = (obj.get("metadata", {}).get("labels") or {}).get(ZONE, "") or (labels or {}).get(ZONE, "")
        found.append(Place(pod=pod, node=node, zone=zone, labels=labels, away=pod in away))
    return found


def steps(
    table: TableSettings, mine: Mapping[int, Object], others: Iterable[Object], spots: Sequence[Place]
) -> Steps:
    """The next step of every partition of a table.

    `mine` are the table's partitions that there are, by index; `others` those of the KVNamespace's other tables.
    """
    grounds, others = Grounds(spots), list(others)
    load = Load.of(each["spec"]["replicas"] for each in (*others, *mine.values()))
    away = {spot.pod for spot in spots if spot.away}
    moving = sum(_lacks_copy(placed(each), away) for each in others)
    stand = {index: placed(each) for index, each in sorted(mine.items())}
    at_work = {index for index, here in stand.items() if _lacks_copy(here, away)}
    moving += len(at_work)
    replicas: dict[int, tuple[str, ...]] = {}
    waiting, pending, lacks = 0, list[int](), _Lacking()
    for index, here in stand.items():
        ground = grounds.of(table.placement.of(index))
        following = adjust(here, size=table.size, min_in_sync=table.min_in_sync, ground=ground, load=load)
        grows = not set(following) <= set(here.replicas)
        room = goal(here, size=table.size, ground=ground, load=load)
        lacks.add(index, _lacks(ground, table.size, len(room)))
        away_from_home = here.owner not in {"", here.replicas[0]} and (
            preference(mine[index], table, ground) >= Preference.PREFERRED
        )
        if following != here.replicas or not set(here.replicas) <= set(room) or away_from_home:
            pending.append(index)
        if grows and moving - (index in at_work) >= COPIES_AT_ONCE_MAX:
            waiting, following = waiting + 1, here.replicas
        elif grows:
            moving += index not in at_work
        replicas[index] = following
    made: dict[int, tuple[str, ...]] = {}
    for index in (each for each in range(table.partitions) if each not in mine):
        ground = grounds.of(table.placement.of(index))
        chosen = place(size=table.size, ground=ground, load=load)
        lacks.add(index, _lacks(ground, table.size, len(chosen)))
        if chosen:
            made[index] = chosen
    missing = lacks.text(table.partitions)
    return Steps(replicas=replicas, made=made, waiting=waiting, pending=pending, missing=missing)


def preference(partition: Mapping[str, Any], table: TableSettings, ground: Ground) -> Preference:
    """How much a partition's placement asks for its first pod as owner. `ground` is that of its rules."""
    here = placed(partition)
    if HOLD_FAILOVER in (partition["metadata"].get("annotations") or {}):
        return Preference.NONE
    first, rules = here.replicas[0], ground.rules
    staying = goal(here, size=table.size, ground=ground, load=Load())
    if first not in staying:
        return Preference.NONE
    if rules.required.owner == first or here.owner not in staying:
        return Preference.REQUIRED
    return Preference.PREFERRED if rules.preferred.owner == first else Preference.BALANCED


def _lacks_copy(here: Placed, away: Collection[str]) -> bool:
    return any(pod not in here.in_sync and pod not in away for pod in here.replicas)


def _lacks(ground: Ground, size: int, room: int) -> list[str]:
    if room >= size and not ground.rules.required.owner:
        return []
    return lacking(ground.rules, size=size, places=ground.places, room=room)


def _spans(indexes: Sequence[int]) -> str:
    """Numbers in rising order, as `0-3, 7`."""
    spans: list[list[int]] = []
    for index in sorted(indexes):
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans[:SENTENCES_MAX])
