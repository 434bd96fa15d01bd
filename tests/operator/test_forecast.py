"""`kubectl fencekv plan`: the moves of an apply, foreseen by the operator's own steps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from operator_world import OPERATOR, World, kvns_object, table_object

from fencekv.kube import KV_NAMESPACES, KV_TABLES
from fencekv_operator.forecast import Forecast, Seen, forecast
from fencekv_operator.placing import COPIES_AT_ONCE_MAX, placed, steps
from fencekv_operator.rules import Place
from fencekv_operator.settings import NamespaceSettings, TableSettings

Object = dict[str, Any]

HOMES = {"orders-0": ["sample-0", "sample-1", "sample-2"], "orders-1": ["sample-3", "sample-0", "sample-1"]}


def entry(strength: str, **wish: Any) -> Object:
    return {"placement": {"partitions": [{"index": 0, strength: wish}]}}


async def a_world(*, shards: int = 4, count: int = 2, **spec: Any) -> World:
    """A table on a KVNamespace, with every partition owned and in sync."""
    world = World()
    await world.create(KV_NAMESPACES, kvns_object(shards={"replicas": shards}))
    await world.create(KV_TABLES, table_object(count=count, **spec))
    world.clock.seconds += 60  # the pods' nodes are not waited for any more
    await world.settle()
    await world.run_shards()
    await world.grant_all()
    await world.settle()
    return world


async def ask(world: World, *, table: Object | None = None, space: Object | None = None) -> Forecast:
    """The forecast after these changes of the table's and the KVNamespace's spec."""
    kvns = copy.deepcopy(await world.get(KV_NAMESPACES, "sample"))
    orders = copy.deepcopy(await world.get(KV_TABLES, "orders"))
    kvns["spec"].update(space or {})
    orders["spec"].update(table or {})
    seen = Seen(spaces={"sample": kvns}, tables={"orders": orders}, partitions=await world.partitions())
    return forecast(seen, OPERATOR)


def told(found: Forecast) -> list[str]:
    return [f"{move.partition} {move.what} {move.source}>{move.target}" for move in found.moves]


async def test_a_settled_table_moves_nothing() -> None:
    assert told(await ask(await a_world())) == []


@pytest.mark.parametrize(
    ("table", "space", "wanted"),
    [
        # HOMES says where they are; the first pods own them.
        (entry("required", owner="sample-1"), {}, ["orders-0 owner sample-0>sample-1"]),
        (entry("preferred", owner="sample-2"), {}, ["orders-0 owner sample-0>sample-2"]),
        (
            entry("required", owner="sample-3"),
            {},
            ["orders-0 copy sample-2>sample-3", "orders-0 owner sample-0>sample-3"],
        ),
        (
            entry("required", pods=["sample-1", "sample-2", "sample-3"]),
            {},
            ["orders-0 copy sample-0>sample-3", "orders-0 owner sample-0>sample-1"],
        ),
        ({"replicas": 1}, {}, ["orders-0 drop sample-2>", "orders-1 drop sample-1>"]),
        ({}, {"shards": {"replicas": 3}}, ["orders-1 copy sample-3>sample-2", "orders-1 owner sample-3>sample-0"]),
    ],
)
async def test_what_would_move(table: Object, space: Object, wanted: list[str]) -> None:
    world = await a_world()
    homes = {each["metadata"]["name"]: each["spec"]["replicas"] for each in await world.partitions()}
    assert homes == {
        "orders-0": ["sample-0", "sample-1", "sample-2"],
        "orders-1": ["sample-3", "sample-0", "sample-1"],
    }
    found = told(await ask(world, table=table, space=space))
    assert found == wanted
    assert {each["metadata"]["name"]: each["spec"]["replicas"] for each in await world.partitions()} == HOMES


async def test_a_new_table_is_created_and_what_is_missing_is_said() -> None:
    world = await a_world(count=1)
    new = table_object("bills", count=1)
    new["metadata"].update({"uid": "", "resourceVersion": ""})
    new["spec"]["placement"] = {"partitions": [{"index": 0, "required": {"zones": ["z"]}}]}
    seen = Seen(
        spaces={"sample": await world.get(KV_NAMESPACES, "sample")},
        tables={"orders": await world.get(KV_TABLES, "orders"), "bills": new},
        partitions=await world.partitions(),
    )
    found = forecast(seen, OPERATOR)
    assert found.missing == {"bills": "no pod runs in zone z"}
    assert told(found) == []
    del new["spec"]["placement"]
    assert [move.what for move in forecast(seen, OPERATOR).moves] == ["create"]


async def test_a_few_partitions_at_a_time_get_a_further_copy() -> None:
    """What is not in sync takes room from what waits, also where another table's copies are on their way."""
    count = 3 * COPIES_AT_ONCE_MAX
    world = await a_world(count=count, replicas=1)
    kvns = NamespaceSettings.parse(await world.get(KV_NAMESPACES, "sample"), OPERATOR)
    orders = await world.get(KV_TABLES, "orders")
    table = TableSettings.parse({**orders, "spec": {**orders["spec"], "replicas": 2}}, kvns)
    spots = [Place(pod=pod) for pod in kvns.pods]
    mine = {each["spec"]["index"]: each for each in await world.partitions()}

    def grown(found: Any) -> list[int]:
        return [
            index for index, pods in found.replicas.items() if len(pods) > len(mine[index]["spec"]["replicas"])
        ]

    first = steps(table, mine, [], spots)
    assert len(grown(first)) == COPIES_AT_ONCE_MAX
    assert (first.waiting, len(first.pending)) == (count - COPIES_AT_ONCE_MAX, count)
    began = grown(first)
    for index in began:
        mine[index]["spec"]["replicas"] = list(first.replicas[index])
    assert grown(steps(table, mine, [], spots)) == [], "as long as none of them is in sync"
    done = began[:3]
    for index in done:
        mine[index]["status"]["inSync"] = mine[index]["spec"]["replicas"]
    assert len(grown(steps(table, mine, [], spots))) == len(done)
    other = copy.deepcopy(mine[count - 1])
    other["status"]["inSync"] = []
    assert len(grown(steps(table, mine, [other], spots))) == len(done) - 1
    assert not placed(other).in_sync
