"""A fresh cluster: how soon the sample is there, what it is, what a client does with it.

The e2e tests run in the order of their files' names, on one cluster: these come first, test_removal.py last.
"""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import pytest

import kind
from kubectl import Cluster, Failed, command, say
from sample import OPERATOR, PARTITIONS, SHARDS, owners, settle

pytestmark = pytest.mark.timeout(420)

READY_SECONDS = 60.0  # from the first `kubectl apply` on, with the image loaded
IMAGE_MEGABYTES_OVER_BASE = 200
LABEL = "org.opencontainers.image."
SHELLS = {"sh", "bash", "dash", "ash"}
SELF = "import os; print(os.getuid(), os.getgid(), bool(os.statvfs('/').f_flag & os.ST_RDONLY))"
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


def docker(*words: str) -> str:
    """What docker says of the image here, where it was built or loaded from."""
    if why := kind.missing("docker"):
        pytest.skip(f"{why}: a cluster does not tell what layers and labels an image has")
    try:
        return command("docker", *words, kind.IMAGE)
    except Failed as error:
        pytest.skip(f"docker has no {kind.IMAGE} here: {str(error)[-200:]}")


def test_the_image_is_small_and_says_what_it_is() -> None:
    config = json.loads(docker("image", "inspect", "--format", "{{json .Config}}"))
    over = kind.bytes_over_base(docker(*kind.HISTORY))
    say(f"{kind.IMAGE}: {over / 1e6:.1f} MB over its base, {config['Labels']}")

    assert over <= IMAGE_MEGABYTES_OVER_BASE * 1e6
    version = tomllib.loads((kind.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert config["Labels"][LABEL + "version"] == version
    commit = config["Labels"][LABEL + "revision"]
    assert f"FENCEKV_COMMIT={commit}" in config["Env"]
    assert commit not in {"", "unknown"} or not (kind.ROOT / ".git").exists()
    assert config["User"] == "65532:65532"
    assert (config.get("Entrypoint"), config["Cmd"]) == (None, ["fencekv-shard"])


def test_pods_need_no_shell_no_root_and_nothing_to_write_to_but_their_volumes(cluster: Cluster) -> None:
    shards = cluster.get("pods", "-l", "fencekv.io/kind=shard")["items"]
    operators = cluster.get("pods", *OPERATOR, "-l", "app.kubernetes.io/name=fencekv-operator")["items"]
    assert len(shards) == len(SHARDS)
    assert operators
    for pod in (*shards, *operators):
        meta = pod["metadata"]
        assert SHELLS.isdisjoint(commanded(pod["spec"])), meta["name"]
        self = cluster.kubectl("exec", "-n", meta["namespace"], meta["name"], "--", "python", "-c", SELF)
        assert self.split() == ["65532", "65532", "True"], meta["name"]


def commanded(spec: object) -> set[str]:
    """Every word of a pod's commands, probes and hooks, without the folders before it."""
    if isinstance(spec, list):
        return {word for each in spec for word in commanded(each)}
    if not isinstance(spec, dict):
        return set()
    words = [Path(str(word)).name for field in ("command", "args") for word in spec.get(field) or ()]
    return {*words, *(word for each in spec.values() for word in commanded(each))}


def test_a_client_in_a_pod_puts_and_gets(cluster: Cluster) -> None:
    put = json.loads(cluster.run("fencekv", "put", "orders", "order-17", "packed", "-o", "json"))
    got = json.loads(cluster.run("fencekv", "get", "orders", "order-17", "-o", "json"))

    assert (got["value"], got["version"]) == ("packed", put["version"])
    # From outside a cluster's Services are out of reach, its API server is not.
    status = cluster.tool(str(Path(sys.executable).parent / "kubectl-fencekv"), "status", "-o", "json")
    assert {each["partition"] for each in json.loads(status)["partitions"]} == set(PARTITIONS)
