"""The sample's shards and partitions, as the tests and the drills need them."""

from __future__ import annotations

import signal
from typing import Any, Final

from kubectl import Cluster

SHARDS: Final = ("sample-0", "sample-1", "sample-2")
PARTITIONS: Final = tuple(f"orders-{index}" for index in range(4))
# Of a container: each further one is begun later, up to five minutes. Those of a fresh pod are not.
RESTARTS_MAX: Final = 1
OPERATOR: Final = ("-n", "fencekv-system")
# In the pod of a shard: sends the process `fencekv_shard serve` the signal that is the argument.
SIGNAL: Final = """
import os, pathlib, sys
for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    if path.read_bytes().split(b"\\0")[-2:-1] == [b"serve"]:
        os.kill(int(path.parent.name), int(sys.argv[1]))
"""


def owners(cluster: Cluster, table: str = "orders") -> dict[str, tuple[str, int]]:
    """Owner and epoch of each partition, by the record itself: a status may be a moment behind."""
    items = cluster.get("leases", "-l", f"fencekv.io/kind=partition,fencekv.io/table={table}")["items"]
    return {
        item["metadata"]["name"].removeprefix("partition-"): (
            item["spec"]["holderIdentity"].partition("/")[0],
            item["spec"]["leaseTransitions"],
        )
        for item in items
    }


def settle(cluster: Cluster, *, seconds: float = 120, partitions: tuple[str, ...] = PARTITIONS) -> None:
    """Waits until every shard is back and in sync, which is when the next one may fall."""
    _settle(cluster, seconds, partitions)
    for shard in SHARDS:
        containers = cluster.get("pod", shard)["status"].get("containerStatuses") or ()
        if any(each["restartCount"] > RESTARTS_MAX for each in containers):
            cluster.kubectl("delete", "pod", shard)
            _settle(cluster, seconds, partitions)


def _settle(cluster: Cluster, seconds: float, partitions: tuple[str, ...]) -> None:
    # `kubectl rollout status` knows no StatefulSet that is updated OnDelete.
    path, every = ".status.readyReplicas", str(len(SHARDS))
    cluster.until("statefulset", "sample", path=path, holds=lambda seen: seen == every, seconds=seconds)
    cluster.wait("--for=condition=Reconciling=False", "kvns/sample", seconds=seconds)
    for partition in partitions:
        cluster.until(
            "kvp",
            partition,
            path=".status.inSync",
            holds=lambda seen: all(shard in seen for shard in SHARDS),
            seconds=seconds,
        )
    cluster.wait("--for=condition=Ready", "kvt", "--all")


def send(cluster: Cluster, pod: str, number: signal.Signals) -> None:
    """Sends a signal to the process that serves; its supervisor, PID 1, lives on."""
    cluster.kubectl("exec", pod, "--", "python", "-c", SIGNAL, str(int(number)))


def leader(cluster: Cluster) -> str:
    """The pod of the operator that leads."""
    lease: dict[str, Any] = cluster.get("lease", "fencekv-operator", *OPERATOR)
    holder: str = lease["spec"]["holderIdentity"]
    return holder.partition("_")[0]


def delete_by_force(cluster: Cluster, pod: str, *where: str) -> None:
    """The pod's object goes at once; its processes go when the kubelet gets to it."""
    cluster.kubectl("delete", "pod", pod, *where, "--force", "--grace-period=0")
