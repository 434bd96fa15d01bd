"""What is installed, on a real API server: as one file or by kustomize, and admitted as it is meant."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import crd_cases
import pytest
import yaml
from installation import ROOT, install_objects
from policy_stage import NAMESPACE, Stage, stage

from fencekv_operator import resources
from fencekv_operator.settings import NamespaceSettings, OperatorSettings
from fencekv_sandbox.apiserver.kubeconfig import kubeconfig_text
from fencekv_sandbox.controlplane import find_assets

__all__ = ["stage"]

pytestmark = [
    pytest.mark.realapi,
    pytest.mark.slow,
    pytest.mark.skipif("not config.getoption('--realapi')", reason="needs a real API server: --realapi"),
]

Object = dict[str, Any]


def kubectl(*arguments: str) -> str:
    """What kubectl prints."""
    program = find_assets(os.environ).kubectl
    assert program is not None, "KUBEBUILDER_ASSETS has no kubectl"
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def named(objects: list[Object]) -> dict[tuple[str, str], Object]:
    return {(each["kind"], each["metadata"]["name"]): each for each in objects}


def test_the_one_file_is_what_kustomize_makes() -> None:
    built = list(yaml.safe_load_all(kubectl("kustomize", str(ROOT / "manifests"))))

    assert len(built) == len(install_objects())
    assert named(built) == named(install_objects())


def test_the_overlay_for_kind_changes_the_operator_and_nothing_else() -> None:
    built = named(list(yaml.safe_load_all(kubectl("kustomize", str(ROOT / "manifests/overlays/kind")))))
    base = named(install_objects())
    operator = ("Deployment", "fencekv-operator")

    assert {key for key in base if built[key] != base[key]} == {operator}
    [container] = built.pop(operator)["spec"]["template"]["spec"]["containers"]
    assert container["imagePullPolicy"] == "Never"
    assert {"name": "FENCEKV_IMAGE", "value": container["image"]} in container["env"]


async def test_kubectl_finds_nothing_to_change_the_second_time(stage: Stage, tmp_path: Path) -> None:
    authority = tmp_path / "ca.crt"
    authority.write_text(stage.authority)
    config = tmp_path / "kubeconfig"
    config.write_text(kubeconfig_text(server=stage.admin.server, token=stage.admin.token, ca=authority))
    file = ("--kubeconfig", str(config), "-f", str(ROOT / "manifests/install.yaml"))
    written = ("-o", "jsonpath={range .items[*]}{.kind}/{.metadata.name} {.metadata.resourceVersion}{'\\n'}{end}")
    kubectl("apply", *file)
    before = kubectl("get", *file, *written)

    kubectl("apply", *file)

    assert kubectl("get", *file, *written) == before
    assert len(before.splitlines()) == len(install_objects())


def operator_pod() -> Object:
    [deployment] = [each for each in install_objects() if each["kind"] == "Deployment"]
    return deployment["spec"]["template"]["spec"]


def shard_pod() -> Object:
    meta = {"name": "tenant", "namespace": NAMESPACE, "uid": "u", "resourceVersion": "1"}
    kvns = NamespaceSettings.parse(
        {**crd_cases.valid("KVNamespace"), "metadata": meta},
        OperatorSettings(image="fencekv:dev", namespace="fencekv-system"),
    )
    set_ = resources.stateful_set(kvns, replicas=1, priority_class="fencekv-shard")
    return {
        **set_["spec"]["template"]["spec"],
        "serviceAccountName": "fencekv-operator",  # one that is there
        "volumes": [
            *set_["spec"]["template"]["spec"]["volumes"],
            {"name": "data", "persistentVolumeClaim": {"claimName": "data-tenant-0"}},
        ],
    }


@pytest.mark.parametrize(
    ("make", "priority"), [(operator_pod, 1000100), (shard_pod, 1000000)], ids=["operator", "shard"]
)
async def test_pods_are_admitted_where_pod_security_is_restricted(stage: Stage, make: Any, priority: int) -> None:
    path = "/api/v1/namespaces/fencekv-system/pods?dryRun=All"
    spec = make()
    pod = {"metadata": {"name": "tried"}, "spec": spec}

    admitted = await stage.ask("admin", "POST", path, pod)

    assert admitted.status == 201, admitted
    assert admitted.body["spec"]["priority"] == priority
    [container] = spec["containers"]
    weaker = {**container, "securityContext": {**container["securityContext"], "allowPrivilegeEscalation": True}}
    refused = await stage.ask("admin", "POST", path, {**pod, "spec": {**spec, "containers": [weaker]}})
    assert 'violates PodSecurity "restricted' in refused.message
