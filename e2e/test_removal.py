"""The sample is taken away again, and leaves nothing. The last file: nothing is there behind it."""

from __future__ import annotations

import json

import pytest

from kubectl import Cluster, Failed
from sample import OPERATOR

pytestmark = pytest.mark.timeout(420)


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
