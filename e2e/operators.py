"""Two operators that lead at the same time.

Candidates for one Lease never do: who was frozen knows by its own clock, once it goes on, that it leads no more.
So the second one is told that it lives in another namespace, where its Lease is its own, and acts on all of the
cluster like the first, with the same account.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from guarding import Fault
from kubectl import Cluster, Object
from sample import OPERATOR, leader

SECOND: Final = "fencekv-operator-second"
ELSEWHERE: Final = "default"  # the namespace of its Lease
ACCOUNT: Final = "/var/run/fencekv-account"
LEASE: Final = ("lease", "fencekv-operator", "-n", ELSEWHERE)
LEADING: Final = "fencekv_operator_leading"
GRANTS: Final = "fencekv_operator_owner_changes_total"
PROBE_PORT: Final = 8080


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What an operator tells of itself."""

    pod: str
    is_leading: bool
    grants: int  # that it made since it was started


def seen(cluster: Cluster, pod: str) -> Seen:
    """An operator's own metrics, by way of the API server."""
    path = f"/api/v1/namespaces/{OPERATOR[1]}/pods/{pod}:{PROBE_PORT}/proxy/metrics"
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(cluster.kubectl("get", "--raw", path)):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return Seen(pod=pod, is_leading=sums[LEADING] == 1, grants=int(sums.get(GRANTS, 0)))


def both(cluster: Cluster) -> tuple[Seen, Seen]:
    """The first and the second, which lead, both.

    Raises:
        AssertionError: one of them does not, or its Lease names another one.
    """
    pair = seen(cluster, leader(cluster)), seen(cluster, SECOND)
    holder = cluster.get(*LEASE)["spec"].get("holderIdentity") or ""
    assert holder.partition("_")[0] == SECOND, f"the Lease in {ELSEWHERE} is held by {holder!r}"
    assert all(each.is_leading for each in pair), f"not two that lead: {pair}"
    return pair


def second(cluster: Cluster) -> Fault:
    """Another operator, beside the control plane, whose node no drill touches; undone by removing it."""
    deployment = cluster.get("deployment", "fencekv-operator", *OPERATOR)
    made = json.dumps({"apiVersion": "v1", "kind": "List", "items": _objects(deployment)})
    kubectl = f"env KUBECONFIG={shlex.quote(cluster.environment['KUBECONFIG'])} kubectl"
    there = f"-n {OPERATOR[1]} configmap/{SECOND} pod/{SECOND}"
    away = f"{kubectl} delete --ignore-not-found --now --wait"
    return Fault(
        name="a second operator leads",
        harm=[("sh", "-ec", f"printf %s {shlex.quote(made)} | {kubectl} apply -f -")],
        undo=[("sh", "-ec", f"{away} {there}\n{away} {' '.join(LEASE[2:])} {'/'.join(LEASE[:2])}")],
        check=("sh", "-ec", f'test -z "$({kubectl} get {there} --ignore-not-found -o name)"'),
    )


def _objects(deployment: Object) -> list[Object]:
    """A pod as the Deployment has it, but for where it runs and what it takes for its namespace."""
    spec: Object = json.loads(json.dumps(deployment["spec"]["template"]["spec"]))
    spec.pop("topologySpreadConstraints", None)
    control_plane = "node-role.kubernetes.io/control-plane"
    spec["nodeSelector"] = {control_plane: ""}
    spec["tolerations"] = [{"key": control_plane, "operator": "Exists", "effect": "NoSchedule"}]
    spec["volumes"].append({"name": "account", "projected": {"sources": _account()}})
    container = next(each for each in spec["containers"] if each["name"] == "operator")
    container["env"].append({"name": "FENCEKV_SERVICEACCOUNT", "value": ACCOUNT})
    container["volumeMounts"].append({"name": "account", "mountPath": ACCOUNT, "readOnly": True})
    # Without the Deployment's labels: it would take the pod for one of its own, and remove one.
    meta = {"name": SECOND, "namespace": OPERATOR[1]}
    place = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"namespace": ELSEWHERE}}
    return [place, {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}]


def _account() -> list[Object]:
    """What the kubelet puts into an account's folder, but for the namespace."""
    return [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"configMap": {"name": SECOND, "items": [{"key": "namespace", "path": "namespace"}]}},
    ]
