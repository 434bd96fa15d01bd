"""The objects that the operator makes, and when it finds that one differs."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from operator_world import OPERATOR, kvns_object, table_object

from fencekv.leases import PartitionLease
from fencekv_operator import resources
from fencekv_operator.compare import matches, merge_patch
from fencekv_operator.settings import NamespaceSettings, OperatorSettings, TableSettings
from fencekv_shard import limits, supervisor

Object = dict[str, Any]


def kvns(**spec: Any) -> NamespaceSettings:
    obj = kvns_object(**spec)
    obj["metadata"].update(uid="u-ns", resourceVersion="1")
    return NamespaceSettings.parse(obj, OPERATOR)


def table(namespace: NamespaceSettings | None = None, **spec: Any) -> TableSettings:
    obj = table_object(**spec)
    obj["metadata"].update(uid="u-t", resourceVersion="1")
    return TableSettings.parse(obj, namespace or kvns())


def pod_of(namespace: NamespaceSettings) -> Object:
    pod: Object = resources.stateful_set(namespace, replicas=3)["spec"]["template"]
    return pod


def test_equal_settings_build_equal_objects() -> None:
    def build() -> list[Any]:
        return resources.namespace_objects(kvns(), OPERATOR, replicas=3, unavailable_max=1)

    assert build() == build()


def test_everything_is_owned_and_blocks_no_deletion() -> None:
    for _, body in resources.namespace_objects(kvns(), OPERATOR, replicas=3, unavailable_max=1):
        (owner,) = body["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"], owner["controller"]) == ("KVNamespace", "u-ns", True)
        assert owner["blockOwnerDeletion"] is False
        assert body["metadata"]["labels"]["fencekv.io/namespace"] == "sample"


def test_pods_meet_the_restricted_profile() -> None:
    pod = pod_of(kvns())["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_the_container_is_what_the_shard_expects() -> None:
    pod = pod_of(kvns())
    (container,) = pod["spec"]["containers"]
    assert container["command"] == ["fencekv-shard"]
    assert container["terminationMessagePolicy"] == "File", "the session's last word, and never a log's"
    environment = {each["name"]: each for each in container["env"]}
    assert environment["FENCEKV_NAMESPACE"]["value"] == "sample"
    fields = {
        name: environment[name]["valueFrom"]["fieldRef"]["fieldPath"]
        for name in ("FENCEKV_POD", "FENCEKV_POD_UID", "FENCEKV_POD_IP")
    }
    assert list(fields.values()) == ["metadata.name", "metadata.uid", "status.podIP"]
    assert {port["containerPort"] for port in container["ports"]} == {7070, 7071}
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert pod["metadata"]["labels"] == {"fencekv.io/namespace": "sample", "fencekv.io/kind": "shard"}


def test_a_pod_has_time_to_give_away_what_it_owns() -> None:
    pod = pod_of(kvns())["spec"]
    sleep = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    release = supervisor.RELEASE_ATTEMPTS * supervisor.RELEASE_PAUSE_SECONDS + supervisor.REQUEST_SECONDS
    needed = sleep + limits.DRAIN_SECONDS + limits.CLOSE_SECONDS + release
    assert needed + 10 <= pod["terminationGracePeriodSeconds"]


def test_pods_are_replaced_by_the_operator_alone() -> None:
    assert resources.stateful_set(kvns(), replicas=3)["spec"]["updateStrategy"] == {"type": "OnDelete"}


@pytest.mark.parametrize(
    ("what", "spread", "apart"),
    [
        ("nothing said", None, True),
        ("over nodes", [{"topologyKey": "kubernetes.io/hostname", "maxSkew": 1}], True),
        ("over zones, in their own words", [{"topologyKey": resources.ZONE, "maxSkew": 1}], False),
        ("not at all", [], False),
    ],
)
def test_shards_rather_stand_in_different_zones(what: str, spread: list[Object] | None, apart: bool) -> None:
    shards: Object = {} if spread is None else {"topologySpread": spread}
    pod = pod_of(kvns(shards=shards))["spec"]
    assert ("affinity" in pod) is apart, what
    if apart:
        terms = pod["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
        assert [each["podAffinityTerm"]["topologyKey"] for each in terms] == [resources.ZONE]


def test_a_priority_class_is_named_where_the_operator_was_told_one() -> None:
    def found(operator: OperatorSettings) -> Object:
        objects = resources.namespace_objects(kvns(), operator, replicas=3, unavailable_max=1)
        built = {resource.plural: body for resource, body in objects}
        spec: Object = built["statefulsets"]["spec"]["template"]["spec"]
        return spec

    assert "priorityClassName" not in found(OPERATOR)
    assert found(replace(OPERATOR, priority_class="high"))["priorityClassName"] == "high"


def test_the_pool_starts_all_at_once_on_claims_that_carry_its_labels() -> None:
    spec = resources.stateful_set(kvns(), replicas=5)["spec"]
    assert (spec["podManagementPolicy"], spec["replicas"], spec["serviceName"]) == ("Parallel", 5, "sample-shards")
    (claim,) = spec["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == "data"
    assert claim["metadata"]["labels"]["fencekv.io/namespace"] == "sample"
    assert spec["template"]["spec"]["containers"][0]["volumeMounts"][0] == {"name": "data", "mountPath": "/data"}


def test_what_the_namespace_says_reaches_the_pods() -> None:
    spec = {
        "image": "mine:1",
        "imagePullPolicy": "Always",
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "x", "operator": "Exists"}],
        "topologySpread": [{"topologyKey": "zone", "maxSkew": 2, "whenUnsatisfiable": "DoNotSchedule"}],
        "resources": {"limits": {"memory": "1Gi"}},
        "storage": {"size": "5Gi", "storageClassName": "fast"},
    }
    pod = pod_of(kvns(shards=spec))["spec"]
    assert pod["containers"][0]["image"] == "mine:1"
    assert pod["containers"][0]["imagePullPolicy"] == "Always"
    assert pod["containers"][0]["resources"] == {"limits": {"memory": "1Gi"}}
    assert pod["nodeSelector"] == {"disk": "fast"}
    assert pod["tolerations"] == [{"key": "x", "operator": "Exists"}]
    (spread,) = pod["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["maxSkew"]) == ("zone", 2)
    assert spread["labelSelector"]["matchLabels"]["fencekv.io/namespace"] == "sample"
    (claim,) = resources.stateful_set(kvns(shards=spec), replicas=1)["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["storageClassName"] == "fast"
    assert claim["spec"]["resources"]["requests"]["storage"] == "5Gi"


def test_a_shard_may_keep_leases_and_read_what_it_serves_and_nothing_else() -> None:
    rules = resources.role(kvns())["rules"]
    allowed = {(name, verb) for rule in rules for name in rule["resources"] for verb in rule["verbs"]}
    verbs = {verb for name, verb in allowed if name == "leases"}
    assert verbs == {"get", "list", "watch", "create", "update"}
    for name in ("kvpartitions", "kvnamespaces"):
        assert {verb for each, verb in allowed if each == name} == {"list", "watch"}
    assert len({name for name, _ in allowed}) == 3


def test_the_replication_port_is_for_shards_and_the_operator() -> None:
    http, peer = resources.network_policy(kvns(), OPERATOR)["spec"]["ingress"]
    assert http == {"from": [{"namespaceSelector": {}}], "ports": [{"protocol": "TCP", "port": 7070}]}
    assert peer["ports"] == [{"protocol": "TCP", "port": 7071}]
    shards, operator = peer["from"]
    assert shards["podSelector"]["matchLabels"]["fencekv.io/namespace"] == "sample"
    assert operator["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "fencekv-system"}


def test_peers_find_pods_that_are_not_ready() -> None:
    spec = resources.headless_service(kvns())["spec"]
    assert (spec["clusterIP"], spec["publishNotReadyAddresses"]) == ("None", True)
    assert resources.client_service(kvns())["spec"]["type"] == "ClusterIP"


def test_a_partition_carries_all_that_a_shard_needs() -> None:
    obj = resources.partition_object(table(count=4), index=3, replicas=("sample-0", "sample-1"))
    assert obj["metadata"]["name"] == "orders-3"
    assert obj["spec"] == {
        "namespace": "sample",
        "table": "orders",
        "tableUID": "u-t",
        "index": 3,
        "partitioning": {"strategy": "hash", "count": 4},
        "durability": "replicated",
        "minInSync": 1,
        "maxUnshippedSeconds": 1,
        "history": {"windowSeconds": 0},
        "replicas": ["sample-0", "sample-1"],
        "limits": {"valueBytesMax": 1048576, "keyPattern": ""},
        "deletionPolicy": "Retain",
    }


def test_a_partition_carries_the_tables_history_window() -> None:
    obj = resources.partition_object(table(history={"windowSeconds": 3600}), index=0, replicas=("sample-0",))
    assert obj["spec"]["history"] == {"windowSeconds": 3600}


def test_a_new_record_names_its_partition_and_goes_with_it() -> None:
    obj = resources.partition_object(table(), index=0, replicas=("sample-0",))
    obj["metadata"]["uid"] = "u-p"
    lease = resources.partition_lease(obj)
    lease["metadata"].update(uid="u-l", resourceVersion="1")
    parsed = PartitionLease.parse(lease)
    assert (parsed.partition_uid, parsed.epoch, parsed.session) == ("u-p", 0, None)
    assert lease["metadata"]["ownerReferences"][0]["kind"] == "KVPartition"


@pytest.mark.parametrize(
    ("defaults", "spec", "wanted"),
    [
        ({}, {}, ("replicated", 2, 1)),
        ({"durability": "standard", "replicas": 1}, {}, ("standard", 1, 1)),
        ({"durability": "standard"}, {"durability": "replicated"}, ("replicated", 2, 1)),
        ({"minInSync": 2}, {"replicas": 1}, ("replicated", 1, 1)),
        ({}, {"durability": "standard", "replicas": 0}, ("standard", 0, 0)),
        ({}, {"replicas": 3, "minInSync": 3}, ("replicated", 3, 3)),
    ],
)
def test_a_table_goes_before_its_namespace(defaults: Object, spec: Object, wanted: tuple[str, int, int]) -> None:
    settings = table(kvns(defaults=defaults), **spec)
    assert (settings.durability, settings.standbys, settings.min_in_sync) == wanted


MATCHES = [
    ("what the server adds is no difference", {"a": 1}, {"a": 1, "b": 2}, True),
    ("a changed value is", {"a": 1}, {"a": 2}, False),
    ("a missing one is", {"a": 1}, {}, False),
    ("an empty one may be left out", {"a": [], "b": {}, "c": ""}, {}, True),
    ("lists are compared as they stand", {"a": [1, 2]}, {"a": [2, 1]}, False),
    ("a longer list is a difference", {"a": [{"x": 1}]}, {"a": [{"x": 1, "y": 0}, {"x": 2}]}, False),
    ("defaults inside lists are none", {"a": [{"x": 1}]}, {"a": [{"x": 1, "y": 0}]}, True),
    ("quantities may be spelt differently", {"memory": "1024Mi"}, {"memory": "1Gi"}, True),
    ("cores too", {"cpu": "0.5"}, {"cpu": "500m"}, True),
    ("other quantities are others", {"memory": "1G"}, {"memory": "1Gi"}, False),
    (
        "a label that we dropped is to go",
        {"nodeSelector": {"a": "1"}},
        {"nodeSelector": {"a": "1", "b": "2"}},
        False,
    ),
    ("words are not quantities", {"a": "NaN"}, {"a": "nan"}, False),
]


@pytest.mark.parametrize(("what", "ours", "theirs", "same"), MATCHES, ids=[case[0] for case in MATCHES])
def test_a_difference(what: str, ours: Object, theirs: Object, same: bool) -> None:
    assert matches(ours, theirs) is same
    merged = _merged(copy.deepcopy(theirs), merge_patch(ours, theirs))
    assert matches(ours, merged), "the patch mends what it is made for"


def _merged(obj: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    result = dict(obj) if isinstance(obj, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), value)
    return result
