"""What the tests of the wires share: a shard over a partition in memory, listening on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from fake_node import FakeNode, FakePartition, serving
from raw_http import Raw, dialled_http

from fencekv_shard.server import Running


@pytest.fixture(name="node")
def make_node() -> FakeNode:
    node = FakeNode()
    node.add_table("orders")
    return node


@pytest.fixture(name="shard")
async def start(node: FakeNode) -> AsyncIterator[Running]:
    async with serving(node) as [shard]:
        yield shard


@pytest.fixture(name="partition")
def take_partition(node: FakeNode) -> FakePartition:
    return node.replicas["orders", 0]


@pytest.fixture(name="raw")
async def dial(shard: Running) -> AsyncIterator[Raw]:
    async with dialled_http(shard.port) as raw:
        yield raw
