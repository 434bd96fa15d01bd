"""A table of very many partitions: how soon it is there, and what it costs in rest.

Writes in rest are counted from outside: those to Leases of FenceKV by the renewal numbers in them, because every
component of a cluster renews Leases; all others, whoever made them, by the API server's own metrics.
"""

from __future__ import annotations

import contextlib
import json
import time  # noqa: TID251 - how long a cluster takes
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from fencekv.leases import RENEWAL
from kubectl import Cluster, Object, say
from sample import OPERATOR, SHARDS

NAME: Final = "wide"
WAIT_SECONDS: Final = 180.0
DELETE_SECONDS: Final = 300.0
REST_SECONDS: Final = 20.0
READY_SECONDS_MAX: Final = 60.0
SHARD_WRITES_PER_SECOND_MAX: Final = 1.2
OPERATOR_MEGABYTES_MAX: Final = 200.0
COUNTER: Final = "apiserver_request_total"
WRITES: Final = frozenset({"POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"})
# Leases are counted by themselves. The others store nothing, or are kubelets' own: tokens, and status of nodes.
NOT_COUNTED: Final = frozenset(
    {
        "leases",
        "nodes",
        "serviceaccounts",
        "tokenreviews",
        "subjectaccessreviews",
        "selfsubjectaccessreviews",
        "selfsubjectrulesreviews",
        "localsubjectaccessreviews",
    }
)
STATUS: Final = "print(open('/proc/1/status').read())"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """What a table costs while nothing happens, and how long it took to get there."""

    partitions: int
    ready_seconds: float
    shard_writes_per_second: float  # of each shard pod: all writes but the renewals of the leader's Lease
    leader_writes_per_second: float
    operator_megabytes: tuple[float, ...]  # of each operator, resident

    @property
    def note(self) -> str:
        """A sentence."""
        memory = " and ".join(f"{each:.0f}" for each in self.operator_megabytes)
        return (
            f"{self.partitions} partitions ready after {self.ready_seconds:.1f} s; in rest "
            f"{self.shard_writes_per_second:.2f} API writes a second a shard, besides "
            f"{self.leader_writes_per_second:.2f} of the leader's Lease; operators {memory} MB"
        )

    @property
    def wrong(self) -> list[str]:
        """What is beyond its limit."""
        figures = (
            ("seconds until ready", self.ready_seconds, READY_SECONDS_MAX),
            ("API writes a second a shard in rest", self.shard_writes_per_second, SHARD_WRITES_PER_SECOND_MAX),
            ("MB of an operator", max(self.operator_megabytes), OPERATOR_MEGABYTES_MAX),
        )
        return [f"{value:.2f} {what}, limit {limit:g}" for what, value, limit in figures if value > limit]


@contextlib.contextmanager
def table(cluster: Cluster, *, partitions: int) -> Iterator[float]:
    """A table of its own, for as long as this lasts; gives how long it took until all copies were in sync."""
    body = {
        "apiVersion": "fencekv.io/v1alpha1",
        "kind": "KVTable",
        "metadata": {"name": NAME},
        "spec": {
            "namespace": "sample",
            "partitioning": {"strategy": "hash", "count": partitions},
            "replicas": 2,
            "minInSync": 1,
            "durability": "replicated",
            "deletionPolicy": "Delete",
        },
    }
    began = time.monotonic()
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(body))
    try:
        for condition in ("Ready", "Reconciling=False", "Degraded=False"):
            cluster.wait(f"--for=condition={condition}", f"kvt/{NAME}", seconds=WAIT_SECONDS)
        ready_seconds = time.monotonic() - began
        say(f"{partitions} partitions ready after {ready_seconds:.1f} s")
        yield ready_seconds
    finally:
        cluster.kubectl("delete", "kvt", NAME, f"--timeout={DELETE_SECONDS:g}s", seconds=DELETE_SECONDS + 10)


def rest(cluster: Cluster, *, ready_seconds: float) -> Rest:
    """Lets it be for a while, and counts."""
    shards, leaders, others, began = *_renewals(cluster), _others(cluster), time.monotonic()
    time.sleep(REST_SECONDS)
    seconds = time.monotonic() - began
    shards_after, leaders_after, others_after = *_renewals(cluster), _others(cluster)
    written = changes(shards, shards_after) + others_after - others
    pods = cluster.names("pods", *OPERATOR, "-l", "app.kubernetes.io/name=fencekv-operator")
    return Rest(
        partitions=len(cluster.names("kvp", "-l", f"fencekv.io/table={NAME}")),
        ready_seconds=ready_seconds,
        shard_writes_per_second=written / seconds / len(SHARDS),
        leader_writes_per_second=changes(leaders, leaders_after) / seconds,
        operator_megabytes=tuple(resident_megabytes(_status(cluster, pod)) for pod in pods),
    )


Marks = Mapping[str, tuple[str, int]]  # of each Lease by its UID: version, and renewal number


def _renewals(cluster: Cluster) -> tuple[Marks, Marks]:
    """Leases of sessions and partitions, and the operator's."""
    leader = cluster.get("lease", "fencekv-operator", *OPERATOR)
    return marks(cluster.get("lease", "-l", "fencekv.io/kind")["items"]), marks([leader])


def marks(leases: Iterable[Object]) -> Marks:
    """By what a Lease's writes can be counted."""
    metas = [lease["metadata"] for lease in leases]
    return {
        meta["uid"]: (meta["resourceVersion"], int((meta.get("annotations") or {}).get(RENEWAL) or 0))
        for meta in metas
    }


def changes(before: Marks, after: Marks) -> int:
    """How many writes led from one to the other, at least: renewals are numbered, of others one is seen."""
    count = len(before.keys() - after.keys()) + len(after.keys() - before.keys())
    for uid in before.keys() & after.keys():
        (version, renewal), (new_version, new_renewal) = before[uid], after[uid]
        count += max(new_renewal - renewal, int(version != new_version))
    return count


def _others(cluster: Cluster) -> float:
    return writes(cluster.kubectl("get", "--raw", "/metrics"))


def writes(metrics: str) -> float:
    """All writes that an API server's metrics tell of, but those of `NOT_COUNTED`."""
    lines = [line for line in metrics.splitlines() if line.startswith(COUNTER + "{")]
    assert lines, f"no {COUNTER} in the API server's metrics"
    samples = [
        sample
        for family in text_string_to_metric_families("\n".join(lines) + "\n")
        for sample in family.samples
        if sample.labels["verb"] in WRITES and sample.labels["resource"] not in NOT_COUNTED
    ]
    return sum(sample.value for sample in samples)


def _status(cluster: Cluster, pod: str) -> str:
    return cluster.kubectl("exec", *OPERATOR, pod, "--", "python", "-c", STATUS)


def resident_megabytes(status: str) -> float:
    """Resident memory by /proc/PID/status, in 10^6 bytes."""
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024 / 1e6
