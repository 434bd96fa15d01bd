"""A fresh cluster: how soon the sample is there, what it is, what a client does with it.

The e2e tests run in the order of their files' names, on one cluster: these come first, test_removal.py last.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from kubectl import Cluster, say
from sample import PARTITIONS, SHARDS, owners, settle

pytestmark = pytest.mark.timeout(420)

READY_SECONDS = 60.0  # from the first `kubectl apply` on, with the image loaded
COLUMNS = ["NAME", "TABLE", "PARTITION", "EPOCH", "OWNER", "IN-SYNC", "TOKEN", "LAG", "PHASE", "AGE"]


def test_a_fresh_cluster_is_ready_within_a_minute(cluster: Cluster) -> None:
    if cluster.installed_seconds is None:
        pytest.skip("the operator was there before")
    assert cluster.installed_seconds <= READY_SECONDS


def test_the_sample_is_spread_over_its_shards(cluster: Cluster) -> None:
    settle(cluster)
    shown = cluster.kubectl("get", "kvp")
    say(f"kubectl get kvp\n{shown}")

    header, *rows = shown.splitlines()
    assert header.split() == COLUMNS
    assert [row.split()[0] for row in rows] == list(PARTITIONS)
    assert {owner for owner, _ in owners(cluster).values()} == set(SHARDS)
    pods = cluster.get("pods", "-l", "fencekv.io/kind=shard")["items"]
    assert len({pod["spec"]["nodeName"] for pod in pods}) == len(SHARDS)


def test_a_client_in_a_pod_puts_and_gets(cluster: Cluster) -> None:
    put = json.loads(cluster.run("fencekv", "put", "orders", "order-17", "packed", "-o", "json"))
    got = json.loads(cluster.run("fencekv", "get", "orders", "order-17", "-o", "json"))

    assert (got["value"], got["version"]) == ("packed", put["version"])
    # From outside a cluster's Services are out of reach, its API server is not.
    status = cluster.tool(str(Path(sys.executable).parent / "kubectl-fencekv"), "status", "-o", "json")
    assert {each["partition"] for each in json.loads(status)["partitions"]} == set(PARTITIONS)
