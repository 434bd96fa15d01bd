"""Labels of nodes: read when they are needed, kept for a while, and never in the way."""

from __future__ import annotations

from memory_kube import HandClock, MemoryKube

from fencekv.kube import KubeError
from fencekv_operator.nodes import FRESH_SECONDS, NODES, UNREADABLE_SECONDS, Nodes


class Refusing(MemoryKube):
    """An API server that lets nobody read nodes."""

    reads = 0

    async def get(self, *_: object, **__: object) -> dict[str, object]:
        self.reads += 1
        raise KubeError(403, "Forbidden", "nodes")


async def test_labels_are_read_once_a_minute_and_follow_a_change() -> None:
    clock = HandClock()
    kube = MemoryKube(clock)
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n-0", "labels": {"disk": "slow"}}}
    await kube.create(NODES, None, node)
    nodes = Nodes(kube, clock)
    await nodes.learn(["n-0", "n-0", "", "n-9"])
    assert nodes.labels["n-0"]["disk"] == "slow"
    assert set(nodes.labels) == {"n-0"}
    await kube.patch(NODES, None, "n-0", {"metadata": {"labels": {"disk": "fast"}}})
    await nodes.learn(["n-0"])
    assert nodes.labels["n-0"]["disk"] == "slow"
    clock.seconds += FRESH_SECONDS
    await nodes.learn(["n-0"])
    assert nodes.labels["n-0"]["disk"] == "fast"
    await kube.delete(NODES, None, "n-0")
    clock.seconds += FRESH_SECONDS
    await nodes.learn(["n-0"])
    assert nodes.labels == {}


async def test_a_refusal_is_no_error_and_is_not_repeated_at_once() -> None:
    clock = HandClock()
    kube = Refusing(clock)
    nodes = Nodes(kube, clock)
    await nodes.learn(["n-0"])
    await nodes.learn(["n-0"])
    assert (kube.reads, nodes.labels) == (1, {})
    clock.seconds += UNREADABLE_SECONDS
    await nodes.learn(["n-0"])
    assert kube.reads == 2
