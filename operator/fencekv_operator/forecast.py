"""What the operator would move if custom resources said something else: its own steps, taken on a copy. Pure.

Invariants:
  * Every step is `placing.steps`, which the operator plans by; what this module adds is the shards' part, played
    as it is meant to go: who is given a copy joins, and owners move to the first pod of their placement.
  * It ends: after STEPS_MAX rounds what still moves is said to be unsettled.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from fencekv_operator import resources
from fencekv_operator.placing import Grounds, Preference, places, preference, steps
from fencekv_operator.rules import Place
from fencekv_operator.settings import NamespaceSettings, OperatorSettings, TableSettings

Object = dict[str, Any]

STEPS_MAX: Final = 1000
OWNER, COPY, DROP, CREATE, PENDING = "owner", "copy", "drop", "create", "pending"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A Kubernetes namespace, with the changes that are asked about."""

    spaces: Mapping[str, Object]  # KVNamespaces, by name
    tables: Mapping[str, Object]  # KVTables, by name
    partitions: Sequence[Object] = ()
    pods: Mapping[str, Object] = field(default_factory=dict)
    nodes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One change that would come. An empty pod: there is none on that side."""

    table: str
    partition: str
    what: str  # owner, copy, drop, create or pending
    source: str
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Everything that would come."""

    moves: tuple[Move, ...]
    missing: Mapping[str, str]  # by table: what its required rules lack


def forecast(seen: Seen, operator: OperatorSettings) -> Forecast:
    """What is moved until everything is as it is asked for."""
    moves: list[Move] = []
    missing: dict[str, str] = {}
    for name, space in sorted(seen.spaces.items()):
        kvns = NamespaceSettings.parse(space, operator)
        spots = places(kvns.pods, seen.pods, nodes=seen.nodes)
        found = [each for each in seen.partitions if each["spec"]["namespace"] == name]
        tables = [
            TableSettings.parse(table, kvns)
            for _, table in sorted(seen.tables.items())
            if table["spec"]["namespace"] == name
        ]
        world = _Play(spots, [copy.deepcopy(each) for each in found])
        for table in tables:
            world.create(table)
        settled = world.settle([table for table in tables if not table.paused])
        moves += _moves(found, world.partitions.values(), unsettled=not settled)
        missing.update({table: text for table, text in world.missing.items() if text})
    return Forecast(moves=tuple(moves), missing=missing)


class _Play:
    """The partitions of a KVNamespace, as they would come to be."""

    def __init__(self, spots: Sequence[Place], partitions: Iterable[Object]) -> None:
        self._spots, self._grounds = spots, Grounds(spots)
        self.partitions = {each["metadata"]["name"]: each for each in partitions}
        self.missing: dict[str, str] = {}

    def create(self, table: TableSettings) -> None:
        """The partitions that a table does not have yet."""
        for index, replicas in self._steps(table).made.items():
            made = resources.partition_object(table, index=index, replicas=replicas)
            self.partitions[made["metadata"]["name"]] = made

    def settle(self, tables: Sequence[TableSettings]) -> bool:
        """Takes steps until there is none left; whether it came to that."""
        for _ in range(STEPS_MAX):
            before = {name: (each["spec"]["replicas"], _owner(each)) for name, each in self.partitions.items()}
            for table in tables:
                self._step(table)
            if before == {
                name: (each["spec"]["replicas"], _owner(each)) for name, each in self.partitions.items()
            }:
                return True
        return False

    def _step(self, table: TableSettings) -> None:
        going = self._steps(table)
        self.missing[table.name] = going.missing
        mine = self._of(table)
        for index, replicas in going.replicas.items():
            each = mine[index]
            each["spec"]["replicas"] = list(replicas)
            status = each.setdefault("status", {})
            status["inSync"] = sorted({*replicas, *([_owner(each)] if _owner(each) else [])})
            wish = preference(each, table, self._grounds.of(table.placement.of(index)))
            if wish in {Preference.REQUIRED, Preference.PREFERRED}:
                status["owner"] = replicas[0]

    def _steps(self, table: TableSettings) -> Any:
        mine = self._of(table)
        others = [each for each in self.partitions.values() if each["spec"]["table"] != table.name]
        return steps(table, mine, others, self._spots)

    def _of(self, table: TableSettings) -> dict[int, Object]:
        return {
            int(each["spec"]["index"]): each
            for each in self.partitions.values()
            if each["spec"]["table"] == table.name
        }


def _owner(partition: Mapping[str, Any]) -> str:
    return str((partition.get("status") or {}).get("owner", ""))


def _moves(before: Iterable[Object], after: Iterable[Object], *, unsettled: bool) -> list[Move]:
    earlier = {each["metadata"]["name"]: each for each in before}
    found: list[Move] = []
    for each in sorted(after, key=lambda one: (one["spec"]["table"], one["spec"]["index"])):
        name, table = each["metadata"]["name"], each["spec"]["table"]
        was = earlier.get(name)

        def move(what: str, source: str, target: str, *, table: str = table, name: str = name) -> Move:
            return Move(table=table, partition=name, what=what, source=source, target=target)

        if was is None:
            found.append(move(CREATE, "", ",".join(each["spec"]["replicas"])))
            continue
        old, new = was["spec"]["replicas"], each["spec"]["replicas"]
        added = [pod for pod in new if pod not in old]
        dropped = [pod for pod in old if pod not in new]
        for number in range(max(len(added), len(dropped))):
            source = dropped[number] if number < len(dropped) else ""
            target = added[number] if number < len(added) else ""
            found.append(move(COPY if target else DROP, source, target))
        if _owner(was) and _owner(was) != _owner(each):
            found.append(move(OWNER, _owner(was), _owner(each)))
        if unsettled and (added or dropped):
            found.append(move(PENDING, "", ""))
    return found
