"""The main job on real nodes: apply, write, lose the owner, lose nothing; and take it all away again.

The tests run in their order, each on what the one before left behind.
"""

from __future__ import annotations

import itertools
import json
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kubectl import Cluster, Failed, Lines, TooLate, restarted, say

pytestmark = pytest.mark.timeout(420)

HERE = Path(__file__).parent
WRITER = (HERE / "writer.py").read_text(encoding="utf-8")
SHARDS = ("sample-0", "sample-1", "sample-2")
PARTITIONS = tuple(f"orders-{index}" for index in range(4))
COLUMNS = ["NAME", "TABLE", "PARTITION", "EPOCH", "OWNER", "IN-SYNC", "TOKEN", "LAG", "PHASE", "AGE"]
# In the pod of a shard: sends the process `fencekv_shard serve` the signal that is the argument.
SIGNAL = """
import os, pathlib, sys
for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    if path.read_bytes().split(b"\\0")[-2:-1] == [b"serve"]:
        os.kill(int(path.parent.name), int(sys.argv[1]))
"""
OPERATOR = ("-n", "fencekv-system")
# A pod that comes back under its name, then its old session's silence (6 s), on a machine that is busy.
TAKEOVER_SECONDS = 20.0
UNTIL_SECONDS = 60.0
ACKNOWLEDGED_BEFORE = 200


def epoch_of(version: str) -> int:
    """The epoch in a version `<epoch>.<seq>`."""
    return int(version.partition(".")[0])


def is_above(epoch: int, seen: str) -> bool:
    """Whether a status shows a higher epoch."""
    return int(seen or 0) > epoch


def owners(cluster: Cluster) -> dict[str, tuple[str, int]]:
    """Owner and epoch of each partition."""
    items = cluster.get("kvp")["items"]
    return {item["metadata"]["name"]: (item["status"]["owner"], item["status"]["epoch"]) for item in items}


class Acknowledged:
    """What a writer in the client's pod was told."""

    def __init__(self, lines: Lines) -> None:
        self.puts: list[dict[str, Any]] = []
        self.errors: list[dict[str, Any]] = []
        self._lines = lines

    def add(self, line: str) -> None:
        """Takes a line of the writer."""
        put = json.loads(line)
        (self.errors if "error" in put else self.puts).append(put)

    def partitions(self, *, above: dict[str, int]) -> set[str]:
        """Partitions that acknowledged a put under a higher epoch than these."""
        return {put["partition"] for put in self.puts if epoch_of(put["version"]) > above[put["partition"]]}

    def until(self, partitions: set[str], *, above: dict[str, int], puts: int = 0) -> None:
        """Reads on until these partitions have acknowledged under a higher epoch, and so many puts in all."""
        deadline = time.monotonic() + UNTIL_SECONDS
        while len(self.puts) < puts or not partitions <= self.partitions(above=above):
            self.add(self._lines.next(seconds=TAKEOVER_SECONDS))
            if time.monotonic() > deadline:
                raise TooLate(f"{len(self.puts)} puts, want {puts}; no higher epoch on all of {partitions}")

    def end(self) -> None:
        """Stops the writer, and reads what it still says."""
        for line in self._lines.end(seconds=30):
            self.add(line)

    def longest_pause(self, partition: str) -> float:
        """Seconds between two successive acknowledgements of a partition, at most."""
        times: list[float] = sorted(put["at"] for put in self.puts if put["partition"] == partition)
        return max(after - before for before, after in itertools.pairwise(times))


def check_nothing_lost(cluster: Cluster, puts: list[dict[str, Any]], *, prefix: str) -> None:
    """Every acknowledged put is there, with its value and its very version."""
    listed = cluster.run("fencekv", "list", "orders", "--prefix", prefix, "--all", "-o", "json")
    there = {item["key"]: (item["value"], item["version"]) for item in json.loads(listed)["items"]}
    lost = [put for put in puts if there.get(put["key"]) != (put["value"], put["version"])]
    say(f"{len(puts)} puts acknowledged, {len(lost)} lost")
    assert not lost, lost[:5]


def check_each_its_own(puts: list[dict[str, Any]]) -> None:
    """No place in a partition's journal was given to two puts, under whatever epochs."""
    places = [(put["partition"], put["version"].partition(".")[2]) for put in puts]
    assert len(set(places)) == len(places)


def lose_an_owner(cluster: Cluster, harm: Callable[[Cluster, str], None], *, prefix: str) -> None:
    """Writes on while harm is done to the pod of an owner, and counts what was lost."""
    before = owners(cluster)
    epochs = {partition: epoch for partition, (_, epoch) in before.items()}
    victim = before[PARTITIONS[0]][0]
    moved = {partition for partition, (owner, _) in before.items() if owner == victim}
    say(f"owners before: {before}; now {victim} is lost")
    with cluster.watching("exec", "-i", "fencekv-client", "--", "python", "-c", WRITER, "orders", prefix) as lines:
        told = Acknowledged(lines)
        told.until(set(PARTITIONS), above=dict.fromkeys(PARTITIONS, 0), puts=ACKNOWLEDGED_BEFORE)
        harm(cluster, victim)
        told.until(moved, above=epochs, puts=len(told.puts) + ACKNOWLEDGED_BEFORE)
        for partition in sorted(moved):
            higher = partial(is_above, epochs[partition])
            epoch = cluster.until("kvp", partition, path=".status.epoch", holds=higher)
            say(f"{partition}: epoch {epochs[partition]} -> {epoch}, paused {told.longest_pause(partition):.2f} s")
        told.end()
    after = owners(cluster)
    say(f"owners after: {after}; {len(told.errors)} puts without an answer {told.errors[:1] or ''}")
    for partition in PARTITIONS:
        assert after[partition][1] > epochs[partition] or partition not in moved
        assert after[partition][1] >= epochs[partition]
    assert max(told.longest_pause(partition) for partition in moved) < TAKEOVER_SECONDS
    check_each_its_own(told.puts)
    check_nothing_lost(cluster, told.puts, prefix=prefix)


def delete_by_force(cluster: Cluster, pod: str) -> None:
    """The pod's object goes at once; its processes go when the kubelet gets to it."""
    cluster.kubectl("delete", "pod", pod, "--force", "--grace-period=0")


def delete_with_leader(cluster: Cluster, pod: str) -> None:
    """The operator that leads goes first."""
    leader = cluster.get("lease", "fencekv-operator", *OPERATOR)["spec"]["holderIdentity"]
    cluster.kubectl("delete", "pod", *OPERATOR, leader.partition("_")[0], "--force", "--grace-period=0")
    delete_by_force(cluster, pod)


def kill_process(cluster: Cluster, pod: str) -> None:
    """kill -9 of the process that serves; its supervisor, PID 1, lives on."""
    send(cluster, pod, signal.SIGKILL)


def freeze_and_delete(cluster: Cluster, pod: str) -> None:
    """The process hangs, so the next pod of that name starts beside it, on the same volume."""
    send(cluster, pod, signal.SIGSTOP)
    delete_by_force(cluster, pod)


def send(cluster: Cluster, pod: str, number: signal.Signals) -> None:
    """Sends a signal to the process that serves."""
    cluster.kubectl("exec", pod, "--", "python", "-c", SIGNAL, str(int(number)))


def settle(cluster: Cluster) -> None:
    """Waits until every shard is back and in sync, which is when the next one may fall."""
    cluster.kubectl("rollout", "status", "statefulset/sample", "--timeout=90s", seconds=100)
    for partition in PARTITIONS:
        cluster.until(
            "kvp",
            partition,
            path=".status.inSync",
            holds=lambda seen: all(shard in seen for shard in SHARDS),
            seconds=60,
        )
    cluster.wait("--for=condition=Ready", "kvt", "--all")


def test_the_sample_is_spread_over_its_shards(cluster: Cluster) -> None:
    settle(cluster)
    shown = cluster.kubectl("get", "kvp")
    say(f"kubectl get kvp\n{shown}")

    header, *rows = shown.splitlines()
    assert header.split() == [
        "NAME",
        "TABLE",
        "PARTITION",
        "EPOCH",
        "OWNER",
        "IN-SYNC",
        "TOKEN",
        "LAG",
        "PHASE",
        "AGE",
    ]
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


@pytest.mark.parametrize("harm", [kill_process, delete_by_force, delete_with_leader, freeze_and_delete])
def test_a_lost_owner_takes_nothing_along(cluster: Cluster, harm: Callable[[Cluster, str], None]) -> None:
    lose_an_owner(cluster, harm, prefix=f"{harm.__name__}-")
    say(f"kubectl get kvp\n{cluster.kubectl('get', 'kvp')}")
    cluster.kubectl(*OPERATOR, "rollout", "status", "deployment/fencekv-operator", "--timeout=60s", seconds=70)
    settle(cluster)


def test_no_container_had_to_be_restarted(cluster: Cluster) -> None:
    pods = [*cluster.get("pods", "-l", "fencekv.io/kind=shard")["items"], *cluster.get("pods", *OPERATOR)["items"]]
    assert not restarted(pods)


def test_a_table_under_retain_leaves_its_data_and_nothing_else(cluster: Cluster) -> None:
    uids = [item["metadata"]["uid"] for item in cluster.get("kvp")["items"]]
    cluster.kubectl("delete", "kvt", "orders", "--timeout=30s")
    cluster.wait("--for=delete", "kvp", "-l", "fencekv.io/table=orders")
    cluster.wait("--for=delete", "lease", "-l", "fencekv.io/table=orders")

    files = cluster.kubectl("exec", "sample-0", "--", "ls", "/data/partitions").split()
    assert set(uids) <= set(files)


def test_a_namespace_under_delete_leaves_nothing(cluster: Cluster) -> None:
    table = {
        "apiVersion": "fencekv.io/v1alpha1",
        "kind": "KVTable",
        "metadata": {"name": "brief"},
        "spec": {"namespace": "sample", "deletionPolicy": "Delete"},
    }
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(table))
    cluster.kubectl("patch", "kvns", "sample", "--type=merge", "-p", '{"spec": {"deletionPolicy": "Delete"}}')
    cluster.wait("--for=condition=Ready", "kvt/brief")
    cluster.until("kvns", "sample", path=".metadata.finalizers", holds=lambda seen: "fencekv.io/data" in seen)

    # Well below the operator's minute: nothing may wait for its next look at everything.
    cluster.kubectl("delete", "kvns", "sample", "--timeout=40s")

    cluster.wait("--for=delete", "pod", "-l", "fencekv.io/kind=shard", seconds=90)
    cluster.wait("--for=delete", "pvc", "-l", "fencekv.io/namespace=sample")
    kinds = "kvt,kvp,leases,statefulsets,services,serviceaccounts,roles,rolebindings,pdb,networkpolicies"
    for kind in kinds.split(","):
        cluster.wait("--for=delete", kind, "-l", "fencekv.io/namespace=sample")


def test_the_operator_was_refused_nothing(cluster: Cluster) -> None:
    logs = cluster.kubectl(*OPERATOR, "logs", "deployment/fencekv-operator", "--all-pods", "--tail=-1")
    refused = [line for line in logs.splitlines() if "forbidden" in line.lower() or "Traceback" in line]
    assert not refused, refused[:5]
    with pytest.raises(Failed):
        cluster.kubectl("get", "kvns", "sample")
