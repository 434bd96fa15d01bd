"""What only the operator asks of a shard: to give a partition away, and the chain hash of an entry."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from fake_node import FakeNode, serving


@pytest.fixture
async def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
async def address(node: FakeNode) -> AsyncIterator[str]:
    async with serving(node) as (shard,):
        yield f"http://127.0.0.1:{shard.port}"


async def asked(method: str, url: str, body: Any = None) -> tuple[int, dict[str, Any]]:
    data = None if body is None else json.dumps(body).encode()
    async with aiohttp.request(method, url, data=data) as answer:
        return answer.status, json.loads(await answer.read())


@pytest.mark.parametrize(("epoch", "status"), [(4, 202), (3, 409)])
async def test_a_release_reaches_the_node_and_says_whether_it_agreed(
    node: FakeNode, address: str, epoch: int, status: int
) -> None:
    body = {"uid": "u-1", "epoch": epoch, "target": "sample-1"}
    answered, told = await asked("POST", f"{address}/peer/v1/release", body)
    assert answered == status, told
    assert node.releases == [("u-1", epoch, "sample-1")]


@pytest.mark.parametrize(
    ("body", "target"),
    [
        ({"uid": "u-1", "epoch": 4}, ""),  # any standby will do
        ({"uid": "u-1", "epoch": 4, "target": "sample-1", "more": {"later": 1}}, "sample-1"),
    ],
)
async def test_an_operator_of_a_neighbouring_version_may_say_less_or_more(
    node: FakeNode, address: str, body: Any, target: str
) -> None:
    status, _ = await asked("POST", f"{address}/peer/v1/release", body)
    assert (status, node.releases) == (202, [("u-1", 4, target)])


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"uid": "u", "target": ""}, "body"),
        ({"epoch": 4, "target": ""}, "body"),
        ({"uid": "u", "epoch": -1, "target": ""}, "epoch"),
        ({"uid": "u", "epoch": True, "target": ""}, "epoch"),
        ({"uid": "u" * 300, "epoch": 4, "target": ""}, "uid"),
        ([], "body"),
    ],
)
async def test_a_release_that_is_not_understood_does_nothing(
    node: FakeNode, address: str, body: Any, field: str
) -> None:
    status, problem = await asked("POST", f"{address}/peer/v1/release", body)
    assert (status, problem["field"]) == (400, field)
    assert node.releases == []


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("uid=u-1&seq=7", 200),
        ("uid=u-1&seq=8", 404),
        ("uid=u-2&seq=7", 404),
        ("uid=u-1", 400),
        ("seq=7", 400),
        ("uid=u-1&seq=-1", 400),
        ("uid=u-1&seq=07", 400),
    ],
)
async def test_a_chain_hash_is_told_where_it_is_known(
    node: FakeNode, address: str, query: str, status: int
) -> None:
    node.chains = {("u-1", 7): "ab" * 32}
    answered, document = await asked("GET", f"{address}/peer/v1/chain?{query}")
    assert answered == status
    if status == 200:
        assert document == {"uid": "u-1", "seq": 7, "chain": "ab" * 32}
