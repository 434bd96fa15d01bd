"""What can be said of crds/ and manifests/ without an API server: complete, bounded, least-privileged."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crd_cases
import pytest
import yaml

from fencekv_operator.resources import role, shard_account
from fencekv_operator.settings import NamespaceSettings, OperatorSettings

ROOT = Path(__file__).parents[2]
STORED = {"namespace": "default", "uid": "5f0c7e3e", "resourceVersion": "1"}
KINDS = {"kvnamespaces": "kvns", "kvtables": "kvt", "kvpartitions": "kvp", "kvoperations": "kvo"}


@functools.cache
def documents(path: str) -> tuple[dict[str, Any], ...]:
    """The objects of a YAML file."""
    return tuple(yaml.safe_load_all((ROOT / path).read_text(encoding="utf-8")))


def crd(plural: str) -> dict[str, Any]:
    """A CRD as it stands in its file."""
    [made] = documents(f"crds/{plural}.yaml")
    return made


def schema_of(plural: str) -> dict[str, Any]:
    """The schema of its only version."""
    [version] = crd(plural)["spec"]["versions"]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return schema


def nodes(path: str, schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each node of a schema with its path; `metadata` is the API server's own."""
    yield path, schema
    for name, below in schema.get("properties", {}).items():
        if f"{path}.{name}" != ".metadata":
            yield from nodes(f"{path}.{name}", below)
    if "items" in schema:
        yield from nodes(f"{path}[]", schema["items"])
    if "additionalProperties" in schema:
        yield from nodes(f"{path}{{}}", schema["additionalProperties"])


ALL_NODES = [
    pytest.param(node, id=plural + path) for plural in KINDS for path, node in nodes("", schema_of(plural))
]


@pytest.mark.parametrize("node", ALL_NODES)
def test_every_field_is_described_and_bounded(node: dict[str, Any]) -> None:
    assert re.fullmatch(r"[A-Za-z].*\.", node["description"]), "a description is a sentence"
    if node.get("x-kubernetes-int-or-string"):
        assert {"maxLength", "pattern", "minimum"} <= node.keys()
        return
    match node["type"]:
        case "string":
            assert "maxLength" in node
        case "array":
            assert {"maxItems", "items", "x-kubernetes-list-type"} <= node.keys()
        case "integer":
            assert {"minimum", "format"} <= node.keys()
        case "number":
            assert "minimum" in node
        case "boolean":
            pass
        case "object":
            assert ("properties" in node) != ("additionalProperties" in node)
            assert "additionalProperties" not in node or "maxProperties" in node
            assert set(node.get("required", [])) <= set(node.get("properties", {}))
            assert set(node.get("x-kubernetes-list-map-keys", [])) <= set(node.get("required", []))
        case other:
            raise AssertionError(f"no rule for type {other}")


@pytest.mark.parametrize("node", ALL_NODES)
def test_every_rule_has_a_message_and_names_a_field_that_exists(node: dict[str, Any]) -> None:
    for rule in node.get("x-kubernetes-validations", []):
        assert rule.keys() <= {"rule", "message", "fieldPath"}
        assert rule["message"]
        field = node
        for name in filter(None, rule.get("fieldPath", "").split(".")):
            field = field["properties"][name]


@pytest.mark.parametrize(("plural", "short"), KINDS.items())
def test_a_kind_is_served_with_names_status_and_columns(plural: str, short: str) -> None:
    spec = crd(plural)["spec"]
    [version] = spec["versions"]

    assert crd(plural)["metadata"]["name"] == f"{plural}.fencekv.io"
    assert (spec["group"], spec["scope"], version["name"]) == ("fencekv.io", "Namespaced", "v1alpha1")
    assert spec["names"]["shortNames"] == [short]
    assert spec["names"]["categories"] == ["fencekv"]
    assert version["subresources"] == {"status": {}}
    assert version["additionalPrinterColumns"][-1]["jsonPath"] == ".metadata.creationTimestamp"


@pytest.mark.parametrize("plural", KINDS)
def test_a_column_shows_a_field_that_exists(plural: str) -> None:
    [version] = crd(plural)["spec"]["versions"]
    known = {path for path, _ in nodes("", schema_of(plural))} | {".metadata.creationTimestamp"}
    for column in version["additionalPrinterColumns"]:
        assert re.sub(r"\[\?.*?\]", "[]", column["jsonPath"]) in known, column


def test_conditions_are_alike_in_all_kinds() -> None:
    forms = []
    for plural in KINDS:
        form = yaml.safe_load(
            yaml.safe_dump(schema_of(plural)["properties"]["status"]["properties"]["conditions"])
        )
        del form["items"]["properties"]["type"]["description"]
        forms.append(form)
    assert all(form == forms[0] for form in forms)


def test_a_table_and_its_partitions_agree_on_what_they_share() -> None:
    table = schema_of("kvtables")["properties"]["spec"]["properties"]
    partition = schema_of("kvpartitions")["properties"]["spec"]["properties"]

    assert table["limits"]["properties"].keys() == partition["limits"]["properties"].keys()
    for name in ("count", "splitPoints"):
        mine, theirs = (dict(spec["partitioning"]["properties"][name]) for spec in (table, partition))
        assert {**mine, "description": ""} == {**theirs, "description": ""}
    assert table["durability"]["enum"] == partition["durability"]["enum"]


def test_a_partition_has_the_fields_that_the_formats_page_names() -> None:
    page = (ROOT / "docs/formats.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```yaml\n(spec:\n.*?)```", page, re.DOTALL)

    named = yaml.safe_load(example)["spec"]

    spec = schema_of("kvpartitions")["properties"]["spec"]
    assert named.keys() == spec["properties"].keys() == set(spec["required"]) | {"deletionPolicy", "history"}
    assert named["limits"].keys() == spec["properties"]["limits"]["properties"].keys()


@pytest.mark.parametrize("generator", ["docs/generate_crds.py", "docs/generate_install.py"])
def test_what_is_generated_is_up_to_date(generator: str) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / generator, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "folder", ["crds", "manifests", "manifests/base", "manifests/overlays/kind", "manifests/samples"]
)
def test_a_kustomization_names_every_file_beside_it(folder: str) -> None:
    [kustomization] = documents(f"{folder}/kustomization.yaml")
    beside = {path.name for path in (ROOT / folder).glob("*.yaml")} - {"kustomization.yaml", "install.yaml"}

    named = set(kustomization["resources"])

    assert {name for name in named if name.endswith(".yaml")} == beside
    for other in named - beside:
        # Outside its own folder kustomize takes a folder, never a file.
        assert (ROOT / folder / other / "kustomization.yaml").is_file()


def operator_rights() -> dict[str, set[str]]:
    """Verbs by group/resource."""
    rights: dict[str, set[str]] = {}
    [role] = [each for each in documents("manifests/base/rbac.yaml") if each["kind"] == "ClusterRole"]
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                rights.setdefault(f"{group}/{resource}", set()).update(rule["verbs"])
    return rights


def test_the_operator_holds_every_right_that_it_grants() -> None:
    # The API server lets nobody make a Role with rights that he has not.
    stored = {**crd_cases.valid("KVNamespace"), "metadata": {**STORED, "name": "tenant"}}
    kvns = NamespaceSettings.parse(stored, OperatorSettings(image="fencekv:dev", namespace="fencekv-system"))
    held = operator_rights()

    for rule in role(kvns)["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                assert set(rule["verbs"]) <= held[f"{group}/{resource}"], resource


def test_the_operator_holds_no_right_to_make_itself_greater() -> None:
    for resource, verbs in operator_rights().items():
        assert not verbs & {"*", "escalate", "bind", "impersonate"}, resource
        assert "*" not in resource
        assert not resource.endswith(("/secrets", "pods/exec", "/clusterroles", "/clusterrolebindings"))


def test_the_operator_runs_as_itself_and_without_privileges() -> None:
    [deployment] = documents("manifests/base/operator.yaml")
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]

    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "health"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "health"}
    assert container["ports"] == [{"name": "health", "containerPort": 8080}]
    assert {"requests", "limits"} <= container["resources"].keys()


def test_two_operators_run_and_a_drain_leaves_one() -> None:
    [deployment] = documents("manifests/base/operator.yaml")
    [budget] = documents("manifests/base/budget.yaml")

    assert deployment["spec"]["replicas"] == 2
    assert budget["spec"]["maxUnavailable"] == 1
    assert budget["spec"]["selector"] == deployment["spec"]["selector"]
    assert budget["metadata"]["namespace"] == deployment["metadata"]["namespace"]


def test_priorities_and_the_image_are_named_alike_wherever_they_are_named() -> None:
    classes = {each["metadata"]["name"] for each in documents("manifests/base/priorities.yaml")}
    [deployment] = documents("manifests/base/operator.yaml")
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    given = {each["name"]: each.get("value") for each in container["env"]}

    assert {pod["priorityClassName"], given["FENCEKV_PRIORITY_CLASS"]} == classes
    assert given["FENCEKV_IMAGE"] == container["image"]


def test_policies_know_the_operator_and_the_shards_by_their_accounts() -> None:
    [account] = [each for each in documents("manifests/base/rbac.yaml") if each["kind"] == "ServiceAccount"]
    meta = account["metadata"]
    text = (ROOT / "manifests/base/policies.yaml").read_text(encoding="utf-8")

    assert set(re.findall(r"username == '([^']+)'", text)) == {
        f"system:serviceaccount:{meta['namespace']}:{meta['name']}"
    }
    assert set(re.findall(r"username\.matches\('([^']+)'\)", text)) == {
        f"^system:serviceaccount:[^:]+:{shard_account('')}[^:]+$"
    }


def test_a_policy_is_bound_and_a_failure_of_it_lets_nothing_through() -> None:
    parts = documents("manifests/base/policies.yaml")
    policies = {each["metadata"]["name"]: each for each in parts if each["kind"] == "ValidatingAdmissionPolicy"}
    bindings = [each for each in parts if each["kind"] == "ValidatingAdmissionPolicyBinding"]

    assert {each["spec"]["policyName"] for each in bindings} == policies.keys()
    assert all(each["spec"]["validationActions"] == ["Deny"] for each in bindings)
    assert all(each["spec"]["failurePolicy"] == "Fail" for each in policies.values())


def test_the_operator_is_bound_to_its_own_account() -> None:
    objects = {each["kind"]: each for each in documents("manifests/base/rbac.yaml")}
    [deployment] = documents("manifests/base/operator.yaml")
    account = objects["ServiceAccount"]["metadata"]

    [subject] = objects["ClusterRoleBinding"]["subjects"]

    assert (subject["namespace"], subject["name"]) == (account["namespace"], account["name"])
    assert objects["ClusterRoleBinding"]["roleRef"]["name"] == objects["ClusterRole"]["metadata"]["name"]
    assert deployment["spec"]["template"]["spec"]["serviceAccountName"] == account["name"]
    assert deployment["metadata"]["namespace"] == account["namespace"]


def test_the_table_of_cases_changes_what_it_says() -> None:
    for case in [*crd_cases.BAD, *crd_cases.IMMUTABLE, *crd_cases.MUTABLE, *crd_cases.UNKNOWN_FIELDS]:
        assert crd_cases.valid(case.kind, case.changes) != crd_cases.valid(case.kind), case.id
    assert len({case.id for case in crd_cases.BAD}) == len(crd_cases.BAD) >= 60
    assert {case.kind for case in crd_cases.BAD} == crd_cases.VALID.keys()
