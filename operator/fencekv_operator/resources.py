"""The objects that the operator makes, built from values. Nothing is read or written here.

Invariants:
  * Equal settings build equal objects, so that a repeated reconciliation changes nothing.
  * Every object has a controlling ownerReference, so that it goes with what it was made for even while no operator
    runs. `blockOwnerDeletion` is false throughout: nothing here may hold up a deletion.
  * A shard's rights end at its own namespace's Leases and at reading FenceKV's custom resources.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fencekv.codec import canonical_json
from fencekv.kube import (
    BUDGETS,
    KV_NAMESPACES,
    KV_PARTITIONS,
    KV_TABLES,
    NETWORK_POLICIES,
    ROLE_BINDINGS,
    ROLES,
    SERVICE_ACCOUNTS,
    SERVICES,
    STATEFUL_SETS,
    Resource,
)
from fencekv.leases import GROUP, KIND_SHARD, LABEL_KIND, LABEL_NAMESPACE, LABEL_TABLE, new_partition_lease
from fencekv_operator.settings import (
    HTTP_PORT,
    PEER_PORT,
    NamespaceSettings,
    OperatorSettings,
    TableSettings,
)

Object = dict[str, Any]

SPEC_HASH: Final = f"{GROUP}/spec-hash"
OPERATOR_LABEL: Final = {"app.kubernetes.io/name": "fencekv-operator"}
# The user that distroless images run as; nothing needs this very number but file ownership on the volumes.
SHARD_USER: Final = 65532
ZONE: Final = "topology.kubernetes.io/zone"
PRE_STOP_SECONDS: Final = 2
# Outlasts the sleep before SIGTERM, the shard's drain and close, and the release of its session.
TERMINATION_GRACE_SECONDS: Final = 60

# What a KVNamespace owns, in the order in which it is made: pods need all else first.
OWNED: Final[tuple[Resource, ...]] = (
    SERVICE_ACCOUNTS,
    ROLES,
    ROLE_BINDINGS,
    SERVICES,
    NETWORK_POLICIES,
    BUDGETS,
    STATEFUL_SETS,
)

# What a StatefulSet lets nobody change after it was made.
STATEFUL_SET_FIXED: Final = frozenset(
    {"selector", "serviceName", "volumeClaimTemplates", "podManagementPolicy", "revisionHistoryLimit"}
)


def shard_labels(kvns: str) -> dict[str, str]:
    """Labels of a namespace's shard pods and of their volume claims."""
    return {LABEL_NAMESPACE: kvns, LABEL_KIND: KIND_SHARD}


def namespace_objects(
    kvns: NamespaceSettings, operator: OperatorSettings, *, replicas: int, unavailable_max: int
) -> list[tuple[Resource, Object]]:
    """Everything that a KVNamespace owns, each with a hash of what was asked for."""
    built = [
        (SERVICE_ACCOUNTS, service_account(kvns)),
        (ROLES, role(kvns)),
        (ROLE_BINDINGS, role_binding(kvns)),
        (SERVICES, headless_service(kvns)),
        (SERVICES, client_service(kvns)),
        (NETWORK_POLICIES, network_policy(kvns, operator)),
        (BUDGETS, disruption_budget(kvns, unavailable_max=unavailable_max)),
        (STATEFUL_SETS, stateful_set(kvns, replicas=replicas, priority_class=operator.priority_class)),
    ]
    return [(resource, hashed(body)) for resource, body in built]


def hashed(body: Object) -> Object:
    """The object with a hash of itself: it tells a field that we dropped from one that the server filled in."""
    digest = hashlib.sha256(canonical_json(body).encode()).hexdigest()[:16]
    marked = copy.deepcopy(body)
    marked["metadata"].setdefault("annotations", {})[SPEC_HASH] = digest
    return marked


def owner_reference(resource: Resource, *, name: str, uid: str) -> Object:
    """A controlling ownerReference that blocks nothing."""
    return {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "name": name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def headless_name(kvns: str) -> str:
    """Name of the headless Service."""
    return f"{kvns}-shards"


def shard_account(kvns: str) -> str:
    """Name of the shards' ServiceAccount, Role and RoleBinding."""
    return f"fencekv-shard-{kvns}"


def service_account(kvns: NamespaceSettings) -> Object:
    """The identity of the shards."""
    return _owned(SERVICE_ACCOUNTS, kvns, shard_account(kvns.name), {})


def role(kvns: NamespaceSettings) -> Object:
    """What a shard may do: keep Leases, and read what it serves."""
    rules = [
        {
            "apiGroups": ["coordination.k8s.io"],
            "resources": ["leases"],
            "verbs": ["get", "list", "watch", "create", "update"],
        },
        {"apiGroups": [GROUP], "resources": ["kvpartitions", "kvnamespaces"], "verbs": ["list", "watch"]},
    ]
    return _owned(ROLES, kvns, shard_account(kvns.name), {"rules": rules})


def role_binding(kvns: NamespaceSettings) -> Object:
    """Gives the shards their role."""
    name = shard_account(kvns.name)
    subject = {"kind": "ServiceAccount", "name": name, "namespace": kvns.identity.namespace}
    body = {
        "roleRef": {"apiGroup": ROLES.group, "kind": ROLES.kind, "name": name},
        "subjects": [subject],
    }
    return _owned(ROLE_BINDINGS, kvns, name, body)


def headless_service(kvns: NamespaceSettings) -> Object:
    """Names of the single pods. Also of those not ready: a standby must find an owner that is starting."""
    spec = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": shard_labels(kvns.name),
        "ports": _service_ports(with_peer=True),
    }
    return _owned(SERVICES, kvns, headless_name(kvns.name), {"spec": spec})


def client_service(kvns: NamespaceSettings) -> Object:
    """Where clients find any shard that is ready."""
    spec = {
        "type": "ClusterIP",
        "selector": shard_labels(kvns.name),
        "ports": _service_ports(with_peer=False),
    }
    return _owned(SERVICES, kvns, kvns.name, {"spec": spec})


def disruption_budget(kvns: NamespaceSettings, *, unavailable_max: int) -> Object:
    """How many shards a drain may take at once."""
    spec = {
        "maxUnavailable": unavailable_max,
        "selector": {"matchLabels": shard_labels(kvns.name)},
    }
    return _owned(BUDGETS, kvns, kvns.name, {"spec": spec})


def network_policy(kvns: NamespaceSettings, operator: OperatorSettings) -> Object:
    """Clients of the cluster reach the HTTP port; the replication port is for shards and the operator."""
    shards = {"podSelector": {"matchLabels": shard_labels(kvns.name)}}
    operators = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": operator.namespace}},
        "podSelector": {"matchLabels": OPERATOR_LABEL},
    }
    spec = {
        "podSelector": {"matchLabels": shard_labels(kvns.name)},
        "policyTypes": ["Ingress"],
        "ingress": [
            {"from": [{"namespaceSelector": {}}], "ports": [{"protocol": "TCP", "port": HTTP_PORT}]},
            {"from": [shards, operators], "ports": [{"protocol": "TCP", "port": PEER_PORT}]},
        ],
    }
    return _owned(NETWORK_POLICIES, kvns, kvns.name, {"spec": spec})


def stateful_set(kvns: NamespaceSettings, *, replicas: int, priority_class: str = "") -> Object:
    """The shard pods. All start at once: they need nothing of each other to start."""
    labels = shard_labels(kvns.name)
    claim: Object = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": kvns.shards.storage_size}},
    }
    if kvns.shards.storage_class:
        claim["storageClassName"] = kvns.shards.storage_class
    spec = {
        "replicas": replicas,
        "podManagementPolicy": "Parallel",
        "serviceName": headless_name(kvns.name),
        "selector": {"matchLabels": labels},
        # The operator restarts them itself, one by one: this controller knows nothing of in-sync sets.
        "updateStrategy": {"type": "OnDelete"},
        "template": {"metadata": {"labels": labels}, "spec": _pod_spec(kvns, priority_class)},
        "volumeClaimTemplates": [{"metadata": {"name": "data", "labels": labels}, "spec": claim}],
    }
    return _owned(STATEFUL_SETS, kvns, kvns.name, {"spec": spec})


def partition_name(table: str, index: int) -> str:
    """Name of a KVPartition."""
    return f"{table}-{index}"


def partition_spec(table: TableSettings, *, index: int, replicas: Sequence[str]) -> Object:
    """All that a shard needs to know of a partition."""
    return {
        "namespace": table.kvns,
        "table": table.name,
        "tableUID": table.identity.uid,
        "index": index,
        "partitioning": dict(table.partitioning),
        "durability": table.durability,
        "minInSync": table.min_in_sync,
        "maxUnshippedSeconds": table.max_unshipped_seconds,
        "history": {"windowSeconds": table.history_seconds},
        "replicas": list(replicas),
        "limits": dict(table.limits),
        "deletionPolicy": table.deletion_policy,
    }


def partition_object(table: TableSettings, *, index: int, replicas: Sequence[str]) -> Object:
    """A partition of a table, placed on `replicas`."""
    return {
        "apiVersion": KV_PARTITIONS.api_version,
        "kind": KV_PARTITIONS.kind,
        "metadata": {
            "name": partition_name(table.name, index),
            "namespace": table.identity.namespace,
            "labels": {LABEL_NAMESPACE: table.kvns, LABEL_TABLE: table.name},
            "ownerReferences": [owner_reference(KV_TABLES, name=table.name, uid=table.identity.uid)],
        },
        "spec": partition_spec(table, index=index, replicas=replicas),
    }


def partition_lease(partition: Mapping[str, Any]) -> Object:
    """The ownership record of a partition that nobody was ever granted."""
    meta, spec = partition["metadata"], partition["spec"]
    return new_partition_lease(
        partition=meta["name"],
        partition_uid=meta["uid"],
        table=spec["table"],
        kvns=spec["namespace"],
        namespace=meta["namespace"],
        owner=owner_reference(KV_PARTITIONS, name=meta["name"], uid=meta["uid"]),
    )


def _owned(resource: Resource, kvns: NamespaceSettings, name: str, body: Object) -> Object:
    owner = owner_reference(KV_NAMESPACES, name=kvns.name, uid=kvns.identity.uid)
    return {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {
            "name": name,
            "namespace": kvns.identity.namespace,
            "labels": {LABEL_NAMESPACE: kvns.name, "app.kubernetes.io/part-of": "fencekv"},
            "ownerReferences": [owner],
        },
        **body,
    }


def _service_ports(*, with_peer: bool) -> list[Object]:
    ports: list[Object] = [
        {"name": "http", "port": HTTP_PORT, "targetPort": HTTP_PORT, "protocol": "TCP"},
        {"name": "peer", "port": PEER_PORT, "targetPort": PEER_PORT, "protocol": "TCP"},
    ]
    return ports if with_peer else ports[:1]


def _pod_spec(kvns: NamespaceSettings, priority_class: str) -> Object:
    selector = {"matchLabels": shard_labels(kvns.name)}
    spread = kvns.shards.topology_spread
    return {
        **({"priorityClassName": priority_class} if priority_class else {}),
        **({"affinity": _apart(ZONE, selector)} if spread and not _names(spread, ZONE) else {}),
        "serviceAccountName": shard_account(kvns.name),
        "terminationGracePeriodSeconds": TERMINATION_GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": SHARD_USER,
            "runAsGroup": SHARD_USER,
            "fsGroup": SHARD_USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "nodeSelector": dict(kvns.shards.node_selector),
        "tolerations": [dict(toleration) for toleration in kvns.shards.tolerations],
        "topologySpreadConstraints": [{**rule, "labelSelector": selector} for rule in spread],
        "containers": [_container(kvns)],
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "16Mi"}}],
    }


def _apart(topology_key: str, selector: Object) -> Object:
    """Shards rather stand apart. Not a spread constraint: where nodes carry no such label, one that names it
    takes the others along, and nothing is spread any more."""
    term = {"topologyKey": topology_key, "labelSelector": selector}
    preferred = [{"weight": 100, "podAffinityTerm": term}]
    return {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}


def _names(spread: Sequence[Object], topology_key: str) -> bool:
    return any(rule["topologyKey"] == topology_key for rule in spread)


def _container(kvns: NamespaceSettings) -> Object:
    return {
        "name": "shard",
        "image": kvns.shards.image,
        "imagePullPolicy": kvns.shards.image_pull_policy,
        "command": ["fencekv-shard"],
        "env": _environment(kvns.name),
        "ports": [
            {"name": "http", "containerPort": HTTP_PORT, "protocol": "TCP"},
            {"name": "peer", "containerPort": PEER_PORT, "protocol": "TCP"},
        ],
        # A shard that replays a long journal is alive, so nothing kills it in its first two minutes.
        "startupProbe": _probe("/healthz", period=1, failures=120),
        "readinessProbe": _probe("/readyz", period=1, failures=3),
        "livenessProbe": {**_probe("/healthz", period=5, failures=4), "initialDelaySeconds": 10},
        "resources": copy.deepcopy(kvns.shards.resources),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
        },
        # The session's last word is read from this file; container logs must never take its place.
        "terminationMessagePolicy": "File",
        # New connections must have stopped coming through the Service before the shard closes its port. What it
        # owns it gives away after that, at SIGTERM.
        "lifecycle": {"preStop": {"sleep": {"seconds": PRE_STOP_SECONDS}}},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 paths in the container
    }


def _probe(path: str, *, period: int, failures: int) -> Object:
    return {
        "httpGet": {"path": path, "port": HTTP_PORT, "scheme": "HTTP"},
        "periodSeconds": period,
        "timeoutSeconds": 2,
        "failureThreshold": failures,
    }


def _environment(kvns: str) -> list[Object]:
    def field(name: str, path: str) -> Object:
        return {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}

    return [
        {"name": "FENCEKV_NAMESPACE", "value": kvns},
        field("FENCEKV_POD", "metadata.name"),
        field("FENCEKV_POD_UID", "metadata.uid"),
        field("FENCEKV_POD_IP", "status.podIP"),
        {"name": "FENCEKV_DATA", "value": "/data"},
        {"name": "FENCEKV_HTTP_PORT", "value": str(HTTP_PORT)},
        {"name": "FENCEKV_PEER_PORT", "value": str(PEER_PORT)},
        {"name": "PYTHONDONTWRITEBYTECODE", "value": "1"},
    ]
