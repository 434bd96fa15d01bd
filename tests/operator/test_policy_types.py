"""What Kubernetes itself finds in the policies' expressions: it checks their types and writes its doubts down.

A controller does that, so this needs the controller manager beside the API server, which not every folder of
assets has.
"""

from __future__ import annotations

import asyncio
import copy
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from installation import install_objects
from policy_stage import Stage, stage

from fencekv_sandbox.apiserver.kubeconfig import kubeconfig_text
from fencekv_sandbox.controlplane import ASSETS_VARIABLE, Process

__all__ = ["stage"]

Object = dict[str, Any]

CONTROLLER = "validatingadmissionpolicy-status-controller"
CHECKED_SECONDS_MAX = 60.0
MANAGER = Path(os.environ.get(ASSETS_VARIABLE, "")) / "kube-controller-manager"
PATH = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
POLICIES = [each for each in install_objects() if each["kind"] == "ValidatingAdmissionPolicy"]

pytestmark = [
    pytest.mark.realapi,
    pytest.mark.slow,
    pytest.mark.skipif("not config.getoption('--realapi')", reason="policies need a real API server: --realapi"),
    pytest.mark.skipif(not os.access(MANAGER, os.X_OK), reason="no kube-controller-manager among the assets"),
]


@pytest.fixture(name="checker")
async def start(stage: Stage, tmp_path: Path) -> AsyncIterator[None]:
    """The controller that checks them, alone."""
    authority, config = tmp_path / "ca.crt", tmp_path / "kubeconfig"
    authority.write_text(stage.authority)
    config.write_text(kubeconfig_text(server=stage.admin.server, token=stage.admin.token, ca=authority))
    flags = [f"--kubeconfig={config}", f"--controllers={CONTROLLER}", "--leader-elect=false", "--secure-port=0"]
    process = Process("kube-controller-manager", [str(MANAGER), *flags], tmp_path)
    await process.start()
    try:
        yield
    finally:
        await process.stop()


async def checked(stage: Stage, name: str) -> list[Object]:
    """The warnings about a policy, once it has been checked as it is now."""
    async with asyncio.timeout(CHECKED_SECONDS_MAX):
        while True:
            policy = (await stage.ask("admin", "GET", f"{PATH}/{name}")).body
            status = policy.get("status") or {}
            if status.get("observedGeneration") == policy["metadata"]["generation"]:
                return list(status["typeChecking"].get("expressionWarnings") or ())
            await asyncio.sleep(0.2)


def typed(policy: Object) -> Object:
    """A copy that names a version: the controller checks no types of what a policy says with `*`."""
    spec = copy.deepcopy(policy["spec"])
    for rule in spec["matchConstraints"]["resourceRules"]:
        rule["apiVersions"] = ["v1"]
    return {"metadata": {"name": f"typed-{policy['metadata']['name']}"}, "spec": spec}


def mistaken(policy: Object) -> Object:
    """One that compares a number with a text: what the controller is there for."""
    made = typed(policy)
    expressions = [{"expression": "object.spec.leaseTransitions == 'three'"}]
    return {"metadata": {"name": "mistaken"}, "spec": {**made["spec"], "validations": expressions}}


async def test_the_policies_leave_no_doubt_of_types(stage: Stage, checker: None) -> None:
    assert len(POLICIES) == 2
    mistake = mistaken(POLICIES[0])
    for made in (*map(typed, POLICIES), mistake):
        assert (await stage.ask("admin", "POST", PATH, made)).status == 201

    found = [await checked(stage, typed(policy)["metadata"]["name"]) for policy in POLICIES]
    found += [await checked(stage, policy["metadata"]["name"]) for policy in POLICIES]

    assert found == [[], [], [], []]
    [doubt] = await checked(stage, mistake["metadata"]["name"])
    assert doubt["fieldRef"] == "spec.validations[0].expression"
